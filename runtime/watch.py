"""The one subscription engine: an unbroken chain of a job's events, from any point, for one follower.

It subscribes first and reads second, and goes by ``seq`` alone: what it has seen is skipped, and where the chain has a hole (the
follower was slow, news was lost, the job ran elsewhere) it rereads from the store. Only where the store's history no longer
reaches back does the follower get a snapshot marked as a gap.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.core.errors import JobNotFound, ShuttingDown, StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Job
from callboard.runtime.hub import Hub, Subscription
from callboard.runtime.store_actor import StoreActor

__all__ = ["Bounded", "Snapshot", "Watch", "open_watch"]

T = TypeVar("T")

PAGE = 256
"""Events read from the store at a time: bounds what one follower holds in memory."""


class Bounded(Protocol):
    """Waits for an answer of the store so long and no longer: StoreUnavailable; ShuttingDown when nobody can answer any more."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T: ...


class Snapshot(Struct, frozen=True):
    """The whole job; ``gap`` says that events before it could not be told."""

    job: Job
    gap: bool = False

    @property
    def seq(self) -> int:
        return self.job.seq


class Watch(AsyncIterator[Snapshot | Event]):
    """Yields ``Snapshot | Event``; each event's ``since`` is the ``seq`` before it. Ends after the newest event if it is terminal.

    Raises ShuttingDown when the runtime drains.
    """

    def __init__(
        self,
        job: Job,
        after: int | None,
        store: StoreActor,
        inbox: Subscription,
        *,
        retry_seconds: float,
        bounded: Bounded,
    ) -> None:
        self._job_id = job.id
        self._serial = job.serial
        self._store = store
        self._inbox = inbox
        self._retry_seconds = retry_seconds
        self._bounded = bounded
        self._ready: deque[Snapshot | Event] = deque()
        self._done = False
        self._must_reread = False
        self._seq = 0 if after is None else after
        if after is None or after > job.seq:
            self._push_snapshot(job, gap=after is not None)
        elif after == job.seq:
            self._done = job.status.is_terminal
        else:
            self._must_reread = True

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> Snapshot | Event:
        while not self._ready:
            if self._done:
                raise StopAsyncIteration
            if self._must_reread:
                await self._reread()
            else:
                await self._receive()
        return self._ready.popleft()

    async def _receive(self) -> None:
        events, lagged = await self._inbox.take()
        if lagged:
            self._must_reread = True
            return
        for event in events:
            if event.seq <= self._seq:
                continue
            if event.since > self._seq:
                self._must_reread = True
                return
            self._push(event)
        self._done = bool(self._ready) and self._ended(self._ready[-1])

    async def _reread(self) -> None:
        try:
            job = await self._bounded(lambda: self._store.get(self._job_id))
            events = await self._bounded(lambda: self._store.events(self._job_id, self._seq, PAGE))
        except StoreUnavailable:
            with trio.move_on_after(self._retry_seconds):
                await self._inbox.closed.wait()
                raise ShuttingDown("the server is shutting down") from None
            return
        self._must_reread = False
        if job is None:
            self._done = True
        elif job.serial != self._serial:
            self._serial = job.serial
            self._push_snapshot(job, gap=True)
        elif _is_chain(events, self._seq):
            for event in events:
                self._push(event)
            # Whether the newest event was read is known only by the record that was read before.
            self._must_reread = self._seq < job.seq
            self._done = self._seq >= job.seq and self._ended(events[-1])
        elif job.seq != self._seq:
            # Behind what was told: the store has lost the last of it, as one may that failed over.
            self._push_snapshot(job, gap=True)
        else:
            self._done = job.status.is_terminal

    def _push(self, event: Event) -> None:
        # A merged event may begin before what a reread has told already; its fields are whole values, so it stands.
        self._ready.append(event if event.since == self._seq else replace(event, since=self._seq))
        self._seq = event.seq

    def _push_snapshot(self, job: Job, *, gap: bool) -> None:
        self._ready.append(Snapshot(job, gap))
        self._seq = job.seq
        self._done = job.status.is_terminal

    @staticmethod
    def _ended(item: Snapshot | Event) -> bool:
        return isinstance(item, Event) and item.is_terminal


def _is_chain(events: Sequence[Event], seq: int) -> bool:
    """Whether there are events and they go on from ``seq`` without a hole: the oldest of a long history are not kept."""
    for event in events:
        if event.since > seq:
            return False
        seq = event.seq
    return bool(events)


@asynccontextmanager
async def open_watch(
    hub: Hub,
    store: StoreActor,
    job_id: str,
    *,
    after: int | None,
    limit: int,
    retry_seconds: float,
    bounded: Bounded,
) -> AsyncIterator[Watch]:
    """Follow one job. Raises JobNotFound, StoreUnavailable, ShuttingDown."""
    with hub.subscribe(job_id, limit) as inbox:
        job = await bounded(lambda: store.get(job_id))
        if job is None:
            raise JobNotFound(f"there is no job {job_id}")
        yield Watch(job, after, store, inbox, retry_seconds=retry_seconds, bounded=bounded)
