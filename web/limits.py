"""One ASGI wrapper that bounds request bodies on callboard's own routes, whatever the Quart version does.

It counts bytes as they are received and does nothing else until more than ``max_body_bytes`` have come. Only then is the route
looked up; if it is one of callboard's, the body ends there for Quart, the scope is marked so that the view answers 413, and what
still comes is thrown away. It never holds a body itself, and leaves the app's other routes alone.

(Quart 0.23 looks at the limit of a chunked body only when all of it has arrived.)
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from quart import Quart
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

__all__ = ["ENDPOINT_PREFIX", "BodyLimit", "is_too_large"]

ENDPOINT_PREFIX: Final = "callboard:"
"""Every endpoint of callboard's begins so."""

_MARK: Final = "callboard.body_too_large"

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def is_too_large(request: BaseRequestWebsocket) -> bool:
    """Whether the body of this request was cut off because of its size."""
    return bool(request.scope.get(_MARK))


class BodyLimit:
    """``app.asgi_app`` with the bound round it."""

    def __init__(
        self, app: Quart, inner: Callable[[Scope, Receive, Send], Awaitable[None]], max_body_bytes: int
    ) -> None:
        self._app = app
        self._inner = inner
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = self._counted(scope, receive)
        await self._inner(scope, receive, send)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        received = 0
        is_ours: bool | None = None

        async def counted() -> Any:
            nonlocal received, is_ours
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                if scope.get(_MARK):
                    continue
                received += len(message.get("body", b""))
                if received <= self._max_body_bytes:
                    return message
                if is_ours is None:
                    is_ours = self._is_ours(scope)
                if not is_ours:
                    return message
                scope[_MARK] = True
                return {"type": "http.request", "body": b"", "more_body": False}

        return counted

    def _is_ours(self, scope: Scope) -> bool:
        adapter = self._app.create_url_adapter(_request(scope))
        if adapter is None:
            return False
        try:
            endpoint, _ = adapter.match()
        except HTTPException:
            return False
        return isinstance(endpoint, str) and endpoint.startswith(ENDPOINT_PREFIX)


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
