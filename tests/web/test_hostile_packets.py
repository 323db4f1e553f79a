"""Byte by byte, what clients do wrong: each is answered or dropped, nobody else notices, nothing is logged and nothing is left.

The server is Hypercorn as ``callboard serve`` has it, with an app of Quart's (and in places a bare one) behind it.
"""

import logging
import os
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.trio import serve as hypercorn_serve
from quart import Response, request, websocket
from quart_trio import QuartTrio

from callboard.runtime import Config
from callboard.web import Callboard, hypercorn_fixes
from callboard.web.compat import CLIENT_GONE
from callboard.web.hypercorn_fixes import Http1, ServeConfig, fix
from callboard.web.server_options import ServerOptions
from callboard.web.tls import Certificate

GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
MESSAGE_BYTES = 1000
HEADER_BYTES = 2000
SHORT = 0.4


@dataclass
class Server:
    """What a test needs to know of the server."""

    config: ServeConfig
    address: Any
    stop: trio.Event = field(default_factory=trio.Event)
    returned: trio.Event = field(default_factory=trio.Event)

    async def connect(self, receive_buffer: int = 0) -> trio.SocketStream:
        line = trio.socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        if receive_buffer:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await line.connect(self.address)
        return trio.SocketStream(line)

    async def talk(self, *parts: bytes) -> bytes:
        """All that comes until the server closes, when ``parts`` are sent with a little time between them."""
        async with await self.connect() as stream:
            return await talk(stream, *parts)

    async def is_well(self) -> None:
        """A request of another client is answered."""
        assert (await self.talk(GOOD)).endswith(b"good")

    async def is_clean(self, seconds: float = 5) -> None:
        """Nobody is connected."""
        with trio.fail_after(seconds):
            while self.config.connections:  # noqa: ASYNC110 - what is waited for is behind a socket
                await trio.sleep(0.01)


async def talk(stream: Any, *parts: bytes) -> bytes:
    received = b""
    with trio.fail_after(10):
        try:
            for part in parts:
                await stream.send_all(part)
                await trio.sleep(0.03)
            while data := await stream.receive_some():
                received += data
        except trio.BrokenResourceError:
            pass
    return received


def make_app() -> QuartTrio:
    app = QuartTrio("hostile")
    Callboard(app, store="memory://", config=Config(drain_seconds=0.5))
    app.ended = []  # type: ignore[attr-defined]

    @app.route("/good", methods=["GET", "POST"])
    async def good() -> str:
        return "good"

    @app.route("/slow", methods=["GET", "POST"])
    async def slow() -> str:
        await trio.sleep(0.1)
        return "slow"

    @app.post("/body")
    async def body() -> bytes:
        data = await request.get_data()
        assert isinstance(data, bytes)
        return data

    @app.get("/big")
    async def big() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield bytes(20_000_000)

        return Response(parts())

    @app.websocket("/echo")
    async def echo() -> None:
        with suppress(*CLIENT_GONE):  # Quart 0.23 logs it with a traceback
            while True:
                await websocket.send(await websocket.receive())

    @app.websocket("/push")
    async def push() -> None:
        try:
            with suppress(*CLIENT_GONE):
                while True:
                    await websocket.send("x" * 10_000)
                    await trio.sleep(0.001)
        finally:
            app.ended.append("push")  # type: ignore[attr-defined]

    @app.websocket("/late")
    async def late() -> None:
        await trio.sleep(0.1)
        await websocket.send("late")

    @app.websocket("/never")
    async def never() -> None:
        try:
            await trio.sleep_forever()
        finally:
            app.ended.append("never")  # type: ignore[attr-defined]

    @app.websocket("/no")
    async def no() -> tuple[str, int]:
        return "no", 403

    return app


@asynccontextmanager
async def served(app: Any = None, *, tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Server]:
    """Hypercorn, mended."""
    fix()
    wanted: dict[str, Any] = {"bind": ("127.0.0.1:0",), "max_message_bytes": MESSAGE_BYTES}
    config = ServeConfig.of(ServerOptions(**{**wanted, "max_header_bytes": HEADER_BYTES, **options}), tls)
    config.graceful_timeout = 0.3
    server = Server(config, None)

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await hypercorn_serve(
            app or make_app(), config, shutdown_trigger=server.stop.wait, task_status=task_status, mode="asgi"
        )
        server.returned.set()

    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(run)
        bind = config.bind[0]
        unix = bind.removeprefix("unix:")
        server.address = unix if unix != bind else ("127.0.0.1", int(url.rpartition(":")[2]))
        yield server
        server.stop.set()
        with trio.fail_after(10):
            await trio.sleep(config.graceful_timeout)
            config.abort_connections()
            await server.returned.wait()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def complaints(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def upgrade(path: str, headers: bytes = b"", version: bytes = b"13", http: bytes = b"1.1") -> bytes:
    return (
        b"GET %s HTTP/%s\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: %s\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n" % (path.encode(), http, version, headers)
    )


def frame(opcode: int, payload: bytes = b"", *, first: int = 0x80, mask: bool = True) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size)
    if not mask:
        return bytes([first | opcode]) + length + payload
    return bytes([first | opcode, length[0] | 0x80]) + length[1:] + bytes(4) + payload


def closed_with(code: int) -> bytes:
    return struct.pack("!H", code)


BAD_REQUEST = b"HTTP/1.1 400 "
CLOSE = frame(8, struct.pack("!H", 1000))

ANSWERED: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "no HTTP at all": ((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",), BAD_REQUEST),
    "a bad header": ((b"GET / HTTP/1.1\r\nHost: a\r\nx y\r\n\r\n",), BAD_REQUEST),
    "no host": ((b"GET / HTTP/1.1\r\n\r\n",), BAD_REQUEST),
    "a host that is none": ((b"GET /good HTTP/1.1\r\nHost: a..b\r\n\r\n",), BAD_REQUEST),
    "a host of bytes": ((b"GET /good HTTP/1.1\r\nHost: \xff..\r\n\r\n",), BAD_REQUEST),
    "no path": ((b"GET ?x HTTP/1.1\r\nHost: a\r\n\r\n",), BAD_REQUEST),
    "a URL that is none": ((b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",), BAD_REQUEST),
    "a tunnel": ((b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",), BAD_REQUEST),
    "two lengths of one body": (
        (
            b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        BAD_REQUEST,
    ),
    "chunks in HTTP/1.0": (
        (b"POST /slow HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"),
        BAD_REQUEST,
    ),
    "a header without end": ((b"GET / HTTP/1.1\r\nx: " + b"x" * HEADER_BYTES, b"x"), b"HTTP/1.1 431 "),
    "a header that is more than is read": ((b"GET / HTTP/1.1\r\nx: " + b"x" * 500_000,), b"HTTP/1.1 431 "),
    "HTTP/2 with prior knowledge": ((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",), b"HTTP/1.1 505 "),
    "HTTP/0.9": ((b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",), b"HTTP/1.1 505 "),
    "a websocket of HTTP/3": ((upgrade("/echo", http=b"3.0"),), b"HTTP/1.1 505 "),
    "a bad chunk while the app is at it": (
        (b"POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"zzz\r\n"),
        BAD_REQUEST,
    ),
    "a bad chunk after the promise to go on": (
        (b"POST /slow HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", b"zzz\r\n"),
        b"HTTP/1.1 100 ",
    ),
    "rubbish after a request": ((b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n", b"\0\0\0"), b"HTTP/1.1 "),
    "rubbish after the last request": ((GOOD, b"\0\0\0"), b"HTTP/1.1 200 "),
    "an empty line behind the last request": ((GOOD.replace(b"/good", b"/slow") + b"\r\n",), b"HTTP/1.1 200 "),
    "rubbish while the last request is answered": ((GOOD.replace(b"/good", b"/slow"), b"\0\0\0"), b"HTTP/1.1 200 "),
    "a request behind the last of HTTP/1.0": ((b"GET /slow HTTP/1.0\r\n\r\n" + GOOD,), b"HTTP/1.1 200 "),
    "a subprotocol of bytes": ((upgrade("/echo", b"Sec-WebSocket-Protocol: \xe9\r\n"),), BAD_REQUEST),
    "an extension of bytes": ((upgrade("/echo", b"Sec-WebSocket-Extensions: \xe9\r\n"),), BAD_REQUEST),
    "another version of websockets": ((upgrade("/echo", version=b"7"),), BAD_REQUEST),
    "a websocket of HTTP/1.0": ((upgrade("/echo", http=b"1.0"),), BAD_REQUEST),
    "a websocket without a key": ((upgrade("/echo").replace(b"-Key", b"-Kee"),), BAD_REQUEST),
    "a frame with the upgrade": ((upgrade("/echo") + frame(1, b"x") + CLOSE,), b"HTTP/1.1 101 "),
    "a frame before the app accepts": ((upgrade("/late"), CLOSE), b"HTTP/1.1 101 "),
    "a frame with an upgrade that is refused": ((upgrade("/no") + frame(1, b"x"),), b"HTTP/1.1 403 "),
    "an upgrade that expects to go on": (
        (upgrade("/late", b"Expect: 100-continue\r\nContent-Length: 9\r\n"), CLOSE),
        b"HTTP/1.1 101 ",
    ),
    "an upgrade on top": ((upgrade("/echo") + upgrade("/echo"),), b"HTTP/1.1 101 "),
    "an upgrade behind a request": (
        (b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + upgrade("/echo") + CLOSE,),
        b"HTTP/1.1 200 ",
    ),
    "a websocket that is a form": ((upgrade("/echo", b"Transfer-Encoding: chunked\r\n") + CLOSE,), b"HTTP/1.1 101 "),
}


@pytest.mark.parametrize("name", ANSWERED)
async def test_what_is_wrong_is_answered_and_the_connection_closed(name: str, log: pytest.LogCaptureFixture) -> None:
    parts, answer = ANSWERED[name]
    async with served() as server:
        received = await server.talk(*parts)
        assert received.startswith(answer), received
        await server.is_well()
        await server.is_clean()
    assert complaints(log) == []


FRAMES: dict[str, tuple[tuple[bytes, ...], int]] = {
    "compressed": ((frame(1, b"abc", first=0xC0),), 1002),
    "unmasked": ((frame(1, b"abc", mask=False),), 1002),
    "of no known kind": ((frame(3),), 1002),
    "a long ping": ((frame(9, bytes(126)),), 1002),
    "a ping in parts": ((frame(9, first=0),), 1002),
    "a continuation of nothing": ((frame(0),), 1002),
    "a text that is none": ((frame(1, b"\xff\xfe"),), 1007),
    "a close with one byte": ((frame(8, b"x"),), 1002),
    "a close with a code that is none": ((frame(8, closed_with(1005)),), 1002),
    "a close with a reason that is none": ((frame(8, closed_with(1000) + b"\xff"),), 1007),
    "a message too long": ((frame(2, bytes(MESSAGE_BYTES + 1)),), 1009),
    "too long in bytes": ((frame(1, "é".encode() * (MESSAGE_BYTES // 2 + 1)),), 1009),
    "too long in its parts": ((frame(2, bytes(600), first=0), frame(0, bytes(600))), 1009),
    "endless": ((frame(2, bytes(900), first=0), *[frame(0, bytes(900), first=0) * 50] * 5), 1009),
    "a close": ((CLOSE,), 1000),
}


async def test_a_host_of_the_longest_name_is_one_with_its_port_too(log: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        answer = await server.talk(GOOD.replace(b"Host: a", b"Host: " + b"x" * 63 + b":65535"))
        assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert complaints(log) == []


@pytest.mark.parametrize("name", FRAMES)
async def test_a_websocket_is_closed_with_the_code_that_fits(name: str, log: pytest.LogCaptureFixture) -> None:
    parts, code = FRAMES[name]
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await answer_good(send)
            return
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            pass
        told.append(message["code"])

    async with served(bare(app)) as server:
        received = await server.talk(upgrade("/echo"), *parts)
        _, _, frames = received.partition(b"\r\n\r\n")
        assert frames.lstrip(b"\x89\0")[:1] == b"\x88" and frames.lstrip(b"\x89\0")[2:4] == closed_with(code), frames
        await server.is_well()
        await server.is_clean()
    assert told == [code]
    assert complaints(log) == []


def bare(app: Any) -> Any:
    """An app without Quart."""

    async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for _ in range(2):
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})

    return with_lifespan


async def answer_good(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"good"})


async def test_messages_up_to_the_limit_are_taken(log: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        half = bytes(MESSAGE_BYTES // 2)
        received = await server.talk(upgrade("/echo"), frame(2, half, first=0) + frame(0, half), CLOSE)
        assert bytes(MESSAGE_BYTES) in received
    assert complaints(log) == []


async def test_h2c_is_answered_in_http_1(log: pytest.LogCaptureFixture) -> None:
    headers = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    async with served() as server:
        received = await server.talk(b"GET /slow HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n" + GOOD)
        assert received.startswith(b"HTTP/1.1 200 ") and received.endswith(b"good")
    assert complaints(log) == []


async def test_thousands_of_empty_frames_do_not_hold_up_the_others(log: pytest.LogCaptureFixture) -> None:
    async with served() as server, trio.open_nursery() as nursery:
        async with await server.connect() as stream:

            async def flood() -> None:
                await stream.send_all(upgrade("/echo") + frame(1, first=0))
                while True:
                    await stream.send_all(frame(0, first=0) * 10_000)

            nursery.start_soon(flood)
            await trio.sleep(0.1)
            ticks = 0
            with trio.move_on_after(1):
                while True:
                    await trio.lowlevel.checkpoint()
                    ticks += 1
            assert ticks > 50, "the event loop stood still"
            await server.is_well()
            nursery.cancel_scope.cancel()
    assert complaints(log) == []


@pytest.mark.parametrize("what", ["pings", "messages", "a body", "a stream"])
@pytest.mark.parametrize("over", ["tcp", "unix", "tls"])
async def test_who_takes_nothing_is_cut_off(
    what: str, over: str, tmp_path: Path, certificate: Path, log: pytest.LogCaptureFixture
) -> None:
    """Also where the system does not find out, which TCP_USER_TIMEOUT lets it on TCP."""
    bind = f"unix:{tmp_path}/s" if over == "unix" else "127.0.0.1:0"
    tls = Certificate(str(certificate), str(certificate)).context if over == "tls" else None
    async with served(bind=(bind,), send_seconds=SHORT, tls=tls) as server:
        stream: Any = await server.connect(4096)
        if over == "tls":
            stream = trusting(stream, certificate)
        async with trio.open_nursery() as nursery:
            first = {"a body": b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n", "messages": upgrade("/echo")}
            await stream.send_all(first.get(what, upgrade("/push")))

            async def send() -> None:
                with_each = frame(9, bytes(100)) if what == "pings" else frame(2, bytes(900))
                try:
                    while what in ("pings", "messages"):
                        await stream.send_all(with_each * 50)
                except trio.BrokenResourceError:
                    pass

            nursery.start_soon(send)
            await trio.sleep(SHORT / 4)
            assert len(server.config.connections) == 1, "it has not begun: this test tests nothing"
            await server.is_clean(10)
            await trio.aclose_forcefully(stream)
    assert complaints(log) == []


async def test_who_takes_little_is_not_cut_off(log: pytest.LogCaptureFixture) -> None:
    async with served(send_seconds=1.5) as server:
        async with await server.connect(32_768) as stream:
            await stream.send_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            deadline = trio.current_time() + 5
            while trio.current_time() < deadline:
                await trio.sleep(0.1)
                assert await stream.receive_some(50_000)
        await server.is_clean()
    assert complaints(log) == []


@pytest.mark.parametrize("path", ["/big", "/push", "/never"])
async def test_a_client_that_never_reads_does_not_keep_the_server_from_ending(
    path: str, log: pytest.LogCaptureFixture
) -> None:
    async with served() as server, await server.connect(4096) as stream, await server.connect() as other:
        await stream.send_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n" if path == "/big" else upgrade(path))
        await trio.sleep(0.3)
        server.stop.set()
        await other.send_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.sleep(0.6)
        assert not server.returned.is_set() or path == "/never", "it ends without: this test tests nothing"
        server.config.abort_connections()
        with trio.fail_after(2):
            await server.returned.wait()
    assert complaints(log) == []


async def test_pipelined_requests_of_a_client_that_has_gone_leave_nothing(log: pytest.LogCaptureFixture) -> None:
    """The reader waits for the end of the first; the send that fails is the only one to wake it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(20_000_000), "more_body": True})

    async with served(bare(app), send_seconds=SHORT) as server:
        stream = await server.connect(4096)
        await stream.send_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        await trio.sleep(0.1)
        assert len(server.config.connections) == 1
        await server.is_clean()
        await stream.aclose()
    assert complaints(log) == []


async def test_aborting_ends_an_app_that_does_not_listen() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    async with served(bare(app)) as server, await server.connect() as stream:
        await stream.send_all(GOOD)
        await trio.sleep(0.1)
        server.config.abort_connections()
        await server.is_clean(1)


async def test_one_too_many_is_answered_503_and_a_place_is_free_again(log: pytest.LogCaptureFixture) -> None:
    async with served(max_connections=2) as server:
        async with await server.connect() as first, await server.connect() as second:
            for stream in (first, second):
                await stream.send_all(b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            refused = await server.talk(GOOD)
            assert refused.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in refused
            assert b"Connection: close" in refused and b"Content-Length: 0" in refused
        await server.is_clean(1)
        await server.is_well()
    assert complaints(log) == []


async def test_a_crowd_above_the_limit_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn_fixes, "MAX_REFUSALS", 1)
    async with served(max_connections=1) as server, await server.connect(), await server.connect():
        with trio.fail_after(2):
            while not server.config.refused:  # noqa: ASYNC110 - what is waited for is behind a socket
                await trio.sleep(0.01)
        assert await server.talk(GOOD) == b""


async def test_those_who_are_refused_take_no_place() -> None:
    async with served(max_connections=1) as server, await server.connect() as stream, await server.connect():
        await stream.send_all(b"GET /good HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        while await stream.receive_some():
            pass
        await stream.aclose()
        assert server.config.refused, "the second is not there any more: this test tests nothing"
        with trio.fail_after(2):
            while server.config.connections:  # noqa: ASYNC110 - what is waited for is behind a socket
                await trio.sleep(0.01)
        assert (await server.talk(GOOD)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("after", [b"", b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["first", "next"])
async def test_headers_that_dribble_in_are_cut_off(after: bytes, log: pytest.LogCaptureFixture) -> None:
    async with served(keep_alive_seconds=SHORT) as server, await server.connect() as stream:
        await stream.send_all(after)
        with pytest.raises(trio.BrokenResourceError):
            with trio.fail_after(5):
                while True:
                    await stream.send_all(b"G" if not after else b"x")
                    await trio.sleep(0.05)
        await server.is_clean()
    assert complaints(log) == []


@pytest.mark.parametrize("half", [False, True], ids=["closed", "half closed"])
async def test_a_client_that_leaves_takes_its_connection_along(half: bool) -> None:
    """Not when the idle timer ends, 75 s later."""
    async with served() as server:
        stream = await server.connect()
        await stream.send_all(b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n")
        with trio.move_on_after(0.3):
            while await stream.receive_some():
                pass
        assert len(server.config.connections) == 1, "it was not kept: this test tests nothing"
        await (stream.send_eof() if half else stream.aclose())
        await server.is_clean(1)
        await stream.aclose()


async def test_the_socket_of_a_client_that_leaves_does_not_wait_for_the_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(2)

    async with served(bare(app)) as server, await server.connect() as stream:
        await stream.send_all(GOOD)
        await stream.send_eof()
        with trio.fail_after(1):
            assert await stream.receive_some() == b""
        assert len(server.config.connections) == 1, "its place is taken while its app runs"


async def test_a_connection_that_is_closed_is_so_at_once_for_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn_fixes, "LINGER_SECONDS", 60)
    async with served() as server:
        with trio.fail_after(3):
            await server.is_well()
        await server.is_clean(1)


async def test_a_client_that_does_not_close_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn_fixes, "LINGER_SECONDS", SHORT)
    async with served() as server, await server.connect() as stream:
        assert (await talk(stream, GOOD)).endswith(b"good")
        assert len(server.config.connections) == 1, "it is not given a moment"
        await server.is_clean(3)


def left() -> tuple[int, int]:
    """Descriptors and tasks."""
    return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux only")
async def test_nothing_is_left_open() -> None:
    async with served() as server:
        await server.is_well()
        await server.is_clean()
        before = left()
        for parts, _ in ANSWERED.values():
            await server.talk(*parts)
        await server.is_clean()
        assert left() == before


async def test_a_tls_handshake_that_never_ends_is_given_up(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ServeConfig, "ssl_handshake_timeout", SHORT)
    async with served(tls=Certificate(str(certificate), str(certificate)).context) as server:
        for parts in ((b"",), (b"\x16\x03\x01\x02\x00",), (b"GET / HTTP/1.1\r\n\r\n",)):
            await server.talk(*parts)
        async with await server.connect():
            await trio.sleep(0.1)
            assert len(server.config.connections) == 1
            server.config.abort_connections()
            await server.is_clean(1)
        async with trusting(await server.connect(), certificate) as stream:
            assert (await talk(stream, GOOD)).endswith(b"good")
            assert stream.selected_alpn_protocol() == "http/1.1"
        await server.is_clean()
    assert complaints(log) == []


async def test_clients_without_a_certificate_are_turned_away(certificate: Path, log: pytest.LogCaptureFixture) -> None:
    tls = Certificate(str(certificate), str(certificate), ca_certs=str(certificate)).context
    async with served(tls=tls) as server:
        async with trusting(await server.connect(), certificate) as stream:
            assert await talk(stream, GOOD) == b""
        async with trusting(await server.connect(), certificate, shows=certificate) as stream:
            assert (await talk(stream, GOOD)).endswith(b"good")
    assert complaints(log) == []


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its certificate for 127.0.0.1 in one file, signed by itself."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=a"
    made = subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"],
        capture_output=True,
        check=True,
        timeout=20,
    )
    path.write_bytes(made.stdout)
    return path


def trusting(stream: trio.SocketStream, certificate: Path, shows: Path | None = None) -> Any:
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    if shows is not None:
        context.load_cert_chain(shows)
    return trio.SSLStream(stream, context, server_hostname="127.0.0.1", https_compatible=True)


async def test_an_app_that_never_accepts_hears_of_a_client_that_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hypercorn_fixes, "LEAVE_SECONDS", SHORT)
    app = make_app()
    async with served(app) as server:
        answer = await server.talk(upgrade("/never"), frame(1, b"x"))
        assert answer.startswith(BAD_REQUEST), answer
        await server.is_clean()
    assert app.ended == ["never"]  # type: ignore[attr-defined]
    assert complaints(log) == []


async def test_an_app_that_never_receives_is_ended_when_its_client_has_gone(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Every queue up to it is full, so that the news does not get through."""
    monkeypatch.setattr(hypercorn_fixes, "LEAVE_SECONDS", SHORT)
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            await trio.sleep_forever()
        finally:
            ended.append(scope["path"])

    async with served(bare(app)) as server:
        async with await server.connect() as stream:
            await stream.send_all(upgrade("/push"))
            await stream.receive_some()
            await stream.send_all(frame(1, b"x") * 100)
            await trio.sleep(0.1)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if (connection := next(iter(server.config.connections), None)) is not None:
            connection.cut()
        await server.is_clean()
    assert ended == ["/push"]
    assert complaints(log) == []


async def test_what_comes_for_an_app_that_has_returned_is_dropped(log: pytest.LogCaptureFixture) -> None:
    later: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        later.append(receive)
        await trio.sleep(0.3)  # its queue fills up
        await answer_good(send)

    async with served(bare(app)) as server:
        body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000)
        assert (await server.talk(body)).endswith(b"good")
        await server.is_clean()
        assert (await later[0]())["type"] == "http.disconnect"
    assert complaints(log) == []


@pytest.mark.parametrize("how", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
async def test_an_app_that_cancels_its_last_send_does_not_keep_the_connection(how: bytes) -> None:
    """As Quart-Trio does when it is told that the answer is complete."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await answer_good(send)

    async with served(bare(app), keep_alive_seconds=SHORT) as server:
        assert (await server.talk(b"GET / HTTP/1.1\r\nHost: a\r\n" + how + b"\r\n")).endswith(b"good")
        await server.is_clean(SHORT + 1)


Mistake = Callable[[Any], Awaitable[None]]


async def too_much(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    await send({"type": "http.response.body", "body": b"good"})


async def too_little(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"good"})


async def wrong_message(send: Any) -> None:
    await send({"type": "websocket.send", "text": "good"})


async def wrong_header(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b\r\nc: d")]})


async def raises(send: Any) -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("mistake", [too_much, too_little, wrong_message, wrong_header, raises])
async def test_a_mistake_of_the_app_is_logged(mistake: Mistake, log: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (answer_good(send) if scope["path"] == "/good" else mistake(send))

    async with served(bare(app)) as server:
        await server.talk(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await server.is_well()
        await server.is_clean()
    assert complaints(log) == ["Error in ASGI Framework"]


def break_on(mark: bytes, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server raise ``error`` where it takes in what has ``mark`` in it."""
    handle = Http1.handle

    async def broken(self: Http1, event: Any) -> None:
        if mark in getattr(event, "data", b""):
            raise error
        await handle(self, event)

    monkeypatch.setattr(Http1, "handle", broken)


async def test_a_bug_of_ours_ends_one_connection_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    break_on(b"/bug", RuntimeError("a bug"), monkeypatch)
    async with served() as server:
        assert await server.talk(GOOD.replace(b"/good", b"/bug")) == b""
        await server.is_well()
        await server.is_clean()
    assert [(record.levelname, record.exc_info is not None) for record in log.records if record.levelno > 20] == [
        ("ERROR", True)
    ]
