"""Takes jobs from the store when there are free slots. Free slots are the demand: nothing is claimed before it can run.

It sleeps until something may be there to claim; a slow poll stands behind as a net.
"""

import logging
from collections.abc import Iterable

import trio

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Status
from callboard.runtime.directory import Directory

__all__ = ["Dispatcher"]

logger = logging.getLogger("callboard.dispatcher")


class Dispatcher:
    """Claims for the handlers of ``directory`` and hands the jobs to it."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._names = directory.handlers.names
        self._queues = directory.handlers.queues
        self._slots = directory.config.max_concurrent_jobs if self._names else 0
        self._wake = trio.Event()
        self._wanted = True
        """Something may be there to claim."""
        self._stopping = trio.Event()
        self.stopped = trio.Event()
        """Set when nothing more is claimed and what was claimed has been handed over."""
        directory.on_slot_free = self._slot_free

    def wake(self) -> None:
        """Something may be there to claim."""
        self._wanted = True
        self._wake.set()

    def see(self, events: Iterable[Event]) -> None:
        """Wake for committed events that made a job of ours ready."""
        for event in events:
            if event.status == Status.QUEUED and event.type == "status" and event.name in self._names:
                self.wake()
                return

    def stop(self) -> None:
        """Claim nothing more; ``stopped`` is set when a claim that is under way has been handed over."""
        self._slots = 0
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Until ``stop``."""
        while self._slots:
            self._wake = trio.Event()
            if self._wanted and self._free > 0:
                await self._claim()
            else:
                with trio.move_on_after(self._directory.config.poll_seconds):
                    await self._wake.wait()
                    continue
                self._wanted = True
        self.stopped.set()

    @property
    def _free(self) -> int:
        return self._slots - self._directory.running

    def _slot_free(self) -> None:
        if self._wanted:
            self._wake.set()

    async def _claim(self) -> None:
        config = self._directory.config
        free = self._free
        self._wanted = False
        sent = trio.current_time()
        lease_ms = round(config.lease_seconds * 1000)
        with self._directory.claiming():
            try:
                claimed = await self._directory.store.claim(self._queues, self._names, free, lease_ms)
            except (StoreUnavailable, StoreRefused) as error:
                await self._claim_again_later(error)
                return
            # Fewer than asked for: there are no more until an event says so.
            self._wanted = self._wanted or len(claimed) == free
            for one in claimed:
                await self._directory.start(one, sent + config.lease_seconds)

    async def _claim_again_later(self, error: Exception) -> None:
        if isinstance(error, StoreRefused):
            logger.error("no job can be claimed: %s", error)
        self._wanted = True
        with trio.move_on_after(self._directory.config.poll_seconds):
            await self._stopping.wait()
