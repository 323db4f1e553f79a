"""What Hypercorn 0.18 gets wrong on its trio worker, mended for ``callboard serve``; and nothing else.

Owns every touch on Hypercorn's internals. ``fix`` puts a subclass in the place of five of its classes, in this process, once; a server
whose config is no ``ServeConfig`` gets Hypercorn's own. Each docstring says which fault its override mends. Two rules hold throughout:

* What a client does wrong is answered if it can be, and its connection closed, without a word in the log. What this code or
  Hypercorn does wrong is logged with its traceback and ends that one connection. What the app does wrong, Hypercorn logs as before.
* Whatever happens to a connection, all of its tasks end and its place is free: nobody waits for a peer or an app that is gone.

``tests/web/test_hypercorn_fixes.py`` fails when Hypercorn is another version or the places that this file relies on have moved.
"""

import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Final, Self, cast

import h11
import trio
from hypercorn import protocol
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import h11 as http1
from hypercorn.protocol.events import Body, Data, StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WebsocketBuffer, WSStream
from hypercorn.trio import run, tcp_server
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.utils import wrap_app
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

from callboard.web.asgi import ASGIApp
from callboard.web.server_options import ServerOptions

__all__ = ["ServeConfig", "fix", "live"]

logger: Final = logging.getLogger("callboard.serve")


HANDSHAKE_SECONDS: Final = 15.0
"""A TLS handshake that takes longer is given up."""
LINGER_SECONDS: Final = 2.0
"""A connection that we close is read and what comes thrown away for so long, or until the client closes it too: a socket that is closed
with something unread is reset, and the client may never see its answer. Source: RFC 9112, 9.6."""
ARRIVAL_SECONDS: Final = 0.5
"""What the first request of a connection gets to arrive when the server has stopped listening."""
LEAVE_SECONDS: Final = 5.0
"""An app that does not look at the news that its websocket's client has gone is cancelled after so long."""
BUSY_SECONDS: Final = 1.0
"""When to look again at a peer whose messages the app does not take."""
SEND_BYTES: Final = 2**14
"""A peer has to take so much in ``send_seconds``: what trio lets wait in the system's buffer (TCP_NOTSENT_LOWAT). Of a peer that reads
slowly we hear more seldom: its system opens the window again only when about half of its receive buffer is empty."""
MAX_REFUSALS: Final = 32
"""So many connections above the limit are answered at a time; yet more are reset."""
REFUSAL: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: what waits for the peer is thrown away with the connection."""


class ServeConfig(Config):
    """Hypercorn's settings and ours, and the connections that are open under them."""

    backlog = 1024
    include_server_header = False
    loglevel = "WARNING"
    ssl_handshake_timeout = HANDSHAKE_SECONDS
    tls: ssl.SSLContext | None = None
    silent_seconds: float = ServerOptions.silent_seconds
    send_seconds: float = ServerOptions.send_seconds
    max_connections: int = ServerOptions.max_connections

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.refused: set[Connection] = set()

    @classmethod
    def of(cls, options: ServerOptions, tls: ssl.SSLContext | None = None) -> Self:
        """All of Hypercorn's settings that follow from ours; ``tls`` is what its certificates are about."""
        config = cls()
        config.bind = list(options.bind)
        config.tls = tls
        config.keep_alive_timeout = options.keep_alive_seconds
        config.h11_max_incomplete_size = options.max_header_bytes
        if options.max_message_bytes is not None:
            config.websocket_max_message_size = options.max_message_bytes
        config.websocket_ping_interval = options.ping_seconds
        config.silent_seconds = options.silent_seconds
        config.send_seconds = options.send_seconds
        config.max_connections = options.max_connections
        return config

    @property
    def ssl_enabled(self) -> bool:
        """Hypercorn goes by the names of files, and makes a context of them that nobody can give a new certificate to."""
        return self.tls is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        """As ``ssl_enabled``."""
        return self.tls

    def create_sockets(self) -> Sockets:
        """Listening sockets whose connections do not outlive for long a peer that has vanished with little left to send to it."""
        sockets = super().create_sockets()
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            for one in (*sockets.secure_sockets, *sockets.insecure_sockets):
                if one.family in (socket.AF_INET, socket.AF_INET6):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.send_seconds * 1000))
        return sockets

    def abort_connections(self) -> None:
        """Reset every connection that is open and cancel its tasks, so that no client keeps the server from ending."""
        for connection in (*self.connections, *self.refused):
            connection.abort()


async def live(
    app: ASGIApp,
    config: ServeConfig,
    *,
    shutdown_trigger: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Hypercorn's ``serve`` for an app that nobody can reach: it starts and ends as when it is served. (Hypercorn fails without a bind.)"""
    lifespan = Lifespan(wrap_app(app, config.wsgi_max_body_size, "asgi"), config, {})
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        task_status.started([])
        await shutdown_trigger()
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()


class Connection(TCPServer):
    """One connection, from its acceptance to the end of its last task."""

    config: ServeConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._life = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._has_reader = True

    async def run(self) -> None:
        """Hypercorn lets any exception of one connection end the server, and has no limit on their number."""
        peers = self.config.connections
        if len(peers) >= self.config.max_connections:
            peers = self.config.refused
            if len(peers) >= MAX_REFUSALS:
                self.cut()
                return
        peers.add(self)
        try:
            with self._life:
                if peers is self.config.refused:
                    await self._refuse()
                else:
                    await super().run()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone, or was cut off
        except* Exception:
            logger.exception("a connection ended with an error that is none of its client's: the server goes on")
        finally:
            peers.discard(self)

    async def _refuse(self) -> None:
        if isinstance(self.stream, trio.SSLStream):
            return
        with trio.move_on_after(LINGER_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_all(REFUSAL)
            await self.stream.send_eof()
            while await self.stream.receive_some():
                pass

    async def protocol_send(self, event: Event) -> None:
        """Hypercorn shields a send for ever, trips over one that meets a close, and resets what it closes with something unread."""
        if isinstance(event, RawData):
            async with self.send_lock:
                try:
                    await self._send(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.cut()
                    await self.protocol.handle(Closed())
        elif isinstance(event, Closed):
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            patience = 0 if self.context.terminated.is_set() else LINGER_SECONDS
            self._reading.deadline = min(self._reading.deadline, trio.current_time() + patience)
            await self.protocol.handle(Closed())
        else:
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        for start in range(0, len(data), SEND_BYTES):
            # A send that is cancelled half-way leaves a torn message: only the deadline ends it, and the connection with it.
            with trio.CancelScope(deadline=trio.current_time() + self.config.send_seconds, shield=True) as scope:
                await self.stream.send_all(data[start : start + SEND_BYTES])
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the peer takes nothing")

    async def _read_data(self) -> None:
        """Hypercorn keeps the socket of a client that has gone until the idle timer ends, and may wait for ever to read on."""
        with self._reading:
            await super()._read_data()
        self._has_reader = False
        await self.protocol.handle(Closed())
        await self.idle_task.stop()
        await self._close()

    async def _idle_timeout(self) -> None:
        """An answer that ends as its client goes starts the timer when nobody would stop it; and at shutdown Hypercorn closes a connection
        that it has just accepted under its first request."""
        if not self._has_reader:
            return
        with trio.move_on_after(self.config.keep_alive_timeout):
            await self.context.terminated.wait()
            if self.protocol.protocol.keep_alive_requests == 0:
                await trio.sleep(ARRIVAL_SECONDS)
        # The request that stops this timer may have come in the same turn of the event loop as what ends it.
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    async def _close(self) -> None:
        """Hypercorn's own raises OSError, and makes a send in another task raise BusyResourceError."""
        await trio.aclose_forcefully(self.stream)

    def cut(self) -> None:
        """End the connection without a word; whoever sends or receives on it hears of that at once."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()
        self._reading.cancel()

    def abort(self) -> None:
        """The same, and cancel its tasks, whatever they wait for."""
        self._life.cancel()
        self.cut()

    @property
    def _socket(self) -> trio.socket.SocketType:
        transport: Any = getattr(self.stream, "transport_stream", self.stream)
        return cast("trio.socket.SocketType", transport.socket)


class Tasks(TaskGroup):
    """The tasks of a connection."""

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        """Hypercorn waits for ever for room in the queue of an app that has returned, or that does not look at it."""
        if not isinstance(config, ServeConfig):
            return await super().spawn_app(app, config, scope, send)
        nursery, life, told = self._nursery, trio.CancelScope(), trio.Event()
        assert nursery is not None
        gone = f"{scope['type']}.disconnect"

        async def watched(scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any) -> None:
            async def next_message() -> Any:
                try:
                    message = await receive()
                except trio.ClosedResourceError:  # a task that the app has left behind
                    message = {"type": gone, "code": CloseReason.ABNORMAL_CLOSURE}
                if message["type"] == gone:
                    told.set()
                return message

            with receive.__self__, life:
                try:
                    await app(scope, next_message, send, sync_spawn, call_soon)
                finally:
                    told.set()

        async def put(message: Any) -> None:
            with suppress(trio.BrokenResourceError):
                await enqueue(message)

        async def tell(message: Any) -> None:
            with trio.move_on_after(LEAVE_SECONDS if scope["type"] == "websocket" else inf):
                await put(message)
                await told.wait()
            if not told.is_set():
                life.cancel()

        async def put_or_tell(message: Any) -> None:
            if message["type"] == gone:
                nursery.start_soon(tell, message)
            else:
                await put(message)

        enqueue = await super().spawn_app(watched, config, scope, send)
        return put_or_tell


class Requests(h11.Connection):
    """What a client asks. h11 itself takes the answer from a last request (``Connection: close``, HTTP/1.0) that anything follows, be it
    an empty line: it gets 400, when the app is at work on it already. RFC 9112, 9.6: what follows is not looked at."""

    def receive_data(self, data: bytes) -> None:
        """Take in what has come."""
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> Any:
        """What has come."""
        return h11.NEED_DATA if self.their_state is h11.MUST_CLOSE else super().next_event()


class Http1(H11Protocol):
    """HTTP/1 on one connection."""

    _is_over = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = Requests(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    async def handle(self, event: Event) -> None:
        """Hypercorn lets out what it cannot decode of a websocket's headers, and works on what comes after it has closed."""
        if isinstance(event, Closed):
            self._is_over = True
        elif self._is_over:
            return
        try:
            await super().handle(event)
        except (h11.RemoteProtocolError, UnicodeError) as error:
            await self._send_error_response(getattr(error, "error_status_hint", 400))
            await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        """Hypercorn switches to HTTP/2 here, and takes a body whose end a proxy in front may see elsewhere. Raises RemoteProtocolError."""
        if event.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("HTTP/1 only", error_status_hint=505)
        names = {name for name, _ in event.headers}
        if b"transfer-encoding" in names and (b"content-length" in names or event.http_version == b"1.0"):
            # RFC 9112, 6.1: who goes on with such a connection is open to request smuggling.
            raise h11.RemoteProtocolError("two lengths of one body")

    async def _maybe_recycle(self) -> None:
        """Hypercorn tells the app of the end before it is through; an app that then cancels its send keeps it from closing."""
        with trio.CancelScope(shield=True):  # nothing in it waits for anyone
            await super()._maybe_recycle()


class Buffer(WebsocketBuffer):
    """One message of a websocket's client."""

    def extend(self, event: Any) -> None:
        """Hypercorn counts characters."""
        super().extend(event)
        if isinstance(event.data, str) and not event.data.isascii():
            self.length += len(event.data.encode()) - len(event.data)
            if self.length > self.max_length:
                raise FrameTooLargeError


class Websocket(WSStream):
    """A websocket: its peer has to give a sign of life, and keep to the protocol."""

    _heard_at = 0.0
    _is_busy = False
    """What came is being handed to an app that takes its time: nothing more is read, and silence says nothing about the peer."""
    _watch: trio.CancelScope | None = None
    _close_code: int | None = None
    _is_ended = False

    def __init__(self, app: Any, config: ServeConfig, *args: Any) -> None:
        super().__init__(app, config, *args)
        self.buffer = Buffer(config.websocket_max_message_size)
        self._settled = trio.Event()

    async def handle(self, event: Any) -> None:
        """Hypercorn fails over a client that does not await the end of the handshake, does not close after a bad one, and never tells
        the app with which code a client has closed."""
        self._is_busy = True
        if isinstance(event, Body | Data) and not self.handshake.accepted:
            with trio.move_on_after(LEAVE_SECONDS):
                await self._settled.wait()
            if not self.handshake.accepted:
                self.closed = True
                if self.state is ASGIWebsocketState.HANDSHAKE:
                    await self._send_error_response(400)
        if isinstance(event, StreamClosed):
            self._is_ended = True
            self._settled.set()
            if self._close_code is not None and not self.closed and self.app_put is not None:
                self.closed = True
                await self.app_put({"type": "websocket.disconnect", "code": self._close_code})
        await super().handle(event)
        if self.closed and not self._is_ended:
            self.closed = False
            await self.send(StreamClosed(stream_id=self.stream_id))
        self._is_busy = False
        self._heard_at = trio.current_time()
        if self.closed and self._watch is not None:
            self._watch.cancel()

    async def _accept(self, message: Any) -> None:
        """permessage-deflate is not negotiated: it costs each connection some 100 kB and a tenth of the speed, and what a client has packed
        cannot be bounded before it is unpacked."""
        self.handshake.extensions = None
        await super()._accept(message)
        self._settled.set()

    async def _handle_events(self) -> None:
        """Hypercorn closes after a protocol error without its code, and goes on filling its buffer when a message was too big."""
        for event in self.connection.events():
            await trio.lowlevel.checkpoint()  # thousands of empty frames fit into one packet
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    await self._end(CloseConnection(code=CloseReason.MESSAGE_TOO_BIG))
                    return
                if event.message_finished:
                    assert self.app_put is not None
                    await self.app_put(self.buffer.to_message())
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                await self._end(event.response())
                return

    async def _end(self, close: CloseConnection) -> None:
        self._close_code = int(close.code)
        await self._send_wsproto_event(close)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_pings(self) -> None:
        """Hypercorn sends pings and never looks for pongs, and its ``read_timeout`` would end every quiet request too. Here any frame
        counts as a sign of life, and after ``silent_seconds`` without one the connection is cut off."""
        self._heard_at = trio.current_time()  # an app may take its time before it accepts
        with trio.CancelScope() as self._watch:
            if self.closed:
                return
            async with trio.open_nursery() as nursery:
                # A ping may wait behind a send that the peer does not take: nobody may wait for it.
                nursery.start_soon(super()._send_pings)
                await self._fall_silent(self.config.silent_seconds)  # type: ignore[attr-defined]
                self.send.__self__.send.__self__.cut()  # type: ignore[attr-defined]
                nursery.cancel_scope.cancel()

    async def _fall_silent(self, silent_seconds: float) -> None:
        """Return when nothing was heard for so long."""
        while True:
            left = self._heard_at + silent_seconds - trio.current_time()
            if left <= 0 and not self._is_busy:
                return
            await trio.sleep(left if left > 0 else BUSY_SECONDS)


def fix() -> None:
    """Mend Hypercorn in this process. Idempotent."""
    vars(run)["TCPServer"] = _either(Connection, TCPServer)
    vars(tcp_server)["TaskGroup"] = Tasks
    vars(protocol)["H11Protocol"] = _either(Http1, H11Protocol)
    vars(http1)["WSStream"] = _either(Websocket, WSStream)


def _either(ours: type, theirs: type) -> Callable[..., Any]:
    def make(app: Any, config: Config, *args: Any) -> Any:
        return (ours if isinstance(config, ServeConfig) else theirs)(app, config, *args)

    return make
