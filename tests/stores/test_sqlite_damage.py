"""Records that cannot be read (damaged, or of a newer version): they cost themselves, not the jobs beside them."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from msgspec import Raw
from msgspec.structs import replace

from callboard.runtime.core.commands import Succeed
from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.job import Job, Request, Status
from callboard.runtime.core.store import Committed, Duplicate, Extension, Held, JobFilter, Write
from callboard.runtime.core.transition import accept, decide
from callboard.stores.sqlite import SqliteStore


async def a_store(path: Path, worker: str = "w", now_ms: int = 10_000) -> SqliteStore:
    store = SqliteStore(path, clock=lambda: now_ms)
    await store.open(worker=worker, max_events_per_job=100, max_attempts_per_job=100)
    return store


async def submit(store: SqliteStore, *job_ids: str) -> None:
    job = Job(id="", name="N", status=Status.QUEUED, created_ms=1, updated_ms=1)
    changes = [accept(replace(job, id=job_id)) for job_id in job_ids]
    done = await store.commit([Write(job=change.job, events=change.events, request=Request()) for change in changes])
    assert all(isinstance(outcome, Committed) for outcome in done)


def damage(path: Path, statement: str, *, rows: int = 1) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(statement).rowcount == rows
    connection.commit()
    connection.close()


async def claimed(store: SqliteStore) -> list[str]:
    return [one.job.id for one in await store.claim(queues=["default"], names=["N"], limit=10, lease_ms=1000)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE job SET record = 'x' WHERE id = 'a'",
        "UPDATE job SET record = json_set(record, '$.schema', 99) WHERE id = 'a'",
        "UPDATE request SET body = 'x' WHERE serial = 1",
        "DELETE FROM request WHERE serial = 1",
    ],
    ids=["record", "newer", "request", "no request"],
)
async def test_a_claim_passes_over_what_cannot_be_read(tmp_path: Path, statement: str) -> None:
    store = await a_store(tmp_path / "a.db")
    await submit(store, "a", "b")
    damage(tmp_path / "a.db", statement)
    assert await claimed(store) == ["b"]
    assert await claimed(store) == []
    await store.aclose()


async def test_a_job_that_was_set_aside_gets_its_chance_at_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await a_store(path)
    await submit(store, "a")
    damage(path, "UPDATE job SET record = json_set(record, '$.schema', 99)")
    assert await claimed(store) == []
    damage(path, "UPDATE job SET record = json_set(record, '$.schema', 1)")
    assert await claimed(store) == []
    await store.aclose()
    store = await a_store(path)
    assert await claimed(store) == ["a"]
    await store.aclose()


async def test_reading_it_alone_says_so_and_a_list_goes_on_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await a_store(tmp_path / "a.db")
    await submit(store, "a", "b")
    damage(tmp_path / "a.db", "UPDATE job SET record = json_set(record, '$.schema', 99) WHERE id = 'a'")
    with pytest.raises(StoreRefused, match="upgrade callboard"):
        await store.get(["a"])
    with caplog.at_level(logging.ERROR):
        page = await store.list(JobFilter(), cursor=None, limit=10)
    assert [job.id for job in page.jobs] == ["b"]
    assert "serial 1 is passed over" in caplog.text
    await store.aclose()


async def test_lapse_takes_back_the_others(tmp_path: Path) -> None:
    store = await a_store(tmp_path / "a.db")
    await submit(store, "a", "b")
    assert await claimed(store) == ["a", "b"]
    damage(tmp_path / "a.db", "UPDATE job SET record = 'x' WHERE id = 'a'")
    damage(tmp_path / "a.db", "UPDATE job SET lease_ms = 1 WHERE id = 'b'")
    assert [one.job.id for one in await store.lapse(limit=10)] == ["b"]
    await store.aclose()


async def test_news_with_an_event_that_cannot_be_read_is_not_complete(tmp_path: Path) -> None:
    store, other = await a_store(tmp_path / "a.db"), await a_store(tmp_path / "a.db", "other")
    cursor = (await other.wait_news(None)).cursor
    await submit(store, "a", "b")
    damage(tmp_path / "a.db", "UPDATE event SET body = 'x' WHERE pos = 1")
    news = await other.wait_news(cursor)
    assert [event.job_id for event in news.events] == ["b"]
    assert not news.complete
    await store.aclose()
    await other.aclose()


def a_write(job_id: str, key: str | None = None) -> Write:
    change = accept(Job(id=job_id, name="N", status=Status.QUEUED, created_ms=1, updated_ms=1, key=key))
    return Write(job=change.job, events=change.events, request=Request())


async def test_a_batch_with_one_is_refused_whole_and_goes_through_without_it(tmp_path: Path) -> None:
    store = await a_store(tmp_path / "a.db")
    await store.commit([a_write("a", key="k"), a_write("b")])
    damage(tmp_path / "a.db", "UPDATE job SET record = 'x' WHERE id = 'a'")
    for taken in (a_write("a"), a_write("other", key="k")):
        with pytest.raises(StoreRefused, match="cannot be read"):
            await store.commit([a_write("c"), taken])
    assert await store.counts() == {("default", Status.QUEUED): 2}
    outcomes = await store.commit([a_write("c"), a_write("b")])
    assert [type(outcome) for outcome in outcomes] == [Committed, Duplicate]
    await store.aclose()


async def test_a_heartbeat_passes_over_it(tmp_path: Path) -> None:
    store = await a_store(tmp_path / "a.db")
    await submit(store, "a", "b")
    jobs = [one.job for one in await store.claim(queues=["default"], names=["N"], limit=10, lease_ms=1000)]
    damage(tmp_path / "a.db", "UPDATE job SET record = 'x' WHERE id = 'a'")
    extended = await store.extend([Held(job.id, job.fence) for job in jobs], lease_ms=90_000)
    assert extended == [Extension(False), Extension(True)]
    damage(tmp_path / "a.db", "UPDATE job SET lease_ms = NULL WHERE id = 'a'")
    assert (await store.next_due()).lease_ms == 100_000
    await store.aclose()


async def test_pages_go_on_behind_it(tmp_path: Path) -> None:
    store = await a_store(tmp_path / "a.db")
    await submit(store, *(str(number) for number in range(120)))
    damage(tmp_path / "a.db", "UPDATE job SET record = 'x' WHERE id IN ('100', '0')", rows=2)
    seen, cursor = list[str](), None
    for most in (50, 50, 18):
        page = await store.list(JobFilter(), cursor=cursor, limit=50)
        assert len(page.jobs) == most
        seen, cursor = seen + [job.id for job in page.jobs], page.next
    assert cursor is None
    assert seen == [str(number) for number in reversed(range(120)) if number not in (100, 0)]
    await store.aclose()


async def test_many_of_them_do_not_keep_others_from_lapsing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await a_store(path)
    await submit(store, *"abcdef")
    assert await claimed(store) == [*"abcdef"]
    damage(path, "UPDATE job SET record = 'x' WHERE id <= 'e'", rows=5)
    await store.aclose()
    # Its leases have not ended, but their holder is gone.
    later = await a_store(path, "later", now_ms=10_000)
    rounds = [[one.job.id for one in await later.lapse(limit=2)] for _ in range(4)]
    assert rounds == [[], [], ["f"], []]
    assert (await later.next_due()).lease_ms == 70_000
    news = await later.wait_news("n0.0")
    with trio.move_on_after(0.6) as patience:
        await later.wait_news(news.cursor)
    assert patience.cancelled_caught, "no dead holder is told of for what nobody can take"
    await later.aclose()


async def test_it_lapses_when_it_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await a_store(path)
    await submit(store, "a")
    assert await claimed(store) == ["a"]
    damage(path, "UPDATE job SET lease_ms = 1, record = json_set(record, '$.schema', 99)")
    assert await store.lapse(limit=10) == []
    damage(path, "UPDATE job SET record = json_set(record, '$.schema', 1)")
    assert await store.lapse(limit=10) == []
    await store.aclose()
    later = await a_store(path, now_ms=70_000)
    assert [one.job.status for one in await later.lapse(limit=10)] == [Status.QUEUED]
    await later.aclose()


async def test_prune_removes_it_with_the_others_and_says_how_many(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await a_store(path)
    await submit(store, *"abc")
    for one in await store.claim(queues=["default"], names=["N"], limit=2, lease_ms=1000):
        change = decide(one.job, Succeed(now_ms=10_000, result=Raw(b"1")))
        await store.commit([Write(job=change.job, events=change.events, expected=one.job)])
    damage(path, "UPDATE job SET record = 'x' WHERE id = 'a'")
    assert [await store.prune(ended_before_ms=20_000, limit=1) for _ in range(3)] == [1, 1, 0]
    assert await store.counts() == {("default", Status.QUEUED): 1}
    with closing(sqlite3.connect(path)) as connection:
        for table in ("job", "request", "event"):
            assert connection.execute(f"SELECT DISTINCT serial FROM {table}").fetchall() == [(3,)]
    await store.aclose()
