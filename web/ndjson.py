"""Many jobs in one request: lines of JSON to a mapped route, one job a line, one answer a line, in order.

A line that is refused harms no other. What was accepted is in the store, in one commit, before the answer leaves. The request
as a whole is refused only before anything of it is looked at, or where nothing was accepted and asking again helps.
"""

import inspect
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace
from quart import Response, current_app, request
from werkzeug.exceptions import HTTPException

from callboard.runtime import Accepted, Submission
from callboard.runtime.bulk import breathe
from callboard.runtime.core.errors import (
    CallboardError,
    InvalidRequest,
    KeyReused,
    QueueFull,
)
from callboard.web import problems
from callboard.web.answers import noted, place_of, retry_after_seconds
from callboard.web.body import decoded, read_body, too_large
from callboard.web.compat import CLIENT_GONE
from callboard.web.problems import RETRY_AFTER_SECONDS, Refusal
from callboard.web.render import Place, job_fields
from callboard.web.submission import Asked, ask, priority_of

if TYPE_CHECKING:
    from callboard.web.board import Callboard
    from callboard.web.mapping import Mapping

__all__ = ["NDJSON", "submit_lines"]

logger: Final = logging.getLogger("callboard.web")

NDJSON: Final = "application/x-ndjson"

Fields = dict[str, Any]


class Hooked(Struct, frozen=True):
    """The app's own answer to one line."""

    fields: Fields


class Line:
    """One line on its way: what it asks, and in the end its answer."""

    __slots__ = ("answer", "body", "submission", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.body: Any = None
        self.submission: Submission | None = None
        self.answer: Accepted | Hooked | Exception | None = None


async def submit_lines(
    board: "Callboard", mapping: "Mapping", route_params: dict[str, Any], owner: str | None
) -> Response:
    """Submit the current request's lines; its right to submit is checked already."""
    config = board.runtime.config
    if not mapping.handler.takes_body:
        detail = "This takes no body: send none, and one request for each job."
        raise Refusal(415, "unsupported-media-type", detail)
    if "X-Async-Request-Id" in request.headers:
        raise InvalidRequest(
            "X-Async-Request-Id is the id of one job: give an Idempotency-Key, which holds for each line"
        )
    asked = ask(board, mapping, route_params, owner)
    text = await read_body(config.max_bulk_body_bytes)
    lines = [Line(one) for one in _split(text, config.max_bulk_jobs)]
    if not lines:
        raise InvalidRequest("there is no job in the body: send one line of JSON for each")
    await _decode(mapping, asked, lines, config.max_body_bytes)
    if mapping.validate is not None and asked.is_repeatable:
        await _find(board, lines)
    await _judge(mapping, asked, lines)
    await _accept(board, lines)
    return await _answer(board, lines)


def _split(text: bytes, max_jobs: int) -> Iterator[bytes]:
    # A line feed cannot stand inside JSON: it is escaped there.
    count = 0
    for line in text.split(b"\n"):
        if line := line.strip(b" \t\r"):
            count += 1
            if count > max_jobs:
                detail = f"There are more than {max_jobs} jobs in the body; nothing was queued."
                raise Refusal(413, "too-many-jobs", detail, title="Too many jobs")
            yield line


async def _decode(mapping: "Mapping", asked: Asked, lines: list[Line], max_body_bytes: int) -> None:
    for number, line in enumerate(lines):
        await breathe(number, len(line.text))
        try:
            if len(line.text) > max_body_bytes:
                raise too_large("line", max_body_bytes)
            raw, line.body = decoded(mapping.handler, line.text)
            line.submission = asked.submission(raw, number)
        except CallboardError as error:
            line.answer = error
        except Exception as error:  # the type's own code
            logger.error("%s %s: line %d failed", request.method, request.path, number + 1, exc_info=error)
            line.answer = error


async def _find(board: "Callboard", lines: list[Line]) -> None:
    """A repeat of what was accepted is answered before the app's validation, which might refuse it now."""
    waiting = _waiting(lines)
    found = await board.runtime.find_many([submission for _, submission in waiting])
    for (line, _), before in zip(waiting, found, strict=True):
        line.answer = before


async def _judge(mapping: "Mapping", asked: Asked, lines: list[Line]) -> None:
    for number, (line, submission) in enumerate(_waiting(lines)):
        await breathe(number, 0)
        try:
            answered = await mapping.validated(line.body)
            if answered is not None:
                line.answer = Hooked(await _own(answered))
            else:
                priority = priority_of(mapping.handler, asked, line.body)
                line.submission = replace(submission, priority=priority)
        except CLIENT_GONE:
            raise
        except HTTPException as error:
            line.answer = error if error.response is None else Hooked(await _own(error.response))
        except CallboardError as error:
            noted(error, request)
            line.answer = error
        except Exception as error:
            logger.error("%s %s: line %d failed", request.method, request.path, number + 1, exc_info=error)
            line.answer = error


async def _own(answered: Any) -> Fields:
    """The app's answer to a line: its status, and its body as JSON where it is JSON, else as text."""
    response = await current_app.make_response(answered)
    # Quart's responses are read asynchronously, werkzeug's are not.
    data: Any = response.get_data(as_text=False)
    text: bytes = await data if inspect.isawaitable(data) else data
    name = "problem" if response.mimetype == "application/problem+json" else "body"
    if response.mimetype == "application/json" or name == "problem":
        try:
            return {"status": response.status_code, name: msgspec.json.decode(text, type=Raw)}
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return {"status": response.status_code, "body": text.decode("utf-8", "replace") if text else None}


async def _accept(board: "Callboard", lines: list[Line]) -> None:
    waiting = _waiting(lines)
    taken = await board.runtime.accept_many([submission for _, submission in waiting])
    for (line, submission), answer in zip(waiting, taken, strict=True):
        line.answer = answer
        if isinstance(answer, QueueFull):
            board.metrics.refused(submission.name)
    for line in lines:
        job = line.answer.job if isinstance(line.answer, Accepted) and line.answer.replayed else None
        if job is not None and not await board.access.allows(request, "read", job):
            line.answer = KeyReused("taken")


def _waiting(lines: list[Line]) -> list[tuple[Line, Submission]]:
    return [(line, line.submission) for line in lines if line.answer is None and line.submission is not None]


async def _answer(board: "Callboard", lines: list[Line]) -> Response:
    answers = [line.answer for line in lines]
    accepted = [answer for answer in answers if isinstance(answer, Accepted)]
    again = [answer for answer in answers if isinstance(answer, CallboardError) and answer.retry_helps]
    if again and not accepted:
        # Nothing of it was taken, and later it may be: clients know what to do with a 503 or a 429.
        raise again[0]
    place = place_of(request, board.prefix)
    rows = []
    for number, line in enumerate(lines):
        await breathe(number, 0)
        rows.append(_row(_fields(line.answer, place)))
    headers = {"Cache-Control": "no-store"}
    if again:
        headers["Retry-After"] = str(max(retry_after_seconds(error) or RETRY_AFTER_SECONDS for error in again))
    if len(accepted) == len(lines) and all(answer.replayed for answer in accepted):
        headers["Idempotency-Replayed"] = "true"
    response: Response = current_app.response_class(
        b"\n".join([*rows, b""]),
        status=202 if len(accepted) == len(lines) else 207,
        headers=headers,
        content_type=NDJSON,
    )
    return response


def _row(fields: Fields) -> bytes:
    row = msgspec.json.encode(fields)
    # JSON that is passed on as its author wrote it may have line breaks between its parts.
    return msgspec.json.format(row, indent=-1) if b"\n" in row or b"\r" in row else row


def _fields(answer: Any, place: Place) -> Fields:
    if isinstance(answer, Hooked):
        return answer.fields
    if isinstance(answer, Accepted):
        ended = answer.replayed and answer.job.status.is_terminal
        fields: Fields = {"status": 200 if ended else 202, "job": job_fields(answer.job, place)}
        return {**fields, "replayed": True} if answer.replayed else fields
    assert isinstance(answer, Exception)
    problem = problems.describe(answer, request, retry_after_seconds=retry_after_seconds(answer))
    return {"status": problem.status, "problem": problem.body}
