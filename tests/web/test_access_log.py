"""The access log: one line for what a client asked and got, whatever it wrote, wherever it left."""

import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from quart import Response
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import Gates, Site, make_site_app, patient

from callboard.web import Callboard
from callboard.web.access_log import AccessLog, probes
from callboard.web.rootpath import RootPath

SECRET = "s3cret"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Lines:
    """What was logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name == "callboard.access"]

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    async def next(self, count: int = 1) -> Any:
        """The only line since the last time, or the only ``count``: a line may come a little after the answer."""

        async def are_there() -> bool:
            return len(self.records) >= count

        await patient(are_there)
        texts = self.texts
        assert len(texts) == count, texts
        self._caplog.clear()
        lines = [json.loads(text) for text in texts]
        return lines[0] if count == 1 else lines


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO)
    return Lines(caplog)


@pytest.fixture
def store_url() -> str:
    """No line depends on the store."""
    return "memory://"


def logged_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @app.get("/bug")
    async def bug() -> str:
        raise ValueError("a bug")

    @app.get("/not-modified")
    async def not_modified() -> Response:
        return Response("", 304)

    @app.get("/stream/<int:count>")
    async def stream(count: int) -> Any:
        async def parts() -> Any:
            for _ in range(count):
                yield b"x" * 10
            if count == 3:
                await trio.sleep_forever()
            if count == 4:
                raise ValueError("a bug")

        return parts()

    @app.websocket("/echo/<int:code>")
    async def echo(code: int) -> None:
        from quart import websocket

        await websocket.accept()
        await websocket.send(f"é{await websocket.receive()!s}")
        await websocket.send(b"1234")
        if code == 0:
            await trio.sleep_forever()
        await websocket.close(code)

    @app.websocket("/forbidden")
    async def forbidden() -> None:
        from quart import abort

        abort(403)

    app.asgi_app = AccessLog(app.asgi_app, probes(board.prefix))  # type: ignore[method-assign]
    return app


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    return await open_site(make_app=logged_app)


@asynccontextmanager
async def opened(site: Site) -> AsyncIterator[trio.SocketStream]:
    """A connection of its own."""
    host, port = site.url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        yield stream


async def raw(site: Site, data: bytes) -> bytes:
    """What the server says to these bytes, up to the end of the connection."""
    async with opened(site) as stream:
        await stream.send_all(data)
        with trio.fail_after(5):
            return b"".join([piece async for piece in stream])


def traceparent(trace: str, rest: str = "-b7ad6b7169203331-01") -> bytes:
    return f"00-{trace}{rest}".encode()


def head(target: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers, b"", b""])


async def test_a_line_says_what_was_asked_and_answered(site: Site, lines: Lines) -> None:
    answer = await site.http.post(
        "/api/orders", json={"itemName": "x"}, headers={"traceparent": traceparent(TRACE).decode()}
    )
    await patient_records(lines)
    record = lines.records[0]
    assert (record.levelname, record.name) == ("INFO", "callboard.access")
    text = record.getMessage()
    line = json.loads(text)
    assert list(line) == ["time", "client", "method", "path", "status", "bytes", "seconds", "trace_id"]
    assert TIME.fullmatch(line["time"]) and 0 <= line["seconds"] < 5
    assert (line["client"], line["method"], line["path"]) == ("127.0.0.1", "POST", "/api/orders")
    assert (line["status"], line["bytes"], line["trace_id"]) == (202, len(answer.content), TRACE)
    for name, value in line.items():
        if name != "time":
            assert getattr(record, name) == value


async def patient_records(lines: Lines) -> None:
    async def is_there() -> bool:
        return bool(lines.records)

    await patient(is_there)


@pytest.mark.parametrize(
    ("method", "path", "status", "count"),
    [
        ("GET", "/jobs", 200, None),
        ("HEAD", "/jobs", 200, 0),
        ("OPTIONS", "/jobs", 204, 0),
        ("GET", "/jobs/none", 404, None),
        ("GET", "/nothing", 404, None),
        ("DELETE", "/jobs", 405, None),
        ("GET", "/not-modified", 304, 0),
        ("GET", "/bug", 500, None),
        ("GET", "/stream/2", 200, 20),
    ],
)
async def test_status_and_bytes(
    site: Site, lines: Lines, method: str, path: str, status: int, count: int | None
) -> None:
    answer = await site.http.request(method, path)
    line = await lines.next()
    assert (line["method"], line["path"]) == (method, path)
    assert (line["status"], line["bytes"]) == (status, len(answer.content))
    assert answer.status_code == status and count in (None, line["bytes"])
    assert "cut" not in line and "trace_id" not in line


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b'/a%0a{"status":200}', '/a%0a{"status":200}'),
        (b"/%0d%0aforged%00%1b[2J", "/%0d%0aforged%00%1b[2J"),
        (b'/"quoted"\\n\\', '/"quoted"\\n\\'),
        (b"/%ff%fe%c0%80/%E2%80%A8", "/%ff%fe%c0%80/%E2%80%A8"),
        (b"/%", "/%"),
        (b"/%%s%(message)s{0}", "/%%s%(message)s{0}"),
        (b"//jobs//" + b"..%2f" * 3, "//jobs//..%2f..%2f..%2f"),
        (b"/" + b"x" * 5000, "/" + "x" * 1023 + "..."),
        (b"/jobs/x?token=s3cret", "/jobs/x"),
        (b"/?s3cret", "/"),
        (b"/jobs/%3Fkept", "/jobs/%3Fkept"),
        (b"http://user:s3cret@host/jobs/x?s3cret", "/jobs/x"),
        (b"*", "*"),
    ],
)
async def test_what_a_client_writes_stays_in_its_line(site: Site, lines: Lines, target: bytes, path: str) -> None:
    headers = [b"Authorization: s3cret", b"Cookie: s3cret", b"X-Forwarded-For: s3cret, 6.6.6.6", b"User-Agent: s3cret"]
    assert await raw(site, head(target, *headers))
    await patient_records(lines)
    (text,) = lines.texts
    assert text.isascii() and text.isprintable()
    assert SECRET not in f"{text} {lines.records[0].__dict__}"
    line = await lines.next()
    assert line["path"] == path and line["client"] == "127.0.0.1"


async def test_a_strange_method_is_logged_as_it_is_and_not_for_ever(site: Site, lines: Lines) -> None:
    for method, seen in [(b"get", "GET"), (b"!#$%&'*+-.^_`|~", "!#$%&'*+-.^_`|~"), (b"M" * 100, "M" * 32 + "...")]:
        await raw(site, head(b"/jobs", method=method))
        line = await lines.next()
        assert line["method"].upper() == seen and line["status"] >= 200


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"x", b"00", b"\xff" * 40, traceparent("0" * 32), traceparent("a" * 4000), traceparent(TRACE.upper())),
        *(traceparent(TRACE, ""), traceparent(TRACE, "-b7ad6b7169203331"), b"00" + traceparent(TRACE)),
        traceparent(TRACE) + b"x",
    ],
)
async def test_a_traceparent_that_is_none_leaves_no_trace(site: Site, lines: Lines, value: bytes) -> None:
    await raw(site, head(b"/jobs", b"traceparent: " + value))
    assert "trace_id" not in await lines.next()


async def test_what_is_no_request_has_no_line(site: Site, lines: Lines) -> None:
    for junk in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET /a b HTTP/1.1\r\n\r\n", b"GET /\r\n\r\nforged\r\n"):
        await raw(site, junk)
    await site.http.get("/jobs")
    await lines.next()


async def test_a_client_that_does_not_wait_for_the_answer_is_a_499(site: Site, lines: Lines) -> None:
    job = await site.submit("/api/hold/door", {})
    await lines.next()
    async with opened(site) as stream:
        await stream.send_all(head(f"/jobs/{job['id']}?wait=5".encode()))
        await trio.sleep(0.2)
    line = await lines.next()
    assert (line["status"], line["bytes"], line["path"]) == (499, 0, f"/jobs/{job['id']}")
    assert "cut" not in line


async def test_an_answer_that_the_client_cut_is_a_line_that_says_so(site: Site, lines: Lines) -> None:
    async with opened(site) as stream:
        await stream.send_all(head(b"/stream/3"))
        received = b""
        while received.count(b"x" * 10) < 3:
            received += await stream.receive_some()
        assert lines.texts == []
    line = await lines.next()
    assert (line["status"], line["cut"], line["bytes"]) == (200, "client", 30)


async def test_and_so_is_one_that_the_app_cut(site: Site, lines: Lines) -> None:
    received = await raw(site, head(b"/stream/4"))
    line = await lines.next()
    assert (line["status"], line["cut"], line["bytes"]) == (200, "server", 10 * received.count(b"x" * 10))


async def test_an_event_stream_is_one_line_at_its_end(site: Site, lines: Lines) -> None:
    job = await site.submit("/api/hold/door", {})
    await lines.next()
    async with site.http.stream("GET", f"/jobs/{job['id']}/events") as answer:
        pieces = answer.aiter_raw()
        received = await anext(pieces)
        assert lines.texts == []
        site.gates.open("door")
        received += b"".join([piece async for piece in pieces])
    line = await lines.next()
    assert (line["status"], line["bytes"], line["path"]) == (200, len(received), f"/jobs/{job['id']}/events")
    assert "cut" not in line


async def test_a_websocket_has_one_line_when_it_is_over(site: Site, lines: Lines) -> None:
    async with site.socket(f"/echo/4001?token={SECRET}") as socket:
        await socket.send_message("hi")
        assert await socket.get_message() == "éhi"
        assert await socket.get_message() == b"1234"
        await patient_close(socket)
    line = await lines.next()
    assert list(line)[1:] == [
        *("client", "method", "path", "status", "bytes", "seconds", "close_code", "messages_in", "messages_out")
    ]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/echo/4001", 101)
    assert (line["bytes"], line["close_code"]) == (8, 4001)
    assert (line["messages_in"], line["messages_out"]) == (1, 2)


async def patient_close(socket: Any) -> None:
    from trio_websocket import ConnectionClosed

    with trio.fail_after(5), pytest.raises(ConnectionClosed):
        await socket.get_message()


async def test_the_stream_of_a_job_is_logged_with_what_it_sent(site: Site, lines: Lines) -> None:
    job = await site.submit()
    await site.ended(job["id"])
    await lines.next(2)
    async with site.socket(f"/jobs/{job['id']}/stream") as socket:
        document = await socket.get_message()
        assert isinstance(document, str)
        await patient_close(socket)
    line = await lines.next()
    assert (line["status"], line["close_code"], line["messages_out"]) == (101, 1000, 1)
    assert line["bytes"] == len(document.encode())


async def test_a_client_that_leaves_its_websocket(site: Site, lines: Lines) -> None:
    async with site.socket("/echo/0") as socket:
        await socket.send_message("hi")
        await socket.get_message()
        await socket.get_message()
    line = await lines.next()
    # Hypercorn takes every close of the client's for 1006; one that did not would say 1000.
    assert line["status"] == 101 and line["close_code"] in (1000, 1006)


@pytest.mark.parametrize(("path", "status"), [("/forbidden", 403), ("/nothing", 404), ("/jobs/x/y/stream", 404)])
async def test_a_refused_handshake_is_like_any_refused_request(
    site: Site, lines: Lines, path: str, status: int
) -> None:
    answer = await site.refused_handshake(path, **{"Sec-WebSocket-Protocol": SECRET})
    assert answer.status_code == status
    line = await lines.next()
    assert (line["method"], line["path"], line["status"]) == ("GET", path, status)
    assert line["bytes"] == len(answer.content) and "close_code" not in line
    assert SECRET not in str(line)


async def test_probes_are_at_debug_unless_they_are_refused(
    site: Site, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("live", "ready"):
        assert (await site.http.get(f"/jobs/health/{path}")).status_code == 200
    assert (await site.http.get("/jobs/metrics")).status_code == 200
    assert (await site.http.post("/jobs/metrics")).status_code == 405
    assert (await lines.next())["status"] == 405
    caplog.set_level(logging.DEBUG, logger="callboard.access")
    await site.http.get("/jobs/health/live")
    await patient_records(lines)
    assert lines.records[0].levelname == "DEBUG"


def rooted(board: Callboard, gates: Gates) -> QuartTrio:
    app = logged_app(board, gates)
    app.asgi_app = RootPath(app.asgi_app, "/shöp")  # type: ignore[method-assign]
    return app


@pytest.mark.parametrize("sent", ["/sh%C3%B6p", ""])
async def test_under_a_root_path_it_is_the_path_that_the_client_sees(
    open_site: OpenSite, lines: Lines, sent: str
) -> None:
    site = await open_site(make_app=rooted)
    await site.http.get(f"{sent}/jobs/health/live")
    answer = await site.http.get(f"{sent}/jobs/a%2fb?c")
    assert answer.status_code == 404
    assert (await lines.next())["path"] == "/sh%C3%B6p/jobs/a%2fb"


# --- what only an app, a server or a logger of its own can do, told in ASGI

Messages = list[dict[str, Any]]
HTTP: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "path": "/p",
    "raw_path": b"/p",
    "headers": [],
    "client": ("::1", 5),
}
SOCKET: dict[str, Any] = {**HTTP, "type": "websocket"}
START = {"type": "http.response.start", "status": 200, "headers": []}
ACCEPT = {"type": "websocket.accept"}


async def exchange(app: Callable[..., Awaitable[None]], scope: dict[str, Any], *incoming: dict[str, Any]) -> Messages:
    """Run an app in the log, for a client that sends this; what it sent."""
    sent: Messages = []
    messages = iter(incoming)

    async def receive() -> Any:
        await trio.lowlevel.checkpoint()
        return next(messages)

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await AccessLog(app)(scope, receive, send)
    return sent


def sends(*messages: dict[str, Any], receives: int = 0, error: BaseException | None = None) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(receives):
            await receive()
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize("scope", [HTTP, SOCKET])
async def test_an_app_that_fails_or_says_nothing_is_a_500(lines: Lines, scope: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a bug"):
        await exchange(sends(error=ValueError("a bug")), scope)
    await exchange(sends(), scope)
    for line in await lines.next(2):
        assert line["status"] == 500 and "cut" not in line and "close_code" not in line


async def test_an_answer_that_is_complete_is_not_cut_by_what_comes_after(lines: Lines) -> None:
    body = {"type": "http.response.body", "body": b"123"}
    with pytest.raises(ValueError, match="a bug"):
        await exchange(sends(START, body, error=ValueError("a bug")), HTTP)
    line = await lines.next()
    assert (line["status"], line["bytes"]) == (200, 3) and "cut" not in line


async def test_an_app_that_is_cancelled_by_the_end_of_its_answer_has_given_all_of_it(lines: Lines) -> None:
    """Hypercorn tells of a disconnect while it sends the last part."""
    async with trio.open_nursery() as nursery:

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()

        app = sends(START, {"type": "http.response.body", "body": b"123"})
        nursery.start_soon(AccessLog(app), HTTP, receive, send)
    line = await lines.next()
    assert (line["status"], line["bytes"]) == (200, 3) and "cut" not in line


async def test_the_line_comes_with_the_end_of_the_answer_not_of_the_app(lines: Lines) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"123", "more_body": True})
        assert lines.texts == []
        await send({"type": "http.response.body"})
        assert len(lines.texts) == 1
        await receive()

    await exchange(app, HTTP, {"type": "http.disconnect"})
    assert (await lines.next())["bytes"] == 3


async def test_what_is_sent_to_nobody_is_not_counted(lines: Lines) -> None:
    body = {"type": "http.response.body", "body": b"123"}
    await exchange(sends(START, body, receives=1), HTTP, {"type": "http.disconnect"})
    line = await lines.next()
    assert (line["status"], line["bytes"]) == (499, 0)
    gone = {"type": "websocket.disconnect", "code": 1001}
    message = {"type": "websocket.send", "text": "123"}
    await exchange(sends(message, {"type": "websocket.close"}, receives=1), SOCKET, gone)
    assert (await lines.next())["status"] == 499

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await receive()
        await send(message)
        await send({"type": "websocket.close", "code": 4000})

    await exchange(late, SOCKET, gone)
    line = await lines.next()
    assert (line["status"], line["close_code"], line["messages_out"], line["bytes"]) == (101, 1001, 0, 0)


async def test_a_websocket_that_is_closed_before_it_is_accepted_is_a_403(lines: Lines) -> None:
    """As the ASGI specification has it, for servers and apps that have no better answer to a handshake."""
    await exchange(sends({"type": "websocket.close", "code": 4000}), SOCKET)
    line = await lines.next()
    assert line["status"] == 403 and "close_code" not in line


async def test_how_a_websocket_ends(lines: Lines) -> None:
    async def code(app: Any, *incoming: dict[str, Any]) -> int:
        try:
            await exchange(app, SOCKET, *incoming)
        except ValueError:
            pass
        line = await lines.next()
        assert line["status"] == 101
        found: int = line["close_code"]
        return found

    async def left(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await receive()

    assert await code(sends(ACCEPT)) == 1011
    assert await code(sends(ACCEPT, error=ValueError())) == 1011
    assert await code(sends(ACCEPT, {"type": "websocket.close"})) == 1000
    assert await code(sends(ACCEPT, {"type": "websocket.close", "code": 4000}, error=ValueError())) == 4000
    assert await code(left, {"type": "websocket.disconnect"}) == 1005
    assert await code(left, {"type": "websocket.disconnect", "code": 1009}) == 1009


@pytest.mark.parametrize("grouping", [False, True])
async def test_what_the_servers_end_cuts_off(lines: Lines, grouping: bool) -> None:
    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await send(START if scope["type"] == "http" else ACCEPT)
        await trio.sleep_forever()

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    def within(app: Any) -> Any:
        """As Quart-Trio does: a cancellation leaves it in a group."""

        async def grouped(scope: Any, receive: Any, send: Any) -> None:
            async with trio.open_nursery() as inner:
                inner.start_soon(app, scope, receive, send)

        return grouped if grouping else app

    async with trio.open_nursery() as nursery:
        for app, scope in [(stuck, HTTP), (silent, HTTP), (stuck, SOCKET)]:
            nursery.start_soon(exchange, within(app), scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    found = {(line["status"], line.get("cut"), line.get("close_code")) for line in await lines.next(3)}
    assert found == {(200, "server", None), (500, "server", None), (101, None, 1006)}


@pytest.mark.parametrize(
    "part",
    [
        {"raw_path": b'/\n{"status":200}\r\n\x00\x1b\x7f\x9b\xff'},
        {"raw_path": None, "path": "/\n\u2028\udcff\x85é/?"},
        {"method": "G\nT\u2028"},
        {"client": None},
        {"client": ("a\nb", 1)},
        {"raw_path": b"\\" * 10_000, "method": '"' * 10_000},
        {"raw_path": b"user:s3cret@host:80"},
        {"raw_path": b"/p?s3cret"},
        {"raw_path": b"http://user:s3cret@host?s3cret"},
        {"raw_path": b""},
    ],
)
async def test_a_server_that_lets_anything_through(lines: Lines, part: dict[str, Any]) -> None:
    scope = {name: value for name, value in {**HTTP, **part}.items() if value is not None or name == "client"}
    await exchange(sends(START, {"type": "http.response.body"}), scope)
    (text,) = lines.texts
    assert text.isascii() and "\n" not in text and "\r" not in text and SECRET not in text
    assert len(text) < 4096, "a pipe takes it at once"
    line = await lines.next()
    assert line["status"] == 200 and line["path"]


async def test_a_server_that_gives_no_raw_path(lines: Lines) -> None:
    scope = {name: value for name, value in HTTP.items() if name != "raw_path"}
    await exchange(sends(START, {"type": "http.response.body"}), {**scope, "path": "/é\n?a"})
    assert (await lines.next())["path"] == "/%C3%A9%0A%3Fa"


async def test_a_log_that_nobody_wants_is_not_in_the_way(lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    given: list[Any] = []

    async def app(*arguments: Any) -> None:
        given.append(arguments)

    async def nothing(*_: Any) -> None: ...

    caplog.set_level(logging.WARNING, logger="callboard.access")
    for scope in (HTTP, SOCKET):
        await AccessLog(app)(scope, nothing, nothing)
    caplog.set_level(logging.DEBUG, logger="callboard.access")
    await AccessLog(app)({"type": "lifespan"}, nothing, nothing)
    assert all(arguments[1:] == (nothing, nothing) for arguments in given) and len(given) == 3
    assert lines.texts == []


@pytest.fixture
def factory() -> Iterator[None]:
    """An app's record factory with a mind of its own."""
    made = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = made(*args, **kwargs)
        record.status = record.trace_id = "the app's"
        return record

    logging.setLogRecordFactory(make)
    yield
    logging.setLogRecordFactory(made)


@pytest.mark.usefixtures("factory")
async def test_names_that_the_app_uses_too_do_no_harm(lines: Lines) -> None:
    await exchange(sends(START, {"type": "http.response.body"}), HTTP)
    (record,) = lines.records
    assert vars(record)["status"] == 200


async def test_a_log_that_fails_costs_no_request(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)

    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter's bug")

    logger = logging.getLogger("callboard.access")
    logger.addFilter(broken)
    sent: Messages = []

    async def receive() -> Any: ...

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        log = AccessLog(sends(START, {"type": "http.response.body"}))
        for _ in range(3):
            await log(HTTP, receive, send)
    finally:
        logger.removeFilter(broken)
    assert len(sent) == 6
    assert capsys.readouterr().err.count("RuntimeError: a filter's bug") == 1
