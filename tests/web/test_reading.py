"""The contract's "Reading", row by row, over real sockets."""

import email.utils
import uuid
from typing import Any

import httpx
import pytest
import trio
from msgspec.structs import replace
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, make_site_app

from callboard.runtime import JobContext
from callboard.web import Callboard

UNKNOWN = "01234567-89ab-7def-8123-456789abcdef"


async def test_a_living_job_has_a_tag_and_says_when_to_ask_again(site: Site) -> None:
    job = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    answer = await site.http.get(f"/jobs/{job['id']}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "InProgress" and answer.json()["attempt"] == 1
    assert answer.headers["etag"].startswith('"')
    assert answer.headers["cache-control"] == "private, no-cache"
    assert int(answer.headers["retry-after"]) >= 1
    assert "expires" not in answer.headers


async def test_an_ended_job_says_when_it_expires(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    answer = await site.http.get(f"/jobs/{job['id']}")
    assert "retry-after" not in answer.headers
    kept = email.utils.parsedate_to_datetime(answer.headers["expires"]).timestamp()
    ended = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
    assert abs(kept - ended - 604_800) < 30


async def test_without_a_retention_nothing_expires(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, retention_seconds=None))
    job = await site.submit(Prefer="wait=5")
    assert "expires" not in (await site.http.get(f"/jobs/{job['id']}")).headers


async def test_the_tag_fits_until_the_job_changes(site: Site) -> None:
    job = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    path = f"/jobs/{job['id']}"
    tag = (await site.http.get(path)).headers["etag"]
    same = await site.http.get(path, headers={"If-None-Match": f'"other", {tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    site.gates.open("a")
    await site.ended(job["id"])
    changed = await site.http.get(path, headers={"If-None-Match": tag})
    assert changed.status_code == 200 and changed.headers["etag"] != tag


async def test_a_tag_never_fits_another_job_of_the_same_id(site: Site) -> None:
    chosen = str(uuid.uuid4())
    tags = []
    for _ in range(2):
        await site.submit("/api/orders", {"itemName": "x"}, X_Async_Request_Id=chosen, Prefer="wait=5")
        answer = await site.http.get(f"/jobs/{chosen}")
        tags.append((answer.json()["seq"], answer.headers["etag"]))
        assert (await site.http.delete(f"/jobs/{chosen}?purge=true")).status_code == 204
    assert tags[0][0] == tags[1][0]
    assert tags[0][1] != tags[1][1]


@pytest.mark.parametrize("how", ["query", "header"])
async def test_a_long_poll_is_held_until_the_job_ends(site: Site, how: str) -> None:
    job = await site.submit("/api/hold/a", {})
    answers: list[httpx.Response] = []

    async def poll() -> None:
        if how == "query":
            answers.append(await site.http.get(f"/jobs/{job['id']}?wait=5"))
        else:
            answers.append(await site.http.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=5"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await site.gates.arrived("a")
        await trio.sleep(0.1)
        assert answers == []
        site.gates.open("a")
    assert (answers[0].status_code, answers[0].json()["status"]) == (200, "Completed")


async def test_a_long_poll_that_passes_gives_the_document_as_it_is(site: Site) -> None:
    job = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    answer = await site.http.get(f"/jobs/{job['id']}?wait=0.1")
    assert (answer.status_code, answer.json()["status"]) == (200, "InProgress")


async def test_a_long_poll_is_capped(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_wait_seconds=0.05))
    job = await site.submit("/api/hold/a", {})
    with trio.fail_after(3):
        assert (await site.http.get(f"/jobs/{job['id']}?wait=60")).status_code == 200
        assert (await site.http.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=60"})).status_code == 200


async def test_with_a_tag_a_long_poll_is_held_until_it_no_longer_fits(site: Site) -> None:
    job = await site.submit("/api/steps/s", 2)
    await site.gates.arrived("s 0")
    await trio.sleep(0.1)
    path = f"/jobs/{job['id']}"
    tag = (await site.http.get(path)).headers["etag"]
    passed = await site.http.get(f"{path}?wait=0.1", headers={"If-None-Match": tag})
    assert (passed.status_code, passed.headers["etag"]) == (304, tag)
    answers: list[httpx.Response] = []

    async def poll() -> None:
        answers.append(await site.http.get(f"{path}?wait=5", headers={"If-None-Match": tag}))

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            await trio.sleep(0.05)
            site.gates.open("s 0")
    assert (answers[0].status_code, answers[0].json()["status"]) == (200, "InProgress")
    with trio.fail_after(1):
        old = await site.http.get(f"{path}?wait=5", headers={"If-None-Match": tag})
    assert old.status_code == 200


async def test_waits_are_answered_at_once_when_the_app_drains(site: Site) -> None:
    job = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    tag = (await site.http.get(f"/jobs/{job['id']}")).headers["etag"]
    statuses: list[int] = []

    async def poll(headers: dict[str, str]) -> None:
        statuses.append((await site.http.get(f"/jobs/{job['id']}?wait=5", headers=headers)).status_code)

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll, {})
            nursery.start_soon(poll, {"If-None-Match": tag})
            await trio.sleep(0.1)
            assert statuses == []
            site.board.runtime.begin_drain()
    assert sorted(statuses) == [200, 304]


async def test_parameters_that_cannot_be_meant_are_400(site: Site) -> None:
    for query in ["wait=soon", "wait=-1", "wait=inf", "redirect=perhaps"]:
        job = await site.submit(Prefer="wait=5")
        assert_problem(await site.http.get(f"/jobs/{job['id']}?{query}"), 400)


async def test_redirect_leads_to_the_created_resource(site: Site) -> None:
    answer = await site.http.request("DELETE", "/api/things/7")
    path = answer.headers["location"]
    await site.gates.arrived("create 7")
    living = await site.http.get(f"{path}?redirect=true")
    assert (living.status_code, living.json()["status"]) == (200, "InProgress")
    site.gates.open("create 7")
    document = (await site.http.get(f"{path}?wait=5&redirect=false")).json()
    assert document["links"]["location"] == "/things/7"
    for query in ("", "?redirect=true"):
        seen = await site.http.get(path + query)
        assert (seen.status_code, seen.headers["location"]) == (303, "/things/7")
    assert (await site.http.get(f"{path}?redirect=false")).status_code == 200


def places_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/places", name="Place", location=lambda job, result: result, redirect=True)
    async def place(job: JobContext, request: str) -> str:
        return request

    return app


async def test_a_location_of_any_text_is_a_header_that_can_be_sent(open_site: OpenSite) -> None:
    site = await open_site(make_app=places_app)
    for text, seen in [("/ä\r\nX-Evil: 1", "/%C3%A4%0D%0AX-Evil:%201"), ("", None)]:
        job = await site.submit("/api/places", text, Prefer="wait=5")
        assert job["links"].get("location") == seen
        answer = await site.http.get(job["links"]["self"])
        assert (answer.status_code, answer.headers.get("location")) == (303 if seen else 200, seen)
        assert "x-evil" not in answer.headers


async def test_without_a_location_redirect_gives_the_document(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    answer = await site.http.get(f"/jobs/{job['id']}?redirect=true")
    assert (answer.status_code, answer.json()["result"]) == (200, {"item": "x", "total": 1})


async def test_the_result_alone(site: Site) -> None:
    done = await site.submit(Prefer="wait=5")
    answer = await site.http.get(f"/jobs/{done['id']}/result")
    assert (answer.status_code, answer.json()) == (200, {"item": "x", "total": 1})
    living = await site.submit("/api/hold/a", {})
    early = await site.http.get(f"/jobs/{living['id']}/result")
    assert_problem(early, 409)
    assert int(early.headers["retry-after"]) >= 1
    failed = await site.submit("/api/fail", {"code": "NO", "message": "no"}, Prefer="wait=5")
    problem = assert_problem(await site.http.get(f"/jobs/{failed['id']}/result"), 422)
    assert problem["error"] == failed["error"]
    await site.http.post(f"/jobs/{living['id']}/cancel", headers={"Prefer": "wait=5"})
    assert_problem(await site.http.get(f"/jobs/{living['id']}/result"), 410)


async def test_a_result_of_null_is_a_result(site: Site) -> None:
    answer = await site.http.post("/api/void", headers={"Prefer": "wait=5"})
    assert answer.json()["status"] == "Completed"
    result = await site.http.get(f"/jobs/{answer.json()['id']}/result")
    assert (result.status_code, result.content) == (200, b"null")


async def page_ids(site: Site, query: str) -> list[str]:
    return [job["id"] for job in (await site.http.get(f"/jobs?{query}")).json()["jobs"]]


async def test_the_list_is_newest_first_and_pages_neither_skip_nor_repeat_while_jobs_arrive(site: Site) -> None:
    ids = [(await site.submit())["id"] for _ in range(7)]
    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = (await site.http.get("/jobs?limit=3" + (f"&cursor={cursor}" if cursor else ""))).json()
        assert set(page) == {"jobs", "next"}
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        await site.submit()
    assert seen == ids[::-1]


async def test_the_list_is_filtered(site: Site) -> None:
    done = (await site.submit(Prefer="wait=5"))["id"]
    failed = (await site.submit("/api/fail", {"code": "NO", "message": "no"}, Prefer="wait=5"))["id"]
    held = (await site.submit("/api/hold/a", {}))["id"]
    await site.gates.arrived("a")
    assert await page_ids(site, "") == [held, failed, done]
    assert await page_ids(site, "status=Completed") == [done]
    assert await page_ids(site, "status=Completed&status=InProgress") == [held, done]
    assert await page_ids(site, "name=Fail") == [failed]
    assert await page_ids(site, "name=Fail&status=Completed") == []
    assert await page_ids(site, "queue=default&limit=1") == [held]
    assert await page_ids(site, "queue=other") == []
    listed: list[dict[str, Any]] = (await site.http.get("/jobs")).json()["jobs"]
    assert listed[2] == (await site.http.get(f"/jobs/{done}")).json()


async def test_a_list_that_cannot_be_meant_is_400(site: Site) -> None:
    for query in [
        "status=done",
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=x",
        "cursor=",
        "cursor=b2",
        "status=Completed&status=",
    ]:
        assert_problem(await site.http.get(f"/jobs?{query}"), 400)


async def test_an_unknown_or_malformed_id_is_404(site: Site) -> None:
    for job_id in [UNKNOWN, "x", "%00", "01234567-89AB-7DEF-8123-456789ABCDE", "\N{SNOWMAN}"]:
        for method, suffix in [
            ("GET", ""),
            ("GET", "/result"),
            ("POST", "/cancel"),
            ("POST", "/retry"),
            ("DELETE", ""),
            ("DELETE", "?purge=true"),
        ]:
            answer = await site.http.request(method, f"/jobs/{job_id}{suffix}")
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"


async def test_an_id_is_found_in_upper_case_too(site: Site) -> None:
    job = await site.submit()
    answer = await site.http.get(f"/jobs/{job['id'].upper()}")
    assert answer.json()["id"] == job["id"]


async def test_references_honour_the_prefix_and_a_proxys_root_path(open_site: OpenSite) -> None:
    site = await open_site(root_path="/shop", prefix="/work/jobs/")
    answer = await site.http.request("DELETE", "/shop/api/things/3")
    assert answer.status_code == 202, answer.text
    own = f"/shop/work/jobs/{answer.json()['id']}"
    assert answer.headers["location"] == answer.json()["links"]["self"] == own
    site.gates.open("create 3")
    document = (await site.http.get(f"{own}?wait=5&redirect=false")).json()
    assert document["links"]["result"] == f"{own}/result"
    assert document["links"]["location"] == "/shop/things/3"
    assert (await site.http.get(own)).headers["location"] == "/shop/things/3"
    problem = (await site.http.get("/shop/work/jobs/none")).json()
    assert problem["instance"] == "/shop/work/jobs/none"


async def test_answers_without_a_body_say_nothing_about_one(site: Site) -> None:
    """A length with 204, or another with 304 than that of the 200, is forbidden. Source: RFC 9110, section 8.6."""
    job_id = (await site.submit())["id"]
    path = f"/jobs/{job_id}"
    tag = (await site.http.get(f"{path}?wait=5")).headers["etag"]
    bare = [
        await site.http.get(path, headers={"If-None-Match": tag}),
        await site.http.get(f"{path}/events?after=99"),
        await site.http.options(path),
        await site.http.delete(f"{path}?purge=true"),
    ]
    assert [answer.status_code for answer in bare] == [304, 204, 204, 204]
    for answer in bare:
        assert not {"content-length", "content-type", "transfer-encoding"} & {*answer.headers}, answer.headers
    assert (await site.http.get(path)).status_code == 404
