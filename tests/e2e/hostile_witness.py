"""What hostile clients must not change: that others are answered, what the server holds, and what its log says.

``WellBehaved`` are clients that ask in good order and must be answered each time. ``Watch`` looks at the process while it is attacked and
fails as soon as it is gone or has logged a bug. ``Vitals`` are what has to be back where it was when the attackers have gone.
"""

import os
import re
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import trio
from tests.e2e.harness import Fold, Server, until_ended
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection, wrap_client_stream
from wsproto.utilities import LocalProtocolError

__all__ = ["WELL_BEHAVED", "Vitals", "Watch", "WellBehaved", "cpu_seconds", "descriptors", "until_quiet", "vitals"]

ANSWER_SECONDS: Final = 30.0
"""Any round of a well-behaved client is over by then, on a machine that is busy with attackers."""
WELL_BEHAVED: Final = {"X-Well-Behaved": "yes"}
STEPS: Final = 5

_BUG: Final = re.compile(
    r"Traceback|\[?\b(ERROR|CRITICAL)\b|Exception ignored|was never awaited|ResourceWarning|RuntimeWarning|TrioInternalError"
)


class WellBehaved:
    """Clients that do nothing wrong. Each round is a connection of its own; the first that goes wrong raises."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._rounds = [self.poll, self.follow_by_events, self.look_around]
        if not server.url.startswith("https"):
            self._rounds += [self.follow_by_websocket, self.echo]
        self.seconds: dict[str, list[float]] = {}
        """How long the rounds took, by what was done."""

    async def go_on(self, until: trio.Event, *, pause_seconds: float = 0.05) -> None:
        """All of them, again and again until the event; what has begun then is finished."""

        async def again_and_again(one: Callable[[], Awaitable[None]]) -> None:
            while not until.is_set():
                await self._round(one)
                await trio.sleep(pause_seconds)

        async with trio.open_nursery() as nursery:
            for one in self._rounds:
                nursery.start_soon(again_and_again, one)

    async def each_once(self) -> None:
        """One round of each."""
        for one in self._rounds:
            await self._round(one)

    def report(self) -> str:
        """How many rounds, and how long they took."""
        return ", ".join(
            f"{name}: {len(took)} (p50 {statistics.median(took):.3f} s, max {max(took):.3f} s)"
            for name, took in self.seconds.items()
        )

    def _http(self) -> httpx.AsyncClient:
        """A client that knows, as proxies do, how long the server keeps a connection, and gives it up sooner."""
        limits = httpx.Limits(max_connections=None, keepalive_expiry=1)
        url, seconds = self.server.url, ANSWER_SECONDS
        return httpx.AsyncClient(base_url=url, timeout=seconds, limits=limits, verify=False, trust_env=False)

    async def poll(self) -> None:
        """Submit, and wait for the end by long polls."""
        async with self._http() as http:
            job = await self.submit(http, STEPS)
            ended = await until_ended(http, job, seconds=ANSWER_SECONDS)
            assert (ended["status"], ended["result"]) == ("Completed", STEPS), ended

    async def follow_by_websocket(self) -> None:
        """Submit, and follow to the end."""
        async with self._http() as http:
            job = await self.submit(http, STEPS)
        fold = Fold()
        async with self.server.stream(job) as socket:
            await fold.follow(socket)
        assert fold.document["status"] == "Completed", fold.document

    async def follow_by_events(self) -> None:
        """The same as an event stream."""
        fold = Fold()
        async with self._http() as http:
            job = await self.submit(http, STEPS)
            async with http.stream("GET", f"/jobs/{job}/events") as answer:
                assert answer.status_code == 200, answer.status_code
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        fold.take(line.removeprefix("data:"))
        assert fold.ended, "the stream ended before the job"
        assert fold.document["status"] == "Completed", fold.document

    async def look_around(self) -> None:
        """List, readiness, and the app's own routes."""
        async with self._http() as http:
            page = await http.get("/jobs?limit=10&name=Siren")
            assert page.status_code == 200, page.text
            assert page.json()["jobs"], page.text
            for path in ("/jobs/health/live", "/jobs/health/ready"):
                assert (await http.get(path)).status_code == 200, path
            assert (await http.get("/plain")).text == "plain"
            assert (await http.post("/upload", content=b"u" * 5000)).json() == {"bytes": 5000}

    async def echo(self) -> None:
        """The app's own websocket."""
        is_through = False
        try:
            async with self._connected("/echo") as socket:
                for number in range(3):
                    await socket.send_message(f"message {number}")
                    assert await socket.get_message() == f"message {number}"
                is_through = True
                await socket.aclose()
        except* LocalProtocolError:
            # trio-websocket fails over a ping that comes after it has begun to close.
            assert is_through

    @asynccontextmanager
    async def _connected(self, path: str) -> AsyncIterator[WebSocketConnection]:
        async with await trio.open_tcp_stream("127.0.0.1", self.server.port) as stream, trio.open_nursery() as nursery:
            yield await wrap_client_stream(nursery, stream, "127.0.0.1", path)
            nursery.cancel_scope.cancel()

    async def submit(self, http: httpx.AsyncClient, steps: int) -> str:
        """A job that has to be accepted; its id."""
        answer = await http.post("/steps", json=steps)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    async def _round(self, one: Callable[[], Awaitable[None]]) -> None:
        name = getattr(one, "__name__", "?")
        began = trio.current_time()
        try:
            with trio.fail_after(ANSWER_SECONDS):
                await one()
        except (AssertionError, *_UNANSWERED) as error:
            after = trio.current_time() - began
            raise AssertionError(
                f"a well-behaved client ({name}) was let down after {after:.1f} s: {error!r}"
            ) from error
        except ExceptionGroup as group:
            raise AssertionError(f"a well-behaved client ({name}) was let down: {group.exceptions!r}") from group
        self.seconds.setdefault(name, []).append(trio.current_time() - began)


_UNANSWERED: Final = (
    *(httpx.HTTPError, OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError),
    *(HandshakeError, ConnectionClosed, ConnectionRejected),
)


class Watch:
    """Looks at the process and its log."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.may_end = False
        self.most_late_seconds = 0.0
        """How long this process did not come round to look: so late are its clients too."""
        self._seen = 0

    async def go_on(self) -> None:
        """Until the process is gone or its log has a bug in it, which raises."""
        while True:
            self.look()
            slept = trio.current_time()
            await trio.sleep(0.2)
            self.most_late_seconds = max(self.most_late_seconds, trio.current_time() - slept - 0.2)

    def look(self) -> None:
        """Raises AssertionError for a process that is gone, or for a bug in what it logged since the last look."""
        with self.server.log.open("rb") as file:
            file.seek(self._seen)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        text = data.decode(errors="replace")
        code = self.server.exit_code
        assert self.may_end or code is None, (
            f"the server is gone, with exit code {code}; its last words:\n{text[-6000:]}"
        )
        found = _BUG.search(text)
        if found:
            start = text.rfind("\n", 0, found.start()) + 1
            raise AssertionError(f"the server's log has a bug in it:\n{text[start : start + 6000]}")
        self._seen += len(data)


@dataclass(frozen=True)
class Vitals:
    """What a process holds."""

    tasks: Counter[str]
    threads: int
    descriptors: Counter[str]
    objects: Counter[str]
    resident_bytes: int
    late_seconds: float
    """How late the event loop came round at worst, since they were last taken."""
    processor_seconds: float
    """What it worked without coming round, at worst."""

    def grown(self, before: "Vitals") -> str:
        """What is more than it was: for people."""
        more = [(count - before.objects[name], name) for name, count in self.objects.items()]
        return (
            f"tasks {dict(self.tasks - before.tasks)}, descriptors {dict(self.descriptors - before.descriptors)}, "
            f"threads {before.threads} -> {self.threads}, "
            f"RSS {before.resident_bytes / 2**20:.1f} -> {self.resident_bytes / 2**20:.1f} MiB, "
            f"objects {sum(before.objects.values())} -> {sum(self.objects.values())}, most: {sorted(more)[:-9:-1]}"
        )


async def vitals(server: Server) -> Vitals:
    """What the process holds while it answers this one request."""
    async with server.http() as http:
        # A first answer, so that what the request itself needs is there.
        told = (await http.get("/measure")).raise_for_status().json()
        tasks, objects = Counter(told["tasks"]), Counter(told["objects"])
        return Vitals(
            tasks,
            told["threads"],
            descriptors(server.pid),
            objects,
            server.resident_bytes(),
            told["seconds"]["late"],
            told["seconds"]["processor"],
        )


async def until_quiet(server: Server, before: Vitals | None, *, seconds: float) -> Vitals:
    """Wait until tasks, threads and descriptors are what they were (or, first of all, stay what they are); what is held then."""
    deadline = trio.current_time() + seconds
    while True:
        now = await vitals(server)
        if before is None:
            await trio.sleep(1)
            before, now = now, await vitals(server)
            if _same(before, now):
                return now
            before = None
        elif _same(before, now):
            return now
        assert trio.current_time() < deadline, (
            f"{seconds} s after the attackers have gone: {now.grown(before) if before else now}"
        )
        await trio.sleep(0.25)


def _same(before: Vitals, now: Vitals) -> bool:
    """Nothing is more. (Fewer is no leak: a thread that nobody needs goes.)"""
    return (
        not now.tasks - before.tasks
        and now.threads <= before.threads
        and now.descriptors.total() <= before.descriptors.total()
    )


def cpu_seconds(server: Server) -> float:
    """Processor time that the process has used."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> Counter[str]:
    """What the process has open, by kind."""
    kinds: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            kinds[re.sub(r"\d+", "N", os.readlink(path))] += 1
        except FileNotFoundError:
            continue
    return kinds
