"""The runtime's one clock: the store's time of day, carried on by this process's monotonic clock.

So a host whose wall clock is wrong decides by the same times as the others, and a test's virtual time moves both.
"""

import trio

__all__ = ["RuntimeClock"]


class RuntimeClock:
    """Milliseconds since the epoch by the store's clock. Usable inside ``trio.run`` only, after the first ``set``."""

    def __init__(self) -> None:
        self._epoch_ms = 0.0

    def set(self, store_now_ms: int) -> int:
        """Follow the store's clock, which says ``store_now_ms`` now; by how many milliseconds it had moved away from ours."""
        drift = store_now_ms - self.now_ms()
        self._epoch_ms = store_now_ms - trio.current_time() * 1000
        return drift

    def now_ms(self) -> int:
        """The time of day."""
        return round(self._epoch_ms + trio.current_time() * 1000)
