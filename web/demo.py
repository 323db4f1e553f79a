"""What ``make demo`` shows: a server as a child process, a real job over HTTP, followed live over the websocket.

A client like any other: it knows the wire contract and nothing of the runtime. It owns the child process and a temporary folder,
and leaves nothing of either behind.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from trio_websocket import ConnectionClosed, HandshakeError, open_websocket_url

__all__ = ["DemoFailed", "Server", "ServerDied", "run"]

APP: Final = Path(__file__).resolve().parents[1] / "examples" / "source_survey.py"
START_SECONDS: Final = 30
STOP_SECONDS: Final = 30
"""More than the server's own drain time."""
PLAIN_STEP_PERCENT: Final = 5
"""Without a terminal, a line is printed for each further step."""
_URL = re.compile(r"https?://[\w.\[\]:-]+:\d+")


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


class ServerDied(DemoFailed):
    """The child process ended although nobody asked it to, or not in order."""


class Server:
    """A ``callboard serve`` in a child process, on a port that the system chose."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.url = ""
        self.recent: deque[str] = deque(maxlen=30)
        """The last lines that it wrote."""
        self.echo = False
        """Whether to print further lines."""
        self._has_url = trio.Event()
        self._has_closed = trio.Event()
        self._stopping = False

    async def started(self) -> None:
        """Wait until it answers. Raises DemoFailed if it does not in time."""
        with trio.move_on_after(START_SECONDS):
            await self._has_url.wait()
            async with httpx.AsyncClient(base_url=self.url) as http:
                while (await http.get("/jobs/health/ready")).status_code != 200:  # noqa: ASYNC110  # another process has no Event
                    await trio.sleep(0.05)
            return
        raise DemoFailed("\n".join([f"the server did not answer within {START_SECONDS} s; it wrote:", *self.recent]))

    async def read_output(self) -> None:
        """Take its output for as long as it lives; a full pipe would stop it."""
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))
        self._has_closed.set()

    def _take(self, line: str) -> None:
        self.recent.append(line)
        if self.echo:
            print(line, flush=True)
        found = _URL.search(line)
        if found and not self.url:
            self.url = found[0]
            self._has_url.set()

    async def watch(self) -> None:
        """Raises ServerDied when it ends unasked."""
        code = await self.process.wait()
        if not self._stopping:
            with trio.move_on_after(1):
                await self._has_closed.wait()
            raise ServerDied("\n".join([f"the server ended by itself with code {code}; it wrote:", *self.recent]))

    async def stop(self) -> int:
        """Let it drain and end; its exit code."""
        self._stopping = True
        if self.process.returncode is None:
            self.process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            return await self.process.wait()
        self.process.kill()
        return await self.process.wait()


@asynccontextmanager
async def serving(store: str) -> AsyncIterator[Server]:
    """A server that runs for as long as the block. Raises ServerDied if it ends earlier or not in order."""
    command = [
        sys.executable,
        "-m",
        "callboard.web.cli",
        "serve",
        f"{APP}:app",
        "--bind",
        "127.0.0.1:0",
        "--store",
        store,
    ]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal is for this process, which then asks the server to drain
    )
    server = Server(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read_output)
            nursery.start_soon(server.watch)
            await server.started()
            yield server
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * STOP_SECONDS):
            died = server.process.returncode is not None
            code = await server.stop()
        if code != 0 and not died:
            raise ServerDied(f"the server was asked to stop and ended with code {code}")


async def submit(http: httpx.AsyncClient, console: Console, package: str | None) -> dict[str, Any]:
    """Submit the survey; the job document of the 202."""
    answer = await http.post("/api/survey", json={"package": package})
    answer.raise_for_status()
    job: dict[str, Any] = answer.json()
    location = answer.headers["Location"]
    console.print(f"POST /api/survey -> {answer.status_code}, {job['status']}; Location: {location}", soft_wrap=True)
    return job


async def follow(url: str, job: dict[str, Any], show: "Display") -> dict[str, Any]:
    """Follow the job over its websocket until it has ended; resumes where a lost connection broke off."""
    stream = url.replace("http", "ws", 1) + job["links"]["stream"]
    after = ""
    while True:
        async with open_websocket_url(stream + after) as socket:
            try:
                while True:
                    event = json.loads(await socket.get_message())
                    job = {**job, **event["job"]}
                    show.event(event, job)
            except ConnectionClosed as closed:
                if job["status"] in ("Completed", "Failed", "Canceled"):
                    return job
                show.say(f"the connection was lost ({closed.reason}); resuming after event {job['seq']}")
        after = f"?after={job['seq']}"
        await trio.sleep(0.5)


class Display:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.fields[status]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=100, status="", note="")
        self._next_percent = 0.0

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def event(self, event: dict[str, Any], job: dict[str, Any]) -> None:
        """Show one event of the stream and the document that it leads to."""
        progress = job["progress"] or {"percent": 0, "message": "", "data": None}
        percent, data = progress["percent"] or 0, progress["data"]
        note = f"{data['files']} of {data['of']} files, {data['tokens']:,} tokens" if data else ""
        self._bar.update(self._task, completed=percent, status=job["status"], note=note)
        if event["type"] == "log":
            self.say(f"{event['level']}: {event['message']}")
        elif event["type"] != "progress":
            self.say(f"event {event['seq']}, {event['type']}: {job['status']}")
        elif self._bar.disable and percent >= self._next_percent:
            self._next_percent = percent - percent % PLAIN_STEP_PERCENT + PLAIN_STEP_PERCENT
            self.say(f"event {event['seq']}, progress: {percent:.0f} %, {note}, {progress['message']}")


def print_result(console: Console, job: dict[str, Any]) -> None:
    """The survey as a table, the largest packages and the whole."""
    result = job["result"]
    table = Table(title=f"The standard library of Python {result['python']}", title_justify="left")
    table.add_column("package")
    for heading in ("files", "unparsed", "lines", "tokens"):
        table.add_column(heading, justify="right")
    table.add_column("longest function", overflow="fold")
    rows = [*result["packages"][:10], result["total"]]
    for number, row in enumerate(rows, start=1):
        longest = row["longestFunction"]
        where = f"{longest['name']} ({longest['lines']} lines)" if longest else ""
        counts = (f"{row[heading]:,}" for heading in ("files", "unparsed", "lines", "tokens"))
        table.add_row(row["package"], *counts, where, end_section=number == len(rows) - 1)
    console.print(table)
    others = len(result["packages"]) - len(rows) + 1
    if others > 0:
        console.print(f"and {others} smaller packages")


def things_to_try(url: str, job: dict[str, Any]) -> list[tuple[str, str]]:
    """(what it shows, command line) pairs that work while the server is up."""
    document = url + job["links"]["self"]
    post = f"curl -i {url}/api/survey -H 'Content-Type: application/json'"
    return [
        ("the job document", f"curl -i {document}"),
        ("its result alone", f"curl -s {url}{job['links']['result']}"),
        ("a small job, answered when it has ended", f"{post} -H 'Prefer: wait=20' -d '{{\"package\": \"json\"}}'"),
        ("the same request twice is one job", f"{post} -H 'Idempotency-Key: mine' -d '{{\"limit\": 500}}'"),
        ("a body that does not fit", f"{post} -d '{{\"limit\": 0}}'"),
        ("what this API is", f"curl -s {url}/jobs/openapi.json"),
        ("numbers for Prometheus", f"curl -s {url}/jobs/metrics"),
        ("a long job again; cancel it by the Location that it answers", f"{post} -d '{{}}'"),
    ]


async def show(console: Console, once: bool, store: str | None, package: str | None) -> None:
    """The whole demo, until the job has ended or, without ``once``, for ever."""
    with tempfile.TemporaryDirectory(prefix="callboard-demo-") as folder:
        store = store or f"sqlite:///{folder}/jobs.db"
        async with serving(store) as server:
            console.print(f"Serving examples/source_survey.py at {server.url} on {store}", soft_wrap=True)
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
                with Display(console) as display:
                    job = await follow(server.url, await submit(http, console, package), display)
                if job["status"] != "Completed":
                    raise DemoFailed(f"the job ended as {job['status']}: {job['error']}")
                print_result(console, job)
            if not once:
                console.print("\nTry, in another terminal:")
                for what, line in things_to_try(server.url, job):
                    console.print(f"\n  # {what}\n  {line}", soft_wrap=True)
                console.print("\nThe server stays up until Ctrl-C.")
                server.echo = True
                await trio.sleep_forever()


async def until_signal(console: Console, body: Callable[[], Awaitable[None]]) -> None:
    """Run ``body`` and cancel it on SIGINT or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                await anext(signals)
                console.print("\nThe server drains and ends ...")
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            await body()
            nursery.cancel_scope.cancel()


def run(*, once: bool, store: str | None, package: str | None) -> int:
    """Show it; the exit code."""
    console = Console(highlight=False, markup=False)
    if not APP.is_file():
        console.print(
            "The demo runs examples/source_survey.py, which is not part of an installed package: use a checkout."
        )
        return 1
    problems: list[str] = []
    try:
        trio.run(until_signal, console, partial(show, console, once, store, package))
    except* DemoFailed as failed:
        problems += [str(error) for error in _leaves(failed)]
    except* (httpx.HTTPError, HandshakeError, OSError) as failed:
        problems += [f"{type(error).__name__}: {error}" for error in _leaves(failed)]
    for problem in problems:
        console.print(f"The demo failed: {problem}", soft_wrap=True)
    return 1 if problems else 0


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
