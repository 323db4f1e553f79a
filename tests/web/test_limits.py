"""The bound on request bodies: ours on our routes, whatever the Quart version does, and nobody else's."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest
import trio
import trio.lowlevel
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from msgspec.structs import replace
from quart import request
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, connect, make_site_app, serving

from callboard.runtime import JobContext
from callboard.web import Callboard
from callboard.web.early_refusal import LINGER_SECONDS
from callboard.web.limits import BodyLimit

LIMIT = CONFIG.max_body_bytes


async def chunks(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // 1000):
        yield b" " * 1000


async def test_a_chunked_body_over_the_limit_is_413(site: Site) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await site.http.post("/api/orders", content=chunks(LIMIT + 1000), headers=headers)
    assert_problem(answer, 413)
    huge = await site.http.post("/api/orders", content=chunks(5_000_000), headers=headers)
    assert_problem(huge, 413)
    assert (await site.http.get("/jobs")).json()["jobs"] == []


async def test_a_body_at_the_limit_is_taken(site: Site) -> None:
    text = b'{"itemName": "' + b"x" * (LIMIT - 16) + b'"}'
    assert len(text) == LIMIT
    headers = {"Content-Type": "application/json"}
    assert (await site.http.post("/api/orders", content=text, headers=headers)).status_code == 202
    assert_problem(await site.http.post("/api/orders", content=text + b" ", headers=headers), 413)


def mixed_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @app.post("/api/items/upload")
    async def upload() -> dict[str, int]:
        return {"bytes": len(await request.get_data())}

    @board.post("/api/items/<name>", name="Item")
    async def item(job: JobContext, request: dict[str, Any]) -> None: ...

    return app


async def test_the_apps_own_routes_are_left_alone(open_site: OpenSite) -> None:
    site = await open_site(make_app=mixed_app, root_path="/shop")
    for prefix in ("/shop/api/items/upload",):
        answer = await site.http.post(prefix, content=chunks(50_000))
        assert answer.json() == {"bytes": 50_000}
    headers = {"Content-Type": "application/json"}
    assert_problem(await site.http.post("/shop/api/items/nail", content=chunks(50_000), headers=headers), 413)


def scope_of(method: str, path: str) -> dict[str, Any]:
    """What a server says of a request, for the wrapper alone."""
    return {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "http_version": "1.1",
        "root_path": "",
    }


async def test_what_comes_after_the_limit_is_thrown_away_and_never_held(site: Site) -> None:
    """The wrapper alone, against a sender that never ends by itself: Quart sees an ended body, and not one byte more."""
    sent = [{"type": "http.request", "body": b"x" * 4000, "more_body": True} for _ in range(100)]
    sent.append({"type": "http.disconnect"})
    seen: list[dict[str, Any]] = []

    async def receive() -> Any:
        return sent.pop(0)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())

    async def send(message: Any) -> None: ...

    limit = BodyLimit(site.app, inner, max_body_bytes=LIMIT, max_bulk_body_bytes=3 * LIMIT, body_seconds=60)
    await limit(scope_of("POST", "/api/orders"), receive, send)
    assert [len(message.get("body", b"")) for message in seen] == [4000, 4000, 0, 0]
    assert seen[2]["more_body"] is False
    assert seen[3]["type"] == "http.disconnect"


async def test_an_answer_of_the_apps_own_that_does_not_wait_for_the_body_leaves_the_connection_usable(
    site: Site,
) -> None:
    for method, path, status in [
        ("PUT", "/api/orders", 405),
        ("POST", "/nowhere", 404),
        ("PUT", "/jobs/metrics", 405),
    ] * 2:
        body = b'{"itemName": "x"}'
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        host, _, port = site.url.removeprefix("http://").partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as line:
            for _ in range(3):
                await line.send_all(head)
                await trio.sleep(0.05)  # so that the answer is there before the body
                await line.send_all(body)
                with trio.fail_after(5):
                    answer = await whole_answer(line)
                assert answer.startswith(b"HTTP/1.1 %d" % status), answer


async def whole_answer(line: trio.SocketStream) -> bytes:
    text = b""
    while b"\r\n\r\n" not in text:
        text += await line.receive_some()
    head, _, rest = text.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(rest) < length:
        rest += await line.receive_some()
    return head + rest


async def test_a_connection_that_is_kept_alive_is_closed_when_it_has_been_idle(store_url: str) -> None:
    """By Hypercorn, whose timer begins when an answer has ended."""
    app = make_site_app(Callboard(store=store_url, config=CONFIG), Gates())
    config = HypercornConfig()
    config.bind, config.loglevel, config.keep_alive_timeout = ["127.0.0.1:0"], "CRITICAL", 0.2
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        (url,) = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
        for request_line in ("GET /jobs/health/live", "HEAD /jobs", "POST /api/void", "GET /static/nowhere"):
            async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as line:
                text = b""
                for _ in range(2):
                    await line.send_all(f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
                    text += await line.receive_some()
                    await trio.sleep(0.05)
                with trio.fail_after(5):
                    while data := await line.receive_some():
                        text += data
                assert text.count(b"HTTP/1.1 ") == 2, text
        stop.set()


SECONDS = 0.5


async def until_closed(line: trio.SocketStream) -> bytes:
    text = b""
    with trio.fail_after(10):
        try:
            while data := await line.receive_some():
                text += data
        except trio.BrokenResourceError:
            pass
    return text


async def dribble(line: trio.SocketStream) -> None:
    """One byte after the other, until the connection is closed."""
    try:
        while True:
            await line.send_all(b"1\r\n \r\n")
            await trio.sleep(0.05)
    except trio.BrokenResourceError:
        return


@pytest.mark.parametrize("dribbles", [True, False], ids=["dribbles", "stops"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
async def test_a_body_that_does_not_come_in_time_is_408_and_the_connection_is_closed(kind: str, dribbles: bool) -> None:
    async with serving(config=replace(CONFIG, body_seconds=SECONDS)) as site, await connect(site.url) as line:
        head = f"POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await line.send_all(head.encode() + b'11\r\n{"itemName": "x"}\r\n')
        async with trio.open_nursery() as nursery:
            if dribbles:
                nursery.start_soon(dribble, line)
            began = trio.current_time()
            answer = await until_closed(line)
            assert trio.current_time() - began >= SECONDS * 0.9
            nursery.cancel_scope.cancel()
        head_of_answer, _, body = answer.partition(b"\r\n\r\n")
        assert head_of_answer.startswith(b"HTTP/1.1 408"), answer
        assert b"connection: close" in head_of_answer.lower()
        assert b"application/problem+json" in head_of_answer
        problem = httpx.Response(408, content=body).json()
        assert (problem["status"], problem["type"]) == (408, "urn:callboard:problem:request-timeout")
        assert (await site.http.get("/jobs")).json()["jobs"] == []


@pytest.mark.parametrize("dribbles", [True, False], ids=["dribbles", "stops"])
async def test_nothing_runs_on_after_a_408(dribbles: bool) -> None:
    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async with serving(config=replace(CONFIG, body_seconds=SECONDS)) as site:
        before = tasks()
        async with await connect(site.url) as line, trio.open_nursery() as nursery:
            await line.send_all(b"POST /api/orders HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            if dribbles:
                nursery.start_soon(dribble, line)
            assert (await until_closed(line)).startswith(b"HTTP/1.1 408")
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while tasks() > before:  # noqa: ASYNC110 - what is waited for is behind a socket
                await trio.sleep(0.01)


async def test_a_client_whose_body_was_late_is_not_given_the_same_time_again(autojump_clock: object) -> None:
    """The wrapper alone, in virtual time: a second for reading the answer, and then the connection is closed."""
    ended: list[float] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await send({"type": "http.response.start", "status": 408, "headers": []})
            await send({"type": "http.response.body", "body": b"late"})
            ended.append(trio.current_time() - began)
            nursery.cancel_scope.cancel()

    async def receive() -> Any:
        await trio.sleep(0.5)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None: ...

    app = make_site_app(Callboard(store="memory://", config=CONFIG), Gates())
    limit = BodyLimit(app, inner, max_body_bytes=LIMIT, max_bulk_body_bytes=LIMIT, body_seconds=60)
    began = trio.current_time()
    await limit(scope_of("POST", "/api/orders"), receive, send)
    assert ended == [pytest.approx(60 + LINGER_SECONDS, abs=1)]


async def test_the_answer_to_a_late_body_is_in_the_document_as_it_is() -> None:
    async with serving(config=replace(CONFIG, body_seconds=SECONDS)) as site:
        document = (await site.http.get("/jobs/openapi.json")).json()
        described = document["components"]["responses"]["Timeout"]["content"]["application/problem+json"]["examples"]

        async def late() -> AsyncIterator[bytes]:
            yield b" "
            await trio.sleep(4 * SECONDS)

        answer = await site.http.post("/api/orders", content=late(), headers={"Content-Type": "application/json"})
        problem = assert_problem(answer, 408)
        (example,) = (one["value"] for one in described.values())
        assert {**problem, "instance": None} == {**example, "instance": None}


async def test_a_body_that_comes_in_time_may_be_waited_on_for_longer() -> None:
    async with serving(config=replace(CONFIG, body_seconds=SECONDS)) as site:
        answer = await site.http.post("/api/slow", json={}, headers={"Prefer": f"wait={2 * SECONDS}"})
        assert answer.status_code == 202


async def test_the_time_of_the_apps_other_routes_is_the_apps() -> None:
    async with serving(mixed_app, config=replace(CONFIG, body_seconds=0.1)) as site:

        async def slowly() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield b"x"
                await trio.sleep(0.1)

        answer = await site.http.post("/api/items/upload", content=slowly())
        assert answer.json() == {"bytes": 4}


@pytest.mark.parametrize("dribbles", [True, False], ids=["dribbles", "stops"])
@pytest.mark.parametrize("request_line", ["PUT /api/orders", "POST /nowhere", "POST /jobs/x/cancel", "GET /jobs"])
async def test_an_answer_does_not_wait_for_ever_for_the_end_of_a_body(request_line: str, dribbles: bool) -> None:
    async with serving(config=replace(CONFIG, body_seconds=SECONDS)) as site, await connect(site.url) as line:
        await line.send_all(f"{request_line} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        async with trio.open_nursery() as nursery:
            if dribbles:
                nursery.start_soon(dribble, line)
            answer = await until_closed(line)
            nursery.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 "), answer
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_between_two_sends_others_run(site: Site) -> None:
    """The wrapper alone, round a server whose sends return at once, as Hypercorn's do on a broken connection."""
    turns = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                while True:
                    turns.append(1)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(other)
            for _ in range(20):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            nursery.cancel_scope.cancel()

    async def nothing(*_: Any) -> None: ...

    scope = {"type": "http", "headers": [], "method": "GET"}
    limit = BodyLimit(site.app, inner, max_body_bytes=LIMIT, max_bulk_body_bytes=LIMIT, body_seconds=60)
    await limit(scope, nothing, nothing)
    assert len(turns) >= 10
