"""Queues that a runtime works on, those that a handler has left, and jobs that it does not take."""

import logging

import pytest
import trio
from tests.runtime.kit import Census, FaultyStore, opened
from trio.testing import MockClock

from callboard.runtime import Config, ConfigError, Handlers, JobContext
from callboard.runtime.core.errors import HandlerError
from callboard.runtime.core.job import Status
from callboard.runtime.handlers import Handler, make_handler
from callboard.stores.memory import MemoryDatabase

IDLE = Config(max_concurrent_jobs=0)


def named(name: str, census: Census | None = None, **options: object) -> Handler:
    async def run(job: JobContext) -> None:
        if census is not None:
            census.spans.append((job.id, 0, 0))

    return make_handler(name, run, **options)  # type: ignore[arg-type]


async def test_only_the_queues_of_the_settings_are_worked_on(autojump_clock: MockClock) -> None:
    handlers = named("a"), named("b", queue="far")
    async with opened(None, *handlers, config=Config(queues=("far",))) as runtime:
        left, taken = await runtime.submit("a"), await runtime.submit("b")
        crossed = await runtime.submit("a", queue="far")
        await trio.sleep(5)
        jobs = [(await runtime.get(job.id)).status for job in (left, taken, crossed)]
        assert jobs == [Status.QUEUED, Status.COMPLETED, Status.COMPLETED]
        assert await runtime.unserved() == {("default", "a"): 1}


async def test_a_queue_that_no_handler_works_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no handler works on queue 'fast': give one of default, old"):
        async with opened(None, named("a", old_queues=("old",)), config=Config(queues=("fast",))):
            raise AssertionError("it was opened")
    with pytest.raises(ConfigError, match="there are no handlers"):
        Handlers().require_queues(["default"])
    wrong: object
    for wrong in ("far", ["far"], ("",), (1,)):
        with pytest.raises(HandlerError, match=r"old_queues is .* give a tuple of queues' names"):
            named("a", old_queues=wrong)
    with pytest.raises(ConfigError, match=r"queues is 'far': give a tuple of names"):
        Config(queues="far")  # type: ignore[arg-type]


@pytest.mark.parametrize("delay_seconds", [None, 30])
async def test_what_waits_in_a_handlers_old_queue_is_run(
    autojump_clock: MockClock, delay_seconds: float | None
) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), named("a", queue="old"), config=IDLE, seed=2) as before:
        job = await before.submit("a", delay_seconds=delay_seconds)
    async with opened(FaultyStore(database), named("a", queue="new", old_queues=("old",))) as runtime:
        ended = await runtime.wait(job.id, timeout_seconds=60)
        assert (ended.status, ended.queue) == (Status.COMPLETED, "old")
        assert (await runtime.submit("a")).queue == "new"


async def test_what_is_not_taken_is_counted_and_what_is_unknown_is_shown(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), named("a"), named("b"), config=IDLE, seed=2) as asking:
        for name in "aaab":
            await asking.submit(name)
        held = Config(max_concurrent_jobs=1)
        async with opened(FaultyStore(database), named("b"), config=held, seed=3, claims=False) as runtime:
            assert await asking.unserved() == {("default", "a"): 3, ("default", "b"): 1}
            assert await runtime.unserved() == {("default", "a"): 3, ("default", "b"): 0}
            (queue,) = await runtime.queues()
            assert queue.unknown == {"a": 3}
            (queue,) = await asking.queues()
            assert queue.unknown == {}
            runtime.begin_drain()
            assert await runtime.unserved() == {("default", "a"): 3, ("default", "b"): 1}, "it takes nothing any more"


async def test_the_log_says_it_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    database = MemoryDatabase()

    def lines() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "callboard.backlog"]

    caplog.set_level(logging.DEBUG)
    async with opened(FaultyStore(database), named("a"), config=IDLE, seed=2) as asking:
        store = FaultyStore(database)
        async with opened(store, named("b"), seed=3) as runtime:
            await trio.sleep(1)
            first, second = await asking.submit("a"), await asking.submit("a")
            await trio.sleep(61)
            assert lines() == [], "not at the first sight: it may be about to run"
            await trio.sleep(60)
            expected = "jobs named 'a' wait in queue 'default', and no handler here takes them: they wait until a process has one"
            assert lines() == [f"{expected} (2 now)"]
            await trio.sleep(600)
            store.fail("ready", seconds=300)
            await trio.sleep(1000)
            assert len(lines()) == 1
            await runtime.cancel(first.id)
            await runtime.cancel(second.id)
            await trio.sleep(120)
            again = await asking.submit("a")
            await trio.sleep(180)
            assert lines()[1:] == [f"{expected} (1 now)"]
            assert (await runtime.get(again.id)).attempt == 0
    assert "callboard.dispatcher" not in {one.name for one in caplog.records}


async def test_who_works_on_some_queues_says_nothing_of_the_others(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = named("a"), named("b", queue="far")
    database = MemoryDatabase()
    async with opened(FaultyStore(database), named("c"), named("d", queue="far"), config=IDLE, seed=2) as asking:
        await asking.submit("c")
        await asking.submit("d")
        async with opened(FaultyStore(database), *handlers, config=Config(queues=("far",))):
            await trio.sleep(300)
    told = {one.getMessage().partition(",")[0] for one in caplog.records if one.name == "callboard.backlog"}
    assert told == {"jobs named 'd' wait in queue 'far'"}
