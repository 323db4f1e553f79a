"""The other half of the one subscription engine: the live feed of all jobs that fit a filter, new ones and changes.

It goes by ``seq`` of each job, as a watch does. The first that a follower is told of a job is its birth (an event with ``since`` 0,
which holds the whole document) or a snapshot; from then on each event's ``since`` is what was told before. A job that fitted
and fits no longer gets that one last event, so that a follower can let it go. What was told is remembered of a bounded number of
jobs: ended ones are forgotten first, then the oldest; of a job that was forgotten a snapshot is the first word again.

Where news was lost it rereads: every job that it remembers, those accepted since, and those that fit now; what changed is told as
snapshots marked as gaps. What even that cannot find is not passed over in silence: the follower gets ``Missed``.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.core.errors import ShuttingDown, StoreRefused, StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import LIVE, TERMINAL, Job
from callboard.runtime.core.store import JobFilter, Page
from callboard.runtime.hub import Hub, Subscription
from callboard.runtime.store_actor import StoreActor
from callboard.runtime.watch import PAGE, Bounded, Snapshot

__all__ = ["Feed", "MaySee", "Missed", "open_feed"]

MaySee = Callable[[Job], Awaitable[bool]]
"""Whether the follower may be told of a job; asked once for each, when it is first seen."""

REMEMBERED: Final = 1024
"""Jobs of which a feed remembers what it told."""
SCANNED: Final = 1024
"""Jobs that each list of a reread looks at, the newest."""
CHUNK: Final = 32
"""Records that are read at a time: a job's result may be large."""
NEWS_DELAY_MS: Final = 10_000
"""News of another process is never so late, unless it was lost: a reread looks so far behind the last event that was taken."""


class Missed(Struct, frozen=True):
    """Changes may have been missed for good; ``message`` says which. Who wants to be sure lists the jobs."""

    message: str


class _Known(Struct):
    """What the follower was told of one job."""

    created_ms: int
    seq: int
    is_told: bool
    """Whether the follower has the job in its picture."""
    may_be_seen: bool | None = None
    """None: not asked yet."""
    has_ended: bool = False


class _Memory:
    """At most ``limit`` jobs; ended ones are forgotten first, then the oldest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._live: OrderedDict[str, _Known] = OrderedDict()
        self._ended: OrderedDict[str, _Known] = OrderedDict()
        self.has_forgotten = False
        """A job that lives was forgotten."""
        self.has_forgotten_told = False
        """A job that the follower has in its picture was forgotten."""
        self.has_lost_told = False
        """... and that job lives."""

    def get(self, job_id: str) -> _Known | None:
        return self._live.get(job_id) or self._ended.get(job_id)

    def keep(self, job_id: str, known: _Known) -> None:
        self.forget(job_id)
        (self._ended if known.has_ended else self._live)[job_id] = known
        if len(self._live) + len(self._ended) > self._limit:
            _, forgotten = (self._ended or self._live).popitem(last=False)
            self.has_forgotten_told |= forgotten.is_told
            if not forgotten.has_ended:
                self.has_forgotten = True
                self.has_lost_told |= forgotten.is_told

    def forget(self, job_id: str) -> None:
        self._live.pop(job_id, None)
        self._ended.pop(job_id, None)

    def ids(self) -> list[str]:
        return [*self._live, *self._ended]


class _Scan(Struct):
    """One list of a reread on its way: pages until ``created_from_ms``, the end or the bound."""

    where: JobFilter
    created_from_ms: int | None
    cursor: str | None = None
    seen: int = 0


class Feed(AsyncIterator[Snapshot | Event | Missed]):
    """Yields ``Snapshot | Event | Missed`` without end. Raises ShuttingDown when the runtime drains, and what ``may_see`` raises.

    A call of ``anext`` that is cancelled loses nothing.
    """

    def __init__(
        self,
        where: JobFilter,
        store: StoreActor,
        *,
        now_ms: Callable[[], int],
        retry_seconds: float,
        bounded: Bounded,
        may_see: MaySee | None = None,
        remembered: int = REMEMBERED,
        scanned: int = SCANNED,
    ) -> None:
        self._where = where
        self._store = store
        self._now_ms = now_ms
        self._retry_seconds = retry_seconds
        self._bounded = bounded
        self._may_see = may_see
        self._scanned = scanned
        self._memory = _Memory(remembered)
        self._inbox: Subscription | None = None
        self._ready: deque[Snapshot | Event | Missed] = deque()
        self._events: deque[Event] = deque()
        self._asking: str | None = None
        """The job that is being read: its events are wanted although nothing was told of it yet."""
        # A reread that is under way:
        self._to_read: deque[str] = deque()
        self._scans: deque[_Scan] = deque()
        self._found: deque[Job] = deque()
        self._is_rereading = False
        self._reached_bound = False
        self._changed_from_ms = 0
        self._complete_ms = now_ms()
        """When all that there was had certainly been seen."""
        self._calm_ms = self._complete_ms
        """When events were last taken and none was dropped."""
        self._has_said_forgotten = False

    def wants(self, event: Event) -> bool:
        """For the hub: whether the event may have to be told."""
        where = self._where
        if where.name not in (None, event.name) or where.queue not in (None, event.queue):
            return False
        if where.owner not in (None, event.owner):
            return False
        # While records are being read, what follows on them must not be lost.
        if self._fits(event.status) or self._is_rereading or event.job_id == self._asking:
            return True
        known = self._memory.get(event.job_id)
        return known is not None and known.is_told

    async def begin(self, inbox: Subscription) -> None:
        """Take ``inbox``, which is subscribed already, and note which jobs live. Raises StoreUnavailable."""
        self._inbox = inbox
        if self._where.statuses:
            return  # what fits can be listed at any time
        where, cursor, living = replace(self._where, statuses=tuple(LIVE)), None, list[tuple[str, _Known]]()
        for _ in range(0, self._scanned, PAGE):
            page = await self._bounded(lambda: self._store.list(where, cursor, PAGE))  # noqa: B023 - awaited at once
            living += [(job.id, _Known(job.created_ms, job.seq, is_told=False)) for job in page.jobs]
            cursor = page.next
            if cursor is None:
                break
        self._memory.has_forgotten = cursor is not None
        for job_id, known in reversed(living):
            self._memory.keep(job_id, known)

    def __aiter__(self) -> "Feed":
        return self

    async def __anext__(self) -> Snapshot | Event | Missed:
        while not self._ready:
            try:
                if self._is_rereading:
                    await self._reread()
                elif self._events:
                    await self._tell(self._events[0])
                else:
                    await self._receive()
            except StoreUnavailable:
                await self._wait_for_store()
        return self._ready.popleft()

    # What happens

    async def _receive(self) -> None:
        assert self._inbox is not None
        events, lagged = await self._inbox.take()
        self._events.extend(events)
        if lagged:
            self._begin_reread(all_is_lost=self._inbox.has_lost_news)
            self._inbox.has_lost_news = False
        self._calm_ms = self._now_ms()

    async def _tell(self, event: Event) -> None:
        """Tell the first event that waits, and take it away."""
        known = self._memory.get(event.job_id)
        if known is not None and event.since == 0 and event.at_ms != known.created_ms:
            known = None  # another job has the id now
        if known is not None and (event.seq <= known.seq or known.may_be_seen is False):
            known.seq = max(known.seq, event.seq)
        elif known is not None and known.is_told:
            if event.since > known.seq:
                await self._fill(event, known)
                return
            self._push(event, known)
        elif self._fits(event.status):
            await self._meet(event, known)
        elif known is not None:
            known.seq = event.seq
        self._events.popleft()

    async def _meet(self, event: Event, known: _Known | None) -> None:
        """An event of a job of which the follower has nothing."""
        born = _Known(event.at_ms, 0, is_told=True, may_be_seen=True)
        if event.since == 0 and self._may_see is None and not self._where.statuses:
            self._push(event, born)
            return
        self._asking = event.job_id
        job = await self._read(event.job_id)
        if job is not None:
            may_be_seen = await self._is_visible(job, known)
            # A job that has moved on may have left the filter by an event that nobody wanted then.
            is_newborn = event.since == 0 and event.at_ms == job.created_ms
            if may_be_seen and is_newborn and (job.seq == event.seq or not self._where.statuses):
                self._push(event, born)
            else:
                self._note(job, may_be_seen, tell=may_be_seen, gap=self._memory.has_forgotten_told)
        self._asking = None

    async def _fill(self, event: Event, known: _Known) -> None:
        """Put what is missing before ``event`` in front of it, or a snapshot in place of all."""
        job = await self._read(event.job_id)
        missing = await self._bounded(lambda: self._store.events(event.job_id, known.seq, PAGE))
        if job is None:
            self._memory.forget(event.job_id)
            self._events.popleft()
        elif job.created_ms != known.created_ms or not missing or missing[0].since > known.seq:
            self._note(job, known.may_be_seen, tell=True, gap=True)
            self._events.popleft()
        else:
            self._events.extendleft(reversed(missing))

    async def _read(self, job_id: str) -> Job | None:
        try:
            return await self._bounded(lambda: self._store.get(job_id))
        except StoreRefused:
            return None  # one record that cannot be read must not end the feed of all others

    async def _is_visible(self, job: Job, known: _Known | None) -> bool:
        if known is not None and known.may_be_seen is not None:
            return known.may_be_seen
        return self._may_see is None or await self._may_see(job)

    def _push(self, event: Event, known: _Known) -> None:
        # A merged event may begin before what was told already; its fields are whole values, so it stands.
        self._ready.append(event if event.since == known.seq else replace(event, since=known.seq))
        known.seq = event.seq
        known.is_told = self._fits(event.status)
        known.has_ended = event.status in TERMINAL
        self._keep(event.job_id, known)

    def _note(self, job: Job, may_be_seen: bool | None, *, tell: bool, gap: bool) -> None:
        """Remember the job as it is, and tell it as a snapshot."""
        if tell:
            self._ready.append(Snapshot(job, gap))
        is_told = tell and self._fits(job.status)
        self._keep(job.id, _Known(job.created_ms, job.seq, is_told, may_be_seen, job.status.is_terminal))

    def _keep(self, job_id: str, known: _Known) -> None:
        self._memory.keep(job_id, known)
        if self._where.statuses and self._memory.has_lost_told and not self._has_said_forgotten:
            self._has_said_forgotten = True
            self._ready.append(Missed("too many jobs fit at a time: that one of them fits no longer may not be told"))

    def _fits(self, status: str) -> bool:
        return not self._where.statuses or status in self._where.statuses

    # What was lost

    def _begin_reread(self, *, all_is_lost: bool) -> None:
        since_ms = (self._complete_ms if all_is_lost else self._calm_ms) - NEWS_DELAY_MS
        self._is_rereading = True
        self._changed_from_ms = since_ms
        self._complete_ms = self._now_ms()
        self._reached_bound = self._memory.has_forgotten and not self._where.statuses
        self._to_read = deque(self._memory.ids())
        self._found.clear()
        if self._where.statuses:
            self._scans = deque([_Scan(self._where, None)])
        else:
            living = replace(self._where, statuses=tuple(LIVE))
            self._scans = deque([_Scan(living, None), _Scan(self._where, since_ms)])

    async def _reread(self) -> None:
        """One step of it."""
        if self._found:
            await self._look(self._found[0])
            self._found.popleft()
        elif self._to_read:
            ids = [self._to_read[index] for index in range(min(CHUNK, len(self._to_read)))]
            for job_id, job in zip(ids, await self._bounded(lambda: self._store.get_many(ids)), strict=True):
                self._to_read.popleft()
                if job is None:
                    self._memory.forget(job_id)
                else:
                    self._found.append(job)
        elif self._scans:
            await self._scan(self._scans[0])
        else:
            self._is_rereading = False
            if self._reached_bound:
                self._ready.append(
                    Missed("news was lost: changes of jobs of which nothing was told lately may be missing")
                )

    async def _scan(self, scan: _Scan) -> None:
        try:
            page = await self._bounded(lambda: self._store.list(scan.where, scan.cursor, min(CHUNK, self._scanned)))
        except StoreRefused:
            page, self._reached_bound = Page((), None), True
        first_ms = scan.created_from_ms
        jobs = [job for job in page.jobs if first_ms is None or job.created_ms >= first_ms]
        self._found.extend(jobs)
        scan.cursor = page.next
        scan.seen += len(jobs)
        if page.next is None or len(jobs) < len(page.jobs):
            self._scans.popleft()
        elif scan.seen >= self._scanned:
            self._scans.popleft()
            self._reached_bound = True

    async def _look(self, job: Job) -> None:
        """Tell the job as it is now if it changed."""
        known = self._memory.get(job.id)
        if known is not None and known.created_ms != job.created_ms:
            known = None
        fits = self._fits(job.status)
        if known is None:
            if not fits or job.updated_ms < self._changed_from_ms:
                return
        elif job.seq == known.seq or known.may_be_seen is False or not (known.is_told or fits):
            # It may be less: the store has lost the last of it, as one may that failed over, and goes on from there.
            known.seq = job.seq
            return
        may_be_seen = await self._is_visible(job, known)
        self._note(job, may_be_seen, tell=may_be_seen, gap=True)

    async def _wait_for_store(self) -> None:
        assert self._inbox is not None
        with trio.move_on_after(self._retry_seconds):
            await self._inbox.closed.wait()
            raise ShuttingDown("the server is shutting down")


@asynccontextmanager
async def open_feed(hub: Hub, feed: Feed, limit: int) -> AsyncIterator[Feed]:
    """Follow all jobs that fit, with at most ``limit`` events waiting. Raises StoreUnavailable, ShuttingDown."""
    with hub.subscribe_where(feed.wants, limit) as inbox:
        await feed.begin(inbox)
        yield feed
