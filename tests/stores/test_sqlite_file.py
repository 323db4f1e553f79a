"""Whose file an SQLite store takes, what it makes of it, and what it leaves alone."""

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from tests.stores.kit import LAY_OUT_AND_DIE, line_of, names, opened, run_sql, scalar, start_child, start_python

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Delete
from callboard.stores import sqlite_file
from callboard.stores.conformance_bench import after, submit, succeed
from callboard.stores.sqlite_schema import APPLICATION_ID, USER_VERSION


async def ours_of_version(path: Path, version: int) -> None:
    async with opened(path):
        pass
    run_sql(path, f"PRAGMA user_version = {version}")


async def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a b?%.db"
    async with opened(path) as store:
        await submit(store, 1)
        assert names(tmp_path) == [
            "a b?%.db",
            "a b?%.db-shm",
            "a b?%.db-turnstile.lock",
            "a b?%.db-wal",
            "a b?%.db-worker-w.lock",
            "a b?%.db-writer.lock",
        ]
    assert not path.with_name(path.name + "-worker-w.lock").exists()
    assert scalar(path, "PRAGMA application_id") == APPLICATION_ID
    assert scalar(path, "PRAGMA user_version") == USER_VERSION
    assert scalar(path, "PRAGMA journal_mode") == "wal"
    assert scalar(path, "PRAGMA auto_vacuum") == 2
    assert scalar(path, "PRAGMA integrity_check") == "ok"


def modes(path: Path) -> set[int]:
    """Of the database and the files beside it that hold something of it."""
    return {stat.S_IMODE(path.with_name(path.name + end).stat().st_mode) for end in ("", "-wal", "-shm")}


async def test_the_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        async with opened(tmp_path / "x.db") as store:
            await submit(store, 1)
            assert modes(tmp_path / "x.db") == {0o600}
    finally:
        os.umask(before)


async def test_a_file_that_was_made_before_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch()
    path.chmod(0o660)
    async with opened(path) as store:
        await submit(store, 1)
        assert modes(path) == {0o660}


def text_file(path: Path) -> None:
    path.write_text("these are my notes, not a database" * 100)


def short_file(path: Path) -> None:
    path.write_bytes(b"SQL")


def foreign_database(path: Path) -> None:
    run_sql(path, "CREATE TABLE notes (x)", "INSERT INTO notes VALUES (1)")


def foreign_wal_database(path: Path) -> None:
    run_sql(path, "PRAGMA journal_mode = WAL", "CREATE TABLE notes (x)", "INSERT INTO notes VALUES (1)")


def foreign_id(path: Path) -> None:
    run_sql(path, "PRAGMA application_id = 77")


def broken_database(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (text_file, "not an SQLite database"),
        (short_file, "not an SQLite database"),
        (foreign_database, "another program"),
        (foreign_wal_database, "another program"),
        (foreign_id, "another program"),
        (broken_database, "cannot be read as"),
    ],
)
async def test_a_file_of_someone_else_is_left_alone(
    tmp_path: Path, make: Callable[[Path], None], complaint: str
) -> None:
    path = tmp_path / "x.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match=complaint):
        async with opened(path):
            pass
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.db"]


async def test_a_database_that_someone_else_has_open_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE notes (x)")
        before, log = path.read_bytes(), (tmp_path / "x.db-wal").read_bytes()
        with pytest.raises(StoreRefused, match="another program"):
            async with opened(path):
                pass
        assert (path.read_bytes(), (tmp_path / "x.db-wal").read_bytes()) == (before, log)


@pytest.mark.parametrize("version", [0, USER_VERSION + 1])
async def test_another_layout_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "x.db"
    await ours_of_version(path, version)
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match=f"layout {version}, .* knows {USER_VERSION}"):
        async with opened(path):
            pass
    assert path.read_bytes() == before


async def test_an_empty_file_and_an_empty_database_become_stores(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    run_sql(tmp_path / "vacuumed.db", "VACUUM")
    run_sql(tmp_path / "dropped.db", "CREATE TABLE x (y)", "DROP TABLE x")
    for name in ("empty.db", "vacuumed.db", "dropped.db"):
        async with opened(tmp_path / name) as store:
            await submit(store, 1)


async def test_a_place_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    for path, complaint in (
        (tmp_path / "directory", "is a directory"),
        (tmp_path / "nowhere" / "x.db", "does not exist"),
        (Path("/proc/callboard.db"), "cannot be read and written|lock file"),
        (Path("/proc/self/status"), "cannot be read and written|not an SQLite"),
    ):
        with pytest.raises(StoreRefused, match=complaint):
            async with opened(path):
                pass
    assert names(tmp_path) == ["directory"]


async def test_a_file_without_permissions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do anything
    with pytest.raises(StoreRefused, match="permissions"):
        async with opened(path):
            pass
    assert path.read_bytes() == b""


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
async def test_network_filesystems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "far away").mkdir()
    escaped = str(tmp_path / "far away").replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/x {escaped} {kind} rw 0 0\n/dev/vda / ext4 rw 0 0\nnone {tmp_path}/far nfs rw 0 0\n")
    monkeypatch.setattr(sqlite_file, "MOUNTS", mounts)
    with pytest.raises(StoreRefused, match=f"network filesystem .{kind}"):
        async with opened(tmp_path / "far away" / "x.db"):
            pass
    assert names(tmp_path / "far away") == []
    async with opened(tmp_path / "x.db"):
        pass


async def test_where_nobody_tells_the_filesystem_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "MOUNTS", tmp_path / "no such file")
    async with opened(tmp_path / "x.db"):
        pass


async def test_many_may_create_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    children = [start_child(f"create(Path({str(path)!r}), {number})") for number in range(4)]
    for child in children:
        with child:
            assert await line_of(child) == "created"
            assert child.wait() == 0
    async with opened(path) as store:
        assert await store.counts() == {("default", Status.QUEUED): 4}


async def test_a_worker_has_one_connection(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "twin") as store:
        with pytest.raises(StoreRefused, match="'twin'"):
            async with opened(path, "twin"):
                pass
        await submit(store, 1)
    async with opened(path, "twin"):
        pass


async def test_the_file_shrinks_after_a_prune(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as store:
        await submit(store, *range(3000))
        claimed = await store.claim(queues=["default"], names=["send"], limit=3000, lease_ms=10_000)
        await store.commit([after(item.job, succeed()) for item in claimed])
    before = path.stat().st_size
    async with opened(path) as store:
        assert await store.prune(ended_before_ms=2**50, limit=5000) == 3000
        assert await store.prune(ended_before_ms=2**50, limit=5000) == 0
    assert path.stat().st_size < before / 2
    rows = "SELECT (SELECT count(*) FROM event) + (SELECT count(*) FROM request) + (SELECT count(*) FROM attempt)"
    assert scalar(path, rows) == 0
    assert scalar(path, "PRAGMA integrity_check") == "ok"


async def test_a_purge_leaves_no_row_behind(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as store:
        await submit(store, 1, 2)
        first, second = await store.claim(queues=["default"], names=["send"], limit=2, lease_ms=10_000)
        ended, other = after(first.job, succeed()), after(second.job, succeed())
        # One that was stored before it goes, and one that ends and goes in the same batch.
        await store.commit([ended])
        await store.commit([Delete(expected=ended.job), other, Delete(expected=other.job)])
    for table in ("job", "request", "event", "attempt"):
        assert scalar(path, f"SELECT count(*) FROM {table}") == 0, table


async def test_whoever_is_killed_while_he_makes_it_leaves_what_the_next_can_finish(tmp_path: Path) -> None:
    with start_python(LAY_OUT_AND_DIE, str(tmp_path)) as child:
        steps = int(await line_of(child))
    assert steps > 10
    for path in [tmp_path / f"{step}.db" for step in range(steps + 1)]:
        async with opened(path) as store:
            await submit(store, 1)
        assert (scalar(path, "PRAGMA journal_mode"), scalar(path, "PRAGMA auto_vacuum")) == ("wal", 2), path
        assert scalar(path, "PRAGMA user_version") == USER_VERSION
        assert scalar(path, "PRAGMA integrity_check") == "ok"


async def a_store_without_wal(path: Path) -> None:
    async with opened(path) as store:
        await submit(store, 1)
    run_sql(path, "PRAGMA journal_mode = DELETE")


async def test_a_copy_that_lost_its_wal_mode_gets_it_back(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await a_store_without_wal(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM job").fetchall()

        async def let_go() -> None:
            await trio.sleep(0.3)
            other.execute("ROLLBACK")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_go)
            async with opened(path) as store:
                assert await store.counts() == {("default", Status.QUEUED): 1}
    assert scalar(path, "PRAGMA journal_mode") == "wal"


async def test_wal_mode_that_someone_keeps_from_it_is_an_outage(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await a_store_without_wal(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM job").fetchall()
        with pytest.raises(StoreUnavailable, match="locked"):
            async with opened(path):
                pass
    async with opened(path):
        pass
    assert scalar(path, "PRAGMA journal_mode") == "wal"
