"""The runtime's one clock: the store's time of day, carried on by this process's monotonic clock.

So a host whose wall clock is wrong decides by the same times as the others, and a test's virtual time moves both.
"""

import trio

__all__ = ["RuntimeClock"]

SLOW_SECONDS = 1.0
"""An answer about the time that took longer than this is not followed."""


class RuntimeClock:
    """Milliseconds since the epoch by the store's clock. Usable inside ``trio.run`` only, after the first ``set``."""

    def __init__(self) -> None:
        self._epoch_ms = 0.0

    def set(self, store_now_ms: int, *, asked: float) -> int:
        """Follow the store's clock, which answered ``store_now_ms`` to a question of ``asked`` (trio's clock, seconds).

        Returns by how many milliseconds it had moved away from ours. An answer that took long says nothing exact.
        """
        answered = trio.current_time()
        if answered - asked > SLOW_SECONDS and self._epoch_ms:
            return 0
        epoch_ms = store_now_ms - (asked + answered) / 2 * 1000
        drift_ms = round(epoch_ms - self._epoch_ms)
        self._epoch_ms = epoch_ms
        return drift_ms

    def now_ms(self) -> int:
        """The time of day."""
        return round(self._epoch_ms + trio.current_time() * 1000)
