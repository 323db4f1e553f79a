"""A state machine: whatever is asked of two connections, SQLite and Redis answer what the memory store answers."""

import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw
from msgspec.structs import replace
from tests.redis_servers import RedisServer

from callboard.runtime.core.commands import Cancel, Command, Fail, Release, Report, Retry, Stop, Succeed
from callboard.runtime.core.events import LogEntry
from callboard.runtime.core.history import ExceptionInfo
from callboard.runtime.core.job import Failure, Job, Progress, Status
from callboard.runtime.core.store import Claimed, Delete, Held, JobFilter, News, Page, Store, Write
from callboard.runtime.core.transition import TABLE
from callboard.stores.conformance_bench import after, birth, job
from callboard.stores.cursors import news_cursor, read_news_cursor
from callboard.stores.memory import MemoryDatabase, MemoryStore
from callboard.stores.redis import RedisStore
from callboard.stores.redis_url import RedisSettings
from callboard.stores.sqlite import SqliteStore

NUMBERS = range(4)
QUEUES = ("q", "r")
NAMES = ("m", "n")
KEEP = 3
KEEP_ATTEMPTS = 2

numbers = st.sampled_from(NUMBERS)
sides = st.sampled_from((0, 1))
failure = Failure(code="OOPS", message="it broke", type="ValueError", retryable=True)
oops = ExceptionInfo(type="ValueError", message="it broke", traceback="", notes=("a",))
COMMANDS: list[Callable[[int], Command]] = [
    lambda now: Report(now_ms=now, progress=Progress(percent=1.0)),
    lambda now: Report(now_ms=now, logs=(LogEntry("info", "a"), LogEntry("info", "b")), progress=Progress()),
    lambda now: Cancel(now_ms=now),
    lambda now: Fail(now_ms=now, failure=failure, delay_ms=20, exceptions=(oops,)),
    lambda now: Succeed(now_ms=now, result=Raw(b"[1]"), location="/x"),
    lambda now: Release(now_ms=now),
    lambda now: Retry(now_ms=now),
    lambda now: Stop(now_ms=now),
]
births = st.fixed_dictionaries(
    {
        "number": numbers,
        "queue": st.sampled_from(QUEUES),
        "name": st.sampled_from(NAMES),
        "priority": st.integers(-1, 1),
        "key": st.sampled_from([None, "k", ""]),
        "owner": st.sampled_from([None, "anna", ""]),
        "max_retries": st.integers(0, 1),
        "max_lost_leases": st.integers(0, 1),
        "delay_ms": st.sampled_from([None, None, 0, 10, 40]),
        "max_queue_size": st.sampled_from([None, None, 1, 3]),
    }
)
steps = st.one_of(
    st.tuples(st.just("born"), births),
    st.tuples(
        st.just("moved"), numbers, st.integers(0, 5), st.sampled_from([False, False, True]), st.sampled_from([None, 1])
    ),
    st.tuples(st.just("deleted"), numbers, st.booleans()),
)
filters = st.builds(
    JobFilter,
    statuses=st.lists(st.sampled_from(Status), max_size=2).map(tuple),
    name=st.sampled_from([None, *NAMES, ""]),
    queue=st.sampled_from([None, *QUEUES, ""]),
    owner=st.sampled_from([None, "anna", ""]),
)


class Twins(RuleBasedStateMachine):
    """Two connections to each of the two drivers, asked the same at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1000
        self.names = 0
        self.database = self.reference()
        self.memory: list[Store] = []
        self.driver: list[Store] = []
        self.cursors: list[list[str]] = []
        self.held: list[Held] = []
        self.stale: dict[str, Job] = {}

    def reference(self) -> MemoryDatabase:
        """What the memory store of this machine works on."""
        return MemoryDatabase()

    def connect_driver(self) -> Store:
        """A connection to the driver that has to equal it, not opened yet."""
        raise NotImplementedError

    def news(self, side: int, cursor: str, expected: News | None) -> News | None:
        """What the driver's connection is told; None for nothing."""
        return trio.run(news_of, self.driver[side], cursor, 0.005 if expected is None else 5)

    def teardown(self) -> None:
        for store in (*self.memory, *self.driver):
            trio.run(store.aclose)

    @initialize()
    def connect(self) -> None:
        self.memory = [MemoryStore(self.database, clock=self.clock) for _ in (0, 1)]
        self.driver = [self.connect_driver() for _ in (0, 1)]
        self.cursors = [["", ""], ["", ""]]
        for side in (0, 1):
            self.open(side)

    @rule(side=sides, batch=st.lists(steps, min_size=1, max_size=5))
    def commit(self, side: int, batch: list[Any]) -> None:
        items: list[Write | Delete] = [item for step in batch if (item := self.item(step)) is not None]
        for item in items:
            if item.expected is not None:
                self.stale[item.expected.id] = item.expected
        self.both(side, lambda store: store.commit(items))

    @rule(
        side=sides,
        queues=st.lists(st.sampled_from(QUEUES), min_size=1, max_size=2),
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=2),
        limit=st.integers(1, 4),
        lease_ms=st.sampled_from([10, 30]),
    )
    def claim(self, side: int, queues: list[str], names: list[str], limit: int, lease_ms: int) -> None:
        claimed: list[Claimed] = self.both(
            side, lambda store: store.claim(queues=queues, names=names, limit=limit, lease_ms=lease_ms)
        )
        self.held += [Held(item.job.id, item.job.fence) for item in claimed]

    @rule(side=sides, lease_ms=st.sampled_from([5, 50]))
    def extend(self, side: int, lease_ms: int) -> None:
        self.both(side, lambda store: store.extend(self.held[-4:], lease_ms=lease_ms))

    @rule(side=sides, limit=st.integers(1, 3))
    def lapse(self, side: int, limit: int) -> None:
        self.both(side, lambda store: store.lapse(limit=limit))

    @rule(side=sides, limit=st.integers(1, 3), age_ms=st.sampled_from([0, 20]))
    def prune(self, side: int, limit: int, age_ms: int) -> None:
        self.both(side, lambda store: store.prune(ended_before_ms=self.now_ms - age_ms, limit=limit))

    @rule(side=sides, queue=st.sampled_from(QUEUES), paused=st.booleans())
    def pause(self, side: int, queue: str, paused: bool) -> None:
        self.both(side, lambda store: store.set_paused(queue, paused))

    @rule(span_ms=st.sampled_from([1, 10, 30]))
    def wait(self, span_ms: int) -> None:
        self.now_ms += span_ms

    @rule(side=sides)
    def read_news(self, side: int) -> None:
        expected = trio.run(news_of_memory, self.memory[side], self.cursors[0][side])
        actual = self.news(side, self.cursors[1][side], expected)
        # Of a job that is gone the drivers have no events left, and say so; memory has, but for those that it forgot.
        if (actual is None or actual.complete) and (expected is None or expected.complete):
            assert (actual and actual.events) == (expected and expected.events)
            assert (actual and actual.queues_changed) == (expected and expected.queues_changed)
        for driver, news in enumerate((expected, actual)):
            if news is not None:
                self.cursors[driver][side] = news.cursor

    @rule(where=filters, limit=st.integers(1, 3))
    def turn_pages(self, where: JobFilter, limit: int) -> None:
        def jobs(store: Store) -> Callable[[], Awaitable[list[Job]]]:
            return lambda: all_pages(store, where, limit)

        assert trio.run(jobs(self.driver[0])) == trio.run(jobs(self.memory[0]))

    # A store that is closed while it holds leases is a dead holder to SQLite at once.
    @precondition(
        lambda self: not any(status is Status.IN_PROGRESS for (_, status), n in self.database.counts.items() if n)
    )
    @rule(side=sides)
    def reopen(self, side: int) -> None:
        self.both(side, lambda store: store.aclose())
        self.open(side)

    @invariant()
    def all_is_equal(self) -> None:
        if self.memory:
            assert trio.run(everything, self.driver[1]) == trio.run(everything, self.memory[1])

    def clock(self) -> int:
        return self.now_ms

    def open(self, side: int) -> None:
        self.names += 1
        self.both(
            side,
            lambda store: store.open(
                worker=f"w{self.names}", max_events_per_job=KEEP, max_attempts_per_job=KEEP_ATTEMPTS
            ),
        )
        for driver, stores in enumerate((self.memory, self.driver)):
            self.cursors[driver][side] = trio.run(stores[side].wait_news, None).cursor

    def both(self, side: int, ask: Callable[[Store], Awaitable[Any]]) -> Any:
        """Ask both drivers; their answer, which must be the same."""

        async def answer(store: Store) -> Any:
            found = await ask(store)
            return list(found) if isinstance(found, tuple | list) else found

        expected = trio.run(answer, self.memory[side])
        assert trio.run(answer, self.driver[side]) == expected
        return expected

    def item(self, step: Any) -> Write | Delete | None:
        if step[0] == "born":
            fields = dict(step[1])
            number, delay_ms = fields.pop("number"), fields.pop("delay_ms")
            if delay_ms is not None:
                fields |= {"status": Status.SCHEDULED, "due_ms": self.now_ms + delay_ms}
            return birth(number, **fields)
        current = self.current(job(step[1]).id, stale=step[3 if step[0] == "moved" else 2])
        if step[0] == "deleted" or current is None:
            return None if current is None else Delete(expected=current)
        legal = [made for make in COMMANDS if current.status in TABLE[type(made := make(self.now_ms))]]
        return after(current, legal[step[2] % len(legal)], max_queue_size=step[4]) if legal else None

    def current(self, job_id: str, *, stale: bool) -> Job | None:
        record = self.database.find(job_id)
        now = None if record is None else record.job
        return self.stale.get(job_id, now) if stale else now


class SqliteTwins(Twins):
    """SQLite, on a file of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()

    def connect_driver(self) -> Store:
        return SqliteStore(Path(self.directory.name) / "x.db", clock=self.clock, synchronous="NORMAL")

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


class TickingDatabase(MemoryDatabase):
    """Serials and fences from one counter that follows the clock, as Redis gives them."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.tick = 0
        super().__init__()

    def _tick(self) -> int:
        return self.tick

    def _move(self, value: int) -> None:
        if value:
            self.tick = max(value, self.clock() * 1000)

    last_serial = property(_tick, _move)
    last_fence = property(_tick, _move)


class RedisTwins(Twins):
    """Redis, in a space of its own of a real server."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = uuid.uuid4().hex

    def reference(self) -> MemoryDatabase:
        return TickingDatabase(self.clock)

    def connect_driver(self) -> Store:
        return RedisStore(replace(RedisSettings.of_url(self.url), prefix=self.prefix), clock=self.clock)

    def news(self, side: int, cursor: str, expected: News | None) -> News | None:
        if expected is not None and expected.complete:
            return super().news(side, cursor, expected)
        # A wait that is cancelled has to subscribe again, and then says that it may have missed something; so this looks once.
        store = self.driver[side]
        assert isinstance(store, RedisStore)
        found = trio.run(look_once, store, read_news_cursor(cursor)[0])
        if expected is None:
            assert not (found.complete and found.events)
            return None if found.complete else News(cursor=cursor, complete=False)
        return News(
            cursor=news_cursor(found.position, found.queue_changes), events=tuple(found.events), complete=found.complete
        )


async def news_of_memory(store: Store, cursor: str) -> News | None:
    told: list[News] = []

    async def ask() -> None:
        told.append(await store.wait_news(cursor))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return told[0] if told else None


async def news_of(store: Store, cursor: str, seconds: float) -> News | None:
    with trio.move_on_after(seconds):
        return await store.wait_news(cursor)
    return None


async def all_pages(store: Store, where: JobFilter, limit: int) -> list[Job]:
    page: Page = await store.list(where, cursor=None, limit=limit)
    found = list(page.jobs)
    while page.next is not None:
        page = await store.list(where, cursor=page.next, limit=limit)
        found += page.jobs
    return found


async def everything(store: Store) -> Any:
    job_ids = [job(number).id for number in NUMBERS]
    counts = {pair: count for pair, count in (await store.counts()).items() if count}
    events = [list(await store.events(job_id, after=0, limit=100)) for job_id in job_ids]
    attempts = [list(await store.attempts(job_id)) for job_id in job_ids]
    ready = {pair: count for pair, count in (await store.ready(up_to=2)).items() if count}
    of_queues = counts, ready, list(await store.paused()), await store.next_due()
    return list(await store.get(job_ids)), events, attempts, of_queues, await store.now_ms()


async def look_once(store: RedisStore, position: int) -> Any:
    opened = store._connected()
    return await opened.link.read(lambda caller: store._space.news(caller, opened.me, position))


@pytest.fixture
def a_real_server(redis_server: RedisServer) -> Iterator[None]:
    RedisTwins.url = redis_server.url
    yield


TestSqliteTwins = SqliteTwins.TestCase
TestSqliteTwins.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
TestRedisTwins = pytest.mark.usefixtures("a_real_server")(RedisTwins.TestCase)
TestRedisTwins.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
