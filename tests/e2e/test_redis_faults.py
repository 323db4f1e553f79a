"""The redis-server is killed, loads, is full, slow, stopped, forgets its scripts and its clients, each under load: all goes on by itself.

What has to hold afterwards is checked by ``under_load``. Each test's form under ``make soak`` does the same many times.
"""

import random
import time
from collections import defaultdict
from typing import Any, Literal

import pytest
import redis
import trio
from tests.e2e.harness import Site, document, post, until, until_ended
from tests.e2e.outage import LOGIN, in_thread, under_load
from tests.redis_servers import RedisServer, RedisServers

pytestmark = [
    pytest.mark.e2e,
    # httpx leaves the body's generator behind when a connection breaks under it.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning"),
]

SHORT_LEASE: dict[str, Any] = {"lease_seconds": 3}
"""Where the outcome of a claim may be unknown: what was claimed and not begun is taken back after the lease."""

QUICK_TO_GIVE_UP = "?timeout_seconds=1"

STOPPED_SECONDS = 3

EVERYSEC_LOSS_SECONDS = 2.5
"""With `everysec` a write may be kept back in memory while the file is forced to a slow disk: for two seconds. Source: Redis's aof.c,
``flushAppendOnlyFile``; half a second is for the clocks of this test.
"""


def often(few: int, many: int) -> pytest.MarkDecorator:
    """``times``: few, or many under ``make soak``."""
    return pytest.mark.parametrize("times", [few, pytest.param(many, marks=pytest.mark.soak)])


class Probe:
    """A client of our own that counts in Redis, to see whether a server that came back has everything that it had acknowledged."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._client = server.client()
        self.acknowledged: list[float] = []

    async def run(self) -> None:
        """Count until the server is gone."""
        try:
            while True:
                await in_thread(self._client.incr, "probe")
                self.acknowledged.append(time.monotonic())
                await trio.sleep(0.005)
        except redis.exceptions.ConnectionError:
            return

    def lost_since(self) -> float:
        """When the first lost one was acknowledged; infinity when there is none."""
        stored = int(self._server.run("GET", "probe") or 0)
        return self.acknowledged[stored] if stored < len(self.acknowledged) else float("inf")


@pytest.mark.parametrize(
    ("fsync", "times"),
    [
        ("always", 2),
        ("everysec", 1),
        pytest.param("always", 40, marks=pytest.mark.soak),
        pytest.param("everysec", 20, marks=pytest.mark.soak),
    ],
)
async def test_killed_and_restarted(
    site: Site, redis_servers: RedisServers, fsync: Literal["always", "everysec"], times: int
) -> None:
    """On its append-only file. With `always` nothing acknowledged is lost; with `everysec` at most what its rule allows."""
    server = redis_servers.server(fsync=fsync, login=LOGIN)
    source = random.Random(5)
    async with under_load(site, server, **SHORT_LEASE) as trouble:
        probe = Probe(server)
        least = EVERYSEC_LOSS_SECONDS if fsync == "everysec" else 0.3
        for _ in range(times):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(probe.run)
                await trio.sleep(source.uniform(least, least + 0.7))
                killed = time.monotonic()
                server.kill()
            await trouble.ready(False)
            async with trouble.servers[0].http() as http:
                await trouble.is_refused(http)
            await in_thread(server.start)
            lost_since = probe.lost_since()
            if fsync == "always":
                assert lost_since == float("inf")
            elif lost_since < float("inf"):
                assert killed - lost_since < EVERYSEC_LOSS_SECONDS
                # A matter of the disk. What was acknowledged before is there all the same, and everything goes on.
                trouble.lost_since = lost_since - 0.1
                break
            await trouble.ready(True)
            await trouble.progress()
    assert trouble.load.refusals > 0


@often(1, 20)
async def test_loading(site: Site, redis_servers: RedisServers, times: int) -> None:
    """A server that reads a big file says LOADING for a while: the servers wait, and are not ready."""
    server = redis_servers.server(fsync="everysec", login=LOGIN)
    with server.fresh_client() as client, client.pipeline(transaction=False) as pipeline:
        for number in range(15_000):
            pipeline.set(f"big:{number}", "x")
        pipeline.execute()
    async with under_load(site, server, **SHORT_LEASE) as trouble:
        for _ in range(times):
            await in_thread(server.stop)
            server.start(wait=False, key_load_delay="60")
            loading = refused = 0
            # A new connection for each question: its greeting too is answered with LOADING.
            while not await in_thread(is_loaded, server):
                loading += 1
                async with trouble.servers[loading % 2].http() as http:
                    refused += (await http.get("/jobs/health/ready")).status_code == 503
                await trio.sleep(0.1)
            assert loading > 2, "it loaded too quickly to show anything"
            assert refused > 1
            await trouble.ready(True)
            await trouble.progress()
    assert trouble.load.refusals > 0


def is_loaded(server: RedisServer) -> bool:
    try:
        return bool(server.run("PING"))
    except (redis.exceptions.BusyLoadingError, redis.exceptions.ConnectionError):
        return False


@often(1, 30)
async def test_out_of_memory(site: Site, redis_servers: RedisServers, times: int) -> None:
    """Full under ``noeviction``: submissions are refused, what runs goes on, ends once, and is stored."""
    server = redis_servers.server(login=LOGIN)
    async with under_load(site, server, lease_seconds=30) as trouble, trouble.servers[0].http() as http:
        for _ in range(times):
            running = [(await post(http, "quick", seconds=2, value=number))["id"] for number in range(3)]
            followed = (await post(http, "ticking", ticks=30, interval=0.1))["id"]
            with full(server):
                await trouble.is_refused(http)
                await trouble.ready(False)
                refusals = trouble.load.refusals
                await trio.sleep(2.5)
                assert trouble.load.refusals > refusals
                assert (await document(http, running[0]))["id"] == running[0]
            await trouble.ready(True)
            for job_id in [*running, followed]:
                job = await until_ended(http, job_id)
                assert (job["status"], job["attempt"]) == ("Completed", 1), job
            await trouble.progress()
    assert all(line.attempt <= 2 for line in site.journal.starts()), "a flaky job has two attempts, and none has more"
    assert any("maxmemory" in one.output() for one in trouble.servers)


class full:
    """Within the block the server has no memory left for anything new."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._server.run("CONFIG", "SET", "maxmemory", "1mb")
        assert self._server.run("CONFIG", "GET", "maxmemory-policy") in (
            ["maxmemory-policy", "noeviction"],
            {"maxmemory-policy": "noeviction"},
        )

    def __exit__(self, *_: object) -> None:
        self._server.run("CONFIG", "SET", "maxmemory", "0")


@often(3, 60)
async def test_slow_but_in_time(site: Site, redis_servers: RedisServers, times: int) -> None:
    """Busy for half a second again and again: everything is late, nothing fails and nothing runs twice."""
    server = redis_servers.server(login=LOGIN)
    async with under_load(site, server, lease_seconds=30, store_timeout_seconds=30) as trouble:
        for _ in range(times):
            await in_thread(server.run, "DEBUG", "SLEEP", "0.5")
            await trio.sleep(0.2)
    assert trouble.load.refusals == 0
    assert all(line.attempt <= 2 for line in site.journal.starts())


@often(1, 40)
async def test_slower_than_anyone_waits(site: Site, redis_servers: RedisServers, times: int) -> None:
    """What was sent before the time-out is done by the server later, unheard: claims and ends too. Still nothing counts twice."""
    server = redis_servers.server(login=LOGIN)
    async with under_load(site, server, options=QUICK_TO_GIVE_UP, **SHORT_LEASE) as trouble:
        with server.fresh_client(socket_timeout=20) as client, trio.fail_after(120 * times):
            unheard: set[tuple[str, int]] = set()
            while len(unheard) < times:
                await in_thread(client.execute_command, "DEBUG", "SLEEP", "1.5")
                await trouble.progress(5)
                unheard = unheard_claims(site)
    assert trouble.load.refusals > 0
    assert any("did not answer in time" in one.output() for one in trouble.servers)


def unheard_claims(site: Site) -> set[tuple[str, int]]:
    """Attempts that were claimed, and whose lease has ended since, without anybody who began them."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for line in site.journal.starts():
        numbers[line.job].add(line.attempt)
    return {(job, number) for job, begun in numbers.items() for number in range(1, max(begun)) if number not in begun}


@often(1, 20)
@pytest.mark.parametrize("lease_seconds", [10, 2], ids=["shorter than the lease", "longer than the lease"])
async def test_stopped_and_continued(site: Site, redis_servers: RedisServers, lease_seconds: float, times: int) -> None:
    """SIGSTOP of the redis-server: connections stay, nothing answers. Attempts whose lease it outlasts stop, and run again later."""
    server = redis_servers.server(login=LOGIN)
    async with under_load(site, server, options=QUICK_TO_GIVE_UP, lease_seconds=lease_seconds) as trouble:
        for _ in range(times):
            async with trouble.servers[0].http() as http:
                if lease_seconds > STOPPED_SECONDS:
                    # Soon enough for its outcome to be tried in vain, and afterwards.
                    lengths = (0.5, STOPPED_SECONDS + 1)
                    jobs = [(await post(http, "quick", seconds=seconds))["id"] for seconds in lengths]
                else:
                    # It ends with its second attempt only.
                    jobs = [(await post(http, "second"))["id"]]
                await until(lambda jobs=jobs: all(map(site.journal.starts, jobs)), "they run")  # type: ignore[misc]
                with paused(server):
                    continued = trio.current_time() + STOPPED_SECONDS
                    await trouble.ready(False)
                    # Its own clock tells it, since nobody else can.
                    await until(lambda job=jobs[0]: bool(site.journal.lines("end", job=job)), "it ends")  # type: ignore[misc]
                    await trio.sleep_until(continued)
                await trouble.ready(True)
                for job_id in jobs:
                    job = await until_ended(http, job_id)
                    assert job["status"] == "Completed", job
                    assert (job["attempt"] == 1) is (lease_seconds > STOPPED_SECONDS), job
            await trouble.progress()
    assert trouble.load.refusals > 0


class paused:
    """The server does nothing within the block."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._server.pause()

    def __exit__(self, *_: object) -> None:
        self._server.resume()


@often(10, 1000)
async def test_scripts_forgotten(site: Site, redis_servers: RedisServers, times: int) -> None:
    """SCRIPT FLUSH: each script is sent again when it is missed, and nobody notices anything."""
    server = redis_servers.server(login=LOGIN)
    loaded = 0
    async with under_load(site, server, lease_seconds=30) as trouble:
        with server.fresh_client() as client:
            for number in range(times):
                # One after the other, too: a script that was just sent again is gone again.
                await in_thread(flush_scripts, client, (1, 40)[number % 2])
                await trio.sleep(0.05)
                loaded += int(client.info("memory")["number_of_cached_scripts"] > 0)
    assert loaded > times / 2, "the scripts were not loaded again: nothing was shown"
    assert trouble.load.refusals == 0
    assert all(line.attempt <= 2 for line in site.journal.starts())
    assert not any("the store cannot be reached" in one.output() for one in trouble.servers)


def flush_scripts(client: redis.Redis, times: int) -> None:
    for _ in range(times):
        client.script_flush("SYNC")


@often(8, 800)
@pytest.mark.parametrize("kind", ["normal", "pubsub"])
async def test_clients_thrown_out(
    site: Site, redis_servers: RedisServers, kind: Literal["normal", "pubsub"], times: int
) -> None:
    """CLIENT KILL of all connections of a kind: what was under way has an unknown outcome, and messages get lost meanwhile."""
    server = redis_servers.server(login=LOGIN)
    async with under_load(site, server, **SHORT_LEASE) as trouble:
        with server.fresh_client() as client:
            killed = 0
            with trio.fail_after(60 + times):
                while killed < times:
                    killed += await in_thread(client.execute_command, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                    await trio.sleep(0.1)
    assert trouble.load.errors == 0, "of this a client of callboard notices a 503 at most"
