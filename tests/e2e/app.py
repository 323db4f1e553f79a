"""The app that the end-to-end tests serve. Every attempt writes when it starts and ends, so that tests can see overlaps.

Settings come from the environment: ``E2E_CONFIG`` (JSON for ``Config``) and ``E2E_JOURNAL`` (the file that is written to; each line
is one write in append mode, so that lines of several processes neither mix nor get lost with a killed one).
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from quart_trio import QuartTrio

from callboard.runtime import Config, JobContext, JobFailed, Retry
from callboard.web import Callboard

__all__ = ["app", "board"]

if sys.platform == "linux":
    # Should the test run itself be killed, its servers go with it. 1 is PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

JOURNAL = os.open(os.environ["E2E_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

app = QuartTrio(__name__)
board = Callboard(app, config=Config(**json.loads(os.environ.get("E2E_CONFIG", "{}"))))

Body = dict[str, Any]


def note(job: JobContext, what: str) -> None:
    """One line of the journal; ``at`` is the machine's monotonic clock, the same for all its processes."""
    line = {
        "job": job.id,
        "name": job.name,
        "attempt": job.attempt,
        "pid": os.getpid(),
        "what": what,
        "at": time.monotonic(),
        "wall": time.time(),
    }
    os.write(JOURNAL, json.dumps(line).encode() + b"\n")


@asynccontextmanager
async def noted(job: JobContext) -> AsyncIterator[None]:
    """Writes the attempt's start and its end, whatever end."""
    note(job, "start")
    try:
        yield
    finally:
        note(job, "end")


@board.post("/run/quick", name="quick")
async def quick(job: JobContext, body: Body) -> Body:
    """Take ``seconds`` and give ``value`` back."""
    async with noted(job):
        await trio.sleep(body.get("seconds", 0))
        return {"value": body.get("value"), "attempt": job.attempt}


@board.post("/run/refused", name="refused")
async def refused(job: JobContext, body: Body) -> None:
    """Fail for good."""
    async with noted(job):
        await trio.sleep(body.get("seconds", 0))
        raise JobFailed("E2E_REFUSED", "as expected")


@board.post("/run/flaky", name="flaky")
async def flaky(job: JobContext, body: Body) -> Body:
    """Ask for a retry at first."""
    async with noted(job):
        await trio.sleep(body.get("seconds", 0))
        if job.attempt == 1:
            raise Retry(after_seconds=0.05)
        return {"value": body.get("value"), "attempt": job.attempt}


@board.post("/run/second", name="second")
async def second(job: JobContext, body: Body) -> Body:
    """Only the second attempt, or the one that ``ends_at`` numbers, ends; those before never do."""
    async with noted(job):
        if job.attempt < body.get("ends_at", 2):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(body.get("cleanup", 0))
        return {"attempt": job.attempt}


@board.post("/run/endless", name="endless")
async def endless(job: JobContext, body: Body) -> None:
    """Run until cancelled, then clean up for ``cleanup`` seconds."""
    async with noted(job):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(body.get("cleanup", 0))


@board.post("/run/tree", name="tree")
async def tree(job: JobContext, body: Body) -> None:
    """Three levels of tasks, each of which takes ``cleanup`` seconds to clean up, one after another."""

    async def level(depth: int) -> None:
        try:
            async with trio.open_nursery() as nursery:
                if depth < 3:
                    nursery.start_soon(level, depth + 1)
                note(job, f"level {depth} runs")
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(body["cleanup"])
            note(job, f"level {depth} stopped")

    async with noted(job):
        await level(1)


@board.post("/run/ticking", name="ticking")
async def ticking(job: JobContext, body: Body) -> Body:
    """Say something ``ticks`` times, every ``interval`` seconds."""
    async with noted(job):
        for tick in range(body["ticks"]):
            note(job, "tick")
            await job.progress(100 * tick / body["ticks"], f"tick {tick}", {"tick": tick})
            if tick % 5 == 2:
                job.log("info", f"log at {tick}")
            await trio.sleep(body["interval"])
        return {"ticks": body["ticks"]}


@board.post("/run/noisy", name="noisy")
async def noisy(job: JobContext, body: Body) -> Body:
    """Say much: ``rounds`` times ``lines`` log lines and a progress with data, ``size`` characters each."""
    async with noted(job):
        for number in range(body["rounds"]):
            for _ in range(body["lines"]):
                job.log("info", "l" * body["size"])
            await job.progress(100 * number / body["rounds"], None, {"round": number, "text": "d" * body["size"]})
            await trio.sleep(body["interval"])
        return {"rounds": body["rounds"]}


@board.post("/run/gated", name="gated")
async def gated(job: JobContext, body: Body) -> None:
    """Wait until the file ``gate`` is there."""
    async with noted(job):
        while not os.path.exists(body["gate"]):  # noqa: ASYNC110, ASYNC240  nobody else can tell
            await trio.sleep(0.02)


@board.post("/run/poison", name="poison")
async def poison(job: JobContext, body: Body) -> None:
    """Kill the process that runs it."""
    async with noted(job):
        os.kill(os.getpid(), signal.SIGKILL)
        await trio.sleep_forever()
