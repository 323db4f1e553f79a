"""Sleeps until something falls due: a scheduled job, the end of a lease, the end of a retention.

The heap of deadlines is the store's: it knows what is due next among all jobs, so a waiting job costs this process nothing.
"""

import logging

import trio

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.directory import Directory
from callboard.runtime.dispatcher import Dispatcher
from callboard.runtime.leases import Leases

__all__ = ["Timers"]

logger = logging.getLogger("callboard.timers")

PRUNE_SECONDS = 60
"""How often ended jobs whose retention is over are removed."""
PRUNE_LIMIT = 500
"""Jobs removed in one write."""


class Timers:
    """One task for deadlines, one for retention."""

    def __init__(self, directory: Directory, dispatcher: Dispatcher, leases: Leases) -> None:
        self._directory = directory
        self._dispatcher = dispatcher
        self._leases = leases
        self._wake = trio.Event()
        self._expected_ms: int | None = None

    def wake(self) -> None:
        """Something falls due that was not known before."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake = trio.Event()
            try:
                await self._leases.reap()
                seconds = await self._seconds_to_next()
            except StoreUnavailable:
                seconds = self._directory.config.poll_seconds
            except StoreRefused as error:
                logger.error("lost jobs cannot be taken back: %s", error)
                seconds = self._directory.config.poll_seconds
            with trio.move_on_after(seconds):
                await self._wake.wait()

    async def prune(self) -> None:
        """Remove what was kept long enough, until cancelled."""
        retention = self._directory.config.retention_seconds
        while retention is not None:
            before_ms = self._directory.clock.now_ms() - round(retention * 1000)
            try:
                removed = await self._directory.store.prune(before_ms, PRUNE_LIMIT)
            except (StoreUnavailable, StoreRefused):
                removed = 0
            if removed < PRUNE_LIMIT:
                await trio.sleep(min(PRUNE_SECONDS, max(1.0, retention)))

    async def _seconds_to_next(self) -> float:
        due = await self._directory.store.next_due()
        now_ms = self._directory.clock.now_ms()
        seconds = self._directory.config.poll_seconds
        if self._expected_ms is not None and self._expected_ms <= now_ms:
            # Another process may have looked at it first and left it to those who have its handler.
            self._dispatcher.wake()
        self._expected_ms = due.scheduled_ms
        if due.scheduled_ms is not None:
            if due.scheduled_ms <= now_ms:
                self._dispatcher.wake()
            else:
                seconds = min(seconds, (due.scheduled_ms - now_ms) / 1000)
        if due.lease_ms is not None and due.lease_ms > now_ms:
            seconds = min(seconds, (due.lease_ms - now_ms) / 1000)
        # Milliseconds are whole numbers in the store: a little later is surely due.
        return seconds + 0.001
