"""The end of a runtime: its order, its times, and what it does with what does not stop."""

import logging

import pytest
import trio
from tests.runtime.kit import Census, FaultyStore, follow, handler, opened
from trio.testing import MockClock

from callboard.runtime import (
    Config,
    Event,
    Handler,
    InvalidRequest,
    JobContext,
    ShuttingDown,
    Snapshot,
    StoreUnavailable,
    open_runtime,
)
from callboard.stores.memory import MemoryDatabase

IDLE = Config(max_concurrent_jobs=0)
DRAIN = 15.0
CLEANUP = 5.0


def stubborn(census: Census, cleanup_seconds: float, work_seconds: float = float("inf")) -> Handler:
    """Works for so long; once cancelled, cleans up for so long."""

    @handler()
    async def work(job: JobContext) -> str:
        with census.attempt(job.id):
            try:
                await trio.sleep(work_seconds)
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await trio.sleep(cleanup_seconds)
                raise
            return "whole"

    return work


async def test_attempts_run_on_until_the_time_for_cleanup_and_are_handed_back_uncounted(
    autojump_clock: MockClock,
) -> None:
    census, database = Census(), MemoryDatabase()
    async with opened(FaultyStore(database), config=IDLE, seed=2) as asking:
        store = FaultyStore(database)
        async with opened(store, stubborn(census, cleanup_seconds=3)) as runtime:
            job = await runtime.submit("work")
            await trio.sleep(2)
            asked = trio.current_time()
        left_after = trio.current_time() - asked
        handed_back = await asking.get(job.id)
    ((_, _, stopped),) = census.spans
    assert stopped - asked == pytest.approx(DRAIN - CLEANUP + 3)
    assert left_after == pytest.approx(DRAIN - CLEANUP + 3, abs=0.01)
    assert (handed_back.status, handed_back.retry_count, handed_back.lost_leases) == ("Queued", 0, 0)
    assert (handed_back.fence, handed_back.worker, handed_back.error) == (0, None, None)
    assert store.closed


async def test_attempt_that_ends_by_itself_completes_during_the_drain(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), config=IDLE, seed=2) as asking:
        async with opened(FaultyStore(database), stubborn(Census(), 0, work_seconds=9)) as runtime:
            job = await runtime.submit("work")
            await trio.sleep(0.5)
            asked = trio.current_time()
        assert trio.current_time() - asked == pytest.approx(8.5, abs=0.01)
        ended = await asking.get(job.id)
        assert (ended.status, bytes(ended.result)) == ("Completed", b'"whole"')


@pytest.mark.parametrize(("drain_seconds", "runs"), [(0, 0), (3, 2), (60, 55)])
async def test_drain_time_is_split(autojump_clock: MockClock, drain_seconds: float, runs: float) -> None:
    census = Census()
    config = Config(drain_seconds=drain_seconds)
    async with opened(None, stubborn(census, 0), config=config) as runtime:
        await runtime.submit("work")
        await trio.sleep(1)
        asked = trio.current_time()
    assert census.spans[0][2] - asked == pytest.approx(runs)


async def test_drain_with_nothing_to_do_is_immediate(autojump_clock: MockClock) -> None:
    async with opened(None, stubborn(Census(), 0)) as runtime:
        await trio.sleep(3.3)
        asked = trio.current_time()
        await runtime.drain()
        assert trio.current_time() == asked
        await runtime.drain()
    assert trio.current_time() == asked


async def test_waiting_jobs_are_not_begun_during_the_drain(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    async with opened(FaultyStore(database), config=IDLE, seed=2) as asking:
        async with opened(FaultyStore(database), stubborn(census, 0), config=Config(max_concurrent_jobs=1)) as runtime:
            first = await runtime.submit("work")
            second = await runtime.submit("work")
            await trio.sleep(1)
            runtime.begin_drain()
            await runtime.cancel(first.id)
            await trio.sleep(1)
            assert (await runtime.get(second.id)).status == "Queued"
        assert (await asking.get(second.id)).attempt == 0
    assert census.runs == {first.id: 1}


@pytest.mark.parametrize("slow_seconds", [0, 0.1, 2])
async def test_claim_under_way_at_the_shutdown_is_handed_back(autojump_clock: MockClock, slow_seconds: float) -> None:
    """The store has given the job to us; we leave before we know: never a lost lease."""
    census, database = Census(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(FaultyStore(database), config=IDLE, seed=2) as asking:
        async with opened(store, stubborn(census, 0)) as runtime:
            await trio.sleep(0.5)
            store.slow_seconds["claim"] = slow_seconds
            job = await runtime.submit("work")
        handed_back = await asking.get(job.id)
        assert (handed_back.status, handed_back.worker) == ("Queued", None)


async def test_asking_while_draining(autojump_clock: MockClock) -> None:
    async with opened(None, stubborn(Census(), 2)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.drain)
            await trio.sleep(1)
            assert runtime.draining
            with pytest.raises(ShuttingDown, match="ask again in a moment"):
                await runtime.submit("work")
            with pytest.raises(ShuttingDown, match="is shutting down"):
                await runtime.check()
            assert (await runtime.get(job.id)).status == "InProgress"
            assert len((await runtime.list()).jobs) == 1
            with pytest.raises(InvalidRequest):
                await runtime.submit("nonsense")
    for ask in (runtime.get, runtime.cancel, runtime.retry, runtime.purge, runtime.wait):
        with pytest.raises(ShuttingDown, match="the runtime has ended"):
            await ask(job.id)
    with pytest.raises(ShuttingDown):
        await runtime.counts()


async def test_waits_return_and_watches_raise_when_the_drain_begins(autojump_clock: MockClock) -> None:
    ends: dict[str, float] = {}
    told: list[Snapshot | Event] = []

    async with opened(None, stubborn(Census(), 0)) as runtime:
        job = await runtime.submit("work")

        async def wait() -> None:
            waited = await runtime.wait(job.id)
            ends["wait"] = trio.current_time()
            assert waited.status == "InProgress"

        async def watch() -> None:
            with pytest.raises(ShuttingDown):
                async with runtime.watch(job.id) as events:
                    async for item in events:
                        told.append(item)
            ends["watch"] = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(watch)
            await trio.sleep(4)
            runtime.begin_drain()
        assert ends == {"wait": 4, "watch": 4}
        assert [item.seq for item in told][-1] == 2
        # Those that come now are told at once.
        assert (await runtime.wait(job.id)).status == "InProgress"
        with pytest.raises(ShuttingDown):
            await follow(runtime, job.id)


async def test_watch_does_not_outlive_the_runtime(autojump_clock: MockClock) -> None:
    """A follower that wants to reread when nobody can answer any more."""
    store = FaultyStore()
    ended: list[float] = []

    async with trio.open_nursery() as nursery:
        async with opened(store, stubborn(Census(), 0)) as runtime:
            job = await runtime.submit("work")
            await trio.sleep(1)

            async def watch() -> None:
                with pytest.raises((ShuttingDown, StoreUnavailable)):
                    await follow(runtime, job.id, after=0)
                ended.append(trio.current_time())

            store.fail("events", seconds=1000)
            nursery.start_soon(watch)
            await trio.sleep(0.5)
            await runtime.cancel(job.id)
            asked = trio.current_time()
        with pytest.raises(ShuttingDown), trio.fail_after(20):
            await follow(runtime, job.id)
    assert ended[0] - asked < 10


async def test_code_that_does_not_stop_keeps_its_slot_and_is_not_handed_back(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    census, database = Census(), MemoryDatabase()
    async with opened(FaultyStore(database), stubborn(census, 0), config=IDLE, seed=2) as asking:
        async with opened(FaultyStore(database), stubborn(census, cleanup_seconds=200)) as runtime:
            job = await runtime.submit("work")
            await trio.sleep(1)
            asked = trio.current_time()
            with trio.CancelScope(shield=True):
                await runtime.drain()
            assert trio.current_time() - asked == pytest.approx(DRAIN)
            assert f"job {job.id} has not stopped" in caplog.text
            assert runtime.stats().running == 1
            # Another runtime on the same store does not get it, however long that takes: the lease is still extended.
            async with opened(FaultyStore(database), stubborn(census, 0), seed=3):
                await trio.sleep(100)
                held = await asking.get(job.id)
                assert (held.status, held.attempt, held.worker) == ("InProgress", 1, runtime.worker)
        assert trio.current_time() - asked >= DRAIN - CLEANUP + 200
        assert (await asking.get(job.id)).status == "Queued"
    assert census.doubles == []


@pytest.mark.parametrize("verbs", [(), ("commit",)], ids=["all", "commit"])
async def test_shutdown_is_bounded_although_the_store_never_comes_back(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, verbs: tuple[str, ...]
) -> None:
    store = FaultyStore()
    async with opened(store, stubborn(Census(), 0)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        store.fail(*verbs)
        asked = trio.current_time()
    assert trio.current_time() - asked <= DRAIN + 7
    assert f"job {job.id}" in caplog.text
    assert store.closed


async def test_shutdown_waits_for_a_store_that_comes_back_in_time(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    store = FaultyStore(database)
    async with opened(FaultyStore(database), config=IDLE, seed=2) as asking:
        async with opened(store, stubborn(Census(), 0)) as runtime:
            job = await runtime.submit("work")
            await trio.sleep(1)
            store.fail(seconds=12)
        assert (await asking.get(job.id)).status == "Queued"


async def test_outer_cancellation_drains_too(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    async with opened(FaultyStore(database), config=IDLE, seed=2) as asking:
        with trio.move_on_after(5) as outer:
            async with opened(FaultyStore(database), stubborn(census, cleanup_seconds=1)) as runtime:
                job = await runtime.submit("work")
                await trio.sleep_forever()
        assert outer.cancelled_caught
        assert trio.current_time() == pytest.approx(5 + DRAIN - CLEANUP + 1, abs=0.01)
        assert (await asking.get(job.id)).status == "Queued"
    assert len(census.spans) == 1


async def test_drain_whose_caller_is_cancelled_goes_on(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, stubborn(census, 0)) as runtime:
        await runtime.submit("work")
        await trio.sleep(1)
        with trio.move_on_after(1):
            await runtime.drain()
        await trio.sleep(10)
        assert len(census.spans) == 1


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError("mine"), ExceptionGroup("mine", [ValueError()])])
async def test_exception_of_the_block_comes_out_as_it_is(autojump_clock: MockClock, error: Exception) -> None:
    store = FaultyStore()
    with pytest.raises(type(error)) as caught:
        async with opened(store, stubborn(Census(), 0)):
            raise error
    assert caught.value is error
    assert store.closed


async def test_cause_of_the_blocks_exception_is_kept(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="outer") as caught:
        async with opened(None):
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise ValueError("outer") from error
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("verb", ["commit", "claim", "extend", "lapse", "prune", "next_due", "get", "wait_news"])
async def test_bug_of_a_driver_ends_loudly(
    autojump_clock: MockClock, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = MemoryDatabase()
    store = FaultyStore(database)
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug"), flatten_subgroups=True):
        async with opened(store, stubborn(Census(), 0)) as runtime:
            job = await runtime.submit("work")
            await trio.sleep(1)
            store.fail(verb, error=lambda: RuntimeError("a bug"))
            if verb == "commit":
                await runtime.cancel(job.id)
            elif verb == "get":
                await runtime.get(job.id)
            elif verb == "wait_news":
                async with opened(FaultyStore(database), stubborn(Census(), 0), config=IDLE, seed=2) as other:
                    await other.submit("work")
            await trio.sleep(100)
            pytest.fail("the block goes on although the runtime is dead")
    assert store.closed


async def test_runtime_that_died_answers_nobody(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with opened(store, stubborn(Census(), 0)) as runtime:
            store.fail("extend", "next_due", error=lambda: RuntimeError("a bug"))
            await trio.sleep_forever()
    with pytest.raises(ShuttingDown):
        await runtime.submit("work")


async def test_store_that_cannot_be_opened(autojump_clock: MockClock) -> None:
    class Closed(FaultyStore):
        async def open(self, *, worker: str, max_events_per_job: int, max_attempts_per_job: int) -> None:
            raise StoreUnavailable("nobody there")

    with pytest.raises(StoreUnavailable, match="nobody there"):
        async with opened(Closed()):
            pytest.fail("it opened")


async def test_store_that_fails_right_after_it_was_opened(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    store.fail("now_ms")
    with pytest.raises(StoreUnavailable, match="cut the store off"):
        async with opened(store):
            pytest.fail("it opened")
    assert store.closed


async def test_defaults_of_open_runtime(autojump_clock: MockClock) -> None:
    """No config, no randomness given: ids are drawn from the system's."""
    async with open_runtime(FaultyStore(), [stubborn(Census(), 0, 0)]) as one:
        async with open_runtime(FaultyStore(), [stubborn(Census(), 0, 0)]) as two:
            assert one.config == two.config == Config()
            assert one.worker != two.worker
            assert (await one.submit("work")).id != (await two.submit("work")).id


async def test_log_is_quiet_when_all_goes_well(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with opened(None, stubborn(Census(), 1)) as runtime:
        await runtime.submit("work")
        await trio.sleep(1)
    assert caplog.records == []
