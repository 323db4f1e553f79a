"""Answers in the app's own form: what is asked for them, and how what they give becomes a response.

They change the form of an answer and nothing else: whether a job is accepted is decided before they are asked, and the
contract's headers are added where they do not set them. The defaults are the contract's own.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from msgspec import Struct
from quart import Request, Response, current_app
from quart.typing import ResponseReturnValue
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from callboard.runtime.core.job import Job

__all__ = [
    "ErrorResponse",
    "Responses",
    "Status",
    "StatusResponse",
    "SubmittedResponse",
    "shaped",
    "without_traceback",
]

R = TypeVar("R", "SubmittedResponse", "StatusResponse", "ErrorResponse")

_OF_THE_BODY: Final = frozenset({"content-type", "content-length"})
"""Headers that say what the default's own body is."""
_PROBLEM: Final = "application/problem+json"


class SubmittedResponse(Struct, frozen=True, kw_only=True):
    """A job was accepted, or a repeat found the one that was."""

    job: Job
    document: dict[str, Any]
    """The job document that would be answered; a copy of its own."""
    status: int
    """202, or 200 for a job that has ended: it was waited for, or this is a repeat."""
    headers: dict[str, str]
    """What the contract sends along: Location, Retry-After, Async-Job-Id and their like."""
    replayed: bool
    """Whether an earlier request with the same key or id was the one that was accepted."""
    request: Request


class StatusResponse(Struct, frozen=True, kw_only=True):
    """Someone reads a job, or has canceled or retried it."""

    job: Job
    document: dict[str, Any]
    """The job document that would be answered; a copy of its own."""
    status: int
    """200; 202 after a retry, and after a cancel that the job's code has not obeyed yet."""
    headers: dict[str, str]
    """What the contract sends along: ETag, Cache-Control, Retry-After, Expires and their like."""
    request: Request


class ErrorResponse(Struct, frozen=True, kw_only=True):
    """A request was refused, or failed. ``problem`` holds what is safe to show, whatever went wrong."""

    problem: dict[str, Any]
    """``type``, ``title``, ``status``, ``detail``, ``instance`` and what belongs to the case, such as ``errors``."""
    status: int
    headers: dict[str, str]
    """What the contract sends along: Retry-After, Allow and their like."""
    error: Exception
    """What was raised: a CallboardError, an ``abort(...)``, or a bug. Without its traceback and its causes, which are in the log; its
    text may name a store's address or what an app's own code knows, and is not for clients."""
    request: Request


Answer = ResponseReturnValue | None
Submitted = Callable[[SubmittedResponse], Answer | Awaitable[Answer]]
Status = Callable[[StatusResponse], Answer | Awaitable[Answer]]
Error = Callable[[ErrorResponse], Answer | Awaitable[Answer]]


class Responses(Struct, frozen=True, kw_only=True):
    """Functions that give answers another form; each may be async and is called in the request's context.

    Each returns whatever a Quart view may return; None means the default. A status that it does not give is the default's.
    """

    submitted: Submitted | None = None
    """The answer to a submission that was accepted."""
    status: Status | None = None
    """The answer with a job's document: to reading, cancel and retry."""
    error: Error | None = None
    """The answer to a request that was refused or failed."""

    def over(self, shared: "Responses") -> "Responses":
        """These, and those of ``shared`` where there is none of our own."""
        return Responses(
            submitted=self.submitted or shared.submitted,
            status=self.status or shared.status,
            error=self.error or shared.error,
        )


async def shaped(form: Callable[[R], Any], record: R, default: Response) -> Response:
    """What ``form`` makes of ``record``, with the headers of ``default`` that it does not set. Raises what ``form`` raises."""
    answered = form(record)
    if inspect.isawaitable(answered):
        answered = await answered
    if answered is None:
        return default
    response: Any = await current_app.make_response(answered)
    if not _gives_status(answered):
        response.status_code = record.status
    for name, value in default.headers.items():
        if name.lower() not in _OF_THE_BODY and name not in response.headers:
            response.headers[name] = value
    if default.mimetype == _PROBLEM and isinstance(_body(answered), dict | list) and not _gives_type(answered):
        response.content_type = _PROBLEM
    shaped_response: Response = response
    return shaped_response


def without_traceback(error: Exception) -> Exception:
    """The error with nothing of how it came about. It has been logged, and nobody raises it again."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _body(answered: Any) -> Any:
    return answered[0] if isinstance(answered, tuple) else answered


def _is_headers(value: Any) -> bool:
    return isinstance(value, Headers | dict | list)


def _gives_status(answered: Any) -> bool:
    if isinstance(_body(answered), Response | WerkzeugResponse | HTTPException):
        return True
    return isinstance(answered, tuple) and answered[1] is not None and not _is_headers(answered[1])


def _gives_type(answered: Any) -> bool:
    headers = answered[-1] if isinstance(answered, tuple) else None
    return _is_headers(headers) and "content-type" in {name.lower() for name, _ in Headers(headers)}
