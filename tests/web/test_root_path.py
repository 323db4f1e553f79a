"""Behind a proxy that shows the app under a path of its own: every reference is as the client must ask for it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner
from quart_trio import QuartTrio
from tests.conftest import Serve
from tests.web.conftest import OpenSite
from tests.web.matrix import HANDSHAKE
from tests.web.workshop import Gates, assert_problem, make_site_app

from callboard.runtime import JobContext
from callboard.web import Callboard
from callboard.web.cli import main
from callboard.web.rootpath import RootPath

APP = """
from quart_trio import QuartTrio
from callboard.web import Callboard

app = QuartTrio(__name__)
board = Callboard(app, prefix="/work/jobs")

@board.post("/api/things", name="Thing", location=lambda job, result: f"/things/{result}", redirect=True)
async def thing(job) -> int:
    return 7
"""


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for piece in source:
            await target.send_all(piece)
        await target.send_eof()
    except trio.BrokenResourceError:
        pass  # one of the two has gone: so has what it was to be told


@asynccontextmanager
async def proxy(backend: str, path: str, *, strips: bool) -> AsyncIterator[str]:
    """The URL of a reverse proxy that shows ``backend`` under ``path``: one request a connection, websockets too."""
    host, _, port = backend.removeprefix("http://").partition(":")

    async def handle(client: trio.SocketStream) -> None:
        head = b""
        while b"\r\n" not in head:
            head += await client.receive_some(65536)
        method, target, rest = head.split(b" ", 2)
        if not (target + b"/").startswith(path.encode() + b"/"):
            await client.send_all(b"HTTP/1.1 421 Misdirected\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if strips:
            target = target.removeprefix(path.encode()) or b"/"
        async with await trio.open_tcp_stream(host, int(port)) as server, trio.open_nursery() as nursery:
            rest = rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) if b"Upgrade" not in rest else rest
            await server.send_all(b" ".join((method, target, rest)))
            nursery.start_soon(_copy, client, server)
            await _copy(server, client)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.e2e
@pytest.mark.parametrize("strips", [True, False])
async def test_serve_behind_a_proxy_that_strips_its_path_or_passes_it_on(
    serve: Serve, tmp_path: Any, strips: bool
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    server = await trio.to_thread.run_sync(
        partial(serve, "shop.py:app", "--store", "memory://", "--root-path", "/shop/")
    )
    async with proxy(server.url, "/shop", strips=strips) as url, httpx.AsyncClient(base_url=url) as http:
        accepted = await http.post("/shop/api/things", headers={"Prefer": "wait=5"})
        assert accepted.status_code == 200, accepted.text
        own = f"/shop/work/jobs/{accepted.json()['id']}"
        links = accepted.json()["links"]
        assert (links["self"], links["result"], links["location"]) == (own, f"{own}/result", "/shop/things/7")
        assert accepted.headers["content-location"] == own
        for name in ("self", "result"):
            answer = await http.get(links[name], params={"redirect": "false"})
            assert answer.status_code == 200, "each link leads back through the proxy"
        moved = await http.get(own)
        assert (moved.status_code, moved.headers["location"]) == (303, "/shop/things/7")
        assert (await http.get("/shop/work/jobs")).json()["jobs"][0]["links"]["self"] == own
        assert_problem(await http.get("/shop/work/jobs/none"), 404)
        assert_problem(await http.get("/shop/work/jobs//none"), 404)
        async with http.stream("GET", links["stream"], headers=HANDSHAKE) as upgraded:
            assert upgraded.status_code == 101
        document = (await http.get("/shop/work/jobs/openapi.json")).json()
        assert document["servers"] == [{"url": "/shop"}]


@pytest.mark.parametrize("wrong", ["shop", "http://shop", "/shop?x", "/a//b", "/a b", "//shop", "/%41", "/a\n"])
def test_a_root_path_that_is_none_is_refused(wrong: str) -> None:
    result = CliRunner().invoke(main, ["serve", "shop.py:app", "--root-path", wrong])
    assert result.exit_code == 2
    assert "--root-path" in result.output


async def test_only_what_begins_with_the_root_path_itself_has_it() -> None:
    seen: list[tuple[str, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope.get("root_path", "none"), scope.get("path", "none")))

    async def nothing(*_: Any) -> None: ...

    at = RootPath(app, "/shop")
    for path in ("/shop", "/shop/jobs", "/shopping", "/jobs", "/", "", "*"):
        await at({"type": "http", "path": path, "root_path": ""}, nothing, nothing)
    await at({"type": "lifespan"}, nothing, nothing)
    paths = ["/shop", "/shop/jobs", "/shop/shopping", "/shop/jobs", "/shop/", "", "*"]
    assert seen == [*(("/shop", path) for path in paths), ("none", "none")]


@pytest.mark.parametrize(
    ("root", "raw", "seen"),
    [
        ("/shop", b"/a%2Fb", b"/shop/a%2Fb"),
        ("/größe", b"/a%2Fb", b"/gr%C3%B6%C3%9Fe/a%2Fb"),
        ("/shop", b"http://x/a/b", b"http://x/a/b"),
        ("/shop", None, None),
    ],
)
async def test_the_raw_path_is_told_as_the_path_is(root: str, raw: bytes | None, seen: bytes | None) -> None:
    """Whoever tells "/" from "%2F", as the access log does, reads that one."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    async def nothing(*_: Any) -> None: ...

    given = {"type": "http", "path": "/a/b", "raw_path": raw}
    await RootPath(app, root)(given, nothing, nothing)
    assert (scopes[0]["path"], scopes[0]["raw_path"]) == (f"{root}/a/b", seen)
    assert given["path"] == "/a/b", "the server's own was changed"


def forwarded_app(board: Callboard, gates: Gates) -> QuartTrio:
    """An app with a middleware that believes its proxy's X-Forwarded-Prefix, as apps have it."""
    app = make_site_app(board, gates)
    inner: Any = app.asgi_app

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
            return
        prefix = dict(scope["headers"]).get(b"x-forwarded-prefix", b"").decode()
        await inner({**scope, "root_path": prefix, "path": prefix + scope["path"]}, receive, send)

    app.asgi_app = middleware  # type: ignore[method-assign]
    return app


async def test_each_client_gets_the_references_of_its_own_way_in(open_site: OpenSite) -> None:
    site = await open_site(make_app=forwarded_app)
    job = await site.submit(Prefer="wait=5")
    for prefix in ("", "/shop", "/a/b", "/sh%20op"):
        answer = await site.http.get(f"/jobs/{job['id']}", headers={"X-Forwarded-Prefix": prefix})
        seen = prefix.replace("%", "%25")
        assert answer.json()["links"]["self"] == f"{seen}/jobs/{job['id']}"
        problem = await site.http.get("/jobs/none", headers={"X-Forwarded-Prefix": prefix})
        assert problem.json()["instance"] == f"{seen}/jobs/none"


async def test_without_such_a_middleware_nobody_can_move_the_references(open_site: OpenSite) -> None:
    site = await open_site()
    headers = {
        "X-Forwarded-Prefix": "/evil",
        "X-Script-Name": "/evil",
        "X-Forwarded-Path": "/evil",
        "Host": "evil.example",
    }
    answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers=headers)
    assert "evil" not in answer.text + answer.headers["location"]


@pytest.mark.parametrize("prefix", ["/jöbs", "/my jobs", "/a.b/c~d", "/jobs/", "/deep/er/and/deeper"])
async def test_a_prefix_of_any_letters_is_sent_as_a_reference(open_site: OpenSite, prefix: str) -> None:
    site = await open_site(store="memory://", prefix=prefix)
    answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Prefer": "wait=5"})
    own = answer.json()["links"]["self"]
    assert own.isascii() and " " not in own
    assert answer.headers["content-location"] == own
    assert (await site.http.get(own)).json() == answer.json()
    missing = await site.http.get(f"{own}x")
    assert (missing.status_code, missing.json()["instance"]) == (404, f"{own}x")
    assert (await site.http.get(own.rpartition("/")[0])).json()["jobs"] == [answer.json()]


LOCATIONS = [
    ("/things/7", "/shop/things/7"),
    ("things/7", "things/7"),
    ("https://files.example/ä?q=ö#x", "https://files.example/%C3%A4?q=%C3%B6#x"),
    ("//cdn.example/x", "//cdn.example/x"),
    ("/a b", "/shop/a%20b"),
    ("/100%", "/shop/100%25"),
    ("/a%20b", "/shop/a%20b"),
    ("/x\r\nSet-Cookie: a=b", "/shop/x%0D%0ASet-Cookie:%20a=b"),
    ("/x\x00\x7f", "/shop/x%00%7F"),
    ("/<script>\"'", "/shop/%3Cscript%3E%22'"),
    ("/\N{SNOWMAN}", "/shop/%E2%98%83"),
    ("", None),
    (None, None),
]


def places_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/places", name="Place", location=lambda job, result: result)
    async def place(job: JobContext, request: str | None) -> str | None:
        return request

    return app


async def test_a_location_of_any_text_is_a_reference_through_the_root_path(open_site: OpenSite) -> None:
    site = await open_site(make_app=places_app, root_path="/shop")
    for text, seen in LOCATIONS:
        headers = {"Prefer": "wait=5", "Content-Type": "application/json"}
        answer = await site.http.post("/shop/api/places", content=json.dumps(text), headers=headers)
        links = answer.json()["links"]
        assert links.get("location") == seen
        for query, status in (("?redirect=true", 303 if seen else 200), ("?redirect=false", 200), ("", 200)):
            read = await site.http.get(links["self"] + query)
            assert (read.status_code, "set-cookie" in read.headers) == (status, False)
            assert read.headers.get("location") == (seen if status == 303 else None)
