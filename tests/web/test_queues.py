"""Queues over HTTP: what they hold, pause and resume, who may, and what a client sees of a paused one."""

from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.test_attempts import ANN, OPERATOR, authorize, identify
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, make_site_app, patient

from callboard.runtime import JobContext
from callboard.web import Callboard

ODD = "mails/über 9"


def make_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/mails", name="Mail", queue=ODD)
    async def mail(job: JobContext) -> None: ...

    return app


async def queues(site: Site) -> dict[str, dict[str, Any]]:
    answer = await site.http.get("/jobs/queues")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert list(body) == ["queues"]
    return {queue["name"]: queue for queue in body["queues"]}


async def steer(site: Site, verb: str, queue: str = "default", **options: Any) -> dict[str, Any]:
    answer = await site.http.post(f"/jobs/queues/{queue}/{verb}", **options)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_queue_is_paused_and_resumed(site: Site) -> None:
    empty = {"name": "default", "paused": False, "queued": 0, "scheduled": 0, "inProgress": 0, "unknown": {}}
    assert await queues(site) == {"default": empty}
    running = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    assert await steer(site, "pause") == {**empty, "paused": True, "inProgress": 1}
    waiting = await site.submit()
    later = await site.submit(Job_Delay="600")
    assert (await queues(site))["default"] == {**empty, "paused": True, "queued": 1, "scheduled": 1, "inProgress": 1}
    site.gates.open("a")
    assert (await site.ended(running["id"]))["status"] == "Completed"
    held = await site.http.get(f"/jobs/{waiting['id']}?wait=0.3")
    assert (held.json()["status"], held.json()["attempt"]) == ("Queued", 0)
    # It is steered as ever.
    assert (await site.http.post(f"/jobs/{later['id']}/cancel")).json()["status"] == "Canceled"
    assert (await site.http.post(f"/jobs/{later['id']}/retry")).status_code == 202
    assert await steer(site, "pause") == {**empty, "paused": True, "queued": 2}
    assert (await steer(site, "resume"))["paused"] is False
    for job in (waiting, later):
        assert (await site.ended(job["id"]))["status"] == "Completed"
    assert await queues(site) == {"default": empty}
    assert await steer(site, "resume") == empty


async def test_a_retry_waits_in_a_paused_queue(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, retry_base_seconds=0.4))
    job = await site.submit("/api/fail", {"code": "NO", "message": "no", "retryable": True})

    async def has_failed_once() -> bool:
        return bool((await site.http.get(f"/jobs/{job['id']}")).json()["error"])

    await patient(has_failed_once)
    await steer(site, "pause")
    held = (await site.http.get(f"/jobs/{job['id']}?wait=1.2")).json()
    assert (held["status"], held["attempt"]) == ("Scheduled", 1), "it was due long ago, and waits"
    await steer(site, "resume")
    ended = await site.ended(job["id"])
    assert (ended["status"], ended["retryCount"], ended["attempt"]) == ("Failed", 1, 2)


async def test_a_full_paused_queue_refuses_with_429(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_queue_size=2))
    await steer(site, "pause")
    jobs = [await site.submit() for _ in range(2)]
    refused = await site.http.post("/api/orders", json={"itemName": "x"})
    assert_problem(refused, 429)
    assert int(refused.headers["retry-after"]) >= 1
    await steer(site, "resume")
    for job in jobs:
        assert (await site.ended(job["id"]))["status"] == "Completed"


@pytest.mark.parametrize("path", ["mails/%C3%BCber%209", "mails%2F%C3%BCber%209"])
async def test_a_queue_with_an_odd_name_and_the_other_goes_on(open_site: OpenSite, path: str) -> None:
    site = await open_site(make_app=make_app)
    assert (await steer(site, "pause", path))["name"] == ODD
    mail = await site.submit("/api/mails", {})
    assert (await site.submit(Prefer="wait=5"))["status"] == "Completed"
    found = await queues(site)
    assert (found[ODD]["paused"], found[ODD]["queued"], found["default"]["paused"]) == (True, 1, False)
    await steer(site, "resume", path)
    assert (await site.ended(mail["id"]))["status"] == "Completed"


async def test_a_queue_that_is_none(site: Site) -> None:
    for verb in ("pause", "resume"):
        for name in ("nowhere", "default/pause", "defaul", "%00"):
            assert_unknown(await site.http.post(f"/jobs/queues/{name}/{verb}"))
    for path in ("/jobs/queues/pause", "/jobs/queues/default", "/jobs/queues/default/stop", "/jobs/queues/"):
        assert_problem(await site.http.post(path), 404)
    assert_problem(await site.http.get("/jobs/queues/default/pause"), 405)
    answer = await site.http.post("/jobs/queues")
    assert_problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
    assert list(await queues(site)) == ["default"]


def assert_unknown(answer: Any) -> None:
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:callboard:problem:queue-not-found"


async def test_a_pause_outlives_the_app(open_site: OpenSite, store_url: str) -> None:
    if store_url.startswith("memory"):
        pytest.skip("memory is gone with the app")
    first = await open_site()
    await steer(first, "pause")
    job = await first.submit()
    first.stop.set()
    second = await open_site()
    assert (await queues(second))["default"]["paused"] is True
    assert (await second.http.get(f"/jobs/{job['id']}?wait=0.3")).json()["status"] == "Queued"
    await steer(second, "resume")
    assert (await second.ended(job["id"]))["status"] == "Completed"


async def test_who_may(open_site: OpenSite) -> None:
    site = await open_site(identify=identify, authorize=authorize)
    for verb in ("pause", "resume"):
        path = f"/jobs/queues/default/{verb}"
        assert_problem(await site.http.post(path, headers=ANN), 403)
        assert_problem(await site.http.post(path), 403)
        # Who may not steer learns not even which queues there are.
        assert_problem(await site.http.post(f"/jobs/queues/nowhere/{verb}", headers=ANN), 403)
        assert_problem(await site.http.post(path, headers={**OPERATOR, "Origin": "https://evil.example"}), 403)
        assert (await steer(site, verb, headers=OPERATOR))["paused"] is (verb == "pause")


async def test_to_be_named_is_not_enough(open_site: OpenSite) -> None:
    site = await open_site(identify=identify)
    for who in (ANN, OPERATOR, {}):
        for verb in ("pause", "resume"):
            assert_problem(await site.http.post(f"/jobs/queues/default/{verb}", headers=who), 403)
    assert (await queues(site))["default"]["paused"] is False


async def test_the_gauge(site: Site) -> None:
    async def gauge() -> float:
        text = (await site.http.get("/jobs/metrics")).text
        (family,) = [one for one in text_string_to_metric_families(text) if one.name == "callboard_queue_paused"]
        (sample,) = family.samples
        assert sample.labels == {"queue": "default"}
        return float(sample.value)

    assert await gauge() == 0
    await steer(site, "pause")
    assert await gauge() == 1
    await steer(site, "resume")
    assert await gauge() == 0
