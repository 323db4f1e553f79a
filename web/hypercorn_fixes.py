"""What Hypercorn 0.18 gets wrong for long-lived websockets, mended for ``callboard serve``; and nothing else.

Owns every touch on Hypercorn's internals. ``fix`` puts a subclass of ``WSStream`` in its place, in this process, once; streams whose
config is no ``ServeConfig`` behave as before. What it mends:

* A peer that answers nothing is dropped. Hypercorn sends pings and never looks for pongs, and its ``read_timeout`` would end every
  quiet request too. Here any frame counts as a sign of life, and after ``silent_seconds`` without one the connection is cut off.
* permessage-deflate is not negotiated: it costs each connection some 100 kB and a tenth of the speed, and what a client has packed
  cannot be bounded before it is unpacked.

``tests/web/test_hypercorn_fixes.py`` fails when Hypercorn is another version or the places that this file relies on have moved.
"""

import socket
import struct
from typing import Any, Final

import trio
from hypercorn.config import Config, Sockets
from hypercorn.protocol import h2, h11, ws_stream

from callboard.web.server_options import ServerOptions

__all__ = ["SILENT_SECONDS", "ServeConfig", "fix"]

SILENT_SECONDS: Final = 45.0
"""A websocket peer that sent nothing for so long, not even a pong, is dropped: two pings of every 20 s and some patience."""
UNACKNOWLEDGED_SECONDS: Final = 40
"""A connection whose peer takes nothing for so long is cut off by the system (Linux): one that vanished, or that never reads. With the
15 s at most until a quiet event stream has something to say, within the contract's 60 s."""
BUSY_SECONDS: Final = 1.0
"""When to look again at a peer whose messages the app does not take."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: what waits for the peer is thrown away with the connection."""


class ServeConfig(Config):
    """Hypercorn's settings and ours."""

    silent_seconds: float = SILENT_SECONDS

    @classmethod
    def of(cls, options: ServerOptions) -> "ServeConfig":
        """Hypercorn's settings from ours."""
        config = cls()
        config.bind = list(options.bind)
        config.certfile = options.certfile
        config.keyfile = options.keyfile
        config.graceful_timeout = 1.0
        config.keep_alive_timeout = options.keep_alive_seconds
        config.websocket_ping_interval = options.ping_seconds
        config.websocket_max_message_size = options.max_message_bytes
        config.silent_seconds = options.silent_seconds
        config.alpn_protocols = ["http/1.1"]
        config.loglevel = "WARNING"
        return config

    def abort_connections(self) -> None:
        """Cut off every connection that is still open."""

    def create_sockets(self) -> Sockets:
        """Listening sockets whose connections do not outlive their peers for long."""
        sockets = super().create_sockets()
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            for one in (*sockets.secure_sockets, *sockets.insecure_sockets):
                if one.family in (socket.AF_INET, socket.AF_INET6):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)
        return sockets


class WatchedStream(ws_stream.WSStream):
    """A websocket whose peer has to give a sign of life."""

    _heard_at = 0.0
    _is_busy = False
    """What came is being handed to an app that takes its time: nothing more is read, and silence says nothing about the peer."""
    _watch: trio.CancelScope | None = None

    async def handle(self, event: Any) -> None:
        """Something came from the peer, or the connection is over."""
        self._is_busy = True
        await super().handle(event)
        self._is_busy = False
        self._heard_at = trio.current_time()
        if self.closed and self._watch is not None:
            self._watch.cancel()

    async def _send_pings(self) -> None:
        """Hypercorn's task for pings, and beside it the look at what comes back."""
        silent_seconds = getattr(self.config, "silent_seconds", None)
        if silent_seconds is None:
            await super()._send_pings()
            return
        with trio.CancelScope() as self._watch:
            async with trio.open_nursery() as nursery:
                # A ping may wait for ever behind a send that the peer does not take: nobody may wait for it.
                nursery.start_soon(super()._send_pings)
                await self._fall_silent(silent_seconds)
                nursery.cancel_scope.cancel()
        if not self.closed:
            await _cut_off(self)

    async def _fall_silent(self, silent_seconds: float) -> None:
        """Return when nothing was heard for so long."""
        while True:
            left = self._heard_at + silent_seconds - trio.current_time()
            if left <= 0 and not self._is_busy:
                return
            await trio.sleep(left if left > 0 else BUSY_SECONDS)


async def _cut_off(stream: ws_stream.WSStream) -> None:
    """Close the connection without a word; whoever sends or receives on it hears of that at once."""
    connection = stream.send.__self__.send.__self__.stream  # type: ignore[attr-defined]
    transport = getattr(connection, "transport_stream", connection)
    transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    await trio.aclose_forcefully(connection)


def _no_extensions(*_: Any) -> None:
    return None


def fix() -> None:
    """Mend Hypercorn in this process. Idempotent."""
    for module in (h11, h2):
        vars(module)["WSStream"] = WatchedStream
    vars(ws_stream)["server_extensions_handshake"] = _no_extensions
