"""What a running handler says, on its way to the store: at most one write per interval, the newest progress, every log line.

A report that the store cannot take is kept as it was decided and tried again, so that a write whose answer was lost is not
made twice.
"""

from collections.abc import Callable

import trio

from callboard.runtime.config import Config
from callboard.runtime.context import Reports
from callboard.runtime.core.commands import Report
from callboard.runtime.core.errors import StoreUnavailable
from callboard.runtime.record import Record

__all__ = ["Reporter"]


class Reporter:
    """One attempt's. ``post()`` is called in the event loop after the handler said something; it returns False when it has to be
    called again, because the message could not be sent.
    """

    def __init__(self, record: Record, config: Config, post: Callable[[], bool]) -> None:
        self.reports = Reports(self._notify)
        self._record = record
        self._config = config
        self._post = post
        self._token = trio.lowlevel.current_trio_token()
        self._is_posted = False
        self._unsent: Report | None = None
        self._last_flush = -float("inf")
        self.flush_at = float("inf")
        """When ``flush`` is due (trio's clock, seconds)."""

    async def reported(self) -> None:
        """The handler said something: store it now, or when the interval is over. Raises LeaseLost."""
        self._is_posted = False
        due = self._last_flush + self._config.progress_interval_seconds
        if trio.current_time() >= due:
            await self.flush()
        else:
            self.flush_at = min(self.flush_at, due)

    async def flush(self) -> None:
        """Store what waits, later if the store cannot be reached. Raises LeaseLost."""
        self.flush_at = float("inf")
        report = self._unsent or self._taken()
        if report is None:
            return
        self._last_flush = trio.current_time()
        try:
            await self._record.apply(report, fenced=True)
        except StoreUnavailable:
            self._unsent = report
            self.flush_at = trio.current_time() + self._config.poll_seconds
            return
        if self._unsent is not None:
            self._unsent = None
            self.flush_at = self._last_flush + self._config.progress_interval_seconds

    async def last(self) -> Report:
        """The attempt has ended: what is to be stored with its outcome. Raises LeaseLost, StoreUnavailable."""
        self.flush_at = float("inf")
        if self._unsent is not None:
            await self._record.persist(self._unsent, fenced=True)
            self._unsent = None
        return self._taken() or Report(now_ms=self._record.now_ms())

    def _taken(self) -> Report | None:
        if self.reports.is_empty:
            return None
        logs, progress = self.reports.take()
        return Report(now_ms=self._record.now_ms(), logs=logs, progress=progress)

    def _notify(self) -> None:
        # Also called from the handler's thread; a second message while one waits would say nothing new.
        if not self._is_posted:
            self._is_posted = True
            self._token.run_sync_soon(self._post_now)

    def _post_now(self) -> None:
        self._is_posted = self._post()
