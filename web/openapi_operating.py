"""The operations of the routes for those who run an app, for the OpenAPI document. Pure."""

from typing import Any

from callboard.runtime.core.document import format_time
from callboard.runtime.core.history import AttemptOutcome
from callboard.runtime.core.job import Status
from callboard.web.openapi_parts import (
    ATTEMPTS,
    EXAMPLE_MS,
    QUEUE,
    QUEUES,
    example_job,
    headers,
    job_example,
)
from callboard.web.openapi_routes import Facts, operation
from callboard.web.openapi_schemas import Schema, ref

__all__ = ["operating_operations"]

TAG = "Operating"


def operating_operations(facts: Facts) -> dict[tuple[str, str], Schema]:
    """(method, path after the prefix, as it is mounted) -> operation."""
    return {**_history(facts), **_queues(facts), **_health(), **_pages(facts)}


def _history(facts: Facts) -> dict[tuple[str, str], Schema]:
    failed = job_example(example_job(Status.FAILED), facts.place)
    raised: dict[str, Any] = {
        "type": "callboard.runtime.failure.JobFailed",
        "message": "Nothing is left.",
        "traceback": '  File "shop.py", line 21, in place_order\n    raise JobFailed("NO_STOCK", "Nothing is left.")\n',
        "relation": "raised",
        "of": None,
        "notes": [],
    }
    attempt = {
        "attempt": 1,
        "worker": "shop-1-7f3a",
        "startedAt": format_time(EXAMPLE_MS + 5),
        "endedAt": format_time(EXAMPLE_MS + 1500),
        "outcome": AttemptOutcome.FAILED.value,
        "error": failed["error"],
        "exceptions": [raised],
    }
    return {
        ("GET", "/<job_id>/attempts"): operation(
            "listAttempts",
            "Read how a job's attempts ended",
            {
                "200": _json(
                    "The newest attempts that have ended, oldest first.", ref(ATTEMPTS), {"attempts": [attempt]}
                )
            },
            facts.operators("NotFound"),
            ("JobId",),
            tag=TAG,
            description="With tracebacks: for those who may `inspect`.",
        )
    }


def _queues(facts: Facts) -> dict[tuple[str, str], Schema]:
    queue = {"name": "default", "paused": False, "queued": 2, "scheduled": 0, "inProgress": 1, "unknown": {}}

    def turn(identifier: str, summary: str, paused: bool, description: str) -> Schema:
        answer = _json("The queue as it is now.", ref(QUEUE), {**queue, "paused": paused})
        refused = ("NoQueue", "Forbidden")
        return operation(
            identifier, summary, {"200": answer}, refused, ("QueueName",), tag=TAG, description=description
        )

    return {
        ("GET", "/queues"): operation(
            "listQueues",
            "List queues",
            {"200": _json("Every queue, with what it holds.", ref(QUEUES), {"queues": [queue]})},
            facts.forbidden(),
            tag=TAG,
        ),
        ("POST", "/queues/<path:queue>/pause"): turn(
            "pauseQueue",
            "Start no job of a queue",
            True,
            "Holds in every process, until it is resumed. Attempts that run go on; jobs are still accepted.",
        ),
        ("POST", "/queues/<path:queue>/resume"): turn(
            "resumeQueue", "Go on with a queue", False, "What waited starts at once."
        ),
    }


def _health() -> dict[tuple[str, str], Schema]:
    def health(name: str, summary: str) -> Schema:
        role = {"enum": ["both", "api", "worker"], "description": "HTTP and jobs, HTTP only, jobs only."}
        properties = {"status": {"const": name}, "role": role}
        schema = {"type": "object", "properties": properties, "required": ["status", "role"]}
        return operation(name, summary, {"200": _json("Yes.", schema, {"status": name, "role": "both"})}, (), tag=TAG)

    return {
        ("GET", "/health/live"): health("live", "Whether the process is worth keeping"),
        ("GET", "/health/ready"): health("ready", "Whether work can be sent here now"),
    }


def _pages(facts: Facts) -> dict[tuple[str, str], Schema]:
    text = {"schema": {"type": "string"}, "example": 'callboard_jobs{queue="default",status="Queued"} 3.0\n'}
    numbers = {"description": "Numbers in Prometheus's text format.", "content": {"text/plain": text}}
    page = {
        "description": "A page that is a plain client of the job routes.",
        "headers": headers("Cache-Control", "Content-Security-Policy"),
        "content": {"text/html": {"schema": {"type": "string"}}},
    }
    document = _json("An OpenAPI 3.1 document.", {"type": "object", "required": ["openapi", "info", "paths"]})
    return {
        ("GET", "/metrics"): operation("metrics", "Read metrics", {"200": numbers}, facts.forbidden(), tag=TAG),
        ("GET", "/openapi.json"): operation(
            "openapi", "Read this document", {"200": document}, (), tag=TAG, unavailable=False
        ),
        ("GET", "/ui"): operation("ui", "The dashboard", {"200": page}, facts.forbidden(), tag=TAG, unavailable=False),
    }


def _json(description: str, schema: Schema, *examples: Any) -> Schema:
    shown = {"example": examples[0]} if examples else {}
    return {
        "description": description,
        "headers": headers("Cache-Control"),
        "content": {"application/json": {"schema": schema, **shown}},
    }
