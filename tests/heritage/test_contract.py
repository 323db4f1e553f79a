"""2.A of the other library, and what of 2.C and 2.D clients see: over real sockets, on each store.

Each test is named by the defect's number in ``docs/from-asyncendpoints.md``.
"""

import logging
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from tests.heritage.kit import Depot, opened_store
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Site, assert_problem, frames, patient

from callboard.runtime import Config, Job
from callboard.stores.memory import MemoryDatabase, MemoryStore
from callboard.stores.sqlite import SqliteStore

SECRET = "s3cret-and-nothing-else"


async def test_a02_no_mistake_of_a_client_is_a_500(site: Site) -> None:
    """Bodies that cannot be read, unknown ids and ids that cannot be meant were answered 500."""
    post = site.http.post
    nil = "00000000-0000-0000-0000-000000000000"
    json = {"Content-Type": "application/json"}
    cases = [
        (await post("/api/orders"), 400),
        (await post("/api/orders", content="{", headers=json), 400),
        (await post("/api/orders", content="null", headers=json), 422),
        (await post("/api/orders", content="{}", headers={"Content-Type": "text/plain"}), 415),
        (await post("/api/orders", json={"itemName": "x"}, headers={"X-Async-Request-Id": "no uuid"}), 400),
        (await site.http.get(f"/jobs/{uuid.uuid4()}"), 404),
        (await site.http.get("/jobs/no-uuid"), 404),
        (await site.http.get(f"/jobs/{nil}"), 404),
    ]
    for answer, status in cases:
        assert_problem(answer, status)
    # The id of zeros is a UUID like any other here.
    accepted = await post("/api/orders", json={"itemName": "x"}, headers={"X-Async-Request-Id": nil})
    assert (accepted.status_code, accepted.json()["id"]) == (202, nil)


async def test_a04_secrets_of_a_request_are_never_stored(tmp_path: Path, open_site: OpenSite) -> None:
    """All headers, Authorization and Cookie among them, were stored in clear for ever."""
    names = ("Authorization", "Cookie", "Proxy-Authorization", "X-Api-Key", "X-Auth-Token")
    site = await open_site(store=f"sqlite:///{tmp_path}/secrets.db")
    await site.submit("/api/hold/a", {"stored": "not-secret"}, **{name.replace("-", "_"): SECRET for name in names})
    await site.gates.arrived("a")
    assert "not-secret" in bytes_of(tmp_path)
    assert SECRET not in bytes_of(tmp_path)


def bytes_of(folder: Path) -> str:
    """All that lies there."""
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file()).decode("latin1")


async def test_a05_racing_submits_of_one_chosen_id_are_one_job_and_no_error(site: Site) -> None:
    """Of two racing submits with one X-Async-Request-Id one got a 500 (memory), or both wrote (Redis)."""
    answers: list[httpx.Response] = []
    headers = {"X-Async-Request-Id": str(uuid.uuid4())}

    async def post() -> None:
        answers.append(await site.http.post("/api/orders", json={"itemName": "x"}, headers=headers))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(post)
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert {answer.json()["id"] for answer in answers} == {headers["X-Async-Request-Id"]}
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len((await site.http.get("/jobs")).json()["jobs"]) == 1


async def test_c04_a_job_that_recovery_failed_can_be_read_everywhere(depot: Depot, open_site: OpenSite) -> None:
    """Recovery wrote an error that no reader could parse and no completedAt: such a job answered 500 on every read."""
    # The first process claims the job and is gone; the site finds it with no lost lease allowed.
    database = MemoryDatabase()

    def connect() -> MemoryStore | SqliteStore:
        return MemoryStore(database) if depot.kind == "memory" else SqliteStore(depot.path, synchronous="NORMAL")

    config = Config(max_lost_leases=0, max_concurrent_jobs=0, drain_seconds=0.6)
    first = await open_site(store=connect(), config=config)
    submitted = await first.submit("/api/hold/a", {})
    dying = await opened_store(connect(), "dying")
    assert len(await dying.claim(queues=["default"], names=["Hold"], limit=1, lease_ms=1)) == 1
    await dying.aclose()
    site = await open_site(store=connect(), config=config)
    path = submitted["links"]["self"]
    job: dict[str, Any] = {}

    async def failed() -> bool:
        job.update((await site.http.get(path)).json())
        return bool(job["status"] == "Failed")

    await patient(failed)
    assert set(job["error"]) == {"code", "message", "type", "retryable"}
    assert job["error"]["code"] == "WORKER_LOST"
    assert job["completedAt"] is not None
    assert (await site.http.get(f"{path}?wait=1")).json() == job
    assert (await site.http.get("/jobs?status=Failed")).json()["jobs"] == [job]
    assert assert_problem(await site.http.get(f"{path}/result"), 422)["error"] == job["error"]
    async with site.socket(f"{path}/stream") as socket:
        (snapshot,) = await frames(socket)
    assert snapshot["job"] == job
    assert (await site.http.post(f"{path}/retry")).status_code == 202


async def test_d_a_new_submission_warns_of_nothing(open_site: OpenSite, caplog: pytest.LogCaptureFixture) -> None:
    """Every new submission logged a warning and counted a store error: it looked for the job before it made it."""
    asked: list[Job | None] = []

    def authorize(_: object, action: str, job: Job | None) -> bool:
        asked.append(job)
        return True

    site = await open_site(authorize=authorize, config=CONFIG)
    caplog.set_level(logging.INFO)
    caplog.clear()
    for headers in ({}, {"Idempotency-Key": "k"}, {"X-Async-Request-Id": str(uuid.uuid4())}):
        answer = await site.http.post("/api/orders", json={"itemName": "x"}, headers=headers)
        assert (await site.ended(answer.json()["id"]))["status"] == "Completed"
    assert [record for record in caplog.records if record.name.startswith("callboard")] == []
    assert site.board.runtime.stats().store_errors == 0
    assert asked
