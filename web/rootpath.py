"""An app under a path of a proxy's: ``callboard serve --root-path /shop``. Tells the app where clients see it, and nothing else.

Some proxies pass the whole path on, some take their part of it away. ASGI wants it whole, so what was taken away is put back: both
kinds work. (A path of the app's own that begins as the root path does needs a proxy of the first kind.)
"""

from typing import Final
from urllib.parse import quote

from callboard.web.asgi import ASGIApp, Receive, Scope, Send

__all__ = ["RootPath"]


_WITH_PATH: Final = frozenset({"http", "websocket"})


class RootPath:
    """``app`` as seen under ``root_path``, which begins with a slash and does not end with one."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in _WITH_PATH:
            root, path = self._root_path, scope["path"]
            scope = {**scope, "root_path": root}
            # What is no path stays none, for the app to refuse.
            if path.startswith("/") and path != root and not path.startswith(f"{root}/"):
                scope["path"] = root + path
                raw = scope.get("raw_path")
                if raw is not None and raw.startswith(b"/"):
                    scope["raw_path"] = quote(root).encode() + raw
        await self._app(scope, receive, send)
