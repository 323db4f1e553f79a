"""Real servers in processes of their own, and what the tests look at: their journal, their file, their answers, their streams.

``Site`` starts and kills servers that share a folder, ``Journal`` reads what their attempts wrote, ``Fold`` checks a stream and folds it
into a document, ``check_file`` looks whether a database is whole. Waiting is always for a condition, with a deadline.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import trio
from msgspec import Struct
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from callboard.runtime.core.codec import decode_job

__all__ = [
    "APP",
    "ENDED",
    "SILENCE_SECONDS",
    "START_SECONDS",
    "TAKEOVER_SECONDS",
    "Document",
    "Fold",
    "Journal",
    "Line",
    "Load",
    "Server",
    "Site",
    "all_jobs",
    "check_end",
    "check_file",
    "check_records",
    "document",
    "held_lock",
    "post",
    "until",
    "until_ended",
    "until_idle",
]

APP: Final = Path(__file__).with_name("app.py")

START_SECONDS: Final = 40
"""A server on a busy machine needs so long at most until it listens."""

TAKEOVER_SECONDS: Final = 3.0
"""From a dead process to its jobs running elsewhere: the operating system knows who is dead, so no lease of 30 s is waited for.
It takes a quarter of a second; the rest is for a busy machine.
"""

SILENCE_SECONDS: Final = 30
"""No job of these tests says nothing for so long."""

ENDED: Final = frozenset({"Completed", "Failed", "Canceled"})

RECORD: Final = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:)", re.MULTILINE)
"""Where a record of the servers' log begins."""

Document = dict[str, Any]


async def until(condition: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
    """Wait for ``condition``; an AssertionError that names ``what`` when it does not come true."""
    deadline = trio.current_time() + seconds
    while not condition():
        assert trio.current_time() < deadline, f"not within {seconds} s: {what}"
        await trio.sleep(0.01)


# Processes


class Server:
    """One server process in a group of its own; ``url`` once it listens."""

    def __init__(self, command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.url = ""
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def output(self) -> str:
        """All that it wrote so far."""
        return self.log.read_text(errors="replace")

    async def listening(self, prefix: str = "callboard: serving on ") -> None:
        """Wait until it has printed its URL."""

        def found() -> bool:
            assert self.exit_code is None, f"the server ended with {self.exit_code}:\n{self.output()}"
            self.url = next(
                (line.split(prefix)[1].split()[0] for line in self.output().splitlines() if prefix in line), ""
            )
            return bool(self.url)

        await until(found, "the server listens", seconds=START_SECONDS)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, *, seconds: float = 30) -> int:
        """Wait for the end of the process; its exit code."""
        await until(lambda: self.exit_code is not None, f"the server ends:\n{self.output()}", seconds=seconds)
        assert self.exit_code is not None
        return self.exit_code

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @asynccontextmanager
    async def http(self, *, timeout: float = 60) -> AsyncIterator[httpx.AsyncClient]:
        """A client of this server."""
        unlimited = httpx.Limits(max_connections=None)
        # Reading the certificates, which no one needs here, is what costs most.
        client = httpx.AsyncClient(base_url=self.url, timeout=timeout, limits=unlimited, verify=False, trust_env=False)
        async with client:
            yield client

    @asynccontextmanager
    async def stream(self, job_id: str, after: int | None = None) -> AsyncIterator[WebSocketConnection]:
        """The websocket of one job."""
        query = "" if after is None else f"?after={after}"
        path = f"/jobs/{job_id}/stream{query}"
        # The stream is ours because trio-websocket does not close its own when the server has closed first.
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream, trio.open_nursery() as nursery:
            socket = await wrap_client_stream(nursery, stream, "127.0.0.1", path, max_message_size=2**24)
            yield socket
            with trio.move_on_after(5):
                await socket.aclose()
            nursery.cancel_scope.cancel()

    def resident_bytes(self) -> int:
        """The memory that the process has now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


class Site:
    """A folder with one database, one journal, and the servers that use them. Kills what is left when the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "jobs.db"
        self.journal = Journal(folder / "journal")
        self.killed: dict[int, float] = {}
        """pid -> when SIGKILL was sent; what it ran had ended then."""
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for server in self._servers:
            try:
                os.killpg(server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            server.process.wait(30)

    @property
    def sqlite(self) -> str:
        return f"sqlite:///{self.database}"

    def launch(self, *, store: str | None = None, **config: Any) -> Server:
        """Start ``callboard serve`` and do not wait for it. ``config`` is of ``Config``; its ``environment`` may name the store."""
        arguments = [f"{APP}:app", "--bind", "127.0.0.1:0"]
        if "CALLBOARD_STORE" not in config.get("environment", {}):
            arguments += ["--store", store or self.sqlite]
        return self.run([sys.executable, "-m", "callboard.web.cli", "serve", *arguments], **config)

    def run(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, **config: Any) -> Server:
        """Start any command with the environment of the app."""
        settings = {"E2E_CONFIG": json.dumps(config), "E2E_JOURNAL": str(self.journal.path), **(environment or {})}
        server = Server(command, self.folder / f"server-{len(self._servers)}.log", self.folder, settings)
        self._servers.append(server)
        return server

    async def start(self, *, store: str | None = None, **config: Any) -> Server:
        """Start ``callboard serve`` and wait until it listens."""
        server = self.launch(store=store, **config)
        await server.listening()
        return server

    def kill(self, server: Server) -> None:
        """kill -9, and wait until the process is gone."""
        self.killed[server.pid] = time.monotonic()
        server.process.kill()
        server.process.wait(30)

    def check_output(self) -> None:
        """No server of this site has logged a bug. (A job that fails is logged too; that is none.)"""
        for server in self._servers:
            for record in RECORD.split(server.output()):
                is_bug = any(word in record for word in ("Traceback", " ERROR ", " CRITICAL "))
                assert " callboard.jobs: " in record or not is_bug, record


# What the attempts wrote


class Line(Struct, frozen=True):
    """One line of the journal."""

    job: str
    name: str
    attempt: int
    pid: int
    what: str
    at: float
    wall: float


class Journal:
    """What the handlers of all processes wrote, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        self._lines: list[Line] = []

    def lines(self, what: str | None = None, *, job: str | None = None) -> list[Line]:
        """Those lines; all without arguments."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read_bytes += len(whole) + len(newline)
            self._lines += [Line(**json.loads(text)) for text in whole.splitlines()]
        return [line for line in self._lines if what in (None, line.what) and job in (None, line.job)]

    def starts(self, job: str | None = None) -> list[Line]:
        """The starts of attempts."""
        return self.lines("start", job=job)

    def running_in(self, pid: int) -> set[str]:
        """The jobs whose attempts in that process have started and not ended."""
        running: set[str] = set()
        for line in self.lines():
            if line.pid == pid and line.what == "start":
                running.add(line.job)
            elif line.pid == pid and line.what == "end":
                running.discard(line.job)
        return running

    def check_no_overlap(self, killed: Mapping[int, float]) -> None:
        """No job had two attempts at once, and no attempt was started twice. An attempt without an end must have been killed."""
        attempts: dict[str, dict[int, list[float]]] = defaultdict(dict)
        for line in self.lines():
            if line.what == "start":
                assert line.attempt not in attempts[line.job], f"attempt {line.attempt} of {line.job} started twice"
                attempts[line.job][line.attempt] = [line.at, killed.get(line.pid, float("inf"))]
            elif line.what == "end":
                attempts[line.job][line.attempt][1] = line.at
        for job, by_number in attempts.items():
            spans = [by_number[number] for number in sorted(by_number)]
            for earlier, later in pairwise(spans):
                assert earlier[1] <= later[0], f"two attempts of {job} at once: {spans}"


# The file


def check_file(database: Path, scratch: Path) -> None:
    """The database is whole: SQLite says so, its counts are right, and the records and their events fit together.

    Looks at a copy with its write-ahead log, because looking at the file itself would do the recovery that the server has to do.
    Only while no process writes to it.
    """
    if not database.exists():
        return
    copy = scratch / f"copy-{uuid.uuid4().hex}.db"
    for suffix in ("", "-wal"):
        if database.with_name(database.name + suffix).exists():
            shutil.copyfile(database.with_name(database.name + suffix), copy.with_name(copy.name + suffix))
    check_records(copy)
    for path in scratch.glob(f"{copy.name}*"):
        path.unlink()


def check_records(database: Path) -> None:
    """The same for a database that processes may be using."""
    connection = sqlite3.connect(database, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'job'").fetchone() == (0,):
            return  # killed before it was laid out
        counted = "SELECT queue, status, count(*) FROM job GROUP BY queue, status ORDER BY 1, 2"
        kept = "SELECT queue, status, n FROM tally WHERE n > 0 ORDER BY 1, 2"
        assert connection.execute(counted).fetchall() == connection.execute(kept).fetchall()
        newest = "SELECT record, (SELECT max(seq) FROM event WHERE event.serial = job.serial) FROM job"
        for record, seq in connection.execute(newest):
            job = decode_job(record)
            assert job.seq == seq, f"{job.id} is at {job.seq}, its events at {seq}"
            ended = job.attempt - (job.status == "InProgress")
            numbers = "SELECT number FROM attempt WHERE serial = ? ORDER BY number"
            told = [number for (number,) in connection.execute(numbers, (job.serial,))]
            # 100 are kept unless a test says otherwise, and none does.
            assert told == list(range(max(1, ended - 99), ended + 1)), f"{job.id} at {job.attempt} has attempts {told}"
    finally:
        connection.close()


@contextmanager
def held_lock(database: Path) -> Iterator[None]:
    """Keep everybody from writing to the database."""
    connection = sqlite3.connect(database, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


# Requests


async def post(http: httpx.AsyncClient, kind: str, **body: Any) -> Document:
    """Submit a job that has to be accepted; its document."""
    answer = await http.post(f"/run/{kind}", json=body)
    assert answer.status_code == 202, answer.text
    job: Document = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    return job


async def document(http: httpx.AsyncClient, job_id: str) -> Document:
    """What GET answers."""
    answer = await http.get(f"/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: Document = answer.json()
    return job


async def until_ended(http: httpx.AsyncClient, job_id: str, *, seconds: float = 30) -> Document:
    """Wait for the end of a job by long polls; its document."""
    deadline = trio.current_time() + seconds
    while True:
        answer = await http.get(f"/jobs/{job_id}?wait=5")
        assert answer.status_code == 200, answer.text
        job: Document = answer.json()
        if job["status"] in ENDED:
            return job
        assert trio.current_time() < deadline, f"not ended within {seconds} s: {job}"


async def until_idle(http: httpx.AsyncClient, *, seconds: float = 60) -> None:
    """Wait until no job is alive."""
    deadline = trio.current_time() + seconds
    while True:
        answer = await http.get("/jobs?status=Queued&status=Scheduled&status=InProgress&limit=200")
        living = answer.raise_for_status().json()["jobs"]
        if not living:
            return
        assert trio.current_time() < deadline, f"{len(living)} jobs still live after {seconds} s: {living[:3]}"
        await trio.sleep(0.1)


async def all_jobs(http: httpx.AsyncClient) -> dict[str, Document]:
    """Every job that the server lists."""
    jobs: dict[str, Document] = {}
    cursor: str | None = None
    while True:
        parameters = {"limit": "200"} if cursor is None else {"limit": "200", "cursor": cursor}
        page = (await http.get("/jobs", params=parameters)).raise_for_status().json()
        for job in page["jobs"]:
            assert job["id"] not in jobs, "a page repeats a job"
            jobs[job["id"]] = job
        cursor = page["next"]
        if cursor is None:
            return jobs


class Load:
    """Clients that submit with ids of their own and ask again until they are answered, whatever happens to the server."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        """Where to ask now, in turn."""
        self._turn = 0
        self.accepted: dict[str, tuple[str, Document]] = {}
        """Job id -> kind and body of what got an answer that promises it."""
        self.canceled: set[str] = set()
        """Jobs whose cancel got an answer that promises it."""
        self.stopping = False
        self.errors = 0
        """How often no answer came: that there were some shows that the kills hit."""
        self.refusals = 0
        """How often the answer was 503."""
        self.accepted_at: dict[str, float] = {}
        """Job id -> when that answer came, by the clock of the journal."""

    async def submit(self, kind: str, body: Document, job_id: str) -> None:
        """Until there is a 202 (or a 200: it has ended by now)."""
        answer = await self._ask(f"/run/{kind}", json=body, headers={"X-Async-Request-Id": job_id})
        assert answer.status_code in (200, 202), answer.text
        assert answer.json()["id"] == job_id
        self.accepted[job_id] = (kind, body)
        self.accepted_at[job_id] = time.monotonic()

    async def cancel(self, job_id: str) -> None:
        """Until the cancel is accepted."""
        answer = await self._ask(f"/jobs/{job_id}/cancel")
        assert answer.status_code in (200, 202), answer.text
        self.canceled.add(job_id)

    async def _ask(self, path: str, **options: Any) -> httpx.Response:
        while True:
            while not self.servers:  # noqa: ASYNC110  simple enough for a test
                await trio.sleep(0.01)
            self._turn += 1
            server = self.servers[self._turn % len(self.servers)]
            try:
                async with server.http(timeout=10) as http:
                    answer = await http.post(path, **options)
            except httpx.TransportError:
                self.errors += 1
                await trio.sleep(0.01)
                continue
            if answer.status_code != 503:
                return answer
            self.refusals += 1
            assert int(answer.headers["retry-after"]) > 0
            await trio.sleep(0.05)


def check_end(job: Document, kind: str, body: Document) -> None:
    """The job of a ``Load`` ended as its kind has to."""
    match kind:
        case "quick":
            assert job["status"] == "Completed", job
            assert job["result"] == {"value": body["value"], "attempt": job["attempt"]}
            assert job["retryCount"] == 0
        case "flaky":
            assert job["status"] == "Completed", job
            assert job["result"] == {"value": body["value"], "attempt": job["attempt"]}
            assert job["retryCount"] in (0, 1)
            assert job["error"] is None
        case "refused":
            assert job["status"] == "Failed", job
            assert job["error"] == {
                "code": "E2E_REFUSED",
                "message": "as expected",
                "type": "JobFailed",
                "retryable": False,
            }
        case "endless":
            assert job["status"] == "Canceled", job
            assert not job["cancelRequested"]


# Streams


class Fold:
    """Takes the frames of one job's streams, over as many connections as it took; checks their chain and folds them."""

    def __init__(self) -> None:
        self.document: Document = {}
        self.by_seq: dict[int, Document] = {}
        """The document after each frame."""
        self.seq: int | None = None
        """Of the last frame; what to resume after."""
        self.ends = 0
        """How often the end was told."""
        self.gaps = 0
        self.frames = 0
        self.logs: list[str] = []

    @property
    def ended(self) -> bool:
        return self.ends > 0

    def take(self, text: str | bytes) -> None:
        """The next frame."""
        frame = json.loads(text)
        self.frames += 1
        if frame["type"] == "snapshot":
            assert frame["gap"] is (self.seq is not None), f"a snapshot that has no reason: {self.seq} {frame}"
            self.gaps += frame["gap"]
            self.document = frame["job"]
        else:
            assert frame["since"] == self.seq, f"the chain breaks at {self.seq}: {frame}"
            assert frame["seq"] == frame["since"] + 1 or (frame["type"] == "progress" and frame["seq"] > frame["since"])
            self.document = {**self.document, **frame["job"]}
            if frame["type"] == "log":
                self.logs.append(frame["message"])
        self.seq = frame["seq"]
        assert self.document["seq"] == frame["seq"]
        assert frame["at"] == self.document["lastUpdatedAt"]
        self.by_seq[frame["seq"]] = self.document
        if self.document["status"] in ENDED:
            self.ends += 1
            assert self.ends == 1, f"the end is told again: {frame}"

    async def follow(
        self, socket: WebSocketConnection, *, frames: float = float("inf"), pause: Callable[[], float] = lambda: 0
    ) -> None:
        """Read until the server closes, which it may do after the end only and in good order; or until ``frames`` have come."""
        while frames > 0:
            try:
                with trio.fail_after(SILENCE_SECONDS):
                    frame = await socket.get_message()
                self.take(frame)
            except ConnectionClosed as closed:
                assert closed.reason is not None
                assert closed.reason.code == 1000, closed.reason
                assert self.ended, "the server closed before the end"
                return
            frames -= 1
            await trio.sleep(pause())
