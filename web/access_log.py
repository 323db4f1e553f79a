"""The access log: one line of JSON for each request that has ended, and for each websocket.

``AccessLog`` is an ASGI callable round an ASGI callable; it knows nothing of Quart or Hypercorn. ``callboard serve`` mounts it inside
``RootPath``, so that paths are logged as clients see them, and outside of everything else. A line on the logger ``callboard.access``:

    {"time":"2026-11-21T21:16:48.123Z","client":"10.0.0.7","method":"GET","path":"/jobs/7","status":200,"bytes":512,"seconds":0.0021}

========================== ============================================================================================
``time``                   of the end, RFC 3339 in UTC; it began ``seconds`` earlier
``client``                 the address of the peer, which is the proxy's behind one; null on a unix socket
``method``                 as sent; of a websocket GET
``path``                   as it was sent, in its percent-encoding, without the query; after 1024 characters cut and marked with ``...``
``status``                 as answered. 101: a websocket. 499: the client left before there was an answer, and got none
``bytes``                  of the body, or of the messages to a websocket's client, as the app gave them to the server
``seconds``                from the request's head to the end of the answer, or of the websocket
``cut``                    only where an answer did not reach its end: ``client`` (left) or ``server`` (error, time-out, shutdown);
                           with 500 and no bytes as a rule nothing was sent, and the connection was closed instead
``close_code``             websockets only: as the app or the server closed, or if the client came first, as the server understood it
``messages_in``            websockets only: taken by the app
``messages_out``           websockets only
``trace_id``               only of a request with a ``traceparent``
========================== ============================================================================================

A record has the same values as attributes, for a formatter of the app's own. Probes and scrapes that are answered well are at DEBUG,
everything else at INFO.

What is never logged: the query and other headers, which may hold secrets, ``Forwarded`` and ``X-Forwarded-For`` among them, since anyone
may write what he likes there. What a client writes can neither break a line nor forge one: all is ASCII, and control characters are
escaped. Bytes that never became a request (no HTTP, too many connections) have no line.
"""

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection
from typing import Any, Final
from urllib.parse import quote

from callboard.runtime.core.document import format_time
from callboard.web.asgi import ASGIApp, Receive, Scope, Send, is_cancellation

__all__ = ["LOGGER_NAME", "AccessLog", "probes"]

LOGGER_NAME: Final = "callboard.access"
CLIENT_LEFT: Final = 499
"""The status of a request whose client did not wait for the answer. Source: nginx, where it is the same and never sent either."""
MAX_PATH: Final = 1024
MAX_METHOD: Final = 32
MARK: Final = "..."
INTERNAL_ERROR: Final = 1011
ABNORMAL: Final = 1006
"""The close code of a connection that ended without one. Source: RFC 6455, section 7.4.1, as the next."""
NO_CODE: Final = 1005
NORMAL: Final = 1000

_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""Source: W3C Trace Context, section 3.2."""
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def probes(prefix: str) -> frozenset[str]:
    """The paths under a board's prefix that machines ask for every few seconds."""
    return frozenset(f"{prefix}/{path}" for path in ("health/live", "health/ready", "metrics"))


class AccessLog:
    """``app`` with a line for each request; those for the paths in ``quiet`` are at DEBUG unless they are refused."""

    def __init__(self, app: ASGIApp, quiet: Collection[str] = ()) -> None:
        self._app = app
        self._quiet = frozenset(quiet)
        self._logger = logging.getLogger(LOGGER_NAME)
        self._has_complained = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _KINDS.get(scope["type"])
        if kind is None or not self._logger.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        exchange = kind(self._write, scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.was_cancelled = is_cancellation(error)
            raise
        finally:
            exchange.end()

    def _write(self, exchange: "_Exchange") -> None:
        try:
            outcome = exchange.outcome()
            is_quiet = outcome["status"] < 400 and self._is_quiet(exchange.scope)
            level = logging.DEBUG if is_quiet else logging.INFO
            if self._logger.isEnabledFor(level):
                self._logger.handle(
                    self._record(level, {**_asked(exchange.scope), **outcome, **_trace(exchange.scope)})
                )
        except Exception:  # noqa: BLE001 - what an app's record factory, filter or handler raises must not fail a request
            self._complain()

    def _is_quiet(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path.removeprefix(scope.get("root_path", "")) in self._quiet

    def _record(self, level: int, fields: dict[str, Any]) -> logging.LogRecord:
        # Not logger.info(): `extra` refuses a name that the app's record factory has set, and looking for the caller costs time.
        record = self._logger.makeRecord(LOGGER_NAME, level, __file__, 0, "", (), None)
        record.msg = _encode({"time": format_time(int(record.created * 1000)), **fields})
        record.__dict__.update(fields)
        return record

    def _complain(self) -> None:
        if self._has_complained:
            return
        self._has_complained = True
        try:
            print("callboard: the access log fails; this is said once", file=sys.stderr)
            traceback.print_exc()
        except (OSError, ValueError):
            pass  # nobody reads standard error either


class _Exchange:
    """What goes between a client and the app, and how it ended."""

    def __init__(self, write: Callable[["_Exchange"], None], scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.was_cancelled = False
        self._write = write
        self._receive = receive
        self._send = send
        self._began = time.perf_counter()
        self._status: int | None = None
        self._bytes = 0
        self._has_left = False
        self._has_ended = False

    async def receive(self) -> Any:
        """The next message for the app."""
        raise NotImplementedError

    async def send(self, message: Any) -> None:
        """Pass a message of the app's on."""
        raise NotImplementedError

    def end(self) -> None:
        """Write the line, unless it is written."""
        if not self._has_ended:
            self._has_ended = True
            self._write(self)

    def outcome(self) -> dict[str, Any]:
        """The fields that tell of the end; ``status`` first."""
        status = self._status
        if status is None:
            # The server answers 500 for an app that does not.
            status = CLIENT_LEFT if self._has_left else 500
        seconds = round(time.perf_counter() - self._began, 4)
        return {"status": status, "bytes": self._bytes, "seconds": seconds}


class _Request(_Exchange):
    """One HTTP request."""

    _is_complete = False

    async def receive(self) -> Any:
        """The next message for the app."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._has_left = True
        return message

    async def send(self, message: Any) -> None:
        """Pass a message of the app's on."""
        if message["type"] == "http.response.start":
            await self._send(message)
            if not self._has_left:
                self._status = message["status"]
            return
        if message["type"] != "http.response.body" or self._has_left:
            await self._send(message)
            return
        if self._has_body():
            self._bytes += len(message.get("body", b""))
        if message.get("more_body", False):
            await self._send(message)
            return
        # Before it is sent: with the end of the answer the server tells of a disconnect, and many an app is cancelled by that.
        self._is_complete = True
        try:
            await self._send(message)
        finally:
            self.end()

    def outcome(self) -> dict[str, Any]:
        """The fields that tell of the end."""
        fields = super().outcome()
        is_torn = self._status is not None or (self.was_cancelled and not self._has_left)
        if is_torn and not self._is_complete:
            fields["cut"] = "client" if self._has_left else "server"
        return fields

    def _has_body(self) -> bool:
        return self.scope["method"] != "HEAD" and self._status not in (204, 304)


class _Socket(_Exchange):
    """One websocket, or a handshake that was refused."""

    _close_code: int | None = None
    _messages_in = 0
    _messages_out = 0

    async def receive(self) -> Any:
        """The next message for the app."""
        message = await self._receive()
        if message["type"] == "websocket.receive":
            self._messages_in += 1
        elif message["type"] == "websocket.disconnect":
            self._has_left = True
            self._close(message.get("code") or NO_CODE)
        return message

    async def send(self, message: Any) -> None:
        """Pass a message of the app's on."""
        kind = message["type"]
        if kind == "websocket.close":
            self._close(message.get("code") or NORMAL)
            if self._status is None and not self._has_left:
                self._status = 403
        await self._send(message)
        if self._has_left:
            return
        if kind == "websocket.send":
            self._messages_out += 1
            self._bytes += _size(message)
        elif kind == "websocket.accept":
            self._status = 101
        elif kind == "websocket.http.response.start":
            self._status = message["status"]
        elif kind == "websocket.http.response.body":
            self._bytes += len(message.get("body", b""))

    def outcome(self) -> dict[str, Any]:
        """The fields that tell of the end."""
        fields = super().outcome()
        if self._status == 101:
            if self._close_code is None:
                self._close_code = ABNORMAL if self.was_cancelled else INTERNAL_ERROR
            fields["close_code"] = self._close_code
            fields["messages_in"] = self._messages_in
            fields["messages_out"] = self._messages_out
        return fields

    def _close(self, code: int) -> None:
        if self._status == 101 and self._close_code is None:
            self._close_code = code


_KINDS: Final[dict[str, type[_Exchange]]] = {"http": _Request, "websocket": _Socket}


def _size(message: Any) -> int:
    data = message.get("bytes")
    if data is None:
        text: str = message["text"]
        return len(text) if text.isascii() else len(text.encode(errors="replace"))
    return len(data)


def _asked(scope: Scope) -> dict[str, Any]:
    """The fields that tell what the client asked for."""
    client = scope.get("client")
    return {
        "client": client[0] if client else None,
        "method": _cut(scope.get("method", "GET"), MAX_METHOD),
        "path": _cut(_path(scope), MAX_PATH),
    }


def _path(scope: Scope) -> str:
    """The path as it was sent."""
    raw: bytes | None = scope.get("raw_path")
    target = quote(scope["path"], errors="replace") if raw is None else raw.decode("latin1")
    target = target.partition("?")[0]
    if target.startswith("/") or target == "*":
        return target
    # A whole URL, or what CONNECT takes: a name and a password may stand before the host.
    return "/" + target.partition("://")[2].partition("/")[2]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + MARK


def _trace(scope: Scope) -> dict[str, str]:
    """The request's trace, if it is in one."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            return {"trace_id": found[1].decode()} if found and found[1].strip(b"0") else {}
    return {}
