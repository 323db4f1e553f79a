"""From what was asked to the record of a new job. Pure but for the id, the time and the settings, which are passed in."""

from hashlib import blake2b
from typing import Any

from msgspec import Raw, Struct
from msgspec.structs import replace

from callboard.runtime.config import MAX_SECONDS, Config
from callboard.runtime.core.errors import CallboardError, ConfigError, InvalidRequest
from callboard.runtime.core.job import MAX_PRIORITY, NULL, Job, Request, Status
from callboard.runtime.handlers import Handler
from callboard.runtime.payload import decode, encode

__all__ = ["Accepted", "Submission", "new_job", "with_body"]

MAX_DELAY_MS = 366 * 24 * 3600 * 1000
"""A job may be put off by a year at most: more is a unit mixed up."""

MAX_RETRIES = 1_000_000
"""More is no bound at all."""


class Submission(Struct, frozen=True, kw_only=True):
    """One request to run a handler; None means the handler's own setting.

    ``job_id`` is a UUID that the caller chose. ``key`` is a digest of the caller's idempotency key, ``fingerprint`` one of
    what is asked; a repeat is told from a clash by it. At most one of ``delay_ms`` and ``run_at_ms`` (milliseconds
    since the epoch) may be given.
    """

    name: str
    request: Request = Request()
    queue: str | None = None
    priority: int | None = None
    job_id: str | None = None
    key: str | None = None
    fingerprint: str | None = None
    owner: str | None = None
    delay_ms: int | None = None
    run_at_ms: int | None = None
    max_retries: int | None = None
    timeout_seconds: float | None = None


def with_body(
    handler: Handler, template: Submission, body: Any, *, key: str | None = None, job_id: str | None = None
) -> Submission:
    """``template`` with ``body``, a value of the handler's type or what msgspec makes of the same JSON, and what goes by it.

    Raises InvalidRequest, InvalidPayload, ConfigError.
    """
    if body is not None and not handler.takes_body:
        raise InvalidRequest(f"handler {handler.name!r} takes no body")
    encoded = _encoded(body) if handler.takes_body else NULL
    decoded = _decoded(handler, encoded) if handler.takes_body else None
    fingerprint = f"{handler.name} {blake2b(bytes(encoded), digest_size=16).hexdigest()}" if job_id or key else None
    return replace(
        template,
        request=replace(template.request, body=encoded),
        priority=handler.priority_of(decoded) if template.priority is None else template.priority,
        key=key,
        job_id=job_id,
        fingerprint=fingerprint,
    )


class Accepted(Struct, frozen=True):
    """The job is in the store. ``replayed``: it was there before, from an earlier submission of the same."""

    job: Job
    replayed: bool


def new_job(submission: Submission, handler: Handler, config: Config, *, job_id: str, now_ms: int) -> Job:
    """The record to insert. Raises InvalidRequest for a value that cannot be meant."""
    due_ms = _due_ms(submission, now_ms)
    priority = submission.priority
    if priority is None:
        priority = handler.priority if isinstance(handler.priority, int) else 0
    is_whole = isinstance(priority, int) and not isinstance(priority, bool)
    if not (is_whole and -MAX_PRIORITY <= priority <= MAX_PRIORITY):
        raise InvalidRequest(f"the priority is {priority}: give a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}")
    timeout = config.timeout_seconds if handler.timeout_seconds is None else handler.timeout_seconds
    if submission.timeout_seconds is not None:
        if not 0 < submission.timeout_seconds <= MAX_SECONDS:
            raise InvalidRequest(
                f"the timeout is {submission.timeout_seconds}: give seconds, more than 0 and at most {MAX_SECONDS:g}"
            )
        timeout = submission.timeout_seconds if timeout is None else min(timeout, submission.timeout_seconds)
    if submission.max_retries is not None and not 0 <= submission.max_retries <= MAX_RETRIES:
        raise InvalidRequest(f"max_retries is {submission.max_retries}: give a whole number from 0 to {MAX_RETRIES}")
    return Job(
        id=job_id,
        name=handler.name,
        queue=submission.queue or handler.queue,
        status=Status.QUEUED if due_ms is None else Status.SCHEDULED,
        priority=priority,
        max_retries=_first(submission.max_retries, handler.max_retries, config.max_retries),
        max_lost_leases=_first(handler.max_lost_leases, config.max_lost_leases),
        timeout_seconds=timeout,
        created_ms=now_ms,
        updated_ms=now_ms,
        due_ms=due_ms,
        owner=submission.owner,
        key=submission.key,
        fingerprint=submission.fingerprint,
    )


def _due_ms(submission: Submission, now_ms: int) -> int | None:
    if submission.delay_ms is not None and submission.run_at_ms is not None:
        raise InvalidRequest("give either a delay or a time to run at, not both")
    due_ms = submission.run_at_ms
    if submission.delay_ms is not None:
        due_ms = now_ms + submission.delay_ms
        if submission.delay_ms < 0:
            raise InvalidRequest(f"the delay is {submission.delay_ms / 1000:g} s: give 0 or more")
    if due_ms is None or due_ms <= now_ms:
        return None
    if due_ms - now_ms > MAX_DELAY_MS:
        raise InvalidRequest("the job would run more than a year from now")
    return due_ms


def _decoded(handler: Handler, encoded: Raw) -> Any:
    try:
        return decode(handler.request_type, encoded)
    except CallboardError:
        raise
    except (
        Exception
    ) as error:  # the type's own code: what it raises in the place of ValueError and TypeError is the app's bug
        raise ConfigError(f"the type of handler {handler.name!r} could not judge the body: {error}") from error


def _encoded(body: Any) -> Raw:
    try:
        return encode(body)
    except Exception as error:  # looking at the value runs the app's own code
        raise InvalidRequest(f"the body has no JSON form: {error}") from error


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
