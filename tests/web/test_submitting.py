"""The contract's "Submitting", row by row, over real sockets."""

import re
import uuid
from typing import Any

import httpx
import pytest
import trio
from msgspec.structs import replace
from quart import Quart, Response, abort, request
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Cut, Gates, Site, assert_problem, make_site_app, patient

from callboard.runtime import JobContext
from callboard.stores import open_store
from callboard.web import Callboard

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
FIELDS = [
    *("id", "name", "queue", "status", "retryCount", "maxRetries", "attempt"),
    *("createdAt", "startedAt", "completedAt", "lastUpdatedAt", "result", "error", "seq", "progress"),
    *("scheduledFor", "cancelRequested", "priority", "links"),
]


async def count(site: Site) -> int:
    return len((await site.http.get("/jobs?limit=200")).json()["jobs"])


async def test_accepted_is_202_with_the_document_and_its_headers(site: Site) -> None:
    answer = await site.http.post("/api/orders", json={"itemName": "nail", "howMany": 7})
    assert answer.status_code == 202
    job = answer.json()
    assert list(job) == FIELDS
    assert uuid.UUID(job["id"]).version == 7
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert answer.headers["async-job-id"] == job["id"]
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["name"], job["queue"], job["status"], job["seq"]) == ("Order", "default", "Queued", 1)
    assert (job["retryCount"], job["maxRetries"], job["attempt"], job["priority"]) == (0, 2, 0, 0)
    assert TIME.fullmatch(job["createdAt"]) and job["createdAt"] == job["lastUpdatedAt"]
    assert [job[name] for name in ("startedAt", "completedAt", "result", "error", "progress", "scheduledFor")] == [
        None
    ] * 6
    assert job["cancelRequested"] is False
    own = f"/jobs/{job['id']}"
    assert job["links"] == {"self": own, **{what: f"{own}/{what}" for what in ("cancel", "events", "stream")}}

    ended = await site.ended(job["id"])
    assert list(ended) == FIELDS
    assert (ended["status"], ended["result"], ended["attempt"]) == ("Completed", {"item": "nail", "total": 7}, 1)
    assert TIME.fullmatch(ended["startedAt"]) and TIME.fullmatch(ended["completedAt"])
    assert ended["links"]["result"] == f"{own}/result"


async def test_the_job_is_in_the_store_before_the_answer(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_concurrent_jobs=0))
    job = await site.submit()
    other = await site.http.get(f"/jobs/{job['id']}")
    assert other.json() == job


async def test_prefer_wait_gives_the_ended_job_with_200(site: Site) -> None:
    answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Prefer": "respond-async, wait=4.5"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait"
    assert answer.json()["status"] == "Completed"
    assert answer.headers["async-job-id"] == answer.json()["id"]


async def test_prefer_wait_that_passes_gives_202(site: Site) -> None:
    answer = await site.http.post("/api/hold/a", json={}, headers={"Prefer": "wait=0.05"})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"


async def test_prefer_wait_is_capped(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_wait_seconds=0.05))
    with trio.fail_after(3):
        answer = await site.http.post("/api/hold/a", json={}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 202


async def test_a_repeated_key_gives_the_same_job(site: Site) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await site.http.post("/api/hold/a?x=1", json={"a": 1}, headers=headers)
    again = await site.http.post("/api/hold/a?x=1", json={"a": 1}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.json()["id"] == first.json()["id"]
    site.gates.open("a")
    await site.ended(first.json()["id"])
    ended = await site.http.post("/api/hold/a?x=1", json={"a": 1}, headers=headers)
    assert ended.status_code == 200
    assert ended.json()["status"] == "Completed"
    assert ended.headers["idempotency-replayed"] == "true"
    assert await count(site) == 1


async def test_a_hundred_racing_requests_of_one_key_make_one_job(site: Site) -> None:
    answers: list[httpx.Response] = []

    async def post() -> None:
        answers.append(await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Idempotency-Key": "race"}))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(post)
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await count(site) == 1


async def test_a_key_with_anything_else_different_is_422(site: Site) -> None:
    headers = {"Idempotency-Key": "k1"}
    await site.http.post("/api/hold/a?x=1", json={"a": 1}, headers=headers)
    others = [("/api/hold/b?x=1", {"a": 1}), ("/api/hold/a?x=2", {"a": 1}), ("/api/hold/a?x=1", {"a": 2})]
    for path, body in others:
        assert_problem(await site.http.post(path, json=body, headers=headers), 422)
    assert await count(site) == 1


async def test_refusals_are_not_remembered_under_a_key(site: Site) -> None:
    headers = {"Idempotency-Key": "k1"}
    assert_problem(await site.http.post("/api/orders", json={"itemName": 5}, headers=headers), 422)
    accepted = await site.http.post("/api/orders", json={"itemName": "x"}, headers=headers)
    assert accepted.status_code == 202
    assert "idempotency-replayed" not in accepted.headers


async def test_a_key_of_no_use_is_400(site: Site) -> None:
    for key in ("", '""', "x" * 256):
        answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Idempotency-Key": key})
        assert_problem(answer, 400)
    assert await count(site) == 0


async def test_a_chosen_id_becomes_the_jobs_id_and_repeats_find_it(site: Site) -> None:
    chosen = str(uuid.uuid4())
    headers = {"X-Async-Request-Id": chosen.upper()}
    first = await site.http.post("/api/hold/a", json={}, headers=headers)
    again = await site.http.post("/api/hold/a", json={}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"] == chosen
    assert again.headers["idempotency-replayed"] == "true"
    assert await count(site) == 1


async def test_a_chosen_id_that_is_taken_is_409_and_says_no_more(site: Site) -> None:
    headers = {"X-Async-Request-Id": str(uuid.uuid4())}
    await site.http.post("/api/hold/a", json={}, headers=headers)
    for path, body in (("/api/hold/b", {}), ("/api/hold/a", {"other": 1})):
        problem = assert_problem(await site.http.post(path, json=body, headers=headers), 409)
        assert "Hold" not in str(problem) and set(problem) == {"type", "title", "status", "detail", "instance"}


async def test_a_chosen_id_that_cannot_be_meant_is_400(site: Site) -> None:
    for headers in [
        {"X-Async-Request-Id": "abc"},
        {"X-Async-Request-Id": "{01234567-89ab-7def-8123-456789abcdef}"},
        {"X-Async-Request-Id": "01234567-89ab-7def-8123-456789abcdef", "Idempotency-Key": "k"},
    ]:
        assert_problem(await site.http.post("/api/orders", json={"itemName": "x"}, headers=headers), 400)
        assert await count(site) == 0


async def test_a_body_that_cannot_be_taken_is_refused(site: Site) -> None:
    for content, media_type, status in [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"itemName": "\xff"}', "application/json", 400),
        (b'{"itemName": "x", "else": "\xff"}', "application/json", 400),
        (b'{"itemName": "x", "else": NaN}', "application/json", 400),
        (b"[" * 5000, "application/json", 400),
        (b'{"itemName": "x"}', "text/plain", 415),
        (b"itemName=x", "application/x-www-form-urlencoded", 415),
        (b'{"itemName": "x"}', None, 415),
        (b'{"itemName": 1}', "application/json", 422),
        (b"{}", "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"itemName": "' + b"x" * 10_000 + b'"}', "application/json", 413),
    ]:
        headers = {} if media_type is None else {"Content-Type": media_type}
        assert_problem(await site.http.post("/api/orders", content=content, headers=headers), status)
        assert await count(site) == 0


async def test_a_body_that_does_not_fit_is_pointed_at_in_wire_names(site: Site) -> None:
    problem = assert_problem(await site.http.post("/api/orders", json={"itemName": "x", "howMany": "many"}), 422)
    assert problem["errors"] == [{"pointer": "/howMany", "detail": "Expected `int`, got `str`"}]


async def test_other_json_media_types_are_json(site: Site) -> None:
    headers = {"Content-Type": "application/vnd.shop+json; charset=utf-8"}
    assert (await site.http.post("/api/orders", content=b'{"itemName": "x"}', headers=headers)).status_code == 202


async def test_a_handler_without_a_body_takes_none(site: Site) -> None:
    assert (await site.http.put("/api/crash")).status_code == 202
    for body in (b"{}", b" {\n} "):
        assert (await site.http.put("/api/crash", content=body)).status_code == 202
    for body in (b'{"a": 1}', b"[]", b"null", b"{", b"{}{}", b" "):
        assert_problem(await site.http.put("/api/crash", content=body), 400)


async def test_no_body_and_an_empty_object_are_the_same_request(site: Site) -> None:
    key = {"Idempotency-Key": "k"}
    first = await site.http.put("/api/crash", headers=key)
    again = await site.http.put("/api/crash", content=b"{}", headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]


@pytest.mark.parametrize("header", ["Job-Delay", "Job-Run-At", "Job-Timeout", "Job-Priority"])
async def test_a_job_header_that_is_given_twice_is_400(site: Site, header: str) -> None:
    value = "2030-01-31T08:00:00Z" if header == "Job-Run-At" else "1"
    answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers=[(header, value), (header, value)])
    assert f"{header} is given more than once" in assert_problem(answer, 400)["detail"]


def priced_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/priced", name="Priced", priority=lambda body: 10 // body)
    async def priced(job: JobContext, request: int) -> None: ...

    @board.post("/api/void priced/<word>", name="Nothing priced", priority=lambda: 1001)
    async def nothing(job: JobContext) -> None: ...

    return app


async def test_a_priority_function_that_fails_is_the_apps_fault_and_logged(
    open_site: OpenSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = await open_site(make_app=priced_app)
    assert (await site.submit("/api/priced", 5))["priority"] == 2
    problem = assert_problem(await site.http.post("/api/priced", json=0), 500)
    assert "division" not in str(problem)
    assert "priority function of handler 'Priced' gave no priority: integer division" in caplog.text
    assert (await site.http.post("/api/void%20priced/x")).status_code == 500
    assert "'Nothing priced' gave no priority: the priority is 1001: give a whole number" in caplog.text


async def test_the_instance_of_a_problem_is_a_uri_reference(open_site: OpenSite) -> None:
    site = await open_site(make_app=priced_app)
    for path in ("/jobs/%C3%A4%20b%25%3F%23", "/jobs/%22%3C%3E/x"):
        assert (await site.http.get(path)).json()["instance"] == path
    assert (await site.http.post("/api/void%20priced/%C3%A4", content=b"1")).json()[
        "instance"
    ] == "/api/void%20priced/%C3%A4"


async def test_a_full_queue_is_429_and_what_was_accepted_is_unharmed(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_concurrent_jobs=0, max_queue_size=2))
    ids = [(await site.submit())["id"] for _ in range(2)]
    refused = await site.http.post("/api/orders", json={"itemName": "x"})
    assert_problem(refused, 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert [(await site.http.get(f"/jobs/{one}")).json()["status"] for one in ids] == ["Queued", "Queued"]


async def test_a_store_that_cannot_be_reached_is_503_and_then_all_goes_on(open_site: OpenSite, store_url: str) -> None:
    cut = Cut(open_store(store_url))
    site = await open_site(store=cut, config=replace(CONFIG, store_timeout_seconds=0.2, poll_seconds=0.05))
    cut.is_cut = True
    for answer in (
        await site.http.post("/api/orders", json={"itemName": "x"}),
        await site.http.get("/jobs/01234567-89ab-7def-8123-456789abcdef"),
        await site.http.get("/jobs/health/ready"),
    ):
        problem = assert_problem(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert "hunter2" not in str(problem) and "10.0.0.7" not in str(problem)
    cut.is_cut = False

    async def ready() -> bool:
        return (await site.http.get("/jobs/health/ready")).status_code == 200

    await patient(ready)
    job = await site.submit()
    assert (await site.ended(job["id"]))["status"] == "Completed"


async def test_while_the_app_drains_a_submission_is_503(site: Site) -> None:
    held = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    site.board.runtime.begin_drain()
    refused = await site.http.post("/api/orders", json={"itemName": "x"})
    assert_problem(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert (await site.http.get(f"/jobs/{held['id']}")).status_code == 200


async def test_job_headers_are_honoured_where_the_mapping_allows_them(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_concurrent_jobs=0))
    delayed = await site.submit(Job_Delay="60.5")
    assert delayed["status"] == "Scheduled"
    assert delayed["scheduledFor"] > delayed["createdAt"]
    planned = await site.submit(Job_Run_At="2026-12-31T08:00:00+01:00", Job_Priority="-5")
    if planned["status"] == "Scheduled":
        assert planned["scheduledFor"] == "2026-12-31T07:00:00.000Z"
    assert planned["priority"] == -5
    assert (
        await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Job-Timeout": "1.5"})
    ).status_code == 202


async def test_job_headers_that_cannot_be_meant_are_400(site: Site) -> None:
    for header, value in [
        ("Job-Delay", "soon"),
        ("Job-Delay", "-1"),
        ("Job-Delay", "inf"),
        ("Job-Delay", "999999999999999"),
        ("Job-Run-At", "tomorrow"),
        ("Job-Run-At", "2030-01-01T00:00:00"),
        ("Job-Run-At", "9999-12-31T23:59:59-23:59"),
        ("Job-Timeout", "0"),
        ("Job-Timeout", "99999"),
        ("Job-Timeout", "nan"),
        ("Job-Priority", "1001"),
        ("Job-Priority", "high"),
    ]:
        assert_problem(await site.http.post("/api/orders", json={"itemName": "x"}, headers={header: value}), 400)
        assert await count(site) == 0


async def test_job_headers_are_400_where_the_mapping_does_not_allow_them(site: Site) -> None:
    for header, value in [
        ("Job-Delay", "1"),
        ("Job-Run-At", "2030-01-01T00:00:00Z"),
        ("Job-Timeout", "1"),
        ("Job-Priority", "1"),
    ]:
        assert_problem(await site.http.post("/api/hold/a", json={}, headers={header: value}), 400)
        assert await count(site) == 0


async def test_a_lowered_timeout_ends_the_attempt(site: Site) -> None:
    job = await site.submit("/api/slow", {}, Job_Timeout="0.05", Prefer="wait=5")
    assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("Failed", "TIMEOUT", True)


async def test_the_handler_sees_the_request_but_no_secrets(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, unstored_headers=("X-Trace",), redact_query=("token",)))
    which = uuid.uuid4()
    secrets = {
        "Authorization": "Bearer s3cret",
        "Cookie": "sid=s3cret",
        "Proxy-Authorization": "s3cret",
        "X-Api-Key": "s3cret",
        "X-Auth-Token": "s3cret",
        "X-Trace": "s3cret",
    }
    answer = await site.http.patch(
        f"/api/seen/7/{which}/2.5/w%20w?a=1&a=2&token=s3cret",
        json=[1],
        headers=[*secrets.items(), ("X-Many", "one"), ("X-Many", "two"), ("User-Agent", "robot"), ("Prefer", "wait=5")],
    )
    assert answer.status_code == 200, answer.text
    seen = answer.json()["result"]
    assert seen["agent"] == "robot"
    assert seen["headers"]["X-Many"] == ["one", "two"]
    assert seen["route"] == {
        "number": ["int", "7"],
        "which": ["UUID", str(which)],
        "ratio": ["float", "2.5"],
        "word": ["str", "w w"],
    }
    assert seen["query"] == {"a": ["1", "2"]}
    assert "s3cret" not in answer.text
    assert "Remote-Addr" not in seen["headers"]


async def test_a_failure_says_what_the_handler_meant_for_the_client_and_nothing_else(site: Site) -> None:
    meant = await site.submit("/api/fail", {"code": "NO_CARD", "message": "give a card"}, Prefer="wait=5")
    assert (meant["status"], meant["retryCount"]) == ("Failed", 0)
    assert meant["error"] == {"code": "NO_CARD", "message": "give a card", "type": "JobFailed", "retryable": False}
    crashed = (await site.http.put("/api/crash", headers={"Prefer": "wait=5"})).json()
    assert (crashed["status"], crashed["error"]["code"], crashed["error"]["type"]) == (
        "Failed",
        "HANDLER_ERROR",
        "ValueError",
    )
    assert "tiger" not in str(crashed)


async def test_a_retryable_failure_is_retried_and_counted(site: Site) -> None:
    job = await site.submit("/api/fail", {"code": "BUSY", "message": "later", "retryable": True}, Prefer="wait=5")
    assert (job["status"], job["retryCount"], job["maxRetries"], job["attempt"]) == ("Failed", 1, 1, 2)


def hooked_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    def validate(body: dict[str, Any]) -> Any:
        if body.get("teapot"):
            return {"i am": request.method}, 418, {"X-Hook": "yes"}
        if body.get("abort"):
            abort(403)
        if body.get("bug"):
            raise RuntimeError("the password is tiger")
        return None

    async def validate_late() -> Any:
        await trio.lowlevel.checkpoint()
        return Response("not today", status=409)

    def outer(view: Any) -> Any:
        async def wrapped(**parameters: Any) -> Any:
            if "X-Blocked" in request.headers:
                return "blocked", 401
            answer = await view(**parameters)
            answer.headers["X-Order"] = answer.headers.get("X-Order", "") + "outer"
            return answer

        return wrapped

    def inner(view: Any) -> Any:
        async def wrapped(**parameters: Any) -> Any:
            answer = await view(**parameters)
            answer.headers["X-Order"] = answer.headers.get("X-Order", "") + "inner "
            return answer

        return wrapped

    @board.post("/api/checked", name="Checked", validate=validate, decorators=[outer, inner])
    async def checked(job: JobContext, request: dict[str, Any]) -> None: ...

    @board.post("/api/never", name="Never", validate=validate_late)
    async def never(job: JobContext) -> None: ...

    return app


async def test_what_the_validation_hook_answers_is_the_answer_and_nothing_is_queued(open_site: OpenSite) -> None:
    site = await open_site(make_app=hooked_app)
    answered = await site.http.post("/api/checked", json={"teapot": 1})
    assert (answered.status_code, answered.json(), answered.headers["x-hook"]) == (418, {"i am": "POST"}, "yes")
    late = await site.http.post("/api/never")
    assert (late.status_code, late.text) == (409, "not today")
    assert_problem(await site.http.post("/api/checked", json={"abort": 1}), 403)
    assert "tiger" not in str(assert_problem(await site.http.post("/api/checked", json={"bug": 1}), 500))
    assert await count(site) == 0
    assert (await site.http.post("/api/checked", json={})).status_code == 202


async def test_decorators_go_round_the_view_the_first_outermost(open_site: OpenSite) -> None:
    site = await open_site(make_app=hooked_app)
    accepted = await site.http.post("/api/checked", json={})
    assert accepted.headers["x-order"] == "inner outer"
    blocked = await site.http.post("/api/checked", json={}, headers={"X-Blocked": "1"})
    assert (blocked.status_code, blocked.text) == (401, "blocked")
    assert await count(site) == 1


def app_with_handlers(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    async def own(error: Exception) -> Any:
        return {"mine": type(error).__name__}, 404

    app.register_error_handler(404, own)
    app.register_error_handler(Exception, own)

    @app.route("/boom")
    async def boom() -> str:
        raise KeyError("boom")

    return app


async def test_the_apps_own_error_handlers_are_left_alone(open_site: OpenSite) -> None:
    site = await open_site(make_app=app_with_handlers)
    assert (await site.http.get("/nowhere")).json() == {"mine": "NotFound"}
    assert (await site.http.get("/boom")).json() == {"mine": "KeyError"}
    assert_problem(await site.http.get("/jobs/nowhere/at/all"), 404)
    assert_problem(await site.http.post("/api/orders", content=b"{"), 415)


async def test_a_client_that_leaves_after_acceptance_loses_nothing(site: Site) -> None:
    with trio.move_on_after(0.2):
        await site.http.post("/api/hold/a", json={}, headers={"Prefer": "wait=5"})
    site.gates.open("a")
    listed = (await site.http.get("/jobs")).json()["jobs"]
    assert len(listed) == 1
    assert (await site.ended(listed[0]["id"]))["result"] == "through a"


def test_quart_alone_is_refused() -> None:
    with pytest.raises(Exception, match="QuartTrio"):
        Callboard(Quart("plain"))  # type: ignore[arg-type]
