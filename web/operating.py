"""The routes of those who operate an app: the history of a job's attempts, and queues that are paused and resumed.

Each view is one request: right, parameters, one call of the runtime, answer.
"""

from typing import TYPE_CHECKING, Any

from quart import Response, request

from callboard.runtime import AttemptRecord, JobNotFound, Queue, Status
from callboard.runtime.core.document import format_time
from callboard.web.answers import json_answer, json_bytes
from callboard.web.jobs import Route
from callboard.web.lookup import permitted_job

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["OperatingRoutes"]


class OperatingRoutes:
    """The views of one board."""

    def __init__(self, board: "Callboard") -> None:
        self._board = board

    def routes(self) -> list[Route]:
        """The routes of these views."""
        return [
            Route("GET", "/<job_id>/attempts", self.attempts),
            Route("GET", "/queues", self.queues),
            Route("POST", "/queues/<path:queue>/pause", self.pause),
            Route("POST", "/queues/<path:queue>/resume", self.resume),
        ]

    async def attempts(self, job_id: str) -> Response:
        """How a job's attempts ended, with their exceptions, for those who may inspect."""
        job = await permitted_job(self._board, request, job_id, "inspect")
        records = await self._board.runtime.attempts(job.id)
        if (await self._board.runtime.get(job.id)).serial != job.serial:
            raise JobNotFound("another job took the id meanwhile")
        return json_answer(json_bytes({"attempts": [_attempt_fields(record) for record in records]}))

    async def queues(self) -> Response:
        """Every queue, with what it holds."""
        await self._board.access.require(request, "list")
        found = await self._board.runtime.queues()
        return json_answer(json_bytes({"queues": [_queue_fields(queue) for queue in found]}))

    async def pause(self, queue: str) -> Response:
        """Start no job of the queue any more, in any process."""
        await self._board.access.require(request, "pause")
        return json_answer(json_bytes(_queue_fields(await self._board.runtime.pause(queue))))

    async def resume(self, queue: str) -> Response:
        """Undo ``pause``."""
        await self._board.access.require(request, "pause")
        return json_answer(json_bytes(_queue_fields(await self._board.runtime.resume(queue))))


def _attempt_fields(record: AttemptRecord) -> dict[str, Any]:
    return {
        "attempt": record.attempt,
        "worker": record.worker,
        "startedAt": format_time(record.started_ms),
        "endedAt": format_time(record.ended_ms),
        "outcome": record.outcome,
        "error": record.error,
        "exceptions": record.exceptions,
    }


def _queue_fields(queue: Queue) -> dict[str, Any]:
    return {
        "name": queue.name,
        "paused": queue.paused,
        "queued": queue.counts.get(Status.QUEUED, 0),
        "scheduled": queue.counts.get(Status.SCHEDULED, 0),
        "inProgress": queue.counts.get(Status.IN_PROGRESS, 0),
        "unknown": queue.unknown,
    }
