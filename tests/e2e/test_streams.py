"""Many streams at once, and clients that behave badly: nobody loses an event, and nobody pays for another's slowness."""

import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import trio
from tests.e2e.harness import Document, Fold, Server, Site, document, post, until, until_ended

from callboard.web.ending import MARGIN_SECONDS

pytestmark = pytest.mark.e2e

CLIENTS = 200

TICKS = 24

STREAMING = {"max_concurrent_jobs": 250, "progress_interval_seconds": 0.02}

MEGABYTE = 2**20


class Client:
    """One follower of one job. Which of the four ways it takes is drawn; each checks every frame."""

    def __init__(self, server: Server, job_id: str, random: random.Random) -> None:
        self.fold = Fold()
        self.resumes = 0
        self.compared = 0
        """How many documents that GET answered in between were at the ``seq`` of a frame; each was equal to what is folded."""
        self.saw_all = False
        """It asked for the events from the first one on."""
        self._server = server
        self._job_id = job_id
        self._random = random

    async def run(self, http: httpx.AsyncClient) -> None:
        """Follow the job to its end, and compare."""
        answered: list[Document] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_in_between, http, answered)
            await self._follow()
            nursery.cancel_scope.cancel()
        for job in answered:
            if job["seq"] in self.fold.by_seq:
                assert self.fold.by_seq[job["seq"]] == job
                self.compared += 1
        assert self.fold.ends == 1
        assert self.fold.document == await document(http, self._job_id)

    async def _follow(self) -> None:
        draw = self._random
        await trio.sleep(draw.uniform(0, 3))
        way = draw.choice(["steady", "stalls", "leaves", "from the start"])
        if way == "from the start":
            # Not from a snapshot: the events alone make the document.
            self.fold.seq = 0
        self.saw_all = way == "from the start"
        while not self.fold.ended:
            frames = draw.randrange(1, 12) if way == "leaves" else float("inf")
            async with self._server.stream(self._job_id, after=self.fold.seq) as stream:
                await self.fold.follow(stream, frames=frames, pause=self._pause if way == "stalls" else float)
            if not self.fold.ended:
                self.resumes += 1
                await trio.sleep(draw.choice([0, 0.05, 0.5]))
        # A resume after the end says nothing more, and says so in good order.
        async with self._server.stream(self._job_id, after=self.fold.seq) as stream:
            await self.fold.follow(stream)

    async def _ask_in_between(self, http: httpx.AsyncClient, answered: list[Document]) -> None:
        while True:
            await trio.sleep(self._random.uniform(0.5, 2))
            answered.append(await document(http, self._job_id))

    def _pause(self) -> float:
        return self._random.choice([0, 0, 0, 0.7])


@pytest.mark.parametrize(
    ("store", "history"),
    [
        pytest.param("memory://", 1000, id="memory"),
        pytest.param(None, 1000, id="sqlite"),
        pytest.param(None, 8, id="sqlite, eight events kept"),
    ],
)
async def test_200_jobs_and_200_clients(site: Site, store: str | None, history: int) -> None:
    source = random.Random(5)
    server = await site.start(store=store, max_events_per_job=history, **STREAMING)
    clients: list[Client] = []
    async with server.http() as http:
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                kind = source.choices(["ticking", "refused", "flaky"], [8, 1, 1])[0]
                job_id = (await post(http, kind, ticks=TICKS, interval=0.15, seconds=2))["id"]
                clients.append(Client(server, job_id, random.Random(source.random())))
                nursery.start_soon(clients[-1].run, http)
    assert [client.fold.ends for client in clients] == [1] * CLIENTS
    assert sum(client.resumes for client in clients) > CLIENTS / 4
    assert sum(client.compared for client in clients) > CLIENTS / 2
    for client in clients:
        if client.saw_all and not client.fold.gaps and client.fold.document["name"] == "ticking":
            assert client.fold.logs == [f"log at {tick}" for tick in range(TICKS) if tick % 5 == 2]
    gaps = sum(client.fold.gaps for client in clients)
    assert gaps == 0 if history == 1000 else gaps > CLIENTS / 20, gaps
    site.check_output()


@contextmanager
def never_reading(server: Server, job_id: str) -> Iterator[socket.socket]:
    """A client that opens the stream and then reads nothing at all; its system takes a few kilobytes for it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", server.port))
        lines = [
            f"GET /jobs/{job_id}/stream HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.recv(12) == b"HTTP/1.1 101"
        yield connection


@pytest.mark.parametrize("store", ["memory://", None], ids=["memory", "sqlite"])
async def test_clients_that_never_read(site: Site, store: str | None) -> None:
    """They cost bounded memory, slow neither the job nor other clients, and do not keep the server from ending."""
    jobs, deaf_per_job, drain_seconds = 6, 8, 3
    noise = {"rounds": 100, "lines": 15, "size": 10_000, "interval": 0.05}
    told_bytes = jobs * noise["rounds"] * noise["lines"] * noise["size"]
    assert told_bytes > 80 * MEGABYTE, "too little for a server that keeps it to be seen"
    settings: dict[str, Any] = {
        "drain_seconds": drain_seconds,
        "max_lost_leases": 0,
        "max_events_per_job": 100,
        "max_subscriber_events": 64,
        **STREAMING,
    }
    server = await site.start(store=store, **settings)
    async with server.http() as http:

        async def follow(job_id: str, fold: Fold, *, stall_seconds: float = 0) -> None:
            async with server.stream(job_id) as stream:
                await fold.follow(stream, frames=1)
                await trio.sleep(stall_seconds)
                await fold.follow(stream)

        async def make_noise(stack: ExitStack, deaf: int) -> tuple[float, int]:
            """Run the noisy jobs with so many deaf clients each: how long they take, and the most memory in between."""
            began, most = time.monotonic(), 0
            ids = [(await post(http, "noisy", **noise))["id"] for _ in range(jobs)]
            folds = [Fold() for _ in ids]
            stalled = Fold()
            async with trio.open_nursery() as nursery:
                for job_id, fold in zip(ids, folds, strict=True):
                    nursery.start_soon(follow, job_id, fold)
                    for _ in range(deaf):
                        stack.enter_context(never_reading(server, job_id))
                nursery.start_soon(lambda: follow(ids[0], stalled, stall_seconds=4))
                while not all(fold.ended for fold in folds):
                    most = max(most, server.resident_bytes())
                    await trio.sleep(0.05)
                took = time.monotonic() - began
            for job_id, fold in zip([*ids, ids[0]], [*folds, stalled], strict=True):
                assert fold.document == await document(http, job_id)
                assert fold.document["result"] == {"rounds": noise["rounds"]}
            return took, max(most, server.resident_bytes())

        with ExitStack() as stack:
            alone_seconds, before = await make_noise(stack, deaf=0)
            seconds, after = await make_noise(stack, deaf=deaf_per_job)
            # 64 events for each client and what the allocator keeps: far less than all, which is what no bound would cost.
            assert after - before < told_bytes * 0.75, (before, after)
            assert seconds < 2 * alone_seconds + 2, (alone_seconds, seconds)

            interrupted = (await post(http, "second"))["id"]
            await until(lambda: bool(site.journal.starts(interrupted)), "the job runs")
            site.check_output()
            terminated = time.monotonic()
            server.terminate()
            assert await server.ended() == 0
            assert time.monotonic() - terminated < drain_seconds + MARGIN_SECONDS + 0.75
    assert len(site.journal.lines("end", job=interrupted)) == 1
    if store is None:
        again = await site.start(**settings)
        async with again.http() as http:
            # Handed back before the process was ended by force: its lease was not lost, which would have been once too often.
            job = await until_ended(http, interrupted)
            assert (job["status"], job["attempt"]) == ("Completed", 2)
