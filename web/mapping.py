"""A typed handler on a route of the app's: one HTTP request becomes one accepted job, or a refusal with nothing queued.

Owns the order of the steps: right, options, body, is it a repeat, the app's own validation, acceptance, answer. It decides nothing
about the job's life; the runtime does. A request with many jobs goes to ``ndjson``.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw, Struct
from msgspec.structs import replace
from quart import Response, current_app, request

from callboard.runtime import Accepted, Submission
from callboard.runtime.core.errors import (
    CallboardError,
    InvalidRequest,
    JobExists,
    JobNotFound,
    KeyReused,
    QueueFull,
    ShuttingDown,
    StoreUnavailable,
)
from callboard.runtime.core.job import NULL, Job
from callboard.runtime.handlers import Handler
from callboard.web import parsing
from callboard.web.answers import guarded, job_answer, place_of
from callboard.web.body import decoded, read_body
from callboard.web.ndjson import submit_lines
from callboard.web.problems import Refusal
from callboard.web.render import job_document
from callboard.web.responses import Responses, SubmittedResponse, shaped
from callboard.web.submission import Asked, ask, priority_of

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["Mapping", "View", "make_view"]

_EMPTY_OBJECT: Final = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*\}[ \t\r\n]*")

View = Callable[..., Awaitable[Any]]


class Mapping(Struct, frozen=True, kw_only=True):
    """One handler on one route."""

    method: str
    route: str
    handler: Handler
    validate: Callable[..., Any] | None = None
    """Called with the decoded body (with nothing, without one) before the job is accepted, inside Quart's request context.
    None goes on; anything else is the answer, as a Quart view would return it. It may be async."""
    redirect: bool = False
    allow_delay: bool = False
    allow_timeout: bool = False
    allow_priority: bool = False
    decorators: Sequence[Callable[[View], View]] = ()
    """Wrapped round the view, the first outermost, as if they stood above it."""
    responses: Responses | None = None
    """Answers of this mapping's own form, each instead of the board's."""

    async def validated(self, body: Any) -> Any:
        """What the validation hook answers instead; None goes on."""
        if self.validate is None:
            return None
        answer = self.validate(body) if self.handler.takes_body else self.validate()
        return await answer if inspect.isawaitable(answer) else answer


def make_view(board: "Callboard", mapping: Mapping) -> View:
    """The Quart view of a mapping, its decorators round it."""

    async def submit(**route_params: Any) -> Any:
        return await _submit(board, mapping, route_params)

    view: View = guarded(request, submit, board.responses_of(mapping))
    for decorate in reversed(mapping.decorators):
        view = decorate(view)
    return view


async def _submit(board: "Callboard", mapping: Mapping, route_params: dict[str, Any]) -> Any:
    await board.access.require(request, "submit")
    owner = await board.access.owner(request)
    if parsing.is_ndjson(request.headers.get("Content-Type", "")):
        return await submit_lines(board, mapping, route_params, owner)
    asked = ask(board, mapping, route_params, owner)
    text, body = await _body(mapping.handler, board.runtime.config.max_body_bytes)
    submission = asked.submission(text)
    accepted = await _repeated(board, mapping, asked, submission)
    if accepted is None:
        answered = await mapping.validated(body)
        if answered is not None:
            return await current_app.make_response(answered)
        priority = priority_of(mapping.handler, asked, body)
        accepted = await _accepted(board, replace(submission, priority=priority))
    if accepted.replayed and not await board.access.allows(request, "read", accepted.job):
        raise JobExists("taken") if submission.job_id is not None else KeyReused("taken")
    return await _answer(board, mapping, accepted)


async def _body(handler: Handler, max_body_bytes: int) -> tuple[Raw, Any]:
    """The body's text and its decoded value; NULL and None for a handler that takes none."""
    text = await read_body(max_body_bytes)
    if not handler.takes_body:
        # Many a client sends an empty object where it has nothing to say.
        if text and not _EMPTY_OBJECT.fullmatch(text):
            raise InvalidRequest("this takes no body: send none, or {}")
        return NULL, None
    if not text:
        raise InvalidRequest("the body is missing: send JSON")
    if not parsing.is_json(request.headers.getlist("Content-Type")):
        detail = "Send the body as application/json, in UTF-8."
        raise Refusal(415, "unsupported-media-type", detail, headers={"Accept": "application/json"})
    return decoded(handler, text)


async def _repeated(board: "Callboard", mapping: Mapping, asked: Asked, submission: Submission) -> Accepted | None:
    """The job of an earlier request of the same, where the app's validation might refuse it now."""
    if mapping.validate is None or not asked.is_repeatable:
        return None
    (found,) = await board.runtime.find_many([submission])
    if isinstance(found, CallboardError):
        raise found
    return found


async def _accepted(board: "Callboard", submission: Submission) -> Accepted:
    try:
        return await board.runtime.accept(submission)
    except QueueFull:
        board.metrics.refused(submission.name)
        raise


async def _answer(board: "Callboard", mapping: Mapping, accepted: Accepted) -> Response:
    default, job = await _default(board, accepted)
    form = board.responses_of(mapping).submitted
    if form is None:
        return default
    record = SubmittedResponse(
        job=job,
        document=job_document(job, place_of(request, board.prefix)),
        status=default.status_code,
        headers=dict(default.headers),
        replayed=accepted.replayed,
        request=request._get_current_object(),  # type: ignore[attr-defined]
    )
    return await shaped(form, record, default)


async def _default(board: "Callboard", accepted: Accepted) -> tuple[Response, Job]:
    """The contract's answer, and the job that it shows."""
    job = accepted.job
    wait = parsing.preferred_wait(request.headers.getlist("Prefer"))
    if wait is not None and not job.status.is_terminal:
        job = await _waited(board, job, wait)
    headers = {"Async-Job-Id": job.id}
    if accepted.replayed:
        headers["Idempotency-Replayed"] = "true"
    place = place_of(request, board.prefix)
    ended = job.status.is_terminal
    if ended and wait is not None:
        headers["Preference-Applied"] = "wait"
    if ended and (accepted.replayed or wait is not None):
        return job_answer(job, place, 200, {**headers, "Content-Location": place.job(job.id)}), job
    answer = job_answer(job, place, 202, {**headers, "Location": place.job(job.id)})
    answer.headers.setdefault("Retry-After", "1")
    return answer, job


async def _waited(board: "Callboard", job: Job, wait_seconds: float) -> Job:
    # The job is accepted: whatever happens from here on, the answer is not a refusal.
    seconds = min(wait_seconds, board.runtime.config.max_wait_seconds)
    try:
        return await board.runtime.wait(job.id, timeout_seconds=seconds)
    except (JobNotFound, StoreUnavailable, ShuttingDown):
        return job
