"""``callboard worker``: which app a target means, and what of it HTTP gets to see. Running it is ``serve``'s business, as for any app.

A worker is the same app in the same life: its resources are opened and closed, its handlers run in its context, it drains as when it is
served. Only nobody can reach its routes; with a bind, those who probe and measure the process find health and metrics there.
"""

from typing import Any

from quart_trio import QuartTrio

from callboard.runtime import Handlers
from callboard.runtime.core.errors import ConfigError
from callboard.web.asgi import ASGIApp, Receive, Scope, Send
from callboard.web.board import Callboard
from callboard.web.early_refusal import refuse

__all__ = ["ProbesOnly", "app_of"]

NAME = "callboard worker"


def app_of(target: Any) -> QuartTrio:
    """The app that an app, a board or handlers mean; the last two get one. Raises ConfigError for anything else."""
    if isinstance(target, QuartTrio):
        return target
    if isinstance(target, Handlers):
        handlers, target = target, Callboard()
        target.handlers = handlers
    if not isinstance(target, Callboard):
        raise ConfigError(f"a {type(target).__name__} is no QuartTrio app, no Callboard and no Handlers")
    if target.app is None:
        target.init_app(QuartTrio(NAME))
    app = target.app
    assert app is not None
    return app


class ProbesOnly:
    """``app`` with nothing to be seen but health and metrics under ``prefix``."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._paths = frozenset(f"{prefix}/{path}" for path in ("health/live", "health/ready", "metrics"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in self._paths):
            await self._app(scope, receive, send)
            return
        detail = "This process runs jobs. It answers under /health and at /metrics only."
        await refuse(scope, receive, send, 404, kind="not-found", title="There is nothing here", detail=detail)
