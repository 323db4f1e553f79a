"""The bound on request line and headers, for HTTP and for the handshake of a websocket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from quart import websocket
from quart_trio import QuartTrio
from tests.web.test_livelock import UPGRADE
from tests.web.workshop import connect

from callboard.web.header_limit import MAX_HEADERS, HeaderLimit

LIMIT = 4000


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    app = QuartTrio("limited")

    @app.route("/<path:rest>", methods=["GET", "POST"])
    async def any_path(rest: str) -> str:
        return "fine"

    @app.websocket("/<path:rest>")
    async def any_socket(rest: str) -> None:
        await websocket.send("fine")

    config = HypercornConfig()
    config.bind, config.loglevel = ["127.0.0.1:0"], "CRITICAL"
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        limited: Any = HeaderLimit(app, max_bytes=LIMIT)
        (url,) = await nursery.start(partial(serve, limited, config, shutdown_trigger=stop.wait))
        try:
            yield url
        finally:
            stop.set()


async def ask(url: str, head: str, body: bytes = b"") -> bytes:
    """All that is answered until the server closes the connection, or the app has its say."""
    text = b""
    async with await connect(url) as line:
        with trio.fail_after(10):
            await line.send_all(head.encode() + body)
            try:
                while b"fine" not in text and (data := await line.receive_some()):
                    text += data
            except trio.BrokenResourceError:
                pass
    return text


def request(size: int, *, more: str = "", end: str = "") -> str:
    """A request of exactly that many bytes."""
    start = f"GET /a HTTP/1.1\r\nHost: x\r\n{more}{end}X-Fill: "
    return start + "x" * (size - len(start) - 4) + "\r\n\r\n"


@pytest.mark.parametrize("upgrade", ["", UPGRADE], ids=["http", "websocket"])
async def test_a_head_may_have_so_many_bytes_and_no_more(upgrade: str) -> None:
    async with serving() as url:
        most = request(LIMIT, more=upgrade, end="" if upgrade else "Connection: close\r\n")
        answer = await ask(url, most)
        assert answer.startswith(b"HTTP/1.1 101" if upgrade else b"HTTP/1.1 200"), answer
        answer = await ask(url, request(LIMIT + 1, more=upgrade))
        assert answer.startswith(b"HTTP/1.1 431"), answer
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert b"application/problem+json" in head
        assert httpx.Response(431, content=body).json()["status"] == 431


@pytest.mark.parametrize("upgrade", ["", UPGRADE], ids=["http", "websocket"])
async def test_a_head_may_have_so_many_headers_and_no_more(upgrade: str) -> None:
    own = 1 + (upgrade or "Connection: close\r\n").count("\r\n")
    async with serving() as url:
        for count, status in ((MAX_HEADERS, 101 if upgrade else 200), (MAX_HEADERS + 1, 431)):
            more = "A: b\r\n" * (count - own)
            end = upgrade or "Connection: close\r\n"
            answer = await ask(url, f"GET /a HTTP/1.1\r\nHost: x\r\n{end}{more}\r\n")
            assert answer.startswith(b"HTTP/1.1 %d" % status), answer


async def test_a_long_query_counts() -> None:
    async with serving() as url:
        answer = await ask(url, f"GET /a?{'x' * LIMIT} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 431"), answer


async def test_a_body_that_follows_does_not_cost_the_client_the_answer() -> None:
    async with serving() as url:
        body = b"x" * 1_000_000
        head = f"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nX-Fill: {'x' * LIMIT}\r\n\r\n"
        for _ in range(5):
            assert (await ask(url, head, body)).startswith(b"HTTP/1.1 431")


async def test_other_scopes_pass() -> None:
    seen = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> None: ...

    await HeaderLimit(inner, max_bytes=1)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]


async def test_a_server_without_the_extension_for_answers_to_handshakes_closes_them() -> None:
    sent = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/a", "query_string": b"", "headers": [(b"a", b"b" * 100)]}
    await HeaderLimit(inner, max_bytes=100)(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
