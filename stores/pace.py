"""Where to run something short that may block on the disk: here, or in a thread when the disk is slow.

A hop to a thread costs more than a fast fsync, and a slow fsync on the trio thread stops every request; so the measured time
decides. Measured on CPython, beside a trio loop that is never idle: a thread may get the interpreter lock once in a second, because
the loop takes it back before the thread wakes; a nap of 20 us at every turn of the loop makes that thousands of times.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

__all__ = ["Pace", "breathing"]

_WEIGHT: Final = 0.2
"""Of the newest measurement in the mean."""

_PROBE_EVERY: Final = 64
"""So often a slow one is run here nevertheless: in a thread, waiting for the interpreter lock looks like a slow disk."""

_NAP_SECONDS: Final = 20e-6


class Pace:
    """Runs calls on the trio thread while they take less than ``inline_below_ms`` on average, else in a thread."""

    def __init__(self, inline_below_ms: float) -> None:
        self._limit_seconds = inline_below_ms / 1000
        self._mean_seconds: float | None = None
        self._hops = 0
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, call: Callable[[], object]) -> None:
        """Run ``call`` to its end, cancelled or not."""
        if self._mean_seconds is None or self._mean_seconds < self._limit_seconds:
            self._note(_timed(call))
        elif self._hops == _PROBE_EVERY:
            self._hops, self._mean_seconds = 0, None
            self._note(_timed(call))
        else:
            self._hops += 1
            with breathing(), trio.CancelScope(shield=True):
                self._note(await trio.to_thread.run_sync(_timed, call, limiter=self._limiter))

    def _note(self, seconds: float) -> None:
        mean = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = mean + _WEIGHT * (seconds - mean)


@contextmanager
def breathing() -> Iterator[None]:
    """Let threads have the interpreter lock at every turn of the trio loop."""
    napper = _Napper()
    trio.lowlevel.add_instrument(napper)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(napper)


class _Napper(trio.abc.Instrument):
    def before_io_wait(self, timeout: float) -> None:
        time.sleep(_NAP_SECONDS)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
