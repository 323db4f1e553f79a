"""Silent peers are dropped, quiet ones are not; and what the fixes rely on in Hypercorn is where it was."""

import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

import httpx
import pytest
import trio
from hypercorn.protocol import h2, h11, ws_stream
from hypercorn.trio import run, tcp_server
from quart import websocket
from tests.web.test_sse import events
from tests.web.test_stream import fold, handshake, none_open, run_steps, streams
from tests.web.workshop import CONFIG, Gates, Site, frames, make_site_app, patient
from trio_websocket import ConnectionClosed

from callboard.web import Callboard, hypercorn_fixes
from callboard.web.hypercorn_fixes import SILENT_SECONDS, UNACKNOWLEDGED_SECONDS, ServeConfig, WatchedStream, fix
from callboard.web.serve import serve
from callboard.web.server_options import ServerOptions
from callboard.web.sse import KEEP_WARM_SECONDS

PING, SILENT = 0.1, 0.6

Launch = Callable[[], Awaitable[Site]]


@asynccontextmanager
async def launched(store_url: str) -> AsyncIterator[Site]:
    """The workshop's app under ``callboard serve``'s own ``serve``, with short intervals."""
    board, gates = Callboard(store=store_url, config=CONFIG), Gates()
    app = make_site_app(board, gates)

    @app.websocket("/own")
    async def own() -> None:
        """One of the app's own, that never looks at what its client says."""
        await websocket.accept()
        while True:
            await websocket.send("tick")
            await trio.sleep(0.1)

    send_signal, signals = trio.open_memory_channel[int](1)
    async with trio.open_nursery() as nursery:
        options = ServerOptions(bind=("127.0.0.1:0",), ping_seconds=PING, silent_seconds=SILENT)
        start = partial(serve, app, board, options=options, signals=signals)
        (url,) = await nursery.start(start)
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            yield Site(board, app, gates, url, http)
        gates.open_all()
        await send_signal.send(15)


def raw_socket(site: Site, receive_buffer: int = 65536) -> trio.socket.SocketType:
    line = trio.socket.socket()
    line.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
    return line


@asynccontextmanager
async def raw_client(site: Site, path: str, receive_buffer: int = 65536) -> AsyncIterator[trio.SocketStream]:
    """One that completes the handshake; what then, is the test's."""
    line = raw_socket(site, receive_buffer)
    await line.connect(("127.0.0.1", int(site.url.rpartition(":")[2])))
    async with trio.SocketStream(line) as stream:
        request = handshake("x").replace(b"/jobs/x/stream", path.encode())
        await stream.send_all(request.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"))
        answer = await stream.receive_some(500)
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in answer.lower(), "deflate was negotiated"
        yield stream


@pytest.mark.parametrize("path", ["/jobs/{}/stream", "/jobs/stream", "/own"])
async def test_a_peer_that_answers_nothing_is_dropped(store_url: str, path: str) -> None:
    async with launched(store_url) as site:
        job_id = await run_steps(site, "s", 1)
        async with raw_client(site, path.format(job_id)) as stream:
            began = trio.current_time()
            text = b""
            with trio.fail_after(5):
                try:
                    while data := await stream.receive_some():
                        text += data
                except trio.BrokenResourceError:
                    pass
            assert SILENT * 0.9 < trio.current_time() - began < SILENT * 2 + 1
            assert text.count(b"\x89\x00") >= 3, "it was not pinged"
        await patient(partial(none_open, site))
        assert site.board.runtime.stats().subscribers == 0


async def test_a_peer_that_takes_nothing_either_is_dropped(store_url: str) -> None:
    """The server is in the middle of a send, and its pings wait behind it."""
    async with launched(store_url) as site:
        job = await site.submit("/api/flood", 2000)
        async with raw_client(site, f"/jobs/{job['id']}/stream", 4096):
            site.gates.open("flood")
            assert await streams(site) == 1
            await patient(partial(none_open, site))
        assert (await site.ended(job["id"]))["status"] == "Completed"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
async def test_a_peer_of_server_sent_events_that_takes_nothing_is_dropped(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be pinged: the system finds out, since what was sent is not taken."""
    monkeypatch.setattr(hypercorn_fixes, "UNACKNOWLEDGED_SECONDS", 1)
    async with launched(store_url) as site:
        job = await site.submit("/api/flood", 2000)
        async with events(site, job["id"], 0, buffer_bytes=4096):
            site.gates.open("flood")
            assert (await site.ended(job["id"]))["status"] == "Completed"
            assert await streams(site) == 1, "it was never behind: this test tests nothing"
            with trio.fail_after(20):
                while not await none_open(site):  # noqa: ASYNC110 - what is waited for is behind a socket
                    await trio.sleep(0.1)
        assert site.board.runtime.stats().subscribers == 0


async def test_a_peer_that_answers_pings_stays_and_so_do_quiet_requests(store_url: str) -> None:
    async with launched(store_url) as site:
        job_id = await run_steps(site, "s", 1)
        await site.gates.arrived("s 0")
        async with site.socket(f"/jobs/{job_id}/stream") as socket, events(site, job_id) as stream:
            await socket.get_message()
            await stream.next()
            async with trio.open_nursery() as nursery:

                async def poll() -> None:
                    answer = await site.http.get(f"/jobs/{job_id}?wait=5")
                    assert answer.json()["status"] == "Completed"

                nursery.start_soon(poll)
                await trio.sleep(SILENT * 3)
                site.gates.open("s 0")
            assert (await stream.rest())[-1]["job"]["status"] == "Completed"
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await socket.get_message()
            assert closed.value.reason is not None and closed.value.reason.code == 1000


async def test_a_peer_of_the_apps_own_socket_stays_although_nobody_reads_what_it_says(store_url: str) -> None:
    """Up to Quart 0.22, what it sends fills every queue up to the connection, and its pongs wait behind that."""
    async with launched(store_url) as site, raw_client(site, "/own") as stream, trio.open_nursery() as nursery:

        async def say_pong() -> None:
            while True:
                await stream.send_all(bytes([0x8A, 0x80, 0, 0, 0, 0]))
                await trio.sleep(PING)

        await stream.send_all(bytes([0x81, 0x81, 0, 0, 0, 0, ord("x")]) * 100)
        nursery.start_soon(say_pong)
        deadline = trio.current_time() + SILENT * 3
        while trio.current_time() < deadline:
            with trio.fail_after(2):
                assert await stream.receive_some(), "it was dropped"
        nursery.cancel_scope.cancel()


async def test_pings_of_the_peer_lose_no_frame(store_url: str) -> None:
    async with launched(store_url) as site:
        job = await site.submit("/api/flood", 300)
        async with site.socket(f"/jobs/{job['id']}/stream?after=0") as socket, trio.open_nursery() as nursery:

            async def ping() -> None:
                while True:
                    await socket.ping()

            nursery.start_soon(ping)
            site.gates.open("flood")
            received = await frames(socket)
            nursery.cancel_scope.cancel()
        assert fold(received) == await site.ended(job["id"])


def test_the_contracts_intervals() -> None:
    assert ServerOptions().ping_seconds == 20
    assert 2 * ServerOptions().ping_seconds < SILENT_SECONDS < 60
    assert KEEP_WARM_SECONDS + UNACKNOWLEDGED_SECONDS < 60


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
async def test_the_system_cuts_off_peers_that_take_nothing() -> None:
    config = ServeConfig()
    config.bind = ["127.0.0.1:0"]
    (listening,) = config.create_sockets().insecure_sockets
    with listening, socket.socket() as client:
        listening.listen()
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNACKNOWLEDGED_SECONDS * 1000


def test_hypercorn_is_as_the_fixes_know_it() -> None:
    """If this fails, Hypercorn has changed: read web/hypercorn_fixes.py against the new source before you touch this test."""
    assert version("hypercorn") == "0.18.0"
    fix()
    fix()
    assert h11.WSStream is h2.WSStream is WatchedStream  # type: ignore[attr-defined]
    assert WatchedStream.__mro__[1] is ws_stream.WSStream
    pings = inspect.getsource(ws_stream.WSStream._send_pings)
    assert "while not self.closed:" in pings and "self._send_wsproto_event(Ping())" in pings
    assert "self.task_group.spawn(self._send_pings)" in inspect.getsource(ws_stream.WSStream._accept)
    assert "server_extensions_handshake(" in inspect.getsource(ws_stream.Handshake.accept)
    handle = inspect.getsource(ws_stream.WSStream.handle)
    assert "StreamClosed" in handle and "self.closed = True" in handle
    assert "self.stream = WSStream(" in inspect.getsource(h11.H11Protocol._create_stream)
    assert "self.stream_send," in inspect.getsource(h11.H11Protocol._create_stream)
    assert "self.send = send" in inspect.getsource(h11.H11Protocol.__init__)
    assert "self.protocol_send," in inspect.getsource(tcp_server.TCPServer.run)
    assert "self.stream = stream" in inspect.getsource(tcp_server.TCPServer.__init__)
    assert "config.create_sockets()" in inspect.getsource(run.worker_serve)


def test_connections_are_kept_longer_than_proxies_keep_theirs() -> None:
    """Else one is closed under the request that a proxy has just sent on it. nginx and others give theirs up after 60 s."""
    assert ServeConfig.of(ServerOptions()).keep_alive_timeout > 60
