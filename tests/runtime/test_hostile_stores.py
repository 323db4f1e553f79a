"""Stores that answer late, never, twice or with records that cannot be read: what the runtime makes of it."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.runtime.kit import Census, FaultyStore, folded, follow, opened, shown
from trio.testing import MockClock

from callboard.runtime import (
    CallboardError,
    Config,
    Event,
    InvalidRequest,
    JobContext,
    ShuttingDown,
    StoreUnavailable,
    open_runtime,
)
from callboard.runtime.handlers import make_handler
from callboard.runtime.store_actor import SETTLED_SECONDS
from callboard.stores.memory import MemoryDatabase
from callboard.stores.sqlite import SqliteStore


async def good(job: JobContext) -> int:
    await trio.sleep(0.1)
    return 1


async def damage(path: Path, job_id: str) -> None:
    def write() -> None:
        connection = sqlite3.connect(path, isolation_level=None, timeout=3)
        assert connection.execute("UPDATE job SET record = ? WHERE id = ?", (b"{oops", job_id)).rowcount == 1
        connection.close()

    # In a thread: a transaction of the store may be open, and ends only if the loop goes on.
    await trio.to_thread.run_sync(write)


@pytest.mark.parametrize("when", ["ended", "progress", "heartbeat"])
async def test_the_record_of_a_running_job_is_damaged(tmp_path: Path, when: str) -> None:
    go = trio.Event()

    async def work(job: JobContext) -> None:
        await go.wait()
        if when == "progress":
            await job.progress(3)
        if when != "ended":
            await trio.sleep(1.5)

    path = tmp_path / "jobs.db"
    handlers = [make_handler("work", work), make_handler("good", good)]
    async with open_runtime(SqliteStore(path), handlers, Config(lease_seconds=1)) as runtime:
        job = await runtime.submit("work")
        while not runtime.stats().running:  # noqa: ASYNC110  real time, another file's rows
            await trio.sleep(0.01)
        await damage(path, job.id)
        go.set()
        await trio.sleep(1)
        neighbour = await runtime.submit("good")
        assert (await runtime.wait(neighbour.id, timeout_seconds=5)).status == "Completed"


async def test_a_damaged_record_does_not_refuse_those_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    answers: dict[str, str] = {}
    async with open_runtime(SqliteStore(path), [make_handler("good", good)], Config(max_concurrent_jobs=0)) as runtime:
        job = await runtime.submit("good")
        await damage(path, job.id)

        async def submit(name: str, **options: Any) -> None:
            try:
                answers[name] = (await runtime.submit("good", **options)).status
            except CallboardError as error:
                answers[name] = type(error).__name__

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, "first")
            nursery.start_soon(lambda: submit("again", job_id=job.id))
            nursery.start_soon(submit, "last")
    assert answers == {"first": "Queued", "again": "StoreRefused", "last": "Queued"}


async def test_a_cancel_from_elsewhere_between_the_claim_and_the_start(autojump_clock: MockClock) -> None:
    database, census = MemoryDatabase(), Census()

    async def work(job: JobContext) -> None:
        with census.attempt(job.id):
            await trio.sleep(100)

    handler = make_handler("work", work)
    slow = FaultyStore(database)
    slow.slow_seconds["claim"] = 0.5
    idle = Config(max_concurrent_jobs=0)
    async with opened(slow, handler), opened(FaultyStore(database), handler, config=idle, seed=2) as other:
        job = await other.submit("work")
        async with other.watch(job.id, after=1) as events:
            await anext(events)
        assert (await other.cancel(job.id)).cancel_requested
        asked = trio.current_time()
        assert (await other.wait(job.id)).status == "Canceled"
        assert trio.current_time() - asked < 2


async def test_a_log_line_whose_answer_was_lost_is_stored_once(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    async def work(job: JobContext) -> None:
        await trio.sleep(1)
        store.fail("commit", seconds=0.5, after=True)
        job.log("info", "first")
        await trio.sleep(0.2)
        job.log("info", "second")
        await trio.sleep(5)

    async with opened(store, make_handler("work", work)) as runtime:
        job = await runtime.submit("work")
        await runtime.wait(job.id)
        told = await follow(runtime, job.id, 0)
    assert [event.log.message for event in told if isinstance(event, Event) and event.log] == ["first", "second"]


async def test_a_log_line_whose_answer_was_lost_at_the_very_end(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    async def work(job: JobContext) -> int:
        await trio.sleep(1)
        store.fail("commit", seconds=0.5, after=True)
        job.log("info", "only")
        await trio.sleep(0.2)
        return 1

    async with opened(store, make_handler("work", work)) as runtime:
        job = await runtime.submit("work")
        assert (await runtime.wait(job.id)).status == "Completed"
        told = await follow(runtime, job.id, 0)
    assert [event.log.message for event in told if isinstance(event, Event) and event.log] == ["only"]


async def test_a_watcher_hears_of_an_end_whose_answer_was_lost(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    async def work(job: JobContext) -> None:
        await trio.sleep(2)

    async with opened(store, make_handler("work", work), config=Config(poll_seconds=1)) as runtime:
        job = await runtime.submit("work")
        told: list[Any] = []

        async def watch() -> None:
            told.extend(await follow(runtime, job.id))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await trio.sleep(1)
                store.fail("commit", seconds=2, after=True)
        assert folded(told) == shown(await runtime.get(job.id))


async def test_a_lease_is_counted_from_the_sending_of_its_extension(autojump_clock: MockClock) -> None:
    store, census = FaultyStore(), Census()

    async def work(job: JobContext) -> None:
        with census.attempt(job.id):
            await trio.sleep(1000)

    async with opened(store, make_handler("work", work), config=Config(lease_seconds=30)) as runtime:
        await runtime.submit("work")
        await trio.sleep(5)
        store.slow_seconds["extend"] = 15  # sent at 10, answered at 25
        await trio.sleep(15)
        store.fail()
        await trio.sleep(60)
        store.slow_seconds.clear()
        store.mend()
        assert census.spans[0][2] <= 40.0


async def test_a_cancel_reaches_no_handler_before_it_is_written(autojump_clock: MockClock) -> None:
    store, census = FaultyStore(), Census()

    async def work(job: JobContext) -> None:
        with census.attempt(job.id):
            await trio.sleep(1000)

    async with opened(store, make_handler("work", work)) as runtime, trio.open_nursery() as nursery:
        job = await runtime.submit("work")
        await trio.sleep(1)
        store.fail("commit", seconds=3)
        nursery.start_soon(runtime.cancel, job.id)
        await trio.sleep(2)
        assert not census.spans, "the handler has ended although no cancel is stored"
        assert (await runtime.wait(job.id)).status == "Canceled"


async def test_a_watch_hears_the_drain_while_its_store_is_down(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    ended: list[float] = []

    async def work(job: JobContext) -> None:
        await trio.sleep(3)

    async with opened(store, make_handler("work", work), config=Config(drain_seconds=30)) as runtime:
        job = await runtime.submit("work")

        async def watch() -> None:
            with pytest.raises(ShuttingDown):
                async with runtime.watch(job.id) as events:
                    async for _ in events:
                        pass
            ended.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(1)
            store.fail("get", "events")
            runtime._reread()
            await trio.sleep(2)
            asked = trio.current_time()
            runtime.begin_drain()
        assert ended[0] - asked < 0.1
        store.mend()


async def test_a_store_call_that_never_answers_holds_up_no_shutdown(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    async def work(job: JobContext) -> None:
        await trio.sleep(1)

    began = trio.current_time()
    async with opened(store, make_handler("work", work)) as runtime:
        await runtime.submit("work")
        await trio.sleep(0.5)
        store.slow_seconds["commit"] = 100_000
        await trio.sleep(1)
    assert trio.current_time() - began < 60


async def test_a_slow_answer_about_the_time_is_not_followed(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, make_handler("good", good)) as runtime:
        await trio.sleep(5)
        store.slow_seconds["now_ms"] = 8
        for _ in range(400):
            await trio.sleep(0.05)
            assert abs(store._inner._clock() - runtime._clock.now_ms()) < 50
        store.slow_seconds.clear()


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_page_has_bounds(autojump_clock: MockClock, limit: int) -> None:
    async with opened(None, make_handler("good", good)) as runtime:
        with pytest.raises(ValueError, match="give 1 to 1000"):
            await runtime.list(limit=limit)


@pytest.mark.parametrize(
    "options",
    [{"max_retries": 2.5}, {"headers": {"X-N": 5}}, {"queue": 5}, {"queue": "urgent"}, {"key": 5}],
    ids=lambda options: next(iter(options)),
)
async def test_what_could_never_run_or_be_read_is_refused(autojump_clock: MockClock, options: Any) -> None:
    async with opened(None, make_handler("good", good)) as runtime:
        with pytest.raises(InvalidRequest):
            await runtime.submit("good", **options)
        assert await runtime.counts() == {}


async def test_the_log_tells_an_outage_once_however_often_the_store_takes_something(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As a server does that is full: what runs may go on, what is new is refused."""
    store = FaultyStore()
    async with opened(store, make_handler("Good", good)) as runtime:
        store.fail("commit")
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await runtime.submit("Good")
            claims = store.count("claim")
            await trio.sleep(2)
            assert store.count("claim") > claims, "nothing else worked meanwhile: nothing was shown"
        store.fail("commit", error=lambda: StoreUnavailable("another cause"))
        with pytest.raises(StoreUnavailable):
            await runtime.submit("Good")
        store.mend()
        await trio.sleep(SETTLED_SECONDS + 2)
        store.fail("commit", seconds=1)
        with pytest.raises(StoreUnavailable):
            await runtime.submit("Good")
    assert [record.getMessage() for record in caplog.records if record.name == "callboard.store"] == [
        "the store cannot be reached: the test cut the store off",
        "the store cannot be reached: another cause",
        "the store can be reached again",
        "the store cannot be reached: the test cut the store off",
    ]
