"""What an SQLite store does when the disk, another program or a caller fails: whole or not at all, and then on."""

import resource
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from tests.stores.kit import opened, run_sql

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Committed, JobFilter, Write
from callboard.stores.conformance_bench import after, birth, cancel, job, submit
from callboard.stores.sqlite import SqliteStore


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


async def test_on_a_full_disk_a_write_that_changes_nothing_fails_too(tmp_path: Path) -> None:
    """It would look as if there was room again, and the next job would tell the contrary."""
    path = tmp_path / "x.db"
    async with opened(path) as store:
        await submit(store, 1)
        # Files grow no more, as where there is no room.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("x.db-wal").stat().st_size, hard))
        try:
            assert not await store.lapse(limit=10)
            with pytest.raises(StoreUnavailable):
                await submit(store, 2)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await store.lapse(limit=10)
            assert await store.counts() == {("default", Status.QUEUED): 1}
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not await store.lapse(limit=10)
        await submit(store, 2)


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
        assert version == "n1.0"


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
        await store.open(worker="w", max_events_per_job=5, max_attempts_per_job=100)
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
