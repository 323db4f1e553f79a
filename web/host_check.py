"""One ASGI wrapper round an app that refuses requests whose ``Host`` or target Quart cannot read: 400.

Quart looks at them before anything of the app's runs and outside of its own error handling, so that such a request would end as an
unhandled exception in the server, with a traceback in the log for what a client did wrong.
"""

from urllib.parse import urlsplit

from callboard.web.asgi import ASGIApp, Receive, Scope, Send
from callboard.web.early_refusal import refuse

__all__ = ["HostCheck"]


class HostCheck:
    """``inner`` for requests and handshakes with a target and a ``Host`` that its router can read, or with no ``Host``."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._inner(scope, receive, send)
        elif not all(map(_is_host, _hosts(scope))):
            detail = "The Host header can be no name of a host."
            await refuse(scope, receive, send, 400, kind="bad-host", title="Bad Request", detail=detail)
        elif not _is_target(scope["path"]):
            detail = "The target of the request is no path and no URL."
            await refuse(scope, receive, send, 400, kind="bad-target", title="Bad Request", detail=detail)
        else:
            await self._inner(scope, receive, send)


def _hosts(scope: Scope) -> list[str]:
    return [value.decode("latin1") for name, value in scope["headers"] if name.lower() == b"host"]


def _is_host(host: str) -> bool:
    try:
        # As Werkzeug's Map.bind does.
        host.lower().partition(":")[0].encode("idna")
    except UnicodeError:
        return False
    return True


def _is_target(path: str) -> bool:
    if path.startswith("/") or path == "*":
        return True
    try:
        parts = urlsplit(path)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.path.startswith("/")
