"""Handlers that the tests run in worker processes: plain functions of a module, as a child has to be able to import them."""

import ctypes
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pydantic

from callboard.runtime import JobFailed, ProcessJobContext, Retry
from callboard.runtime.wire import frame

__all__ = ["Bill", "BillModel", "BillRecord", "OutOfStock", "Unpicklable", "Wait"]


def seen(job: ProcessJobContext, body: dict[str, Any]) -> dict[str, Any]:
    """What the context shows."""
    for step in range(5):
        job.progress(step * 25, f"step {step}", {"step": step})
        job.log("info", f"line {step}")
    return {
        "pid": os.getpid(),
        "body": body,
        "id": job.id,
        "attempt": job.attempt,
        "headers": {name: job.headers.getlist(name) for name in job.headers},
        "route": {name: [type(value).__name__, str(value)] for name, value in job.route_params.items()},
        "query": {name: job.query_params.getlist(name) for name in job.query_params},
        "deadline": job.deadline is not None,
        "cancel": job.cancel_requested,
    }


def endless(job: ProcessJobContext, notes: str) -> None:
    """Write down the process ids of this worker and of what it starts, then never end, with the interpreter's lock held."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    forked = os.fork()
    if forked == 0:
        # It holds all that the worker holds, and so could keep the runtime from seeing that the worker is dead.
        time.sleep(600)
    Path(notes + ".new").write_text(f"{os.getpid()} {child.pid} {forked}")
    os.rename(notes + ".new", notes)
    ctypes.PyDLL(None).sleep(600)


def chatter(job: ProcessJobContext, seconds: float) -> int:
    """Report in a tight loop; how often."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        count += 1
        job.progress(None, f"report {count}", {"count": count})
        job.log("debug", f"line {count} " + 200 * "x")
    return count


def steps(job: ProcessJobContext, count: int) -> int:
    """Take that many steps of a tenth of a second, and say so."""
    for step in range(count):
        job.progress(step * 100 / count, f"step {step}", {"step": step})
        time.sleep(0.1)
    return count


def bad_report(job: ProcessJobContext, which: str) -> None:
    """A report that no context takes."""
    match which:
        case "percent":
            job.progress(101)
        case "data":
            job.progress(data="x" * 70_000)
        case "level":
            job.log("loud", "x")


class Noise(msgspec.Struct, tag="line"):
    """A log line as no context would send it."""

    level: str = "loud"
    message: str = "x"


def rude(job: ProcessJobContext, how: str) -> None:
    """Use the connection to the runtime as only a bug would, and go on."""
    line = next(one for one in gc.get_objects() if isinstance(one, socket.socket) and not is_lifeline(one))
    match how:
        case "garbage":
            line.sendall((7).to_bytes(4) + b"garbage")
        case "huge":
            line.sendall((2**31).to_bytes(4))
        case "level":
            line.sendall(frame(Noise()))
        case "long line":
            line.sendall(frame(Noise("info", "x" * 600_000)))
        case "closed":
            os.closerange(3, 256)
        case "forked and gone":
            if os.fork() > 0:
                os._exit(1)
    time.sleep(600)


def is_lifeline(line: socket.socket) -> bool:
    return line.fileno() >= 0 and bool(fcntl.fcntl(line, fcntl.F_GETFL) & os.O_ASYNC)


def die(job: ProcessJobContext, how: str) -> str:
    """End the process, but on the second attempt only return."""
    if job.attempt > 1:
        return "alive"
    match how:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
    return "not dead"


class Unpicklable(Exception):
    """An exception that no pickle brings over: it needs more arguments, and holds what cannot be sent."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.held: Callable[[], int] = lambda: 1


class OutOfStock(JobFailed):
    """The app's own failure."""

    def __init__(self, article: str) -> None:
        super().__init__("OUT_OF_STOCK", f"{article} is gone", retryable=True)
        self.article = article


class Wait(Retry):
    """The app's own wish for a retry."""


class Textless(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def fail(job: ProcessJobContext, how: str) -> None:
    """Raise."""
    match how:
        case "chain":
            try:
                {}["missing"]  # type: ignore[index]
            except KeyError as error:
                error.add_note("a note on the cause")
                raise Unpicklable(1, 2) from error
        case "stock":
            raise OutOfStock("tea")
        case "wait" if job.attempt == 1:
            raise Wait(after_seconds=0.01)
        case "group":
            raise ExceptionGroup("several", [ValueError("first"), ExceptionGroup("inner", [OutOfStock("milk")])])
        case "exit":
            sys.exit(5)
        case "interrupt":
            raise KeyboardInterrupt
        case "textless":
            raise Textless
        case "deep":
            deep(0)


def deep(depth: int) -> None:
    deep(depth + 1)


class Bill(msgspec.Struct, rename="camel"):
    """A result."""

    bill_number: int
    lines: list[str] = []


@dataclass
class BillRecord:
    """The same as a dataclass."""

    bill_number: int


class BillModel(pydantic.BaseModel):
    """The same as a model."""

    bill_number: int = pydantic.Field(alias="billNumber")


def bill(job: ProcessJobContext, number: int) -> Bill:
    return Bill(number, ["tea"])


def record(job: ProcessJobContext, number: int) -> BillRecord:
    return BillRecord(number)


def model(job: ProcessJobContext, request: BillModel) -> BillModel:
    return request


class Leaving:
    """Leaves when someone asks for its JSON form."""

    @property
    def model_dump_json(self) -> None:
        sys.exit(3)


def no_result(job: ProcessJobContext, which: str) -> Any:
    return {"object": object(), "leaving": Leaving()}.get(which, "x" * 10_000)


def nap(job: ProcessJobContext, seconds: float) -> list[float]:
    """When it ran."""
    begun = time.time()
    time.sleep(seconds)
    return [begun, time.time()]


def noted_nap(job: ProcessJobContext, notes: str) -> None:
    """Say that it has begun, and end a little later."""
    Path(notes).write_text("begun")
    time.sleep(0.4)
