"""The app that hostile clients are let loose on: a handler for attackers and one for the well-behaved, and routes of every kind of its own.

What attackers submit waits in a queue of its own, so that a queue which they have filled refuses nobody else. ``GET /measure`` tells
what no one outside can count: trio's tasks, and the objects that the process keeps.

Run as a program it is what ``callboard serve`` is, with settings that the command line does not have: its arguments are the URL of the
store and, as JSON, the ``ServerOptions``. ``E2E_CONFIG`` (JSON for ``Config``) comes from the environment.
"""

import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from callboard.runtime import Config, JobContext
from callboard.runtime.core.job import Job
from callboard.web import Callboard
from callboard.web.serve import run
from callboard.web.server_options import ServerOptions

__all__ = ["app", "board"]

if sys.platform == "linux":
    # Should the test run itself be killed, its servers go with it. 1 is PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

app = QuartTrio(__name__)
# callboard's own routes have limits of their own; these are for those of the app.
app.config["BODY_TIMEOUT"] = 3


def authorize(asked: Any, action: str, job: Job | None) -> bool:
    """Attackers may do what they like, but not end what the well-behaved have submitted or stop a queue."""
    if "X-Well-Behaved" in asked.headers:
        return True
    return action != "pause" and (action not in ("cancel", "retry", "purge") or job is None or job.queue == "public")


board = Callboard(app, config=Config(**json.loads(os.environ.get("E2E_CONFIG", "{}"))), authorize=authorize)

most_seconds = {"late": 0.0, "processor": 0.0}
"""Since they were last asked for: how much too late the event loop came round, and how much processor time it took until then."""


@app.before_serving
async def feel_the_pulse() -> None:
    """Start to measure them."""

    async def beat() -> None:
        while True:
            before, worked = trio.current_time(), time.thread_time()
            await trio.sleep(0.05)
            late, worked = trio.current_time() - before - 0.05, time.thread_time() - worked
            most_seconds.update(late=max(late, most_seconds["late"]), processor=max(worked, most_seconds["processor"]))

    app.add_background_task(beat)


CHUNK = b"0123456789abcdef" * 4096


@board.post(
    "/work/<kind>",
    name="Work",
    queue="public",
    allow_delay=True,
    allow_priority=True,
    allow_timeout=True,
    max_retries=0,
)
async def work(job: JobContext, body: dict[str, Any]) -> dict[str, Any]:
    """What attackers submit: over at once."""
    job.log("info", "worked")
    return {"kind": job.route_params["kind"], "body": body}


@board.post("/steps", name="Steps", queue="private")
async def steps(job: JobContext, body: int) -> int:
    """What the well-behaved submit: ``body`` steps, each of which is told."""
    for done in range(body):
        await job.progress(100 * done / body, f"step {done}", {"done": done})
        await trio.sleep(0.02)
    return body


@board.post("/siren", name="Siren", queue="private")
async def siren(job: JobContext, body: int) -> None:
    """Says ``body`` characters many times a second until it is canceled: what never-reading clients follow."""
    for number in range(10**9):
        await job.progress(None, None, {"number": number, "text": "s" * body})
        job.log("info", "s" * body)
        await trio.sleep(0.05)


@app.get("/plain")
async def plain() -> str:
    """A small answer."""
    return "plain"


@app.post("/upload")
async def upload() -> dict[str, int]:
    """Takes a whole body, as Quart does it."""
    return {"bytes": len(await request.get_data())}


@app.post("/form")
async def form() -> dict[str, int]:
    """Takes a form."""
    return {"fields": len(await request.form), "files": len(await request.files)}


@app.post("/drip")
async def drip() -> Response:
    """Answers each part of a body while it comes."""

    body = request.body

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            async for part in body:
                yield b"%d\n" % len(part)
        except HTTPException as error:
            # The answer has begun: what is too large or too slow can only be told in it.
            yield f"{error.code}\n".encode()

    response = Response(parts(), content_type="text/plain")
    # BODY_TIMEOUT does not count while a body is iterated.
    response.timeout = 4
    return response


@app.get("/big")
async def big() -> bytes:
    """4 MiB at once."""
    return CHUNK * 64


@app.get("/endless")
async def endless() -> Response:
    """A stream without end, as fast as it is taken."""

    async def parts() -> AsyncGenerator[bytes, None]:
        while True:
            yield CHUNK

    return Response(parts(), content_type="application/octet-stream")


@app.websocket("/echo")
async def echo() -> None:
    """Gives back what it gets."""
    while True:
        await websocket.send(await websocket.receive())


@app.websocket("/deaf")
async def deaf() -> None:
    """Never looks at what it gets."""
    await websocket.accept()
    await trio.sleep_forever()


@app.websocket("/talk")
async def talk() -> None:
    """Only sends, as fast as it is taken, and awaits nothing else."""
    while True:
        await websocket.send("t" * 4096)


@app.websocket("/picky")
async def picky() -> None:
    """Refuses at first sight."""
    await websocket.close(1008, "not you")


@app.get("/measure")
async def measure() -> dict[str, Any]:
    """Tasks by name, threads, kept objects by type after everything that can go has gone, and ``most_seconds``."""
    seconds = dict(most_seconds)
    tasks: Counter[str] = Counter()
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root else []
    while waiting:
        task = waiting.pop()
        tasks[task.name] += 1
        waiting.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    gc.collect()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    most_seconds.update(late=0.0, processor=0.0)
    objects = Counter(type(one).__qualname__ for one in gc.get_objects())
    return {"tasks": tasks, "threads": threading.active_count(), "objects": dict(objects), "seconds": seconds}


def main() -> None:
    """Serve until a signal."""
    store, options = sys.argv[1:]
    sys.exit(run(app, ServerOptions(**json.loads(options)), store=store))


if __name__ == "__main__":
    main()
