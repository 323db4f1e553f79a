"""2.C of the other library: work that was lost, stranded, done twice or kept from being done. Both stores, on virtual time.

Each test is named by the defect's number in ``docs/from-asyncendpoints.md``.
"""

from pathlib import Path

import pytest
import trio
from tests.heritage.kit import IDLE, Depot, working
from tests.runtime.kit import Census, handler, hard_stop, opened
from tests.stores.kit import run_sql
from trio.testing import MockClock

from callboard.runtime import Config, Job, JobContext, Runtime, Status


async def test_c01_a_claimed_job_is_never_stranded(depot: Depot, autojump_clock: MockClock) -> None:
    """A job that was claimed while every worker was busy was dropped after 5 s and stayed InProgress for ever."""
    census = Census()
    async with opened(depot.connect(), working(census, 20), config=Config(max_concurrent_jobs=2)) as runtime:
        jobs: list[Job] = []
        for _ in range(4):
            # Together, so that one claim takes several.
            jobs += [job for job in await runtime.submit_many("work", [None, None]) if isinstance(job, Job)]
            await trio.sleep(7)  # all slots are busy for longer than any buffer would wait
            assert (await runtime.counts()).get(("default", Status.IN_PROGRESS), 0) <= 2
        for job in jobs:
            ended = await runtime.wait(job.id, timeout_seconds=100)
            assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 1, 0)
    assert trio.current_time() < 90  # four rounds of 20 s
    assert census.runs == {job.id: 1 for job in jobs}


async def test_c02_a_shutdown_strands_nothing_and_keeps_what_is_finished(
    depot: Depot, autojump_clock: MockClock
) -> None:
    """The cancelled token of the shutdown was passed to the last write, so that finished results and claims were lost."""

    @handler()
    async def work(job: JobContext, seconds: float) -> float:
        with trio.CancelScope(shield=seconds == 12):  # ends while it is cancelled
            await trio.sleep(seconds)
        return seconds

    store = depot.connect()
    async with opened(depot.connect(), work, config=IDLE, seed=2) as asking:
        with trio.CancelScope() as host:
            async with opened(store, work, config=Config(max_concurrent_jobs=3, drain_seconds=15)) as runtime:
                jobs = [await runtime.submit("work", seconds) for seconds in (5, 12, 1000, 1, 1)]
                await trio.sleep(0.1)
                store.slow_seconds["commit"] = 0.5
                host.cancel()
                await trio.sleep_forever()
        kept = [await asking.get(job.id) for job in jobs]
    assert [job.status for job in kept] == ["Completed", "Completed", "Queued", "Queued", "Queued"]
    assert [bytes(job.result) for job in kept[:2]] == [b"5.0", b"12.0"]
    assert [job.attempt for job in kept] == [1, 1, 1, 0, 0]
    assert not any(job.lost_leases or job.retry_count or job.fence for job in kept)


@pytest.mark.parametrize("ghost", ["canceled", "purged", "submitted anew", "put off", "of no handler", "claimed"])
async def test_c03_no_ghost_at_the_head_stalls_the_queue(depot: Depot, ghost: str, autojump_clock: MockClock) -> None:
    """An id at the head of the queue that had no record or the wrong state failed every claim, and nothing behind it ran."""
    census = Census()
    elsewhere = working(census, 1000, "elsewhere")
    slots = Config(max_concurrent_jobs=1)
    async with (
        opened(depot.connect(), elsewhere, working(census, 1000), config=IDLE, seed=2) as other,
        opened(depot.connect(), working(census, 10), config=slots) as runtime,
    ):
        busy = await runtime.submit("work")
        await trio.sleep(1)
        name = "elsewhere" if ghost == "of no handler" else "work"
        delay_seconds = 1000 if ghost == "put off" else None
        head = await other.submit(name, priority=1000, delay_seconds=delay_seconds)
        if ghost in ("canceled", "purged", "submitted anew"):
            await runtime.cancel(head.id)
        if ghost in ("purged", "submitted anew"):
            await runtime.purge(head.id)
        if ghost == "submitted anew":
            await runtime.submit("work", job_id=head.id, priority=-1000)
        if ghost == "claimed":
            async with opened(depot.connect(), working(census, 1000), config=slots, seed=3):
                await behind(runtime, busy.id)
        else:
            await behind(runtime, busy.id)


async def test_c03_heads_that_cannot_be_read_stall_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The same where the head's record is damaged, as only a file can be; one slot, so that a claim sees one job at a time."""
    census, depot = Census(), Depot("sqlite", tmp_path)
    config = Config(max_concurrent_jobs=1, poll_seconds=100_000)
    async with opened(depot.connect(), working(census, 10), config=config) as runtime:
        busy = await runtime.submit("work")
        await trio.sleep(1)
        heads = [await runtime.submit("work", priority=1000) for _ in range(30)]
        for head in heads:
            run_sql(depot.path, f"UPDATE job SET record = 'x' WHERE id = '{head.id}'")
        await behind(runtime, busy.id)


async def behind(runtime: Runtime, busy_id: str) -> None:
    """A job that stands behind the head starts as soon as the slot is free."""
    job = await runtime.submit("work")
    await runtime.wait(busy_id)
    await trio.sleep(0.1)
    assert (await runtime.get(job.id)).status == "InProgress"


@pytest.mark.parametrize("answer_lost", [False, True], ids=["refused", "answer lost"])
async def test_c08_the_write_of_a_result_is_repeated_until_it_is_stored(
    depot: Depot, answer_lost: bool, autojump_clock: MockClock
) -> None:
    """One error of the store at the moment of the result's write ran the whole job again half an hour later."""
    census, store = Census(), depot.connect()
    async with opened(store, working(census, 3)) as runtime:
        jobs = [await runtime.submit("work") for _ in range(3)]
        await trio.sleep(2)
        store.fail("commit", seconds=20, after=answer_lost)
        for job in jobs:
            ended = await runtime.wait(job.id, timeout_seconds=60)
            assert (ended.status, bytes(ended.result)) == ("Completed", b"1")
            assert (ended.attempt, ended.retry_count, ended.lost_leases) == (1, 0, 0)
    assert census.runs == {job.id: 1 for job in jobs}
    assert trio.current_time() < 30


async def test_c13_a_crash_costs_a_lease_and_not_half_an_hour(depot: Depot, autojump_clock: MockClock) -> None:
    """Recovery looked every 5 min for jobs that had run for 30 min, so that a crash cost 30 to 35 minutes."""
    census, store = Census(), depot.connect()
    slots = Config(lease_seconds=10)
    async with opened(depot.connect(), working(census, 3), config=IDLE, seed=2) as asking:
        async with opened(store, working(census, 100), config=slots) as runtime:
            job = await asking.submit("work")
            await trio.sleep(5)
            hard_stop(runtime, store)
        async with opened(depot.connect(), working(census, 3), config=slots, seed=3):
            ended = await asking.wait(job.id, timeout_seconds=20)
    assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 2, 1)
    assert census.doubles == []
