"""The store in memory: the reference that the other drivers must equal, for tests and throw-away work.

A ``MemoryDatabase`` outlives its connections; several ``MemoryStore`` on one database stand for several processes. No verb but
``wait_news`` waits for anything, so a test may run it on virtual time.
"""

import heapq
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

import trio
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.core.commands import Claim, Lapse
from callboard.runtime.core.errors import StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import WAITING, Job, Request, Status
from callboard.runtime.core.store import (
    Claimed,
    Clock,
    Committed,
    Conflict,
    Delete,
    Due,
    Duplicate,
    Extension,
    Full,
    Held,
    JobFilter,
    News,
    Outcome,
    Page,
    Write,
)
from callboard.runtime.core.transition import Change, decide
from callboard.stores.comparing import check_batch, fitting, is_same
from callboard.stores.cursors import news_cursor, page_cursor, read_news_cursor, read_page_cursor
from callboard.stores.lazyheap import LazyHeap

__all__ = ["MemoryDatabase", "MemoryStore", "system_clock"]

_FEED_EVENTS: Final = 1000
"""So many of the newest events are kept for other connections' ``wait_news``."""


def system_clock() -> int:
    """The host's clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class _Record(Struct):
    job: Job
    request: Request
    events: tuple[Event, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    lease_ms: int = 0


class _Fed(Struct, frozen=True):
    position: int
    origin: int
    event: Event


class MemoryDatabase:
    """What the connections share. All of it is private to this module."""

    def __init__(self) -> None:
        self.records: dict[int, _Record] = {}
        self.serials: list[int] = []
        self.ids: dict[str, int] = {}
        self.keys: dict[str, int] = {}
        self.ready: defaultdict[tuple[str, str], LazyHeap] = defaultdict(LazyHeap)
        self.due = LazyHeap()
        self.leases = LazyHeap()
        self.ended = LazyHeap()
        self.counts: Counter[tuple[str, Status]] = Counter()
        self.paused: set[str] = set()
        self.queue_changes = 0
        self.last_serial = 0
        self.last_fence = 0
        self.last_origin = 0
        self.position = 0
        self.forgotten = 0
        self.feed: deque[_Fed] = deque()
        self.sleepers: dict[int, trio.Event] = {}

    def find(self, job_id: str) -> _Record | None:
        """The record of that job."""
        serial = self.ids.get(job_id)
        return None if serial is None else self.records[serial]

    def waiting(self, queue: str) -> int:
        """How many jobs of ``queue`` wait."""
        return sum(self.counts[queue, status] for status in WAITING)

    def insert(self, job: Job, request: Request) -> _Record:
        """A new record without events; give it its serial."""
        self.last_serial += 1
        record = _Record(replace(job, serial=self.last_serial), request)
        self.records[self.last_serial] = record
        self.serials.append(self.last_serial)
        self.ids[job.id] = self.last_serial
        if job.key is not None:
            self.keys[job.key] = self.last_serial
        self._index(record)
        return record

    def change(self, record: _Record, job: Job, lease_ms: int | None = None) -> None:
        """Put ``job`` in the place of the record's job; its lease stays unless ``lease_ms`` is given."""
        self._unindex(record)
        if lease_ms is not None:
            record.lease_ms = lease_ms
        elif record.job.status is not Status.IN_PROGRESS:
            record.lease_ms = 0
        record.job = job
        self._index(record)

    def append(self, record: _Record, events: tuple[Event, ...], *, origin: int, keep: int) -> None:
        """Append to the job's events and to the feed."""
        record.events = (record.events + events)[-keep:]
        for event in events:
            self.position += 1
            self.feed.append(_Fed(self.position, origin, event))
        while len(self.feed) > _FEED_EVENTS:
            self.forgotten = max(self.forgotten, self.feed.popleft().position)
        self.wake(origin)

    def wake(self, origin: int) -> None:
        """Wake every sleeper but the one who has done something."""
        for sleeper, woken in self.sleepers.items():
            if sleeper != origin:
                woken.set()

    def remove(self, record: _Record) -> None:
        """Remove a record with its id and key."""
        self._unindex(record)
        job = record.job
        del self.records[job.serial], self.ids[job.id]
        if job.key is not None:
            del self.keys[job.key]
        if len(self.serials) > 2 * len(self.records) + 64:
            self.serials = list(self.records)

    def forget(self, job_ids: set[str]) -> None:
        """Drop what the feed holds of jobs that were removed; who has not seen it yet is told that something is missing."""
        kept = deque(fed for fed in self.feed if fed.event.job_id not in job_ids)
        if len(kept) < len(self.feed):
            dropped = (fed.position for fed in reversed(self.feed) if fed.event.job_id in job_ids)
            self.forgotten = max(self.forgotten, next(dropped))
            self.feed = kept

    def promote(self, now_ms: int) -> None:
        """Let the jobs that have fallen due join the ready ones."""
        for serial in self.due.pop_until(now_ms):
            job = self.records[serial].job
            self.ready[job.queue, job.name].put(serial, -job.priority)

    def choose(self, queues: Sequence[str], names: Sequence[str], limit: int) -> list[_Record]:
        """Up to ``limit`` ready jobs of queues that are not paused, by priority, then acceptance, taken out of the ready ones."""
        open_queues = [queue for queue in dict.fromkeys(queues) if queue not in self.paused]
        pairs = [(queue, name) for queue in open_queues for name in dict.fromkeys(names)]
        heaps = [self.ready[pair] for pair in pairs if pair in self.ready]
        front = [(*first, index) for index, heap in enumerate(heaps) if (first := heap.first()) is not None]
        heapq.heapify(front)
        chosen: list[_Record] = []
        while front and len(chosen) < limit:
            _, serial, index = heapq.heappop(front)
            chosen.append(self.records[serial])
            heaps[index].discard(serial)
            if (first := heaps[index].first()) is not None:
                heapq.heappush(front, (*first, index))
        return chosen

    def _index(self, record: _Record) -> None:
        job = record.job
        self.counts[job.queue, job.status] += 1
        if job.status is Status.QUEUED:
            self.ready[job.queue, job.name].put(job.serial, -job.priority)
        elif job.status is Status.SCHEDULED:
            self.due.put(job.serial, job.due_ms or 0)
        elif job.status is Status.IN_PROGRESS:
            self.leases.put(job.serial, record.lease_ms)
        else:
            self.ended.put(job.serial, job.completed_ms or 0)

    def _unindex(self, record: _Record) -> None:
        job = record.job
        self.counts[job.queue, job.status] -= 1
        if job.status in WAITING:
            self.ready[job.queue, job.name].discard(job.serial)
            self.due.discard(job.serial)
        elif job.status is Status.IN_PROGRESS:
            self.leases.discard(job.serial)
        else:
            self.ended.discard(job.serial)


class MemoryStore:
    """A connection to ``database``, by default to one of its own; ``clock`` gives milliseconds since the epoch."""

    def __init__(self, database: MemoryDatabase | None = None, *, clock: Clock | None = None) -> None:
        self._shared = MemoryDatabase() if database is None else database
        self._clock = system_clock if clock is None else clock
        self._worker = ""
        self._origin = 0
        self._keep = 1
        self._keep_attempts = 1

    async def open(self, *, worker: str, max_events_per_job: int, max_attempts_per_job: int) -> None:
        await trio.lowlevel.checkpoint()
        self._shared.last_origin += 1
        self._worker, self._origin = worker, self._shared.last_origin
        self._keep, self._keep_attempts = max_events_per_job, max_attempts_per_job

    async def aclose(self) -> None:
        sleeping = self._shared.sleepers.get(self._origin)
        self._origin = 0
        if sleeping is not None:
            sleeping.set()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome]:
        await self._connected()
        check_batch(batch)
        return [self._apply(item) for item in batch]

    async def claim(
        self, *, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int
    ) -> Sequence[Claimed]:
        database, now_ms = await self._connected(), self._clock()
        database.promote(now_ms)
        return [self._claim(record, now_ms, lease_ms) for record in database.choose(queues, names, limit)]

    async def extend(self, held: Sequence[Held], *, lease_ms: int) -> Sequence[Extension]:
        database, now_ms = await self._connected(), self._clock()
        return [self._extend(database.find(lease.job_id), lease.fence, now_ms + lease_ms) for lease in held]

    async def lapse(self, *, limit: int) -> Sequence[Committed]:
        database, now_ms = await self._connected(), self._clock()
        lapsed: list[Committed] = []
        while len(lapsed) < limit and (first := database.leases.first()) is not None and first[0] <= now_ms:
            record = database.records[first[1]]
            lapsed.append(self._write(record, decide(record.job, Lapse(now_ms=now_ms))))
        return lapsed

    async def prune(self, *, ended_before_ms: int, limit: int) -> int:
        database = await self._connected()
        removed: set[str] = set()
        while len(removed) < limit and (first := database.ended.first()) is not None and first[0] < ended_before_ms:
            record = database.records[first[1]]
            database.remove(record)
            removed.add(record.job.id)
        database.forget(removed)
        return len(removed)

    async def set_paused(self, queue: str, paused: bool) -> bool:
        database = await self._connected()
        if (queue in database.paused) is paused:
            return False
        database.paused ^= {queue}
        database.queue_changes += 1
        database.wake(self._origin)
        return True

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        database = await self._connected()
        return [None if (record := database.find(job_id)) is None else record.job for job_id in job_ids]

    async def list(self, where: JobFilter, *, cursor: str | None, limit: int) -> Page:
        database, below = await self._connected(), read_page_cursor(cursor)
        serials, end = database.serials, bisect_left(database.serials, below)
        records = (database.records.get(serials[index]) for index in range(end - 1, -1, -1))
        found = (record.job for record in records if record is not None and _matches(record.job, where))
        jobs = tuple(islice(found, limit + 1))
        return Page(jobs[:limit], page_cursor(jobs[limit - 1].serial) if len(jobs) > limit else None)

    async def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        record = (await self._connected()).find(job_id)
        return [] if record is None else [event for event in record.events if event.seq > after][:limit]

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        record = (await self._connected()).find(job_id)
        return () if record is None else record.attempts

    async def next_due(self) -> Due:
        database = await self._connected()
        return Due(*(None if first is None else first[0] for first in (database.due.first(), database.leases.first())))

    async def counts(self) -> dict[tuple[str, Status], int]:
        return {pair: count for pair, count in (await self._connected()).counts.items() if count}

    async def ready(self, *, up_to: int) -> dict[tuple[str, str], int]:
        return {pair: min(len(heap), up_to) for pair, heap in (await self._connected()).ready.items() if len(heap)}

    async def paused(self) -> Sequence[str]:
        return sorted((await self._connected()).paused)

    async def now_ms(self) -> int:
        await self._connected()
        return self._clock()

    async def wait_news(self, cursor: str | None) -> News:
        database = await self._connected()
        if cursor is None:
            return News(cursor=news_cursor(database.position, database.queue_changes))
        seen, queues = read_news_cursor(cursor)
        while True:
            news = self._news(seen, queues)
            if news.events or not news.complete or news.queues_changed:
                return news
            seen = database.position
            await self._sleep()

    async def _connected(self) -> MemoryDatabase:
        await trio.lowlevel.checkpoint()
        if not self._origin:
            raise StoreUnavailable("the store is not open")
        return self._shared

    async def _sleep(self) -> None:
        """Until another connection has committed events."""
        origin, woken = self._origin, trio.Event()
        self._shared.sleepers[origin] = woken
        try:
            await woken.wait()
        finally:
            del self._shared.sleepers[origin]
        await self._connected()

    def _news(self, seen: int, queues: int) -> News:
        database = self._shared
        complete = database.forgotten <= seen <= database.position
        fresh: list[Event] = []
        for fed in reversed(database.feed):
            if fed.position <= seen:
                break
            if fed.origin != self._origin:
                fresh.append(fed.event)
        return News(
            cursor=news_cursor(database.position, database.queue_changes),
            events=tuple(reversed(fresh)),
            complete=complete,
            queues_changed=queues != database.queue_changes,
        )

    def _apply(self, item: Write | Delete) -> Outcome:
        if isinstance(item, Delete):
            return self._delete(item)
        return self._insert(item) if item.expected is None else self._update(item, item.expected)

    def _insert(self, item: Write) -> Outcome:
        database = self._shared
        taken = database.ids.get(item.job.id)
        if taken is None and item.job.key is not None:
            taken = database.keys.get(item.job.key)
        if taken is not None:
            return Duplicate(database.records[taken].job)
        if (full := self._full(item, joins=item.job.status in WAITING)) is not None:
            return full
        record = database.insert(item.job, item.request or Request())
        database.append(record, item.events, origin=self._origin, keep=self._keep)
        return Committed(record.job, item.events)

    def _update(self, item: Write, expected: Job) -> Outcome:
        record = self._shared.find(expected.id)
        if record is None or (fits := fitting(item, record.job)) is None:
            return Conflict(None if record is None else record.job)
        joins = fits.job.status in WAITING and record.job.status not in WAITING
        if (full := self._full(fits, joins=joins)) is not None:
            return full
        return self._write(record, Change(fits.job, fits.events, fits.attempt))

    def _delete(self, item: Delete) -> Outcome:
        record = self._shared.find(item.expected.id)
        if record is None or not is_same(record.job, item.expected):
            return Conflict(None if record is None else record.job)
        self._shared.remove(record)
        self._shared.forget({record.job.id})
        return Committed(record.job, ())

    def _full(self, item: Write, *, joins: bool) -> Full | None:
        size = self._shared.waiting(item.job.queue)
        return Full(size) if joins and item.max_queue_size is not None and size >= item.max_queue_size else None

    def _claim(self, record: _Record, now_ms: int, lease_ms: int) -> Claimed:
        database = self._shared
        database.last_fence += 1
        change = decide(record.job, Claim(now_ms=now_ms, worker=self._worker, fence=database.last_fence))
        self._write(record, change, lease_ms=now_ms + lease_ms)
        return Claimed(change.job, record.request, change.events)

    def _extend(self, record: _Record | None, fence: int, lease_ms: int) -> Extension:
        if record is None or record.job.status is not Status.IN_PROGRESS or record.job.fence != fence:
            return Extension(held=False)
        self._shared.change(record, record.job, lease_ms)
        return Extension(held=True, cancel_requested=record.job.cancel_requested)

    def _write(self, record: _Record, change: Change, lease_ms: int | None = None) -> Committed:
        self._shared.change(record, change.job, lease_ms)
        if change.attempt is not None:
            record.attempts = (*record.attempts, change.attempt)[-self._keep_attempts :]
        self._shared.append(record, change.events, origin=self._origin, keep=self._keep)
        return Committed(change.job, change.events)


def _matches(job: Job, where: JobFilter) -> bool:
    wanted = ((where.name, job.name), (where.queue, job.queue), (where.owner, job.owner))
    return (not where.statuses or job.status in where.statuses) and all(want in (None, have) for want, have in wanted)
