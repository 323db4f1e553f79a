"""Many jobs over the many-job websocket, carried out as a request inside the app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace
from quart import Response, current_app, g, has_websocket_context, request, session, websocket
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.test_bulk import IDLE, Counting
from tests.web.workshop import CONFIG, Cut, Gates, Site, make_site_app
from trio_websocket import WebSocketConnection, wrap_client_stream

from callboard.runtime import JobContext
from callboard.stores import open_store
from callboard.web import Callboard


def socket_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)
    app.secret_key = "not a secret"

    @app.before_request
    async def before() -> Any:
        g.seen = request.headers.get("X-Caller")
        if request.headers.get("X-Blocked"):
            return "blocked", 401, {"Retry-After": "7"}
        return None

    @app.post("/api/plain")
    async def plain() -> str:
        raise AssertionError("only handlers can be reached")

    def picky(body: dict[str, Any]) -> Any:
        assert not has_websocket_context() and session.get("name") is None and websocket is not None
        if body.get("refuse"):
            return {"by": g.seen, "agent": request.headers.get("User-Agent")}, 409
        return None

    def broken(view: Any) -> Any:
        async def wrapped(**parameters: Any) -> Any:
            current_app.config["PROPAGATE_EXCEPTIONS"] = True
            raise RuntimeError("the password is tiger")

        return wrapped

    @board.put("/api/picky/<int:number>", name="Picky", validate=picky)
    async def on_picky(job: JobContext, body: dict[str, Any]) -> Any:
        return [job.route_params["number"], dict(job.headers), dict(job.query_params), body]

    @board.post("/api/broken", name="Broken", decorators=[broken])
    async def on_broken(job: JobContext, body: int) -> None: ...

    return app


@asynccontextmanager
async def bulk_socket(site: Site, path: str = "/jobs/stream", **headers: str) -> AsyncIterator[WebSocketConnection]:
    host, _, port = site.url.removeprefix("http://").partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream, trio.open_nursery() as nursery:
        extra = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
        connection = await wrap_client_stream(nursery, stream, host, path, extra_headers=extra)
        yield connection
        with trio.move_on_after(1):
            await connection.aclose()
        nursery.cancel_scope.cancel()


async def say(socket: WebSocketConnection, **message: Any) -> dict[str, Any]:
    await socket.send_message(msgspec.json.encode({"type": "submit", "ref": "r", **message}).decode())
    with trio.fail_after(5):
        answer: dict[str, Any] = msgspec.json.decode(await socket.get_message())
    return answer


async def count(site: Site) -> int:
    return len((await site.http.get("/jobs?limit=200")).json()["jobs"])


async def test_jobs_are_submitted_through_the_whole_app(open_site: OpenSite) -> None:
    site = await open_site(make_app=socket_app)
    async with bulk_socket(
        site, X_Caller="me", User_Agent="robot", Content_Language="de", X_Api_Key="s3cret"
    ) as socket:
        answer = await say(socket, path="/api/picky/7?a=1", method="PUT", jobs=[{"x": 1}, {"refuse": 1}, 5, {"x": 2}])
    assert {name: answer[name] for name in ("type", "ref", "status")} == {
        "type": "submitted",
        "ref": "r",
        "status": 207,
    }
    assert [line["status"] for line in answer["jobs"]] == [202, 409, 422, 202]
    assert answer["jobs"][1]["body"] == {"by": "me", "agent": "robot"}
    assert answer["jobs"][2]["problem"]["instance"] == "/api/picky/7"
    assert await count(site) == 2
    number, headers, query, body = (await site.ended(answer["jobs"][0]["job"]["id"]))["result"]
    assert (number, query, body) == (7, {"a": "1"}, {"x": 1})
    assert headers["x-caller" if "x-caller" in headers else "X-Caller"] == "me"
    lowered = {name.lower() for name in headers}
    assert (
        lowered & {"upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "content-language"} == set()
    )
    assert "x-api-key" not in lowered
    assert "content-type" in lowered


async def test_a_message_is_one_commit(open_site: OpenSite, store_url: str) -> None:
    store = Counting(open_store(store_url))
    site = await open_site(make_app=socket_app, store=store, config=IDLE)
    async with bulk_socket(site) as socket:
        for size in (1, 100, 500):
            before = store.commits
            answer = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}] * size)
            assert (answer["status"], len(answer["jobs"])) == (202, size)
            assert store.births[-1] == size and store.commits == before + 1


async def test_all_accepted_is_202_and_a_key_makes_repeats_safe(open_site: OpenSite) -> None:
    site = await open_site(make_app=socket_app)
    async with bulk_socket(
        site, Idempotency_Key="of the handshake", X_Async_Request_Id="no", Prefer="wait=9"
    ) as socket:
        first = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}], idempotencyKey="k")
        again = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}], idempotencyKey="k")
        other = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}])
        more = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}])
    assert first["status"] == again["status"] == 202
    assert again["jobs"][0]["replayed"] is True
    assert again["jobs"][0]["job"]["id"] == first["jobs"][0]["job"]["id"]
    assert len({answer["jobs"][0]["job"]["id"] for answer in (first, other, more)}) == 3


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"ref": ""}, "bad-message"),
        ({"ref": 5}, "bad-message"),
        ({"ref": "r" * 201}, "bad-message"),
        ({"path": None}, "bad-message"),
        ({"path": "api/orders"}, "bad-message"),
        ({"path": "//elsewhere/api/orders"}, "bad-message"),
        ({"path": "/" + "x" * 5000}, "bad-message"),
        ({"path": "http://elsewhere/api/orders"}, "bad-message"),
        ({"method": "GET"}, "bad-message"),
        ({"method": ["POST"]}, "bad-message"),
        ({"jobs": []}, "bad-message"),
        ({"jobs": {}}, "bad-message"),
        ({"jobs": None}, "bad-message"),
        ({"jobs": [1] * 501}, "too-many-jobs"),
        ({"idempotencyKey": ""}, "bad-message"),
        ({"idempotencyKey": "a\r\nX-Evil: 1"}, "bad-message"),
        ({"idempotencyKey": 5}, "bad-message"),
        ({"path": "/api/plain"}, "not-found"),
        ({"path": "/api/nowhere"}, "not-found"),
        ({"path": "/api/orders", "method": "PUT"}, "not-found"),
        ({"path": "/jobs/01234567-89ab-7def-8123-456789abcdef/cancel"}, "not-found"),
        ({"path": "/jobs"}, "not-found"),
        ({"path": "/api/void"}, "unsupported-media-type"),
        ({"path": "/api/crash", "method": "PUT"}, "unsupported-media-type"),
        ({"jobs": ["x" * 9_000] * 3}, "content-too-large"),
        ({"path": "/api/broken"}, "internal-error"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_message_that_cannot_be_carried_out_is_an_error(
    open_site: OpenSite, message: dict[str, Any], code: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = await open_site(make_app=socket_app, config=replace(CONFIG, max_bulk_body_bytes=25_000))
    async with bulk_socket(site) as socket:
        answer = await say(socket, **{"path": "/api/orders", "jobs": [{"itemName": "a"}], **message})
        assert (answer["type"], answer["code"]) == ("error", code)
        assert answer["message"] and "tiger" not in str(answer)
        assert answer.get("ref") == (None if "ref" in message else "r")
        # The socket lives on.
        assert (await say(socket, path="/api/orders", jobs=[{"itemName": "a"}]))["status"] == 202
    assert await count(site) == 1
    assert ("tiger" in caplog.text) == (code == "internal-error")


async def test_what_the_app_refuses_is_an_error_with_its_status(open_site: OpenSite, store_url: str) -> None:
    cut = Cut(open_store(store_url))
    site = await open_site(
        make_app=socket_app, store=cut, config=replace(CONFIG, store_timeout_seconds=0.2, poll_seconds=0.05)
    )
    async with bulk_socket(site, X_Blocked="1") as socket:
        blocked = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}])
    assert blocked == {
        "type": "error",
        "code": "refused",
        "message": "The app answered 401.",
        "ref": "r",
        "status": 401,
        "retryAfter": 7,
    }
    async with bulk_socket(site) as socket:
        cut.is_cut = True
        away = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}])
        assert (away["code"], away["status"]) == ("store-unavailable", 503)
        assert away["retryAfter"] >= 1 and "hunter2" not in str(away)
        cut.is_cut = False


async def test_paths_are_those_that_the_client_sees(open_site: OpenSite) -> None:
    site = await open_site(make_app=socket_app, root_path="/shop")
    async with bulk_socket(site, "/shop/jobs/stream") as socket:
        answer = await say(socket, path="/shop/api/orders", jobs=[{"itemName": "a"}])
        assert answer["jobs"][0]["job"]["links"]["self"].startswith("/shop/jobs/")
        assert (await say(socket, path="/api/orders", jobs=[{"itemName": "a"}]))["code"] == "not-found"
        void = await say(socket, path="/shop/api/hold/%C3%A4%20b", jobs=[{}])
        await site.gates.arrived("ä b")
        assert void["status"] == 202


async def test_identify_and_authorize_are_asked_as_of_the_handshake(open_site: OpenSite) -> None:
    site = await open_site(make_app=socket_app, identify=lambda request: request.headers.get("X-Caller"))
    async with bulk_socket(site, X_Caller="me") as socket:
        answer = await say(socket, path="/api/orders", jobs=[{"itemName": "a"}])
    path = f"/jobs/{answer['jobs'][0]['job']['id']}"
    assert (await site.http.get(path, headers={"X-Caller": "me"})).status_code == 200
    assert (await site.http.get(path, headers={"X-Caller": "you"})).status_code == 404


async def test_a_client_that_leaves_loses_nothing_that_was_stored(open_site: OpenSite) -> None:
    seen: list[str] = []

    def make_app(board: Callboard, gates: Gates) -> QuartTrio:
        app = socket_app(board, gates)

        @app.after_request
        async def after(response: Response) -> Response:
            if request.path == "/api/orders":
                seen.append("stored")
                await gates.through("answer")
            return response

        return app

    site = await open_site(make_app=make_app)
    async with bulk_socket(site) as socket:
        await socket.send_message('{"type": "submit", "ref": "r", "path": "/api/orders", "jobs": [{"itemName": "a"}]}')
        await site.gates.arrived("answer")
    with trio.fail_after(5):
        while site.http.is_closed or not await count(site):  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert seen == ["stored"]
