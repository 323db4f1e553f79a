"""The quick example: a slow POST that answers at once, with a job to watch.

    callboard serve examples/process_data.py:app --bind 127.0.0.1:8000 --store memory://

    curl -i localhost:8000/api/process-data -H 'Content-Type: application/json' -d '{"data": "hello", "processingPriority": 2}'
    curl -i localhost:8000/jobs/<id>                     # as often as you like
    curl -i localhost:8000/jobs/<id>?wait=10             # held until it has ended
    curl -i localhost:8000/api/process-data -H 'Prefer: wait=10' -H 'Content-Type: application/json' -d '{"data": "hello"}'
    curl -i -X POST localhost:8000/jobs/<id>/cancel

The API's description is at /jobs/openapi.json.
"""

from datetime import UTC, datetime

import msgspec
import trio
from quart_trio import QuartTrio

from callboard.runtime import JobContext
from callboard.web import Callboard

__all__ = ["DataRequest", "ProcessResult", "app", "board", "process_data"]

app = QuartTrio(__name__)
board = Callboard(app)


class DataRequest(msgspec.Struct, rename="camel"):
    """What the client sends."""

    data: str
    processing_priority: int = 1


class ProcessResult(msgspec.Struct, rename="camel"):
    """What the client gets in the end."""

    processed_data: str
    processed_at: datetime
    character_count: int


@board.post("/api/process-data", name="ProcessData", max_retries=3, timeout_seconds=60)
async def process_data(job: JobContext, request: DataRequest) -> ProcessResult:
    """Take five seconds over it, and say how far it is."""
    for done in range(5):
        await job.progress(done * 20, f"step {done}")
        await trio.sleep(1)
    return ProcessResult(
        processed_data=f"Processed: {request.data.upper()}",
        processed_at=datetime.now(UTC),
        character_count=len(request.data),
    )
