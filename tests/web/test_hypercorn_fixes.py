"""Silent peers are dropped, quiet ones are not; and what the fixes rely on in Hypercorn is where it was."""

import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import httpx
import pytest
import trio
import wsproto
from hypercorn import protocol
from hypercorn.config import Config
from hypercorn.protocol import h11 as http1
from hypercorn.protocol import http_stream, ws_stream
from hypercorn.trio import run, task_group, tcp_server, worker_context
from quart import websocket
from tests.web.test_sse import events
from tests.web.test_stream import fold, handshake, none_open, run_steps, streams
from tests.web.workshop import CONFIG, Gates, Site, frames, make_site_app, patient
from trio_websocket import ConnectionClosed

from callboard.web import Callboard
from callboard.web.hypercorn_fixes import Connection, ServeConfig, fix
from callboard.web.serve import serve
from callboard.web.server_options import ServerOptions
from callboard.web.sse import KEEP_WARM_SECONDS

PING, SILENT = 0.1, 0.6

Launch = Callable[[], Awaitable[Site]]


@asynccontextmanager
async def launched(store_url: str, **settings: Any) -> AsyncIterator[Site]:
    """The workshop's app under ``callboard serve``'s own ``serve``, with short intervals."""
    board, gates = Callboard(store=store_url, config=CONFIG), Gates()
    app = make_site_app(board, gates)

    @app.websocket("/late")
    async def late() -> None:
        """One that takes longer to accept than silence is borne."""
        await trio.sleep(SILENT * 1.5)
        await websocket.accept()
        await trio.sleep(SILENT / 2)
        await websocket.send("here")

    @app.websocket("/own")
    async def own() -> None:
        """One of the app's own, that never looks at what its client says."""
        await websocket.accept()
        while True:
            await websocket.send("tick")
            await trio.sleep(0.1)

    send_signal, signals = trio.open_memory_channel[int](1)
    async with trio.open_nursery() as nursery:
        options = ServerOptions(bind=("127.0.0.1:0",), **{"ping_seconds": PING, "silent_seconds": SILENT, **settings})
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
async def test_a_peer_of_server_sent_events_that_takes_nothing_is_dropped(store_url: str) -> None:
    """It cannot be pinged: the system finds out, since what was sent is not taken."""
    async with launched(store_url, send_seconds=1) as site:
        job = await site.submit("/api/flood", 2000)
        async with events(site, job["id"], 0, buffer_bytes=4096):
            site.gates.open("flood")
            assert (await site.ended(job["id"]))["status"] == "Completed"
            assert await streams(site) == 1, "it was never behind: this test tests nothing"
            with trio.fail_after(20):
                while not await none_open(site):  # noqa: ASYNC110 - what is waited for is behind a socket
                    await trio.sleep(0.1)
        assert site.board.runtime.stats().subscribers == 0


async def test_silence_counts_from_the_accept(store_url: str) -> None:
    async with launched(store_url) as site, site.socket("/late") as socket:
        assert await socket.get_message() == "here"


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
    options = ServerOptions()
    assert options.ping_seconds == 20
    assert 2 * options.ping_seconds < options.silent_seconds < 60
    assert KEEP_WARM_SECONDS + options.send_seconds < 60
    assert options.keep_alive_seconds > 60, (
        "nginx and others keep theirs for 60 s: none is to be closed under a request"
    )


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
            assert (
                accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == ServerOptions().send_seconds * 1000
            )


RELIED_UPON: dict[str, tuple[Any, str]] = {
    "where connections are made and how the server ends": (run.worker_serve, "8dc8347a9fc357ca"),
    "TCPServer, of which Connection is one": (tcp_server.TCPServer, "5593e38b83d3e22e"),
    "TaskGroup, of which Tasks is one": (task_group, "debc4abd1b915575"),
    "the timer that Connection stops": (worker_context.TrioSingleTask, "aa59316c028b876a"),
    "where protocols are made": (protocol.ProtocolWrapper, "caf949187e9b4a81"),
    "H11Protocol, of which Http1 is one": (http1, "5d2cfe635578adc6"),
    "what it tells an app of a request": (http_stream.HTTPStream, "e0f656feb55ab89c"),
    "WSStream, of which Websocket is one": (ws_stream, "5eb34e4ac40b06f5"),
    "Config, of which ServeConfig is one": (Config, "dc2f45c3f99eac5f"),
    "wsproto: bad frames come as CloseConnection": (wsproto.connection.Connection, "6b70917fe888fb2c"),
    "wsproto: a message comes in parts, and its bytes are not held": (
        wsproto.frame_protocol.FrameDecoder,
        "a06eb6159106220a",
    ),
}


def test_hypercorn_is_as_the_fixes_know_it() -> None:
    """A fault may be mended upstream, or an override do harm; only reading tells."""
    what_to_do = (
        "\nHypercorn has changed under web/hypercorn_fixes.py. Read its new source against every override there: drop those whose "
        "fault is gone (docs/upstream/README.md lists them, with a reproduction of each), adapt the others, run tests/web/"
        "test_hostile_packets.py and the hostile clients of tests/e2e; then write the new version and digests here."
    )
    assert version("hypercorn") == "0.18.0", what_to_do
    found = {
        name: sha256(inspect.getsource(place).encode()).hexdigest()[:16] for name, (place, _) in RELIED_UPON.items()
    }
    moved = {name: digest for name, digest in found.items() if digest != RELIED_UPON[name][1]}
    assert not moved, f"{what_to_do}\nWhat moved, with the digest that it has now: {moved}"


def test_a_server_with_a_config_of_hypercorns_own_is_as_it_was() -> None:
    fix()
    fix()
    arguments = (Config(), None, None, None)
    assert type(vars(run)["TCPServer"](None, *arguments)) is tcp_server.TCPServer
    context = worker_context.WorkerContext(None)
    stream = vars(http1)["WSStream"](None, Config(), context, None, False, None, None, None, 1)
    assert type(stream) is ws_stream.WSStream
    made = vars(protocol)["H11Protocol"](None, Config(), context, None, None, False, None, None, None)
    assert type(made) is http1.H11Protocol
    assert type(vars(run)["TCPServer"](None, ServeConfig(), None, None, None)) is Connection


def test_every_setting_of_ours_is_one_of_hypercorns() -> None:
    """Config takes any attribute: one that is misspelt, or renamed there, would go unnoticed."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    config = ServeConfig.of(ServerOptions(bind=("unix:/x", "fd://3")), tls)
    ours = {"connections", "refused", "tls", "silent_seconds", "send_seconds", "max_connections"}
    assert {name.lstrip("_") for name in vars(config)} - ours <= {name.lstrip("_") for name in vars(Config)}
    assert config.bind == ["unix:/x", "fd://3"] and config.loglevel == "WARNING" and config.accesslog is None
    assert config.create_ssl_context() is tls and config.ssl_enabled
    assert not ServeConfig.of(ServerOptions(certfile="c", keyfile="k")).ssl_enabled, "the context is what counts"
    assert b"server" not in dict(config.response_headers("h11"))
