"""Many jobs in one request: lines of JSON on a mapped route, over real sockets."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import trio
from msgspec import Raw
from msgspec.structs import replace
from quart import Response, abort, jsonify, request
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Cut, Gates, Site, assert_problem, make_site_app, patient

from callboard.runtime import JobContext
from callboard.runtime.core.store import Store, Write
from callboard.stores import open_store
from callboard.web import Callboard

IDLE = replace(CONFIG, max_concurrent_jobs=0)


class Counting:
    """A store that remembers how many new jobs came in each commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.births: list[int] = []
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, batch: Any) -> Any:
        born = sum(isinstance(item, Write) and item.expected is None for item in batch)
        self.commits += 1
        if born:
            self.births.append(born)
        return await self._store.commit(batch)


async def send(
    site: Site, path: str, lines: Any, *, kind: str = "application/x-ndjson", method: str = "POST", **headers: str
) -> httpx.Response:
    text = lines if isinstance(lines, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await site.http.request(method, path, content=text, headers={"Content-Type": kind, **named})


def rows(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson", answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.content.endswith(b"\n")
    return [json.loads(line) for line in answer.content.splitlines()]


def statuses(answer: httpx.Response) -> list[int]:
    return [row["status"] for row in rows(answer)]


async def count(site: Site) -> int:
    return len((await site.http.get("/jobs?limit=200")).json()["jobs"])


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/jsonl; charset=utf-8", "Application/NDJSON"])
async def test_one_line_is_one_job_and_one_answer(site: Site, kind: str) -> None:
    answer = await send(site, "/api/orders", [{"itemName": f"{n}", "howMany": n} for n in range(20)], kind=kind)
    assert answer.status_code == 202
    assert "location" not in answer.headers and "idempotency-replayed" not in answer.headers
    assert statuses(answer) == [202] * 20
    for number, row in enumerate(rows(answer)):
        assert set(row) == {"status", "job"}
        assert (await site.ended(row["job"]["id"]))["result"] == {"item": f"{number}", "total": number}


async def test_the_documents_are_those_of_the_job(open_site: OpenSite) -> None:
    site = await open_site(config=IDLE)
    answer = await send(site, "/api/orders", [{"itemName": "a"}, {"itemName": "b"}])
    for row in rows(answer):
        assert (await site.http.get(row["job"]["links"]["self"])).json() == row["job"]


async def test_a_request_is_one_commit(open_site: OpenSite, store_url: str) -> None:
    store = Counting(open_store(store_url))
    site = await open_site(store=store, config=IDLE)
    for size in (1, 250, 500):
        before = store.commits
        answer = await send(site, "/api/orders", [{"itemName": "a"}] * size)
        assert statuses(answer) == [202] * size
        assert store.births[-1] == size and store.commits == before + 1
    await send(site, "/api/orders", [{"itemName": "a"}, {}, {"itemName": "b"}])
    assert store.births == [1, 250, 500, 2]


async def test_a_refused_line_harms_no_other(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_bulk_body_bytes=100_000))
    lines = b"\n".join(
        [
            b'{"itemName": "a"}',
            b"{",
            b"   \t",
            b'{"itemName": "b", "howMany": "many"}\r',
            b"",
            b'{"itemName": "\xff"}',
            b"null",
            b'{"itemName": "' + b"x" * 10_000 + b'"}',
            b'  {"itemName": "c"}  \r',
        ]
    )
    answer = await send(site, "/api/orders", lines)
    assert answer.status_code == 207
    assert "retry-after" not in answer.headers
    assert statuses(answer) == [202, 400, 422, 400, 422, 413, 202]
    assert rows(answer)[2]["problem"]["errors"] == [{"pointer": "/howMany", "detail": "Expected `int`, got `str`"}]
    for row in rows(answer):
        if row["status"] >= 400:
            assert set(row) == {"status", "problem"}
            assert row["problem"]["status"] == row["status"] and row["problem"]["instance"] == "/api/orders"
            assert row["problem"]["type"] and row["problem"]["detail"]
    assert await count(site) == 2


async def test_all_lines_refused_is_207_too(site: Site) -> None:
    answer = await send(site, "/api/orders", [{}, 5])
    assert (answer.status_code, statuses(answer)) == (207, [422, 422])
    assert await count(site) == 0


async def test_what_cannot_be_looked_at_is_refused_as_a_whole(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_bulk_jobs=3, max_bulk_body_bytes=20_000))
    order = b'{"itemName": "a"}\n'
    for text, status in [
        (b"", 400),
        (b"\n \r\n\t\n", 400),
        (order * 4, 413),
        (order + b"\n" * 20_000, 413),
        (order[:-1] + b" " * 20_000, 413),
    ]:
        assert_problem(await send(site, "/api/orders", text), status)
        assert await count(site) == 0
    assert "more than 3 jobs" in assert_problem(await send(site, "/api/orders", order * 4), 413)["detail"]
    assert_problem(await send(site, "/api/void", b"{}\n{}"), 415)
    assert_problem(await send(site, "/api/void", b"{}"), 415)
    chosen = {"X_Async_Request_Id": str(uuid.uuid4())}
    assert "Idempotency-Key" in assert_problem(await send(site, "/api/orders", order, **chosen), 400)["detail"]
    assert_problem(await send(site, "/api/orders", order, Idempotency_Key='""'), 400)
    assert_problem(await send(site, "/api/hold/a", b"{}", Job_Delay="1"), 400)
    assert_problem(await send(site, "/api/orders", order, kind="text/x-ndjson"), 415)
    assert await count(site) == 0
    assert (await send(site, "/api/orders", order * 3 + b"\n" * 9)).status_code == 202


async def test_the_bulk_bound_is_its_own_and_counts_chunks(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_bulk_body_bytes=50_000))

    async def chunks(lines: int) -> AsyncIterator[bytes]:
        for _ in range(lines):
            yield b'{"itemName": "' + b"x" * 983 + b'"}\n'

    for body, status in ((chunks(49), 202), (chunks(51), 413), (chunks(3000), 413)):
        headers = {"Content-Type": "application/x-ndjson"}
        answer = await site.http.post("/api/orders", content=body, headers=headers)
        assert answer.status_code == status, answer.text
    assert await count(site) == 49
    assert_problem(await send(site, "/api/orders", b'"' + b"x" * 10_001, kind="application/json"), 413)


async def test_job_headers_hold_for_every_line(open_site: OpenSite) -> None:
    site = await open_site(config=IDLE)
    answer = await send(site, "/api/orders", [{"itemName": "a"}, {"itemName": "b"}], Job_Delay="60", Job_Priority="7")
    for row in rows(answer):
        assert (row["job"]["status"], row["job"]["priority"]) == ("Scheduled", 7)
    assert_problem(await send(site, "/api/orders", [{"itemName": "a"}], Job_Priority="high"), 400)


async def test_prefer_wait_has_no_effect(site: Site) -> None:
    with trio.fail_after(3):
        answer = await send(site, "/api/hold/a", [{}, {}], Prefer="wait=4")
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_a_key_counts_for_each_line_by_its_number(site: Site) -> None:
    lines = [{"a": 1}, {"a": 1}, {"a": 2}]
    first = await send(site, "/api/hold/a", lines, Idempotency_Key="k")
    assert len({row["job"]["id"] for row in rows(first)}) == 3, "two equal lines are two jobs"
    again = await send(site, "/api/hold/a", b'\n\n{"a": 1}\n\n{"a": 1}\n  {"a": 2}', Idempotency_Key="k")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.status_code == 202
    assert [row["replayed"] for row in rows(again)] == [True] * 3
    assert [row["job"] for row in rows(again)] != []
    assert [row["job"]["id"] for row in rows(again)] == [row["job"]["id"] for row in rows(first)]
    # A line that differs is told so, and so are the ones that are new.
    other = await send(site, "/api/hold/a", [{"a": 1}, {"a": 3}, {"a": 2}, {"a": 4}], Idempotency_Key="k")
    assert (other.status_code, statuses(other)) == (207, [202, 422, 202, 202])
    assert rows(other)[1]["problem"]["type"].endswith(":key-reused")
    assert [row.get("replayed") for row in rows(other)] == [True, None, True, None]
    assert "idempotency-replayed" not in other.headers
    # The key of one request is not the key of a line.
    assert (await site.http.post("/api/hold/a", json={"a": 1}, headers={"Idempotency-Key": "k"})).status_code == 202
    assert await count(site) == 5


async def test_a_repeat_shows_ended_jobs_as_they_are(site: Site) -> None:
    lines = [{"itemName": "a"}, {"itemName": "b"}]
    first = await send(site, "/api/orders", lines, Idempotency_Key="k")
    for row in rows(first):
        await site.ended(row["job"]["id"])
    again = await send(site, "/api/orders", lines, Idempotency_Key="k")
    assert (again.status_code, statuses(again)) == (202, [200, 200])
    assert [row["job"]["result"]["item"] for row in rows(again)] == ["a", "b"]


async def test_racing_repeats_make_one_job_for_each_line(site: Site) -> None:
    seen: list[list[str]] = []

    async def post() -> None:
        answer = await send(site, "/api/orders", [{"itemName": f"{n}"} for n in range(10)], Idempotency_Key="race")
        seen.append([row["job"]["id"] for row in rows(answer)])

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(post)
    assert len({tuple(ids) for ids in seen}) == 1
    assert await count(site) == 10


async def test_keys_are_each_callers_own(open_site: OpenSite) -> None:
    site = await open_site(identify=lambda request: request.headers.get("X-Caller"))
    mine = await send(site, "/api/orders", [{"itemName": "a"}], Idempotency_Key="k", X_Caller="me")
    yours = await send(site, "/api/orders", [{"itemName": "a"}], Idempotency_Key="k", X_Caller="you")
    assert rows(mine)[0]["job"]["id"] != rows(yours)[0]["job"]["id"]
    assert "replayed" not in rows(yours)[0]


async def test_a_queue_that_fills_up_midway_refuses_the_rest(open_site: OpenSite) -> None:
    site = await open_site(config=replace(IDLE, max_queue_size=3))
    answer = await send(site, "/api/orders", [{"itemName": f"{n}"} for n in range(5)], Idempotency_Key="k")
    assert (answer.status_code, statuses(answer)) == (207, [202, 202, 202, 429, 429])
    assert int(answer.headers["retry-after"]) >= 1
    assert rows(answer)[3]["problem"]["type"].endswith(":queue-full")
    again = await send(site, "/api/orders", [{"itemName": f"{n}"} for n in range(5)], Idempotency_Key="k")
    assert statuses(again) == [202, 202, 202, 429, 429]
    # Nothing at all is taken: the whole request says so.
    full = await send(site, "/api/orders", [{"itemName": "x"}, {}])
    assert_problem(full, 429)
    assert int(full.headers["retry-after"]) >= 1
    assert 'callboard_refused_total{name="Order"} 5.0' in (await site.http.get("/jobs/metrics")).text


async def test_a_store_that_is_away_is_503_for_the_whole(open_site: OpenSite, store_url: str) -> None:
    cut = Cut(open_store(store_url))
    site = await open_site(store=cut, config=replace(CONFIG, store_timeout_seconds=0.2, poll_seconds=0.05))
    cut.is_cut = True
    away = await send(site, "/api/orders", [{"itemName": "a"}, {}, {"itemName": "b"}])
    assert int(away.headers["retry-after"]) >= 1
    assert "hunter2" not in str(assert_problem(away, 503))
    cut.is_cut = False

    async def accepted() -> bool:
        return (await send(site, "/api/orders", [{"itemName": "a"}])).status_code == 202

    await patient(accepted)
    site.board.runtime.begin_drain()
    assert_problem(await send(site, "/api/orders", [{"itemName": "a"}]), 503)


def hooked_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)
    asked: list[Any] = []
    app.extensions["asked"] = asked

    async def validate(body: dict[str, Any]) -> Any:
        asked.append(body)
        await trio.lowlevel.checkpoint()
        match body.get("do"):
            case "json":
                return {"by": request.path}, 409
            case "indented":
                return Response('{\n "a": 1\n}', status=410, content_type="application/json")
            case "text":
                return "no", 418
            case "empty":
                return Response(b"", status=204)
            case "problem":
                return Response('{"title": "no"}', status=402, content_type="application/problem+json")
            case "wrong":
                return Response("{", status=402, content_type="application/json")
            case "bytes":
                return b"\xff", 403
            case "abort":
                abort(403)
            case "abort with":
                abort(jsonify(mine=True))
            case "bug":
                raise RuntimeError("the password is tiger")
        return None

    @board.put("/api/checked", name="Checked", validate=validate, priority=lambda body: 10 // body.get("over", 1))
    async def checked(job: JobContext, body: dict[str, Any]) -> Raw:
        return Raw(b'{\n"a": 1\r}')

    return app


async def test_the_validation_hook_is_asked_for_each_line(
    open_site: OpenSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = await open_site(make_app=hooked_app)
    what = ["", "json", "indented", "text", "empty", "problem", "wrong", "bytes", "abort", "abort with", "bug"]
    lines = [*({"do": word} for word in what), {"over": 0}, {"do": ""}]
    answer = await send(site, "/api/checked", lines, method="PUT")
    assert answer.status_code == 207
    first, *hooked, aborted, mine, bug, priced, last = rows(answer)
    assert first["status"] == last["status"] == 202
    assert hooked == [
        {"status": 409, "body": {"by": "/api/checked"}},
        {"status": 410, "body": {"a": 1}},
        {"status": 418, "body": "no"},
        {"status": 204, "body": None},
        {"status": 402, "problem": {"title": "no"}},
        {"status": 402, "body": "{"},
        {"status": 403, "body": "\ufffd"},
    ]
    assert (aborted["status"], aborted["problem"]["title"]) == (403, "Forbidden")
    assert mine == {"status": 200, "body": {"mine": True}}
    assert bug["status"] == priced["status"] == bug["problem"]["status"] == 500
    assert "tiger" not in answer.text and "tiger" in caplog.text
    assert "'Checked' gave no priority: integer division" in caplog.text
    assert await count(site) == 2


class Moody(msgspec.Struct):
    mood: str

    def __post_init__(self) -> None:
        if self.mood == "bad":
            raise LookupError("the password is tiger")


def moody_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = QuartTrio("moody")
    board.init_app(app)

    @board.post("/api/moody", name="Moody")
    async def moody(job: JobContext, body: Moody) -> None: ...

    return app


async def test_a_type_that_cannot_judge_one_line_harms_no_other(
    open_site: OpenSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = await open_site(make_app=moody_app)
    answer = await send(site, "/api/moody", [{"mood": "good"}, {"mood": "bad"}, {"mood": "good"}])
    assert statuses(answer) == [202, 500, 202]
    assert "tiger" not in answer.text and "tiger" in caplog.text and "line 2 failed" in caplog.text
    assert await count(site) == 2


async def test_a_repeat_is_answered_before_the_validation(open_site: OpenSite, store_url: str) -> None:
    store = Counting(open_store(store_url))
    site = await open_site(make_app=hooked_app, store=store, config=IDLE)
    asked = site.app.extensions["asked"]
    lines = [{"n": 1}, {"do": "text"}, {"n": 2}]
    first = await send(site, "/api/checked", lines, method="PUT", Idempotency_Key="k")
    assert (statuses(first), len(asked)) == ([202, 418, 202], 3)
    again = await send(site, "/api/checked", lines, method="PUT", Idempotency_Key="k")
    assert statuses(again) == [202, 418, 202]
    assert asked[3:] == [{"do": "text"}], "only what was not accepted is judged again"
    assert await count(site) == 2


async def test_results_with_line_breaks_stay_on_their_line(open_site: OpenSite) -> None:
    site = await open_site(make_app=hooked_app)
    first = await send(site, "/api/checked", [{}, {}], method="PUT", Idempotency_Key="k")
    for row in rows(first):
        await site.ended(row["job"]["id"])
    again = await send(site, "/api/checked", [{}, {}], method="PUT", Idempotency_Key="k")
    assert [row["job"]["result"] for row in rows(again)] == [{"a": 1}, {"a": 1}]


async def test_a_client_that_leaves_makes_no_half_request(open_site: OpenSite, store_url: str) -> None:
    store = Counting(open_store(store_url))
    site = await open_site(store=store, config=IDLE)
    lines = b'{"itemName": "a"}\n' * 100
    head = f"POST /api/orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nContent-Length: {len(lines)}"
    port = int(site.url.rpartition(":")[2])
    for milliseconds in range(0, 60, 6):
        async with await trio.open_tcp_stream("127.0.0.1", port) as line:
            with trio.move_on_after(milliseconds / 1000):
                await line.send_all(head.encode() + b"\r\n\r\n" + lines)
                await line.receive_some()
    await trio.sleep(0.2)
    assert set(store.births) <= {100}
    held = sum(store.births)
    metrics = (await site.http.get("/jobs/metrics")).text
    assert f'callboard_jobs{{queue="default",status="Queued"}} {float(held)}' in metrics


async def test_others_get_their_turns_while_lines_are_read(open_site: OpenSite, store_url: str) -> None:
    turns = 0
    marks: list[int] = []

    class Marking(Counting):
        async def commit(self, batch: Any) -> Any:
            marks.append(turns)
            return await super().commit(batch)

    def identify(request: Any) -> str:
        marks.append(turns)
        return "me"

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    site = await open_site(store=Marking(open_store(store_url)), config=IDLE, identify=identify)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert (await send(site, "/api/orders", [{"itemName": "a"}] * 500)).status_code == 202
        nursery.cancel_scope.cancel()
    # Decoded, judged and prepared: three times over the lines, each in pieces of sixteen.
    assert marks[-1] - marks[0] >= 3 * (500 // 16)
