"""``identify``, ``authorize`` and ``Origin``: who sees and may do what, over real sockets."""

from typing import Any

import pytest
import trio
from tests.web.conftest import OpenSite
from tests.web.workshop import Site, assert_problem

from callboard.runtime import Job


def identify(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


async def identify_late(request: Any) -> str | None:
    await trio.lowlevel.checkpoint()
    return identify(request)


ANN, BOB = {"X-User": "ann"}, {"X-User": "bob"}


async def order(site: Site, who: dict[str, str], **headers: str) -> Any:
    sent = {**who, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await site.http.post("/api/orders", json={"itemName": "x"}, headers=sent)


@pytest.mark.parametrize("hook", [identify, identify_late])
async def test_callers_see_their_own_jobs_only(open_site: OpenSite, hook: Any) -> None:
    site = await open_site(identify=hook)
    job = (await order(site, ANN, Prefer="wait=5")).json()
    path = f"/jobs/{job['id']}"
    assert "ann" not in str(job)
    assert (await site.http.get(path, headers=ANN)).status_code == 200
    for other in (BOB, {}):
        unknown = assert_problem(await site.http.get("/jobs/01234567-89ab-7def-8123-456789abcdef", headers=other), 404)
        hidden = assert_problem(await site.http.get(path, headers=other), 404)
        assert {**hidden, "instance": ""} == {**unknown, "instance": ""}
        for method, suffix in (("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "?purge=true"), ("GET", "/result")):
            assert_problem(await site.http.request(method, path + suffix, headers=other), 404)
        assert_problem(await site.refused_handshake(f"{path}/stream", **other), 404)
        assert (await site.http.get("/jobs", headers=other)).json() == {"jobs": [], "next": None}
    assert [one["id"] for one in (await site.http.get("/jobs", headers=ANN)).json()["jobs"]] == [job["id"]]


async def listed(site: Site, who: dict[str, str], query: str = "") -> tuple[list[str], str | None]:
    page = (await site.http.get(f"/jobs?{query}", headers=who)).json()
    return [job["id"] for job in page["jobs"]], page["next"]


async def test_callers_without_a_name_list_the_jobs_of_such_in_full_pages(open_site: OpenSite) -> None:
    site = await open_site(identify=identify)
    own: list[str] = []
    for _ in range(3):
        own.insert(0, (await order(site, {})).json()["id"])
        await order(site, ANN)
    inside = await site.board.runtime.submit("Void")
    first, cursor = await listed(site, {}, "limit=2")
    assert first == own[:2]
    assert await listed(site, {}, f"limit=2&cursor={cursor}") == (own[2:], None)
    assert len((await listed(site, ANN))[0]) == 3
    assert (await site.http.get(f"/jobs/{own[0]}")).status_code == 200
    assert (await site.http.get(f"/jobs/{own[0]}", headers=ANN)).status_code == 404
    assert (await site.http.get(f"/jobs/{inside.id}")).status_code == 200
    assert (await site.http.get(f"/jobs/{inside.id}", headers=ANN)).status_code == 404


async def test_with_authorize_the_hook_decides_about_each_job_that_a_nameless_caller_lists(open_site: OpenSite) -> None:
    site = await open_site(identify=identify, authorize=lambda request, action, job: job is None or job.owner != "bob")
    nameless, anns = [(await order(site, who)).json()["id"] for who in ({}, ANN)]
    await order(site, BOB)
    assert await listed(site, {}) == ([anns, nameless], None)
    assert await listed(site, ANN) == ([anns], None)


async def test_keys_and_chosen_ids_are_each_callers_own(open_site: OpenSite) -> None:
    # Even where everybody may read everything: whose request it was is part of what was asked.
    site = await open_site(identify=identify, authorize=lambda request, action, job: True)
    ids = {(await order(site, who, Idempotency_Key="k")).json()["id"] for who in (ANN, BOB, ANN)}
    assert len(ids) == 2
    chosen = "01234567-89ab-7def-8123-456789abcdef"
    assert (await order(site, ANN, X_Async_Request_Id=chosen)).status_code == 202
    assert_problem(await order(site, BOB, X_Async_Request_Id=chosen), 409)


async def test_authorize_is_asked_for_each_action(open_site: OpenSite) -> None:
    asked: list[tuple[str, str | None]] = []
    denied: set[str] = set()

    async def authorize(request: Any, action: str, job: Job | None) -> bool:
        asked.append((action, None if job is None else job.name))
        return action not in denied

    site = await open_site(authorize=authorize)
    job = (await order(site, {}, Prefer="wait=5")).json()
    path = f"/jobs/{job['id']}"
    assert asked == [("submit", None)]
    calls = [
        ("submit", "POST", "/api/orders"),
        ("list", "GET", "/jobs"),
        ("metrics", "GET", "/jobs/metrics"),
        ("cancel", "POST", f"{path}/cancel"),
        ("cancel", "DELETE", path),
        ("retry", "POST", f"{path}/retry"),
        ("purge", "DELETE", f"{path}?purge=true"),
        ("inspect", "GET", f"{path}/attempts"),
        ("list", "GET", "/jobs/queues"),
        ("pause", "POST", "/jobs/queues/default/pause"),
        ("pause", "POST", "/jobs/queues/default/resume"),
    ]
    for action, method, target in calls:
        denied = {action}
        asked.clear()
        assert_problem(await site.http.request(method, target, json={"itemName": "x"}), 403)
        assert asked[-1][0] == action
    denied = {"stream"}
    assert_problem(await site.refused_handshake(f"{path}/stream"), 403)
    denied = {"read"}
    for method, target in (("GET", path), ("GET", f"{path}/result"), ("POST", f"{path}/cancel")):
        assert_problem(await site.http.request(method, target), 404)
    assert_problem(await site.refused_handshake(f"{path}/stream"), 404)
    assert (await site.http.get("/jobs")).json()["jobs"] == []
    denied = set()
    assert (await site.http.get(path)).json() == job


async def test_a_repeat_by_someone_who_may_not_read_the_job_learns_nothing(open_site: OpenSite) -> None:
    def authorize(request: Any, action: str, job: Job | None) -> bool:
        return action != "read" or "X-Reader" in request.headers

    site = await open_site(authorize=authorize)
    first = await order(site, {"X-Reader": "1"}, Idempotency_Key="k")
    refused = await order(site, {}, Idempotency_Key="k")
    assert_problem(refused, 422)
    assert first.json()["id"] not in refused.text


async def test_pages_of_other_origins_are_refused_where_it_matters(site: Site) -> None:
    for origin in ["https://evil.example", "null", "http://localhost.evil.example"]:
        job = await site.submit("/api/hold/a", {})
        headers = {"Origin": origin}
        path = f"/jobs/{job['id']}"
        for method, target in (
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
            ("POST", f"{path}/retry"),
            ("POST", "/jobs/x/y/z"),
            ("POST", "/jobs/queues/default/pause"),
            ("POST", "/jobs/queues/default/resume"),
        ):
            assert_problem(await site.http.request(method, target, headers=headers), 403)
        refused = await site.refused_handshake(f"{path}/stream", **headers)
        assert_problem(refused, 403)
        assert refused.headers["connection"] == "close"
        assert (await site.http.get(path, headers=headers)).json()["cancelRequested"] is False


async def test_the_apps_own_pages_and_the_allowed_ones_may(open_site: OpenSite) -> None:
    site = await open_site(allowed_origins=["https://Shop.example/"])
    for origin in (site.url, "https://shop.example"):
        job = await site.submit("/api/hold/a", {})
        answer = await site.http.post(f"/jobs/{job['id']}/cancel", headers={"Origin": origin})
        assert answer.status_code in (200, 202)
    job = await site.submit()
    refused = await site.http.post(f"/jobs/{job['id']}/cancel", headers={"Origin": "https://other.example"})
    assert_problem(refused, 403)
