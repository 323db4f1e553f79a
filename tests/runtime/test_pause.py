"""Paused queues as the runtimes live with them: what runs goes on, what waits waits, nobody spins, and a resume starts all at once."""

import pytest
import trio
from msgspec.structs import replace
from tests.runtime.kit import Census, FaultyStore, handler, opened
from trio.testing import MockClock

from callboard.runtime import Config, JobContext, Queue, QueueFull, QueueNotFound, Status, StoreUnavailable
from callboard.runtime.handlers import Handler
from callboard.stores.memory import MemoryDatabase
from callboard.testing import open_virtual_runtime

NEVER = 1e6
CONFIG = Config(retry_base_seconds=1, drain_seconds=10, max_concurrent_jobs=10, lease_seconds=30)
NO_NET = replace(CONFIG, poll_seconds=NEVER, lease_seconds=NEVER)
"""Nothing is found by looking again: what is to happen has to be told."""


def worker(census: Census, seconds: float = 5, *, name: str = "work", queue: str = "default") -> Handler:
    @handler(name, queue=queue, max_retries=3)
    async def work(job: JobContext) -> None:
        with census.attempt(job.id):
            await trio.sleep(seconds)

    return work


def named(queues: tuple[Queue, ...], name: str = "default") -> Queue:
    return next(queue for queue in queues if queue.name == name)


async def test_what_runs_goes_on_and_nothing_begins(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, worker(census), config=replace(CONFIG, max_concurrent_jobs=1)) as runtime:
        running, waiting = [await runtime.submit("work") for _ in range(2)]
        await trio.sleep(1)
        assert await runtime.pause("default") == Queue("default", True, {Status.QUEUED: 1, Status.IN_PROGRESS: 1})
        assert (await runtime.wait(running.id)).status == "Completed"
        await trio.sleep(1000)
        later = await runtime.submit("work")
        await trio.sleep(1000)
        assert [(await runtime.get(job.id)).status for job in (waiting, later)] == ["Queued", "Queued"]
        assert named(await runtime.queues()) == Queue("default", True, {Status.COMPLETED: 1, Status.QUEUED: 2})
        assert not (await runtime.resume("default")).paused
        for job in (waiting, later):
            assert (await runtime.wait(job.id)).status == "Completed"


async def test_a_resume_starts_everything_at_once(autojump_clock: MockClock) -> None:
    """Queued, scheduled and due, failed and due: the moment it is resumed, not by a later look."""
    census, failing = Census(), trio.Event()

    @handler("fails", max_retries=3)
    async def fails(job: JobContext) -> None:
        with census.attempt(job.id):
            if job.attempt == 1:
                failing.set()
                raise OSError("once")

    async with opened(None, worker(census), fails, config=NO_NET) as runtime:
        retried = await runtime.submit("fails")
        await failing.wait()
        await runtime.pause("default")
        jobs = [await runtime.submit("work"), await runtime.submit("work", delay_seconds=20)]
        future = await runtime.submit("work", delay_seconds=500)
        await trio.sleep(100)
        assert census.runs.total() == 1
        resumed = trio.current_time()
        await runtime.resume("default")
        for job in (retried, *jobs):
            await runtime.wait(job.id)
        begun = [span[1] for span in census.spans[1:]]
        assert begun == [pytest.approx(resumed, abs=0.01)] * 3
        assert (await runtime.get(future.id)).status == "Scheduled"
        await runtime.wait(future.id)


async def test_a_resume_elsewhere_is_told_and_not_found(autojump_clock: MockClock) -> None:
    database, census = MemoryDatabase(), Census()
    asking = replace(NO_NET, max_concurrent_jobs=0)
    async with (
        opened(FaultyStore(database), worker(census), config=NO_NET) as working,
        opened(FaultyStore(database), worker(census), config=asking, seed=2) as other,
    ):
        await other.pause("default")
        assert named(await working.queues()).paused
        job = await other.submit("work")
        await trio.sleep(100)
        assert not census.runs
        resumed = trio.current_time()
        await other.resume("default")
        await other.wait(job.id)
        assert census.spans[0][1] == pytest.approx(resumed, abs=0.01)


async def test_a_pause_survives_whoever_made_it(autojump_clock: MockClock) -> None:
    database, census = MemoryDatabase(), Census()
    async with opened(FaultyStore(database), worker(census), config=CONFIG) as first:
        await first.pause("default")
        job = await first.submit("work")
    async with opened(FaultyStore(database), worker(census), config=CONFIG, seed=2) as second:
        await trio.sleep(100)
        assert (await second.get(job.id)).status == "Queued"
        await second.resume("default")
        await second.wait(job.id)


async def test_nobody_spins_while_due_jobs_sit_in_a_paused_queue(autojump_clock: MockClock) -> None:
    census, store = Census(), FaultyStore()
    handlers = worker(census), worker(census, name="other", queue="other")
    async with opened(store, *handlers, config=CONFIG) as runtime:
        await runtime.pause("default")
        for delay in range(1, 51):
            await runtime.submit("work", delay_seconds=delay / 10)
        await trio.sleep(10)
        before = {verb: store.count(verb) for verb in ("claim", "next_due", "lapse")}
        await trio.sleep(1000)
        # The net looks once a second; anything more is a spin.
        calls = {verb: store.count(verb) - count for verb, count in before.items()}
        assert max(calls.values()) < 1100, calls
        # The other queue is not held up meanwhile.
        assert (await runtime.wait((await runtime.submit("other")).id, timeout_seconds=10)).status == "Completed"
        await runtime.resume("default")
        await trio.sleep(100)
        assert census.runs.total() == 51


async def test_nor_while_every_slot_is_taken(autojump_clock: MockClock) -> None:
    census, store = Census(), FaultyStore()
    handlers = worker(census), worker(census, 2000, name="other", queue="other")
    async with opened(store, *handlers, config=replace(CONFIG, max_concurrent_jobs=1)) as runtime:
        await runtime.submit("other")
        await trio.sleep(1)
        await runtime.pause("default")
        await runtime.submit("work", delay_seconds=1)
        await trio.sleep(10)
        before = {verb: store.count(verb) for verb in ("claim", "next_due", "lapse")}
        await trio.sleep(1000)
        calls = {verb: store.count(verb) - count for verb, count in before.items()}
        assert max(calls.values()) < 1100, calls


async def test_a_paused_queue_is_bounded_as_ever(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, worker(census), config=replace(CONFIG, max_queue_size=2)) as runtime:
        await runtime.pause("default")
        jobs = [await runtime.submit("work") for _ in range(2)]
        with pytest.raises(QueueFull):
            await runtime.submit("work")
        await runtime.cancel(jobs[0].id)
        await runtime.submit("work")
        await runtime.resume("default")
        assert (await runtime.wait(jobs[1].id)).status == "Completed"


async def test_which_queues_there_are(autojump_clock: MockClock) -> None:
    database, census = MemoryDatabase(), Census()
    both = worker(census), worker(census, name="old", queue="old")
    async with opened(FaultyStore(database), *both, config=CONFIG) as runtime:
        await runtime.pause("old")
        job = await runtime.submit("old")
        assert [queue.name for queue in await runtime.queues()] == ["default", "old"]
    async with opened(FaultyStore(database), worker(census), config=CONFIG, seed=2) as later:
        # No handler here works on it, but it holds a job; then it is only paused.
        assert named(await later.queues(), "old") == Queue("old", True, {Status.QUEUED: 1}, {"old": 1})
        await later.cancel(job.id)
        await later.purge(job.id)
        assert named(await later.queues(), "old") == Queue("old", True)
        assert await later.resume("old") == Queue("old", False)
        assert [queue.name for queue in await later.queues()] == ["default"]
        for ask in (later.pause, later.resume):
            with pytest.raises(QueueNotFound, match="'old'"):
                await ask("old")


async def test_asking_twice_is_harmless_and_a_store_that_is_away_says_so(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, worker(Census()), config=CONFIG) as runtime:
        for _ in range(2):
            assert (await runtime.pause("default")).paused
        for _ in range(2):
            assert not (await runtime.resume("default")).paused
        store.fail("set_paused", seconds=1)
        with pytest.raises(StoreUnavailable):
            await runtime.pause("default")
        await trio.sleep(2)
        assert not named(await runtime.queues()).paused
        # It took effect although its answer was lost: asking again gives the same.
        store.fail("set_paused", seconds=1, after=True)
        with pytest.raises(StoreUnavailable):
            await runtime.pause("default")
        await trio.sleep(2)
        assert (await runtime.pause("default")).paused


async def test_a_virtual_runtime_drains_but_for_what_is_paused(autojump_clock: MockClock) -> None:
    census = Census()
    handlers = worker(census), worker(census, name="other", queue="other")
    async with open_virtual_runtime(handlers) as virtual:
        await virtual.pause("other")
        await virtual.submit("other")
        await virtual.submit("work")
        assert sorted(job.status for job in await virtual.drain()) == ["Completed", "Queued"]
        await virtual.resume("other")
        assert {job.status for job in await virtual.drain()} == {"Completed"}
        assert not any(queue.paused for queue in await virtual.queues())
