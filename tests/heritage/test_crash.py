"""2.C of the other library, where real files and real processes matter: a crash between any two steps, a process that slept.

Each test is named by the defect's number in ``docs/from-asyncendpoints.md``.
"""

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.e2e.harness import Site, check_records, post, until, until_ended
from tests.heritage.kit import opened_store

from callboard.runtime.core.commands import Command, Release, Stop
from callboard.runtime.core.job import Status
from callboard.stores.conformance_bench import after, cancel, failing, progress, retry, submit, succeed
from callboard.stores.sqlite import SqliteStore

START_MS = 1_700_000_000_000
CLAIM: dict[str, Any] = {"queues": ["default"], "names": ["send"], "limit": 100, "lease_ms": 10_000}


class Crashes:
    """The files as they are before each statement of each connection, what a kill at that moment leaves: a copy of each state."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.accepted: set[str] = set()
        """What has been answered so far."""
        self.copies: list[tuple[Path, set[str], str]] = []
        self.steps: set[str] = set()
        """The kinds of statements between which it was looked."""
        self._last: tuple[list[bytes], set[str]] | None = None

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Every connection that is made inside tells of its statements."""
        connect = sqlite3.connect

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(self.copy)
            return connection

        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", connected)
            yield

    def copy(self, statement: str) -> None:
        """What a kill before ``statement`` leaves."""
        if statement.startswith(("PRAGMA", "SELECT")) or not self.path.exists():
            return  # nothing has been written since the last copy
        self.steps.add(statement.split()[0])
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        found = [file.read_bytes() if file.exists() else b"" for file in files], set(self.accepted)
        if found == self._last:
            return  # a kill here leaves what one before the last statement leaves: most of a transaction is in no file yet
        self._last = found
        copy = self.folder / f"{len(self.copies)}.db"
        for path, data in zip((copy, copy.with_name(f"{copy.name}-wal")), found[0], strict=True):
            if data:
                path.write_bytes(data)
        self.copies.append((copy, found[1], statement))


async def test_c07_a_crash_between_any_two_steps_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the write of a job and the write of its place in the queue left a job that nobody ever ran."""
    now_ms = START_MS
    folder = tmp_path / "copies"
    folder.mkdir()
    crashes = Crashes(tmp_path / "jobs.db", folder)
    with crashes.watched(monkeypatch):
        store = await opened_store(SqliteStore(crashes.path, clock=lambda: now_ms, inline_commit_below_ms=1e9))
        for number in range(1, 10):
            crashes.accepted |= {job.id for job in await submit(store, number, max_retries=1)}
        delayed = await submit(store, 10, status=Status.SCHEDULED, due_ms=START_MS + 5000)
        crashes.accepted |= {job.id for job in delayed}
        claimed = [one.job for one in await store.claim(**CLAIM)]
        endings: list[tuple[Command, ...]] = [
            (succeed(),),
            (failing(delay_ms=1000),),
            (Release(now_ms=now_ms),),
            (progress(50), succeed()),
            (cancel(), Stop(now_ms=now_ms)),
        ]
        for job, commands in zip(claimed, endings, strict=False):
            await store.commit([after(job, *commands)])
        (canceled,) = await store.get([claimed[4].id])
        assert canceled is not None
        await store.commit([after(canceled, retry())])
        now_ms += 20_000
        await store.lapse(limit=2)
        await store.claim(**CLAIM)
        await store.aclose()
    assert len(crashes.copies) > 15
    assert crashes.steps >= {"BEGIN", "INSERT", "UPDATE", "COMMIT"}
    for copy, accepted, statement in crashes.copies:
        await check_rescued(copy, accepted, statement)


async def check_rescued(copy: Path, accepted: set[str], statement: str) -> None:
    """Every job that was answered for is there, whole, and can be run to its end by the next process."""
    check_records(copy)
    now_ms = START_MS + 100_000
    store = SqliteStore(copy, clock=lambda: now_ms, synchronous="NORMAL", inline_commit_below_ms=1e9)
    await opened_store(store, "next")
    await store.lapse(limit=100)
    for one in await store.claim(**CLAIM):
        await store.commit([after(one.job, succeed(now_ms))])
    jobs = dict(zip(sorted(accepted), await store.get(sorted(accepted)), strict=True))
    for job_id, job in jobs.items():
        assert job is not None, f"{job_id} is gone after a crash before {statement}"
        assert job.status in ("Completed", "Canceled"), f"{job} is stranded by a crash before {statement}"
        history = [record.attempt for record in await store.attempts(job_id)]
        assert history == list(range(1, job.attempt + 1)), f"{history} of {job} after a crash before {statement}"
    ended = {status for (_, status), count in (await store.counts()).items() if count}
    assert ended <= {Status.COMPLETED, Status.CANCELED}, f"{ended} after a crash before {statement}"
    await store.aclose()


def test_c07_the_crashes_are_real(tmp_path: Path) -> None:
    """The copies above show what a kill leaves: of a transaction that is not committed, nothing."""
    path = tmp_path / "jobs.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "BEGIN", "INSERT INTO t VALUES (1)"):
        connection.execute(statement)
    crashes = Crashes(path, tmp_path)
    crashes.copy("COMMIT")
    connection.execute("COMMIT")
    crashes.copy("BEGIN")
    connection.close()
    counted = []
    for copy, _, _ in crashes.copies:
        with closing(sqlite3.connect(copy)) as left:
            counted += left.execute("SELECT count(*) FROM t").fetchone()
    assert counted == [0, 1]


@pytest.mark.e2e
async def test_c06_a_process_that_slept_through_its_lease_writes_no_outcome(servers: Site) -> None:
    """A job that was recovered while it ran was run twice, and the late result of the first owner replaced the second's."""
    sleeper = await servers.start(lease_seconds=2)
    async with sleeper.http() as http:
        job = await post(http, "quick", seconds=4, value="x")
        await until(lambda: servers.journal.running_in(sleeper.pid) == {job["id"]}, "it runs")
        sleeper.process.send_signal(signal.SIGSTOP)
        other = await servers.start(lease_seconds=2)
        async with other.http() as elsewhere:
            await until(lambda: servers.journal.running_in(other.pid) == {job["id"]}, "it is taken over")
            sleeper.process.send_signal(signal.SIGCONT)
            ended = await until_ended(elsewhere, job["id"])
            assert (ended["status"], ended["attempt"]) == ("Completed", 2)
            assert ended["result"] == {"value": "x", "attempt": 2}
            # The first attempt has ended, on its own accord and without a word.
            await until(lambda: not servers.journal.running_in(sleeper.pid), "the first attempt ends")
            await trio.sleep(0.5)
            assert (await until_ended(elsewhere, job["id"])) == ended == (await until_ended(http, job["id"]))
    assert [line.attempt for line in servers.journal.starts(job["id"])] == [1, 2]
    servers.check_output()
