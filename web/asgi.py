"""The shapes of an ASGI app and of what it is called with, for callboard's wrappers. Types only: messages are plain dicts."""

from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["ASGIApp", "Receive", "Scope", "Send"]

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
