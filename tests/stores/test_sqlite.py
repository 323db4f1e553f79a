"""What only the SQLite driver promises: whose file it is, who shares it, what happens when the disk or a process fails."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Committed, JobFilter, Write
from callboard.stores import pace, sqlite_file
from callboard.stores.conformance_bench import after, birth, cancel, job, submit, succeed
from callboard.stores.filelock import FairLock, LifeLock, is_dead, life_lock_path, remove_dead
from callboard.stores.sqlite import SqliteStore
from callboard.stores.sqlite_schema import APPLICATION_ID, USER_VERSION


@asynccontextmanager
async def opened(path: Path, worker: str = "w", **options: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, **options)
    await store.open(worker=worker, max_events_per_job=50)
    try:
        yield store
    finally:
        await store.aclose()


def run_sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()


def names(directory: Path) -> list[str]:
    return sorted(item.name for item in directory.iterdir())


def start_python(source: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", source, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def scalar(path: Path, statement: str) -> Any:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchone()[0]


async def ours_of_version(path: Path, version: int) -> None:
    async with opened(path):
        pass
    run_sql(path, f"PRAGMA user_version = {version}")


# Whose file it is


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


# Who shares it


CHILD = """
import sys
from pathlib import Path
import trio
from callboard.stores.conformance_bench import after, birth, submit, succeed
from callboard.stores.sqlite import SqliteStore

async def create(path, number):
    store = SqliteStore(path)
    await store.open(worker=str(number), max_events_per_job=50)
    await submit(store, number)
    await store.aclose()
    print("created", flush=True)

async def hold(path):
    store = SqliteStore(path)
    await store.open(worker="child", max_events_per_job=50)
    claimed = await store.claim(queues=["default"], names=["send"], limit=2, lease_ms=3_600_000)
    print(len(claimed), flush=True)
    await trio.sleep_forever()

async def toil(path, number, seconds):
    store = SqliteStore(path)
    await store.open(worker=f"toiler {number}", max_events_per_job=50)
    print("ready", flush=True)
    sys.stdin.readline()
    done, longest, stop = 0, 0.0, trio.current_time() + seconds
    while trio.current_time() < stop:
        begin = trio.current_time()
        await store.commit([birth(number * 10**6 + done)])
        longest, done = max(longest, trio.current_time() - begin), done + 1
    print(done, longest, flush=True)
    await store.aclose()
"""


def start_child(call: str) -> subprocess.Popen[str]:
    return start_python(f"{CHILD}\ntrio.run(lambda: {call})")


async def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    with trio.fail_after(20):
        return (await trio.to_thread.run_sync(child.stdout.readline)).strip()


async def test_the_jobs_of_a_killed_process_come_back_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "parent") as store:
        await submit(store, 1, 2, 3)
        (mine,) = await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=3_600_000)
        with start_child(f"hold(Path({str(path)!r}))") as child:
            try:
                assert await line_of(child) == "2"
                cursor = (await store.wait_news(None)).cursor
                # As long as it lives nothing is taken from it.
                assert await store.lapse(limit=10) == []
                with trio.move_on_after(0.6) as patience:
                    await store.wait_news(cursor)
                assert patience.cancelled_caught
                assert life_lock_path(path, "child").exists()
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait()
        with trio.fail_after(2):
            assert (await store.wait_news(cursor)).holder_died
        first = await store.lapse(limit=1)
        second = await store.lapse(limit=10)
        assert [item.job.status for item in (*first, *second)] == [Status.QUEUED, Status.QUEUED]
        assert {item.job.id for item in (*first, *second)} == {job(2).id, job(3).id}
        assert await store.lapse(limit=10) == []
        assert not life_lock_path(path, "child").exists()
        assert (await store.get([mine.job.id]))[0] == mine.job
        with trio.move_on_after(0.6) as patience:
            await store.wait_news(cursor)
        assert patience.cancelled_caught


async def test_a_restart_after_a_kill_takes_the_jobs_back_even_under_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "parent") as store:
        await submit(store, 1, 2)
    with start_child(f"hold(Path({str(path)!r}))") as child:
        assert await line_of(child) == "2"
        child.send_signal(signal.SIGKILL)
        child.wait()
    async with opened(path, "child") as store:
        assert len(await store.lapse(limit=10)) == 2


async def test_a_store_that_closes_while_it_holds_jobs_gives_them_up(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "here") as store:
        async with opened(path, "there/with: odd name" + "x" * 300) as other:
            await submit(store, 1)
            (claimed,) = await other.claim(queues=["default"], names=["send"], limit=1, lease_ms=10_000_000)
            assert await store.lapse(limit=1) == []
            assert (await other.lapse(limit=1)) == []
        (lapsed,) = await store.lapse(limit=1)
        assert (lapsed.job.id, lapsed.job.fence) == (claimed.job.id, 0)
        assert await store._connected().engine.read(lambda c: c.execute("SELECT name FROM worker").fetchall()) == [
            ("here",)
        ]


async def test_who_lets_go_and_asks_again_stands_behind_who_waits(tmp_path: Path) -> None:
    files = tmp_path / "turnstile", tmp_path / "lock"
    busy, waiting, order = FairLock(*files), FairLock(*files), list[str]()

    async def wait() -> None:
        await waiting.acquire(5)
        order.append("waiting")
        waiting.release()

    try:
        async with trio.open_nursery() as nursery:
            await busy.acquire(5)
            nursery.start_soon(wait)
            await trio.sleep(0.02)
            busy.release()
            await busy.acquire(5)
            order.append("busy")
            busy.release()
        assert order == ["waiting", "busy"]
    finally:
        busy.close()
        waiting.close()


async def test_two_busy_processes_get_about_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path):
        pass
    with (
        start_child(f"toil(Path({str(path)!r}), 1, 1.5)") as one,
        start_child(f"toil(Path({str(path)!r}), 2, 1.5)") as two,
    ):
        for child in (one, two):
            assert await line_of(child) == "ready"
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        shares = [(await line_of(child)).split() for child in (one, two)]
    done = [int(share[0]) for share in shares]
    assert sum(done) > 40
    assert min(done) * 4 > max(done), shares
    assert max(float(share[1]) for share in shares) < 1.0, shares
    assert scalar(path, "SELECT count(*) FROM job") == sum(done)


async def test_news_cross_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "parent") as store:
        cursor = (await store.wait_news(None)).cursor
        await submit(store, 1, 2)
        with start_child(f"hold(Path({str(path)!r}))") as child:
            with trio.fail_after(20):
                news = await store.wait_news(cursor)
            child.kill()
        assert [(event.job_id, event.seq) for event in news.events] == [(job(1).id, 2), (job(2).id, 2)]


async def test_more_news_than_fit_into_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "here") as here, opened(path, "there") as there:
        cursor, seen = (await here.wait_news(None)).cursor, list[str]()
        await submit(there, *range(2500))
        for size in (1000, 1000, 500):
            news = await here.wait_news(cursor)
            assert (len(news.events), news.complete) == (size, True)
            cursor, seen = news.cursor, seen + [event.job_id for event in news.events]
        assert seen == [job(number).id for number in range(2500)]


async def test_a_news_cursor_from_the_future_is_not_complete(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db") as store:
        news = await store.wait_news("n999")
        assert (news.complete, news.cursor) == (False, "n0")
        with pytest.raises(ValueError, match="cursor"):
            await store.wait_news("b1")


async def test_a_life_lock_that_is_held_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "x-worker-w.lock"
    assert is_dead(path)
    remove_dead(path)
    assert not path.exists()
    lock = LifeLock(path)
    try:
        remove_dead(path)
        assert path.exists()
        assert not is_dead(path)
        with pytest.raises(BlockingIOError):
            LifeLock(path)
    finally:
        lock.close()
    assert not path.exists()
    path.touch()
    assert is_dead(path)
    remove_dead(path)
    assert not path.exists()


# What happens when something fails


async def test_a_database_that_another_program_keeps_locked(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as store:
        (first,) = await submit(store, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            begin, ticks = trio.current_time(), 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await trio.sleep(0.05)
                    ticks += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                with pytest.raises(StoreUnavailable) as caught:
                    await submit(store, 2)
                nursery.cancel_scope.cancel()
            assert 1.8 < trio.current_time() - begin < 4
            assert ticks > 15  # the loop went on meanwhile
            assert "x.db" not in str(caught.value) and isinstance(caught.value.__cause__, sqlite3.Error)
            assert (await store.get([first.id]))[0] == first

            async def let_go() -> None:
                await trio.sleep(0.3)
                other.execute("ROLLBACK")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(let_go)
                await submit(store, 3)
        assert await store.counts() == {("default", Status.QUEUED): 2}


async def test_a_process_that_stops_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "here") as here, opened(path, "there") as there:
        lock = there._connected().engine._lock
        await lock.acquire(1)
        with pytest.raises(StoreUnavailable, match="another process"):
            await submit(here, 1)
        lock.release()
        await submit(here, 1)


class Broken:
    """A connection whose chosen statement fails as SQLite would make it fail."""

    def __init__(self, connection: sqlite3.Connection, when: str, error: Exception) -> None:
        self._connection, self._when, self._error = connection, when, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *args: Any) -> Any:
        if statement.startswith(self._when):
            raise self._error
        return self._connection.execute(statement, *args)

    def executemany(self, statement: str, *args: Any) -> Any:
        if statement.startswith(self._when):
            raise self._error
        return self._connection.executemany(statement, *args)

    def commit(self) -> None:
        if self._when == "COMMIT":
            raise self._error
        self._connection.commit()

    def rollback(self) -> None:
        if self._when == "COMMIT":
            raise self._error
        self._connection.rollback()


@pytest.mark.parametrize("when", ["INSERT INTO event", "COMMIT"])
@pytest.mark.parametrize("inline_commit_below_ms", [0, 1000])
async def test_a_full_disk_undoes_the_whole_batch(tmp_path: Path, when: str, inline_commit_below_ms: float) -> None:
    async with opened(tmp_path / "x.db", inline_commit_below_ms=inline_commit_below_ms) as store:
        (first,) = await submit(store, 1)
        engine = store._connected().engine
        whole = engine._writer
        assert whole is not None
        engine._writer = Broken(whole, when, sqlite3.OperationalError("database or disk is full"))  # type: ignore[assignment]
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await store.commit([birth(2), after(first, cancel())])
        assert await store.counts() == {("default", Status.QUEUED): 1}
        # When the cause is gone it works again by itself, with the serial that was not used.
        (second,) = await submit(store, 2)
        assert second.serial == first.serial + 1
        assert (await store.get([first.id]))[0] == first


async def test_a_real_full_database_undoes_the_whole_batch(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db") as store:
        await submit(store, 1)
        writer = store._connected().engine._writer
        assert writer is not None
        writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0] + 2}")
        with pytest.raises(StoreUnavailable, match="full"):
            await submit(store, *range(2, 2000))
        assert await store.counts() == {("default", Status.QUEUED): 1}
        await submit(store, *range(2, 2000))
        assert await store.counts() == {("default", Status.QUEUED): 1999}


async def test_a_bug_is_not_called_an_outage(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db") as store:
        (first,) = await submit(store, 1)
        engine = store._connected().engine
        with pytest.raises(sqlite3.ProgrammingError):
            await engine.write(lambda connection: connection.execute("SELECT ?"))
        with pytest.raises(sqlite3.ProgrammingError):
            await engine.read(lambda connection: connection.execute("SELECT ?"))
        with pytest.raises(ValueError, match="may not change"):
            await store.commit([birth(2), Write(job=replace(first, key="k"), events=(), expected=first)])
        assert await store.counts() == {("default", Status.QUEUED): 1}
        await submit(store, 2)


async def test_a_file_that_was_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(tmp_path / "other.db") as other:
        await submit(other, 7)
    async with opened(path) as store:
        await submit(store, 1)
        version = (await store.wait_news(None)).cursor
        path.rename(tmp_path / "away.db")
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"x.db{suffix}").rename(tmp_path / f"away.db{suffix}")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await submit(store, 2)
        assert not path.exists()
        (tmp_path / "other.db").rename(path)
        await submit(store, 2)
        assert await store.counts() == {("default", Status.QUEUED): 2}
        assert [found.id for found in (await store.list(JobFilter(), cursor=None, limit=9)).jobs] == [
            job(2).id,
            job(7).id,
        ]
        assert version == "n1"


async def test_a_damaged_file_is_an_outage(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as store:
        await submit(store, 1)
        reader = store._connected().engine
        await store.counts()
        assert reader._reader is not None
        reader._reader = Broken(reader._reader, "SELECT", sqlite3.DatabaseError("malformed"))  # type: ignore[assignment]
        with pytest.raises(StoreUnavailable, match="malformed"):
            await store.counts()
        assert await store.counts() == {("default", Status.QUEUED): 1}


async def test_a_record_of_a_newer_callboard_is_refused_and_undone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as store:
        (first, _) = await submit(store, 1, 2)
        run_sql(
            path,
            "UPDATE job SET record = CAST(replace(record, '\"schema\":1', '\"schema\":99') AS BLOB) WHERE serial = 1",
        )
        with pytest.raises(StoreRefused, match="schema 99"):
            await store.commit([birth(3), after(first, cancel())])
        with pytest.raises(StoreRefused, match="schema 99"):
            await store.get([first.id])
        assert await store.counts() == {("default", Status.QUEUED): 2}
        await submit(store, 3)


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "x.db")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="not open"):
            await store.counts()
        with pytest.raises(StoreUnavailable, match="not open"):
            await store.now_ms()
        with pytest.raises(StoreUnavailable, match="not open"):
            await store.commit([birth(1)])
        await store.open(worker="w", max_events_per_job=5)
        await store.aclose()


async def test_closing_waits_for_a_write_and_stops_the_next(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db", inline_commit_below_ms=0) as store:
        engine, outcomes = store._connected().engine, list[object]()

        async def write(number: int) -> None:
            try:
                outcomes.extend(await store.commit([birth(number)]))
            except StoreUnavailable as error:
                outcomes.append(str(error))

        await submit(store, 9)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, 1)
            while not engine._writing.locked():
                await trio.lowlevel.checkpoint()
            nursery.start_soon(engine.aclose)
            await trio.lowlevel.checkpoint()
            nursery.start_soon(write, 2)
        assert isinstance(outcomes[0], Committed) and outcomes[1] == "the store is not open"


async def test_a_cancelled_write_ends_whole_or_not_at_all(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db", inline_commit_below_ms=0) as store:
        await submit(store, 0)
        for number in range(1, 30):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.commit, [birth(2 * number), birth(2 * number + 1)])
                    for _ in range(number % 6):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            found = await store.get([job(2 * number).id, job(2 * number + 1).id])
            assert (found[0] is None) == (found[1] is None)
        writer = store._connected().engine._writer
        assert writer is not None and not writer.in_transaction
        await submit(store, 1000)


async def test_commits_leave_the_loop_when_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    run_sync = trio.to_thread.run_sync

    async def spy(*args: Any, **options: Any) -> Any:
        threads.append(args)
        return await run_sync(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", spy)
    async with opened(tmp_path / "x.db", inline_commit_below_ms=10_000) as fast:
        for number in range(5):
            await submit(fast, number)
        assert threads == []
    async with opened(tmp_path / "x.db", inline_commit_below_ms=0) as slow:
        for number in range(100, 170):
            await submit(slow, number)
        # The first measures, and one of 64 looks whether the disk has become faster.
        assert 60 < len(threads) < 70


async def test_the_loop_naps_while_a_commit_is_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(pace, "time", SimpleNamespace(sleep=naps.append, perf_counter=time.perf_counter))
    async with opened(tmp_path / "x.db", inline_commit_below_ms=0) as store:
        await submit(store, 0)
        naps.clear()
        await submit(store, 1)
        assert naps and all(0 < nap < 0.001 for nap in naps)
        naps.clear()
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        assert naps == []


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
    assert scalar(path, "SELECT (SELECT count(*) FROM event) + (SELECT count(*) FROM request)") == 0
    assert scalar(path, "PRAGMA integrity_check") == "ok"
