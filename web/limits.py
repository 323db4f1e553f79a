"""One ASGI wrapper that bounds the bodies that clients send: their bytes on callboard's own routes, and their time.

It counts bytes as they are received and does nothing else until more than ``max_body_bytes`` (``max_bulk_body_bytes`` of lines of JSON)
have come, or ``body_seconds`` have passed since the head of the request. Only then is the route
looked up; if it is one of callboard's, the body ends there for Quart, the scope is marked so that the view answers 413 or 408, and
what still comes is thrown away. It never holds a body itself. On the app's other routes ``inbound`` and Quart bound the bytes, and
Quart's BODY_TIMEOUT the time.

An answer that is complete before the body has come leaves Hypercorn with a connection that it can only close, and closing it under a
client that still sends may cost the client the answer. So the end of such an answer, whoever gives it, waits for the end of the
body, while the client has all of its bytes; what comes meanwhile is thrown away. It waits for ``body_seconds`` and no longer, and after
a 408 for ``LINGER_SECONDS``, as after any early refusal: then the connection is closed.

The end of an answer is not interrupted. Hypercorn tells Quart of it as a disconnect, whereupon Quart-Trio cancels the task that is
still inside Hypercorn's send: a connection that ends with its answer (``Connection: close``, HTTP/1.0) would not be closed, and one that is
kept would lose its idle timer, stay open for ever, and at shutdown until the end of the grace.

Every other send begins with a checkpoint. Hypercorn's returns without one once the connection is broken, and Quart-Trio adds none: an
answer that does nothing but send would never let another task run again, not even the one that is to cancel it.
"""

from collections.abc import Callable
from math import inf
from typing import Any, Final

import trio
import trio.lowlevel
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from callboard.web.asgi import ASGIApp, Receive, Scope, Send
from callboard.web.compat import CLIENT_GONE
from callboard.web.early_refusal import LINGER_SECONDS
from callboard.web.inbound import bound_inbound
from callboard.web.parsing import is_ndjson

__all__ = ["ENDPOINT_PREFIX", "MAPPED_PREFIX", "BodyLimit", "endpoint_of", "is_too_large", "is_too_late"]

ENDPOINT_PREFIX: Final = "callboard:"
"""Every endpoint of callboard's begins so."""
MAPPED_PREFIX: Final = f"{ENDPOINT_PREFIX}mapped:"
"""The endpoint of every handler on a route of the app's begins so."""

_TOO_LARGE: Final = "callboard.body_too_large"
_TOO_LATE: Final = "callboard.body_too_late"

CLOSING_SECONDS: Final = 5.0
"""What the last part of an answer, and the close of a connection that ends with it, get in spite of a cancellation."""


def is_too_large(request: BaseRequestWebsocket) -> bool:
    """Whether the body of this request was cut off because of its size."""
    return _TOO_LARGE in request.scope


def is_too_late(request: BaseRequestWebsocket) -> bool:
    """Whether the body of this request was cut off because it had not come in time."""
    return _TOO_LATE in request.scope


class BodyLimit:
    """``inner``, which serves ``app``, with the bounds round it."""

    def __init__(
        self,
        app: QuartTrio,
        inner: ASGIApp,
        *,
        max_body_bytes: int,
        max_bulk_body_bytes: int,
        body_seconds: float,
    ) -> None:
        self._app = app
        self._inner = inner
        self._max_body_bytes = max_body_bytes
        self._max_bulk_body_bytes = max_bulk_body_bytes
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bound_inbound(self._app)
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        content_type = next((value for name, value in scope["headers"] if name.lower() == b"content-type"), b"")
        is_bulk = is_ndjson(content_type.decode("latin1"))
        most = self._max_bulk_body_bytes if is_bulk else self._max_body_bytes
        body = _Body(scope, receive, send, most, self._body_seconds, self._is_ours)
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


class _Body:
    """One request's body on its way. Quart receives in one task until the client is gone, and sends in another."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        max_bytes: int,
        seconds: float,
        is_ours: Callable[[Scope], bool],
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._deadline = trio.current_time() + seconds
        self._find_out = is_ours
        self._received = 0
        self._is_ours: bool | None = None
        self._has_answered = False
        self._is_cut = False
        """For Quart the body has ended."""
        self._ended = trio.Event()

    async def receive(self) -> Any:
        """The next message for Quart."""
        while True:
            message = await self._next()
            if message is None:
                return self._cut(_TOO_LATE)
            if message["type"] != "http.request":
                self._ended.set()
                return message
            self._received += len(message.get("body", b""))
            if not message.get("more_body", False):
                self._ended.set()
            if self._is_cut or self._has_answered:
                continue
            if self._received <= self._max_bytes or not self._ours():
                return message
            return self._cut(_TOO_LARGE)

    async def send(self, message: Any) -> None:
        """Pass a message of Quart's on; the last one when the body has come, or has had its time."""
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not is_last:
            await trio.lowlevel.checkpoint()
            await self._send(message)
            return
        if not self._ended.is_set():
            self._has_answered = True
            if message.get("body"):
                await self._send({**message, "more_body": True})
                message = {**message, "body": b""}
            with trio.move_on_after(LINGER_SECONDS if _TOO_LATE in self._scope else self._seconds):
                await self._ended.wait()
        with trio.move_on_after(CLOSING_SECONDS, shield=True):
            await self._send(message)

    async def _next(self) -> Any:
        """What comes next; None if it is late and this is a route of ours."""
        if self._may_be_late():
            with trio.move_on_at(self._deadline):
                return await self._receive()
            if self._may_be_late() and self._ours():
                return None
            self._deadline = inf
        return await self._receive()

    def _may_be_late(self) -> bool:
        return self._deadline < inf and not (self._ended.is_set() or self._is_cut or self._has_answered)

    def _cut(self, mark: str) -> Any:
        self._is_cut = True
        self._scope[mark] = True
        return {"type": "http.request", "body": b"", "more_body": False}

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
