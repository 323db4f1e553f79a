"""One ASGI wrapper round every websocket of the app, callboard's and others: whoever sends, floods or leaves harms nobody else.

* A checkpoint before each send. Hypercorn's send returns without one once the connection is broken, and Quart-Trio adds none: a
  handler that does nothing but send would never let another task run again.
* A client that has left is noticed although the handler takes no messages. Hypercorn tells of it through the queue that messages
  come through; when that is full because nobody reads, the news waits, inside the very send that found the connection broken, which nothing
  can interrupt. So when the app has taken nothing for ``stuck_seconds``, up to ``MAX_AHEAD`` further messages are read and kept
  for it. If even then a send has not got through for as long, the client is one that asks and does not listen: its handler is
  cancelled as if it had left, and what it still sends is thrown away.
* What a client sends after the end is thrown away, until the connection is gone: Hypercorn closes it only when there is room for one
  more message in the queue of an app that reads no more.

What stays unnoticed: a client that left behind more messages than all these bounds, while the handler neither sends nor receives.
"""

from collections import deque
from typing import Any, Final

import trio
import trio.lowlevel
from quart_trio import QuartTrio

from callboard.web.asgi import ASGIApp, Receive, Scope, Send
from callboard.web.compat import CLIENT_GONE

__all__ = ["MAX_AHEAD", "SocketLimit"]

FAREWELL_SECONDS: Final = 1.0
"""What a client gets to answer the close of its websocket. Then its connection is closed, which may cost it what it has not yet read."""
LEFTOVER_SECONDS: Final = 5.0
"""Bound on throwing away what still comes while the connection is being closed."""
STUCK_SECONDS: Final = 15.0
"""An app that has taken no message for so long may be one that takes none."""
MAX_AHEAD: Final = 20
"""Messages that are read for such an app: more than Hypercorn's queue holds (10), and with it whoever waits to put one in."""


class SocketLimit:
    """``inner``, which serves ``app``, with the bounds round its websockets."""

    def __init__(
        self,
        app: QuartTrio,
        inner: ASGIApp,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        self._app = app
        self._inner = inner
        self._stuck_seconds = stuck_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._inner(scope, receive, send)
            return
        socket = _Socket(receive, send, self._stuck_seconds)
        try:
            await socket.serve(self._inner, scope)
        except* CLIENT_GONE:
            pass
        if not socket.was_accepted:
            return
        await socket.drain(FAREWELL_SECONDS)
        # Without the lifespan protocol, as in an app's own tests, there is no nursery.
        nursery = getattr(self._app, "nursery", None)
        if not socket.has_left and nursery is not None:
            # Hypercorn closes the connection when this returns, and needs someone who reads until it has.
            nursery.start_soon(socket.drain, LEFTOVER_SECONDS)


class _Socket:
    """One websocket. Quart receives in one task until the client is gone, and sends in others."""

    def __init__(self, receive: Receive, send: Send, stuck_seconds: float) -> None:
        self._receive = receive
        self._send = send
        self._stuck_seconds = stuck_seconds
        self._life = trio.CancelScope()
        self._reading = trio.Lock()
        """Held by whoever reads from the server."""
        self._ahead: deque[Any] = deque()
        """What was read before anyone asked, the oldest first; older than whatever the server still has."""
        self._taken_at = trio.current_time()
        self._sends: dict[object, float] = {}
        """When each send that is under way began."""
        self.was_accepted = False
        self.has_left = False

    async def serve(self, inner: ASGIApp, scope: Scope) -> None:
        """Run the app for as long as the client is there."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            with self._life:
                await inner(scope, self.receive, self.send)
            nursery.cancel_scope.cancel()

    async def receive(self) -> Any:
        """The next message for Quart."""
        if not self._ahead:
            async with self._reading:
                if not self._ahead:
                    self._ahead.append(await self._read())
        self._taken_at = trio.current_time()
        return self._ahead.popleft()

    async def send(self, message: Any) -> None:
        """Pass a message of Quart's on."""
        await trio.lowlevel.checkpoint()
        if message["type"] == "websocket.accept":
            self.was_accepted = True
        mine = object()
        self._sends[mine] = trio.current_time()
        try:
            await self._send(message)
        finally:
            del self._sends[mine]

    async def drain(self, seconds: float) -> None:
        """Throw away what comes until the connection is gone, for at most ``seconds``."""
        with trio.move_on_after(seconds):
            while not self.has_left:
                await self._read()

    async def _read(self) -> Any:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.has_left = True
        return message

    async def _watch(self) -> None:
        """Look for the client's leaving where nobody else does."""
        while not self.has_left:
            await trio.sleep(self._stuck_seconds)
            if not self._reading.locked() and self._is_long_ago(self._taken_at):
                async with self._reading:
                    await self._read_ahead()

    async def _read_ahead(self) -> None:
        while not self.has_left and not self._reading.statistics().tasks_waiting:
            if len(self._ahead) >= MAX_AHEAD:
                if not any(map(self._is_long_ago, self._sends.values())):
                    return
                self._life.cancel()
            message = await self._read()
            if not self._life.cancel_called:
                self._ahead.append(message)
        if self.has_left:
            self._life.cancel()

    def _is_long_ago(self, moment: float) -> bool:
        return trio.current_time() - moment >= self._stuck_seconds
