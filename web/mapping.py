"""A typed handler on a route of the app's: one HTTP request becomes one accepted job, or a refusal with nothing queued.

Owns the order of the steps: right, options, body, the app's own validation, acceptance, answer. It decides nothing about the
job's life; the runtime does.
"""

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec import Raw, Struct
from quart import Response, current_app, request
from quart.wrappers.base import BaseRequestWebsocket

from callboard.runtime import Accepted, Submission
from callboard.runtime.core.errors import (
    ConfigError,
    InvalidRequest,
    JobExists,
    JobNotFound,
    KeyReused,
    QueueFull,
    ShuttingDown,
    StoreUnavailable,
)
from callboard.runtime.core.job import NULL, Job, Request
from callboard.runtime.handlers import Handler
from callboard.runtime.payload import decode
from callboard.web import parsing, problems
from callboard.web.answers import guarded, job_answer, place_of
from callboard.web.limits import is_too_large
from callboard.web.problems import Refusal

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["UNSTORED_HEADERS", "Mapping", "make_view"]

UNSTORED_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token"})
"""Request headers that never reach the store. Source: the wire contract."""

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


class Options(Struct, frozen=True, kw_only=True):
    """What the request's ``Job-*`` headers ask for."""

    delay_ms: int | None = None
    run_at_ms: int | None = None
    timeout_seconds: float | None = None
    priority: int | None = None


def make_view(board: "Callboard", mapping: Mapping) -> View:
    """The Quart view of a mapping, its decorators round it."""

    async def submit(**route_params: Any) -> Any:
        return await _submit(board, mapping, route_params)

    view: View = guarded(request, submit)
    for decorate in reversed(mapping.decorators):
        view = decorate(view)
    return view


async def _submit(board: "Callboard", mapping: Mapping, route_params: dict[str, Any]) -> Any:
    await board.access.require(request, "submit")
    owner = await board.access.owner(request)
    options = _options(mapping, board.runtime.config.timeout_seconds)
    text, body = await _body(mapping.handler, board.runtime.config.max_body_bytes)
    answered = await _validated(mapping, body)
    if answered is not None:
        return await current_app.make_response(answered)
    stored = _request(text, route_params, board)
    submission = _submission(mapping, options, stored, owner, _priority(mapping.handler, options, body))
    try:
        accepted = await board.runtime.accept(submission)
    except QueueFull as error:
        board.metrics.refused(mapping.handler.name)
        again = board.runtime.retry_after_seconds(mapping.handler.queue)
        return problems.of_error(error, request, retry_after_seconds=again)
    if accepted.replayed and not await board.access.allows(request, "read", accepted.job):
        raise JobExists("taken") if submission.job_id is not None else KeyReused("taken")
    return await _answer(board, accepted)


def _options(mapping: Mapping, default_timeout_seconds: float | None) -> Options:
    delay = _option("Job-Delay", mapping.allow_delay)
    run_at = _option("Job-Run-At", mapping.allow_delay)
    timeout = _option("Job-Timeout", mapping.allow_timeout)
    priority = _option("Job-Priority", mapping.allow_priority)
    if delay is not None and run_at is not None:
        raise InvalidRequest("Job-Delay and Job-Run-At are given together: give one of them")
    return Options(
        delay_ms=None if delay is None else math.ceil(parsing.seconds(delay, "Job-Delay") * 1000),
        run_at_ms=None if run_at is None else parsing.run_at_ms(run_at),
        timeout_seconds=None if timeout is None else _timeout(timeout, mapping.handler, default_timeout_seconds),
        priority=None if priority is None else parsing.priority(priority),
    )


def _option(header: str, allowed: bool) -> str | None:
    value = parsing.single(request.headers.getlist(header), header)
    if value is not None and not allowed:
        raise InvalidRequest(f"{header} is not allowed here: leave it out")
    return value


def _timeout(text: str, handler: Handler, default_seconds: float | None) -> float:
    most = default_seconds if handler.timeout_seconds is None else handler.timeout_seconds
    value = parsing.seconds(text, "Job-Timeout")
    if value <= 0 or (most is not None and value > most):
        bound = "" if most is None else f" and at most {most:g}"
        raise InvalidRequest(f"Job-Timeout must be more than 0{bound} seconds: it may only lower the handler's own")
    return value


async def _body(handler: Handler, max_body_bytes: int) -> tuple[Raw, Any]:
    """The body's text and its decoded value; NULL and None for a handler that takes none."""
    if (request.content_length or 0) > max_body_bytes:
        raise _too_large(max_body_bytes)
    text = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    if is_too_large(request) or len(text) > max_body_bytes:
        raise _too_large(max_body_bytes)
    if not handler.takes_body:
        # Many a client sends an empty object where it has nothing to say.
        if text and not _EMPTY_OBJECT.fullmatch(text):
            raise InvalidRequest("this takes no body: send none, or {}")
        return NULL, None
    if not text:
        raise InvalidRequest("the body is missing: send JSON")
    if not _is_json(request):
        raise Refusal(
            415, "unsupported-media-type", "Send the body as application/json.", headers={"Accept": "application/json"}
        )
    decode(Any, text)
    return Raw(text), decode(handler.request_type, text)


def _too_large(max_body_bytes: int) -> Refusal:
    return Refusal(
        413, "content-too-large", f"The body is larger than {max_body_bytes} bytes.", title="Content Too Large"
    )


def _is_json(source: BaseRequestWebsocket) -> bool:
    kind: str = source.mimetype
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _validated(mapping: Mapping, body: Any) -> Any:
    if mapping.validate is None:
        return None
    answer = mapping.validate(body) if mapping.handler.takes_body else mapping.validate()
    return await answer if inspect.isawaitable(answer) else answer


def _priority(handler: Handler, options: Options, body: Any) -> int:
    if options.priority is not None:
        return options.priority
    try:
        return handler.priority_of(body)
    except Exception as error:
        # The client has done nothing wrong: this is answered as the app's bug that it is.
        raise ConfigError(f"the priority function of handler {handler.name!r} gave no priority: {error}") from error


def _request(text: Raw, route_params: dict[str, Any], board: "Callboard") -> Request:
    config = board.runtime.config
    unstored = UNSTORED_HEADERS | {name.lower() for name in config.unstored_headers}
    scope_headers = request.scope["headers"]
    headers = [(name.decode("latin1").title(), value.decode("latin1")) for name, value in scope_headers]
    redacted = frozenset(config.redact_query)
    return Request(
        body=text,
        headers=tuple(pair for pair in headers if pair[0].lower() not in unstored),
        route_params={name: _tagged(name, value) for name, value in route_params.items()},
        query_params=tuple(pair for pair in request.args.items(multi=True) if pair[0] not in redacted),
    )


def _tagged(name: str, value: Any) -> tuple[str, str | int | float]:
    if isinstance(value, UUID):
        return ("uuid", str(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ("str", str(value))
    if not math.isfinite(value):
        raise InvalidRequest(f"{name} in the path is too large a number")
    return ("float" if isinstance(value, float) else "int", value)


def _submission(mapping: Mapping, options: Options, stored: Request, owner: str | None, priority: int) -> Submission:
    key = parsing.idempotency_key(request.headers.getlist("Idempotency-Key"))
    job_id = _chosen_id(key)
    fingerprint = None
    if key is not None or job_id is not None:
        fingerprint = parsing.digest(request.method, request.path, request.query_string, bytes(stored.body), owner)
    return Submission(
        name=mapping.handler.name,
        request=stored,
        priority=priority,
        job_id=job_id,
        key=None if key is None else parsing.digest("Idempotency-Key", owner, key),
        fingerprint=fingerprint,
        owner=owner,
        delay_ms=options.delay_ms,
        run_at_ms=options.run_at_ms,
        timeout_seconds=options.timeout_seconds,
    )


def _chosen_id(key: str | None) -> str | None:
    texts = request.headers.getlist("X-Async-Request-Id")
    if not texts:
        return None
    if key is not None:
        raise InvalidRequest("X-Async-Request-Id and Idempotency-Key are given together: give one of them")
    job_id = parsing.job_id(texts[0].strip()) if len(texts) == 1 else None
    if job_id is None:
        raise InvalidRequest("X-Async-Request-Id must be one UUID, such as 01234567-89ab-7def-8123-456789abcdef")
    return job_id


async def _answer(board: "Callboard", accepted: Accepted) -> Response:
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
        return job_answer(job, place, 200, {**headers, "Content-Location": place.job(job.id)})
    answer = job_answer(job, place, 202, {**headers, "Location": place.job(job.id)})
    answer.headers.setdefault("Retry-After", "1")
    return answer


async def _waited(board: "Callboard", job: Job, wait_seconds: float) -> Job:
    # The job is accepted: whatever happens from here on, the answer is not a refusal.
    seconds = min(wait_seconds, board.runtime.config.max_wait_seconds)
    try:
        return await board.runtime.wait(job.id, timeout_seconds=seconds)
    except (JobNotFound, StoreUnavailable, ShuttingDown):
        return job
