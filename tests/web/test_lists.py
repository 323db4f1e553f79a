"""Lists: what a page holds while jobs arrive, go and change, for callers who see all of them, some or none."""

import uuid
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Site, assert_problem

from callboard.runtime import Job
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Page
from callboard.web import pages
from callboard.web.pages import full_page


def name_of(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


async def page(site: Site, query: str, **headers: str) -> tuple[list[str], str | None]:
    answer = await site.http.get(
        f"/jobs?{query}", headers={name.replace("_", "-"): text for name, text in headers.items()}
    )
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"jobs", "next"}
    return [job["id"] for job in answer.json()["jobs"]], answer.json()["next"]


def after(cursor: str | None) -> str:
    return "" if cursor is None else f"&cursor={cursor}"


async def test_pages_neither_skip_nor_repeat_while_jobs_arrive_go_and_change(site: Site) -> None:
    ids = [(await site.submit("/api/orders", {"itemName": "x"}, Job_Delay="600"))["id"] for _ in range(12)]
    ended = [(await site.submit(Prefer="wait=5"))["id"] for _ in range(8)]
    order = (ids + ended)[::-1]
    seen, cursor = await page(site, "limit=4")
    gone = {seen[0], seen[-1], order[4], order[7]}
    for job_id in gone:
        assert (await site.http.delete(f"/jobs/{job_id}?purge=true")).status_code == 204
    for job_id in (ids[0], ids[5]):
        assert (await site.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
    assert (await site.http.post(f"/jobs/{ids[5]}/retry")).status_code == 202
    await site.submit()
    while cursor is not None:
        more, cursor = await page(site, f"limit=4{after(cursor)}")
        seen += more
        await site.submit()
    assert seen == [job_id for job_id in order if job_id not in gone or job_id in seen[:4]]


async def test_a_cursor_of_a_job_that_is_purged_still_leads_on(site: Site) -> None:
    ids = [(await site.submit(Prefer="wait=5"))["id"] for _ in range(3)]
    first, cursor = await page(site, "limit=1")
    for job_id in (ids[2], ids[1]):
        await site.http.delete(f"/jobs/{job_id}?purge=true")
    assert (first, await page(site, f"limit=1{after(cursor)}")) == ([ids[2]], ([ids[0]], None))


async def test_a_job_that_leaves_and_rejoins_a_status_keeps_its_place(site: Site) -> None:
    fault = {"code": "NO", "message": "no"}
    ids = [(await site.submit("/api/fail", fault, Prefer="wait=5"))["id"] for _ in range(4)]
    seen, cursor = await page(site, "status=Failed&limit=2")
    for job_id in (ids[3], ids[0]):
        assert (await site.http.post(f"/jobs/{job_id}/retry")).status_code == 202
        await site.ended(job_id)
    more, end = await page(site, f"status=Failed&limit=2{after(cursor)}")
    assert (seen + more, end) == (ids[::-1], None)


async def mixed(site: Site, count: int) -> list[str]:
    """Submit ``count`` jobs of ann's, three of bob's before each; ann's, newest first."""
    own: list[str] = []
    for _ in range(count):
        for name in ("bob", "bob", "bob", "ann"):
            answer = await site.http.post("/api/void", headers={"X-User": name})
            assert answer.status_code == 202
        own.insert(0, answer.json()["id"])
    return own


def own_only(request: Any, action: str, job: Job | None) -> bool:
    return job is None or job.owner == name_of(request)


async def test_a_page_is_full_where_authorize_hides_jobs(open_site: OpenSite) -> None:
    names: dict[str, str] = {}

    async def authorize(request: Any, action: str, job: Job | None) -> bool:
        await trio.lowlevel.checkpoint()
        return job is None or action != "read" or names.get(job.id) == name_of(request)

    # Without identify no job has an owner: only the hook knows.
    site = await open_site(authorize=authorize)
    own: list[str] = []
    for number in range(20):
        name = "ann" if number % 7 in (2, 3, 4) else "bob"
        job_id = (await site.http.post("/api/void", headers={"X-User": name})).json()["id"]
        names[job_id] = name
        own[:0] = [job_id] if name == "ann" else []
    assert len(own) == 9
    for limit in range(1, 10):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            some, cursor = await page(site, f"limit={limit}{after(cursor)}", X_User="ann")
            assert len(some) == min(limit, len(own) - len(seen)), "every page but the last is full"
            seen += some
            if cursor is None:
                break
        assert seen == own
    seen, cursor = await page(site, "limit=4", X_User="ann")
    for job_id in (own[1], own[4]):
        await site.http.delete(f"/jobs/{job_id}?purge=true", headers={"X-User": "ann"})
    await site.http.post("/api/void", headers={"X-User": "bob"})
    assert seen + (await page(site, f"limit=4{after(cursor)}", X_User="ann"))[0] == own[:4] + own[5:9]
    assert await page(site, "limit=50", X_User="nobody") == ([], None)


async def test_reading_on_is_bounded_and_says_where_to_go_on(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_LOOKED_AT", 6)
    asked: list[str] = []

    def authorize(request: Any, action: str, job: Job | None) -> bool:
        asked.append(action)
        return job is None or job.name == "Order"

    site = await open_site(authorize=authorize)
    visible = (await site.submit())["id"]
    for _ in range(15):
        await site.http.post("/api/void")
    cursor, lengths = None, []
    while True:
        asked.clear()
        seen, cursor = await page(site, f"limit=3{after(cursor)}")
        lengths.append(len(seen))
        assert len(asked) <= 1 + 6 + 3
        if cursor is None:
            break
    assert seen == [visible]
    assert lengths == [0, 0, 1]


async def test_an_owners_pages_hold_his_jobs_only_whosever_cursor_it_is(open_site: OpenSite) -> None:
    site = await open_site(identify=name_of)
    own = await mixed(site, 3)
    assert await page(site, "limit=3", X_User="ann") == (own, None)
    _, cursor = await page(site, "limit=1", X_User="bob")
    seen, _ = await page(site, f"limit=50{after(cursor)}", X_User="ann")
    assert set(seen) < set(own)


async def test_with_both_hooks_the_list_is_the_callers_own(open_site: OpenSite) -> None:
    site = await open_site(identify=name_of, authorize=lambda *_: True)
    own = await mixed(site, 2)
    assert await page(site, "limit=2", X_User="ann") == (own, None)
    assert len((await page(site, "limit=50"))[0]) == 8, "who has no name is bound to none: authorize alone decides"


async def test_what_is_no_list_is_400_and_what_is_unknown_is_passed_over(site: Site) -> None:
    job = await site.submit()
    for query in [
        *("status=", "status=queued", "status=Queued,Failed", "status=Queued&status=x"),
        *(
            "limit=",
            "limit=0",
            "limit=201",
            "limit=-1",
            "limit=1.0",
            "limit=%D9%A3",
            "limit=1&limit=2",
            "limit=" + "9" * 30,
        ),
        *("cursor=", "cursor=b1", "cursor=a&cursor=b", "cursor=%00", "cursor=%F0%9F%92%A9", "cursor=" + "A" * 5000),
        *("name=a&name=b", "queue=a&queue=b"),
    ]:
        assert_problem(await site.http.get(f"/jobs?{query}"), 400)
    for query in (
        "_=1733",
        "utm=x&limit=200",
        "wait=5",
        "status=Queued&status=Queued&status=Completed&status=InProgress",
    ):
        assert (await page(site, query))[0] == [job["id"]]
    for query in ("name=", "queue=", "name=%00", "name=%ED%A0%80", "queue=%27%3B--"):
        assert await page(site, query) == ([], None)


async def test_a_cursor_holds_in_a_second_process_and_after_a_restart(open_site: OpenSite, store_url: str) -> None:
    if store_url == "memory://":
        pytest.skip("nothing of it outlives its process")
    config = replace(CONFIG, max_concurrent_jobs=0)
    site, other = await open_site(config=config), await open_site(config=config)
    ids = [(await site.submit())["id"] for _ in range(4)]
    _, cursor = await page(site, "limit=2")
    assert await page(other, f"limit=2{after(cursor)}") == (ids[1::-1], None)


def record(number: int) -> Job:
    return Job(id=str(uuid.UUID(int=number)), serial=number, name="n", status=Status.QUEUED, created_ms=0, updated_ms=0)


@pytest.mark.parametrize("purged", [frozenset(), frozenset({7}), frozenset({8, 7}), frozenset({10, 9, 8, 6, 5})])
async def test_a_page_that_is_read_again_skips_nothing_although_jobs_were_purged_between(
    purged: frozenset[int],
) -> None:
    """Jobs 10..1, of which 8, 7, 5, 3 and 1 may be read; what is ``purged`` goes after the first read."""
    there, visible, seen = set(range(1, 11)), {8, 7, 5, 3, 1}, []

    async def read(cursor: str | None, limit: int) -> Page:
        below = 99 if cursor is None else int(cursor)
        found = sorted((number for number in there if number < below), reverse=True)
        page = Page(tuple(map(record, found[:limit])), str(found[limit - 1]) if len(found) > limit else None)
        there.difference_update(purged)
        return page

    async def may_read(job: Job) -> bool:
        return job.serial in visible

    cursor = None
    while True:
        page = await full_page(read, may_read, cursor=cursor, limit=2)
        assert len(page.jobs) == 2 or page.next is None
        seen += [job.serial for job in page.jobs]
        cursor = page.next
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert set(seen) >= visible - purged
