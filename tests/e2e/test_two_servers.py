"""Two servers on one SQLite file: each job is claimed once; streams, cancels and rescue cross the processes."""

import json
import os
import time
from typing import Any

import httpx
import pytest
import trio
from tests.e2e.harness import (
    SILENCE_SECONDS,
    TAKEOVER_SECONDS,
    Fold,
    Server,
    Site,
    all_jobs,
    document,
    post,
    until,
    until_ended,
    until_idle,
)

pytestmark = pytest.mark.e2e

JOBS = 300


async def run_on(site: Site, server: Server, http: httpx.AsyncClient, kind: str, **body: object) -> str:
    """Submit a job until one runs on ``server``, which sees it some milliseconds before the others do; its id."""
    for _ in range(10):
        job_id: str = (await post(http, kind, **body))["id"]
        await until(lambda job_id=job_id: bool(site.journal.starts(job_id)), "the job runs")  # type: ignore[misc]
        (start,) = site.journal.starts(job_id)
        if start.pid == server.pid:
            return job_id
    raise AssertionError("the other server took every job")


async def test_each_job_is_claimed_once(site: Site) -> None:
    first = await site.start(max_concurrent_jobs=5)
    second = await site.start(max_concurrent_jobs=5)
    submitted: dict[str, int] = {}

    async def submit(server: Server, numbers: range) -> None:
        async with server.http() as http:
            for number in numbers:
                submitted[(await post(http, "quick", seconds=0.01, value=number))["id"]] = number

    async with trio.open_nursery() as nursery:
        for server in (first, second):
            for part in range(3):
                nursery.start_soon(submit, server, range(part * JOBS // 6, (part + 1) * JOBS // 6))
    async with first.http() as http, second.http() as other:
        await until_idle(http)
        jobs = await all_jobs(http)
        assert jobs == await all_jobs(other)
    assert len(submitted) == JOBS
    assert jobs.keys() == submitted.keys()
    for job_id, number in submitted.items():
        assert (jobs[job_id]["status"], jobs[job_id]["attempt"]) == ("Completed", 1)
        assert jobs[job_id]["result"] == {"value": number, "attempt": 1}
    starts = site.journal.starts()
    assert sorted(line.job for line in starts) == sorted(submitted)
    by_server = [sum(line.pid == server.pid for line in starts) for server in (first, second)]
    assert min(by_server) > JOBS / 20, by_server
    site.check_output()


async def test_a_stream_crosses_the_processes(site: Site) -> None:
    watching, running = await site.start(max_concurrent_jobs=5), await site.start(max_concurrent_jobs=5)
    async with running.http() as http, watching.http() as other:
        job_id = await run_on(site, running, http, "ticking", ticks=30, interval=0.05)
        whole, resumed = Fold(), Fold()
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                async with watching.stream(job_id) as socket:
                    await whole.follow(socket)

            async def follow_in_parts() -> None:
                while not resumed.ended:
                    # Now here, now there: a resume may go to any server.
                    server = (watching, running)[resumed.frames % 2]
                    async with server.stream(job_id, after=resumed.seq) as socket:
                        await resumed.follow(socket, frames=7)

            nursery.start_soon(follow)
            nursery.start_soon(follow_in_parts)
        for fold in (whole, resumed):
            assert (fold.ends, fold.gaps) == (1, 0)
            assert fold.document == await document(other, job_id) == await document(http, job_id)
            assert fold.document["result"] == {"ticks": 30}
            assert fold.frames > 15, "the stream said less than the handler"
    site.check_output()


async def test_a_stream_of_a_job_that_both_change(site: Site) -> None:
    """The job runs on one server and is canceled on the other, whose own event is there before the foreign ones it follows."""
    settings: dict[str, Any] = {"max_concurrent_jobs": 40, "progress_interval_seconds": 0.005}
    watching, running = await site.start(**settings), await site.start(**settings)
    folds: dict[str, Fold] = {}
    async with running.http() as http, watching.http() as other:

        async def follow(job_id: str) -> None:
            async with watching.stream(job_id) as socket:
                await folds[job_id].follow(socket)

        async def cancel(job_id: str) -> None:
            await until(lambda: folds[job_id].frames > 10, "the stream is well under way")
            assert (await other.post(f"/jobs/{job_id}/cancel")).status_code == 202

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                job_id = await run_on(site, running, http, "ticking", ticks=1000, interval=0.01)
                folds[job_id] = Fold()
                nursery.start_soon(follow, job_id)
                nursery.start_soon(cancel, job_id)
        for job_id, fold in folds.items():
            assert (fold.ends, fold.gaps) == (1, 0)
            assert fold.document["status"] == "Canceled"
            assert fold.document == await document(other, job_id)
    site.check_output()


async def test_events_cross_the_processes_quickly(site: Site) -> None:
    """They are looked for every 20 ms; the net behind (1 s) must not be what brings them."""
    watching, running = await site.start(max_concurrent_jobs=5), await site.start(max_concurrent_jobs=5)
    async with running.http() as http:
        job_id = await run_on(site, running, http, "ticking", ticks=20, interval=0.15)
        late: list[float] = []
        async with watching.stream(job_id) as socket:
            await socket.get_message()
            while len(late) < 8:
                with trio.fail_after(SILENCE_SECONDS):
                    job = json.loads(await socket.get_message())["job"]
                if job.get("progress"):
                    ticks = site.journal.lines("tick", job=job_id)
                    tick = job["progress"]["data"]["tick"]
                    late.append(time.monotonic() - ticks[tick].at)
    assert sorted(late)[len(late) // 2] < 0.3, late


@pytest.mark.parametrize("asked_at", ["the owner", "the other"])
async def test_canceled_means_stopped(site: Site, asked_at: str) -> None:
    """Canceled appears only after all three levels of the handler's tasks have cleaned up, whichever server was asked."""
    other_server, running = await site.start(max_concurrent_jobs=5), await site.start(max_concurrent_jobs=5)
    asking = running if asked_at == "the owner" else other_server
    async with asking.http() as http, running.http() as other:
        job_id = await run_on(site, running, other, "tree", cleanup=0.4)
        await until(lambda: len(site.journal.lines("level 3 runs", job=job_id)) == 1, "the handler is all there")
        asked = time.monotonic()
        answer = await http.post(f"/jobs/{job_id}/cancel")
        assert answer.status_code == 202
        assert (answer.json()["status"], answer.json()["cancelRequested"]) == ("InProgress", True)

        def stopped() -> list[str]:
            return [line.what for line in site.journal.lines(job=job_id) if line.what.endswith("stopped")]

        while (job := await document(http, job_id))["status"] == "InProgress":
            assert job["cancelRequested"]
            await trio.sleep(0.01)
        assert stopped() == ["level 3 stopped", "level 2 stopped", "level 1 stopped"]
        assert job["status"] == "Canceled"
        assert not job["cancelRequested"]
        assert job == await document(other, job_id)
        (end,) = site.journal.lines("end", job=job_id)
        assert 1.2 <= end.at - asked < 1.2 + TAKEOVER_SECONDS
        assert (await http.post(f"/jobs/{job_id}/cancel")).status_code == 200
        assert (await http.post(f"/jobs/{job_id}/cancel")).json() == job
    assert len(site.journal.starts(job_id)) == 1
    site.check_output()


async def test_a_dead_servers_jobs_are_taken_over_at_once(site: Site) -> None:
    living = await site.start(lease_seconds=30, max_concurrent_jobs=20)
    dying = await site.start(lease_seconds=30, max_concurrent_jobs=20)
    async with living.http() as http:
        async with dying.http() as other:
            jobs = [await run_on(site, dying, other, "second") for _ in range(5)]
            waited_for = Fold()
            async with trio.open_nursery() as nursery:

                async def follow() -> None:
                    async with living.stream(jobs[0]) as socket:
                        await waited_for.follow(socket)

                nursery.start_soon(follow)
                await until(lambda: waited_for.frames > 0, "the stream has begun")
                site.kill(dying)
        for job_id in jobs:
            job = await until_ended(http, job_id)
            assert (job["status"], job["attempt"], job["retryCount"]) == ("Completed", 2, 0)
            _, start = site.journal.starts(job_id)
            assert start.pid == living.pid
            assert start.at - site.killed[dying.pid] < TAKEOVER_SECONDS
        assert waited_for.document == await document(http, jobs[0])
    site.journal.check_no_overlap(site.killed)
    # The dead one's lock file goes with its jobs, so that a thousand restarts leave no thousand files.
    own = f"{site.database.name}-worker-"
    await until(lambda: len([name for name in os.listdir(site.folder) if name.startswith(own)]) == 1, "swept")
    site.check_output()


async def test_a_cancel_outlives_the_job_s_owner(site: Site) -> None:
    """The owner dies in the middle of its cleanup: whoever takes the job over ends it, and does not run it."""
    living, dying = await site.start(lease_seconds=30), await site.start(lease_seconds=30)
    async with living.http() as http:
        async with dying.http() as other:
            job_id = await run_on(site, dying, other, "tree", cleanup=60)
        assert (await http.post(f"/jobs/{job_id}/cancel")).status_code == 202
        await trio.sleep(0.5)
        assert (await document(http, job_id))["status"] == "InProgress"
        site.kill(dying)
        job = await until_ended(http, job_id)
        assert time.monotonic() - site.killed[dying.pid] < TAKEOVER_SECONDS
        assert (job["status"], job["attempt"], job["cancelRequested"]) == ("Canceled", 1, False)
    assert len(site.journal.starts(job_id)) == 1
    site.check_output()
