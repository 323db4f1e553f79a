"""The contract's "Steering", row by row, over real sockets."""

import httpx
import pytest
import trio
from msgspec.structs import replace
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, make_site_app

from callboard.runtime import JobContext
from callboard.web import Callboard


async def ask_cancel(site: Site, how: str, job_id: str, **headers: str) -> httpx.Response:
    if how == "DELETE":
        return await site.http.delete(f"/jobs/{job_id}", headers=headers)
    return await site.http.post(f"/jobs/{job_id}/cancel", headers=headers)


@pytest.mark.parametrize("how", ["POST", "DELETE"])
@pytest.mark.parametrize("headers", [{}, {"Job-Delay": "60"}])
async def test_a_job_that_has_not_started_is_canceled_at_once(
    open_site: OpenSite, how: str, headers: dict[str, str]
) -> None:
    site = await open_site(config=replace(CONFIG, max_concurrent_jobs=0))
    job = (await site.http.post("/api/orders", json={"itemName": "x"}, headers=headers)).json()
    answer = await ask_cancel(site, how, job["id"])
    assert (answer.status_code, answer.json()["status"]) == (200, "Canceled")
    assert answer.json()["completedAt"] is not None and answer.json()["cancelRequested"] is False
    again = await ask_cancel(site, how, job["id"])
    assert (again.status_code, again.json()) == (200, answer.json())


def tidy_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/tidy", name="Tidy")
    async def tidy(job: JobContext) -> None:
        try:
            await gates.through("tidy")
        finally:
            with trio.CancelScope(shield=True):
                await gates.through("cleanup")

    return app


@pytest.mark.parametrize("how", ["POST", "DELETE"])
async def test_a_running_job_is_canceled_only_when_its_cleanup_has_run(open_site: OpenSite, how: str) -> None:
    site = await open_site(make_app=tidy_app)
    job = (await site.http.post("/api/tidy")).json()
    await site.gates.arrived("tidy")
    answer = await ask_cancel(site, how, job["id"])
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["cancelRequested"]) == ("InProgress", True)
    await site.gates.arrived("cleanup")
    waited = await ask_cancel(site, how, job["id"], Prefer="wait=0.1")
    assert (waited.status_code, waited.json()["status"]) == (202, "InProgress")
    assert "preference-applied" not in waited.headers
    site.gates.open("cleanup")
    ended = await site.ended(job["id"])
    assert (ended["status"], ended["cancelRequested"]) == ("Canceled", False)


async def test_prefer_wait_on_a_cancel_gives_the_final_document(site: Site) -> None:
    job = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    answer = await ask_cancel(site, "POST", job["id"], Prefer="wait=5")
    assert (answer.status_code, answer.json()["status"]) == (200, "Canceled")
    assert answer.headers["preference-applied"] == "wait"


async def test_a_completed_or_failed_job_cannot_be_canceled(site: Site) -> None:
    for path, body in [("/api/orders", {"itemName": "x"}), ("/api/fail", {"code": "NO", "message": ""})]:
        job = await site.submit(path, body, Prefer="wait=5")
        assert_problem(await ask_cancel(site, "POST", job["id"]), 409)
        assert (await site.http.get(f"/jobs/{job['id']}")).json() == job


async def test_a_failed_or_canceled_job_can_be_retried(site: Site) -> None:
    failed = await site.submit("/api/fail", {"code": "NO", "message": "no"}, Prefer="wait=5")
    answer = await site.http.post(f"/jobs/{failed['id']}/retry")
    assert answer.status_code == 202
    queued = answer.json()
    assert (queued["status"], queued["retryCount"], queued["error"], queued["completedAt"]) == ("Queued", 0, None, None)
    assert queued["attempt"] == failed["attempt"] and queued["seq"] > failed["seq"]
    again = await site.ended(failed["id"])
    assert (again["status"], again["attempt"]) == ("Failed", failed["attempt"] + 1)
    held = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    await ask_cancel(site, "POST", held["id"], Prefer="wait=5")
    site.gates.open("a")
    assert (await site.http.post(f"/jobs/{held['id']}/retry")).status_code == 202
    assert (await site.ended(held["id"]))["result"] == "through a"


async def test_other_jobs_cannot_be_retried(site: Site) -> None:
    done = await site.submit(Prefer="wait=5")
    assert_problem(await site.http.post(f"/jobs/{done['id']}/retry"), 409)
    held = await site.submit("/api/hold/a", {})
    assert_problem(await site.http.post(f"/jobs/{held['id']}/retry"), 409)


async def test_a_retry_into_a_full_queue_is_429(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_concurrent_jobs=0, max_queue_size=1))
    first = await site.submit()
    await ask_cancel(site, "POST", first["id"])
    await site.submit()
    refused = await site.http.post(f"/jobs/{first['id']}/retry")
    assert_problem(refused, 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert (await site.http.get(f"/jobs/{first['id']}")).json()["status"] == "Canceled"


async def test_a_purge_removes_the_record_and_frees_its_key(site: Site) -> None:
    job = await site.submit("/api/orders", {"itemName": "x"}, Idempotency_Key="k", Prefer="wait=5")
    answer = await site.http.delete(f"/jobs/{job['id']}?purge=true")
    assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(await site.http.get(f"/jobs/{job['id']}"), 404)
    fresh = await site.submit("/api/orders", {"itemName": "y"}, Idempotency_Key="k")
    assert fresh["id"] != job["id"]


async def test_a_living_job_cannot_be_purged(site: Site) -> None:
    job = await site.submit("/api/hold/a", {})
    assert_problem(await site.http.delete(f"/jobs/{job['id']}?purge=true"), 409)
    assert_problem(await site.http.delete(f"/jobs/{job['id']}?purge=1"), 400)
    assert (await site.http.get(f"/jobs/{job['id']}")).json()["cancelRequested"] is False
