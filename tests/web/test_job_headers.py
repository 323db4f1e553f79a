"""``Job-Delay``, ``Job-Run-At``, ``Job-Timeout``, ``Job-Priority`` and ``Prefer``: every bound and every refusal."""

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import trio
from msgspec.structs import replace
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, make_site_app

from callboard.runtime import JobContext
from callboard.stores.memory import MemoryStore
from callboard.web import Callboard

YEAR = 366 * 24 * 3600


async def order(site: Site, *headers: tuple[str, str]) -> httpx.Response:
    sent = [(name.encode(), text.encode()) for name, text in headers]
    return await site.http.post("/api/orders", json={"itemName": "x"}, headers=sent)


async def accepted(site: Site, *headers: tuple[str, str]) -> dict[str, Any]:
    answer = await order(site, *headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def at(seconds: float, zone: timezone = UTC) -> str:
    return (datetime.now(zone) + timedelta(seconds=seconds)).isoformat()


@pytest.fixture
async def still(open_site: OpenSite) -> Site:
    """A site that runs nothing."""
    return await open_site(config=replace(CONFIG, max_concurrent_jobs=0))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_delay_is_counted_from_the_acceptance(still: Site) -> None:
    for text, seconds in [("0.001", 0.001), ("1e-3", 0.001), ("1.5", 1.5), ("60", 60), ("007", 7), (str(YEAR), YEAR)]:
        job = await accepted(still, ("Job-Delay", text))
        assert job["status"] == "Scheduled"
        waits = moment(job["scheduledFor"]) - moment(job["createdAt"])
        assert waits == timedelta(seconds=seconds), text
    for text in ("0", "0.0", "0.000"):
        job = await accepted(still, ("Job-Delay", text))
        assert (job["status"], job["scheduledFor"]) == ("Queued", None)
    for text in [
        "",
        "-0",
        "+1",
        "1e",
        ".5",
        "5.",
        "1,5",
        "0x10",
        "NaN",
        "Infinity",
        "٣",
        "1 2",
        str(YEAR + 1),
        "9" * 400,
    ]:
        problem = assert_problem(await order(still, ("Job-Delay", text)), 400)
        assert "Traceback" not in problem["detail"]


async def test_a_time_to_run_at_may_have_any_offset_and_any_fraction(still: Site) -> None:
    for zone in (UTC, timezone(timedelta(hours=14)), timezone(-timedelta(hours=11, minutes=30))):
        job = await accepted(still, ("Job-Run-At", at(3600, zone)))
        assert job["status"] == "Scheduled"
        assert abs((moment(job["scheduledFor"]) - moment(job["createdAt"])).total_seconds() - 3600) < 5
    year = datetime.now(UTC).year + 1
    if moment(f"{year}-01-01T00:00:00Z") - datetime.now(UTC) > timedelta(minutes=1):
        for text, seen in [
            (f"{year}-01-01T00:00:00.1239Z", f"{year}-01-01T00:00:00.123Z"),
            (f"{year}-01-01t02:00:00z", f"{year}-01-01T02:00:00.000Z"),
            (f"{year}-01-01T01:00:00-00:00", f"{year}-01-01T01:00:00.000Z"),
            (f"{year - 1}-12-31T23:59:60Z", f"{year}-01-01T00:00:00.000Z"),
            (f"{year}-01-01T00:59:60.5+01:00", f"{year}-01-01T00:00:00.500Z"),
        ]:
            assert (await accepted(still, ("Job-Run-At", text)))["scheduledFor"] == seen


async def test_a_time_that_has_passed_means_now(still: Site) -> None:
    for text in (at(-1), "1970-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "1969-12-31T23:59:59.999-00:01"):
        job = await accepted(still, ("Job-Run-At", text))
        assert (job["status"], job["scheduledFor"]) == ("Queued", None)


async def test_a_time_that_cannot_be_meant_is_400(still: Site) -> None:
    for text in [
        *("", "now", "1793620800", "2027-02-29T00:00:00Z", "2027-01-01", "2027-01-01T00:00Z", "2027-01-01T00:00:00"),
        *("2027-01-01T24:00:00Z", "2027-01-01T00:60:00Z", "2027-01-01T00:00:61Z", "2027-01-01T12:00:60Z"),
        *("2027-01-01T00:00:00+24:00", "2027-01-01T00:00:00+01:60", "2027-01-01T00:00:00+1:00", "0000-01-01T00:00:00Z"),
        *("9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:60Z", "10000-01-01T00:00:00Z"),
        *(at(YEAR + 60), "Thu, 01 Jan 2027 00:00:00 GMT", "2027-W01-1T00:00:00Z", "2027-01-01T00:00:00.Z"),
    ]:
        assert_problem(await order(still, ("Job-Run-At", text)), 400)
    assert (await still.http.get("/jobs")).json()["jobs"] == []


async def test_a_scheduled_job_runs_when_it_is_due_and_says_how_long_to_wait(site: Site) -> None:
    later = await order(site, ("Job-Delay", "100.2"))
    assert 99 <= int(later.headers["retry-after"]) <= 101
    read = await site.http.get(later.headers["location"])
    assert 99 <= int(read.headers["retry-after"]) <= 101
    soon = await accepted(site, ("Job-Delay", "0.3"))
    ended = await site.ended(soon["id"])
    assert (ended["status"], ended["scheduledFor"]) == ("Completed", None)
    assert moment(ended["startedAt"]) >= moment(soon["scheduledFor"])


@pytest.mark.parametrize("off_seconds", [60, -60])
async def test_how_long_to_wait_goes_by_the_store_s_clock(open_site: OpenSite, off_seconds: int) -> None:
    """This host's may be wrong."""
    store = MemoryStore(clock=lambda: round((time.time() + off_seconds) * 1000))
    site = await open_site(store=store)
    later = await order(site, ("Job-Delay", "100.2"))
    assert 99 <= int(later.headers["retry-after"]) <= 101
    read = await site.http.get(later.headers["location"] + "/result")
    assert 99 <= int(read.headers["retry-after"]) <= 101


async def test_a_timeout_may_only_lower_the_handlers_own(still: Site) -> None:
    for text in ("0.001", "1", str(int(CONFIG.timeout_seconds or 0))):
        assert (await order(still, ("Job-Timeout", text))).status_code == 202
    for text in ("", "0", "0.0", "-1", "1800.001", "1e", "inf", "9" * 400, "ten"):
        assert_problem(await order(still, ("Job-Timeout", text)), 400)


async def test_without_a_timeout_of_its_own_any_that_a_clock_can_hold_will_do(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, timeout_seconds=None, max_concurrent_jobs=0))
    assert (await order(site, ("Job-Timeout", "999999999"))).status_code == 202
    for text in ("1000000001", "9" * 299, "9" * 400):
        assert_problem(await order(site, ("Job-Timeout", text)), 400)


async def test_a_priority_lies_between_its_bounds(still: Site) -> None:
    for text, priority in [("-1000", -1000), ("1000", 1000), ("+7", 7), ("-0", 0), ("0007", 7)]:
        assert (await accepted(still, ("Job-Priority", text)))["priority"] == priority
    for text in ("", "1001", "-1001", "1.0", "1e2", "--1", "high", "00007", "٧"):
        assert_problem(await order(still, ("Job-Priority", text)), 400)


async def test_a_higher_priority_runs_first(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_concurrent_jobs=1))
    held = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    ids = {text: (await accepted(site, ("Job-Priority", text)))["id"] for text in ("-1", "0", "1", "1000")}
    site.gates.open("a")
    started = [(await site.ended(job_id))["startedAt"] for job_id in ids.values()]
    assert started == sorted(started, reverse=True), "the claims of one slot are milliseconds apart"
    assert (await site.ended(held["id"]))["priority"] == 0


async def test_delay_and_run_at_together_are_400_even_where_one_is_empty(still: Site) -> None:
    assert_problem(await order(still, ("Job-Delay", "1"), ("Job-Run-At", at(60))), 400)
    assert_problem(await order(still, ("Job-Delay", ""), ("Job-Run-At", at(60))), 400)


async def test_what_is_not_allowed_is_named_and_400(still: Site) -> None:
    for header, text in [("Job-Delay", "0"), ("Job-Run-At", at(-1)), ("Job-Timeout", "1"), ("Job-Priority", "0")]:
        answer = await still.http.post("/api/hold/a", json={}, headers={header.lower(): text})
        assert header in assert_problem(answer, 400)["detail"]


async def test_a_repeat_with_other_job_headers_is_the_first_job(still: Site) -> None:
    first = await accepted(still, ("Idempotency-Key", "k"), ("Job-Delay", "100"))
    again = await order(still, ("Idempotency-Key", "k"), ("Job-Priority", "5"))
    assert (again.headers["idempotency-replayed"], again.json()) == ("true", first)


PREFER = [
    ("wait=5", True),
    ('wait="5"', True),
    ("WAIT=5.0", True),
    ("respond-async; foo=bar, wait=5; x", True),
    ('note="a, b; wait=0", wait=5', True),
    ("wait=999999999999999999999999999999", True),
    ('note="a, wait=5"', False),
    ('note="\\", wait=5', False),
    ("wait=-5", False),
    ("wait=1e2", False),
    ("wait=", False),
    ("wait", False),
    ("wait=soon, wait=5", False),
    ("foo; wait=5", False),
    ("waiting=5", False),
    ("wait=0, wait=5", False),
]


@pytest.mark.parametrize(("prefer", "waits"), PREFER)
async def test_prefer_is_read_as_rfc_7240_says(open_site: OpenSite, prefer: str, waits: bool) -> None:
    site = await open_site(config=CONFIG if waits else replace(CONFIG, max_concurrent_jobs=0))
    answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers={"Prefer": prefer})
    assert answer.status_code == (200 if waits else 202), answer.text
    assert answer.headers.get("preference-applied") == ("wait" if waits else None)


async def test_several_lines_of_prefer_are_one_list(site: Site) -> None:
    headers = [("Prefer", "respond-async"), ("Prefer", "wait=5")]
    answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers=headers)
    assert answer.status_code == 200


def stubborn_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/stubborn", name="Stubborn")
    async def stubborn(job: JobContext) -> None:
        with trio.CancelScope(shield=True):
            await gates.through("stubborn")

    return app


@pytest.mark.parametrize("how", ["submit", "cancel"])
async def test_a_wait_is_answered_at_once_when_the_app_drains(open_site: OpenSite, how: str) -> None:
    site = await open_site(make_app=stubborn_app, config=replace(CONFIG, drain_seconds=3))
    answers: list[httpx.Response] = []
    path = "/api/stubborn"
    if how == "cancel":
        path = (await site.http.post(path)).json()["links"]["cancel"]
        await site.gates.arrived("stubborn")

    async def ask() -> None:
        answers.append(await site.http.post(path, headers={"Prefer": "wait=5"}))

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.2)
            assert answers == []
            site.board.runtime.begin_drain()
    site.gates.open("stubborn")
    assert answers[0].status_code == 202
    assert "preference-applied" not in answers[0].headers
