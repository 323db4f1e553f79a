"""The first and the last moments of a connection: early frames, late requests, and clients that go in between.

The server is Hypercorn as ``callboard serve`` has it.
"""

import errno
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.web.test_hostile_packets import (
    CLOSE,
    GOOD,
    SHORT,
    Server,
    bare,
    break_on,
    certificate,
    closed_with,
    complaints,
    frame,
    log,
    served,
    talk,
    trusting,
    upgrade,
)

from callboard.web import hypercorn_fixes
from callboard.web.tls import Certificate

__all__ = ["certificate", "log"]

LONG = 60
"""Seconds that no test waits for."""


async def connected(server: Server, count: int = 1) -> None:
    """Wait until the server knows of so many connections."""
    with trio.fail_after(5):
        while len(server.config.connections) < count:  # noqa: ASYNC110 - what is waited for is behind a socket
            await trio.sleep(0.01)


async def read_until(stream: trio.SocketStream, text: bytes) -> bytes:
    received = b""
    with trio.fail_after(10):
        while text not in received:
            data = await stream.receive_some()
            assert data, received
            received += data
    return received


async def accept_then_echo(receive: Any, send: Any, wait: float) -> None:
    await receive()
    await trio.sleep(wait)
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


@pytest.mark.parametrize("wait", [0, 0.2], ids=["at once", "late"])
@pytest.mark.parametrize("apart", [False, True], ids=["one packet", "two packets"])
async def test_a_frame_that_comes_before_the_handshake_is_through_is_served(
    wait: float, apart: bool, log: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept_then_echo(receive, send, wait)

    async with served(bare(app)) as server, await server.connect() as stream:
        if apart:
            await stream.send_all(upgrade("/"))
            await trio.sleep(0.05)
            await stream.send_all(frame(1, b"early"))
        else:
            await stream.send_all(upgrade("/") + frame(1, b"early"))
        await read_until(stream, b"\x81\x05early")
        received = await talk(stream, frame(1, b"later"), CLOSE)
        assert b"\x81\x05later" in received and received.endswith(b"\x88\x02" + closed_with(1000))
    assert complaints(log) == []


async def test_a_connection_that_was_accepted_as_the_server_stops_has_its_first_request_answered() -> None:
    async with served() as server, await server.connect() as stream:
        server.config.graceful_timeout = LONG
        await connected(server)
        server.stop.set()
        await trio.sleep(0.05)
        assert (await talk(stream, GOOD)).endswith(b"good")
        with trio.fail_after(5):
            await server.returned.wait()
        server.config.graceful_timeout = SHORT


async def test_a_connection_on_which_nothing_comes_as_the_server_stops_is_not_waited_for() -> None:
    async with served() as server, await server.connect() as stream:
        server.config.graceful_timeout = LONG
        await connected(server)
        server.stop.set()
        with trio.fail_after(10):
            assert await stream.receive_some() == b""
            await server.returned.wait()
        server.config.graceful_timeout = SHORT


async def test_a_connection_that_had_its_request_is_closed_at_once_when_the_server_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hypercorn_fixes, "ARRIVAL_SECONDS", LONG)
    async with served() as server, await server.connect() as stream:
        server.config.graceful_timeout = LONG
        await stream.send_all(b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n")
        await read_until(stream, b"good")
        server.stop.set()
        with trio.fail_after(10):
            assert await stream.receive_some() == b""
            await server.returned.wait()
        server.config.graceful_timeout = SHORT


async def test_a_client_that_does_not_close_does_not_keep_the_server_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Elsewhere it would be given a moment."""
    monkeypatch.setattr(hypercorn_fixes, "LINGER_SECONDS", LONG)
    async with served() as server, await server.connect() as stream:
        server.config.graceful_timeout = LONG
        await stream.send_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await connected(server)
        await trio.sleep(0.05)
        server.stop.set()
        await read_until(stream, b"slow")
        with trio.fail_after(10):
            await server.returned.wait()
        server.config.graceful_timeout = SHORT


async def test_an_answer_that_ends_after_its_client_has_gone_leaves_no_connection(
    log: pytest.LogCaptureFixture,
) -> None:
    """Nobody would be there to stop the idle timer, which its end would start."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(20_000_000)})

    async with served(bare(app), send_seconds=SHORT, keep_alive_seconds=LONG) as server:
        stream = await server.connect(4096)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        await connected(server)
        await server.is_clean(10)
        await stream.aclose()
    assert complaints(log) == []


async def test_a_websocket_that_is_accepted_after_its_client_has_gone_is_not_watched(
    log: pytest.LogCaptureFixture,
) -> None:
    """Its reader waits for the handshake, so that it is the answer to it that finds out."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept_then_echo(receive, send, 0.3)

    async with served(bare(app), silent_seconds=LONG) as server:
        async with await server.connect() as stream:
            await stream.send_all(upgrade("/") + frame(1, b"early"))
            await connected(server)
            await trio.sleep(0.05)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert server.config.connections, "it was noticed before: this test tests nothing"
        await server.is_clean(10)
    assert complaints(log) == []


async def test_one_too_many_over_tls_is_closed_without_a_word(certificate: Path, log: pytest.LogCaptureFixture) -> None:
    """A handshake for a refusal would cost more than it is worth."""
    tls = Certificate(str(certificate), str(certificate)).context
    async with served(max_connections=1, tls=tls) as server, await server.connect():
        await connected(server)
        async with trusting(await server.connect(), certificate) as stream:
            assert await talk(stream, GOOD) == b""
    assert complaints(log) == []


GONE = [OSError(errno.ETIMEDOUT, "gone"), trio.BrokenResourceError(), trio.ClosedResourceError()]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
async def test_wherever_it_is_noticed_that_a_client_has_gone_that_is_no_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    break_on(b"/gone", error, monkeypatch)
    async with served() as server:
        assert await server.talk(GOOD.replace(b"/good", b"/gone")) == b""
        await server.is_well()
        await server.is_clean()
    assert complaints(log) == []
