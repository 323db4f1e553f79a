"""The app of the worker faults: handlers of every sort on several queues, each of which writes down where and when it runs.

Settings come from the environment: ``E2E_CONFIG`` (JSON for ``Config``) and ``E2E_JOURNAL`` (the file that attempts write to, each line
one write in append mode).
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from quart_trio import QuartTrio

from callboard.runtime import Config, JobContext, JobFailed, ProcessJobContext, Retry, ThreadJobContext
from callboard.web import Callboard

__all__ = ["app", "board"]

if sys.platform == "linux" and multiprocessing.parent_process() is None:
    # Should the test run itself be killed, its servers go with it. 1 is PR_SET_PDEATHSIG; in a worker process it would mean the end of
    # the thread that started it.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

JOURNAL = os.open(os.environ["E2E_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

app = QuartTrio(__name__)
board = Callboard(app, config=Config(**json.loads(os.environ.get("E2E_CONFIG", "{}"))))

Body = dict[str, Any]
Context = JobContext | ThreadJobContext | ProcessJobContext


def note(job: Context, what: str) -> None:
    """One line of the journal; ``at`` is the machine's monotonic clock, ``wall`` what this process takes for the time of day."""
    line = {"job": job.id, "name": job.name, "attempt": job.attempt, "pid": os.getpid(), "what": what}
    os.write(JOURNAL, json.dumps({**line, "at": time.monotonic(), "wall": time.time()}).encode() + b"\n")


@contextmanager
def noted(job: Context) -> Iterator[None]:
    """Writes the attempt's start and its end, whatever end."""
    note(job, "start")
    try:
        yield
    finally:
        note(job, "end")


@board.post("/run/work", name="work", allow_delay=True, allow_priority=True)
async def work(job: JobContext, body: Body) -> Body:
    """Take ``seconds`` and give ``value`` back."""
    with noted(job):
        await trio.sleep(body.get("seconds", 0))
        return {"value": body.get("value"), "attempt": job.attempt}


@board.post("/run/flaky", name="flaky", queue="mail", allow_delay=True, allow_priority=True)
async def flaky(job: JobContext, body: Body) -> Body:
    """Ask for a retry at first."""
    with noted(job):
        await trio.sleep(body.get("seconds", 0))
        if job.attempt == 1:
            raise Retry(after_seconds=body.get("after", 0.05))
        return {"value": body.get("value"), "attempt": job.attempt}


@board.post("/run/refused", name="refused", queue="mail", allow_delay=True, allow_priority=True)
async def refused(job: JobContext, body: Body) -> None:
    """Fail for good."""
    with noted(job):
        await trio.sleep(body.get("seconds", 0))
        raise JobFailed("E2E_REFUSED", "as expected")


@board.post("/run/ticking", name="ticking", queue="bulk", allow_delay=True, allow_priority=True)
async def ticking(job: JobContext, body: Body) -> Body:
    """Say something ``ticks`` times, every ``interval`` seconds."""
    with noted(job):
        for tick in range(body["ticks"]):
            await job.progress(100 * tick / body["ticks"], f"tick {tick}", {"tick": tick, "attempt": job.attempt})
            if tick % 5 == 2:
                job.log("info", f"attempt {job.attempt} at {tick}")
            await trio.sleep(body["interval"])
        return {"value": body.get("value"), "attempt": job.attempt}


@board.post("/run/plain", name="plain", queue="bulk", allow_delay=True, allow_priority=True)
def plain(job: ThreadJobContext, body: Body) -> Body:
    """``work`` in a thread."""
    with noted(job):
        time.sleep(body.get("seconds", 0))
        return {"value": body.get("value"), "attempt": job.attempt}


@board.post("/run/endless", name="endless", allow_delay=True, allow_priority=True)
async def endless(job: JobContext, body: Body) -> None:
    """Run until cancelled, then clean up for ``cleanup`` seconds."""
    with noted(job):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(body.get("cleanup", 0))


@board.post("/run/poison", name="poison", queue="mail", max_lost_leases=1)
async def poison(job: JobContext, body: Body) -> None:
    """Kill the process that runs it."""
    with noted(job):
        os.kill(os.getpid(), signal.SIGKILL)
        await trio.sleep_forever()


# Those that are healthy for long


@board.post("/run/long", name="long")
async def long(job: JobContext, body: Body) -> Body:
    """Take ``seconds`` and say nothing."""
    with noted(job):
        await trio.sleep(body["seconds"])
        return {"pid": os.getpid()}


@board.post("/run/busy", name="busy")
async def busy(job: JobContext, body: Body) -> Body:
    """Take ``seconds``, for most of which nothing else in this process gets its turn: ``hold`` seconds at a time."""
    with noted(job):
        end = time.monotonic() + body["seconds"]
        while time.monotonic() < end:
            pause = time.monotonic() + body["hold"]
            while time.monotonic() < pause:
                sum(range(1000))
            await trio.sleep(0.01)
        return {"pid": os.getpid()}


@board.post("/run/thread", name="thread")
def thread(job: ThreadJobContext, body: Body) -> Body:
    """The same in a thread that computes, one that never looks whether it should stop."""
    with noted(job):
        end = time.monotonic() + body["seconds"]
        while time.monotonic() < end:
            sum(range(1000))
            time.sleep(0.01)
        return {"pid": os.getpid()}


@board.post("/run/process", name="process", process=True)
def process(job: ProcessJobContext, body: Body) -> Body:
    """The same in a worker process."""
    with noted(job):
        time.sleep(body["seconds"])
        return {"pid": os.getpid()}


# Those whose worker is stopped: the first attempt never ends by itself, the others when the file ``gate`` is there, if they name one


def is_shut(body: Body) -> bool:
    """Whether there is something to wait for."""
    return "gate" in body and not os.path.exists(body["gate"])


@board.post("/run/held", name="held")
async def held(job: JobContext, body: Body) -> Body:
    """Told to stop, the first attempt writes for ``cleanup`` seconds more; with ``returns`` it returns."""
    with noted(job):
        if job.attempt > 1:
            while is_shut(body):  # noqa: ASYNC110  nobody else can tell
                await trio.sleep(0.02)
            job.log("info", f"attempt {job.attempt} is done")
            return {"attempt": job.attempt, "pid": os.getpid()}
        try:
            for tick in range(10_000):
                await job.progress(None, f"tick {tick}", {"attempt": job.attempt})
                job.log("info", f"tick {tick}")
                await trio.sleep(0.05)
        finally:
            note(job, "told")
            with trio.CancelScope(shield=True):
                await _write_late(job, body.get("cleanup", 0))
            note(job, "cleaned up")
            if body.get("returns"):
                return {"attempt": job.attempt, "pid": os.getpid()}  # noqa: B012  what a careless handler does
        raise AssertionError("it was told to stop")


async def _write_late(job: JobContext, seconds: float) -> None:
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        await job.progress(None, "late", {"attempt": job.attempt})
        job.log("info", "late")
        note(job, "late")
        await trio.sleep(0.05)


@board.post("/run/held_thread", name="held_thread", queue="bulk")
def held_thread(job: ThreadJobContext, body: Body) -> Body:
    """The same in a thread: the first attempt returns once it is told to stop, and not before."""
    with noted(job):
        if job.attempt > 1:
            while is_shut(body):
                time.sleep(0.02)
        else:
            while not job.cancel_requested:
                time.sleep(0.02)
            note(job, "told")
            job.log("info", "late")
            time.sleep(body.get("cleanup", 0))
            note(job, "cleaned up")
        return {"attempt": job.attempt, "pid": os.getpid()}


@board.post("/run/held_process", name="held_process", queue="bulk", process=True)
def held_process(job: ProcessJobContext, body: Body) -> Body:
    """The same in a worker process: the first attempt goes on for ever and is not asked when it has to stop."""
    with noted(job):
        if job.attempt > 1:
            while is_shut(body):
                time.sleep(0.02)
            return {"attempt": job.attempt, "pid": os.getpid()}
        while True:
            job.log("info", "tick")
            note(job, "tick")
            time.sleep(0.05)
