"""What the operations of the OpenAPI document share: schemas of callboard's own documents, examples, headers, parameters and links.

Pure. Examples are made by the code that makes the answers, so that they cannot say anything else.
"""

from collections.abc import Sequence
from typing import Any, Final, get_args

import msgspec

from callboard.runtime.core.history import AttemptOutcome, Relation
from callboard.runtime.core.job import MAX_PRIORITY, Failure, Job, Progress, Status
from callboard.web.openapi_schemas import Schema, ref
from callboard.web.render import Place, entity_tag, job_fields

__all__ = [
    "ATTEMPTS",
    "EXAMPLE_ID",
    "EXAMPLE_MS",
    "JOB",
    "OWN_FORM",
    "PAGE",
    "PROBLEM",
    "QUEUE",
    "QUEUES",
    "component_headers",
    "component_links",
    "component_parameters",
    "component_schemas",
    "example_job",
    "headers",
    "job_example",
    "links",
    "parameters",
]

ATTEMPTS: Final = "CallboardAttempts"
JOB: Final = "CallboardJob"
PAGE: Final = "CallboardPage"
PROBLEM: Final = "CallboardProblem"
QUEUE: Final = "CallboardQueue"
QUEUES: Final = "CallboardQueues"
"""Names that an app's own types will hardly have."""

EXAMPLE_ID: Final = "01977f3e-8a4c-7d21-b0f5-3c9d6e2a4b10"
EXAMPLE_MS: Final = 1_767_258_000_000
TEXT: Final[Schema] = {"type": "string"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
MAYBE_TIME: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
URI: Final[Schema] = {"type": "string", "format": "uri-reference"}
UUID: Final[Schema] = {"type": "string", "format": "uuid"}
OWN_FORM: Final = "The app answers in a form of its own."
OPTIONAL: Final = ".optional"
SOMETIMES: Final = frozenset(
    {"Accept", "Async-Job-Id", "Expires", "Idempotency-Replayed", "Location", "Preference-Applied", "Retry-After"}
)
"""Headers that an answer may lack."""
SECONDS: Final[Schema] = {"type": "number", "minimum": 0}


def record(properties: Schema, **more: Any) -> Schema:
    """An object that has all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), **more}


def component_schemas() -> dict[str, Schema]:
    """The schemas of callboard's own documents."""
    links = ("self", "cancel", "events", "stream", "result", "location")
    error = record({"code": TEXT, "message": TEXT, "type": TEXT, "retryable": {"type": "boolean"}})
    progress = record(
        {
            "percent": {"type": ["number", "null"], "minimum": 0, "maximum": 100},
            "message": {"type": ["string", "null"]},
            "data": {"description": "Whatever the handler reported."},
        }
    )
    job = record(
        {
            "id": UUID,
            "name": {"type": "string", "description": "The handler's name."},
            "queue": {"type": "string"},
            "status": {"type": "string", "enum": [status.value for status in Status]},
            "retryCount": WHOLE,
            "maxRetries": WHOLE,
            "attempt": {**WHOLE, "description": "How often the job was claimed; never reset."},
            "createdAt": TIME,
            "startedAt": MAYBE_TIME,
            "completedAt": MAYBE_TIME,
            "lastUpdatedAt": TIME,
            "result": {"description": "The handler's value once Completed, else null."},
            "error": {**error, "type": ["object", "null"]},
            "seq": {**WHOLE, "description": "The number of the job's newest event."},
            "progress": {**progress, "type": ["object", "null"]},
            "scheduledFor": MAYBE_TIME,
            "cancelRequested": {"type": "boolean"},
            "priority": {"type": "integer", "minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY},
            "links": {
                "type": "object",
                "properties": dict.fromkeys(links, URI),
                "required": ["self", "cancel", "events", "stream"],
                "additionalProperties": False,
            },
        },
        additionalProperties=False,
        description="A job as it is now.",
    )
    pointed = record({"pointer": {"type": "string", "format": "json-pointer"}, "detail": {"type": "string"}})
    told = {"type": URI, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"}}
    problem = record(
        told | {"instance": URI},
        description="Why a request was refused (RFC 9457).",
    )
    problem["properties"] |= {
        "errors": {"type": "array", "items": pointed, "description": "Where a body does not fit."},
        "error": {**error, "description": "Why the job failed, where its result was asked for."},
    }
    page = record(
        {
            "jobs": {"type": "array", "items": ref(JOB)},
            "next": {"type": ["string", "null"], "description": "The cursor of the following page."},
        }
    )
    return {JOB: job, PAGE: page, PROBLEM: problem, **_operators_schemas(error)}


def _operators_schemas(error: Schema) -> dict[str, Schema]:
    raised = record(
        {
            "type": TEXT,
            "message": TEXT,
            "traceback": TEXT,
            "relation": {"type": "string", "enum": list(get_args(Relation))},
            "of": {"type": ["integer", "null"], "description": "The place in the list of the one that it hangs on."},
            "notes": {"type": "array", "items": TEXT},
        },
        additionalProperties=False,
    )
    attempt = record(
        {
            "attempt": {"type": "integer", "minimum": 1},
            "worker": {"type": ["string", "null"]},
            "startedAt": TIME,
            "endedAt": TIME,
            "outcome": {"type": "string", "enum": [outcome.value for outcome in AttemptOutcome]},
            "error": {**error, "type": ["object", "null"]},
            "exceptions": {"type": "array", "items": raised},
        },
        additionalProperties=False,
    )
    queue = record(
        {
            "name": TEXT,
            "paused": {"type": "boolean"},
            "queued": WHOLE,
            "scheduled": WHOLE,
            "inProgress": WHOLE,
            "unknown": {
                "type": "object",
                "additionalProperties": WHOLE,
                "description": "By handler's name: ready jobs that no handler of this app takes, up to 10,000 of each name.",
            },
        },
        additionalProperties=False,
    )
    return {
        ATTEMPTS: record({"attempts": {"type": "array", "items": attempt}}),
        QUEUE: queue,
        QUEUES: record({"queues": {"type": "array", "items": ref(QUEUE)}}),
    }


# Examples


def example_job(status: Status, name: str = "ProcessData", queue: str = "default", **fields: Any) -> Job:
    """A job as it could be in that state."""
    job = Job(
        id=EXAMPLE_ID,
        name=name,
        queue=queue,
        status=status,
        max_retries=3,
        seq=1,
        created_ms=EXAMPLE_MS,
        updated_ms=EXAMPLE_MS,
    )
    begun: dict[str, Any] = {"attempt": 1, "started_ms": EXAMPLE_MS + 5, "updated_ms": EXAMPLE_MS + 5, "seq": 2}
    ended: dict[str, Any] = begun | {"completed_ms": EXAMPLE_MS + 1500, "updated_ms": EXAMPLE_MS + 1500, "seq": 4}
    half = Progress(percent=50, message="half of it")
    more: dict[Status, dict[str, Any]] = {
        Status.SCHEDULED: {"due_ms": EXAMPLE_MS + 60_000},
        Status.IN_PROGRESS: {**begun, "progress": half, "updated_ms": EXAMPLE_MS + 700, "seq": 3},
        Status.COMPLETED: {**ended, "progress": half},
        Status.FAILED: {
            **ended,
            "error": Failure(code="NO_STOCK", message="Nothing is left.", type="JobFailed", retryable=False),
        },
        Status.CANCELED: {"completed_ms": EXAMPLE_MS + 1500, "updated_ms": EXAMPLE_MS + 1500, "seq": 2},
    }
    return msgspec.structs.replace(job, **(more.get(status, {}) | fields))


def job_example(job: Job, place: Place) -> Schema:
    """An example of a job's document, as it is rendered for clients that see callboard at ``place``."""
    document: Schema = msgspec.json.decode(msgspec.json.encode(job_fields(job, place)))
    return document


# Headers


def component_headers() -> dict[str, Schema]:
    """Every header of callboard's answers, by its name."""

    def text(description: str, example: str, **schema: Any) -> Schema:
        return {"description": description, "schema": {"type": "string", **schema}, "example": example}

    own = f"/jobs/{EXAMPLE_ID}"
    tag = entity_tag(example_job(Status.QUEUED))
    named = {
        "Accept": text("What is taken instead.", "application/json"),
        "Async-Job-Id": {"description": "The job's id.", "schema": UUID, "example": EXAMPLE_ID},
        "Cache-Control": text("Who may keep the answer, and how.", "no-store"),
        "Content-Location": {"description": "The job whose document this is.", "schema": URI, "example": own},
        "Content-Security-Policy": text("What the page may do.", "default-src 'none'"),
        "ETag": text("The validator of this state of the job.", f'"{tag}"', pattern='^"[^"]+"$'),
        "Expires": text("When the record may be gone.", "Thu, 01 Jan 2026 10:00:00 GMT"),
        "Idempotency-Replayed": text("The request was a repeat: this is the job of the first.", "true", const="true"),
        "Location": {"description": "Where to look.", "schema": URI, "example": own},
        "Preference-Applied": text("The job was waited for.", "wait", const="wait"),
        "Retry-After": {
            "description": "Seconds after which it makes sense to ask again.",
            "schema": WHOLE,
            "example": 1,
        },
    }
    always = {name: {**header, "required": True} for name, header in named.items()}
    return always | {name + OPTIONAL: header for name, header in named.items() if name in SOMETIMES}


def headers(*required: str, maybe: Sequence[str] = ()) -> Schema:
    """References to headers that are always there, and to some that may be."""
    names = {name: name for name in required} | {name: name + OPTIONAL for name in maybe}
    return {name: {"$ref": f"#/components/headers/{component}"} for name, component in names.items()}


# Parameters


def component_parameters() -> dict[str, Schema]:
    """Every parameter but those of the app's routes, by a name of its own."""

    def one(place: str, name: str, schema: Schema, description: str, **more: Any) -> Schema:
        return {"name": name, "in": place, "required": False, "description": description, "schema": schema, **more}

    flag: Schema = {"type": "boolean"}
    key: Schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": '^[^\\s"](.*[^\\s"])?$'}
    when: Schema = {**TIME, "description": "RFC 3339 with an offset, a year ahead at most."}
    tag = f'"{entity_tag(example_job(Status.QUEUED))}"'
    listed = {"type": "array", "items": {"type": "string", "enum": [status.value for status in Status]}}
    return {
        "JobId": {**one("path", "job_id", UUID, "The job's id."), "required": True},
        "QueueName": {
            **one("path", "queue", {"type": "string", "minLength": 1, "pattern": "^[^/]"}, "The queue's name."),
            "required": True,
        },
        "After": one("query", "after", WHOLE, "Events after that `seq` only."),
        "LastEventId": one("header", "Last-Event-ID", WHOLE, "The same, as browsers send it; it counts for more."),
        "Wait": one("query", "wait", SECONDS, "Hold the answer so many seconds: until the job has ended or changed."),
        "Redirect": one("query", "redirect", flag, "Whether a Completed job answers with where its result is."),
        "Purge": one("query", "purge", flag, "Remove an ended job instead of cancelling it."),
        "Status": one("query", "status", listed, "Jobs in one of these states.", style="form", explode=True),
        "Name": one("query", "name", {"type": "string"}, "Jobs of that handler."),
        "Queue": one("query", "queue", {"type": "string"}, "Jobs of that queue."),
        "Limit": one(
            "query", "limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}, "Jobs a page."
        ),
        "Cursor": one("query", "cursor", {"type": "string"}, "`next` of the page before."),
        "Prefer": one(
            "header", "Prefer", {"type": "string"}, "`wait=5` waits for the end (RFC 7240).", example="wait=5"
        ),
        "IfNoneMatch": one("header", "If-None-Match", {"type": "string"}, "A tag that is known already.", example=tag),
        "IdempotencyKey": one("header", "Idempotency-Key", key, "The same request with the same key is one job."),
        "RequestId": one("header", "X-Async-Request-Id", UUID, "The job's id, chosen by the client."),
        "JobDelay": one("header", "Job-Delay", {**SECONDS, "maximum": 366 * 86400}, "Run it in so many seconds."),
        "JobRunAt": one("header", "Job-Run-At", when, "Run it then."),
        "JobTimeout": one(
            "header", "Job-Timeout", {"type": "number", "exclusiveMinimum": 0}, "Seconds an attempt, less than usual."
        ),
        "JobPriority": one(
            "header",
            "Job-Priority",
            {"type": "integer", "minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY},
            "Higher runs first.",
        ),
    }


def parameters(*names: str) -> list[Schema]:
    """References to shared parameters."""
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


# Links


def component_links() -> dict[str, Schema]:
    """What can be done next with a job whose document an answer holds."""

    def link(operation: str, description: str, **more: Any) -> Schema:
        own = {"job_id": "$response.body#/id", **more}
        return {"operationId": operation, "parameters": own, "description": description}

    return {
        "ReadJob": link("getJob", "Read the job, or wait for it."),
        "ReadAttempts": link("listAttempts", "Read how its attempts ended."),
        "ReadResult": link("getResult", "Read its result."),
        "CancelJob": link("cancelJob", "Cancel it."),
        "RetryJob": link("retryJob", "Run it again."),
        "PurgeJob": link("deleteJob", "Remove it, once it has ended.", purge="true"),
    }


def links(*names: str) -> Schema:
    """References to shared links."""
    return {name: {"$ref": f"#/components/links/{name}"} for name in names}
