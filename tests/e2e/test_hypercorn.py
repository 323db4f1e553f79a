"""Under the plain ``hypercorn -w 2``, two processes that know nothing of each other but the file."""

import sys

import pytest
import trio
from tests.e2e.harness import APP, Site, all_jobs, post, until_idle

pytestmark = pytest.mark.e2e

JOBS = 200


async def test_two_workers_of_hypercorn_lose_and_double_nothing(site: Site) -> None:
    command = [sys.executable, "-m", "hypercorn", "-k", "trio", "-w", "2", "--bind", "127.0.0.1:0", f"{APP}:app"]
    server = site.run(command, environment={"CALLBOARD_STORE": site.sqlite}, max_concurrent_jobs=3)
    await server.listening("Running on ")
    submitted: dict[str, int] = {}

    async def submit(numbers: range) -> None:
        async with server.http() as http:
            for number in numbers:
                submitted[(await post(http, "quick", seconds=0.02, value=number))["id"]] = number

    async with trio.open_nursery() as nursery:
        for part in range(8):
            nursery.start_soon(submit, range(part * JOBS // 8, (part + 1) * JOBS // 8))
    async with server.http() as http:
        await until_idle(http)
        jobs = await all_jobs(http)
    assert len(submitted) == JOBS
    assert jobs.keys() == submitted.keys()
    for job_id, number in submitted.items():
        assert (jobs[job_id]["status"], jobs[job_id]["result"]) == ("Completed", {"value": number, "attempt": 1})
    starts = site.journal.starts()
    assert sorted(line.job for line in starts) == sorted(submitted)
    assert len({line.pid for line in starts}) == 2, "one of the workers did nothing"
    site.check_output()
