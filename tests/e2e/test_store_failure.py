"""The store cannot be written to for ten seconds: clear refusals, running handlers go on, and then everything goes on by itself."""

import time
import uuid
from typing import Any

import httpx
import pytest
import trio
from tests.e2e.harness import ENDED, Fold, Site, document, held_lock, post, until, until_ended, until_idle

pytestmark = pytest.mark.e2e

LOCKED_SECONDS = 10


async def test_ten_seconds_without_a_store(site: Site) -> None:
    server = await site.start(max_concurrent_jobs=4)
    watched = Fold()
    async with server.http() as http, trio.open_nursery() as nursery:

        async def follow(job_id: str) -> None:
            async with server.stream(job_id) as socket:
                await watched.follow(socket)

        ticking = [(await post(http, "ticking", ticks=70, interval=0.2))["id"] for _ in range(2)]
        nursery.start_soon(follow, ticking[1])
        # These end while nothing can be written.
        ending = [(await post(http, "quick", seconds=2))["id"] for _ in range(2)]
        waiting = [(await post(http, "quick", value=number))["id"] for number in range(20)]
        await until(lambda: len(site.journal.starts()) == 4, "all slots are taken")
        assert (await http.get("/jobs/health/ready")).status_code == 200

        tried: dict[str, int] = {}
        with held_lock(site.database):
            began = time.monotonic()
            while time.monotonic() - began < LOCKED_SECONDS:
                job_id = str(uuid.uuid4())
                tried[job_id] = await refused(http, job_id)
                await trio.sleep(0.3)
            assert (await http.get("/jobs/health/ready")).status_code == 503
            assert (await http.get("/jobs/health/live")).status_code == 200
            assert_problem(await http.get("/jobs/health/ready"))
            assert (await document(http, waiting[-1]))["status"] == "Queued"
            over = time.monotonic()
        assert len(tried) >= 2

        await until_taken(http)
        assert time.monotonic() - over < 5
        assert (await http.get("/jobs/health/ready")).status_code == 200
        for job_id in [*ticking, *ending, *waiting]:
            job = await until_ended(http, job_id)
            assert (job["status"], job["attempt"], job["retryCount"]) == ("Completed", 1, 0), job
        ticks = [line.at for line in site.journal.lines("tick", job=ticking[0])]
        assert sum(began < at < over for at in ticks) > LOCKED_SECONDS / 0.2 * 0.6, "the handler stood still"
        await until(lambda: watched.ended, "the stream has told the end")
        assert watched.document == await document(http, ticking[1])
        # With an id of its own repeating is safe: whatever became of the first try, there is one job.
        for job_id in tried:
            answer = await submit(http, job_id)
            assert answer.status_code in (200, 202)
        await until_idle(http)
    ids = [line.job for line in site.journal.starts()]
    assert len(ids) == len(set(ids))
    assert set(tried) <= set(ids)
    assert server.exit_code is None
    site.check_output()


@pytest.mark.parametrize("cleanup", [0, 5], ids=["stops at once", "cleans up for long"])
async def test_a_lease_that_ends_meanwhile_is_given_up(site: Site, cleanup: float) -> None:
    """With a lease shorter than the failure, the attempt stops by its own clock, and the job runs again: never twice at once, even
    when the first attempt still cleans up.
    """
    server = await site.start(lease_seconds=2)
    async with server.http() as http:
        job_id = (await post(http, "second", cleanup=cleanup))["id"]
        await until(lambda: bool(site.journal.starts(job_id)), "the job runs")
        with held_lock(site.database):
            if not cleanup:
                await until(lambda: bool(site.journal.lines("end", job=job_id)), "the attempt stops", seconds=7)
            await trio.sleep(4)
            assert len(site.journal.starts(job_id)) == 1
        assert bool(site.journal.lines("end", job=job_id)) is not bool(cleanup)
        job = await until_ended(http, job_id)
        assert job["status"] == "Completed"
        assert job["attempt"] >= 2
    site.journal.check_no_overlap(site.killed)
    site.check_output()


async def submit(http: httpx.AsyncClient, job_id: str) -> httpx.Response:
    return await http.post("/run/quick", json={"value": job_id}, headers={"X-Async-Request-Id": job_id})


async def refused(http: httpx.AsyncClient, job_id: str) -> int:
    """Submit, which has to be refused soon."""
    asked = time.monotonic()
    answer = await submit(http, job_id)
    assert answer.status_code == 503, answer.text
    assert time.monotonic() - asked < 7
    assert int(answer.headers["retry-after"]) > 0
    assert_problem(answer)
    return answer.status_code


async def until_taken(http: httpx.AsyncClient) -> None:
    """Ask again until a job is accepted and has run."""
    deadline = trio.current_time() + 20
    while True:
        answer = await http.post("/run/quick", json={})
        if answer.status_code == 202:
            break
        assert answer.status_code == 503
        assert trio.current_time() < deadline
    assert (await until_ended(http, answer.json()["id"]))["status"] in ENDED


def assert_problem(answer: httpx.Response) -> None:
    """The body is a problem document that tells nothing about the store."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code == 503
    assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
    assert "sqlite" not in answer.text.lower() and "jobs.db" not in answer.text
