"""The records of one job: what is stored, and nothing about how or where.

Times are integer milliseconds since the Unix epoch (``_ms``); JSON values are kept as encoded text (``msgspec.Raw``), so
that no floor decodes what it only passes on; ``NULL`` stands for no value.
"""

from enum import StrEnum
from typing import Final

from msgspec import Raw, Struct

__all__ = [
    "LIVE",
    "MAX_PRIORITY",
    "NULL",
    "SCHEMA",
    "TERMINAL",
    "WAITING",
    "Failure",
    "Job",
    "Progress",
    "Request",
    "Status",
]

NULL: Final = Raw(b"null")

SCHEMA: Final = 1
"""Layout of the stored records. Fields may be added with defaults under the same number; anything else raises it."""

MAX_PRIORITY: Final = 1000
"""Priorities lie in -1000..1000, higher first. Source: the wire contract."""


class Status(StrEnum):
    """The six states; the values are what clients see."""

    QUEUED = "Queued"
    SCHEDULED = "Scheduled"
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELED = "Canceled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED})
LIVE = frozenset(Status) - TERMINAL
WAITING = frozenset({Status.QUEUED, Status.SCHEDULED})
"""What ``max_queue_size`` counts."""


class Progress(Struct, frozen=True, kw_only=True):
    """How far the current attempt is. ``percent`` is 0..100 or None; ``data`` is any JSON value."""

    percent: float | None = None
    message: str | None = None
    data: Raw = NULL


class Failure(Struct, frozen=True, kw_only=True):
    """Why the last attempt failed, as a client may see it: never a traceback."""

    code: str
    message: str
    type: str
    retryable: bool


class Request(Struct, frozen=True, kw_only=True):
    """What was asked; written once and never changed.

    ``body`` is the JSON text, ``NULL`` where there was none. ``headers`` and ``query_params`` are (name, value) pairs in
    order, repeated names kept. ``route_params`` maps a name to a ``[type, value]`` pair (``["uuid", "..."]``), so that
    the handler sees typed values on any process. ``trace_context`` is where the submission stands in a trace, as W3C headers
    (``traceparent``, ``tracestate``); empty without one.
    """

    body: Raw = NULL
    headers: tuple[tuple[str, str], ...] = ()
    route_params: dict[str, tuple[str, str | int | float]] = {}
    query_params: tuple[tuple[str, str], ...] = ()
    trace_context: dict[str, str] = {}


class Job(Struct, frozen=True, kw_only=True):
    """One job as last committed. Every commit appends at least one event, so ``seq`` is also the record's version."""

    id: str
    """A UUID in its canonical lower-case form."""
    serial: int = 0
    """Given by the store at insertion, growing in order of acceptance and never given twice; 0 before."""
    seq: int = 0
    """Number of the newest event."""
    name: str
    queue: str = "default"
    status: Status
    priority: int = 0
    max_retries: int = 0
    retry_count: int = 0
    attempt: int = 0
    """How often the job was claimed; never reset."""
    max_lost_leases: int = 3
    lost_leases: int = 0
    """Leases that lapsed since the job was submitted or retried by hand; releases are not counted."""
    timeout_seconds: float | None = None
    """Bound of one attempt; None for no bound."""
    created_ms: int
    updated_ms: int
    started_ms: int | None = None
    completed_ms: int | None = None
    due_ms: int | None = None
    """When a Scheduled job may run; None in every other state."""
    ready_ms: int | None = None
    """Since when it may, or until it was claimed might, be claimed: accepted, due, retried or handed back."""
    begun_ms: int | None = None
    """When the first attempt since it was submitted, or retried by hand, was claimed."""
    fence: int = 0
    """Token of the claim that owns the job now; 0 when nobody does."""
    worker: str | None = None
    """Name of the runtime that holds the claim."""
    cancel_requested: bool = False
    progress: Progress | None = None
    result: Raw = NULL
    """JSON text of the handler's value once Completed (``null`` is a value)."""
    error: Failure | None = None
    location: str | None = None
    """Where the handler's mapping says the created resource is; set with Completed."""
    owner: str | None = None
    """Who submitted it, by the app's ``identify``; never shown."""
    key: str | None = None
    """Digest of the caller's idempotency key; unique in a store while the record lives."""
    fingerprint: str | None = None
    """Digest of what was asked, to tell a repeat from a clash."""
    schema: int = SCHEMA
    """Of this record's layout; a reader refuses a newer one."""
