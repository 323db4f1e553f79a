"""One ASGI wrapper that sees the app's start and end before and after everything else of it. It knows nothing of jobs.

Resources that an app opens in ``before_serving`` or ``while_serving`` are all there when ``lifespan.startup.complete`` is sent, and all
still there when ``lifespan.shutdown`` is received. Between those two moments jobs may run. (Functions of Quart's own cannot see them: what
is registered earlier or later runs before or after, and Quart 0.22 and 0.23 tear down in different orders.)
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from callboard.web.asgi import ASGIApp, Receive, Scope, Send

__all__ = ["Lifespan"]


class Lifespan:
    """``within`` is entered round a lifespan. ``started`` is called when the app's whole start is over, ``ending`` before its end begins
    or when its start has failed.
    """

    def __init__(
        self,
        inner: ASGIApp,
        *,
        within: Callable[[], AbstractContextManager[None]],
        started: Callable[[], None],
        ending: Callable[[], Awaitable[None]],
    ) -> None:
        self._inner = inner
        self._within = within
        self._started = started
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._inner(scope, receive, send)
            return

        async def received() -> Any:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._ending()
            return message

        async def sent(message: Any) -> None:
            if message["type"] == "lifespan.startup.failed":
                await self._ending()
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self._started()

        with self._within():
            await self._inner(scope, received, sent)
