"""POST, PUT, PATCH and DELETE, with a body and without, and what a mapped route answers to other methods, over real sockets."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, make_site_app
from werkzeug.routing import BaseConverter

from callboard.runtime import JobContext
from callboard.web import Callboard

METHODS = ("POST", "PUT", "PATCH", "DELETE")

each_method = pytest.mark.parametrize("method", METHODS)


class Pair(BaseConverter):
    """Two words, as no handler could get them from the store."""

    regex = "[a-z]+-[a-z]+"

    def to_python(self, value: str) -> list[str]:
        return value.split("-")

    def to_url(self, value: Any) -> str:
        return "-".join(value)


def methods_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)
    app.url_map.converters["pair"] = Pair

    for method in METHODS:

        @board.map(method, "/api/body/<int:number>", name=f"{method} body")  # type: ignore[arg-type]
        async def with_body(job: JobContext, body: dict[str, int]) -> Any:
            return [job.name, job.route_params["number"], body]

        @board.map(method, "/api/bare/<int:number>", name=f"{method} bare")  # type: ignore[arg-type]
        async def without_body(job: JobContext) -> Any:
            return [job.name, job.route_params["number"]]

    @board.put("/api/two", name="Replace")
    async def replace_it(job: JobContext, body: int) -> str:
        return "replaced"

    @board.delete("/api/two", name="Remove")
    async def remove_it(job: JobContext) -> str:
        return "removed"

    @app.get("/api/two")
    async def show() -> str:
        return "shown"

    @board.post("/api/only", name="Only")
    async def only(job: JobContext) -> None: ...

    @board.post(
        "/r/<text>/<string(length=2):two>/<int:whole>/<int(signed=True):below>/<float:part>/<uuid:which>/<any(red,blue):color>/<pair:pair>/<path:rest>",
        name="Route",
    )
    async def route(job: JobContext) -> Any:
        return {name: [type(value).__name__, value] for name, value in job.route_params.items()}

    async def own(error: Exception) -> Any:
        return {"mine": type(error).__name__}, 405

    app.register_error_handler(405, own)
    return app


@pytest.fixture
async def methods(open_site: OpenSite) -> Site:
    return await open_site(make_app=methods_app)


async def result(site: Site, answer: Any) -> Any:
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    return (await site.ended(answer.json()["id"]))["result"]


@each_method
async def test_with_a_body(methods: Site, method: str) -> None:
    answer = await methods.http.request(method, "/api/body/7", json={"a": 1})
    assert await result(methods, answer) == [f"{method} body", 7, {"a": 1}]
    for content, status in ((b"", 400), (b"{", 400), (b'{"a": "b"}', 422), (b'{"a": ' + b"1" * 10_000, 413)):
        headers = {"Content-Type": "application/json"}
        refused = await methods.http.request(method, "/api/body/7", content=content, headers=headers)
        assert_problem(refused, status)
    assert_problem(await methods.http.request(method, "/api/body/7"), 400)
    assert_problem(await methods.http.request(method, "/api/body/7", content=b"{}"), 415)
    assert len((await methods.http.get("/jobs")).json()["jobs"]) == 1


@each_method
async def test_without_a_body(methods: Site, method: str) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for _ in range(0):
            yield b""

    cases: list[dict[str, Any]] = [{}, {"content": b""}, {"content": nothing()}, {"json": {}}]
    for options in cases:
        answer = await methods.http.request(method, "/api/bare/7", **options)
        assert await result(methods, answer) == [f"{method} bare", 7]
    assert_problem(await methods.http.request(method, "/api/bare/7", json={"a": 1}), 400)


@each_method
async def test_many_at_once(methods: Site, method: str) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    answer = await methods.http.request(method, "/api/body/7", content=b'{"a": 1}\n{"a": 2}\n', headers=headers)
    assert answer.status_code == 202
    assert len(answer.content.splitlines()) == 2


@each_method
async def test_a_repeat_by_key_and_by_id(methods: Site, method: str) -> None:
    for headers in ({"Idempotency-Key": "k"}, {"X-Async-Request-Id": str(uuid.uuid4())}):
        cases: list[tuple[str, dict[str, Any]]] = [("/api/body/7", {"json": {"a": 1}}), ("/api/bare/7", {})]
        for path, options in cases:
            first = await methods.http.request(method, path, headers=headers, **options)
            if "bare" in path:
                # The same key came with another path.
                assert_problem(first, 422 if "Idempotency-Key" in headers else 409)
                continue
            again = await methods.http.request(method, path, headers=headers, **options)
            assert again.headers["idempotency-replayed"] == "true"
            assert again.json()["id"] == first.json()["id"]


async def test_one_key_under_two_methods_is_two_requests(methods: Site) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await methods.http.post("/api/body/7", json={"a": 1}, headers=headers)).status_code == 202
    for method in ("PUT", "PATCH", "DELETE"):
        refused = await methods.http.request(method, "/api/body/7", json={"a": 1}, headers=headers)
        assert assert_problem(refused, 422)["type"].endswith(":key-reused")
    lines = {**headers, "Content-Type": "application/x-ndjson"}
    first = await methods.http.post("/api/body/7", content=b'{"a": 1}', headers=lines)
    other = await methods.http.put("/api/body/7", content=b'{"a": 1}', headers=lines)
    assert (first.status_code, other.status_code) == (202, 207)
    assert other.json()["status"] == 422


async def test_two_methods_of_one_route_are_two_handlers(methods: Site) -> None:
    assert await result(methods, await methods.http.put("/api/two", json=1)) == "replaced"
    assert await result(methods, await methods.http.delete("/api/two")) == "removed"
    assert (await methods.http.get("/api/two")).text == "shown"
    job = (await methods.http.delete("/api/two")).json()
    assert job["name"] == "Remove"


async def test_other_methods_are_the_apps_own_business(methods: Site) -> None:
    for method, path, allowed in (
        ("GET", "/api/only", {"POST", "OPTIONS"}),
        ("PUT", "/api/only", {"POST", "OPTIONS"}),
        ("PATCH", "/api/two", {"PUT", "DELETE", "GET", "HEAD", "OPTIONS"}),
        ("BREW", "/api/only", {"POST", "OPTIONS"}),
    ):
        answer = await methods.http.request(method, path)
        assert (answer.status_code, answer.json()) == (405, {"mine": "MethodNotAllowed"}), (method, path)
        asked = await methods.http.options(path)
        assert asked.status_code == 200
        assert {word.strip() for word in asked.headers["allow"].split(",")} == allowed
    assert (await methods.http.head("/api/only")).status_code == 405
    shown = await methods.http.head("/api/two")
    assert (shown.status_code, shown.content) == (200, b"")
    assert (await methods.http.get("/jobs")).json()["jobs"] == []


async def test_a_jobs_document_answers_head(methods: Site) -> None:
    job = (await methods.http.post("/api/only")).json()
    head = await methods.http.head(f"/jobs/{job['id']}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"]


async def test_every_converter_gives_its_type(methods: Site) -> None:
    which = uuid.uuid4()
    path = f"/r/%C3%A4%20%25/ab/{10**30}/-7/2.5/{which}/blue/one-two/a/b%20c"
    answer = await methods.http.post(path)
    assert await result(methods, answer) == {
        "text": ["str", "ä %"],
        "two": ["str", "ab"],
        "whole": ["int", 10**30],
        "below": ["int", -7],
        "part": ["float", 2.5],
        "which": ["UUID", str(which)],
        "color": ["str", "blue"],
        "pair": ["str", "['one', 'two']"],
        "rest": ["str", "a/b c"],
    }


async def test_a_number_that_cannot_be_stored_is_400(open_site: OpenSite) -> None:
    site = await open_site(make_app=methods_app, config=replace(CONFIG, max_concurrent_jobs=0))
    which = uuid.uuid4()
    for whole, part, name in (("9" * 4000, "1.5", "whole"), ("1", "9" * 400 + ".5", "part")):
        answer = await site.http.post(f"/r/a/ab/{whole}/1/{part}/{which}/red/a-b/x")
        assert f"{name} in the path is too large" in assert_problem(answer, 400)["detail"]
    # More digits than Python reads: the app's routing fails, and the server lives on.
    assert (await site.http.post(f"/r/a/ab/{'9' * 5000}/1/1.5/{which}/red/a-b/x")).status_code >= 400
    assert (await site.http.post("/api/only")).status_code == 202
