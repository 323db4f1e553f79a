"""Where plain functions run: in trio's worker threads. A seam, so that tests on virtual time can run them in place."""

from collections.abc import Callable
from typing import Any, Protocol

import trio

__all__ = ["Threads", "TrioThreads"]


class Threads(Protocol):
    """Runs plain functions beside the event loop."""

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call and return its value; not before it has ended, also when cancelled."""
        ...

    def check(self) -> None:
        """Called by the function itself: raises ``trio.Cancelled`` if whoever awaits ``run`` was cancelled. Elsewhere it says nothing."""
        ...


class TrioThreads:
    """``limit`` functions at a time."""

    def __init__(self, limit: int) -> None:
        self._limiter = trio.CapacityLimiter(limit)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._limiter)

    def check(self) -> None:
        try:
            trio.from_thread.check_cancelled()
        except RuntimeError:
            # A thread that the function started itself: trio does not know whose it is.
            pass
