"""How a server comes to its end, from the first wish to the last connection.

    asked (a signal, a parent that has gone)     or     the runtime died
      lead: readiness is red, everything else goes on    |
      drain: no new work, streams and waits end          |
      stop: HTTP accepts no more, requests are answered -+
      cut: whatever is still connected is cut off

``Ending`` is told what happened and does these steps; it does not know what a signal is. Every wish has a deadline, at which a watchdog
thread ends the process. That is for an event loop that is frozen and for jobs that do not stop: no client outlasts the cut.
"""

import logging
from collections.abc import Callable
from math import inf
from typing import Final

import trio

from callboard.web.board import Callboard
from callboard.web.notify import Notifier
from callboard.web.watchdog import Watchdog

__all__ = ["GRACEFUL_SECONDS", "MARGIN_SECONDS", "Ending"]

logger: Final = logging.getLogger("callboard.serve")

GRACEFUL_SECONDS: Final = 1.0
"""What requests that still run get once the drain is over, as far as the drain time has not passed."""
LEAST_SECONDS: Final = 2.0
"""A shorter drain time than this is for the jobs only: the server itself still gets so long to stop."""
MARGIN_SECONDS: Final = 0.5
"""How long after the drain time the watchdog ends the process."""


class Ending:
    """The end of one server. ``cut`` cuts off every connection that is still open."""

    def __init__(
        self, board: Callboard, watchdog: Watchdog, notifier: Notifier, lead_seconds: float, cut: Callable[[], None]
    ) -> None:
        self._board = board
        self._watchdog = watchdog
        self._notifier = notifier
        self._lead_seconds = lead_seconds
        self._cut = cut
        self._closed_at = inf
        """When every connection has to be cut off."""
        self._asked = trio.Event()
        self.stop = trio.Event()
        """Set when HTTP is to end."""

    @property
    def has_begun(self) -> bool:
        """Whether the server is on its way out, for whatever reason."""
        return self._asked.is_set() or self.stop.is_set()

    def ask(self, why: str) -> None:
        """Lead, drain, stop, cut. Once it has begun, further wishes change nothing."""
        if self.has_begun:
            return
        drain_seconds = self._board.config.drain_seconds
        when = f"in {self._lead_seconds:g} s, " if self._lead_seconds else ""
        status = f"{why}: draining {when}for up to {drain_seconds:g} s"
        logger.warning("%s", status)
        self._notifier.stopping(status)
        self._give(self._lead_seconds, 0)
        self._board.announce_end()
        self._asked.set()

    async def run(self) -> None:
        """Do what was asked, when it is asked; or when the runtime dies, which needs no lead."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leave)
            nursery.start_soon(self._see_unasked_drain)
            await self._board.wait_fatal()
            nursery.cancel_scope.cancel()
        logger.critical("the runtime has died: the server stops")
        self._notifier.stopping("the runtime has died")
        self._give(0, 1)
        await self._close()

    async def _see_unasked_drain(self) -> None:
        """The runtime also drains when the app's lifespan was torn down round it; nobody has given that a deadline."""
        await self._board.runtime.drain_started.wait()
        if not self.has_begun:
            self._give(0, 1)

    def _give(self, lead_seconds: float, exit_code: int) -> None:
        """The drain time from the end of the lead, and no more: whoever operates knows one number (decision 007)."""
        seconds = lead_seconds + max(self._board.config.drain_seconds, LEAST_SECONDS)
        self._closed_at = trio.current_time() + seconds
        self._watchdog.arm(seconds + MARGIN_SECONDS, exit_code)

    async def _leave(self) -> None:
        await self._asked.wait()
        await trio.sleep(self._lead_seconds)
        await self._board.drain()
        await self._close()

    async def _close(self) -> None:
        self.stop.set()
        await trio.sleep_until(min(trio.current_time() + GRACEFUL_SECONDS, self._closed_at))
        self._cut()
