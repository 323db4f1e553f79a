"""What the web tests serve: an app with a handler of each kind, on a real socket, with gates that tests hold and open."""

import socket
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import httpx
import msgspec
import trio
import trio.lowlevel
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from quart_trio import QuartTrio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from callboard.runtime import Config, JobContext, JobFailed
from callboard.runtime.core.errors import StoreUnavailable
from callboard.runtime.core.store import Store
from callboard.web import Callboard

__all__ = [
    "CONFIG",
    "Cut",
    "Gates",
    "Site",
    "assert_problem",
    "connect",
    "frames",
    "make_site_app",
    "patient",
    "reset",
    "run_site",
    "serving",
]

CONFIG = Config(
    retry_base_seconds=0.01,
    drain_seconds=0.6,
    store_timeout_seconds=2,
    progress_interval_seconds=0.01,
    max_body_bytes=10_000,
    max_bulk_body_bytes=10_000,
    max_wait_seconds=5,
)


class Gates:
    """Where handlers stop until a test lets them go on. ``arrived`` says that one is there."""

    def __init__(self) -> None:
        self._arrived: dict[str, trio.Event] = defaultdict(trio.Event)
        self._open: dict[str, trio.Event] = defaultdict(trio.Event)
        self.all_open = False

    async def arrived(self, name: str) -> None:
        with trio.fail_after(5):
            await self._arrived[name].wait()

    def open(self, name: str) -> None:
        self._open[name].set()

    def open_all(self) -> None:
        self.all_open = True
        for event in self._open.values():
            event.set()

    async def through(self, name: str) -> None:
        self._arrived[name].set()
        if not self.all_open:
            await self._open[name].wait()


class Order(msgspec.Struct, rename="camel"):
    item_name: str
    how_many: int = 1


class Fault(msgspec.Struct):
    code: str
    message: str
    retryable: bool = False


def make_site_app(board: Callboard, gates: Gates) -> QuartTrio:
    """An app with the workshop's handlers mapped."""
    app = QuartTrio("workshop")
    board.init_app(app)

    @board.post("/api/orders", name="Order", max_retries=2, allow_delay=True, allow_timeout=True, allow_priority=True)
    async def order(job: JobContext, request: Order) -> dict[str, Any]:
        return {"item": request.item_name, "total": request.how_many}

    @board.post("/api/hold/<gate>", name="Hold", max_retries=0)
    async def hold(job: JobContext, request: dict[str, Any]) -> str:
        gate = job.route_params["gate"]
        await gates.through(gate)
        return f"through {gate}"

    @board.post("/api/flood", name="Flood")
    async def flood(job: JobContext, request: int) -> None:
        await gates.through("flood")
        for done in range(request):
            await job.progress(data="x" * 2000)
            if done % 10 == 0:
                job.log("info", f"log {done}")
            await trio.lowlevel.checkpoint()

    @board.post("/api/void", name="Void")
    async def void(job: JobContext) -> None: ...

    @board.post("/api/slow", name="Slow", max_retries=0, allow_timeout=True)
    async def slow(job: JobContext, request: dict[str, Any]) -> None:
        await trio.sleep_forever()

    @board.post("/api/steps/<gate>", name="Steps")
    async def steps(job: JobContext, request: int) -> int:
        for done in range(request):
            await job.progress(done * 100 / request, f"step {done}", {"done": done})
            await gates.through(f"{job.route_params['gate']} {done}")
            job.log("info", f"did {done}")
        return request

    @board.post("/api/fail", name="Fail", max_retries=1)
    async def fail(job: JobContext, request: Fault) -> None:
        raise JobFailed(request.code, request.message, retryable=request.retryable)

    @board.put("/api/crash", name="Crash", max_retries=0)
    async def crash(job: JobContext) -> None:
        raise ValueError("the password is tiger")

    @board.patch("/api/seen/<int:number>/<uuid:which>/<float:ratio>/<word>", name="Seen")
    async def seen(job: JobContext, request: list[int]) -> dict[str, Any]:
        return {
            "headers": {name: job.headers.getlist(name) for name in job.headers},
            "agent": job.headers["USER-AGENT"],
            "route": {name: [type(value).__name__, str(value)] for name, value in job.route_params.items()},
            "query": {name: job.query_params.getlist(name) for name in job.query_params},
        }

    @board.delete(
        "/api/things/<int:number>", name="Create", location=lambda job, result: f"/things/{result}", redirect=True
    )
    async def create(job: JobContext) -> int:
        number: int = job.route_params["number"]
        await gates.through(f"create {number}")
        return number

    return app


class Site:
    """A served app and a client for it."""

    def __init__(self, board: Callboard, app: QuartTrio, gates: Gates, url: str, http: httpx.AsyncClient) -> None:
        self.board = board
        self.app = app
        self.gates = gates
        self.url = url
        self.http = http
        self.stop = trio.Event()

    async def submit(self, path: str = "/api/orders", body: Any = None, **headers: str) -> dict[str, Any]:
        """Submit a job that must be accepted; its document."""
        sent = {"itemName": "x"} if body is None else body
        answer = await self.http.post(
            path, json=sent, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        assert answer.status_code in (200, 202), answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def ended(self, job_id: str) -> dict[str, Any]:
        """The document of a job once it has ended."""
        answer = await self.http.get(f"/jobs/{job_id}?wait=5")
        document: dict[str, Any] = answer.json()
        assert document["completedAt"] is not None, document
        return document

    def socket(
        self, path: str, *, receive_buffer: int | None = None
    ) -> AbstractAsyncContextManager[WebSocketConnection]:
        """A websocket to ``path``."""
        return websocket_to(self.url, path, receive_buffer=receive_buffer)

    async def refused_handshake(self, path: str, **headers: str) -> httpx.Response:
        """The answer to a websocket handshake that must be refused."""
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **headers,
        }
        answer = await self.http.get(path, headers=upgrade)
        assert answer.status_code >= 400
        return answer


async def run_site(
    board: Callboard,
    make_app: Callable[[Callboard, Gates], QuartTrio] = make_site_app,
    *,
    root_path: str = "",
    task_status: trio.TaskStatus[Site],
) -> None:
    """Serve until ``site.stop`` is set."""
    gates = Gates()
    app = make_app(board, gates)
    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "CRITICAL"
    config.graceful_timeout = 0.2
    config.root_path = root_path
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        urls = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
        async with httpx.AsyncClient(base_url=urls[0], timeout=10) as http:
            site = Site(board, app, gates, urls[0], http)
            task_status.started(site)
            await site.stop.wait()
            gates.open_all()
        stop.set()


class Cut:
    """A store whose line can be cut: every call fails while ``is_cut``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)
        if name in ("open", "aclose"):
            return verb

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_cut:
                raise StoreUnavailable("cannot reach redis://user:hunter2@10.0.0.7")
            return await verb(*args, **kwargs)

        return call


async def patient(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until ``check`` says so, for at most five seconds."""
    with trio.fail_after(5):
        while not await check():  # noqa: ASYNC110 - what is waited for is behind a socket
            await trio.sleep(0.01)


async def frames(socket: WebSocketConnection) -> list[dict[str, Any]]:
    """Every frame until the server closes."""
    received = []
    with trio.fail_after(5):
        try:
            while True:
                received.append(msgspec.json.decode(await socket.get_message()))
        except ConnectionClosed:
            return received


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["instance"] == answer.request.url.path
    assert body["type"] and body["title"] and body["detail"]
    assert "Traceback" not in answer.text
    return body


@asynccontextmanager
async def serving(
    make_app: Callable[[Callboard, Gates], QuartTrio] = make_site_app, **options: Any
) -> AsyncIterator[Site]:
    """The workshop, or another app, on a store in memory: for what has nothing to do with the store."""
    board = Callboard(**{"store": "memory://", "config": CONFIG, **options})
    async with trio.open_nursery() as nursery:
        site: Site = await nursery.start(run_site, board, make_app)
        try:
            yield site
        finally:
            site.stop.set()


@asynccontextmanager
async def websocket_to(url: str, path: str, *, receive_buffer: int | None = None) -> AsyncIterator[WebSocketConnection]:
    """A websocket to ``path`` of the server at ``url``. (trio-websocket's own opener leaves TCP sockets unclosed.)"""
    host, _, port = url.removeprefix("http://").partition(":")
    line = trio.socket.socket()
    if receive_buffer is not None:
        line.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
    async with trio.SocketStream(line) as stream, trio.open_nursery() as nursery:
        await line.connect((host, int(port)))
        connection = await wrap_client_stream(nursery, stream, host, path)
        yield connection
        with trio.move_on_after(1):
            await connection.aclose()
        nursery.cancel_scope.cancel()


async def connect(url: str) -> trio.SocketStream:
    """A connection to a server, to be closed by the caller."""
    host, _, port = url.rpartition("/")[2].rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


def reset(line: trio.SocketStream) -> None:
    """Make closing this connection cut it off, as when the client's machine dies."""
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
