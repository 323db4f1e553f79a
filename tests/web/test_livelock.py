"""A handler that does nothing but send, and a client that goes away in the middle: the process lives on, and the handler ends.

Each server is a process of its own: a livelock there must not be one here.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import PIPE

import httpx
import pytest
import trio
from tests.web.workshop import connect, reset

SERVER = """
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, websocket
from quart_trio import QuartTrio
from callboard.web import Callboard

app = QuartTrio("chatter")
Callboard(app, store="memory://")
begun = ended = 0

async def chatter():
    global begun, ended
    begun += 1
    try:
        while True:
            yield b"x" * 65536
    finally:
        ended += 1

@app.get("/stream")
async def stream():
    response = Response(chatter())
    response.timeout = None
    return response

@app.websocket("/socket")
async def socket():
    global begun, ended
    begun += 1
    try:
        while True:
            await websocket.send("x" * 65536)
    finally:
        ended += 1

@app.get("/counts")
async def counts():
    return {"begun": begun, "ended": ended}

async def main():
    config = Config()
    config.bind, config.loglevel = ["127.0.0.1:0"], "CRITICAL"
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(serve, app, config)
        print(urls[0], flush=True)

trio.run(main)
"""

UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
CLIENTS = 6
"""One goes away at a harmless moment now and then."""


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    process = await trio.lowlevel.open_process([sys.executable, "-c", SERVER], stdout=PIPE)
    try:
        assert process.stdout is not None
        with trio.fail_after(30):
            url = (await process.stdout.receive_some()).decode().strip()
        yield url
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("is_cut_off", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize("path", ["/stream", "/socket"])
async def test_a_client_that_leaves_a_chatterer_stops_it_and_nobody_else(path: str, is_cut_off: bool) -> None:
    async with server() as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE if path == '/socket' else ''}\r\n"
        with trio.fail_after(20):
            for _ in range(CLIENTS):
                async with await connect(url) as line:
                    await line.send_all(head.encode())
                    assert b"HTTP/1.1 " in await line.receive_some(100)
                    await trio.sleep(0.1)  # so that its send waits for us
                    if is_cut_off:
                        reset(line)
            while (await http.get("/counts")).json() != {"begun": CLIENTS, "ended": CLIENTS}:  # noqa: ASYNC110 - far away
                await trio.sleep(0.05)
