"""The operations of the job routes for the OpenAPI document; ``openapi_operating`` has those for operators. Pure.

There is one for each route that is mounted, and none more: a test compares. Each lists every status that its route can answer.
Other methods on these paths are answered with 405 and ``Allow``, other paths under the prefix with 404; neither is an operation.
"""

from typing import Any

import msgspec
from msgspec import Struct

from callboard.runtime.core.job import Status
from callboard.web.openapi_parts import (
    JOB,
    OWN_FORM,
    PAGE,
    example_job,
    headers,
    job_example,
    links,
    parameters,
)
from callboard.web.openapi_refusals import refusals
from callboard.web.openapi_schemas import Schema, ref
from callboard.web.render import Place
from callboard.web.responses import Responses

__all__ = ["ACTIONS", "Facts", "job_operations", "operation"]

ACTIONS = ("ReadJob", "CancelJob", "RetryJob", "PurgeJob")


class Facts(Struct, frozen=True):
    """What of an app decides which answers there are."""

    place: Place
    authorizes: bool
    """There is an ``authorize`` hook, so an action can be refused."""
    identifies: bool
    """There is an ``identify`` hook; without ``authorize``, nobody is an operator then."""
    timeout_seconds: float | None
    """Bound of an attempt where a handler has none of its own."""

    responses: Responses
    """The forms of the board's answers."""
    shows_own_form: bool
    """Some jobs' documents are answered in a form of the app's own."""

    def forbidden(self, *names: str) -> tuple[str, ...]:
        """``names`` of refusals, with Forbidden where only the app's hook says no."""
        return (*names, "Forbidden") if self.authorizes else names

    def operators(self, *names: str) -> tuple[str, ...]:
        """The same for what only an operator may do."""
        return (*names, "Forbidden") if self.authorizes or self.identifies else names


def job_operations(facts: Facts) -> dict[tuple[str, str], Schema]:
    """(method, path after the prefix, as it is mounted) -> operation."""
    return {**_jobs(facts), **_live(facts), **_steering(facts)}


def _jobs(facts: Facts) -> dict[tuple[str, str], Schema]:
    page = {
        "description": "Jobs, newest first.",
        "headers": headers("Cache-Control"),
        "content": {
            "application/json": {
                "schema": ref(PAGE),
                "example": {"jobs": [_example(facts, Status.QUEUED)], "next": None},
            }
        },
        "links": {"NextPage": {"operationId": "listJobs", "parameters": {"cursor": "$response.body#/next"}}},
    }
    read = {
        "200": job_answer(
            facts,
            "The job as it is now.",
            *Status,
            sent=headers("Cache-Control", "ETag", maybe=("Retry-After", "Expires", "Preference-Applied")),
            actions=("ReadResult", "ReadAttempts", *ACTIONS),
        ),
        "303": {
            "description": "The job is Completed, and this is where its result is.",
            "headers": headers("Location", "Cache-Control"),
        },
        "304": {
            "description": "Nothing has changed since the tag of `If-None-Match`.",
            "headers": headers("Cache-Control", "ETag", maybe=("Retry-After", "Expires", "Preference-Applied")),
        },
    }
    result = {
        "description": "The value that the handler returned.",
        "headers": headers("Cache-Control"),
        "content": {"application/json": {"schema": {}, "example": {"total": 3}}},
    }
    return {
        ("GET", ""): operation(
            "listJobs",
            "List jobs",
            {"200": page},
            facts.forbidden("BadRequest"),
            ("Status", "Name", "Queue", "Limit", "Cursor"),
            description="The jobs that the caller may see, newest first. Pages neither skip nor repeat while jobs arrive.",
        ),
        ("GET", "/<job_id>"): operation(
            "getJob",
            "Read a job, or wait for it",
            read,
            ("BadRequest", "NotFound"),
            ("JobId", "Wait", "Redirect", "Prefer", "IfNoneMatch"),
            description="With `wait` the answer is held: until the job has ended, or with `If-None-Match` until it has changed.",
        ),
        ("GET", "/<job_id>/result"): operation(
            "getResult",
            "Read a job's result",
            {"200": result},
            ("NotFound", "NotEnded", "Canceled", "JobFailed"),
            ("JobId",),
        ),
    }


def _live(facts: Facts) -> dict[tuple[str, str], Schema]:
    frame = {"seq": 1, "since": 0, "type": "snapshot", "at": _example(facts, Status.QUEUED)["createdAt"], "gap": False}
    text = msgspec.json.encode(frame | {"job": _example(facts, Status.QUEUED)}).decode()
    stream = {
        "description": "The job, and each event as it happens. The answer ends after the job's end.",
        "headers": headers("Cache-Control"),
        "content": {
            "text/event-stream": {"schema": {"type": "string"}, "example": f"retry: 1000\n\nid: 1\ndata: {text}\n\n"}
        },
    }
    over = {"description": "There is nothing after that event: stay away.", "headers": headers("Cache-Control")}
    return {
        ("GET", "/<job_id>/events"): operation(
            "followJob",
            "Follow a job (Server-Sent Events)",
            {"200": stream, "204": over},
            facts.forbidden("BadRequest", "NotFound"),
            ("JobId", "After", "LastEventId"),
            description="Each event's `id` is the job's `seq`; a browser resumes by itself.",
        )
    }


def _steering(facts: Facts) -> dict[tuple[str, str], Schema]:
    ended = job_answer(
        facts,
        "The job is Canceled.",
        Status.CANCELED,
        sent=headers("Cache-Control", maybe=("Preference-Applied",)),
    )
    if_waited = {"description": "The job has ended: it is Canceled, or it was waited for and ended otherwise."}
    stopping = job_answer(
        facts,
        "The cancel is stored; the job's code has not stopped yet.",
        Status.IN_PROGRESS,
        sent=headers("Cache-Control", "Retry-After"),
        cancel_requested=True,
    )
    queued = job_answer(
        facts,
        "The job is queued again.",
        Status.QUEUED,
        sent=headers("Location", "Cache-Control", "Retry-After"),
        attempt=1,
        seq=5,
    )
    cancel = {"200": {**ended, **if_waited}, "202": stopping}
    purged = {"204": {"description": "The record, its events and its key are gone."}}
    return {
        ("DELETE", "/<job_id>"): operation(
            "deleteJob",
            "Cancel a job, or purge an ended one",
            {**cancel, **purged},
            ("BadRequest", "Forbidden", "NotFound", "WrongState"),
            ("JobId", "Purge", "Prefer"),
        ),
        ("POST", "/<job_id>/cancel"): operation(
            "cancelJob",
            "Cancel a job",
            cancel,
            ("Forbidden", "NotFound", "WrongState"),
            ("JobId", "Prefer"),
            description="`Canceled` is written only when the handler, all that it started and their cleanup have ended.",
        ),
        ("POST", "/<job_id>/retry"): operation(
            "retryJob",
            "Run an ended job again",
            {"202": queued},
            ("Forbidden", "NotFound", "WrongState", "QueueFull"),
            ("JobId",),
        ),
    }


def operation(
    identifier: str,
    summary: str,
    answers: dict[str, Schema],
    refused: tuple[str, ...],
    parameter_names: tuple[str, ...] = (),
    *,
    tag: str = "Jobs",
    description: str | None = None,
    unavailable: bool = True,
) -> Schema:
    """One operation, with the refusals that it names and those that every one can meet."""
    names = (*refused, "ServerError", *(("Unavailable",) if unavailable else ()))
    told = {} if description is None else {"description": description}
    return {
        "operationId": identifier,
        "tags": [tag],
        "summary": summary,
        **told,
        "parameters": parameters(*parameter_names),
        "responses": dict(sorted({**answers, **refusals(*names)}.items())),
    }


def job_answer(
    facts: Facts, description: str, *statuses: Status, sent: Schema, actions: tuple[str, ...] = ACTIONS, **fields: Any
) -> Schema:
    """A response with the job document, an example for each status that it may be in."""
    if facts.shows_own_form:
        return {"description": f"{description} {OWN_FORM}", "headers": sent}
    return {
        "description": description,
        "headers": sent,
        "content": {
            "application/json": {
                "schema": ref(JOB),
                "examples": {status.value: {"value": _example(facts, status, **fields)} for status in statuses},
            }
        },
        "links": links(*actions),
    }


def _example(facts: Facts, status: Status, **fields: Any) -> Schema:
    return job_example(example_job(status, **fields), facts.place)
