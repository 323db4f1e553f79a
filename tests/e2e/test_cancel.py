"""A cancel that was accepted is carried out: after a kill -9, while the server drains, after the store has failed."""

import time

import httpx
import pytest
import trio
from tests.e2e.harness import Site, document, held_lock, post, until, until_ended

pytestmark = pytest.mark.e2e

DRAIN_SECONDS = 8.0


async def is_ready(http: httpx.AsyncClient) -> bool:
    """What the readiness probe says."""
    return (await http.get("/jobs/health/ready")).status_code == 200


@pytest.mark.parametrize("kind", ["endless", "tree"])
async def test_a_cancel_asked_before_a_kill_is_carried_out_after_it(site: Site, kind: str) -> None:
    server = await site.start(lease_seconds=30)
    async with server.http() as http:
        job_id = (await post(http, kind, cleanup=60))["id"]
        await until(lambda: bool(site.journal.starts(job_id)), "the job runs")
        answer = await http.post(f"/jobs/{job_id}/cancel")
        assert answer.status_code == 202
        assert answer.json()["cancelRequested"]
    site.kill(server)

    again = await site.start(lease_seconds=30)
    async with again.http() as http:
        job = await until_ended(http, job_id, seconds=5)
        assert (job["status"], job["attempt"], job["cancelRequested"]) == ("Canceled", 1, False)
        # Another job of the same kind shows that the server would have run it by now.
        await until_ended(http, (await post(http, "quick"))["id"])
        assert len(site.journal.starts(job_id)) == 1
    site.check_output()


async def test_a_cancel_while_draining(site: Site) -> None:
    server = await site.start(drain_seconds=DRAIN_SECONDS)
    async with server.http() as http:
        job_id = (await post(http, "endless", cleanup=0.3))["id"]
        await until(lambda: bool(site.journal.starts(job_id)), "the job runs")
        server.terminate()
        asked = time.monotonic()
        while await is_ready(http):  # noqa: ASYNC110  that is the probe's way
            await trio.sleep(0.01)
        refused = await http.post("/run/quick", json={})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert (await http.get("/jobs/health/live")).status_code == 200

        answer = await http.post(f"/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["cancelRequested"]) == (202, True)
        assert await server.ended() == 0
    # Long before the drain would have cancelled it by itself.
    assert time.monotonic() - asked < DRAIN_SECONDS / 2
    assert len(site.journal.lines("end", job=job_id)) == 1

    again = await site.start()
    async with again.http() as http:
        assert (await document(http, job_id))["status"] == "Canceled"
        await until_ended(http, (await post(http, "quick"))["id"])
    assert len(site.journal.starts(job_id)) == 1
    site.check_output()


async def test_what_is_not_canceled_is_handed_back_by_the_drain(site: Site) -> None:
    """The counterpart: without the cancel the same job goes on in the next process. Being handed back counts as no lost lease:
    a kill after it is the first, and one is allowed.
    """
    server = await site.start(drain_seconds=1.5, max_lost_leases=1)
    async with server.http() as http:
        job_id = (await post(http, "second", ends_at=3))["id"]
        await until(lambda: len(site.journal.starts(job_id)) == 1, "the job runs")
    asked = time.monotonic()
    server.terminate()
    assert await server.ended() == 0
    assert time.monotonic() - asked < 1.5 + 1
    (end,) = site.journal.lines("end", job=job_id)

    again = await site.start(max_lost_leases=1)
    await until(lambda: len(site.journal.starts(job_id)) == 2, "the job runs again")
    site.kill(again)
    last = await site.start(max_lost_leases=1)
    async with last.http() as http:
        job = await until_ended(http, job_id)
        assert (job["status"], job["attempt"]) == ("Completed", 3)
    assert end.at < site.journal.starts(job_id)[1].at
    site.check_output()


async def test_a_cancel_while_the_store_fails_is_not_lost(site: Site) -> None:
    server = await site.start(store_timeout_seconds=1, max_concurrent_jobs=1)
    async with server.http() as http:
        running = (await post(http, "endless", cleanup=0.1))["id"]
        await until(lambda: bool(site.journal.starts(running)), "the job runs")
        waiting = (await post(http, "endless"))["id"]
        with held_lock(site.database):
            for job_id in (running, waiting):
                answer = await http.post(f"/jobs/{job_id}/cancel")
                assert answer.status_code in (202, 503), answer.text
                if answer.status_code == 503:
                    assert int(answer.headers["retry-after"]) > 0
            await trio.sleep(3)
            assert (await document(http, running))["status"] == "InProgress"
            assert (await document(http, waiting))["status"] == "Queued"
        for job_id in (running, waiting):
            job = await until_ended(http, job_id, seconds=10)
            assert job["status"] == "Canceled"
        await until_ended(http, (await post(http, "quick"))["id"])
    assert len(site.journal.starts(running)) == 1
    site.check_output()


async def test_a_cancel_of_what_is_not_there_leaves_nothing_behind(site: Site) -> None:
    """Neither of an unknown id nor of an ended job: the next job with that id runs."""
    server = await site.start()
    async with server.http() as http:
        job_id = "0198c0de-0000-7000-8000-000000000001"
        assert (await http.post(f"/jobs/{job_id}/cancel")).status_code == 404
        own = {"X-Async-Request-Id": job_id}
        assert (await http.post("/run/quick", json={}, headers=own)).status_code == 202
        assert (await until_ended(http, job_id))["status"] == "Completed"
        assert (await http.post(f"/jobs/{job_id}/cancel")).status_code == 409
        assert (await http.delete(f"/jobs/{job_id}?purge=true")).status_code == 204
        assert (await http.post(f"/jobs/{job_id}/cancel")).status_code == 404
        assert (await http.post("/run/quick", json={"value": 2}, headers=own)).status_code == 202
        job = await until_ended(http, job_id)
        assert (job["status"], job["result"]) == ("Completed", {"value": 2, "attempt": 1})
    site.check_output()
