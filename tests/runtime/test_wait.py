"""Waiting for a job: until its end, until any change, until the time is over."""

import uuid

import pytest
import trio
from tests.runtime.kit import FaultyStore, handler, opened
from trio.testing import MockClock

from callboard.runtime import Config, JobContext, JobNotFound, StoreUnavailable
from callboard.stores.memory import MemoryDatabase


@handler()
async def work(job: JobContext) -> str:
    await trio.sleep(10)
    return "whole"


async def test_wait_ends_with_the_job(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        assert (await runtime.wait(job.id)).status == "Completed"
        assert trio.current_time() == pytest.approx(10, abs=0.01)
        ended_at = trio.current_time()
        assert (await runtime.wait(job.id)).status == "Completed"
        assert (await runtime.wait(job.id, timeout_seconds=0)).status == "Completed"
        assert trio.current_time() == ended_at
        assert runtime.stats().subscribers == 0
        with pytest.raises(JobNotFound):
            await runtime.wait(str(uuid.UUID(int=1)))


async def test_wait_whose_time_is_over_gives_the_job_as_it_is_then(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work", delay_seconds=1)
        waited = await runtime.wait(job.id, timeout_seconds=3)
        assert trio.current_time() == pytest.approx(3)
        assert (waited.status, waited.attempt) == ("InProgress", 1)
        assert waited == await runtime.get(job.id)


async def test_wait_that_a_drain_ends_gives_the_job_as_it_is_then(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work", delay_seconds=1)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                assert (await runtime.wait(job.id)).status == "InProgress"
                assert trio.current_time() == 3

            nursery.start_soon(wait)
            await trio.sleep(3)
            runtime.begin_drain()


async def test_wait_in_another_process_that_missed_the_news(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    deaf = FaultyStore(database)
    async with opened(FaultyStore(database), work) as owner:
        async with opened(deaf, work, config=Config(max_concurrent_jobs=0), seed=2) as other:
            job = await owner.submit("work")
            deaf.fail("wait_news", seconds=15)
            assert (await other.wait(job.id)).status == "Completed"
            assert trio.current_time() <= 16.1


async def test_wait_in_a_process_that_had_no_place_in_the_news_yet(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    deaf = FaultyStore(database)
    deaf.fail("wait_news", seconds=15)
    async with opened(FaultyStore(database), work) as owner:
        async with opened(deaf, work, config=Config(max_concurrent_jobs=0), seed=2) as other:
            job = await owner.submit("work")
            with trio.fail_after(20):
                assert (await other.wait(job.id)).status == "Completed"


async def test_wait_while_the_store_is_gone(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, work) as runtime:
        job = await runtime.submit("work")
        store.fail(seconds=5)
        with pytest.raises(StoreUnavailable):
            await runtime.wait(job.id)


async def test_wait_for_any_change(autojump_clock: MockClock) -> None:
    @handler()
    async def two_steps(job: JobContext) -> None:
        await trio.sleep(5)
        await job.progress(50)
        await trio.sleep(5)

    async with opened(None, two_steps) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        seq = (await runtime.get(job.id)).seq
        changed = await runtime.wait(job.id, changed_since=seq)
        assert trio.current_time() == pytest.approx(5, abs=0.01)
        assert changed.seq == seq + 1
        assert (await runtime.wait(job.id, changed_since=seq)).seq == seq + 1
        same = await runtime.wait(job.id, changed_since=changed.seq, timeout_seconds=2)
        assert same.seq == changed.seq
        assert trio.current_time() == pytest.approx(7, abs=0.01)
