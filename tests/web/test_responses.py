"""Answers in the app's own form: for the whole board and for one mapping, however they were given, over real sockets."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from quart import Response, abort, current_app, g, jsonify, request
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Cut, Gates, Site, assert_problem, make_site_app, patient

from callboard.runtime import CallboardError, ConfigError, InvalidPayload, JobContext, StoreUnavailable
from callboard.stores import open_store
from callboard.web import Callboard, ErrorResponse, Responses, StatusResponse, SubmittedResponse

IDLE = replace(CONFIG, max_concurrent_jobs=0)


def submitted(answer: SubmittedResponse) -> dict[str, Any]:
    return {"ticket": answer.document["id"], "again": answer.replayed}


async def status(answer: StatusResponse) -> Any:
    await trio.lowlevel.checkpoint()
    return {"ticket": answer.job.id, "state": answer.document["status"].lower()}


def error(answer: ErrorResponse) -> dict[str, Any]:
    return {"oops": answer.problem["detail"], "kind": type(answer.error).__name__}


MINE = Responses(submitted=submitted, status=status, error=error)


def at_the_constructor(**options: Any) -> Callable[[Callboard, Gates], QuartTrio]:
    """An app that makes its board by ``Callboard(app, ...)``: the one of the fixture is not used."""

    def make_app(board: Callboard, gates: Gates) -> QuartTrio:
        app = QuartTrio("constructed")
        own = Callboard(app, store=board._store, config=board.config, **options)

        @own.post("/api/orders", name="Order")
        async def order(job: JobContext, request: dict[str, Any]) -> None: ...

        return app

    return make_app


def per_mapping(responses: Responses) -> Callable[[Callboard, Gates], QuartTrio]:
    def make_app(board: Callboard, gates: Gates) -> QuartTrio:
        app = make_site_app(board, gates)

        @board.put("/api/own/<gate>", name="Own", responses=responses)
        async def own(job: JobContext, request: dict[str, Any]) -> str:
            await gates.through(job.route_params["gate"])
            return "done"

        return app

    return make_app


async def assert_mine(site: Site, method: str, path: str) -> None:
    accepted = await site.http.request(method, path, json={}, headers={"Idempotency-Key": "k"})
    assert accepted.status_code == 202
    ticket = accepted.json()["ticket"]
    assert accepted.json() == {"ticket": ticket, "again": False}
    assert accepted.headers["location"] == f"/jobs/{ticket}"
    assert accepted.headers["async-job-id"] == ticket
    assert int(accepted.headers["retry-after"]) >= 1
    again = await site.http.request(method, path, json={}, headers={"Idempotency-Key": "k"})
    assert again.json() == {"ticket": ticket, "again": True}
    assert again.headers["idempotency-replayed"] == "true"
    read = await site.http.get(f"/jobs/{ticket}")
    assert (read.status_code, read.json()["ticket"]) == (200, ticket)
    assert read.headers["etag"] and read.headers["cache-control"] == "private, no-cache"
    refused = await site.http.request(method, path, json=5)
    assert (refused.status_code, refused.json()["kind"]) == (422, "InvalidPayload")
    assert refused.headers["content-type"] == "application/problem+json"


async def test_given_to_the_constructor(open_site: OpenSite) -> None:
    await assert_mine(await open_site(make_app=at_the_constructor(responses=MINE)), "POST", "/api/orders")


async def test_given_before_init_app(open_site: OpenSite) -> None:
    await assert_mine(await open_site(responses=MINE), "POST", "/api/hold/a")


async def test_given_to_one_mapping(open_site: OpenSite) -> None:
    site = await open_site(make_app=per_mapping(MINE))
    await assert_mine(site, "PUT", "/api/own/a")
    # And to no other.
    job = await site.submit()
    assert job["name"] == "Order"
    assert (await site.http.get(f"/jobs/{job['id']}")).json()["id"] == job["id"]
    assert_problem(await site.http.post("/api/orders", json=5), 422)
    assert_problem(await site.http.get("/jobs/nowhere"), 404)


async def test_a_mappings_own_wins_one_by_one(open_site: OpenSite) -> None:
    own = Responses(submitted=lambda answer: {"own": answer.job.name})
    site = await open_site(make_app=per_mapping(own), responses=MINE, config=IDLE)
    accepted = await site.http.put("/api/own/a", json={})
    assert accepted.json() == {"own": "Own"}
    read = (await site.http.get(accepted.headers["location"])).json()
    assert read == {"ticket": accepted.headers["async-job-id"], "state": "queued"}
    assert (await site.http.put("/api/own/a", json=5)).json()["kind"] == "InvalidPayload"
    assert "ticket" in (await site.http.post("/api/orders", json={"itemName": "x"})).json()


async def test_status_is_the_form_of_every_document_of_a_job(open_site: OpenSite) -> None:
    site = await open_site(responses=Responses(status=lambda answer: [answer.status, answer.document["status"]]))
    held = (await site.submit("/api/hold/a", {}))["id"]
    await site.gates.arrived("a")
    assert (await site.http.get(f"/jobs/{held}")).json() == [200, "InProgress"]
    canceled = await site.http.post(f"/jobs/{held}/cancel", headers={"Prefer": "wait=5"})
    assert (canceled.status_code, canceled.json()) == (200, [200, "Canceled"])
    assert canceled.headers["preference-applied"] == "wait"
    retried = await site.http.post(f"/jobs/{held}/retry")
    assert (retried.status_code, retried.json()) == (202, [202, "Queued"])
    assert retried.headers["location"] == f"/jobs/{held}" and "retry-after" in retried.headers
    assert (await site.http.delete(f"/jobs/{held}")).json()[1] in ("InProgress", "Canceled")
    # Not of these: they keep the contract's form.
    assert (await site.http.get("/jobs")).json()["jobs"][0]["id"] == held
    async with site.socket(f"/jobs/{held}/stream") as socket:
        assert '"type":"snapshot"' in await socket.get_message()
    assert (await site.http.get("/jobs/health/ready")).json() == {"status": "ready", "role": "both"}


def answering(answered: Any) -> Responses:
    def give(_: Any) -> Any:
        return answered() if callable(answered) else answered

    return Responses(submitted=give, status=give, error=give)


def a_response() -> Response:
    return Response("<p>", status=200, headers={"Retry-After": "77", "ETag": '"mine"', "Location": "/elsewhere"})


@pytest.mark.parametrize(
    ("answered", "status", "kind", "text"),
    [
        (None, None, None, None),
        ("text", None, "text/html; charset=utf-8", "text"),
        (b"bytes", None, "text/html; charset=utf-8", "bytes"),
        ({"a": 1}, None, "json", '{"a":1}\n'),
        ([1], None, "json", "[1]\n"),
        (({"a": 1}, 299), 299, "json", '{"a":1}\n'),
        (({"a": 1}, {"X-Own": "1"}), None, "json", '{"a":1}\n'),
        (("text", None, {"X-Own": "1"}), None, "text/html; charset=utf-8", "text"),
        (("{}", 299, {"X-Own": "1", "Content-Type": "application/x-own"}), 299, "application/x-own", "{}"),
        (({"a": 1}, {"content-type": "application/x-own"}), None, "application/x-own", '{"a":1}\n'),
        (lambda: jsonify(a=1), 200, "application/json", '{"a":1}\n'),
        (lambda: (jsonify(a=1), 299), 299, "application/json", '{"a":1}\n'),
        (lambda: (jsonify(a=1), {"X-Own": "1"}), 200, "application/json", '{"a":1}\n'),
        (a_response, 200, "text/html; charset=utf-8", "<p>"),
        (lambda: (word for word in ("a", "b")), None, "text/html; charset=utf-8", "ab"),
    ],
    ids=range(15),
)
async def test_every_form_that_a_view_may_return(
    open_site: OpenSite, answered: Any, status: int | None, kind: str | None, text: str | None
) -> None:
    site = await open_site(responses=answering(answered), config=IDLE)
    accepted = await site.http.post("/api/orders", json={"itemName": "x"})
    read = await site.http.get(f"/jobs/{accepted.headers['async-job-id']}")
    refused = await site.http.post("/api/orders", json=5)
    for answer, default in ((accepted, 202), (read, 200), (refused, 422)):
        assert answer.status_code == (status or default)
        if text is None:
            assert answer.headers["content-type"].startswith("application/") and len(answer.json()) > 4
        else:
            assert answer.text == text
            expected = kind
            if kind == "json":
                expected = "application/problem+json" if answer is refused else "application/json"
            assert answer.headers["content-type"] == expected
        own = answered is a_response
        if answer is accepted:
            assert answer.headers["location"] == ("/elsewhere" if own else read.request.url.path)
        if answer is read:
            assert answer.headers["etag"] == '"mine"' if own else answer.headers["etag"] != '"mine"'
        if answer is not refused:
            assert answer.headers["retry-after"] == ("77" if own else "1")
    assert refused.headers["cache-control"] == "no-store"


async def test_the_records_say_all_that_is_needed(open_site: OpenSite) -> None:
    seen: list[Any] = []

    def look(answer: Any) -> Any:
        assert current_app.name == "workshop" and request.method == answer.request.method
        g.looked = True
        if isinstance(answer, ErrorResponse):
            answer.problem["detail"] = "changed"
        else:
            answer.document["status"] = "changed"
        answer.headers.clear()
        seen.append(answer)
        return None

    site = await open_site(responses=Responses(submitted=look, status=look, error=look))
    accepted = await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Prefer": "wait=5", "X-A": "b"})
    assert (accepted.status_code, accepted.json()["status"]) == (200, "Completed"), "a copy of its own"
    assert accepted.headers["preference-applied"] == "wait"
    (record,) = seen
    assert isinstance(record, SubmittedResponse)
    assert (record.status, record.replayed, record.request.headers["X-A"]) == (200, False, "b")
    assert (record.job.id, record.job.status) == (accepted.json()["id"], "Completed")
    with pytest.raises(AttributeError):
        record.status = 5  # type: ignore[misc]
    read = await site.http.get(f"/jobs/{record.job.id}")
    assert read.json()["status"] == "Completed"
    assert isinstance(seen[1], StatusResponse)
    refused = await site.http.post("/api/orders", json={"itemName": 5})
    assert_problem(refused, 422)
    wrong = seen[2].error
    assert isinstance(wrong, InvalidPayload) and wrong.errors[0].pointer == "/itemName"
    assert seen[2].problem["errors"] == [{"pointer": "/itemName", "detail": wrong.errors[0].detail}]


async def test_an_answer_without_a_document_has_no_form(open_site: OpenSite) -> None:
    asked: list[StatusResponse] = []
    site = await open_site(responses=Responses(status=asked.append))
    made = await site.http.delete("/api/things/4")
    site.gates.open("create 4")
    path = made.headers["location"]
    document = await site.http.get(f"{path}?wait=5&redirect=false")
    assert (document.json()["status"], len(asked)) == ("Completed", 1)
    unchanged = await site.http.get(f"{path}?redirect=false", headers={"If-None-Match": document.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert (await site.http.get(path)).status_code == 303
    assert (await site.http.get(f"{path}/result")).json() == 4
    assert len(asked) == 1


FACTORIES = ("submitted", "status", "error")


@pytest.mark.parametrize("which", FACTORIES)
@pytest.mark.parametrize("how", ["raises", "nonsense"])
async def test_a_function_that_fails_is_500_and_the_job_is_unharmed(
    open_site: OpenSite, which: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> Any:
        if how == "raises":
            raise RuntimeError("the password is tiger")
        return object()

    site = await open_site(responses=Responses(**{which: broken}))
    accepted = await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Idempotency-Key": "k"})
    if which == "submitted":
        assert_problem(accepted, 500)
    (job,) = (await site.http.get("/jobs")).json()["jobs"]
    read = await site.http.get(f"/jobs/{job['id']}?wait=5")
    if which == "status":
        assert_problem(read, 500)
    refused = await site.http.post("/api/orders", json=5)
    assert_problem(refused, 500 if which == "error" else 422)
    (job,) = (await site.http.get("/jobs")).json()["jobs"]
    assert job["status"] == "Completed"
    assert "tiger" not in accepted.text + read.text + refused.text
    assert ("tiger" if how == "raises" else "TypeError") in caplog.text


async def test_abort_within_a_function_is_its_answer(open_site: OpenSite) -> None:
    def leave(answer: Any) -> Any:
        abort(410 if isinstance(answer, SubmittedResponse) else 451)

    site = await open_site(responses=Responses(submitted=leave, error=leave))
    assert (await site.http.post("/api/orders", json={"itemName": "x"})).status_code == 451
    assert_problem(await site.http.post("/api/orders", json=5), 451)
    assert len((await site.http.get("/jobs")).json()["jobs"]) == 1


def failing_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    def validate() -> Any:
        if "X-Abort" in request.headers:
            abort(403, "not you")
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise RuntimeError("the password is tiger") from inner

    @board.post("/api/failing", name="Failing", validate=validate)
    async def failing(job: JobContext) -> None: ...

    return app


async def test_errors_of_every_kind_and_place(open_site: OpenSite, store_url: str) -> None:
    seen: list[ErrorResponse] = []

    def form(answer: ErrorResponse) -> Any:
        seen.append(answer)
        return {"kind": type(answer.error).__name__}, {"X-Form": "mine"}

    cut = Cut(open_store(store_url))
    config = replace(CONFIG, max_queue_size=1, max_concurrent_jobs=0, store_timeout_seconds=0.2, poll_seconds=0.05)
    site = await open_site(make_app=failing_app, store=cut, config=config, responses=Responses(error=form))
    await site.submit()
    cases: list[tuple[str, str, dict[str, Any], int, str, str | None]] = [
        ("POST", "/api/orders", {"content": b"{"}, 415, "Refusal", "accept"),
        ("POST", "/api/orders", {"json": {"itemName": "x"}}, 429, "QueueFull", "retry-after"),
        ("POST", "/api/failing", {}, 500, "RuntimeError", None),
        ("POST", "/api/failing", {"headers": {"X-Abort": "1"}}, 403, "Forbidden", None),
        ("GET", "/jobs/nonsense", {}, 404, "JobNotFound", None),
        ("GET", "/jobs/a/b/c", {}, 404, "Refusal", None),
        ("PUT", "/jobs", {}, 405, "Refusal", "allow"),
        ("GET", "/jobs?limit=0", {}, 400, "InvalidRequest", None),
    ]
    for method, path, options, status, kind, header in cases:
        answer = await site.http.request(method, path, **options)
        assert (answer.status_code, answer.json()) == (status, {"kind": kind}), path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-form"] == "mine" and answer.headers["cache-control"] == "no-store"
        assert header is None or answer.headers[header]
    cut.is_cut = True
    away = await site.http.get("/jobs/01234567-89ab-7def-8123-456789abcdef")
    assert (away.status_code, away.json(), away.headers["retry-after"]) == (503, {"kind": "StoreUnavailable"}, "5")
    # Probes and handshakes keep the contract's form.
    assert_problem(await site.http.get("/jobs/health/ready"), 503)
    cut.is_cut = False

    async def back() -> bool:
        return (await site.http.get("/jobs/health/ready")).status_code == 200

    await patient(back)
    assert_problem(await site.refused_handshake("/jobs/nonsense/stream"), 404)
    for record in seen:
        assert record.status == record.problem["status"]
        assert "hunter2" not in str(record.problem) and "tiger" not in str(record.problem)
        error = record.error
        assert error.__traceback__ is None and error.__cause__ is None and error.__context__ is None
    assert isinstance(seen[-1].error, StoreUnavailable | CallboardError)


async def test_who_may_not_see_a_job_cannot_tell_it_from_none(open_site: OpenSite) -> None:
    told: list[str] = []

    def form(answer: ErrorResponse) -> Any:
        told.append(str(answer.error).replace(request.path.rpartition("/")[2], "ID"))
        return None

    def caller(request: Any) -> str | None:
        name: str | None = request.headers.get("X-Caller")
        return name

    site = await open_site(identify=caller, responses=Responses(error=form))
    job = await site.submit(X_Caller="me")
    for job_id in (job["id"], "01234567-89ab-7def-8123-456789abcdef"):
        assert (await site.http.get(f"/jobs/{job_id}", headers={"X-Caller": "you"})).status_code == 404
    assert told == ["there is no job ID"] * 2


@pytest.mark.parametrize("wrong", [5, {"submitted": submitted}, Responses(status=5)])  # type: ignore[arg-type]
def test_what_is_no_response_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="responses"):
        Callboard(responses=wrong)
    board = Callboard()
    with pytest.raises(ConfigError, match="handler 'A' on POST '/a': responses"):

        @board.post("/a", name="A", responses=wrong)
        async def handler(job: JobContext) -> None: ...

    assert not board.mappings and not len(board.handlers)
