"""The shapes of an ASGI app and of what it is called with, for callboard's wrappers, and how to tell that one was cancelled. Messages are
plain dicts."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

__all__ = ["ASGIApp", "Receive", "Scope", "Send", "is_cancellation"]

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_cancellation(error: BaseException) -> bool:
    """Whether it is nothing but trio's cancellation; out of an app's nursery that comes as a group."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
