"""Answers that several routes share: a job's document with its headers, plain JSON, and what becomes of an exception."""

import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, ParamSpec

import msgspec
from quart import Response, current_app
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException

from callboard.runtime.core.errors import CallboardError
from callboard.runtime.core.job import Job, Status
from callboard.web import problems
from callboard.web.compat import CLIENT_GONE
from callboard.web.render import Place, job_bytes

__all__ = ["guarded", "job_answer", "json_answer", "place_of", "poll_after_seconds"]

logger: Final = logging.getLogger("callboard.web")

P = ParamSpec("P")


def place_of(request: BaseRequestWebsocket, prefix: str) -> Place:
    """Where this client sees the job routes."""
    return Place(request.root_path.rstrip("/"), prefix)


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON text as a response."""
    response: Response = current_app.response_class(
        body, status=status, headers=dict(headers or {}), content_type="application/json"
    )
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def job_answer(job: Job, place: Place, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A job's document; with ``Retry-After`` while the job lives."""
    response = json_answer(job_bytes(job, place), status, headers)
    if not job.status.is_terminal:
        response.headers["Retry-After"] = str(poll_after_seconds(job))
    return response


def poll_after_seconds(job: Job) -> int:
    """When it makes sense to ask for a living job again: when it is due, and after a second otherwise."""
    if job.status is not Status.SCHEDULED or job.due_ms is None:
        return 1
    return max(1, math.ceil(job.due_ms / 1000 - time.time()))


def json_bytes(value: Any) -> bytes:
    """A value as JSON text."""
    return msgspec.json.encode(value)


def guarded(source: Any, view: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
    """``view`` with every refusal and every bug answered as a problem document; ``source`` is Quart's request or websocket.

    The app's own error handlers never see them. ``trio.Cancelled`` passes, and so does the news that the client has left.
    """

    @functools.wraps(view)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return await view(*args, **kwargs)
        except CallboardError as error:
            if error.http_status >= 500 and not error.retry_helps:
                logger.error("%s %s: %s", source.method, source.path, error, exc_info=error)
            return problems.of_error(error, source)
        except HTTPException as error:
            return error.response or problems.of_http_exception(error, source)
        except CLIENT_GONE:
            raise
        except Exception as error:
            logger.error("%s %s failed", source.method, source.path, exc_info=error)
            return problems.internal_error(source)

    return answer
