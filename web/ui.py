"""The live dashboard at ``<jobs>/ui``: one static page that is a plain client of the wire contract. Owns its safety headers.

The page may run its own script and style and talk to its own origin, nothing else (Content-Security-Policy by digest), so that
nothing that a job brings can run there.
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from quart import Response, current_app, request

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["make_ui_view"]

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def make_ui_view(board: "Callboard") -> Callable[[], Awaitable[Response]]:
    """The view of ``GET <jobs>/ui``, for those who may ``ui``."""
    page = files("callboard.web").joinpath("ui.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _policy(page),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def ui() -> Response:
        await board.access.require(request, "ui")
        response: Response = current_app.response_class(page, headers=headers, content_type="text/html; charset=utf-8")
        return response

    return ui


def _policy(page: str) -> str:
    digests = {kind: _digest(text) for kind, text in _INLINE.findall(page)}
    return (
        f"default-src 'none'; script-src '{digests['script']}'; style-src '{digests['style']}';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    """Source: W3C Content Security Policy Level 3, section 2.3.1, ``hash-source``."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
