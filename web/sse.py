"""One job's life as Server-Sent Events: ``GET <jobs>/{id}/events``. A thin encoder on ``runtime.watch``.

Owns the form of that stream and its end. Nothing is buffered here: a client that reads slowly makes the response wait, and the
watch's own bound does the rest. Browsers' ``EventSource`` comes back by itself when a response ends, with the ``id`` of the last event
that it has: so the response simply ends after the terminal event, and the resume that follows is answered 204, which is how a
browser learns to stay away. Source: the HTML standard, section 9.2, server-sent events.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final

import trio
import trio.lowlevel
from quart import Response, current_app, request
from quart.wrappers.response import ResponseBody

from callboard.runtime import Watch
from callboard.runtime.core.errors import CallboardError
from callboard.web import parsing
from callboard.web.answers import bare_answer, place_of
from callboard.web.lookup import permitted_job
from callboard.web.outbox import frame_of
from callboard.web.render import Place

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["EventBody", "make_events_view"]

logger: Final = logging.getLogger("callboard.web")

KEEP_WARM_SECONDS: Final = 15.0
"""A comment so often where there are no events: proxies close what is silent for a minute, and it finds out who has vanished."""
RETRY_MS: Final = 1000
"""How long a browser waits before it comes back, in milliseconds."""

HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Not to be kept, and not to be held back by nginx."""


def make_events_view(board: "Callboard") -> Callable[[str], Awaitable[Response]]:
    """The view of ``GET <jobs>/{id}/events``."""

    async def events(job_id: str) -> Response:
        after = _after()
        job = await permitted_job(board, request, job_id, "stream")
        if after is not None and job.status.is_terminal and after >= job.seq:
            return bare_answer(204, HEADERS)
        is_head = request.method == "HEAD"
        body = b"" if is_head else EventBody(board, job.id, after, place_of(request, board.prefix))
        response: Response = current_app.response_class(
            body, headers=HEADERS, content_type="text/event-stream; charset=utf-8"
        )
        if is_head:
            # Nobody knows the length of a stream: a GET says none either.
            response.headers.pop("Content-Length", None)
        response.timeout = None
        return response

    return events


def _after() -> int | None:
    # What the browser saw last is newer than what the page's address says.
    last = parsing.single(request.headers.getlist("Last-Event-ID"), "Last-Event-ID")
    if last is not None:
        return parsing.sequence(last, "Last-Event-ID")
    after = request.args.get("after")
    return None if after is None else parsing.sequence(after, "after")


class EventBody(ResponseBody):
    """The response's body. Entered when the answer begins, left when it has ended or the client has gone."""

    def __init__(self, board: "Callboard", job_id: str, after: int | None, place: Place) -> None:
        self._board = board
        self._job_id = job_id
        self._after = after
        self._place = place
        self._has_begun = False
        self._items: Watch | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> "EventBody":
        async with AsyncExitStack() as opening:
            opening.enter_context(self._board.metrics.streaming())
            try:
                watch = self._board.runtime.watch(self._job_id, after=self._after)
                self._items = await opening.enter_async_context(watch)
            except CallboardError:
                # Too late for a status of its own: the response ends at once, and the client hears why when it comes back.
                pass
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def __aiter__(self) -> "EventBody":
        return self

    async def __anext__(self) -> bytes:
        # Hypercorn's send returns without a checkpoint once the connection is broken: a loop of sends would never yield.
        await trio.lowlevel.checkpoint()
        if not self._has_begun:
            self._has_begun = True
            return b"retry: %d\n\n" % RETRY_MS
        if self._items is None:
            raise StopAsyncIteration
        try:
            with trio.move_on_after(KEEP_WARM_SECONDS):
                item = await anext(self._items)
                return b"id: %d\ndata: %b\n\n" % (item.seq, frame_of(item, self._place))
        except CallboardError:
            # The server drains: the client comes back and resumes.
            raise StopAsyncIteration from None
        except StopAsyncIteration:
            raise
        except Exception as error:
            logger.error("a stream failed", exc_info=error)
            raise StopAsyncIteration from None
        return b":\n\n"
