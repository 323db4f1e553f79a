"""Canceled means stopped: written down first, carried out whatever happens, and nothing is left behind."""

import uuid

import pytest
import trio
from tests.runtime.kit import Census, FaultyStore, follow, handler, opened
from trio.testing import MockClock

from callboard.runtime import (
    Config,
    Event,
    Handler,
    IllegalTransition,
    JobContext,
    JobNotFound,
    Runtime,
    ShuttingDown,
    StoreUnavailable,
)
from callboard.stores.memory import MemoryDatabase

UNKNOWN = str(uuid.UUID(int=7))


def sleeper(census: Census | None = None) -> Handler:
    """A handler that sleeps until it is cancelled."""

    async def work(job: JobContext) -> None:
        with (census or Census()).attempt(job.id):
            await trio.sleep_forever()

    return handler()(work)


async def started(runtime: Runtime) -> str:
    """The id of a job that runs."""
    job = await runtime.submit("work")
    await trio.sleep(0.5)
    assert (await runtime.get(job.id)).status == "InProgress"
    return job.id


async def test_canceled_only_after_three_levels_of_tasks_have_cleaned_up(autojump_clock: MockClock) -> None:
    ended: dict[str, float] = {}

    async def level(name: str, depth: int, cleanup_seconds: float) -> None:
        try:
            async with trio.open_nursery() as nursery:
                if depth < 3:
                    nursery.start_soon(level, f"{name}.a", depth + 1, cleanup_seconds + 1)
                    nursery.start_soon(level, f"{name}.b", depth + 1, cleanup_seconds + 2)
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup_seconds)
            ended[name] = trio.current_time()

    @handler()
    async def work(job: JobContext) -> None:
        await level("root", 1, 1)

    async with opened(None, work) as runtime:
        job_id = await started(runtime)
        asked = trio.current_time()
        answer = await runtime.cancel(job_id)
        assert (answer.status, answer.cancel_requested) == ("InProgress", True)
        await trio.sleep(8)
        assert (await runtime.get(job_id)).status == "InProgress"
        canceled = await runtime.wait(job_id)
        assert (canceled.status, canceled.cancel_requested, canceled.worker) == ("Canceled", False, None)
        # One after another up the tree: 5 for the slowest leaf, 3 for its parent, 1 for the root.
        assert trio.current_time() - asked == pytest.approx(5 + 3 + 1, abs=0.01)
        assert sorted(ended) == ["root", "root.a", "root.a.a", "root.a.b", "root.b", "root.b.a", "root.b.b"]
        assert max(ended.values()) <= trio.current_time()


async def test_cancel_reaches_the_handler_at_once(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, sleeper(census)) as runtime:
        job_id = await started(runtime)
        asked = trio.current_time()
        await runtime.cancel(job_id)
        await runtime.wait(job_id)
        assert trio.current_time() - asked < 0.01
    assert [(job, end) for job, _, end in census.spans] == [(job_id, asked)]


async def test_cancel_of_a_queued_and_a_scheduled_job(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, sleeper(census), config=Config(max_concurrent_jobs=1)) as runtime:
        running = await started(runtime)
        queued = await runtime.submit("work")
        scheduled = await runtime.submit("work", delay_seconds=5)
        for job in (queued, scheduled):
            canceled = await runtime.cancel(job.id)
            assert (canceled.status, canceled.due_ms, canceled.attempt) == ("Canceled", None, 0)
        await runtime.cancel(running)
        await trio.sleep(20)
        assert set(census.runs) == {running}


async def test_cancel_of_what_cannot_be_cancelled_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        if job.headers.get("fail"):
            raise ValueError

    async with opened(None, work, config=Config(max_retries=0)) as runtime:
        completed = await runtime.submit("work")
        failed = await runtime.submit("work", headers={"fail": "yes"})
        await runtime.wait(completed.id)
        await runtime.wait(failed.id)
        for job_id in (completed.id, failed.id):
            before = await runtime.get(job_id)
            with pytest.raises(IllegalTransition, match="cannot cancel a job that is"):
                await runtime.cancel(job_id)
            assert await runtime.get(job_id) == before
        for unknown in (UNKNOWN, "nonsense", "x" * 36):
            with pytest.raises(JobNotFound, match="there is no job"):
                await runtime.cancel(unknown)
        assert (runtime._directory._live, runtime._directory.running) == ({}, 0)


async def test_a_purged_id_is_as_new(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> str:
        await trio.sleep(10)
        return "whole"

    async with opened(None, work) as runtime:
        await runtime.submit("work", job_id=UNKNOWN)
        await runtime.cancel(UNKNOWN)
        await runtime.wait(UNKNOWN)
        await runtime.purge(UNKNOWN)
        with pytest.raises(JobNotFound):
            await runtime.cancel(UNKNOWN)
        again = await runtime.submit("work", job_id=UNKNOWN)
        assert (again.seq, again.attempt, again.status) == (1, 0, "Queued")
        ended = await runtime.wait(UNKNOWN)
        assert (ended.status, bytes(ended.result), ended.attempt) == ("Completed", b'"whole"', 1)


async def test_purge_needs_an_ended_job(autojump_clock: MockClock) -> None:
    async with opened(None, sleeper()) as runtime:
        job_id = await started(runtime)
        with pytest.raises(IllegalTransition, match="that is InProgress cannot be purged: cancel it first"):
            await runtime.purge(job_id)
        with pytest.raises(JobNotFound):
            await runtime.purge(UNKNOWN)
        assert (await runtime.get(job_id)).status == "InProgress"


async def test_value_returned_before_the_cancel_took_hold_stands(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        return "whole"

    async with opened(None, work) as runtime:
        job_id = await started(runtime)
        assert (await runtime.cancel(job_id)).cancel_requested
        ended = await runtime.wait(job_id)
        assert (ended.status, bytes(ended.result), ended.cancel_requested) == ("Completed", b'"whole"', False)


async def test_error_after_a_cancel_is_canceled(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in cleanup")

    async with opened(None, work) as runtime:
        job_id = await started(runtime)
        await runtime.cancel(job_id)
        assert (await runtime.wait(job_id)).status == "Canceled"


async def test_double_cancel_changes_nothing_more(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)

    async with opened(None, work) as runtime:
        job_id = await started(runtime)
        first = await runtime.cancel(job_id)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(runtime.cancel, job_id)
        assert await runtime.get(job_id) == first
        canceled = await runtime.wait(job_id)
        assert await runtime.cancel(job_id) == canceled
        assert canceled.seq == first.seq + 1


async def test_cancel_while_draining_is_canceled_and_not_handed_back(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, sleeper()) as runtime:
        job_id = await started(runtime)
        runtime.begin_drain()
        await trio.sleep(1)
        assert (await runtime.cancel(job_id)).cancel_requested
        await trio.sleep(0.1)
        assert (await runtime.get(job_id)).status == "Canceled"
    with pytest.raises(ShuttingDown, match="has ended"):
        await runtime.cancel(job_id)


async def test_cancel_during_the_cleanup_of_a_drain(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(4)

    async with opened(None, work) as runtime:
        job_id = await started(runtime)
        runtime.begin_drain()
        await trio.sleep(12)  # stopped after 10 for the drain; its cleanup ends after 14
        await runtime.cancel(job_id)
        await runtime.drain()
        await trio.sleep(0.1)
        assert (await runtime.get(job_id)).status == "Canceled"


@pytest.mark.parametrize("cleanup_seconds", [0, 3])
async def test_cancel_from_the_other_process(autojump_clock: MockClock, cleanup_seconds: float) -> None:
    ended: list[float] = []

    @handler()
    async def work(job: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup_seconds)
            ended.append(trio.current_time())

    database = MemoryDatabase()
    async with opened(FaultyStore(database), work) as owner:
        async with opened(FaultyStore(database), work, config=Config(max_concurrent_jobs=0), seed=2) as other:
            job_id = await started(owner)
            asked = trio.current_time()
            assert (await other.cancel(job_id)).status == "InProgress"
            assert (await other.wait(job_id)).status == "Canceled"
            assert ended == [pytest.approx(asked + cleanup_seconds, abs=0.01)]


async def test_cancel_from_the_other_process_arrives_although_its_news_is_lost(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    deaf = FaultyStore(database)
    async with opened(deaf, sleeper()) as owner:
        async with opened(FaultyStore(database), config=Config(max_concurrent_jobs=0), seed=2) as other:
            job_id = await started(owner)
            deaf.fail("wait_news")
            await other.cancel(job_id)
            asked = trio.current_time()
            await other.wait(job_id)
            assert trio.current_time() - asked <= 10  # the heartbeat: a third of the lease


@pytest.mark.parametrize("verbs", [(), ("commit",), ("get",)], ids=["all", "commit", "get"])
@pytest.mark.parametrize("state", ["running", "queued"])
async def test_cancel_while_the_store_fails_is_not_lost(
    autojump_clock: MockClock, verbs: tuple[str, ...], state: str
) -> None:
    store = FaultyStore()
    config = Config(max_concurrent_jobs=1 if state == "running" else 0)
    async with opened(store, sleeper(), config=config) as runtime:
        job_id = (await runtime.submit("work")).id
        await trio.sleep(0.5)
        store.fail(*verbs, seconds=20)
        asked = trio.current_time()
        try:
            await runtime.cancel(job_id)
        except StoreUnavailable:
            assert trio.current_time() - asked == pytest.approx(5)
        else:
            assert verbs == ("get",), "the cancel was answered although nothing could be stored"
        await trio.sleep(25)
        assert (await runtime.get(job_id)).status == "Canceled"
        assert runtime._directory._live == {}


async def test_cancel_whose_answer_was_lost_counts_once(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, sleeper()) as runtime:
        job_id = await started(runtime)
        store.fail("commit", seconds=2, after=True)
        await runtime.cancel(job_id)
        assert (await runtime.wait(job_id)).status == "Canceled"
        told = await follow(runtime, job_id, after=0)
        assert [
            bytes(item.changes["status"]) for item in told if isinstance(item, Event) and "status" in item.changes
        ] == [
            b'"Queued"',
            b'"InProgress"',
            b'"Canceled"',
        ]
        assert [item.seq for item in told] == [1, 2, 3, 4]


async def test_asker_that_gives_up_does_not_take_the_cancel_back(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, sleeper()) as runtime:
        job_id = await started(runtime)
        store.slow_seconds["commit"] = 2
        with trio.move_on_after(1) as gave_up:
            await runtime.cancel(job_id)
        assert gave_up.cancelled_caught
        assert (await runtime.wait(job_id)).status == "Canceled"


@pytest.mark.parametrize("slow", ["claim", "commit", "get"])
@pytest.mark.parametrize("pause", [0, 0.25, 0.5, 0.75, 1.25])
async def test_cancel_that_races_with_the_claim_takes_hold_at_once(
    autojump_clock: MockClock, slow: str, pause: float
) -> None:
    """Whoever comes first: within a second or two of the slow store, never only at the next heartbeat."""
    census, store = Census(), FaultyStore()
    async with opened(store, sleeper(census)) as runtime:
        store.slow_seconds[slow] = 0.5
        job = await runtime.submit("work")
        await trio.sleep(pause)
        asked = trio.current_time()
        await runtime.cancel(job.id)
        await runtime.wait(job.id)
        assert trio.current_time() - asked <= 2
        assert (await runtime.get(job.id)).status == "Canceled"
        await trio.sleep(1)
        assert runtime._directory.running == 0


async def test_canceled_job_can_be_retried_by_hand(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, sleeper(census)) as runtime:
        job_id = await started(runtime)
        with pytest.raises(IllegalTransition, match="cannot retry a job that is InProgress"):
            await runtime.retry(job_id)
        await runtime.cancel(job_id)
        await runtime.wait(job_id)
        assert (await runtime.retry(job_id)).status == "Queued"
        await trio.sleep(1)
        job = await runtime.get(job_id)
        assert (job.status, job.attempt, job.cancel_requested) == ("InProgress", 2, False)
        await runtime.cancel(job_id)


async def test_a_full_mailbox_makes_askers_wait_and_answers_all(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    answers: list[str] = []

    async with opened(store, sleeper()) as runtime:
        job_id = await started(runtime)
        store.slow_seconds["commit"] = 1

        async def ask() -> None:
            answers.append((await runtime.cancel(job_id)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(250):
                nursery.start_soon(ask)
        await runtime.wait(job_id)
    assert len(answers) == 250
    assert set(answers) <= {"InProgress", "Canceled"}
