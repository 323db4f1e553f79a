"""The one user of a driver.

Three lanes, each a task of its own, so that no caller's cancellation ever tears a call: writes, reads and news. The write
lane makes one group commit of what waits in its mailbox: one batch is in flight while the next gathers, with no artificial
waiting. It answers each sender and then publishes what was committed. Between two commits it makes all other calls that wait, so that a
heartbeat waits for one commit, however many stand in line. A driver's StoreUnavailable goes to
the senders of that batch; what to do about it is theirs. Any other exception is a bug and ends the runtime.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

import trio
from msgspec import Struct
from msgspec.structs import replace
from opentelemetry.trace import SpanContext

from callboard.runtime.core.errors import CallboardError, StoreRefused, StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import (
    Claimed,
    Committed,
    Delete,
    Due,
    Extension,
    Held,
    JobFilter,
    News,
    Outcome,
    Page,
    Store,
    Write,
)
from callboard.runtime.reply import Reply
from callboard.runtime.telemetry import Telemetry, tell_claimed, tell_committed
from callboard.runtime.timed_store import timed
from callboard.runtime.tracing import Tracing

__all__ = ["StoreActor"]

logger = logging.getLogger("callboard.store")

T = TypeVar("T")

MAX_BATCH = 500
"""Items of one commit: more would hold the event loop for over 2 ms on SQLite. Source: measured before the project began."""
MAX_PENDING = 10_000
"""Items that may wait in one lane; past it, callers are told that the store cannot be reached. The runtime's own actors, which make
one call at a time, are not, nor is what an attempt reports: without heartbeat and outcome what runs would be lost.
"""

SETTLED_SECONDS = 5
"""So long no write must have failed before the log says that an outage is over: a full store takes some and refuses others."""


class _Item(Struct, frozen=True):
    """What one sender wants to have in one commit: one compare-and-set or many."""

    writes: tuple[Write | Delete, ...]
    reply: Reply[list[Outcome | CallboardError]]
    sender: SpanContext | None


class _Call(Struct, frozen=True):
    """Any other call of the driver."""

    call: Callable[[], Awaitable[Any]]
    reply: Reply[Any]
    sender: SpanContext | None


class _Get(Struct, frozen=True):
    """One record to read, batched with whatever else is asked for."""

    job_id: str
    reply: Reply[Job | None]
    sender: SpanContext | None


class _Lane:
    """A bounded mailbox: items, which are batched, and calls."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._calls: deque[_Call] = deque()
        self._size = 0
        self._wake = trio.Event()

    def put(self, item: Any, size: int = 1, *, is_own: bool = False) -> None:
        if not is_own:
            self._check_room()
        self._items.append((item, size))
        self._size += size
        self._wake.set()

    def put_call(self, call: _Call, *, is_own: bool) -> None:
        if not is_own:
            self._check_room()
        self._calls.append(call)
        self._wake.set()

    def withdraw(self, item: Any) -> None:
        for index, (waiting, size) in enumerate(self._items):
            if waiting is item:
                del self._items[index]
                self._size -= size
                return

    async def take(self) -> tuple[list[Any], list[_Call]]:
        """The first items, as many as fit into one batch, and all calls."""
        while not self._items and not self._calls:
            self._wake = trio.Event()
            await self._wake.wait()
        items: list[Any] = []
        room = MAX_BATCH
        while self._items and (not items or self._items[0][1] <= room):
            item, size = self._items.popleft()
            items.append(item)
            room -= size
            self._size -= size
        calls = list(self._calls)
        self._calls.clear()
        return items, calls

    def _check_room(self) -> None:
        if self._size + len(self._calls) >= MAX_PENDING:
            raise StoreUnavailable("too many calls wait for the store")


class StoreActor:
    """Serializes all calls of ``store``.

    ``publish`` is given the events of each commit, in order, after the senders' answers. ``recovered`` is called after
    the first write that succeeds again: what the failed ones did is unknown, so whoever follows anything has to reread.
    """

    def __init__(
        self,
        store: Store,
        *,
        publish: Callable[[Sequence[Event]], None],
        recovered: Callable[[], None],
        telemetry: Telemetry,
        tracing: Tracing,
    ) -> None:
        self._store = timed(store, telemetry, tracing)
        self._telemetry = telemetry
        self._tracing = tracing
        self._publish = publish
        self._recovered = recovered
        self._writes = _Lane()
        self._reads = _Lane()
        self.last_error: StoreUnavailable | None = None
        """Why the last write failed; None if it did not."""
        self.unavailable_total = 0
        self._told: set[str] = set()
        """What the log has said of the outage that is not over yet: each cause once."""
        self._failed_at = 0.0

    async def run(self) -> None:
        """Both lanes, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_writes)
            nursery.start_soon(self._run_reads)

    async def follow_news(
        self,
        deliver: Callable[[News], None],
        retry_seconds: float,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hand over what other connections commit, until cancelled. Started once the place is known from which it follows.

        If the store does not say it at once, it has started all the same, and the first that is handed over is not complete: what was
        committed meanwhile, nobody who follows a job already has been told.
        """
        cursor: str | None = None
        is_late = False
        while True:
            try:
                news = await self._store.wait_news(cursor)
            except StoreUnavailable:
                if cursor is None and not is_late:
                    is_late = True
                    task_status.started()
                await trio.sleep(retry_seconds)
                continue
            if cursor is None:
                if is_late:
                    news = replace(news, complete=False)
                else:
                    task_status.started()
            cursor = news.cursor
            deliver(news)

    async def commit(self, write: Write | Delete, *, is_own: bool = False) -> Outcome:
        """One compare-and-set, batched with whatever else waits; ``is_own``: of an attempt that runs here. Raises StoreUnavailable.

        A caller that is cancelled takes its write back if it is not on its way yet.
        """
        (outcome,) = await self.commit_together([write], is_own=is_own)
        if isinstance(outcome, CallboardError):
            raise outcome
        return outcome

    async def commit_together(
        self, writes: Sequence[Write | Delete], *, is_own: bool = False
    ) -> list[Outcome | CallboardError]:
        """Up to MAX_BATCH compare-and-sets in one commit of the driver, with whatever else waits; their outcomes in order.

        An error among them is of a stored record that cannot be read: what met it was left out, and the others committed one by
        one. Raises StoreUnavailable. A caller that is cancelled takes all of them back if they are not on their way yet, or none.
        """
        if len(writes) > MAX_BATCH:
            raise ValueError(f"{len(writes)} writes do not fit into one commit of {MAX_BATCH}")
        reply: Reply[list[Outcome | CallboardError]] = Reply()
        item = _Item(tuple(writes), reply, self._tracing.sender())
        self._writes.put(item, len(writes), is_own=is_own)
        try:
            return await reply.get()
        except trio.Cancelled:
            self._writes.withdraw(item)
            raise

    async def claim(self, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int) -> Sequence[Claimed]:
        async def call() -> Sequence[Claimed]:
            claimed = await self._store.claim(queues=queues, names=names, limit=limit, lease_ms=lease_ms)
            for one in claimed:
                tell_claimed(self._telemetry, one)
            self._publish([event for one in claimed for event in one.events])
            return claimed

        return await self._ask(self._writes, call, is_own=True)

    async def extend(self, held: Sequence[Held], lease_ms: int) -> Sequence[Extension]:
        return await self._ask(self._writes, lambda: self._store.extend(held, lease_ms=lease_ms), is_own=True)

    async def lapse(self, limit: int) -> Sequence[Committed]:
        async def call() -> Sequence[Committed]:
            lapsed = await self._store.lapse(limit=limit)
            for one in lapsed:
                self._telemetry.lease_lost(one.job)
                tell_committed(self._telemetry, one)
            self._publish([event for one in lapsed for event in one.events])
            return lapsed

        return await self._ask(self._writes, call, is_own=True)

    async def prune(self, ended_before_ms: int, limit: int) -> int:
        return await self._ask(self._writes, lambda: self._store.prune(ended_before_ms=ended_before_ms, limit=limit))

    async def set_paused(self, queue: str, paused: bool) -> bool:
        return await self._ask(self._writes, lambda: self._store.set_paused(queue, paused))

    async def get(self, job_id: str) -> Job | None:
        return await self._ask_for(job_id).get()

    async def get_many(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        """In the same order; None also for a record that cannot be read."""
        replies = [self._ask_for(job_id) for job_id in job_ids]
        jobs: list[Job | None] = []
        for reply in replies:
            try:
                jobs.append(await reply.get())
            except StoreRefused:
                jobs.append(None)
        return jobs

    async def list(self, where: JobFilter, cursor: str | None, limit: int) -> Page:
        return await self._ask(self._reads, lambda: self._store.list(where, cursor=cursor, limit=limit))

    async def events(self, job_id: str, after: int, limit: int) -> Sequence[Event]:
        return await self._ask(self._reads, lambda: self._store.events(job_id, after=after, limit=limit))

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        return await self._ask(self._reads, lambda: self._store.attempts(job_id))

    async def paused(self) -> Sequence[str]:
        return await self._ask(self._reads, self._store.paused)

    async def next_due(self) -> Due:
        return await self._ask(self._reads, self._store.next_due)

    async def counts(self) -> dict[tuple[str, Status], int]:
        return await self._ask(self._reads, self._store.counts)

    async def ready(self, up_to: int) -> dict[tuple[str, str], int]:
        return await self._ask(self._reads, lambda: self._store.ready(up_to=up_to))

    async def now_ms(self) -> int:
        return await self._ask(self._reads, self._store.now_ms)

    def _ask_for(self, job_id: str) -> Reply[Job | None]:
        reply: Reply[Job | None] = Reply()
        self._reads.put(_Get(job_id, reply, self._tracing.sender()))
        return reply

    async def _ask(self, lane: _Lane, call: Callable[[], Awaitable[T]], *, is_own: bool = False) -> T:
        reply: Reply[T] = Reply()
        lane.put_call(_Call(call, reply, self._tracing.sender()), is_own=is_own)
        return await reply.get()

    async def _run_writes(self) -> None:
        while True:
            items, calls = await self._writes.take()
            if items:
                await self._commit(items)
            for call in calls:
                self._note(await self._answer(call))

    async def _commit(self, items: Sequence[_Item]) -> None:
        self._tracing.calling(item.sender for item in items)
        writes = [write for item in items for write in item.writes]
        try:
            outcomes = await self._store.commit(writes)
        except StoreUnavailable as error:
            self._note(error)
            for item in items:
                item.reply.fail(_copy(error))
            return
        except CallboardError as error:
            # A stored record that cannot be read: who asked hears of it, those beside it are asked for alone.
            await self._commit_apart(items, error)
            return
        assert len(outcomes) == len(writes), (len(outcomes), len(writes))
        self._note(next((one for one in outcomes if isinstance(one, StoreUnavailable)), None))
        answers = iter(outcomes)
        for item in items:
            item.reply.set(list(islice(answers, len(item.writes))))
        committed = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
        for one in committed:
            tell_committed(self._telemetry, one)
        self._publish([event for one in committed for event in one.events])

    async def _commit_apart(self, items: Sequence[_Item], error: CallboardError) -> None:
        if len(items) > 1:
            for item in items:
                await self._commit([item])
            return
        (item,) = items
        if len(item.writes) == 1:
            item.reply.set([error])
            return
        parts = [_Item((write,), Reply(), item.sender) for write in item.writes]
        for part in parts:
            await self._commit([part])
        try:
            item.reply.set([outcome for part in parts for outcome in await part.reply.get()])
        except StoreUnavailable as unavailable:
            item.reply.fail(unavailable)

    async def _run_reads(self) -> None:
        while True:
            asked, calls = await self._reads.take()
            await self._get(asked)
            for call in calls:
                await self._answer(call)

    async def _get(self, asked: Sequence[_Get]) -> None:
        if not asked:
            return
        self._tracing.calling(one.sender for one in asked)
        try:
            jobs = await self._store.get([one.job_id for one in asked])
        except StoreRefused as error:
            # One record that cannot be read: those beside it are asked for alone.
            if len(asked) == 1:
                asked[0].reply.fail(error)
            else:
                for one in asked:
                    await self._get([one])
            return
        except CallboardError as error:
            for one in asked:
                one.reply.fail(_copy(error))
            return
        for one, job in zip(asked, jobs, strict=True):
            one.reply.set(job)

    async def _answer(self, message: _Call) -> StoreUnavailable | None:
        self._tracing.calling([message.sender])
        try:
            message.reply.set(await message.call())
        except StoreUnavailable as error:
            message.reply.fail(error)
            return error
        except (CallboardError, ValueError) as error:
            message.reply.fail(error)
        return None

    def _note(self, error: StoreUnavailable | None) -> None:
        was_failing, self.last_error = self.last_error is not None, error
        if error is not None:
            self.unavailable_total += 1
            self._failed_at = trio.current_time()
            if str(error) not in self._told:
                self._told.add(str(error))
                logger.warning("the store cannot be reached: %s", error)
            return
        if was_failing:
            self._recovered()
        if self._told and trio.current_time() >= self._failed_at + SETTLED_SECONDS:
            self._told.clear()
            logger.warning("the store can be reached again")


def _copy(error: CallboardError) -> CallboardError:
    # Each sender raises an instance of its own: a shared one would collect the tracebacks of all.
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
