"""The runtime's one clock: the store's time of day, carried on by this process's monotonic clock.

So a host whose wall clock is wrong decides by the same times as the others, and a test's virtual time moves both.
"""

from math import inf

import trio

__all__ = ["RuntimeClock"]

DRIFT = 0.0002
"""How far two clocks go apart, in seconds a second, at most. Source: quartz is good for 100 parts in a million, either way."""


class RuntimeClock:
    """Milliseconds since the epoch by the store's clock. Usable inside ``trio.run`` only, after the first ``set``."""

    def __init__(self) -> None:
        self._epoch_ms = 0.0
        self._error_ms = inf
        self._asked = 0.0

    def set(self, store_now_ms: int, *, asked: float) -> int:
        """Follow the store's clock, which answered ``store_now_ms`` to a question of ``asked`` (trio's clock, seconds).

        Returns by how many milliseconds it has leapt away from ours. The store looked at its clock at some moment between question and
        answer: an answer that took long says nothing exact, and is not followed where it fits what is known better. What does not fit
        is a leap, however long the answer took.
        """
        answered = trio.current_time()
        epoch_ms = store_now_ms - (asked + answered) / 2 * 1000
        error_ms = (answered - asked) / 2 * 1000
        known_ms = self._error_ms + (answered - self._asked) * DRIFT * 1000
        apart_ms = epoch_ms - self._epoch_ms
        fits = abs(apart_ms) <= known_ms + error_ms
        if not fits or error_ms <= known_ms:
            self._epoch_ms, self._error_ms, self._asked = epoch_ms, error_ms, asked
        return 0 if fits else round(apart_ms)

    def now_ms(self) -> int:
        """The time of day."""
        return round(self._epoch_ms + trio.current_time() * 1000)
