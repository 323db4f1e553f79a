"""Many jobs on one websocket: ``WS <jobs>/stream``. Subscriptions by id and by filter, cancels and submits, each asked by a message.

Owns the protocol of that socket: one task reads what the client says, one obeys it, message by message; each subscription is a task
that moves items from a watch or a feed to a lane of its own in the outbox; one sender writes. The client's right is asked anew
for every message, and for each job that a feed is about to show. What is wrong with a message is answered, not with a closed socket,
up to a bound. A client that asks on without reading the answers is closed, and holds up nobody else.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta, Struct
from quart import websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException

from callboard.runtime import Config, Job, JobFilter, Missed, Status
from callboard.runtime.core.errors import CallboardError, ShuttingDown
from callboard.web import parsing, problems
from callboard.web.answers import place_of
from callboard.web.bulk import submit_inside
from callboard.web.compat import CLIENT_GONE
from callboard.web.lookup import permitted_job
from callboard.web.outbox import Close, Item, Lane, Outbox, frame_of
from callboard.web.problems import Refusal
from callboard.web.render import job_fields
from callboard.web.websocket import send_all

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["make_multistream_view"]

logger: Final = logging.getLogger("callboard.web")

MAX_SUBSCRIPTIONS: Final = 100
"""Subscriptions that one socket may have at a time."""
MAX_BAD_MESSAGES: Final = 20
"""Messages that cannot be meant; after so many the socket is closed with 1008."""
MAX_UNHEARD: Final = 256
"""Messages that wait until those before them are answered; a client that sends more, or twice the bytes of the largest, is closed."""
MESSAGE_MARGIN: Final = 4096
"""Bytes of a message round the bodies of the jobs in it."""
MAX_ECHO: Final = 200
"""Characters of the client's own names that come back to it in an error."""
GONE: Final = Close(1001, "shutting down")

Name = Annotated[str, Meta(min_length=1, max_length=MAX_ECHO)]
Text = Annotated[str, Meta(max_length=1000)]


class _Message(Struct, tag_field="type", forbid_unknown_fields=True):
    """A typing error in a filter must not become a feed of everything: unknown members are refused."""


class _Subscribe(_Message, tag="subscribe"):
    sub: Name | None = None
    id: Text | None = None
    after: Annotated[int, Meta(ge=0, lt=10**18)] | None = None
    name: Text | None = None
    status: Status | list[Status] | None = None
    queue: Text | None = None


class _Unsubscribe(_Message, tag="unsubscribe"):
    sub: Name


class _Cancel(_Message, tag="cancel"):
    id: Text


KNOWN: Final = _Subscribe | _Unsubscribe | _Cancel
WHAT_TO_SEND: Final = "send a JSON object with a type: subscribe, unsubscribe, cancel or submit"


class _BadMessage(Refusal):
    """What the client sent cannot be meant."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, "bad-message", detail)


class _Subscription(Struct):
    name: str
    job_id: str | None
    lane: Lane
    scope: trio.CancelScope


def largest_message(config: Config) -> int:
    """Bytes of the largest message that the many-job socket takes: one with a bulk request."""
    return config.max_bulk_body_bytes + MESSAGE_MARGIN


def make_multistream_view(board: "Callboard") -> Callable[[], Awaitable[None]]:
    """The Quart websocket view of ``WS <jobs>/stream``."""

    async def multistream() -> None:
        board.access.check_origin(websocket)
        await board.access.require(websocket, "stream")
        runtime = board.runtime
        await websocket.accept()
        with board.metrics.streaming():
            await _Socket(board, websocket, runtime.drain_started).serve()

    return multistream


class _Socket:
    """One client's socket. ``source`` is its handshake, which the app's hooks are asked about."""

    def __init__(self, board: "Callboard", source: BaseRequestWebsocket, drain_started: trio.Event) -> None:
        self._board = board
        self._source = source
        self._drain_started = drain_started
        self._place = place_of(source, board.prefix)
        self._outbox = Outbox()
        self._subscriptions: dict[str, _Subscription] = {}
        self._bad_messages = 0
        self._unheard: deque[str | bytes] = deque()
        self._unheard_bytes = 0
        self._has_unheard = trio.Event()
        self._max_message_bytes = largest_message(board.config)
        self._tasks: trio.Nursery

    async def serve(self) -> None:
        """Until the client leaves, is closed for what it sends, or the server drains."""
        async with trio.open_nursery() as self._tasks:
            self._tasks.start_soon(self._end_at_drain)
            self._tasks.start_soon(self._listen)
            self._tasks.start_soon(self._hear_all)
            await send_all(self._outbox)
            self._tasks.cancel_scope.cancel()

    async def _end_at_drain(self) -> None:
        await self._drain_started.wait()
        self._outbox.close(GONE, at_once=True)

    async def _listen(self) -> None:
        # It reads on whatever happens. If it waited, Hypercorn could not tell the app that the client has gone, and a sender that
        # is stuck in the client's full buffer would never hear of it.
        try:
            while True:
                text = await websocket.receive()
                if not self._outbox.is_closing:
                    self._take(text)
        except CLIENT_GONE:
            self._tasks.cancel_scope.cancel()

    def _take(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self._unheard_bytes += len(data)
        if len(data) > self._max_message_bytes:
            self._outbox.close(Close(1009, "that message is too large"), at_once=True)
        elif len(self._unheard) >= MAX_UNHEARD or self._unheard_bytes > 2 * self._max_message_bytes:
            self._outbox.close(Close(1008, "more messages than answers: read first"), at_once=True)
        else:
            self._unheard.append(text)
            self._has_unheard.set()
            return
        self._unheard.clear()

    async def _hear_all(self) -> None:
        while True:
            while self._unheard:
                text = self._unheard.popleft()
                self._unheard_bytes -= len(text.encode() if isinstance(text, str) else text)
                await self._hear(text)
            self._has_unheard = trio.Event()
            await self._has_unheard.wait()

    # Messages

    async def _hear(self, text: str | bytes) -> None:
        message: dict[str, Any] = {}
        try:
            message = _decoded(text)
            await self._obey(message)
        except CLIENT_GONE:
            raise
        except (CallboardError, HTTPException) as error:
            await self._outbox.answer(_error_frame(error, **_named(message)))
            self._count(is_bad=isinstance(error, _BadMessage))
        except Exception as error:
            logger.error("a message on a websocket failed", exc_info=error)
            await self._outbox.answer(_error_frame(error, **_named(message)))

    def _count(self, *, is_bad: bool) -> None:
        self._bad_messages += is_bad
        if self._bad_messages >= MAX_BAD_MESSAGES:
            self._outbox.close(Close(1008, "too many messages that cannot be meant"))

    async def _obey(self, message: dict[str, Any]) -> None:
        if message.get("type") == "submit":
            answer = await submit_inside(self._board, self._source, message)
            await self._outbox.answer(_frame(answer))
            self._count(is_bad=answer.get("code") == "bad-message")
            return
        try:
            order = msgspec.convert(message, KNOWN)
        except msgspec.ValidationError as error:
            raise _BadMessage(f"{error}: {WHAT_TO_SEND}") from None
        match order:
            case _Subscribe():
                self._subscribe(order)
            case _Unsubscribe():
                await self._unsubscribe(order.sub)
            case _Cancel():
                await self._cancel(order.id)

    async def _cancel(self, text: str) -> None:
        job = await permitted_job(self._board, self._source, text, "cancel")
        canceled = await self._board.runtime.cancel(job.id)
        fields = job_fields(canceled, self._place)
        frame = {"type": "canceling", "id": job.id, "seq": canceled.seq, "status": canceled.status, "job": fields}
        await self._outbox.answer(_frame(frame))

    # Subscriptions

    def _subscribe(self, order: _Subscribe) -> None:
        name = _checked_name(order)
        living = {each.name: each for each in self._subscriptions.values() if each.lane.is_open}
        if name in living:
            raise Refusal(409, "sub-taken", "There is a subscription of that name: give each its own sub.")
        if len(living) >= MAX_SUBSCRIPTIONS:
            raise Refusal(
                429,
                "too-many-subscriptions",
                f"One socket has {MAX_SUBSCRIPTIONS} subscriptions at most: end one first.",
            )
        prefix = b'{"sub":' + msgspec.json.encode(name) + b","
        lane = self._outbox.open_lane(lambda item: prefix + frame_of(item, self._place)[1:])
        subscription = _Subscription(name, order.id, lane, trio.CancelScope())
        self._subscriptions = {**living, name: subscription}
        self._tasks.start_soon(self._follow, subscription, order)

    async def _unsubscribe(self, name: str) -> None:
        subscription = self._subscriptions.pop(name, None)
        if subscription is None or not subscription.lane.is_open:
            raise Refusal(404, "unknown-sub", "There is no subscription of that name.")
        subscription.scope.cancel()
        self._outbox.drop_lane(subscription.lane)
        await self._outbox.answer(_frame({"type": "unsubscribed", "sub": name}))

    async def _follow(self, subscription: _Subscription, order: _Subscribe) -> None:
        """The task of one subscription. What it says last: that it has ended, or why it never began or went no further."""
        lane, named = subscription.lane, _named({"sub": subscription.name, "id": subscription.job_id})
        last: bytes | None = None
        with subscription.scope:
            try:
                async with await self._source_of(order) as items:
                    await self._outbox.put(lane, _frame({"type": "subscribed", **named}))
                    last = _frame({"type": "unsubscribed", **named})
                    await self._fill(subscription, items)
            except ShuttingDown:
                last = None  # nothing has ended for good: the client goes on elsewhere
                self._outbox.close(GONE, at_once=True)
            except (CallboardError, HTTPException) as error:
                await self._outbox.put(lane, _error_frame(error, **named))
            except Exception as error:
                logger.error("a subscription failed", exc_info=error)
                await self._outbox.put(lane, _error_frame(error, **named))
            self._outbox.end_lane(lane, last)

    async def _source_of(self, order: _Subscribe) -> AbstractAsyncContextManager[AsyncIterator[Item | Missed]]:
        if order.id is not None:
            job = await permitted_job(self._board, self._source, order.id, "stream")
            return self._board.runtime.watch(job.id, after=order.after)
        await self._board.access.require(self._source, "stream")
        status = order.status or []
        where = JobFilter(
            statuses=tuple(dict.fromkeys(status if isinstance(status, list) else [status])),
            name=order.name,
            queue=order.queue,
            owner=await self._board.access.owner(self._source),
        )
        return self._board.runtime.feed(where, may_see=self._may_see)

    async def _may_see(self, job: Job) -> bool:
        access = self._board.access
        return await access.allows(self._source, "read", job) and await access.allows(self._source, "stream", job)

    async def _fill(self, subscription: _Subscription, items: AsyncIterator[Item | Missed]) -> None:
        async for item in items:
            if isinstance(item, Missed):
                lost = {"type": "error", "code": "news-lost", "message": item.message, "sub": subscription.name}
                await self._outbox.put(subscription.lane, _frame(lost))
            else:
                await self._outbox.put(subscription.lane, item)


def _decoded(text: str | bytes) -> dict[str, Any]:
    if isinstance(text, bytes):
        raise _BadMessage(f"that message is binary: {WHAT_TO_SEND}")
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise _BadMessage(f"{error}: {WHAT_TO_SEND}") from None
    except RecursionError:
        raise _BadMessage(f"that message is nested too deeply: {WHAT_TO_SEND}") from None
    if not isinstance(message, dict):
        raise _BadMessage(f"that message is no object: {WHAT_TO_SEND}")
    return message


def _checked_name(order: _Subscribe) -> str:
    """What the subscription is called. Raises _BadMessage for an order that cannot be meant."""
    if order.id is None:
        if order.after is not None:
            raise _BadMessage("after is for one job: a feed begins now")
        if order.sub is None:
            raise _BadMessage("a feed needs a name: give sub")
        return order.sub
    if order.name is not None or order.status is not None or order.queue is not None:
        raise _BadMessage("give either an id or a filter, not both")
    return order.sub or (parsing.job_id(order.id) or order.id)[:MAX_ECHO] or "?"


def _named(message: dict[str, Any]) -> dict[str, str]:
    """The names by which the client knows what a message was about."""
    return {
        key: value
        for key in ("sub", "id", "ref")
        if isinstance(value := message.get(key), str) and len(value) <= MAX_ECHO
    }


def _frame(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode(message)


def _error_frame(error: Exception, **named: str) -> bytes:
    code, text = problems.in_words(error, websocket)
    if code == "internal-error" and isinstance(error, CallboardError):
        logger.error("a message on a websocket could not be obeyed: %s", error, exc_info=error)
    return _frame({"type": "error", "code": code, "message": text, **named})
