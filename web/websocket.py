"""One job's life on a websocket: ``WS <jobs>/{id}/stream[?after=n]``. A thin encoder on ``runtime.watch``.

Owns the socket's three tasks: a pump moves items from the watch to an outbox, the sender writes them, a reader throws away what the
client says and notices when it leaves. The outbox holds a few items: a client that reads slowly makes the pump wait, and the
watch's own bound does the rest. It may not hold up anyone but its own client.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio
import trio.lowlevel
from quart import Response, websocket

from callboard.runtime.core.errors import CallboardError, ShuttingDown, StoreUnavailable
from callboard.web import parsing
from callboard.web.answers import place_of
from callboard.web.compat import CLIENT_GONE
from callboard.web.lookup import permitted_job
from callboard.web.outbox import Close, Item, Lane, Outbox, frame_of
from callboard.web.problems import Refusal
from callboard.web.render import Place

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["make_stream_view", "send_all", "unknown_socket"]

logger: Final = logging.getLogger("callboard.web")

BUSY_SECONDS: Final = 0.05
"""Before a second try to close a connection that Hypercorn was just writing to."""
MAX_INBOUND: Final = 100
"""Messages that a client may send on a stream, which needs none."""
MAX_INBOUND_CHARACTERS: Final = 4096


def make_stream_view(board: "Callboard") -> Callable[[str], Awaitable[Response | None]]:
    """The Quart websocket view."""

    async def stream(job_id: str) -> Response | None:
        board.access.check_origin(websocket)
        after = websocket.args.get("after")
        since = None if after is None else parsing.sequence(after, "after")
        job = await permitted_job(board, websocket, job_id, "stream")
        async with board.runtime.watch(job.id, after=since) as items:
            await websocket.accept()
            with board.metrics.streaming():
                await _serve(items, place_of(websocket, board.prefix))
        return None

    return stream


async def unknown_socket(**_: str) -> Response:
    """The answer to a handshake under the prefix that no route takes."""
    raise Refusal(404, "not-found", "There is no such websocket.")


async def _serve(items: AsyncIterator[Item], place: Place) -> None:
    outbox = Outbox()
    lane = outbox.open_lane(lambda item: frame_of(item, place))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, items, outbox, lane)
        nursery.start_soon(_read, outbox, nursery.cancel_scope)
        await send_all(outbox)
        nursery.cancel_scope.cancel()


async def _pump(items: AsyncIterator[Item], outbox: Outbox, lane: Lane) -> None:
    try:
        async for item in items:
            await outbox.put(lane, item)
    except ShuttingDown:
        outbox.close(Close(1001, "shutting down"), at_once=True)
    except StoreUnavailable:
        outbox.close(Close(1013, "the store cannot be reached: resume later"))
    except CallboardError as error:
        outbox.close(Close(1011, error.title))
    except Exception as error:
        logger.error("a stream failed", exc_info=error)
        outbox.close(Close(1011, "internal error"))
    else:
        outbox.close(Close(1000))


async def _read(outbox: Outbox, scope: trio.CancelScope) -> None:
    # Reading on, even after a bound is passed, keeps what the client sends from piling up while the sender waits for it.
    count = 0
    try:
        while True:
            message = await websocket.receive()
            count += 1
            if len(message) > MAX_INBOUND_CHARACTERS:
                outbox.close(Close(1009, "that message is too large"), at_once=True)
            elif count > MAX_INBOUND:
                outbox.close(Close(1008, "this stream takes no messages"), at_once=True)
    except CLIENT_GONE:
        scope.cancel()


async def send_all(outbox: Outbox) -> None:
    """Send what comes into ``outbox`` until it says how to close, and close; or until the client has gone."""
    try:
        while True:
            frame = await outbox.take()
            # Hypercorn's send returns without a checkpoint once the connection is broken: a loop of sends would never yield.
            await trio.lowlevel.checkpoint()
            if not await _is_sent(frame):
                return
    except CLIENT_GONE:
        return


async def _is_sent(frame: bytes | Close) -> bool:
    """Send one frame; whether more may follow."""
    try:
        if isinstance(frame, Close):
            await websocket.close(frame.code, frame.reason)
            return False
        await websocket.send(frame.decode())
        return True
    except trio.BusyResourceError:
        # Hypercorn 0.18 was answering a ping or a close of the client at this very moment: the frame is lost, and what comes
        # after it would have a hole before it. The client resumes where it was.
        if not isinstance(frame, Close):
            await trio.sleep(BUSY_SECONDS)
            await websocket.close(1013, "interrupted: resume")
        return False
