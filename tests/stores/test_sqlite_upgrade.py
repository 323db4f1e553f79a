"""A file that an older callboard made: brought up to date when it is opened, whole or not at all, with every job in it.

``layout_1.sql`` is the dump of a file that callboard made when layout 1 was its newest: job 1 failed and waits for its retry, 2 has
completed, 3 was released, 4 was running when its process died, 5 is scheduled, 6 waits in another queue.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.stores.kit import LAY_OUT_AND_DIE, line_of, opened, run_sql, scalar, start_child, start_python

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Duplicate
from callboard.stores import sqlite_file
from callboard.stores.conformance_bench import apply, birth, failing, ids, job, submit, succeed, taken
from callboard.stores.sqlite_schema import APPLICATION_ID, USER_VERSION

DUMP = Path(__file__).with_name("layout_1.sql")
LATER_MS = 1_700_000_100_000


def file_of_layout_1(path: Path) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.executescript(DUMP.read_text())
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    return path


def schema(path: Path) -> list[tuple[str, str]]:
    """Every table and index, however its text is wrapped."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_schema ORDER BY name").fetchall()
    return [(name, " ".join(text.split())) for name, text in found]


async def test_its_jobs_go_on_and_their_history_begins(tmp_path: Path) -> None:
    path = file_of_layout_1(tmp_path / "x.db")
    async with opened(path, clock=lambda: LATER_MS) as store:
        assert ids(await store.get([job(number).id for number in range(1, 8)])) == [1, 2, 3, 4, 5, 6, -1]
        counts = {pair: count for pair, count in (await store.counts()).items() if count}
        assert counts == {
            ("default", Status.SCHEDULED): 2,
            ("default", Status.COMPLETED): 1,
            ("default", Status.QUEUED): 1,
            ("default", Status.IN_PROGRESS): 1,
            ("other", Status.QUEUED): 1,
        }
        (lapsed,) = await store.lapse(limit=5)
        assert (lapsed.job.id, lapsed.job.status) == (job(4).id, Status.QUEUED)
        claimed = await store.claim(queues=["default", "other"], names=["send"], limit=9, lease_ms=10_000)
        assert taken(claimed) == [6, 1, 3, 4, 5]
        assert min(one.job.fence for one in claimed) > 4, "a fence is never given twice"
        for one in claimed:
            await apply(store, one.job, failing(LATER_MS) if one.job.id == job(1).id else succeed(LATER_MS))
        told = {n: [(a.attempt, a.outcome.value) for a in await store.attempts(job(n).id)] for n in range(1, 7)}
        assert told == {
            1: [(2, "Failed")],  # of its first attempt nobody kept anything
            2: [],
            3: [(2, "Completed")],
            4: [(1, "Lost"), (2, "Completed")],
            5: [(1, "Completed")],
            6: [(1, "Completed")],
        }
        (outcome,) = await store.commit([birth(7, key="k")])
        assert isinstance(outcome, Duplicate)
        (new,) = await submit(store, 7)
        assert new.serial == 7
        assert list(await store.paused()) == []
        assert await store.set_paused("other", True)
    assert scalar(path, "PRAGMA integrity_check") == "ok"
    assert scalar(path, "PRAGMA user_version") == USER_VERSION


async def test_it_is_laid_out_like_a_new_one(tmp_path: Path) -> None:
    old, new = file_of_layout_1(tmp_path / "old.db"), tmp_path / "new.db"
    before = dict(schema(old))
    async with opened(old), opened(new):
        pass
    assert schema(old) == schema(new)
    # The text of layout 1 is still what it was, or files of that age and new ones would part.
    kept = dict(schema(new))
    assert {name: text for name, text in before.items() if name != "counter"}.items() <= kept.items()


async def test_many_may_bring_it_up_at_once(tmp_path: Path) -> None:
    path = file_of_layout_1(tmp_path / "x.db")
    children = [start_child(f"create(Path({str(path)!r}), {number})") for number in range(11, 15)]
    for child in children:
        with child:
            assert await line_of(child) == "created"
            assert child.wait() == 0
    async with opened(path) as store:
        assert sum((await store.counts()).values()) == 10
    assert scalar(path, "PRAGMA integrity_check") == "ok"


async def test_whoever_is_killed_on_the_way_leaves_it_as_it_was(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    async with opened(fresh):
        pass
    file_of_layout_1(tmp_path / "old.db")
    with start_python(LAY_OUT_AND_DIE, str(tmp_path)) as child:
        steps = int(await line_of(child))
    assert steps > 6
    versions = set()
    for path in [tmp_path / f"{step}.db" for step in range(steps + 1)]:
        versions.add(scalar(path, "PRAGMA user_version"))
        async with opened(path) as store:
            assert len([one for one in await store.get([job(n).id for n in range(1, 7)]) if one]) == 6
        assert schema(path) == schema(fresh)
        assert scalar(path, "PRAGMA integrity_check") == "ok"
    assert versions == {1, USER_VERSION}


async def test_an_older_callboard_refuses_it_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of_layout_1(tmp_path / "x.db")
    async with opened(path):
        pass
    monkeypatch.setattr(sqlite_file, "USER_VERSION", 1)
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="layout 2, this callboard knows 1: upgrade callboard"):
        async with opened(path):
            pass
    assert path.read_bytes() == before


async def test_a_copy_that_lost_its_wal_mode_is_brought_up_too(tmp_path: Path) -> None:
    path = file_of_layout_1(tmp_path / "x.db")
    run_sql(path, "PRAGMA journal_mode = DELETE")
    async with opened(path) as store:
        await submit(store, 9)
    assert (scalar(path, "PRAGMA journal_mode"), scalar(path, "PRAGMA user_version")) == ("wal", USER_VERSION)


async def test_a_file_that_someone_writes_to_is_left_for_later(tmp_path: Path) -> None:
    path = file_of_layout_1(tmp_path / "x.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            async with opened(path):
                pass
    assert scalar(path, "PRAGMA user_version") == 1
    async with opened(path):
        pass
    assert scalar(path, "PRAGMA user_version") == USER_VERSION
    assert not [name for name in os.listdir(tmp_path) if "worker" in name]
