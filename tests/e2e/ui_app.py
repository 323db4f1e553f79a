"""An app whose texts are hostile and whose answers have a form of their own: what the dashboard must neither run nor misread.

``UI_APP_REFUSES`` names an action that nobody may do.
"""

import os

import trio
from quart_trio import QuartTrio

from callboard.runtime import JobContext, JobFailed
from callboard.web import Callboard, Responses

__all__ = ["EVIL", "app"]

EVIL = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"

app = QuartTrio(__name__)
board = Callboard(
    app,
    responses=Responses(status=lambda asked: {"state": asked.job.status.value, "id": 7, "seq": "none"}),
    authorize=lambda request, action, job: action != os.environ.get("UI_APP_REFUSES"),
)


@board.post("/evil", name=f"Evil {EVIL}", queue=f"queue {EVIL}", max_retries=0)
async def evil(job: JobContext) -> None:
    """Say it everywhere, then wait for the end; fail with it when asked a second time."""
    await job.progress(50, f"progress {EVIL}", {"data": EVIL})
    job.log("error", f"log {EVIL}")
    if job.attempt == 2:
        raise JobFailed(f"CODE {EVIL}", f"failure {EVIL}")
    await trio.sleep_forever()
