"""Websockets of the app's own, under clients that flood, do not listen, or leave."""

import logging
from typing import Any

import pytest
import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio
from tests.web.test_inbound import MIB, resident_bytes
from tests.web.test_livelock import UPGRADE
from tests.web.workshop import Gates, connect, reset, serving

from callboard.web import Callboard, socket_limit

STUCK_SECONDS = 0.3


class Notes:
    """What the handler of one test has seen."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.go_on = trio.Event()
        self.ended = trio.Event()


def sockets(notes: Notes) -> Any:
    def make_app(board: Callboard, gates: Gates) -> QuartTrio:
        app = QuartTrio("sockets")
        board.init_app(app)
        checked: Any = app.asgi_app
        checked._inner._stuck_seconds = STUCK_SECONDS

        @app.websocket("/waits")
        async def waits() -> None:
            await websocket.accept()
            try:
                await notes.go_on.wait()
                for _ in range(3):
                    notes.seen.append(await websocket.receive())
            finally:
                notes.ended.set()

        @app.websocket("/talks")
        async def talks() -> None:
            await websocket.accept()
            try:
                while True:
                    await websocket.send("x" * 65536)
            finally:
                notes.ended.set()

        @app.websocket("/listens")
        async def listens() -> None:
            try:
                while True:
                    notes.seen.append(await websocket.receive())
            finally:
                notes.ended.set()

        @app.websocket("/children")
        async def children() -> None:
            async def listen() -> None:
                while True:
                    notes.seen.append(await websocket.receive())

            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listen)
                    nursery.start_soon(trio.sleep_forever)
            finally:
                notes.ended.set()

        @app.websocket("/echoes")
        async def echoes() -> None:
            await websocket.accept()
            await notes.go_on.wait()
            while True:
                notes.seen.append(await websocket.receive())

        @app.websocket("/fails")
        async def fails() -> None:
            await websocket.accept()
            raise ValueError("a bug")

        @app.websocket("/closes")
        async def closes() -> None:
            await websocket.accept()
            await websocket.send("bye")
            await websocket.close(1000)

        @app.post("/pieces")
        async def pieces() -> Response:
            try:
                async for piece in request.body:
                    notes.seen.append(piece)
            finally:
                notes.ended.set()
            return Response("all")

        return app

    return make_app


def frame_of(text: bytes) -> bytes:
    """A text frame of a client, masked with nothing but zeros."""
    size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xff" + len(text).to_bytes(8, "big")
    return b"\x81" + size + bytes(4) + text


async def open_socket(url: str, path: str) -> trio.SocketStream:
    line = await connect(url)
    await line.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n".encode())
    with trio.fail_after(5):
        assert b" 101 " in await line.receive_some(20)
    return line


async def send_until_held_up(line: trio.SocketStream, frame: bytes, most: int) -> int:
    """How many frames the server took before it took no more."""
    sent = 0
    while sent < most:
        with trio.move_on_after(1) as scope:
            await line.send_all(frame)
        if scope.cancelled_caught:
            return sent
        sent += 1
    return sent


async def test_a_client_that_floods_a_socket_whose_handler_takes_nothing_is_held_up_and_loses_nothing() -> None:
    notes = Notes()
    frames = [frame_of(str(number).encode() + b" " + b"x" * 500_000) for number in range(3)]
    async with serving(sockets(notes)) as site:
        before = resident_bytes()
        line = await open_socket(site.url, "/waits")
        async with line:
            for frame in frames:
                await line.send_all(frame)
            sent = await send_until_held_up(line, frame_of(b"x" * 500_000), 200)
            assert sent < 120
            assert resident_bytes() - before < 100 * MIB
            notes.go_on.set()
            with trio.fail_after(20):
                await notes.ended.wait()
        assert [message.split()[0] for message in notes.seen] == ["0", "1", "2"]


@pytest.mark.parametrize("count", [0, 15, 25])
@pytest.mark.parametrize("is_cut_off", [True, False], ids=["reset", "closed"])
async def test_that_the_client_has_left_is_noticed_although_the_handler_takes_nothing(
    count: int, is_cut_off: bool
) -> None:
    """As many messages wait as fill what Quart holds, and Hypercorn too."""
    notes = Notes()
    async with serving(sockets(notes)) as site:
        line = await open_socket(site.url, "/waits")
        async with line:
            for _ in range(count):
                await line.send_all(frame_of(b"x"))
            await trio.sleep(0.1)
            if is_cut_off:
                reset(line)
        with trio.fail_after(10):
            await notes.ended.wait()


@pytest.mark.parametrize("count", [0, 15, 30, 1000])
async def test_a_client_that_leaves_a_handler_that_only_sends_is_noticed_whatever_it_has_sent(count: int) -> None:
    notes = Notes()
    async with serving(sockets(notes)) as site:
        line = await open_socket(site.url, "/talks")
        async with line:
            for _ in range(count):
                await line.send_all(frame_of(b"x"))
            await trio.sleep(0.1)
            reset(line)
        with trio.fail_after(10):
            await notes.ended.wait()


async def test_who_asks_on_without_listening_is_read_and_thrown_away() -> None:
    notes = Notes()
    async with serving(sockets(notes)) as site:
        line = await open_socket(site.url, "/talks")
        async with line:
            before = resident_bytes()
            with trio.fail_after(30):
                for _ in range(200):
                    await line.send_all(frame_of(b"x" * 500_000))
            assert resident_bytes() - before < 60 * MIB
            reset(line)
        with trio.fail_after(10):
            await notes.ended.wait()


async def until_the_end(line: trio.SocketStream, text: bytes) -> None:
    """Read for as long as something comes, and see that ``text`` did."""
    received = b""
    with trio.fail_after(10):
        while data := await line.receive_some():
            received += data
    assert text in received


BYE = b"\x81\x03bye\x88\x02\x03\xe8"


async def test_a_client_gets_the_time_to_answer_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the connection under a client that still sends may cost it what it has not yet read."""
    monkeypatch.setattr(socket_limit, "FAREWELL_SECONDS", 60)
    async with serving(sockets(Notes())) as site:
        line = await open_socket(site.url, "/closes")
        async with line:
            received = b""
            with trio.move_on_after(0.5) as waiting:
                while data := await line.receive_some():
                    received += data
            assert waiting.cancelled_caught, "the connection was closed"
            assert received.endswith(BYE)
            await line.send_all(frame_of(b"one more") + b"\x88\x82" + bytes(4) + b"\x03\xe8")
            await until_the_end(line, b"")


async def test_a_client_that_does_not_answer_the_close_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_limit, "FAREWELL_SECONDS", 0.1)
    async with serving(sockets(Notes())) as site:
        line = await open_socket(site.url, "/closes")
        async with line:
            await until_the_end(line, BYE)


async def test_a_client_that_sends_on_after_the_close_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypercorn closes it when there is room for one more message, and the app takes none any more."""
    monkeypatch.setattr(socket_limit, "FAREWELL_SECONDS", 0.1)
    async with serving(sockets(Notes())) as site:
        line = await open_socket(site.url, "/closes")
        async with line:
            with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
                while True:
                    await line.send_all(frame_of(b"x") * 100)


async def test_messages_that_were_read_ahead_keep_their_order() -> None:
    notes = Notes()
    async with serving(sockets(notes)) as site:
        line = await open_socket(site.url, "/echoes")
        async with line:
            for number in range(60):
                await line.send_all(frame_of(b"%d" % number))
            await trio.sleep(5 * STUCK_SECONDS)
            notes.go_on.set()
            for number in range(60, 100):
                await line.send_all(frame_of(b"%d" % number))
            with trio.fail_after(10):
                while len(notes.seen) < 100:  # noqa: ASYNC110 - what is waited for is behind a socket
                    await trio.sleep(0.01)
    assert notes.seen == [str(number) for number in range(100)]


@pytest.mark.parametrize("path", ["/listens", "/children"])
@pytest.mark.parametrize("ending", ["close", "end", "reset"])
async def test_a_client_that_leaves_while_the_handler_listens_is_no_error(
    path: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    async with serving(sockets(notes)) as site:
        line = await open_socket(site.url, path)
        async with line:
            await line.send_all(frame_of(b"x"))
            await trio.sleep(0.1)
            if ending == "close":
                await line.send_all(b"\x88\x82" + bytes(4) + b"\x03\xe8")
                with trio.fail_after(5):
                    while await line.receive_some():
                        pass
            elif ending == "reset":
                reset(line)
        with trio.fail_after(5):
            await notes.ended.wait()
        assert (await site.http.get("/nowhere")).status_code == 404
    assert notes.seen == ["x"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_that_leaves_a_handler_that_reads_its_body_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes()
    async with serving(sockets(notes)) as site:
        async with await connect(site.url) as line:
            await line.send_all(b"POST /pieces HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nxx")
            await trio.sleep(0.1)
        with trio.fail_after(5):
            await notes.ended.wait()
        assert (await site.http.get("/nowhere")).status_code == 404
    assert b"".join(notes.seen) == b"xx"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_error_of_the_apps_own_is_logged_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes()
    async with serving(sockets(notes)) as site:
        line = await open_socket(site.url, "/fails")
        async with line:
            with trio.fail_after(5):
                while await line.receive_some():
                    pass
    assert [record.getMessage() for record in caplog.records] == ["Exception on websocket /fails"]
