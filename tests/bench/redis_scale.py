"""What one redis-server pays for jobs, for durability and for many processes: the figures of docs/scaling.md.

    python -m tests.bench.redis_scale                # all parts, some minutes
    python -m tests.bench.redis_scale memory fleet   # some of them

Server and clients share the machine, so no figure here is a speed. What is printed is memory, and processor time of the server's own
thread (INFO cpu), which other programs on the machine disturb little; compare within one run. It is a measurement and no test: nothing
fails when a machine is slow.
"""

import random
import string
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
from msgspec import Raw
from msgspec.structs import replace
from tests.redis_servers import RedisServer

from callboard.runtime import Config, Handlers, JobContext, open_runtime
from callboard.runtime.core.job import Request
from callboard.runtime.core.store import Claimed, Store, Write
from callboard.stores.conformance_bench import after, birth, committed, succeed
from callboard.stores.redis import RedisStore

__all__ = ["PARTS"]

LEASE_MS = 600_000
KEPT = {"max_events_per_job": 1000, "max_attempts_per_job": 100}


class Meter:
    """Reads a server's own accounts."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()

    def cpu_us(self) -> float:
        """Processor time of the thread that runs commands."""
        told = self._client.info("cpu")
        return 1e6 * float(told["used_cpu_user_main_thread"] + told["used_cpu_sys_main_thread"])

    def memory(self) -> int:
        """Bytes."""
        return int(self._client.info("memory")["used_memory"])

    def scripts(self) -> int:
        """How many were run."""
        stats = self._client.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))

    def aof(self) -> int:
        """Bytes of the append-only file; 0 without one."""
        return int(self._client.info("persistence").get("aof_current_size", 0))

    def clients(self) -> int:
        """Connections."""
        return int(self._client.info("clients")["connected_clients"])

    def sent(self) -> int:
        """Bytes that went out."""
        return int(self._client.info("stats")["total_net_output_bytes"])


def text(size: int) -> bytes:
    """A JSON string that does not repeat itself."""
    return b'"%b"' % "".join(random.choices(string.ascii_letters, k=size - 2)).encode()


def new(number: int, size: int) -> Write:
    """A job with a body of that many bytes."""
    write = birth(number)
    return replace(write, request=Request(body=Raw(text(size)), headers=(("content-type", "application/json"),)))


async def opened(stack: AsyncExitStack, server: RedisServer, worker: str) -> Store:
    store = RedisStore(server.url)
    await store.open(worker=worker, **KEPT)
    stack.push_async_callback(store.aclose)
    return store


async def enqueue(store: Store, first: int, count: int, batch: int, size: int = 100) -> None:
    for start in range(first, first + count, batch):
        for outcome in await store.commit([new(number, size) for number in range(start, start + batch)]):
            committed(outcome)


async def claim(store: Store, limit: int) -> Sequence[Claimed]:
    return await store.claim(queues=["default"], names=["send"], limit=limit, lease_ms=LEASE_MS)


async def finish(store: Store, claimed: Sequence[Claimed], size: int = 25) -> None:
    result = text(size)
    now_ms = int(time.time() * 1000)
    for outcome in await store.commit([after(one.job, succeed(now_ms, result)) for one in claimed]):
        committed(outcome)


async def memory(folder: Path) -> None:
    """Bytes of a job, by state and size of its body."""
    print("memory: bytes of a job in the server; result 25 bytes")
    print("  body   queued  running    ended   after prune")
    for size in (100, 1000, 10_000):
        with RedisServer(folder / f"memory-{size}") as server:
            async with AsyncExitStack() as stack:
                store, meter, count = await opened(stack, server, "w"), Meter(server), 2000
                await enqueue(store, 1, 100, 100, size)
                await finish(store, await claim(store, 100))
                empty = meter.memory()
                await enqueue(store, 1000, count, 100, size)
                queued = meter.memory()
                claimed = [one for _ in range(count // 100) for one in await claim(store, 100)]
                running = meter.memory()
                for start in range(0, count, 100):
                    await finish(store, claimed[start : start + 100])
                ended = meter.memory()
                while await store.prune(ended_before_ms=2**50, limit=500):
                    pass
                left = meter.memory()
                row = [(value - empty) / count for value in (queued, running, ended, left)]
                print(f"{size:6} {row[0]:8.0f} {row[1]:8.0f} {row[2]:8.0f} {row[3]:8.0f}", flush=True)


async def lives(folder: Path) -> None:
    """Processor time of one whole life by batch size and durability."""
    print(
        "lives: server's processor time of one job (submit, claim, end), microseconds; and the time per job that one caller waits"
    )
    print("  batch   persistence     us/job   wait us/job   AOF bytes/job")
    settings: list[tuple[str, dict[str, Any]]] = [
        ("none", {}),
        ("everysec", {"fsync": "everysec"}),
        ("always", {"fsync": "always"}),
    ]
    for batch, count in ((1, 500), (10, 2000), (100, 10_000)):
        for name, config in settings:
            with RedisServer(folder / f"lives-{batch}-{name}", **config) as server:
                async with AsyncExitStack() as stack:
                    store, meter = await opened(stack, server, "w"), Meter(server)
                    await enqueue(store, 1, 100, 100)
                    await finish(store, await claim(store, 100))
                    cpu, file, began = meter.cpu_us(), meter.aof(), time.perf_counter()
                    await enqueue(store, 1000, count, batch)
                    for _ in range(count // batch):
                        await finish(store, await claim(store, batch))
                    waited = (time.perf_counter() - began) * 1e6 / count
                    took, grown = (meter.cpu_us() - cpu) / count, (meter.aof() - file) / count
                    print(f"{batch:7}   {name:9} {took:12.1f} {waited:12.1f} {grown:14.0f}", flush=True)


async def backlog(folder: Path) -> None:
    """The same life beside a backlog."""
    print("backlog: server's processor time of one job in batches of 10, microseconds, beside so many queued jobs")
    with RedisServer(folder / "backlog") as server:
        async with AsyncExitStack() as stack:
            store, meter, there = await opened(stack, server, "w"), Meter(server), 0
            for more in (1000, 20_000, 100_000):
                await enqueue(store, 10**6 + there, more - there, 200 if more > 1000 else 100)
                there = more
                cpu = meter.cpu_us()
                for turn in range(200):
                    await enqueue(store, 10**8 + more * 10_000 + turn * 10, 10, 10)
                    await finish(store, await claim(store, 10))
                print(f"{more:8} {(meter.cpu_us() - cpu) / 2000:8.1f}", flush=True)


async def fleet(folder: Path) -> None:
    """What each commit costs the server when so many other processes listen."""
    print("fleet: server's processor time and traffic of one commit, by how many other stores listen")
    print("  listeners  jobs/commit  us/commit  scripts/commit  kB out/commit")
    for listeners in (0, 1, 10, 50, 100):
        for batch, commits in ((1, 100), (100, 20)):
            with RedisServer(folder / f"fleet-{listeners}-{batch}") as server:
                await one_fleet(server, listeners, batch, commits)


async def one_fleet(server: RedisServer, listeners: int, batch: int, commits: int) -> None:
    wanted = batch * commits
    sending, receiving = trio.open_memory_channel[int](float("inf"))

    async def listen(store: Store) -> None:
        cursor, seen = (await store.wait_news(None)).cursor, 0
        sending.send_nowait(0)
        while seen < wanted:
            news = await store.wait_news(cursor)
            cursor, seen = news.cursor, seen + len(news.events)
            sending.send_nowait(len(news.events))

    async def hear(events: int) -> None:
        """Until the listeners have seen so many more in all."""
        while events > 0:
            events -= await receiving.receive()

    # A listener takes a thread while it waits.
    trio.to_thread.current_default_thread_limiter().total_tokens = 40 + 4 * listeners
    async with AsyncExitStack() as stack:
        writer, meter = await opened(stack, server, "writer"), Meter(server)
        stores = [await opened(stack, server, f"listener-{index}") for index in range(listeners)]
        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(listen, store)
            for _ in stores:
                await receiving.receive()
            await trio.sleep(1.5)
            cpu, scripts, sent = meter.cpu_us(), meter.scripts(), meter.sent()
            for number in range(commits):
                await enqueue(writer, 1 + number * batch, batch, batch)
                # As fast as the listeners, all in this one process, can follow: else they would see several commits at once.
                await hear(batch * listeners)
        told = (meter.cpu_us() - cpu, meter.scripts() - scripts, (meter.sent() - sent) / 1000)
    print(f"{listeners:11} {batch:12} " + " ".join(f"{value / commits:12.1f}" for value in told), flush=True)


async def nothing(_: JobContext) -> None:
    """A job."""


Run = Callable[[JobContext], Awaitable[None]]


async def crew(stack: AsyncExitStack, server: RedisServer, count: int, config: Config, run: Run = nothing) -> None:
    """So many runtimes with one handler."""
    handlers = Handlers()
    handlers.handler("send")(run)
    trio.to_thread.current_default_thread_limiter().total_tokens = 40 + 4 * count
    for _ in range(count):
        await stack.enter_async_context(open_runtime(RedisStore(server.url), handlers, config))


async def idle(folder: Path) -> None:
    """What runtimes that have nothing to do ask of the server."""
    print("idle: what runtimes without work ask of the server, by how many there are and poll_seconds")
    print("  runtimes  poll_seconds  scripts/s each  server us/s each  connections each  kB each")
    for count, poll in ((1, 1.0), (10, 1.0), (50, 1.0), (50, 10.0)):
        with RedisServer(folder / f"idle-{count}-{poll}") as server:
            async with AsyncExitStack() as stack:
                meter = Meter(server)
                before, clients = meter.memory(), meter.clients()
                await crew(stack, server, count, Config(poll_seconds=poll))
                await trio.sleep(3)
                size, lines = (meter.memory() - before) / 1000 / count, (meter.clients() - clients) / count
                cpu, scripts, seconds = meter.cpu_us(), meter.scripts(), 10
                await trio.sleep(seconds)
                took, ran = (meter.cpu_us() - cpu) / seconds / count, (meter.scripts() - scripts) / seconds / count
                print(f"{count:10} {poll:13.0f} {ran:15.1f} {took:17.0f} {lines:17.1f} {size:8.0f}", flush=True)


async def crowd(folder: Path) -> None:
    """One job after another, and so many idle workers that could run it."""
    print("crowd: server's processor time of one job that is submitted alone, by how many workers have a free slot")
    print("   workers    us/job  scripts/job")
    for count in (1, 10, 50):
        with RedisServer(folder / f"crowd-{count}") as server:
            async with AsyncExitStack() as stack:
                # So seldom that what they do by themselves does not count here.
                await crew(stack, server, count, Config(poll_seconds=60))
                watcher = Config(max_concurrent_jobs=0, poll_seconds=60)
                handlers = Handlers()
                handlers.handler("send")(nothing)
                runtime = await stack.enter_async_context(open_runtime(RedisStore(server.url), handlers, watcher))
                meter, jobs = Meter(server), 30
                await trio.sleep(3)
                cpu, scripts = meter.cpu_us(), meter.scripts()
                for _ in range(jobs):
                    await runtime.wait((await runtime.submit("send")).id)
                    await trio.sleep(0.3)
                took, ran = (meter.cpu_us() - cpu) / jobs, (meter.scripts() - scripts) / jobs
                print(f"{count:10} {took:9.0f} {ran:12.1f}", flush=True)


def counting(jobs: int) -> tuple[Run, trio.Event]:
    """A handler, and what is set when it has begun so many jobs."""
    left, over = jobs, trio.Event()

    async def run(_: JobContext) -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    return run, over


async def busy(folder: Path) -> None:
    """A backlog of jobs that do nothing, and so many workers that run it."""
    print(
        "busy: server's processor time of one job of a backlog, claim and end, by how many workers run it, all in one process"
    )
    print("   workers    us/job  scripts/job")
    for count in (1, 10, 50):
        with RedisServer(folder / f"busy-{count}") as server:
            async with AsyncExitStack() as stack:
                store, meter, jobs = await opened(stack, server, "w"), Meter(server), 4000
                await enqueue(store, 1, jobs, 100)
                run, over = counting(jobs)
                cpu, scripts = meter.cpu_us(), meter.scripts()
                await crew(stack, server, count, Config(max_concurrent_jobs=20), run)
                await over.wait()
                await trio.sleep(1)  # the last ends, and those who read of them
                took, ran = (meter.cpu_us() - cpu) / jobs, (meter.scripts() - scripts) / jobs
                print(f"{count:10} {took:9.0f} {ran:12.2f}", flush=True)


PARTS: dict[str, Callable[[Path], Awaitable[None]]] = {
    "memory": memory,
    "lives": lives,
    "backlog": backlog,
    "fleet": fleet,
    "idle": idle,
    "crowd": crowd,
    "busy": busy,
}


async def main(names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            await PARTS[name](Path(folder))


if __name__ == "__main__":
    trio.run(main, sys.argv[1:] or list(PARTS))
