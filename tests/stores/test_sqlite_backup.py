"""A live file is copied and restored by what docs/operations.md says, taken from the document word for word."""

import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from tests.e2e.harness import check_records, until
from tests.stores.kit import CHILD, names, opened, scalar, start_python

from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import JobFilter
from callboard.stores.conformance_bench import after, submit, succeed
from callboard.stores.sqlite import SqliteStore

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()

LOAD = f"""{CHILD}
async def load(path):
    store = SqliteStore(path)
    await store.open(worker="loader", max_events_per_job=50, max_attempts_per_job=100)
    number = 0
    while True:
        batch = range(number, number + 20)
        await store.commit([birth(one) for one in batch])
        number = batch.stop
        taken = await store.claim(queues=["default"], names=["send"], limit=10, lease_ms=3_600_000)
        await store.commit([after(one.job, succeed()) for one in taken[:7]])
        print(number, flush=True)

trio.run(load, Path(sys.argv[1]))
"""
"""Jobs by the twenty: ten wait, three are held, seven are done. Each number was stored when it is printed, and all below it."""


def block(language: str, word: str) -> str:
    """The one block of the document in that language with that word in it."""
    found: str
    (found,) = [text for text in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S) if word in text]
    return found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """backup.py, as a reader would save it."""
    path = tmp_path / "backup.py"
    path.write_text(block("python", "def back_up"))
    return path


@contextmanager
def loaded(database: Path) -> Iterator[list[int]]:
    """A process that fills the store, killed at the end; the newest number that it has told is the last of the list."""
    told = [0]
    with start_python(LOAD, str(database)) as child:

        def listen() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                told.append(int(line))

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield told
        finally:
            child.kill()
            listener.join()


async def grown(told: list[int], number: int) -> None:
    await until(lambda: told[-1] >= number, f"{number} jobs are stored", seconds=60)


def back_up(script: Path, database: Path, copy: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, database, copy], capture_output=True, text=True, timeout=60)


def restore(database: Path, copy: Path) -> None:
    """What the document says, but for the parts that need a service manager and other users."""
    first, rest = block("sh", "systemctl").split("\n", 1)
    assert first == "db=/var/lib/shop/jobs.db copy=/backups/jobs.db"
    lines = [line for line in rest.splitlines() if not line.startswith("systemctl ")]
    source = "\n".join((f"db='{database}' copy='{copy}'", *lines)).replace(" -o shop -g shop", "")
    subprocess.run(["sh", "-eu", "-c", source], check=True, timeout=60)


def ids_of(database: Path) -> set[str]:
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
    found = {job_id for (job_id,) in connection.execute("SELECT id FROM job")}
    connection.close()
    return found


async def test_what_was_stored_before_a_backup_of_a_live_file_is_in_it(tmp_path: Path, script: Path) -> None:
    database = tmp_path / "jobs.db"
    copies = []
    with loaded(database) as told:
        for round_number in range(1, 6):
            await grown(told, told[-1] + 200)
            before, copy = told[-1], tmp_path / f"copy-{round_number}.db"
            done = await trio.to_thread.run_sync(back_up, script, database, copy)
            assert done.returncode == 0, done.stderr
            copies.append((copy, before, told[-1]))
            assert ids_of(copy) >= {str(uuid.UUID(int=number)) for number in range(before)}
        assert copies[-1][2] > copies[-1][1], "nothing was written during a backup: this shows nothing"
    for copy, _, _ in copies:
        assert copy.stat().st_mode & 0o777 == 0o600
        assert not [name for name in names(tmp_path) if name.startswith(f"{copy.name}-") or name.endswith(".part")]
        assert copy.read_bytes()[18:20] == b"\1\1", "it would need a -wal beside it"
        check_records(copy)


async def test_a_restored_file_goes_on_and_takes_back_what_ran(tmp_path: Path, script: Path) -> None:
    database, copy = tmp_path / "jobs.db", tmp_path / "copy.db"
    with loaded(database) as told:
        await grown(told, 200)
        before = told[-1]
        assert back_up(script, database, copy).returncode == 0
        await grown(told, before + 400)
    # The loader was killed: its -wal lies there, and must not be played into the restored file.
    assert database.with_name("jobs.db-wal").stat().st_size > 0
    was_there = ids_of(copy)
    restore(database, copy)
    assert "jobs.db-wal" not in names(tmp_path) and "jobs.db-wal" in names(tmp_path / "jobs.db.replaced")
    async with opened(database, "next") as store:
        running = await all_jobs(store, Status.IN_PROGRESS)
        assert running
        lapsed = await store.lapse(limit=1000)
        assert {one.job.id for one in lapsed} == {job.id for job in running}
        assert all((one.job.status, one.job.lost_leases) == (Status.QUEUED, 1) for one in lapsed)
        assert {job.id for job in await all_jobs(store)} == was_there
        while claimed := await store.claim(queues=["default"], names=["send"], limit=500, lease_ms=60_000):
            await store.commit([after(one.job, succeed()) for one in claimed])
        assert {job.status for job in await all_jobs(store)} == {Status.COMPLETED}
        await submit(store, 10**9)
        check_records(database)
    assert database.stat().st_mode & 0o777 == 0o600


async def all_jobs(store: SqliteStore, *statuses: Status) -> list[Job]:
    jobs: list[Job] = []
    cursor: str | None = None
    while True:
        page = await store.list(JobFilter(statuses=statuses), cursor=cursor, limit=500)
        jobs += page.jobs
        cursor = page.next
        if cursor is None:
            return jobs


async def test_a_file_that_nobody_uses_is_copied_too(tmp_path: Path, script: Path) -> None:
    database, copy = tmp_path / "jobs.db", tmp_path / "copy.db"
    async with opened(database) as store:
        await submit(store, 1, 2)
    before = names(tmp_path)
    assert back_up(script, database, copy).returncode == 0
    assert names(tmp_path) == sorted([*before, "copy.db"])
    assert ids_of(copy) == ids_of(database)


async def test_a_backup_replaces_the_last_one_only_when_it_is_whole(tmp_path: Path, script: Path) -> None:
    database, copy = tmp_path / "jobs.db", tmp_path / "copy.db"
    async with opened(database) as store:
        await submit(store, *range(300))
    # What a backup that was killed has left is in nobody's way.
    copy.with_name("copy.db.part").write_bytes(b"half of it")
    assert back_up(script, database, copy).returncode == 0
    whole = copy.read_bytes()
    with database.open("r+b") as file:
        # More free pages than there are. Source: sqlite.org/fileformat.html, 1.3.
        file.seek(36)
        file.write((7).to_bytes(4, "big"))
    refused = back_up(script, database, copy)
    assert refused.returncode != 0
    assert "is damaged" in refused.stderr
    assert back_up(script, tmp_path / "no such.db", copy).returncode != 0
    assert copy.read_bytes() == whole
    assert not (tmp_path / "no such.db").exists()


async def test_vacuum_into_does_too(tmp_path: Path) -> None:
    """The command line's words, by the library: the program need not be there."""
    database, copy = tmp_path / "jobs.db", tmp_path / "copy.db"
    (statement,) = re.findall(r'"(VACUUM INTO \'/backups/jobs.db\')"', PAGE)
    async with opened(database) as store:
        await submit(store, *range(50))
        connection = sqlite3.connect(database)
        connection.execute(statement.replace("/backups/jobs.db", str(copy)))
        connection.close()
        was_there = ids_of(database)
    check_records(copy)
    async with opened(copy) as store:
        assert {job.id for job in await all_jobs(store)} == was_there
        assert await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=1000)
        # The restored file gives its space back as the first did.
        assert scalar(copy, "PRAGMA auto_vacuum") == 2


async def test_a_plain_copy_is_none(tmp_path: Path) -> None:
    """Why the document says so: what was committed last is not in the file itself."""
    database, copy = tmp_path / "jobs.db", tmp_path / "copy.db"
    async with opened(database) as store:
        await submit(store, 1)
        shutil.copyfile(database, copy)
        assert len(ids_of(database)) == 1
    assert ids_of(copy) == set()
