"""One ASGI wrapper round an app that refuses requests and handshakes with too long a head: 431 (RFC 6585), and the connection is closed.

For the launcher, whose setting the bound is. A server bounds what it holds of a head that has not ended; what came whole in
one piece it may pass on, and headers are stored with every job.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

import msgspec
import trio

from callboard.web.render import PATH_SIGNS

__all__ = ["MAX_HEADERS", "HeaderLimit"]

MAX_HEADERS: Final = 100
"""As many as most servers and proxies take, such as Apache (LimitRequestFields)."""
LINGER_SECONDS: Final = 1.0
"""What a client that still sends gets to read the answer before its connection is closed."""

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class HeaderLimit:
    """``app``, for requests whose request line and headers have at most ``max_bytes`` together, as they are in HTTP/1.1."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket") or (
            len(scope["headers"]) <= MAX_HEADERS and _size(scope) <= self._max_bytes
        ):
            await self._app(scope, receive, send)
        elif kind == "http":
            await self._refuse(scope, send, "http.response", receive)
        elif "websocket.http.response" in (scope.get("extensions") or {}):
            await self._refuse(scope, send, "websocket.http.response", None)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _refuse(self, scope: Scope, send: Send, prefix: str, receive: Receive | None) -> None:
        body = self._problem(scope)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        if scope.get("http_version", "1.1").startswith("1"):
            headers.append((b"connection", b"close"))
        await send({"type": f"{prefix}.start", "status": 431, "headers": headers})
        await send({"type": f"{prefix}.body", "body": body, "more_body": True})
        if receive is not None:
            with trio.move_on_after(LINGER_SECONDS):
                await _end_of_body(receive)
        await send({"type": f"{prefix}.body", "body": b"", "more_body": False})

    def _problem(self, scope: Scope) -> bytes:
        detail = f"The request line and the headers have more than {self._max_bytes} bytes, or there are over {MAX_HEADERS} headers."
        return msgspec.json.encode(
            {
                "type": "urn:callboard:problem:request-header-fields-too-large",
                "title": "Request Header Fields Too Large",
                "status": 431,
                "detail": detail,
                "instance": quote(scope["path"][:1000], safe=PATH_SIGNS, errors="replace"),
            }
        )


def _size(scope: Scope) -> int:
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"]
    line = len(scope.get("method", "GET")) + 1 + len(path) + (len(query) + 1 if query else 0) + len(" HTTP/1.1\r\n")
    # Each header with its colon, one space and the end of its line; and the empty line.
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + 2


async def _end_of_body(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
