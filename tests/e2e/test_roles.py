"""Processes of different roles and different versions on one store: who submits and watches, who runs, and what nobody here can run."""

import json
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.harness import (
    APP,
    ENDED,
    Document,
    Fold,
    Server,
    Site,
    all_jobs,
    document,
    post,
    until,
    until_ended,
)

pytestmark = pytest.mark.e2e

VERSIONS = Path(__file__).with_name("roles_app.py")

QUICK = {"poll_seconds": 0.05, "lease_seconds": 2.0, "progress_interval_seconds": 0.02}


class Fleet:
    """Processes of one site on one store."""

    def __init__(self, site: Site, store: str) -> None:
        self.site = site
        self.store = store

    async def api(self, version: str | None = None, **config: Any) -> Server:
        """A process that serves and runs nothing."""
        return await self._start("serve", ["--bind", "127.0.0.1:0", "--jobs", "0"], version, config)

    async def both(self, version: str | None = None, **config: Any) -> Server:
        """A process that serves and runs jobs."""
        return await self._start("serve", ["--bind", "127.0.0.1:0"], version, config)

    async def worker(self, *options: str, version: str | None = None, **config: Any) -> Server:
        """A process that runs jobs; its URL is that of health and metrics."""
        return await self._start("worker", ["--bind", "127.0.0.1:0", *options], version, config)

    async def _start(self, command: str, options: Sequence[str], version: str | None, config: dict[str, Any]) -> Server:
        target = f"{APP if version is None else VERSIONS}:app"
        words = [sys.executable, "-m", "callboard.web.cli", command, target, "--store", self.store, *options]
        environment = {} if version is None else {"E2E_VERSION": version}
        server = self.site.run(words, environment=environment, **QUICK, **config)
        await server.listening("callboard: serving on " if command == "serve" else "callboard: health and metrics on ")
        return server


@pytest.fixture(params=["sqlite", "redis"])
def fleet(request: pytest.FixtureRequest, site: Site) -> Fleet:
    """On a fresh store."""
    return Fleet(site, site.sqlite if request.param == "sqlite" else request.getfixturevalue("redis_server").url)


async def metric(http: httpx.AsyncClient, sample_name: str, /, **labels: str) -> float | None:
    """A sample of that process; None where there is none."""
    for family in text_string_to_metric_families((await http.get("/jobs/metrics")).text):
        for sample in family.samples:
            if sample.name == sample_name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


async def unknown(http: httpx.AsyncClient) -> dict[str, dict[str, int]]:
    """What that process's app has no handler for, by queue."""
    return {queue["name"]: queue["unknown"] for queue in (await http.get("/jobs/queues")).json()["queues"]}


async def events_by_sse(server: Server, job_id: str, fold: Fold) -> None:
    """Follow a job by Server-Sent Events to its end."""
    fold.seq = 0
    headers = {"Last-Event-ID": "0"}
    async with server.http() as http, http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                fold.take(line.removeprefix("data:").strip())


async def changes_by_long_poll(http: httpx.AsyncClient, job_id: str) -> Document:
    """Ask for each change until the end; the last document."""
    answer = await http.get(f"/jobs/{job_id}")
    seqs = [answer.json()["seq"]]
    while answer.json()["status"] not in ENDED:
        following = await http.get(f"/jobs/{job_id}?wait=10", headers={"If-None-Match": answer.headers["etag"]})
        if following.status_code == 304:
            continue
        answer = following
        seqs.append(answer.json()["seq"])
    assert seqs == sorted(set(seqs))
    ended: Document = answer.json()
    return ended


async def test_who_asks_here_sees_all_that_happens_there_and_cancels_it(fleet: Fleet) -> None:
    """One process has the sockets, two have the jobs: three kinds of watchers follow each of many jobs, half of which are canceled."""
    api = await fleet.api()
    workers = [await fleet.worker("--jobs", "20") for _ in range(2)]
    folds: dict[str, tuple[Fold, Fold]] = {}
    polled: dict[str, Document] = {}
    canceled: set[str] = set()
    async with api.http() as http:

        async def watch(job_id: str) -> None:
            async with api.stream(job_id, after=0) as socket:
                await folds[job_id][0].follow(socket)

        async def poll(job_id: str) -> None:
            polled[job_id] = await changes_by_long_poll(http, job_id)

        async def cancel(job_id: str) -> None:
            await until(lambda: folds[job_id][0].frames > 6, "it is well under way")
            answer = await http.post(f"/jobs/{job_id}/cancel", headers={"Prefer": "wait=30"})
            assert (answer.status_code, answer.json()["status"]) == (200, "Canceled"), answer.text
            canceled.add(job_id)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                job_id = (await post(http, "ticking", ticks=25 if number % 2 else 2000, interval=0.04))["id"]
                folds[job_id] = Fold(), Fold()
                folds[job_id][0].seq = 0
                nursery.start_soon(watch, job_id)
                nursery.start_soon(events_by_sse, api, job_id, folds[job_id][1])
                if number < 10:
                    nursery.start_soon(poll, job_id)
                if number % 2 == 0:
                    nursery.start_soon(cancel, job_id)
        for job_id, both in folds.items():
            now = await document(http, job_id)
            for fold in both:
                assert (fold.ends, fold.gaps) == (1, 0)
                assert fold.document == now
            assert now["status"] == ("Canceled" if job_id in canceled else "Completed")
            assert polled.get(job_id, now) == now
            if job_id not in canceled:
                assert both[0].logs == [f"log at {tick}" for tick in range(25) if tick % 5 == 2]
    assert len(canceled) == 15
    starts = fleet.site.journal.starts()
    assert len(starts) == 30, "each ran once"
    assert {line.pid for line in starts} == {worker.pid for worker in workers}
    fleet.site.check_output()


async def test_a_job_that_nobody_has_a_handler_for_waits_and_is_seen(fleet: Fleet) -> None:
    newer, older = await fleet.api("B"), await fleet.worker(version="A")
    old_api = await fleet.api("A")
    async with newer.http() as http, older.http() as probes, old_api.http() as old:
        strange = [(await post(http, "new"))["id"] for _ in range(5)]
        # It holds nobody up, and is no less urgent than others.
        assert (await until_ended(http, (await post(http, "grown", times=1))["id"]))["result"] == {"version": "A"}
        line = "jobs named 'new' wait in queue 'default', and no handler here takes them: they wait until a process has one (5 now)"
        await until(lambda: line in older.output(), "the operator is told")
        await until(lambda: line in old_api.output(), "by every process that knows")
        # Who has no handler for it answers for it all the same.
        assert await unknown(old) == {"default": {"new": 5}, "old": {}}
        assert (await unknown(http))["default"] == {}, "the newer app has it"
        job = await document(old, strange[0])
        assert (job["status"], job["attempt"], job["lastUpdatedAt"]) == ("Queued", 0, job["createdAt"])
        listed = (await old.get("/jobs?name=new&status=Queued")).json()["jobs"]
        assert {job["id"] for job in listed} == set(strange)
        told = [await metric(one, "callboard_unserved_jobs", name="new") for one in (http, probes, old)]
        assert told == [5, 5, 5], "nobody takes them"
        for job_id, status in ((strange[0], "Canceled"), (strange[1], "Canceled")):
            assert (await old.post(f"/jobs/{job_id}/cancel")).json()["status"] == status
        assert (await old.post(f"/jobs/{strange[1]}/retry")).json()["status"] == "Queued"
        assert (await old.post("/run/new")).status_code == 404
        await trio.sleep(2 * 60 * QUICK["poll_seconds"] + 0.5)
        assert older.output().count("'new'") == 1, "it is said once"
        able = await fleet.worker(version="B")
        for job_id in strange[1:]:
            job = await until_ended(http, job_id)
            assert (job["status"], job["attempt"], job["result"]) == ("Completed", 1, {"version": "B"})
        async with able.http() as others:
            waiting = (await post(old, "gone", seconds=30))["id"]
            await until(lambda: bool(fleet.site.journal.starts(waiting)), "the older runs it")
            assert await metric(others, "callboard_info", role="worker") == 1
            assert await metric(others, "callboard_unserved_jobs", name="gone") is None
    fleet.site.check_output()


async def test_only_these_queues(fleet: Fleet) -> None:
    api = await fleet.api("A")
    narrow = await fleet.worker("--queue", "old", "--jobs", "3", version="A")
    async with api.http() as http, narrow.http() as probes:
        left = (await post(http, "gone"))["id"]
        taken = (await post(http, "moved"))["id"]
        assert (await until_ended(http, taken))["status"] == "Completed"
        assert (await document(http, left))["status"] == "Queued"
        assert await metric(probes, "callboard_unserved_jobs", queue="default", name="gone") == 1
        assert await metric(probes, "callboard_slots") == 3
        await fleet.worker("--queue", "default", "--queue", "old", version="A")
        assert (await until_ended(http, left))["status"] == "Completed"
    assert "wait in queue" not in narrow.output()
    fleet.site.check_output()


@pytest.mark.parametrize("gone_by", [signal.SIGKILL, signal.SIGTERM])
async def test_when_only_apis_are_left_they_keep_the_store_in_order(fleet: Fleet, gone_by: int) -> None:
    """Whatever its role, a process takes lost jobs back and removes what was kept long enough."""
    api = await fleet.api(retention_seconds=3, max_lost_leases=0)
    worker = await fleet.worker(retention_seconds=3, drain_seconds=1.0, max_lost_leases=0)
    async with api.http() as http:
        assert (await http.get("/jobs/health/ready")).json() == {"status": "ready", "role": "api"}
        ended = (await post(http, "quick"))["id"]
        assert (await until_ended(http, ended))["status"] == "Completed"
        lost, stopped = (await post(http, "endless"))["id"], (await post(http, "endless", cleanup=60))["id"]
        await until(lambda: len(fleet.site.journal.starts()) == 3, "they run")
        assert (await http.post(f"/jobs/{stopped}/cancel")).status_code == 202
        worker.process.send_signal(gone_by)
        await worker.ended()
        assert (await until_ended(http, stopped))["status"] == "Canceled"
        if gone_by == signal.SIGKILL:
            job = await until_ended(http, lost)
            assert (job["status"], job["error"]["code"]) == ("Failed", "WORKER_LOST")
        else:
            assert (await document(http, lost))["status"] == "Queued"
        with trio.fail_after(90):
            while (await http.get(f"/jobs/{ended}")).status_code == 200:  # noqa: ASYNC110  nobody tells
                await trio.sleep(0.2)
    assert {line.pid for line in fleet.site.journal.starts()} == {worker.pid}
    assert not _children(api.pid)


def _children(pid: int) -> list[str]:
    return [child for one in Path(f"/proc/{pid}/task").glob("*/children") for child in one.read_text().split()]


# Rolling deploys


class Traffic:
    """Submits, with ids of its own, to whoever is there, until it is told to stop."""

    def __init__(self, kinds: Callable[[Server], Sequence[str]]) -> None:
        self.servers: list[Server] = []
        self.accepted: dict[str, str] = {}
        """Job id -> kind."""
        self.asking: Counter[str] = Counter()
        """Requests under way, by kind."""
        self.stopping = False
        self._kinds = kinds

    async def run(self) -> None:
        turn = 0
        while not self.stopping:
            turn += 1
            server = self.servers[turn % len(self.servers)]
            kinds = self._kinds(server)
            kind = kinds[turn // len(self.servers) % len(kinds)]
            self.asking[kind] += 1
            try:
                async with server.http(timeout=10) as http:
                    answer = await http.post(f"/run/{kind}", json={"seconds": 0.02, "times": 2})
            except httpx.TransportError:
                continue  # it was about to end, or has
            finally:
                self.asking[kind] -= 1
            if answer.status_code == 202:
                self.accepted[answer.json()["id"]] = kind
            else:
                assert answer.status_code == 503, answer.text
            await trio.sleep(0.01)


async def test_a_rolling_deploy(fleet: Fleet) -> None:
    """Two processes of version A are replaced by two of B, one after another, under load."""
    servers: dict[str, list[str]] = {"A": ["gone", "moved", "grown"], "B": ["new", "moved", "grown"]}
    versions: dict[int, str] = {}

    async def start(version: str) -> Server:
        server = await fleet.both(version, max_concurrent_jobs=3, drain_seconds=8)
        versions[server.pid] = version
        return server

    def kinds(server: Server) -> list[str]:
        return servers[versions[server.pid]]

    old = [await start("A"), await start("A")]
    traffic = Traffic(kinds)
    traffic.servers = list(old)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(traffic.run)
        await until(lambda: len(traffic.accepted) > 60, "there is traffic")
        new = []
        for leaving in old:
            arriving = await start("B")
            new.append(arriving)
            traffic.servers.append(arriving)
            seen = len(traffic.accepted)
            await until(lambda seen=seen: len(traffic.accepted) > seen + 60, "both versions are asked")  # type: ignore[misc]
            if leaving is old[1]:
                # The order of a deploy: what only the old version knows is not asked for any more, and runs out.
                servers["A"].remove("gone")
                await until(lambda: not traffic.asking["gone"], "nobody is about to ask for it")
                async with arriving.http() as http:
                    with trio.fail_after(60):
                        while (await unknown(http))["default"]:  # noqa: ASYNC110  as an operator would
                            await trio.sleep(0.05)
            traffic.servers.remove(leaving)
            leaving.terminate()
            assert await leaving.ended() == 0
        seen = len(traffic.accepted)
        await until(lambda: len(traffic.accepted) > seen + 60, "the new version goes on alone")
        traffic.stopping = True
    async with new[0].http() as http:
        for job_id in traffic.accepted:
            job = await until_ended(http, job_id)
            assert job["status"] == "Completed", job
        jobs = await all_jobs(http)
    assert traffic.accepted.keys() <= jobs.keys()
    assert {job["retryCount"] for job in jobs.values()} == {0}
    # Each was run once (what a claim brought to one that had begun to drain was handed back unrun), by one that knew it.
    starts = fleet.site.journal.starts()
    assert sorted(line.job for line in starts) == sorted(jobs)
    ran_by: dict[str, set[str]] = {}
    for line in starts:
        ran_by.setdefault(line.name, set()).add(versions[line.pid])
    assert ran_by["gone"] == {"A"} and ran_by["new"] == {"B"} and ran_by["grown"] == {"A", "B"}
    fleet.site.check_output()


async def test_a_record_of_a_newer_patch_is_read_and_run(site: Site) -> None:
    """It has a field that this callboard does not know; see docs/embedding.md for what becomes of the field."""
    fleet = Fleet(site, site.sqlite)
    api = await fleet.api()
    async with api.http() as http:
        job_id = (await post(http, "quick", value=1))["id"]
        with closing(sqlite3.connect(site.database, isolation_level=None, timeout=20)) as connection:
            (record,) = connection.execute("SELECT record FROM job WHERE id = ?", (job_id,)).fetchone()
            newer = json.dumps(json.loads(record) | {"novel": {"x": 1}}).encode()
            connection.execute("UPDATE job SET record = ? WHERE id = ?", (newer, job_id))
        assert (await document(http, job_id))["status"] == "Queued"
        await fleet.worker()
        job = await until_ended(http, job_id)
        assert (job["status"], job["attempt"]) == ("Completed", 1)
    site.check_output()


async def test_jobs_in_a_queue_that_its_handler_has_left(fleet: Fleet) -> None:
    """What version A accepted into the old queue, and what waits there for a retry, ends on version B."""
    old, new = await fleet.api("A"), await fleet.worker(version="B")
    async with old.http() as http, new.http() as probes:
        moved = await post(http, "moved")
        assert moved["queue"] == "old"
        job = await until_ended(http, moved["id"])
        assert (job["status"], job["queue"], job["result"]) == ("Completed", "old", {"version": "B"})
        assert not await metric(probes, "callboard_unserved_jobs", queue="old", name="moved")
    fleet.site.check_output()
