"""Answers that several routes share: a job's document with its headers, plain JSON, none at all, and what becomes of an exception."""

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, ParamSpec
from urllib.parse import quote

import msgspec
from quart import Request, Response, current_app
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException

from callboard.runtime.core.errors import CallboardError, QueueFull
from callboard.runtime.core.job import Job, Status
from callboard.web import problems
from callboard.web.compat import CLIENT_GONE
from callboard.web.render import Place, job_bytes
from callboard.web.responses import ErrorResponse, Responses, shaped, without_traceback

__all__ = [
    "bare_answer",
    "guarded",
    "job_answer",
    "json_answer",
    "json_bytes",
    "noted",
    "place_of",
    "poll_after_seconds",
    "retry_after_seconds",
]

logger: Final = logging.getLogger("callboard.web")

P = ParamSpec("P")


def place_of(request: BaseRequestWebsocket, prefix: str) -> Place:
    """Where this client sees the job routes."""
    return Place(quote(request.root_path.rstrip("/"), errors="replace"), quote(prefix))


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON text as a response."""
    response: Response = current_app.response_class(
        body, status=status, headers=dict(headers or {}), content_type="application/json"
    )
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def bare_answer(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A response without a body, such as 204 and 304, and so without its type and its length.

    Source: RFC 9110, section 8.6: no Content-Length with 204, and with 304 none but that of the 200.
    """
    response: Response = current_app.response_class(b"", status=status, headers=dict(headers or {}))
    for name in ("Content-Type", "Content-Length"):
        response.headers.pop(name, None)
    return response


def job_answer(job: Job, place: Place, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A job's document; with ``Retry-After`` while the job lives."""
    response = json_answer(job_bytes(job, place), status, headers)
    if not job.status.is_terminal:
        response.headers["Retry-After"] = str(poll_after_seconds(job))
    return response


def poll_after_seconds(job: Job) -> int:
    """When it makes sense to ask for a living job again: when it is due, by the store's clock, and after a second otherwise."""
    if job.status is not Status.SCHEDULED or job.due_ms is None:
        return 1
    try:
        now_ms: int = current_app.extensions["callboard"].runtime.now_ms()
    except CallboardError:
        return 1
    return max(1, math.ceil((job.due_ms - now_ms) / 1000))


def json_bytes(value: Any) -> bytes:
    """A value as JSON text."""
    return msgspec.json.encode(value)


def noted(error: CallboardError | HTTPException, source: BaseRequestWebsocket) -> None:
    """Log what is the app's fault or ours; what is the caller's or the world's is no news."""
    if isinstance(error, CallboardError) and error.http_status >= 500 and not error.retry_helps:
        logger.error("%s %s: %s", source.method, problems.instance_of(source), error, exc_info=error)


def retry_after_seconds(error: Exception) -> int | None:
    """When asking again makes sense, where the runtime knows better than the error."""
    if not isinstance(error, QueueFull) or error.queue is None:
        return None
    try:
        seconds: int = current_app.extensions["callboard"].runtime.retry_after_seconds(error.queue)
    except CallboardError:
        return None
    return seconds


def guarded(
    source: Any, view: Callable[P, Awaitable[Any]], responses: Responses | None = None
) -> Callable[P, Awaitable[Any]]:
    """``view`` with every refusal and every bug answered as a problem document; ``source`` is Quart's request or websocket.

    ``responses`` may give the answer to a request another form; by default the board's own do. The app's own error
    handlers never see these errors. ``trio.Cancelled`` passes, and so does the news that the client has left.
    """

    @functools.wraps(view)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return await view(*args, **kwargs)
        except CLIENT_GONE:
            raise
        except (CallboardError, HTTPException) as error:
            caught: Exception = error
            noted(error, source)
        except Exception as error:
            caught = error
            logger.error("%s %s failed", source.method, problems.instance_of(source), exc_info=error)
        return await _refusal(source._get_current_object(), caught, responses)

    return answer


async def _refusal(source: BaseRequestWebsocket, error: Exception, responses: Responses | None) -> Any:
    if isinstance(error, HTTPException) and error.response is not None:
        return error.response
    problem = problems.describe(error, source, retry_after_seconds=retry_after_seconds(error))
    default = problems.answer(problem, source)
    if not isinstance(source, Request):
        return default
    custom = (current_app.extensions["callboard"].responses if responses is None else responses).error
    if custom is None:
        return default
    record = ErrorResponse(
        problem=msgspec.to_builtins(problem.body),
        status=problem.status,
        headers=dict(problem.headers),
        error=without_traceback(error),
        request=source,
    )
    try:
        return await shaped(custom, record, default)
    except CLIENT_GONE:
        raise
    except Exception as failed:
        if isinstance(failed, HTTPException):
            return failed.response or problems.answer(problems.describe(failed, source), source)
        logger.error("responses.error=%r failed", custom, exc_info=failed)
        return problems.answer(problems.describe(failed, source), source)
