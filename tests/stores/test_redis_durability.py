"""What docs/durability.md promises of Redis, tried with real servers: killed, cut off from their replica, unable to write, emptied."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.conftest import wait_until
from tests.redis_servers import RedisServer, RedisServers, info

from callboard.runtime import (
    Config,
    Handlers,
    Job,
    JobContext,
    JobNotFound,
    Runtime,
    Status,
    StoreUnavailable,
    open_runtime,
)
from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.store import Held, Store
from callboard.stores import open_store
from callboard.stores.conformance_bench import apply, ids, job, submit, succeed

SNAPSHOTS = "3600 1 300 100 60 10000"
"""What a server does that was given no configuration file."""


@asynccontextmanager
async def opened(server: RedisServer, worker: str = "w") -> AsyncIterator[Store]:
    store = open_store(server.url)
    await store.open(worker=worker, max_events_per_job=50, max_attempts_per_job=50)
    try:
        yield store
    finally:
        await store.aclose()


async def until_taken(store: Store, number: int, *, seconds: float = 30) -> None:
    """Submit until the store is there again."""
    with trio.fail_after(seconds):
        while True:
            try:
                await submit(store, number)
                return
            except StoreUnavailable:
                await trio.sleep(0.05)


async def present(store: Store, *numbers: int) -> list[int]:
    """Those of the jobs that the store has."""
    return [number for number in ids(await store.get([job(number).id for number in numbers])) if number >= 0]


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        pytest.param({}, {1, 2, 3, 4}, id="no persistence"),
        pytest.param({"save": SNAPSHOTS}, {3, 4}, id="snapshots"),
        pytest.param({"appendonly": "yes", "appendfsync": "no"}, set(), id="no fsync"),
        pytest.param({"fsync": "everysec"}, set(), id="everysec"),
        pytest.param({"fsync": "always"}, set(), id="always"),
    ],
)
async def test_what_a_killed_server_comes_back_with(
    redis_servers: RedisServers, config: dict[str, Any], lost: set[int]
) -> None:
    """Two jobs, a snapshot where there are any, an end and two more jobs; then SIGKILL."""
    server = redis_servers.server(**config)
    async with opened(server) as store:
        await submit(store, 1, 2)
        if "save" in config:
            server.run("SAVE")
        (claimed,) = await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=60_000)
        await apply(store, claimed.job, succeed())
        await submit(store, 3)
        await submit(store, 4)
        server.restart()
        await until_taken(store, 5)
        assert await present(store, 1, 2, 3, 4, 5) == [number for number in (1, 2, 3, 4, 5) if number not in lost]
        (first,) = await store.get([job(1).id])
        if first is not None:
            # The end goes with what came after the snapshot; the job is as it was, and is run again.
            assert first.status is (Status.QUEUED if lost else Status.COMPLETED)


@pytest.mark.parametrize("config", [{}, {"save": SNAPSHOTS}], ids=["no persistence", "snapshots"])
async def test_a_server_that_forgot_gives_no_fence_twice(redis_servers: RedisServers, config: dict[str, Any]) -> None:
    server = redis_servers.server(**config)
    fences, serials = [], []
    async with opened(server) as store:
        for number in range(1, 6):
            if not await present(store, 1):
                await until_taken(store, 1)
                if config:
                    server.run("SAVE")
            (claimed,) = await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=60_000)
            fences.append(claimed.job.fence)
            serials += [found.serial for found in await submit(store, number + 10)]
            server.restart()
            # The connection is made again by a call, which may be the one that finds it broken.
            await until_taken(store, number + 100)
            if config:
                # What this server forgets is the claim, not the job.
                assert await present(store, 1, number + 10) == [1]
    assert fences == sorted(set(fences))
    assert serials == sorted(set(serials))


async def test_a_master_without_its_replica_refuses_and_goes_on(redis_servers: RedisServers) -> None:
    master = redis_servers.server(min_replicas_to_write="1", min_replicas_max_lag="2")
    replica = redis_servers.server(replicaof=f"127.0.0.1 {master.port}")
    async with opened_when_copied(master) as store:
        await submit(store, 1)
        replica.kill()
        with trio.fail_after(30):
            with pytest.raises(StoreUnavailable):
                for number in range(2, 10_000):
                    await submit(store, number)
                    await trio.sleep(0.05)
        assert await present(store, 1) == [1], "reading goes on"
        replica.start()
        await until_taken(store, 20_000)


@asynccontextmanager
async def opened_when_copied(master: RedisServer) -> AsyncIterator[Store]:
    """A master refuses the first write, too, until its replica follows it."""
    wait_until(lambda: "state=online" in info(master, "replication").get("slave0", ""), "the copy is made", seconds=60)
    async with opened(master) as store:
        yield store


async def test_a_server_that_cannot_write_its_files_refuses_and_goes_on(redis_servers: RedisServers) -> None:
    """A folder stands where the snapshot has to go."""
    server = redis_servers.server(save=SNAPSHOTS)
    async with opened(server) as store:
        await submit(store, 1, 4)
        (claimed,) = await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=60_000)
        in_the_way = server.folder / "dump.rdb"
        in_the_way.unlink(missing_ok=True)
        in_the_way.mkdir()
        snapshot(server, "err")
        with pytest.raises(StoreUnavailable):
            await submit(store, 2)
        assert await present(store, 1, 2) == [1]
        # Unlike a server without memory it takes nothing of what runs, either.
        held = Held(claimed.job.id, claimed.job.fence)
        with pytest.raises(StoreUnavailable):
            await store.extend([held], lease_ms=60_000)
        with pytest.raises(StoreUnavailable):
            await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=60_000)
        with pytest.raises(StoreUnavailable):
            await apply(store, claimed.job, succeed())
        in_the_way.rmdir()
        snapshot(server, "ok")
        await until_taken(store, 3)
        await apply(store, claimed.job, succeed())


def snapshot(server: RedisServer, how: str) -> None:
    """Have one made, and wait until it has ended so."""
    server.run("BGSAVE")

    def ended() -> bool:
        told = info(server, "persistence")
        return (told["rdb_last_bgsave_status"], told["rdb_bgsave_in_progress"]) == (how, "0")

    wait_until(ended, f"the snapshot ends: {how}", seconds=60)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "volatile-ttl"])
async def test_a_server_that_would_evict_is_refused(redis_servers: RedisServers, policy: str) -> None:
    server = redis_servers.server(maxmemory_policy=policy)
    with pytest.raises(StoreRefused, match="noeviction"):
        async with opened(server):
            pass
    server.run("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with opened(server) as store:
        await submit(store, 1)


async def test_a_flush_leaves_a_store_that_works(redis_servers: RedisServers, tmp_path: Path) -> None:
    server = redis_servers.server()
    begun, stopped = trio.Event(), trio.Event()
    handlers = Handlers()

    @handlers.handler("Endless")
    async def endless(_: JobContext) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    @handlers.handler("Quick")
    async def quick(_: JobContext) -> str:
        return "done"

    with trio.fail_after(60):
        async with open_runtime(open_store(server.url), handlers, Config(lease_seconds=3)) as runtime:
            endless_job = await runtime.submit("Endless")
            await begun.wait()
            server.run("FLUSHALL")
            await stopped.wait()
            with pytest.raises(JobNotFound):
                await runtime.get(endless_job.id)
            quick_job = await runtime.submit("Quick")
            ended = await runtime.wait(quick_job.id, timeout_seconds=30)
            assert ended.status is Status.COMPLETED
            assert dict(await runtime.counts()) == {("default", Status.COMPLETED): 1}


async def test_a_claim_that_a_failover_lost_is_given_up(redis_servers: RedisServers) -> None:
    """The standby that takes over has the job and has never heard of its claim: the first attempt ends, and the job runs once more."""
    sentinels = redis_servers.sentinels(fsync="everysec")
    master = sentinels.master
    (standby,) = [server for server in sentinels.servers if server is not master]
    starts: list[JobContext] = []
    begun, stopped = trio.Event(), trio.Event()
    handlers = Handlers()

    @handlers.handler("Work")
    async def work(context: JobContext) -> str:
        starts.append(context)
        begun.set()
        if len(starts) > 1:
            return "done"
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    with trio.fail_after(120):
        idle = Config(max_concurrent_jobs=0)
        async with open_runtime(open_store(sentinels.url), handlers, idle) as api:
            accepted = await api.submit("Work")
            await trio.to_thread.run_sync(until_copied, standby, accepted.id)
            standby.stop()
            async with open_runtime(open_store(sentinels.url), handlers, Config(lease_seconds=6)):
                await begun.wait()
                master.kill()
                standby.start()
                await stopped.wait()
                ended = await until_ended(api, accepted.id)
                assert (ended.status, ended.attempt, ended.lost_leases) == (Status.COMPLETED, 1, 0)
                assert [context.attempt for context in starts] == [1, 1]


def until_copied(standby: RedisServer, job_id: str) -> None:
    wait_until(lambda: standby.run("EXISTS", f"{{callboard}}:job:{job_id}") == 1, "the standby has the job", seconds=60)


async def until_ended(runtime: Runtime, job_id: str) -> Job:
    """Wait for the end, through an outage."""
    while True:
        try:
            ended = await runtime.wait(job_id, timeout_seconds=5)
        except StoreUnavailable:
            continue
        if ended.status.is_terminal:
            return ended


class Wire:
    """What is between one process and its server, and can be cut: connections stay, and nothing comes through."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._whole = trio.Event()
        self._whole.set()
        self.url = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"redis://127.0.0.1:{listener.socket.getsockname()[1]}?timeout_seconds=1"
        task_status.started()
        await trio.serve_listeners(self._connect, [listener])

    def cut(self) -> None:
        self._whole = trio.Event()

    async def _connect(self, near: trio.SocketStream) -> None:
        async with near, await trio.open_tcp_stream("127.0.0.1", self._server.port) as far, trio.open_nursery() as both:
            for source, target in ((near, far), (far, near)):
                both.start_soon(self._pass_on, source, target, both.cancel_scope)

    async def _pass_on(self, source: trio.SocketStream, target: trio.SocketStream, until: trio.CancelScope) -> None:
        try:
            async for part in source:
                await self._whole.wait()
                await target.send_all(part)
        except trio.BrokenResourceError:
            pass
        until.cancel()


async def test_the_others_take_over_from_one_whose_network_is_broken(redis_servers: RedisServers) -> None:
    """Only one process is cut off: its attempt stops, while another, which goes on all the time, runs the job to its end."""
    server = redis_servers.server()
    wire = Wire(server)
    begun, stopped = trio.Event(), trio.Event()
    lonely, healthy = Handlers(), Handlers()

    @lonely.handler("Work")
    async def never_ends(_: JobContext) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    @healthy.handler("Work")
    async def ends(_: JobContext) -> str:
        return "done"

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(wire.run)
            async with open_runtime(open_store(wire.url), lonely, Config(lease_seconds=3, drain_seconds=1)) as cut_off:
                job_id = (await cut_off.submit("Work")).id
                await begun.wait()
                wire.cut()
                async with open_runtime(open_store(server.url), healthy, Config(lease_seconds=3)) as other:
                    quick = await other.submit("Work")
                    assert (await other.wait(quick.id, timeout_seconds=30)).attempt == 1, "it goes on meanwhile"
                    ended = await other.wait(job_id, timeout_seconds=30)
                    assert (ended.status, ended.attempt, ended.lost_leases) == (Status.COMPLETED, 2, 1)
                await stopped.wait()
            nursery.cancel_scope.cancel()
