"""From an HTTP request to what the runtime is asked: options, idempotency, and what of the request is stored.

Everything here holds for the whole request, whether it brings one job or many; only the body is each job's own.
"""

import math
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.structs import replace
from quart import request

from callboard.runtime import Submission
from callboard.runtime.core.errors import InvalidRequest
from callboard.runtime.core.job import Request
from callboard.runtime.handlers import Handler
from callboard.web import parsing

if TYPE_CHECKING:
    from callboard.web.board import Callboard
    from callboard.web.mapping import Mapping

__all__ = ["UNSTORED_HEADERS", "Asked", "ask", "priority_of"]

UNSTORED_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token"})
"""Request headers that never reach the store. Source: the wire contract."""


class Asked(Struct, frozen=True, kw_only=True):
    """What one request asks for each of its jobs."""

    template: Submission
    """Everything but the body and what goes by it."""
    priority: int | None
    """Of Job-Priority."""
    key: str | None
    """The Idempotency-Key."""
    query_string: bytes
    """Of the request, without the values that are not stored."""

    @property
    def is_repeatable(self) -> bool:
        """Whether a repeat of the request is known as one."""
        return self.key is not None or self.template.job_id is not None

    def submission(self, text: Raw, number: int | None = None) -> Submission:
        """The submission of the job with that body; ``number`` tells the jobs of one request apart. The priority is not judged yet."""
        if not self.is_repeatable:
            return replace(self.template, request=replace(self.template.request, body=text))
        owner = self.template.owner
        key = None
        if self.key is not None:
            parts = [owner, self.key] if number is None else [owner, self.key, str(number)]
            key = parsing.digest("Idempotency-Key", *parts)
        return replace(
            self.template,
            request=replace(self.template.request, body=text),
            key=key,
            fingerprint=parsing.digest(request.method, request.path, self.query_string, bytes(text), owner),
        )


def ask(board: "Callboard", mapping: "Mapping", route_params: dict[str, Any], owner: str | None) -> Asked:
    """What the current request asks. Raises InvalidRequest for what cannot be meant."""
    options = _options(mapping, board.runtime.config.timeout_seconds)
    key = parsing.idempotency_key(request.headers.getlist("Idempotency-Key"))
    template = Submission(
        name=mapping.handler.name,
        request=_request(route_params, board),
        job_id=_chosen_id(key),
        owner=owner,
        delay_ms=options.delay_ms,
        run_at_ms=options.run_at_ms,
        timeout_seconds=options.timeout_seconds,
    )
    query_string = parsing.redacted(request.query_string, _redacted(board))
    return Asked(template=template, priority=options.priority, key=key, query_string=query_string)


def priority_of(handler: Handler, asked: Asked, body: Any) -> int:
    """The priority of the job with that decoded body. Raises ConfigError, which is answered as the app's bug that it is."""
    return handler.priority_of(body) if asked.priority is None else asked.priority


class Options(Struct, frozen=True, kw_only=True):
    """What the request's ``Job-*`` headers ask for."""

    delay_ms: int | None = None
    run_at_ms: int | None = None
    timeout_seconds: float | None = None
    priority: int | None = None


def _options(mapping: "Mapping", default_timeout_seconds: float | None) -> Options:
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


def _request(route_params: dict[str, Any], board: "Callboard") -> Request:
    config = board.runtime.config
    unstored = UNSTORED_HEADERS | {name.lower() for name in config.unstored_headers}
    scope_headers = request.scope["headers"]
    headers = [(name.decode("latin1").title(), value.decode("latin1")) for name, value in scope_headers]
    redacted = _redacted(board)
    return Request(
        headers=tuple(pair for pair in headers if pair[0].lower() not in unstored),
        route_params={name: _tagged(name, value) for name, value in route_params.items()},
        query_params=tuple(pair for pair in request.args.items(multi=True) if pair[0].lower() not in redacted),
    )


def _redacted(board: "Callboard") -> frozenset[str]:
    return frozenset(name.lower() for name in board.runtime.config.redact_query)


def _tagged(name: str, value: Any) -> tuple[str, str | int | float]:
    if isinstance(value, UUID):
        return ("uuid", str(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ("str", str(value))
    try:
        is_finite = math.isfinite(value)
    except OverflowError:
        # A whole number of more than 308 digits: nothing that reads JSON would take it.
        is_finite = False
    if not is_finite:
        raise InvalidRequest(f"{name} in the path is too large a number")
    return ("float" if isinstance(value, float) else "int", value)


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
