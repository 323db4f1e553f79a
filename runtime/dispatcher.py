"""Takes jobs from the store when there are free slots. Free slots are the demand: nothing is claimed before it can run.

It sleeps until something may be there to claim; a slow poll stands behind as a net.
"""

import logging
from collections.abc import Iterable
from typing import Literal

import trio

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Status
from callboard.runtime.directory import Directory

__all__ = ["Dispatcher"]

logger = logging.getLogger("callboard.dispatcher")

MAX_CLAIMED = 200
"""Jobs of one claim: a driver that needs several steps for more could be cut off between two, and what the first took would be lost."""

Lane = Literal["process", "other"]


class Dispatcher:
    """Claims for the handlers of ``directory`` and hands the jobs to it.

    Handlers of ``process=True`` need a free worker process besides a free slot, and nothing is claimed for them without: they have
    a lane of their own. While slots are fewer than processes both lanes are claimed as one, so that the highest priority comes first.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._names = directory.handlers.names
        wanted = directory.config.queues
        self._queues = directory.handlers.queues if wanted is None else wanted
        self._lanes: dict[Lane, tuple[str, ...]] = {
            "process": tuple(handler.name for handler in directory.handlers if handler.runs_in == "process"),
            "other": tuple(handler.name for handler in directory.handlers if handler.runs_in != "process"),
        }
        self._slots = directory.config.max_concurrent_jobs if self._names else 0
        self._wake = trio.Event()
        self._wanted: set[Lane] = set()
        """Where something may be there to claim."""
        self._is_held = False
        self._stopping = trio.Event()
        self.stopped = trio.Event()
        """Set when nothing more is claimed and what was claimed has been handed over."""
        directory.on_slot_free = self._slot_free
        self._want_all()

    def wake(self) -> None:
        """Something may be there to claim."""
        self._want_all()
        self._wake.set()

    def hold(self) -> None:
        """Claim nothing until ``begin``."""
        self._is_held = True

    def begin(self) -> None:
        """Claim from now on."""
        self._is_held = False
        self.wake()

    def see(self, events: Iterable[Event]) -> None:
        """Wake for committed events that made a job of ours ready."""
        for event in events:
            if event.status == Status.QUEUED and event.type == "status" and self._takes(event.queue, event.name):
                self.wake()
                return

    def works_on(self, queue: str, name: str) -> bool:
        """Whether jobs of that name are taken from that queue here."""
        return self._slots > 0 and self._takes(queue, name)

    def stop(self) -> None:
        """Claim nothing more; ``stopped`` is set when a claim that is under way has been handed over."""
        self._slots = 0
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Until ``stop``."""
        while self._slots:
            self._wake = trio.Event()
            demand = self._demand()
            if demand is not None:
                await self._claim(*demand)
            else:
                with trio.move_on_after(self._directory.config.poll_seconds):
                    await self._wake.wait()
                    continue
                self._want_all()
        self.stopped.set()

    def _takes(self, queue: str, name: str) -> bool:
        return name in self._names and queue in self._queues

    def _want_all(self) -> None:
        self._wanted = {lane for lane, names in self._lanes.items() if names}

    def _demand(self) -> tuple[set[Lane], int] | None:
        """Which lanes to claim for, and how many jobs; None while nothing is wanted or nothing is free."""
        free = 0 if self._is_held else self._slots - self._directory.running
        if free <= 0:
            return None
        processes = self._directory.config.processes - self._directory.running_in_processes
        if "process" in self._wanted and processes > 0:
            return (set(self._wanted), free) if free <= processes else ({"process"}, processes)
        return ({"other"}, free) if "other" in self._wanted else None

    def _slot_free(self) -> None:
        if self._wanted:
            self._wake.set()

    async def _claim(self, lanes: set[Lane], free: int) -> None:
        config = self._directory.config
        free = min(free, MAX_CLAIMED)
        names = [name for lane in sorted(lanes) for name in self._lanes[lane]]
        self._wanted -= lanes
        sent = trio.current_time()
        lease_ms = round(config.lease_seconds * 1000)
        with self._directory.claiming():
            try:
                claimed = await self._directory.store.claim(self._queues, names, free, lease_ms)
            except (StoreUnavailable, StoreRefused) as error:
                await self._claim_again_later(error)
                return
            if len(claimed) == free:
                # Fewer than asked for would say: there are no more until an event says so.
                self._wanted |= lanes
            for one in claimed:
                await self._directory.start(one, sent + config.lease_seconds)

    async def _claim_again_later(self, error: Exception) -> None:
        if isinstance(error, StoreRefused):
            logger.error("no job can be claimed: %s", error)
        self._want_all()
        with trio.move_on_after(self._directory.config.poll_seconds):
            await self._stopping.wait()
