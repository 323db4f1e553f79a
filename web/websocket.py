"""One job's life on a websocket: ``WS <jobs>/{id}/stream[?after=n]``. A thin encoder on ``runtime.watch``.

Owns the socket's three tasks and the little that waits between them: a pump moves items from the watch to an outbox, the sender
writes them, a reader throws away what the client says and notices when it leaves. The outbox holds a few items: a client that
reads slowly makes the pump wait, and the watch's own bound does the rest. It may not hold up anyone but its own client.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio
from msgspec import Struct
from quart import Response, websocket

from callboard.runtime import Snapshot
from callboard.runtime.core.errors import CallboardError, JobNotFound, ShuttingDown, StoreUnavailable
from callboard.runtime.core.events import Event, merge
from callboard.web import parsing
from callboard.web.answers import place_of
from callboard.web.compat import CLIENT_GONE
from callboard.web.limits import mark_socket
from callboard.web.problems import Refusal
from callboard.web.render import Place, event_frame, snapshot_frame

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["Outbox", "make_stream_view", "unknown_socket"]

logger: Final = logging.getLogger("callboard.web")

MAX_WAITING: Final = 16
"""Items that wait for one client before the pump waits too."""
BUSY_SECONDS: Final = 0.05
"""Before a second try to close a connection that Hypercorn was just writing to."""
MAX_INBOUND: Final = 100
"""Messages that a client may send on a stream, which needs none."""
MAX_INBOUND_CHARACTERS: Final = 4096


class Close(Struct, frozen=True):
    """The last thing in an outbox: how to close. Codes are those of RFC 6455, section 7.4."""

    code: int
    reason: str = ""


Item = Snapshot | Event


class Outbox:
    """What one client has yet to be sent: bounded, and progress that waits is merged to the newest."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._close: Close | None = None
        self._changed = trio.Event()

    async def put(self, item: Item) -> None:
        """Add an item, waiting for room; progress after waiting progress needs none."""
        if self._merged(item):
            return
        while len(self._items) >= MAX_WAITING and self._close is None:
            await self._changed.wait()
        self._items.append(item)
        self._notify()

    def close(self, close: Close, *, at_once: bool = False) -> None:
        """End after what waits, or at once without it. The first close counts."""
        if self._close is None:
            self._close = close
            if at_once:
                self._items.clear()
            self._notify()

    async def take(self) -> Item | Close:
        """The next item, or how to close after the last."""
        while not self._items:
            if self._close is not None:
                return self._close
            await self._changed.wait()
        item = self._items.popleft()
        self._notify()
        return item

    def _merged(self, item: Item) -> bool:
        last = self._items[-1] if self._items else None
        if not (isinstance(item, Event) and isinstance(last, Event) and item.type == last.type == "progress"):
            return False
        if item.since != last.seq:
            return False
        self._items[-1] = merge(last, item)
        return True

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def make_stream_view(board: "Callboard") -> Callable[[str], Awaitable[Response | None]]:
    """The Quart websocket view."""

    async def stream(job_id: str) -> Response | None:
        board.access.check_origin(websocket)
        after = websocket.args.get("after")
        since = None if after is None else parsing.sequence(after, "after")
        canonical = parsing.job_id(job_id)
        if canonical is None:
            raise JobNotFound("malformed id")
        job = await board.runtime.get(canonical)
        await board.access.require(websocket, "stream", job)
        async with board.runtime.watch(canonical, after=since) as items:
            mark_socket(websocket)
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
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, items, outbox)
        nursery.start_soon(_read, outbox, nursery.cancel_scope)
        await _send(outbox, place)
        nursery.cancel_scope.cancel()


async def _pump(items: AsyncIterator[Item], outbox: Outbox) -> None:
    try:
        async for item in items:
            await outbox.put(item)
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


async def _send(outbox: Outbox, place: Place) -> None:
    try:
        while True:
            item = await outbox.take()
            # Hypercorn's send returns without a checkpoint once the connection is broken: a loop of sends would never yield.
            await trio.lowlevel.checkpoint()
            if not await _is_sent(item, place):
                return
    except CLIENT_GONE:
        return


async def _is_sent(item: Item | Close, place: Place) -> bool:
    """Send one item; whether more may follow."""
    try:
        if isinstance(item, Close):
            await websocket.close(item.code, item.reason)
            return False
        await websocket.send(_frame(item, place).decode())
        return True
    except trio.BusyResourceError:
        # Hypercorn 0.18 was answering a ping or a close of the client at this very moment: the frame is lost, and what comes
        # after it would have a hole before it. The client resumes where it was.
        if not isinstance(item, Close):
            await trio.sleep(BUSY_SECONDS)
            await websocket.close(1013, "interrupted: resume")
        return False


def _frame(item: Item, place: Place) -> bytes:
    if isinstance(item, Event):
        return event_frame(item, place)
    return snapshot_frame(item.job, place, gap=item.gap)
