"""What Quart 0.23 holds of what a client sends, bounded: request bodies and websocket messages, on every route of the app.

Quart 0.23 looks at ``MAX_CONTENT_LENGTH`` when a chunked body has come as a whole, and holds every message that a websocket's handler
has not yet taken. Here a body is cut off where it passes the limit, whether it is awaited, iterated or never looked at, and what is
held of it is one piece, however small the chunks are. Of a websocket's messages ten wait, as with Quart 0.22; the next stay
with the server, and then with the client.

Owns the two classes, which know nothing of Quart's, and puts them in place by the attributes that Quart has for that, ``body_class``
and ``buffer_class``; a class of the app's own there is left alone. So is Quart 0.22, which bounds both itself. (A
``max_content_length`` of a single request reaches the parser of forms only, in either generation: Quart makes the body first.)
"""

from collections.abc import Generator
from typing import Any, Final

import trio
from quart_trio import QuartTrio
from werkzeug.exceptions import RequestEntityTooLarge

from callboard.web.compat import CLIENT_GONE

__all__ = ["MAX_WAITING_MESSAGES", "Body", "Buffer", "bound_inbound"]

MAX_WAITING_MESSAGES: Final = 10
"""Messages of a websocket that wait for its handler. Source: Quart-Trio 0.12, ``TrioASGIWebsocketConnection``."""


def bound_inbound(app: QuartTrio) -> None:
    """See to it that the app's requests and websockets hold no more than they may. Idempotent, for each request: an app may set
    a request class of its own at any time.
    """
    if CLIENT_GONE:
        app.request_class = _with(app.request_class, "body_class", Body)
        app.websocket_class = _with(app.websocket_class, "buffer_class", Buffer)


def _with(kind: Any, name: str, bounded: type) -> Any:
    if not getattr(kind, name).__module__.startswith("quart"):
        return kind
    return type(kind.__name__, (kind,), {name: bounded, "__module__": kind.__module__, "__doc__": kind.__doc__})


class Body:
    """The body of a request, to be awaited or iterated; at most ``max_content_length`` bytes of it are taken in."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        self._most = max_content_length
        self._received = 0
        self._held = bytearray()
        self._is_complete = False
        self._has_left = False
        self._is_too_large = self._passes_limit(expected_content_length or 0)
        self._news = trio.Event()

    def __aiter__(self) -> "Body":
        return self

    async def __anext__(self) -> bytes:
        data = await self.get()
        if not data:
            raise StopAsyncIteration
        return data

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._whole().__await__()

    async def put(self, data: bytes) -> None:
        """Take in what has come."""
        self._received += len(data)
        if self._passes_limit(self._received):
            self._is_too_large = True
            self._held.clear()
        if not self._is_too_large:
            self._held += data
        self._tell()

    async def get(self) -> bytes:
        """What has come since the last time, when there is something; nothing at the end."""
        while True:
            self._check()
            if self._held:
                data = bytes(self._held)
                self._held.clear()
                return data
            if self._is_complete:
                return b""
            if self._has_left:
                raise CLIENT_GONE[0]
            await self._news.wait()

    def disconnect(self) -> None:
        """The client has left."""
        self._has_left = True
        self._tell()

    def set_complete(self) -> None:
        """All of it has come."""
        self._is_complete = True
        self._tell()

    def set_result(self, data: bytes) -> None:
        """All of it at once, for tests."""
        self._held += data
        self.set_complete()

    def clear(self) -> None:
        """Forget what was read."""
        self._held.clear()

    async def _whole(self) -> bytes:
        self._check()
        while not self._is_complete:
            # Who waits for all of it is cancelled when the client leaves.
            await self._news.wait()
            self._check()
        return bytes(self._held)

    def _passes_limit(self, size: int) -> bool:
        return self._most is not None and size > self._most

    def _check(self) -> None:
        if self._is_too_large:
            raise RequestEntityTooLarge

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


class Buffer:
    """The messages of a websocket that wait for its handler, as many as may."""

    def __init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[bytes | str](MAX_WAITING_MESSAGES)

    async def put(self, data: bytes | str) -> None:
        """Hand a message over, when there is room for it."""
        await self._put.send(data)

    async def get(self) -> bytes | str:
        """The next message, when there is one."""
        try:
            return await self._get.receive()
        except trio.EndOfChannel:
            raise CLIENT_GONE[0] from None

    def disconnect(self) -> None:
        """The client has left; what it sent before can still be taken."""
        self._put.close()
