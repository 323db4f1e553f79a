"""An app whose handlers run in worker processes; the tests start it in every way that there is.

Settings come from the environment: ``E2E_CONFIG`` (JSON for ``Config``) and ``E2E_JOURNAL`` (the file that attempts write to).
"""

import ctypes
import json
import os
import sys
import time
from typing import Any

from quart_trio import QuartTrio

from callboard.runtime import Config, ProcessJobContext
from callboard.web import Callboard
from callboard.web.serve import run
from callboard.web.server_options import ServerOptions

__all__ = ["app", "board"]

app = QuartTrio(__name__)
board = Callboard(app, config=Config(**json.loads(os.environ.get("E2E_CONFIG", "{}"))))

Body = dict[str, Any]


def note(job: ProcessJobContext, what: str) -> None:
    """One line of the journal, as the other app of these tests writes it."""
    line = {"job": job.id, "name": job.name, "attempt": job.attempt, "pid": os.getpid(), "what": what}
    with open(os.environ["E2E_JOURNAL"], "ab", buffering=0) as journal:
        journal.write(json.dumps({**line, "at": time.monotonic(), "wall": time.time()}).encode() + b"\n")


@board.post("/run/grind", name="grind", process=True)
def grind(job: ProcessJobContext, body: Body) -> Body:
    """Take ``seconds`` of computing; before attempt ``ends_at`` never end, with ``locked`` without letting go of the interpreter's lock."""
    note(job, "start")
    job.progress(50, "at work")
    if job.attempt < body.get("ends_at", 1):
        if body.get("locked"):
            ctypes.PyDLL(None).sleep(600)
        while True:
            note(job, "tick")
            time.sleep(0.001)
    end = time.monotonic() + body.get("seconds", 0)
    while time.monotonic() < end:
        sum(range(1000))
    note(job, "end")
    return {"pid": os.getpid(), "module": __name__, "attempt": job.attempt}


if __name__ == "__main__":
    sys.exit(run(app, ServerOptions(bind=("127.0.0.1:0",))))
