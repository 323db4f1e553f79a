"""The app's own validation: whatever it answers is the answer, and a job is there only where it says nothing."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.lowlevel
from msgspec import Struct
from msgspec.structs import replace
from quart import Response, abort, current_app, g, jsonify, request
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Cut, Gates, Site, assert_problem, make_site_app
from werkzeug.wrappers import Response as WerkzeugResponse

from callboard.runtime import ConfigError, InvalidRequest, JobContext
from callboard.stores import open_store
from callboard.web import Callboard, Responses

IDLE = replace(CONFIG, max_concurrent_jobs=0)


class Order(Struct, rename="camel"):
    item_name: str
    pieces: int = 1


class Checker:
    """Hooks may be objects and methods."""

    def __call__(self, order: Order) -> Any:
        return None if order.item_name != "object" else "object"

    async def method(self, order: Order) -> Any:
        await trio.lowlevel.checkpoint()
        return None if order.item_name != "method" else "method"


class AsyncChecker:
    async def __call__(self, order: Order) -> Any:
        return None if order.item_name != "async object" else "async object"


def plain(order: Order) -> Any:
    return None if order.item_name != "plain" else "plain"


async def asynchronous(order: Order) -> Any:
    await trio.lowlevel.checkpoint()
    return None if order.item_name != "async" else "async"


def with_default(order: Order, further: int = 1) -> Any:
    return None if order.item_name != "default" else "default"


BODIED: dict[str, Any] = {
    "plain": plain,
    "async": asynchronous,
    "object": Checker(),
    "method": Checker().method,
    "async object": AsyncChecker(),
    "default": with_default,
    "star": lambda *given: None if given[0].item_name != "star" else "star",
}


async def bare_async() -> Any:
    return request.args.get("no")


BARE: dict[str, Any] = {"plain": lambda: request.args.get("no"), "async": bare_async}


def variants_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)
    for name, hook in BODIED.items():

        @board.post(f"/api/bodied/{name.replace(' ', '-')}", name=f"bodied {name}", validate=hook)
        async def bodied(job: JobContext, order: Order) -> None: ...

    for name, hook in BARE.items():

        @board.post(f"/api/bare/{name}", name=f"bare {name}", validate=hook)
        async def bare(job: JobContext) -> None: ...

    return app


async def count(site: Site) -> int:
    return len((await site.http.get("/jobs?limit=200")).json()["jobs"])


async def test_every_kind_of_function(open_site: OpenSite) -> None:
    site = await open_site(make_app=variants_app, config=IDLE)
    for name in BODIED:
        path = f"/api/bodied/{name.replace(' ', '-')}"
        answered = await site.http.post(path, json={"itemName": name})
        assert (answered.status_code, answered.text) == (200, name)
        assert (await site.http.post(path, json={"itemName": "x"})).status_code == 202
        assert_problem(await site.http.post(path, json={"itemName": 5}), 422)
    for name in BARE:
        answered = await site.http.post(f"/api/bare/{name}?no=never")
        assert (answered.status_code, answered.text) == (200, "never")
        assert (await site.http.post(f"/api/bare/{name}")).status_code == 202
    assert await count(site) == len(BODIED) + len(BARE)


async def words() -> AsyncIterator[str]:
    yield "a"
    yield "b"


def raising(error: Exception) -> Any:
    raise error


FORMS: list[tuple[Any, int, str | None]] = [
    (lambda: "text", 200, "text"),
    (lambda: "", 200, ""),
    (lambda: b"bytes", 200, "bytes"),
    (dict, 200, "{}\n"),
    (lambda: {"a": 1}, 200, '{"a":1}\n'),
    (lambda: [1], 200, "[1]\n"),
    (lambda: ({"a": 1}, 409), 409, '{"a":1}\n'),
    (lambda: ("text", {"X-Hook": "1"}), 200, "text"),
    (lambda: ("text", 418, {"X-Hook": "1"}), 418, "text"),
    (lambda: Response("mine", status=451), 451, "mine"),
    (lambda: WerkzeugResponse("older", status=452), 452, "older"),
    (lambda: (jsonify(a=1), 299), 299, '{"a":1}\n'),
    (lambda: (word for word in "ab"), 200, "ab"),
    (words, 200, "ab"),
    (lambda: Response(b"", status=204), 204, ""),
    (lambda: current_app.redirect("/elsewhere"), 302, None),
    (lambda: abort(403), 403, "problem"),
    (lambda: abort(429, "slow down"), 429, "problem"),
    (lambda: abort(Response("aborted", status=460)), 460, "aborted"),
    (lambda: raising(InvalidRequest("say please")), 400, "problem"),
    (lambda: raising(RuntimeError("the password is tiger")), 500, "problem"),
    (lambda: False, 500, "problem"),
    (lambda: 5, 500, "problem"),
    (lambda: object(), 500, "problem"),
    (lambda: ("too", "many", "parts", "here"), 500, "problem"),
]


@pytest.mark.parametrize("takes_body", [True, False], ids=["body", "none"])
async def test_every_form_that_a_view_may_return(
    open_site: OpenSite, takes_body: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def choose(*_: Any) -> Any:
        return FORMS[int(request.headers["X-Form"])][0]()

    def make_app(board: Callboard, gates: Gates) -> QuartTrio:
        app = make_site_app(board, gates)

        if takes_body:

            @board.put("/api/formed", name="Formed", validate=choose)
            async def bodied(job: JobContext, order: Order) -> None: ...
        else:

            @board.put("/api/formed", name="Formed", validate=choose)
            async def bare(job: JobContext) -> None: ...

        return app

    # The forms of callboard's own answers are not those of the hook's.
    site = await open_site(make_app=make_app, responses=Responses(submitted=lambda answer: "wrong"))
    body: dict[str, Any] = {"itemName": "x"} if takes_body else {}
    for number, (_, status, text) in enumerate(FORMS):
        answer = await site.http.put("/api/formed", json=body, headers={"X-Form": f"{number}"})
        assert answer.status_code == status, (number, answer.text)
        if text == "problem":
            assert "tiger" not in str(assert_problem(answer, status))
        elif text is not None:
            assert answer.text == text, number
        assert "async-job-id" not in answer.headers and "idempotency-replayed" not in answer.headers
        assert await count(site) == 0
    assert "tiger" in caplog.text and "slow down" not in caplog.text
    assert caplog.text.count("failed") == 5


def looking_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)
    app.config["OPEN"] = True

    @app.before_request
    async def before() -> None:
        g.caller = request.headers.get("X-Caller")

    async def validate(order: Order) -> Any:
        assert isinstance(order, Order)
        app.extensions.setdefault("seen", []).append(
            (order.item_name, g.caller, request.view_args, request.args.get("q"))
        )
        if not current_app.config["OPEN"]:
            return {"closed": request.headers["X-Reason"]}, 409
        return None

    @board.post(
        "/api/looking/<int:number>", name="Looking", validate=validate, priority=lambda order: 10 // order.pieces
    )
    async def looking(job: JobContext, order: Order) -> None:
        await gates.through("looking")

    return app


async def test_it_sees_the_request_and_the_app(open_site: OpenSite) -> None:
    site = await open_site(make_app=looking_app)
    accepted = await site.http.post("/api/looking/7?q=1", json={"itemName": "a"}, headers={"X-Caller": "me"})
    assert accepted.status_code == 202
    assert site.app.extensions["seen"] == [("a", "me", {"number": 7}, "1")]
    site.app.config["OPEN"] = False
    answered = await site.http.post("/api/looking/7", json={"itemName": "b"}, headers={"X-Reason": "night"})
    assert (answered.status_code, answered.json()) == (409, {"closed": "night"})
    # It is asked before the priority, which may rely on it.
    answered = await site.http.post("/api/looking/7", json={"itemName": "b", "pieces": 0}, headers={"X-Reason": "day"})
    assert answered.status_code == 409


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Async-Request-Id"])
async def test_a_repeat_of_what_was_accepted_is_not_judged_again(open_site: OpenSite, header: str) -> None:
    site = await open_site(make_app=looking_app)
    chosen = {header: "01234567-89ab-7def-8123-456789abcdef", "X-Reason": "night"}
    first = await site.http.post("/api/looking/7", json={"itemName": "a"}, headers=chosen)
    assert first.status_code == 202
    site.app.config["OPEN"] = False
    again = await site.http.post("/api/looking/7", json={"itemName": "a"}, headers=chosen)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.json()["id"] == first.json()["id"]
    site.gates.open("looking")
    await site.ended(first.json()["id"])
    ended = await site.http.post("/api/looking/7", json={"itemName": "a"}, headers=chosen)
    assert (ended.status_code, ended.json()["status"]) == (200, "Completed")
    assert len(site.app.extensions["seen"]) == 1
    # A clash is told as one; what was never accepted is judged.
    clash = await site.http.post("/api/looking/7", json={"itemName": "b"}, headers=chosen)
    assert_problem(clash, 422 if header == "Idempotency-Key" else 409)
    assert len(site.app.extensions["seen"]) == 1
    other = {**chosen, header: "01234567-89ab-7def-8123-456789abcdee"}
    for _ in range(2):
        assert (await site.http.post("/api/looking/7", json={"itemName": "a"}, headers=other)).status_code == 409
    assert len(site.app.extensions["seen"]) == 3
    assert await count(site) == 1


async def test_a_refusal_is_not_remembered(open_site: OpenSite) -> None:
    site = await open_site(make_app=looking_app)
    site.app.config["OPEN"] = False
    chosen = {"Idempotency-Key": "k", "X-Reason": "night"}
    assert (await site.http.post("/api/looking/7", json={"itemName": "a"}, headers=chosen)).status_code == 409
    site.app.config["OPEN"] = True
    accepted = await site.http.post("/api/looking/7", json={"itemName": "a"}, headers=chosen)
    assert accepted.status_code == 202 and "idempotency-replayed" not in accepted.headers


async def test_looking_for_a_repeat_needs_the_store_and_says_so(open_site: OpenSite, store_url: str) -> None:
    cut = Cut(open_store(store_url))
    site = await open_site(
        make_app=looking_app, store=cut, config=replace(CONFIG, store_timeout_seconds=0.2, poll_seconds=0.05)
    )
    cut.is_cut = True
    away = await site.http.post("/api/looking/7", json={"itemName": "a"}, headers={"Idempotency-Key": "k"})
    assert_problem(away, 503)
    assert "seen" not in site.app.extensions
    cut.is_cut = False


async def test_someone_elses_job_is_no_repeat(open_site: OpenSite) -> None:
    def caller(request: Any) -> str | None:
        name: str | None = request.headers.get("X-Caller")
        return name

    site = await open_site(make_app=looking_app, identify=caller)
    chosen = {"X-Async-Request-Id": "01234567-89ab-7def-8123-456789abcdef"}
    mine = await site.http.post("/api/looking/7", json={"itemName": "a"}, headers={**chosen, "X-Caller": "me"})
    assert mine.status_code == 202
    yours = await site.http.post("/api/looking/7", json={"itemName": "a"}, headers={**chosen, "X-Caller": "you"})
    assert_problem(yours, 409)


def test_a_hook_that_cannot_be_called_is_refused_at_once() -> None:
    board = Callboard()
    cases: list[tuple[Any, bool, str]] = [
        (5, True, "validate is 5: give a function"),
        (lambda: None, True, r"validate is called with \(body\), and takes \(\)"),
        (lambda a, b: None, True, r"validate is called with \(body\), and takes \(a, b\)"),
        (lambda body: None, False, r"validate is called with \(\), and takes \(body\)"),
    ]
    for hook, takes_body, message in cases:
        with pytest.raises(ConfigError, match=message):
            if takes_body:

                @board.post("/a", name="A", validate=hook)
                async def bodied(job: JobContext, body: int) -> None: ...
            else:

                @board.post("/a", name="A", validate=hook)
                async def bare(job: JobContext) -> None: ...

    with pytest.raises(ConfigError, match=r"responses.status is called with \(answer\), and takes \(\)"):
        Callboard(responses=Responses(status=lambda: None))  # type: ignore[misc, arg-type]
    # What has no signature that can be read is believed.
    Callboard(responses=Responses(error=dict))  # type: ignore[arg-type]
    assert not board.mappings
