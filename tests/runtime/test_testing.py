"""``callboard.testing``: what users test their own handlers with."""

import re
import time
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from callboard.runtime import Handlers, JobContext, Status, ThreadJobContext
from callboard.runtime.handlers import make_handler
from callboard.testing import open_virtual_runtime, run_virtual, virtual_now_ms

EMBEDDING = (Path(__file__).resolve().parents[2] / "docs" / "embedding.md").read_text()

handlers = Handlers()


@handlers.handler("flaky", max_retries=9, timeout_seconds=7200)
async def flaky(job: JobContext) -> int:
    await trio.sleep(3600)
    if job.attempt < 5:
        raise ValueError
    return job.attempt


@handlers.handler("plain")
def plain(job: ThreadJobContext, body: dict[str, int]) -> int:
    job.progress(50)
    assert not job.cancel_requested
    return body["a"]


def test_drain_passes_over_retries_and_hours_at_once() -> None:
    async def scenario() -> None:
        async with open_virtual_runtime(handlers) as board:
            job = await board.submit("flaky")
            (ended,) = await board.drain()
            assert (ended.id, ended.status, bytes(ended.result)) == (job.id, "Completed", b"5")
            assert trio.current_time() > 5 * 3600

    began = time.monotonic()
    run_virtual(scenario)
    assert time.monotonic() - began < 5


async def test_drain_passes_over_a_year(autojump_clock: MockClock) -> None:
    began = time.monotonic()
    async with open_virtual_runtime(handlers) as board:
        now_ms = virtual_now_ms()
        job = await board.submit("plain", {"a": 1}, delay_seconds=365 * 24 * 3600)
        (ended,) = await board.drain()
        assert ended.started_ms is not None
        assert abs(ended.started_ms - now_ms - 365 * 24 * 3600 * 1000) <= 5
        assert (await board.get(job.id)).status == "Completed"
    assert time.monotonic() - began < 5


async def test_it_has_what_the_documents_name(autojump_clock: MockClock) -> None:
    found = re.search(r"^`(submit, .+?)` and, for operators, `(.+?)`", EMBEDDING, re.MULTILINE)
    assert found is not None
    async with open_virtual_runtime(handlers) as board:
        for name in (*found[1].split(", "), *found[2].split(", ")):
            assert getattr(board, name) == getattr(board.runtime, name)


async def test_events_of_one_job_in_order(autojump_clock: MockClock) -> None:
    async with open_virtual_runtime(handlers) as board:
        jobs = [await board.submit("plain", {"a": number}) for number in range(300)]
        canceled = await board.submit("plain", {"a": 5}, delay_seconds=10)
        await board.cancel(canceled.id)
        everything = await board.drain()
        assert [job.id for job in everything] == [job.id for job in (*jobs, canceled)]
        for job in jobs:
            events = board.events_of(job.id)
            assert [event.type for event in events] == ["status", "status", "progress", "status"]
            assert [event.status for event in events] == ["Queued", "InProgress", "InProgress", "Completed"]
        assert [event.status for event in board.events_of(canceled.id)] == ["Scheduled", "Canceled"]
        assert await board.drain() == everything


async def test_drain_misses_no_end(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last job ends between the store's answer and the moment at which ``drain`` reads it."""

    async def work(job: JobContext) -> None:
        await trio.sleep(1)

    async with open_virtual_runtime([make_handler("work", work)]) as board:
        counts = board.runtime.counts

        async def late_counts() -> dict[tuple[str, Status], int]:
            found = await counts()
            await trio.sleep(5)
            return found

        monkeypatch.setattr(board.runtime, "counts", late_counts)
        await board.submit("work")
        with trio.fail_after(60):
            (ended,) = await board.drain()
        assert ended.status == "Completed"
