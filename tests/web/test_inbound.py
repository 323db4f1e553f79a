"""What is held of what clients send to the app's own routes: bounded, on either generation of Quart."""

import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from quart import request
from quart_trio import QuartTrio
from tests.web.workshop import Gates, serving

from callboard.web import Callboard
from callboard.web.compat import CLIENT_GONE
from callboard.web.inbound import Body, bound_inbound

MIB = 2**20
LIMIT = MIB


class Notes:
    """What the handlers of one test have seen."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.go_on = trio.Event()


def uploads(notes: Notes) -> Any:
    def make_app(board: Callboard, gates: Gates) -> QuartTrio:
        app = QuartTrio("uploads")
        app.config["MAX_CONTENT_LENGTH"] = LIMIT
        board.init_app(app)

        @app.post("/whole")
        async def whole() -> dict[str, int]:
            return {"bytes": len(await request.get_data())}

        @app.post("/pieces")
        async def pieces() -> dict[str, int]:
            return {"bytes": sum([len(piece) async for piece in request.body])}

        @app.post("/form")
        async def form() -> dict[str, int]:
            return {"parts": len(await request.form)}

        @app.post("/never")
        async def never() -> str:
            await notes.go_on.wait()
            return "answered"

        return app

    return make_app


async def chunks(count: int, piece: bytes = b"x" * 65536) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


def resident_bytes() -> int:
    """Memory of this process, server and client."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("path", ["/whole", "/pieces", "/form"])
async def test_a_chunked_body_over_the_apps_limit_is_413_and_not_held(path: str) -> None:
    if path == "/pieces" and not CLIENT_GONE:
        pytest.skip("Quart 0.22 bounds what is held of a body that is iterated, not the body")
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if path == "/form" else {}
    async with serving(uploads(Notes())) as site:
        before = resident_bytes()
        answer = await site.http.post(path, content=chunks(800), headers=headers)
        assert answer.status_code == 413
        assert resident_bytes() - before < 20 * MIB
        again = await site.http.post(path, content=b"a=b", headers=headers)
        assert again.status_code == 200


async def test_a_body_at_the_apps_limit_is_taken() -> None:
    async with serving(uploads(Notes())) as site:
        for path in ("/whole", "/pieces"):
            answer = await site.http.post(path, content=chunks(LIMIT // 65536))
            assert answer.json() == {"bytes": LIMIT}
            assert (await site.http.post(path, content=b"x" * (LIMIT + 1))).status_code == 413


async def test_of_a_body_that_nobody_reads_no_more_is_held_than_the_limit() -> None:
    notes = Notes()
    async with serving(uploads(notes)) as site:
        before = resident_bytes()
        async with trio.open_nursery() as nursery:

            async def sent() -> AsyncIterator[bytes]:
                async for piece in chunks(800):
                    yield piece
                notes.seen.append(resident_bytes() - before)
                notes.go_on.set()

            async def post() -> None:
                notes.seen.append((await site.http.post("/never", content=sent())).text)

            nursery.start_soon(post)
        held, text = notes.seen
        assert held < 20 * MIB
        assert text == "answered"


async def test_tiny_chunks_take_no_more_memory_than_large_ones() -> None:
    body = Body(None, LIMIT)
    tracemalloc.start()
    try:
        for _ in range(LIMIT // 8):
            await body.put(bytes([1, 2]))
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
    body.set_complete()
    assert await body == bytes([1, 2]) * (LIMIT // 8)


async def test_the_class_of_an_app_is_left_alone() -> None:
    app = QuartTrio("own")

    class OwnBody:
        pass

    class OwnRequest(app.request_class):  # type: ignore[name-defined, misc]
        body_class = OwnBody

    app.request_class = OwnRequest
    bound_inbound(app)
    assert app.request_class is OwnRequest
