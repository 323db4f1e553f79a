"""Refusals as ``application/problem+json`` (RFC 9457). Owns every error body of callboard's own routes.

Nothing here may show a traceback, a store's address or what belongs to another caller: errors of the store and of the
runtime itself get fixed sentences, whatever their text says.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct
from quart import Response, current_app
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException

from callboard.runtime.core.errors import (
    CallboardError,
    InvalidPayload,
    JobExists,
    JobNotFound,
    KeyReused,
    QueueFull,
    ShuttingDown,
    StoreUnavailable,
)
from callboard.web.render import PATH_SIGNS

__all__ = ["RETRY_AFTER_SECONDS", "Problem", "Refusal", "answer", "describe", "in_words", "instance_of"]

RETRY_AFTER_SECONDS: Final = 5
"""What a client is told to wait when nothing better is known: the store is away, or the app restarts."""

_FIXED: Final[dict[type[CallboardError], str]] = {
    JobNotFound: "There is no such job.",
    JobExists: "That id is taken by another request. Choose a new one.",
    KeyReused: "That Idempotency-Key came with another request before. Use a new key for a new request.",
    QueueFull: "The queue holds as many waiting jobs as it may; nothing was accepted. Try again later.",
    StoreUnavailable: "The store cannot be reached at the moment. Repeat the request later;"
    " a submission without an Idempotency-Key or an id of its own may then be accepted twice.",
    ShuttingDown: "This server takes no new work. Repeat the request; it is safe.",
}
"""Errors whose own text is not for clients."""


class Refusal(CallboardError):
    """A refusal that only HTTP knows: forbidden, wrong media type, unknown path and their like."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.http_status = status
        self.kind = kind
        self.title = title or HTTPStatus(status).phrase
        self.headers = headers or {}
        self.members = members or {}


class Problem(Struct, frozen=True):
    """What a client is told of one refusal: the members of the document, and the headers that go with it."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def status(self) -> int:
        status: int = self.body["status"]
        return status


def describe(error: Exception, request: BaseRequestWebsocket, *, retry_after_seconds: int | None = None) -> Problem:
    """What a request that ended in ``error`` is told; ``retry_after_seconds`` where the runtime knows better.

    An ``abort(...)`` of the app's or a limit of Quart's keeps its text and its headers; a bug gets a fixed sentence.
    """
    if isinstance(error, CallboardError) and (error.http_status < 500 or error.retry_helps):
        return _of_known(error, request, retry_after_seconds)
    if isinstance(error, HTTPException):
        kept = {
            name: value for name, value in error.get_headers() if name.lower() not in ("content-type", "content-length")
        }
        kind = _kebab(type(error).__name__)
        return _problem(request, error.code or 500, kind, error.name, error.description or error.name, kept, {})
    detail = "Something went wrong on the server. It has been logged."
    return _problem(request, 500, "internal-error", HTTPStatus(500).phrase, detail, {}, {})


def in_words(error: Exception, request: BaseRequestWebsocket) -> tuple[str, str]:
    """The kind and the detail of a refusal, for where no response is sent: an error message on a websocket."""
    told = describe(error, request).body
    return told["type"].rpartition(":")[2], told["detail"]


def answer(problem: Problem, request: BaseRequestWebsocket) -> Response:
    """The problem as a response."""
    response: Response = current_app.response_class(
        msgspec.json.encode(problem.body),
        status=problem.status,
        headers=problem.headers,
        content_type="application/problem+json",
    )
    response.headers.setdefault("Cache-Control", "no-store")
    if request.scope["type"] == "websocket":
        # Hypercorn cannot use the connection again after a refused handshake: the next request on it would end the server.
        response.headers["Connection"] = "close"
    return response


def instance_of(request: BaseRequestWebsocket) -> str:
    """The path that was asked for, as a URI reference without its query, which may hold secrets; fit for one line of a log."""
    return quote(request.root_path + request.path, safe=PATH_SIGNS, errors="replace")


def _of_known(error: CallboardError, request: BaseRequestWebsocket, retry_after_seconds: int | None) -> Problem:
    headers: dict[str, str] = {}
    members: dict[str, Any] = {}
    if isinstance(error, InvalidPayload):
        members["errors"] = list(error.errors)
    if error.retry_helps:
        headers["Retry-After"] = str(retry_after_seconds or RETRY_AFTER_SECONDS)
    kind = _kebab(type(error).__name__)
    if isinstance(error, Refusal):
        headers.update(error.headers)
        members.update(error.members)
        kind = error.kind
    detail = next((text for known, text in _FIXED.items() if isinstance(error, known)), str(error))
    return _problem(request, error.http_status, kind, error.title, detail, headers, members)


def _problem(
    request: BaseRequestWebsocket,
    status: int,
    kind: str,
    title: str,
    detail: str,
    headers: dict[str, str],
    members: Mapping[str, Any],
) -> Problem:
    body = {
        "type": f"urn:callboard:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance_of(request),
        **members,
    }
    return Problem(body, headers)


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
