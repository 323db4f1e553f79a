"""Operators' actions over real processes: a pause holds in all of them at once and outlives them, and a history survives kill -9."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from tests.e2e.harness import Site, check_file, check_records, document, post, until, until_ended

pytestmark = pytest.mark.e2e

NO_NET: dict[str, Any] = {"poll_seconds": 60, "lease_seconds": 60, "retry_base_seconds": 0.1}
"""What is to happen within a fraction of a second has to be told: the net would bring it after a minute."""

QUICKLY_SECONDS = 0.5
"""Processes look at the file every 20 ms; the rest is for a busy machine."""


async def steer(http: httpx.AsyncClient, verb: str) -> dict[str, Any]:
    answer = await http.post(f"/jobs/queues/default/{verb}")
    assert answer.status_code == 200, answer.text
    queue: dict[str, Any] = answer.json()
    assert queue["paused"] is (verb == "pause")
    return queue


async def attempts(http: httpx.AsyncClient, job_id: str) -> list[dict[str, Any]]:
    answer = await http.get(f"/jobs/{job_id}/attempts")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["attempts"]
    return found


async def test_a_pause_holds_in_every_process_at_once(site: Site) -> None:
    asking = await site.start(max_concurrent_jobs=0, **NO_NET)
    working = await site.start(max_concurrent_jobs=50, **NO_NET)
    async with asking.http() as http, working.http() as other:
        gate = site.folder / "gate"
        running = (await post(http, "gated", gate=str(gate)))["id"]
        await until(lambda: len(site.journal.starts(running)) == 1, "it runs")
        for _ in range(3):
            await steer(http, "pause")
            # From the answer on: whoever submits where, nothing begins.
            jobs = [(await post(client, "quick"))["id"] for client in (http, other) for _ in range(5)]
            jobs.append((await post(other, "flaky"))["id"])
            await trio.sleep(0.3)
            begun = {line.job for line in site.journal.starts()}
            assert not begun & set(jobs)
            (queue,) = (await other.get("/jobs/queues")).json()["queues"]
            assert (queue["paused"], queue["queued"], queue["inProgress"]) == (True, len(jobs), 1)
            resumed = time.monotonic()
            await steer(http, "resume")
            for job_id in jobs:
                assert (await until_ended(other, job_id))["status"] == "Completed"
                late = site.journal.starts(job_id)[0].at - resumed
                assert late < QUICKLY_SECONDS, f"it began {late} s after the resume"
        assert (await document(http, running))["status"] == "InProgress", "what runs goes on"
        gate.touch()
        assert (await until_ended(http, running))["status"] == "Completed"
    assert len(site.journal.starts(running)) == 1
    site.check_output()
    check_records(site.database)


@pytest.mark.parametrize("end", ["terminate", "kill -9"])
async def test_a_pause_outlives_the_process(site: Site, tmp_path: Path, end: str) -> None:
    first = await site.start(**NO_NET)
    async with first.http() as http:
        running = (await post(http, "second", ends_at=2))["id"]
        await until(lambda: len(site.journal.starts(running)) == 1, "it runs")
        await steer(http, "pause")
        waiting = (await post(http, "quick"))["id"]
    if end == "terminate":
        first.terminate()
        await first.ended()
    else:
        site.kill(first)
    check_file(site.database, tmp_path)
    second = await site.start(**NO_NET)
    async with second.http() as http:

        async def is_back() -> bool:
            return bool((await document(http, running))["status"] == "Queued")

        with trio.fail_after(10):
            while not await is_back():  # noqa: ASYNC110 - what is waited for is behind a socket
                await trio.sleep(0.02)
        await trio.sleep(0.5)
        (queue,) = (await http.get("/jobs/queues")).json()["queues"]
        assert (queue["paused"], queue["queued"], queue["inProgress"]) == (True, 2, 0)
        assert [line.job for line in site.journal.starts()] == [running], "nothing has begun"
        await steer(http, "resume")
        for job_id in (running, waiting):
            assert (await until_ended(http, job_id))["status"] == "Completed"
        told = await attempts(http, running)
        first_end = "Released" if end == "terminate" else "Lost"
        assert [(one["attempt"], one["outcome"]) for one in told] == [(1, first_end), (2, "Completed")]
    site.journal.check_no_overlap(site.killed)
    site.check_output()


async def test_a_history_is_told_by_every_process_and_outlives_a_kill(site: Site) -> None:
    living, dying = await site.start(max_concurrent_jobs=0), await site.start(max_lost_leases=5)
    async with living.http() as http:
        refused = await until_ended(http, (await post(http, "refused"))["id"])
        (record,) = await attempts(http, refused["id"])
        assert (record["outcome"], record["error"]["code"]) == ("Failed", "E2E_REFUSED")
        assert 'raise JobFailed("E2E_REFUSED", "as expected")' in record["exceptions"][0]["traceback"]
        job_id = (await post(http, "second"))["id"]
        await until(lambda: len(site.journal.starts(job_id)) == 1, "it runs")
        site.kill(dying)
        third = await site.start(max_concurrent_jobs=5)
        assert (await until_ended(http, job_id))["status"] == "Completed"
        lost, completed = await attempts(http, job_id)
        assert (lost["attempt"], lost["outcome"], lost["exceptions"], lost["error"]) == (1, "Lost", [], None)
        assert (completed["attempt"], completed["outcome"]) == (2, "Completed")
        assert lost["worker"] != completed["worker"]
        async with third.http() as other:
            assert await attempts(other, job_id) == [lost, completed]
            assert await attempts(other, refused["id"]) == [record]
    site.check_output()
