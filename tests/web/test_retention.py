"""``Retry-After`` from the drain rate, ``Expires``, and that what has expired or was purged is really gone, its space too."""

import sqlite3
import uuid
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from msgspec.structs import replace
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, make_site_app, patient

from callboard.runtime import JobContext
from callboard.stores.memory import MemoryDatabase, MemoryStore
from callboard.web import Callboard

TABLES = ("job", "request", "event", "attempt")
LARGE = "x" * 5000


def paced_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/paced", name="Paced", queue="paced", max_retries=0)
    async def paced(job: JobContext, request: float) -> None:
        await trio.sleep(request)

    @board.post("/api/echo", name="Echo")
    async def echo(job: JobContext, request: str) -> str:
        job.log("info", "echo")
        return request

    return app


async def refused(site: Site, seconds: float) -> int:
    """Fill the queue; what the first refused request is told."""
    while True:
        answer = await site.http.post("/api/paced", json=seconds)
        if answer.status_code != 202:
            assert_problem(answer, 429)
            return int(answer.headers["retry-after"])


async def test_retry_after_follows_the_rate_at_which_the_queue_drains(open_site: OpenSite) -> None:
    site = await open_site(make_app=paced_app, config=replace(CONFIG, max_concurrent_jobs=1, max_queue_size=2))
    assert await refused(site, 0.05) == 1, "nothing is known yet"
    await trio.sleep(0.3)
    assert await refused(site, 0.05) == 1, "20 jobs a second"

    async def is_idle() -> bool:
        jobs = (await site.http.get("/jobs?queue=paced&status=Queued&status=InProgress")).json()["jobs"]
        return not jobs

    await patient(is_idle)
    await trio.sleep(1.2)
    assert await refused(site, 1.1) == 1, "the queue was idle, not slow"
    for _ in range(3):
        await trio.sleep(1.2)
        told = await refused(site, 1.1)
    assert told == 2, "a job every 1.1 seconds, which is 2 whole ones"


async def test_a_retry_into_a_full_queue_is_told_its_rate_too(open_site: OpenSite) -> None:
    site = await open_site(make_app=paced_app, config=replace(CONFIG, max_concurrent_jobs=1, max_queue_size=1))
    canceled = (await site.http.post("/api/paced", json=0, headers={"Prefer": "wait=5"})).json()
    assert canceled["status"] == "Completed"
    first = (await site.http.post("/api/paced", json=30)).json()
    waiting = (await site.http.post("/api/paced", json=30)).json()
    assert (await site.http.delete(f"/jobs/{waiting['id']}")).status_code == 200
    assert (await site.http.post("/api/paced", json=30)).status_code == 202
    await trio.sleep(1.1)
    answer = await site.http.post(f"/jobs/{waiting['id']}/retry")
    assert_problem(answer, 429)
    assert int(answer.headers["retry-after"]) >= 1
    assert (await site.http.get(f"/jobs/{waiting['id']}")).json()["status"] == "Canceled"
    assert (await site.http.get(f"/jobs/{first['id']}")).json()["status"] == "InProgress"


async def fill(site: Site, count: int) -> list[httpx.Response]:
    answers = []
    for number in range(count):
        headers = {"Idempotency-Key": f"key {number}", "Prefer": "wait=5"}
        answers.append(await site.http.post("/api/echo", json=LARGE, headers=headers))
        assert answers[-1].status_code == 200, answers[-1].text
    return answers


async def until_empty(site: Site) -> None:
    async def is_empty() -> bool:
        return not (await site.http.get("/jobs")).json()["jobs"]

    await patient(is_empty)


async def test_expires_is_kept_and_then_nothing_is_left(open_site: OpenSite) -> None:
    site = await open_site(make_app=paced_app, config=replace(CONFIG, retention_seconds=1.5))
    (answer,) = await fill(site, 1)
    path = f"/jobs/{answer.json()['id']}"
    read = await site.http.get(path)
    ended = parsedate_to_datetime(read.headers["date"]).timestamp()
    assert 0 <= parsedate_to_datetime(read.headers["expires"]).timestamp() - ended <= 2
    unchanged = await site.http.get(path, headers={"If-None-Match": read.headers["etag"]})
    assert (unchanged.status_code, unchanged.headers["expires"]) == (304, read.headers["expires"])
    await until_empty(site)
    for method, suffix in [("GET", ""), ("GET", "/result"), ("POST", "/retry"), ("DELETE", "?purge=true")]:
        assert_problem(await site.http.request(method, path + suffix), 404)
    assert_problem(await site.refused_handshake(f"{path}/stream"), 404)
    assert (await fill(site, 1))[0].headers.get("idempotency-replayed") is None, "the key went with its job"


def held(database: MemoryDatabase) -> dict[str, int]:
    """What the store in memory still holds; ``counts`` of nothing and emptied heaps hold nothing."""
    sizes = {name: len(getattr(database, name)) for name in ("records", "ids", "keys", "feed")}
    sizes["heaps"] = sum(heap.first() is not None for heap in (database.due, database.leases, database.ended))
    sizes["ready"] = sum(heap.first() is not None for heap in database.ready.values())
    sizes["counts"] = sum(database.counts.values())
    return sizes


@pytest.mark.parametrize("how", ["retention", "purge"])
async def test_memory_holds_nothing_of_what_is_gone(open_site: OpenSite, store_url: str, how: str) -> None:
    if store_url != "memory://":
        pytest.skip("of the other store")
    database = MemoryDatabase()
    config = replace(CONFIG, retention_seconds=0.2 if how == "retention" else None)
    site = await open_site(make_app=paced_app, store=MemoryStore(database), config=config)
    await emptied(site, how)
    assert held(database) == dict.fromkeys(held(database), 0)


async def emptied(site: Site, how: str) -> None:
    answers = await fill(site, 30)
    if how == "purge":
        for answer in answers:
            assert (await site.http.delete(f"/jobs/{answer.json()['id']}?purge=true")).status_code == 204
    await until_empty(site)


@pytest.mark.parametrize("how", ["retention", "purge"])
async def test_sqlite_holds_nothing_of_what_is_gone_and_the_file_does_not_grow(
    open_site: OpenSite, store_url: str, tmp_path: Path, how: str
) -> None:
    if store_url == "memory://":
        pytest.skip("of the other store")
    path = tmp_path / "space.db"
    config = replace(CONFIG, retention_seconds=0.2 if how == "retention" else None)
    site = await open_site(make_app=paced_app, store=f"sqlite:///{path}?synchronous=normal", config=config)
    sizes = []
    for _ in range(4):
        await emptied(site, how)
        with sqlite3.connect(path) as connection:
            rows = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES]
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        assert rows == [0] * len(TABLES)
        sizes.append(path.stat().st_size)
    assert sizes[-1] <= sizes[0] + 16 * 4096, sizes
    assert sizes[-1] < 30 * len(LARGE) * 6, sizes


async def test_a_purged_id_is_free_again_and_is_another_job(site: Site) -> None:
    chosen = str(uuid.uuid4())
    tags: list[str] = []
    answer: Any = None
    for _ in range(2):
        answer = await site.http.post(
            "/api/orders", json={"itemName": "x"}, headers={"X-Async-Request-Id": chosen, "Prefer": "wait=5"}
        )
        assert (answer.status_code, answer.json()["id"], answer.headers.get("idempotency-replayed")) == (
            200,
            chosen,
            None,
        )
        tags.append((await site.http.get(f"/jobs/{chosen}")).headers["etag"])
        assert (await site.http.delete(f"/jobs/{chosen}?purge=true")).status_code == 204
        gone = await site.http.get(f"/jobs/{chosen}", headers={"If-None-Match": tags[-1]})
        assert_problem(gone, 404)
        assert_problem(await site.http.delete(f"/jobs/{chosen}?purge=true"), 404)
    assert tags[0] != tags[1]


async def test_purge_false_cancels_and_anything_else_is_400(site: Site) -> None:
    for query, status in [("?purge=false", 200), ("", 200)]:
        job = await site.submit("/api/orders", {"itemName": "x"}, Job_Delay="600")
        for wrong in ("?purge=", "?purge=1", "?purge=TRUE", "?purge=true&purge=false", "?purge=true&purge=true"):
            assert_problem(await site.http.delete(f"/jobs/{job['id']}{wrong}"), 400)
        assert_problem(await site.http.delete(f"/jobs/{job['id']}?purge=true"), 409)
        answer = await site.http.delete(f"/jobs/{job['id']}{query}")
        assert (answer.status_code, answer.json()["status"]) == (status, "Canceled")


async def test_a_retry_of_a_job_whose_handler_is_gone_waits_for_one(open_site: OpenSite, store_url: str) -> None:
    if store_url == "memory://":
        pytest.skip("the handler of a store that ends with its process is never gone")
    old = await open_site(make_app=paced_app)
    fault = {"code": "NO", "message": "no"}
    job = await old.submit("/api/fail", fault, Prefer="wait=5")
    old.stop.set()
    await trio.sleep(0.5)

    def other_app(board: Callboard, gates: Gates) -> QuartTrio:
        app = QuartTrio("other")
        board.init_app(app)

        @board.post("/api/other", name="Other")
        async def other(job: JobContext) -> None: ...

        return app

    new = await open_site(make_app=other_app)
    answer = await new.http.post(f"/jobs/{job['id']}/retry")
    assert (answer.status_code, answer.json()["status"]) == (202, "Queued")
    assert (await new.http.post("/api/other", headers={"Prefer": "wait=5"})).status_code == 200, "it holds nobody up"
    assert (await new.http.get(f"/jobs/{job['id']}")).json()["status"] == "Queued"
    back = await open_site(make_app=paced_app)
    assert (await back.ended(job["id"]))["status"] == "Failed"
