"""Plain functions in real threads, on real time: each test takes a few hundredths of a second."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio
from tests.runtime.kit import handler, opened

from callboard.runtime import Config, JobFailed, ThreadJobContext
from callboard.stores.memory import MemoryStore


async def test_value_and_progress_of_a_thread() -> None:
    threads: list[int] = []

    @handler()
    def work(job: ThreadJobContext) -> str:
        threads.append(threading.get_ident())
        for step in range(0, 101, 10):
            job.progress(step, f"step {step}")
            job.log("info", f"line {step}")
        assert not job.cancel_requested
        return job.name

    async with opened(MemoryStore(), work) as runtime:
        ended = await runtime.wait((await runtime.submit("work")).id, timeout_seconds=10)
        assert (ended.status, bytes(ended.result)) == ("Completed", b'"work"')
        assert ended.progress is not None
        assert ended.progress.percent == 100
        assert len([event for event in await runtime._store.events(ended.id, 0, 100) if event.log]) == 11
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize("how", ["progress", "looks"])
async def test_cancel_of_a_thread_is_cooperative(how: str) -> None:
    begun, stopped = threading.Event(), threading.Event()

    @handler()
    def work(job: ThreadJobContext) -> str:
        begun.set()
        deadline = time.monotonic() + 10
        try:
            while time.monotonic() < deadline:
                time.sleep(0.005)
                if how == "progress":
                    job.progress(1)
                elif job.cancel_requested:
                    raise InterruptedError
            return "nobody told me"
        finally:
            time.sleep(0.05)
            stopped.set()

    async with opened(MemoryStore(), work) as runtime:
        job = await runtime.submit("work")
        await trio.to_thread.run_sync(begun.wait, 10)
        assert (await runtime.cancel(job.id)).status == "InProgress"
        assert not stopped.is_set()
        ended = await runtime.wait(job.id, timeout_seconds=10)
        assert stopped.is_set()
        assert ended.status == "Canceled"


async def test_thread_that_does_not_look_runs_on_and_its_value_stands() -> None:
    begun, go_on = threading.Event(), threading.Event()

    @handler()
    def work(job: ThreadJobContext) -> str:
        begun.set()
        go_on.wait(10)
        return "whole"

    async with opened(MemoryStore(), work) as runtime:
        job = await runtime.submit("work")
        await trio.to_thread.run_sync(begun.wait, 10)
        await runtime.cancel(job.id)
        await trio.sleep(0.05)
        assert (await runtime.get(job.id)).status == "InProgress"
        go_on.set()
        assert bytes((await runtime.wait(job.id, timeout_seconds=10)).result) == b'"whole"'


async def test_failure_and_timeout_of_a_thread() -> None:
    @handler("fails")
    def fails(job: ThreadJobContext) -> None:
        raise JobFailed("NO", "not today")

    @handler("slow", timeout_seconds=0.05)
    def slow(job: ThreadJobContext) -> None:
        while not job.cancel_requested:
            time.sleep(0.005)
        job.progress(1)

    async with opened(MemoryStore(), fails, slow, config=Config(max_retries=0)) as runtime:
        for name, code in (("fails", "NO"), ("slow", "TIMEOUT")):
            ended = await runtime.wait((await runtime.submit(name)).id, timeout_seconds=10)
            assert ended.error is not None
            assert ended.error.code == code


async def test_threads_that_a_function_starts_itself_may_report() -> None:
    @handler()
    def work(job: ThreadJobContext) -> list[bool]:
        def part(number: int) -> bool:
            job.log("info", f"part {number}")
            job.progress(100 * number / 4)
            return job.cancel_requested

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(part, range(4)))

    async with opened(MemoryStore(), work) as runtime:
        ended = await runtime.wait((await runtime.submit("work")).id, timeout_seconds=10)
        assert (ended.status, bytes(ended.result)) == ("Completed", b"[false,false,false,false]"), ended.error
        assert len([event for event in await runtime._store.events(ended.id, 0, 100) if event.log]) == 4


async def test_as_many_threads_as_slots() -> None:
    """Trio's default limit of 40 does not count: all slots run at once."""
    everybody = threading.Barrier(45)

    @handler()
    def work(job: ThreadJobContext) -> int:
        return everybody.wait(10)

    async with opened(MemoryStore(), work, config=Config(max_concurrent_jobs=45)) as runtime:
        jobs = [await runtime.submit("work") for _ in range(45)]
        for job in jobs:
            assert (await runtime.wait(job.id, timeout_seconds=20)).status == "Completed"
