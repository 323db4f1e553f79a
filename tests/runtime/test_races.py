"""Rare orders of events, made on purpose: two askers, slow answers, full mailboxes, holes in the chain."""

import pytest
import trio
from tests.runtime.kit import Census, FaultyStore, folded, follow, handler, hard_stop, opened, shown
from trio.testing import MockClock

import callboard.runtime
from callboard.runtime import Config, Event, Handler, IllegalTransition, JobContext, JobNotFound, Snapshot
from callboard.runtime.core.store import News
from callboard.stores.memory import MemoryDatabase

IDLE = Config(max_concurrent_jobs=0)


def working(census: Census, seconds: float, cleanup_seconds: float = 0) -> Handler:
    @handler()
    async def work(job: JobContext) -> int:
        with census.attempt(job.id):
            try:
                await trio.sleep(seconds)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(cleanup_seconds)
            return job.attempt

    return work


async def test_claim_that_waited_for_an_old_cleanup_and_was_lost_meanwhile(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(store, working(census, 20, cleanup_seconds=150)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        async with opened(FaultyStore(database), working(census, 1), config=IDLE, seed=2):
            store.fail("extend", "claim", "commit", seconds=40)  # lapses after 30 s, is claimed again after 40 s
            await trio.sleep(50)
            assert runtime._directory.running == 2
            store.fail("extend", "claim", "commit", seconds=60)
            async with opened(FaultyStore(database), working(census, 1), seed=3) as other:
                ended = await other.wait(job.id)
                assert ended.status == "Completed"
            await trio.sleep(40)
            assert runtime._directory.running == 1, "the claim that was lost has given its slot back"
        await trio.sleep(60)
        assert (runtime._directory.running, runtime._directory._live) == (0, {})
    # The two that finished: the old one in spite of itself, and the other runtime's.
    assert census.runs[job.id] == 2


async def test_claim_whose_answer_took_longer_than_the_lease_is_not_begun(autojump_clock: MockClock) -> None:
    census, store = Census(), FaultyStore()
    async with opened(store, working(census, 1)) as runtime:
        store.slow_seconds["claim"] = 40
        job = await runtime.submit("work")
        await trio.sleep(39)
        store.slow_seconds.clear()
        ended = await runtime.wait(job.id)
        assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 2, 1)
        assert census.runs == {job.id: 1}
        await trio.sleep(1)
        assert runtime._directory.running == 0


async def test_purge_that_races_with_a_retry(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    slow = FaultyStore(database)
    async with opened(slow, working(Census(), 1), config=IDLE) as one:
        async with opened(FaultyStore(database), working(Census(), 1), config=IDLE, seed=2) as two:
            job = await one.submit("work")
            await one.cancel(job.id)
            slow.slow_seconds["get"] = 1
            async with trio.open_nursery() as nursery:

                async def purge() -> None:
                    with pytest.raises(IllegalTransition, match="that is Queued cannot be purged"):
                        await one.purge(job.id)

                nursery.start_soon(purge)
                await trio.sleep(0.5)
                await two.retry(job.id)
            assert (await two.get(job.id)).status == "Queued"


@pytest.mark.parametrize("verb", ["retry", "purge"])
async def test_two_askers_of_whom_one_purges(autojump_clock: MockClock, verb: str) -> None:
    database = MemoryDatabase()
    slow = FaultyStore(database)
    async with opened(slow, working(Census(), 1), config=IDLE) as one:
        async with opened(FaultyStore(database), working(Census(), 1), config=IDLE, seed=2) as two:
            job = await one.submit("work")
            await one.cancel(job.id)
            slow.slow_seconds["get"] = 1
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with pytest.raises(JobNotFound):
                        await getattr(one, verb)(job.id)

                nursery.start_soon(ask)
                await trio.sleep(0.5)
                await two.purge(job.id)


async def test_full_mailbox_loses_no_report_and_no_hint(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    @handler()
    async def work(job: JobContext) -> None:
        for number in range(40):
            job.log("info", str(number))
            await trio.sleep(0.1)
        with trio.CancelScope(shield=True):
            await trio.sleep(10)

    async with opened(store, work) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(0.05)
        store.slow_seconds["commit"] = 3
        async with trio.open_nursery() as nursery:
            for _ in range(150):
                nursery.start_soon(runtime.cancel, job.id)
            await trio.sleep(0.5)
            supervisor = runtime._directory._live[job.id]
            assert supervisor._send.statistics().current_buffer_used == 100
            runtime._directory.hint_all()
            supervisor._post_report()
        store.slow_seconds.clear()
        ended = await runtime.wait(job.id)
        assert ended.status == "Canceled"
        logs = [item.log for item in await follow(runtime, job.id, after=0) if isinstance(item, Event) and item.log]
        said = [int(line.message) for line in logs]
        assert said == list(range(len(said)))
        assert len(said) > 20


async def test_hole_in_the_news_is_reread(autojump_clock: MockClock) -> None:
    """Only the last of several events reaches the follower's process."""
    database = MemoryDatabase()
    deaf = FaultyStore(database)
    async with opened(FaultyStore(database), working(Census(), 2)) as owner:
        async with opened(deaf, working(Census(), 2), config=IDLE, seed=2) as other:
            deaf.fail("wait_news")
            job = await other.submit("work", delay_seconds=1)
            told: list[Snapshot | Event] = []
            async with other.watch(job.id) as events:
                told.append(await events.__anext__())
                ended = await owner.wait(job.id)
                history = await owner._store.events(job.id, 0, 100)
                other._hub.publish(history[:1])
                other._hub.publish(history[-1:])
                told += [item async for item in events]
            assert [item.seq for item in told] == list(range(1, ended.seq + 1))
            assert folded(told) == shown(ended)


async def test_reread_that_finds_nothing_new_says_nothing(autojump_clock: MockClock) -> None:
    async with opened(None, working(Census(), 10)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                told = await follow(runtime, job.id)
                assert [item.seq for item in told] == [2, 3]

            nursery.start_soon(run)
            await trio.sleep(1)
            runtime._hub.lag_all()


async def test_reread_of_a_job_that_had_ended_ends(autojump_clock: MockClock) -> None:
    async with opened(None, working(Census(), 1)) as runtime:
        job = await runtime.submit("work")
        async with runtime.watch(job.id) as events:
            told = [await events.__anext__()]
            ended = await runtime.wait(job.id)
            while told[-1].seq < ended.seq - 1:
                told.append(await events.__anext__())
            events._inbox.lag()
            told += [item async for item in events]
            assert folded(told) == shown(ended)
            assert told[-1].seq == ended.seq


async def test_end_whose_answer_was_lost_reaches_those_who_wait_here(autojump_clock: MockClock) -> None:
    """The last commit took effect although the store could not say so: nothing comes after it that would show the hole."""
    store = FaultyStore()
    async with opened(store, working(Census(), 5)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        ends: list[float] = []

        async def watch() -> None:
            assert folded(await follow(runtime, job.id)) == shown(await runtime.get(job.id))
            ends.append(trio.current_time())

        async def wait() -> None:
            assert (await runtime.wait(job.id)).status == "Completed"
            ends.append(trio.current_time())

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                nursery.start_soon(wait)
                await trio.sleep(3.5)
                store.fail("commit", seconds=2, after=True)
        assert len(ends) == 2
        assert max(ends) <= 8


async def test_dead_holder_is_noticed_at_once(autojump_clock: MockClock) -> None:
    """The driver knows that a holder is dead (its file lock is gone): its jobs go on at once, not at the next poll."""
    died = trio.Event()

    class Knowing(FaultyStore):
        async def wait_news(self, cursor: str | None) -> News:
            if cursor is None:
                return News(cursor="begun")
            if cursor == "died":
                await trio.sleep_forever()
            await died.wait()
            return News(cursor="died", holder_died=True)

    store = Knowing()
    async with opened(store, working(Census(), 1), config=Config(poll_seconds=1000)):
        await trio.sleep(5)
        before = store.count("lapse")
        died.set()
        await trio.sleep(0.1)
        assert store.count("lapse") == before + 1


async def test_teardown_lets_a_handlers_own_error_out(autojump_clock: MockClock) -> None:
    """A runtime that is torn down is loud: what its handlers raise meanwhile is not swallowed."""

    @handler()
    async def work(job: JobContext) -> None:
        async def child() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in the middle of the teardown")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(trio.sleep_forever)

    store = FaultyStore()
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="teardown"), flatten_subgroups=True):
        async with opened(store, work) as runtime:
            await runtime.submit("work")
            await trio.sleep(1)
            hard_stop(runtime, store)
            await trio.sleep(1)


def test_public_names_are_there() -> None:
    assert set(dir(callboard.runtime)) == set(callboard.runtime.__all__)
    for name in callboard.runtime.__all__:
        assert getattr(callboard.runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        callboard.runtime.nonsense  # type: ignore[attr-defined]  # noqa: B018
