"""kill -9 in mid-load: nothing accepted is lost, nothing runs twice at once, the file stays whole, and work goes on at once."""

import random
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.e2e.harness import (
    TAKEOVER_SECONDS,
    Load,
    Site,
    all_jobs,
    check_end,
    check_file,
    check_records,
    document,
    post,
    until,
    until_ended,
    until_idle,
)

pytestmark = [
    pytest.mark.e2e,
    # httpx leaves the body's generator behind when a connection breaks under it.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning"),
]

CLIENTS = 6
PATIENT: dict[str, Any] = {"max_lost_leases": 1000, "retry_base_seconds": 0.05}
"""A job may meet any number of kills here."""


async def submit_and_cancel(load: Load, random: random.Random) -> None:
    """One client: jobs of every kind with ids of its own, one after another."""
    while not load.stopping:
        job_id = str(uuid.UUID(int=random.getrandbits(128)))
        kind = random.choices(["quick", "flaky", "refused", "endless"], [6, 1, 1, 1])[0]
        await load.submit(kind, {"seconds": random.choice([0, 0.02, 0.3]), "value": job_id}, job_id)
        if kind == "endless":
            await load.cancel(job_id)
        await trio.sleep(random.uniform(0, 0.02))


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.soak)])
async def test_kill_9_at_random_moments(site: Site, tmp_path: Path, kills: int) -> None:
    source = random.Random(20261121)
    load = Load()
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(submit_and_cancel, load, random.Random(source.random()))
        for number in range(kills):
            server = site.launch(**PATIENT)
            if number % 7 == 6:
                # While it starts: it may be about to make the file, to recover it or to take jobs back.
                await trio.sleep(source.uniform(0.2, 0.8))
            else:
                await server.listening()
                load.servers = [server]
                await trio.sleep(source.uniform(0.05, 0.8))
            load.servers = []
            site.kill(server)
            check_file(site.database, tmp_path)
        server = await site.start(**PATIENT)
        load.servers = [server]
        load.stopping = True

    async with server.http() as http:
        await until_idle(http)
        jobs = await all_jobs(http)
        assert len(load.accepted) > 2 * kills, "too little load to show anything"
        assert load.errors > 0
        for job_id, (kind, body) in load.accepted.items():
            check_end(jobs[job_id], kind, body)
            assert jobs[job_id] == await document(http, job_id)
    assert sum(job["attempt"] > 1 for job in jobs.values()) >= kills, "the kills hit nothing that ran"
    assert load.canceled >= {job_id for job_id, (kind, _) in load.accepted.items() if kind == "endless"}
    site.journal.check_no_overlap(site.killed)
    site.kill(server)
    check_file(site.database, tmp_path)
    site.check_output()


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.soak)])
async def test_kill_9_of_either_of_two_servers(site: Site, kills: int) -> None:
    """The other goes on, and takes over what the dead one ran while the clients still ask both."""
    source = random.Random(4)
    load = Load()
    async with trio.open_nursery() as nursery:
        load.servers = [await site.start(**PATIENT), await site.start(**PATIENT)]
        for _ in range(CLIENTS):
            nursery.start_soon(submit_and_cancel, load, random.Random(source.random()))
        for _ in range(kills):
            await trio.sleep(source.uniform(0.2, 0.8))
            site.kill(load.servers.pop(source.randrange(2)))
            load.servers.append(await site.start(**PATIENT))
            check_records(site.database)
        load.stopping = True

    async with load.servers[0].http() as http, load.servers[1].http() as other:
        await until_idle(http)
        jobs = await all_jobs(http)
        assert jobs == await all_jobs(other)
        for job_id, (kind, body) in load.accepted.items():
            check_end(jobs[job_id], kind, body)
    assert sum(job["attempt"] > 1 for job in jobs.values()) >= kills, "the kills hit nothing that ran"
    site.journal.check_no_overlap(site.killed)
    check_records(site.database)
    site.check_output()


async def test_sigterm_in_mid_load(site: Site, tmp_path: Path) -> None:
    """Orderly restarts cost nothing at all: with ``max_lost_leases=0`` one lost lease would end a job as Failed."""
    source = random.Random(8)
    load = Load()
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(submit_and_cancel, load, random.Random(source.random()))
        for _ in range(5):
            server = await site.start(max_lost_leases=0, drain_seconds=5, retry_base_seconds=0.05)
            load.servers = [server]
            await trio.sleep(source.uniform(0.3, 1))
            server.terminate()
            # The clients go on asking the server that drains, and then none.
            assert await server.ended(seconds=6) == 0
            check_file(site.database, tmp_path)
        server = await site.start(max_lost_leases=0)
        load.servers = [server]
        load.stopping = True

    async with server.http() as http:
        await until_idle(http)
        jobs = await all_jobs(http)
    assert len(load.accepted) > 20, "too little load to show anything"
    for job_id, (kind, body) in load.accepted.items():
        check_end(jobs[job_id], kind, body)
    site.journal.check_no_overlap({})
    site.check_output()


async def test_interrupted_jobs_go_on_at_once(site: Site) -> None:
    """With a lease of 30 s, on a server that comes back: its predecessor is dead, and the operating system knows."""
    server = await site.start(lease_seconds=30, max_concurrent_jobs=20)
    async with server.http() as http:
        interrupted = {(await post(http, "second"))["id"] for _ in range(20)}
        await until(lambda: site.journal.running_in(server.pid) == interrupted, "all run")
        waiting = {(await post(http, "quick"))["id"] for _ in range(20)}
    site.kill(server)

    again = await site.start(lease_seconds=30, max_concurrent_jobs=20)
    ready = time.monotonic()
    async with again.http() as http:
        for job_id in interrupted | waiting:
            job = await until_ended(http, job_id)
            assert job["status"] == "Completed"
            assert job["attempt"] == (2 if job_id in interrupted else 1)
            assert job["retryCount"] == 0
    late = [line.at - ready for line in site.journal.starts() if line.pid == again.pid]
    assert len(late) == 40
    assert max(late) < TAKEOVER_SECONDS
    site.journal.check_no_overlap(site.killed)
    site.check_output()
