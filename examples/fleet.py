"""An API and its workers, on one machine or on many: the same file started in two roles, with nothing between them but a Redis.

    redis-server --port 6379 --appendonly yes                                # or one that you have

    export CALLBOARD_STORE=redis://localhost:6379
    callboard serve examples/fleet.py:app --jobs 0 --bind 127.0.0.1:8000     # the API: takes jobs, shows them, runs none
    callboard worker examples/fleet.py:app                                   # a worker; start as many as you like

    curl -i localhost:8000/api/compress -H 'Prefer: wait=20' -H 'Content-Type: application/json' -d '{"text": "to be or not to be"}'

    python3 -c 'import json; print(json.dumps({"text": (open("README.md").read() * 99)[:950000]}))' > large.json
    job=$(curl -s localhost:8000/api/compress -H 'Content-Type: application/json' -d @large.json | cut -d '"' -f 4)
    curl -sN localhost:8000/jobs/$job/events &                               # live, although another process runs it
    curl -i -X POST localhost:8000/jobs/$job/cancel -H 'Prefer: wait=5'      # within the seconds that it takes

Which of the standard library's ways to compress fits a text best? Each is tried with each of its levels, in a thread of a worker. Stop the
worker (Ctrl-C): it ends what it runs, or hands it back when that takes too long. Kill it (``kill -9``): its job is taken from it when its
lease has ended. Another worker runs it then, and the API answers all the time.
"""

import bz2
import lzma
import os
import socket
import time
import zlib
from collections.abc import Callable
from typing import Annotated

import msgspec
from quart_trio import QuartTrio

from callboard.runtime import Config, ThreadJobContext
from callboard.web import Callboard

__all__ = ["Advice", "CompressRequest", "Trial", "app", "board", "compress"]

METHODS: dict[str, tuple[range, Callable[[bytes, int], bytes]]] = {
    "zlib": (range(1, 10), lambda data, level: zlib.compress(data, level)),
    "bz2": (range(1, 10), lambda data, level: bz2.compress(data, level)),
    "lzma": (range(10), lambda data, level: lzma.compress(data, preset=level)),
}

app = QuartTrio(__name__)
# A worker that fell silent for 10 s has lost its jobs. Slots are threads here: as many as there are processors to keep busy.
board = Callboard(app, config=Config(lease_seconds=10, max_concurrent_jobs=os.cpu_count() or 1))


class CompressRequest(msgspec.Struct):
    """What to compress."""

    text: Annotated[str, msgspec.Meta(min_length=1)]


class Trial(msgspec.Struct, rename="camel"):
    """One method with one level; ``ratio`` is 0.1 for a tenth of the size."""

    method: str
    level: int
    size: int
    ratio: float
    seconds: float


class Advice(msgspec.Struct, rename="camel"):
    """The smallest first; ``worker`` says who did it."""

    worker: str
    original_size: int
    trials: list[Trial]


@board.post("/api/compress", name="Compress", timeout_seconds=300)
def compress(job: ThreadJobContext, request: CompressRequest) -> Advice:
    """Try every method with every level, with progress for each."""
    data = request.text.encode()
    plans = [(method, level) for method, (levels, _) in METHODS.items() for level in levels]
    trials: list[Trial] = []
    for done, (method, level) in enumerate(plans):
        job.progress(100 * done / len(plans), f"{method} {level}")  # also the way out when canceled
        began = time.perf_counter()
        size = len(METHODS[method][1](data, level))
        seconds = round(time.perf_counter() - began, 6)
        trials.append(Trial(method, level, size, round(size / len(data), 4), seconds))
    trials.sort(key=lambda trial: (trial.size, trial.seconds))
    return Advice(f"{socket.gethostname()}:{os.getpid()}", len(data), trials)
