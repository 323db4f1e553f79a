"""A server among hostile clients: everybody else is answered meanwhile, and afterwards everything is as it was.

Attacked is ``hostile_app`` in a process of its own, under the launcher that ``callboard serve`` runs, over raw sockets, by what
``hostile_http`` and ``hostile_ws`` hold, many at once and mixed at random: spoiled requests, framing, handshakes and frames; upgrades
with trailing data; fragments without end; bombs; half-open, slow, silent and never-reading clients; resets in the middle of everything.

Measured is

* during the attack, that the process lives, that its log holds no error, and that every round of the well-behaved clients is answered;
* after two equal attacks, each followed by a silence: tasks, threads and descriptors are those of before the attacks, memory and objects
  have not grown from the first silence to the second, and the process does nothing; what ``hostile_limpets`` holds is still there
  when the silence begins and has to be got rid of by the server's own limits;
* at the end, that it stops in time on SIGTERM with exit code 0, although hostile clients are still there.

The seed is random and printed with every failure; ``CALLBOARD_FUZZ_SEED`` sets it. ``CALLBOARD_SOAK_SECONDS`` is how long the attacks of
the long run last, an hour unless set.
"""

import json
import os
import random
import sys
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from tests.e2e.harness import ENDED, Server, Site
from tests.e2e.hostile import Attacker, Horde, Target
from tests.e2e.hostile_corpus import request
from tests.e2e.hostile_http import HTTP_ATTACKS
from tests.e2e.hostile_limpets import LIMPETS
from tests.e2e.hostile_witness import (
    WELL_BEHAVED,
    Vitals,
    Watch,
    WellBehaved,
    cpu_seconds,
    descriptors,
    until_quiet,
    vitals,
)
from tests.e2e.hostile_ws import WEBSOCKET_ATTACKS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc"),
    # httpx leaves the body's generator behind when a connection breaks under it.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning"),
]

APP: Final = Path(__file__).with_name("hostile_app.py")
CERTIFICATES: Final = Path(__file__).parents[1] / "web" / "certificates"
SOAK_SECONDS: Final = float(os.environ.get("CALLBOARD_SOAK_SECONDS", "3600"))

AT_ONCE: Final = 60
LIMITS: Final[dict[str, float]] = {"keep_alive_seconds": 4, "send_seconds": 3, "ping_seconds": 1, "silent_seconds": 6}
"""The server's own limits, in seconds: so long after the attackers have gone there may be traces of them."""
QUIET_SECONDS: Final = 30.0
"""When those limits have passed, on a busy machine."""
DRAIN_SECONDS: Final = 10.0
MOST_WORK_SECONDS: Final = 1.0
"""Processor time, which a busy machine does not lengthen."""
MOST_GROWTH_BYTES: Final = 8 * 2**20
MOST_NEW_OBJECTS: Final = 4000
CONFIG: Final[dict[str, Any]] = {
    "drain_seconds": DRAIN_SECONDS,
    "body_seconds": 3,
    "retention_seconds": 20,
    "max_body_bytes": 65_536,
    "max_bulk_body_bytes": 1_000_000,
    "max_bulk_jobs": 100,
    "max_queue_size": 1000,
    "max_events_per_job": 200,
    "max_wait_seconds": 2,
    "store_timeout_seconds": 20,
    "timeout_seconds": 100_000,
}


def seed() -> str:
    """Of this run."""
    given = os.environ.get("CALLBOARD_FUZZ_SEED") or f"{random.SystemRandom().getrandbits(32):08x}"
    print(f"CALLBOARD_FUZZ_SEED={given}", flush=True)
    return given


async def start(site: Site, store: str, **options: Any) -> Server:
    """The app under the launcher, with short limits."""
    settings = json.dumps({"bind": ["127.0.0.1:0"], **LIMITS, **options})
    server = site.run([sys.executable, str(APP), store, settings], **CONFIG)
    await server.listening()
    return server


@asynccontextmanager
async def followed(server: Server) -> AsyncIterator[Target]:
    """A job that says much for as long as the block lasts."""
    async with server.http() as http:
        http.headers.update(WELL_BEHAVED)
        siren = (await http.post("/siren", json=4000)).raise_for_status().json()["id"]
        await http.post("/steps", json=1)
        page = (await http.get("/jobs?limit=1")).raise_for_status().json()
    yield Target(server.port, siren, page["next"], tls=server.url.startswith("https"))
    async with server.http() as http:
        http.headers.update(WELL_BEHAVED)
        (await http.post(f"/jobs/{siren}/cancel")).raise_for_status()


async def until_no_job_is_left(server: Server) -> None:
    """Whoever submitted it."""
    with trio.fail_after(60):
        while await end_all_jobs(server):
            pass


async def end_all_jobs(server: Server) -> bool:
    """Cancel what lives and remove what has ended; whether there was anything."""
    async with server.http() as http, trio.open_nursery() as nursery:
        http.headers.update(WELL_BEHAVED)
        jobs = (await http.get("/jobs?limit=200")).raise_for_status().json()["jobs"]
        turn = trio.CapacityLimiter(8)

        async def end(job: dict[str, Any]) -> None:
            async with turn:
                if job["status"] in ENDED:
                    await http.delete(f"/jobs/{job['id']}?purge=true")
                elif not job["cancelRequested"]:
                    await http.post(f"/jobs/{job['id']}/cancel")

        for job in jobs:
            nursery.start_soon(end, job)
        return bool(jobs)


async def attacked(
    server: Server, horde: Horde, clients: WellBehaved, watch: Watch, fresh: Vitals, seconds: float
) -> Vitals:
    """The horde on the server for so long, with everybody else at work; then the silence, although some have not gone. What is left."""
    async with trio.open_nursery() as outer:
        outer.start_soon(watch.go_on)
        async with followed(server) as target:
            enough = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(clients.go_on, enough)
                await horde.rage(target, seconds=seconds, at_once=AT_ONCE)
                outer.start_soon(horde.cling, target, LIMPETS)
                enough.set()
            worst = await vitals(server)
        await until_no_job_is_left(server)
        print(clients.report(), dict(horde.counts), dict(horde.statuses), sep="\n", flush=True)
        silence = await until_quiet(server, fresh, seconds=QUIET_SECONDS)
        print(silence.grown(fresh), flush=True)
        print(
            f"late by: the server {worst.late_seconds:.2f} s, of which it worked {worst.processor_seconds:.2f} s;",
            end=" ",
        )
        print(f"this process {watch.most_late_seconds:.2f} s", flush=True)
        assert worst.processor_seconds < MOST_WORK_SECONDS, "a client can keep the server from everybody else's work"
        outer.cancel_scope.cancel()
    watch.look()
    return silence


@asynccontextmanager
async def explained(horde: Horde, watch: Watch, path: Path) -> AsyncIterator[None]:
    """Any failure says how to repeat it, and first of all that the server is gone if it is."""
    began = time.monotonic()
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever it is, it is told with its seed
        horde.write(path)
        await trio.sleep(0.5)
        try:
            watch.look()
            first = first_of(error)
            what = str(first) if isinstance(first, AssertionError) else "".join(traceback.format_exception(first))
        except AssertionError as seen:
            what = str(seen)
        raise AssertionError(
            f"CALLBOARD_FUZZ_SEED={horde.seed}, after {time.monotonic() - began:.1f} s and {horde.counts.total()} attacks "
            f"(this process itself was late by {watch.most_late_seconds:.1f} s at most); "
            f"the last of them, byte by byte: {path}\n{what}"
        ) from None


def first_of(error: BaseException) -> BaseException:
    """What began it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def idle_cpu(server: Server, *, seconds: float) -> float:
    """The share of a processor that it takes while nobody asks for anything."""
    before = cpu_seconds(server)
    await trio.sleep(seconds)
    return (cpu_seconds(server) - before) / seconds


async def survive(site: Site, server: Server, seconds: float, rounds: int) -> None:
    """``rounds`` equal attacks that take ``seconds`` together."""
    horde = Horde([*HTTP_ATTACKS, *WEBSOCKET_ATTACKS], seed())
    clients, watch = WellBehaved(server), Watch(server)
    async with explained(horde, watch, site.folder / "attacks.txt"):
        async with followed(server):
            await clients.each_once()
        await until_no_job_is_left(server)
        fresh = await until_quiet(server, None, seconds=QUIET_SECONDS)
        silences: list[Vitals] = []
        for _ in range(rounds):
            silences.append(await attacked(server, horde, clients, watch, fresh, seconds / rounds))
        assert await idle_cpu(server, seconds=2) < 0.2, "it is busy with nothing"
        half = silences[(rounds - 1) // 2]
        growth = silences[-1].grown(half)
        assert silences[-1].resident_bytes - half.resident_bytes < MOST_GROWTH_BYTES, growth
        assert silences[-1].objects.total() - half.objects.total() < MOST_NEW_OBJECTS, growth
        assert "500" not in horde.statuses, "a client's fault was taken for one of the server's"
        assert horde.statuses.keys() >= {"101", "200", "202", "400", "404"}, f"nothing came through: {horde.statuses}"
        await stop_among_stubborn_clients(server, horde, watch)


async def stop_among_stubborn_clients(server: Server, horde: Horde, watch: Watch) -> None:
    """SIGTERM while clients are there that do not read, do not speak, or do not stop. They are all that there is to wait for."""
    async with trio.open_nursery() as nursery:
        async with followed(server) as target:
            nursery.start_soon(horde.cling, target, LIMPETS)
            nursery.start_soon(partial(horde.rage, target, seconds=100, at_once=AT_ONCE // 2))
            await trio.sleep(1.5)
        began = trio.current_time()
        watch.may_end = True
        server.terminate()
        code = await server.ended(seconds=DRAIN_SECONDS + 20)
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    print(f"it ended in {took:.1f} s", flush=True)
    assert code == 0, server.output()[-3000:]
    # What the watchdog has to end is logged as critical.
    watch.look()


async def test_a_minute(site: Site) -> None:
    await survive(site, await start(site, site.sqlite), 24, 2)


async def test_the_end_among_clients_whose_time_has_not_come(site: Site) -> None:
    """No limit of the server's cuts them off before it ends: it has to do that itself."""
    limits = dict.fromkeys(LIMITS, 100.0)
    server = await start(site, "memory://", **limits)
    horde, watch = Horde([*HTTP_ATTACKS, *WEBSOCKET_ATTACKS], seed()), Watch(server)
    async with explained(horde, watch, site.folder / "attacks.txt"):
        await stop_among_stubborn_clients(server, horde, watch)


@pytest.mark.soak
@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_an_hour(site: Site, store: str) -> None:
    server = await start(site, "memory://" if store == "memory" else site.sqlite)
    await survive(site, server, SOAK_SECONDS / 2, 8)


async def test_over_tls(site: Site) -> None:
    """The same for a few seconds, by clients of whom some do not speak TLS."""
    server = await start(
        site, "memory://", certfile=str(CERTIFICATES / "server.pem"), keyfile=str(CERTIFICATES / "server.key")
    )
    await survive(site, server, 5, 1)


async def test_more_clients_than_there_is_room_for(site: Site) -> None:
    """They are answered or told to come again, none is left hanging; and when they have gone there is room as before."""
    room, crowd = 20, 150
    server = await start(site, "memory://", max_connections=room)
    clients, watch = WellBehaved(server), Watch(server)
    horde = Horde([guests], seed())
    async with explained(horde, watch, site.folder / "attacks.txt"):
        async with followed(server):
            await clients.each_once()
        await until_no_job_is_left(server)
        fresh = await until_quiet(server, None, seconds=QUIET_SECONDS)
        target = Target(server.port, "x", "x")
        most = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.go_on)

            async def count() -> None:
                nonlocal most
                while True:
                    most = max(most, descriptors(server.pid)["socket:[N]"] - fresh.descriptors["socket:[N]"])
                    await trio.sleep(0.05)

            nursery.start_soon(count)
            await horde.rage(target, seconds=4, at_once=crowd)
            nursery.cancel_scope.cancel()
        assert room <= most < crowd * 2 / 3, f"{most} connections at once, {horde.statuses}"
        assert horde.statuses["200"] > room, horde.statuses
        assert horde.statuses["503"] > room, horde.statuses
        assert horde.statuses.keys() == {"200", "503"}, horde.statuses
        await until_quiet(server, fresh, seconds=QUIET_SECONDS)
        async with followed(server):
            await clients.each_once()
        watch.look()


async def guests(attacker: Attacker) -> None:
    """One request, and a while at the table."""
    wire = await attacker.connect()
    await wire.send(request("GET", "/plain"))
    await wire.read(attacker.rng.random())
    await trio.sleep(attacker.rng.choice([0, 0.5]))
    await wire.leave()
