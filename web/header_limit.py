"""One ASGI wrapper round an app that refuses requests and handshakes with too long a head: 431 (RFC 6585), and the connection is closed.

For the launcher, whose setting the bound is. A server bounds what it holds of a head that has not ended; what came whole in
one piece it may pass on, and headers are stored with every job.
"""

from typing import Final

from callboard.web.asgi import ASGIApp, Receive, Scope, Send
from callboard.web.early_refusal import refuse

__all__ = ["MAX_HEADERS", "HeaderLimit"]

MAX_HEADERS: Final = 100
"""As many as most servers and proxies take, such as Apache (LimitRequestFields)."""


class HeaderLimit:
    """``app``, for requests whose request line and headers have at most ``max_bytes`` together, as they are in HTTP/1.1."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or (
            len(scope["headers"]) <= MAX_HEADERS and _size(scope) <= self._max_bytes
        ):
            await self._app(scope, receive, send)
            return
        await refuse(
            scope,
            receive,
            send,
            431,
            kind="request-header-fields-too-large",
            title="Request Header Fields Too Large",
            detail=f"Send at most {self._max_bytes} bytes of request line and headers, and at most {MAX_HEADERS} headers.",
        )


def _size(scope: Scope) -> int:
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"]
    line = len(scope.get("method", "GET")) + 1 + len(path) + (len(query) + 1 if query else 0) + len(" HTTP/1.1\r\n")
    # Each header with its colon, one space and the end of its line; and the empty line.
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + 2
