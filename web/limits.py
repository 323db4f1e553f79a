"""One ASGI wrapper that bounds what clients send to callboard's own routes, whatever the Quart version does.

It counts bytes as they are received and does nothing else until more than ``max_body_bytes`` (``max_bulk_body_bytes`` of lines
of JSON) have come. Only then is the route
looked up; if it is one of callboard's, the body ends there for Quart, the scope is marked so that the view answers 413, and what
still comes is thrown away. It never holds a body itself, and bounds nothing on the app's other routes.

(Quart 0.23 looks at the limit of a chunked body only when all of it has arrived. And an answer that is complete before the body has
come leaves Hypercorn with a connection that is neither closed nor read again, so that the client's next request on it would never be
answered. So the end of such an answer, whoever gives it, waits for the end of the body, while the client has all of its bytes; what
comes meanwhile is thrown away.)

The end of an answer is not interrupted. Hypercorn tells Quart of it as a disconnect, whereupon Quart-Trio cancels the task that is
still inside Hypercorn's send: a connection that ends with its answer (``Connection: close``, HTTP/1.0) would not be closed, and one that is
kept would lose its idle timer, stay open for ever, and at shutdown until the end of the grace.

What a websocket's client sends after the end of a stream is thrown away too, until the connection is gone: Hypercorn closes it only
when there is room for one more message in the queue of an app that reads no more.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from callboard.web.compat import CLIENT_GONE
from callboard.web.parsing import is_ndjson

__all__ = ["ENDPOINT_PREFIX", "MAPPED_PREFIX", "BodyLimit", "endpoint_of", "is_too_large", "mark_socket"]

ENDPOINT_PREFIX: Final = "callboard:"
"""Every endpoint of callboard's begins so."""
MAPPED_PREFIX: Final = f"{ENDPOINT_PREFIX}mapped:"
"""The endpoint of every handler on a route of the app's begins so."""

_MARK: Final = "callboard.body_too_large"
_SOCKET: Final = "callboard.socket"

FAREWELL_SECONDS: Final = 1.0
"""What a client gets to answer the close of its websocket. Then its connection is closed, which may cost it what it has not yet read."""
CLOSING_SECONDS: Final = 5.0
"""What the last part of an answer, and the close of a connection that ends with it, get in spite of a cancellation."""
LEFTOVER_SECONDS: Final = 5.0
"""Bound on throwing away what still comes while the connection is being closed."""

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def is_too_large(request: BaseRequestWebsocket) -> bool:
    """Whether the body of this request was cut off because of its size."""
    return bool(request.scope.get(_MARK))


def mark_socket(request: BaseRequestWebsocket) -> None:
    """This websocket is callboard's own: what its client sends after the end is thrown away."""
    scope: Scope = request.scope
    scope[_SOCKET] = True


class BodyLimit:
    """``app.asgi_app`` with the bound round it."""

    def __init__(
        self,
        app: QuartTrio,
        inner: Callable[[Scope, Receive, Send], Awaitable[None]],
        max_body_bytes: int,
        max_bulk_body_bytes: int,
    ) -> None:
        self._app = app
        self._inner = inner
        self._max_body_bytes = max_body_bytes
        self._max_bulk_body_bytes = max_bulk_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            socket = _Socket(receive)
            await self._inner(scope, socket.receive, send)
            if _SOCKET in scope:
                await socket.drain(FAREWELL_SECONDS)
                # Hypercorn closes the connection when this returns, and needs someone who reads until it has.
                self._app.nursery.start_soon(socket.drain, LEFTOVER_SECONDS)
            return
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        content_type = next((value for name, value in scope["headers"] if name.lower() == b"content-type"), b"")
        is_bulk = is_ndjson(content_type.decode("latin1"))
        most = self._max_bulk_body_bytes if is_bulk else self._max_body_bytes
        body = _Body(scope, receive, send, most, self._is_ours)
        try:
            await self._inner(scope, body.receive, body.send)
        except* CLIENT_GONE:
            # Quart-Trio 0.13 lets it out, and Hypercorn logs a traceback for a client that only went away.
            pass

    def _is_ours(self, scope: Scope) -> bool:
        return (endpoint_of(self._app, scope) or "").startswith(ENDPOINT_PREFIX)


def endpoint_of(app: QuartTrio, scope: Scope) -> str | None:
    """The endpoint that Quart will give this HTTP request to; None where there is none."""
    adapter = app.create_url_adapter(_request(scope))
    if adapter is None:
        return None
    try:
        endpoint, _ = adapter.match()
    except (HTTPException, ValueError):
        # A converter may trip over what a client wrote, as int() does over 5000 digits.
        return None
    return endpoint if isinstance(endpoint, str) else None


class _Socket:
    """What a websocket's client sends."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False

    async def receive(self) -> Any:
        """The next message for Quart."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._has_left = True
        return message

    async def drain(self, seconds: float) -> None:
        """Throw away what comes until the connection is gone, for at most ``seconds``."""
        with trio.move_on_after(seconds):
            while not self._has_left:
                await self.receive()


class _Body:
    """One request's body on its way. Quart receives in one task until the client is gone, and sends in another."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, max_bytes: int, is_ours: Callable[[Scope], bool]
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._find_out = is_ours
        self._received = 0
        self._is_ours: bool | None = None
        self._has_answered = False
        self._ended = trio.Event()

    async def receive(self) -> Any:
        """The next message for Quart."""
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                self._ended.set()
                return message
            self._received += len(message.get("body", b""))
            if not message.get("more_body", False):
                self._ended.set()
            if _MARK in self._scope or self._has_answered:
                continue
            if self._received <= self._max_bytes or not self._ours():
                return message
            self._scope[_MARK] = True
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        """Pass a message of Quart's on; the last one when the body has come."""
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and not self._ended.is_set():
            self._has_answered = True
            if message.get("body"):
                await self._send({**message, "more_body": True})
                message = {**message, "body": b""}
            await self._ended.wait()
        if not is_last:
            await self._send(message)
            return
        with trio.move_on_after(CLOSING_SECONDS, shield=True):
            await self._send(message)

    def _ours(self) -> bool:
        if self._is_ours is None:
            self._is_ours = self._find_out(self._scope)
        return self._is_ours


def _request(scope: Scope) -> BaseRequestWebsocket:
    # As Quart makes it: the path that routes see is without the proxy's root path.
    root_path = scope.get("root_path", "")
    path = scope["path"]
    if root_path:
        path = path.removeprefix(root_path) or " "
    headers = Headers([(name.decode("latin1"), value.decode("latin1")) for name, value in scope["headers"]])
    return BaseRequestWebsocket(
        scope["method"],
        scope["scheme"],
        path,
        scope["query_string"],
        headers,
        root_path,
        scope["http_version"],
        scope,
    )
