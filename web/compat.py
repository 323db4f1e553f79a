"""What differs between the generations of Quart that callboard runs on, and nothing else."""

import functools
from typing import Any, Final

from quart.wrappers import base
from quart_trio import QuartTrio

__all__ = ["CLIENT_GONE", "pass_departures"]


def _client_gone() -> tuple[type[Exception], ...]:
    error = getattr(base, "ClientDisconnectedError", None)
    return () if error is None else (error,)


CLIENT_GONE: Final = _client_gone()
"""What reading from or writing to a client that has left raises, for an ``except``. Quart 0.23 raises, 0.22 cancels instead."""


def pass_departures(app: QuartTrio) -> None:
    """A client that leaves while the app reads from it is no error of the app's: nothing is logged, no signal tells of an exception.

    Quart 0.23 means it so (its ASGI classes catch the error, and say nothing), but Quart-Trio 0.13 makes it an unhandled exception
    with a traceback on the way there, for every websocket that a client closes while the app waits for its next message.
    """
    if CLIENT_GONE:
        for name in ("handle_exception", "handle_websocket_exception"):
            setattr(app, name, _unless_gone(getattr(app, name)))


def _unless_gone(handle: Any) -> Any:
    @functools.wraps(handle)
    async def handle_others(context: Any, error: BaseException) -> Any:
        departure = _departure(error)
        if departure is not None:
            raise departure
        return await handle(context, error)

    return handle_others


def _departure(error: BaseException) -> BaseException | None:
    """The news that the client has left, if ``error`` is nothing else."""
    while isinstance(error, BaseExceptionGroup):
        if error.split(CLIENT_GONE)[1] is not None:
            return None
        error = error.exceptions[0]
    return error if isinstance(error, CLIENT_GONE) else None
