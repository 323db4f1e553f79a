"""What the tests of the SQLite driver share: stores that close, glances at the file past the driver, processes that use it."""

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import trio

from callboard.stores.sqlite import SqliteStore

__all__ = ["CHILD", "LAY_OUT_AND_DIE", "line_of", "names", "opened", "run_sql", "scalar", "start_child", "start_python"]


@asynccontextmanager
async def opened(path: Path, worker: str = "w", **options: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, **options)
    await store.open(worker=worker, max_events_per_job=50, max_attempts_per_job=100)
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


CHILD = """
import sys
from pathlib import Path
import trio
from callboard.stores.conformance_bench import after, birth, submit, succeed
from callboard.stores.sqlite import SqliteStore
from callboard.stores.sqlite_crew import Crew

async def create(path, number):
    store = SqliteStore(path)
    await store.open(worker=str(number), max_events_per_job=50, max_attempts_per_job=100)
    await submit(store, number)
    await store.aclose()
    print("created", flush=True)

async def hold(path):
    store = SqliteStore(path)
    await store.open(worker="child", max_events_per_job=50, max_attempts_per_job=100)
    claimed = await store.claim(queues=["default"], names=["send"], limit=2, lease_ms=3_600_000)
    print(len(claimed), flush=True)
    await trio.sleep_forever()

def live(path):
    Crew(path, "child")
    print("alive", flush=True)
    sys.stdin.readline()

async def toil(path, number, seconds):
    store = SqliteStore(path)
    await store.open(worker=f"toiler {number}", max_events_per_job=50, max_attempts_per_job=100)
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


LAY_OUT_AND_DIE = """
import os, signal, shutil, sqlite3, sys
from callboard.stores.sqlite_schema import lay_out

class Dying:
    def __init__(self, connection, steps):
        self.connection, self.steps = connection, steps
    def execute(self, statement):
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps -= 1
        return self.connection.execute(statement)

old = f"{sys.argv[1]}/old.db"
for steps in range(100):
    path = f"{sys.argv[1]}/{steps}.db"
    if os.path.exists(old):
        shutil.copyfile(old, path)
    if os.fork() == 0:
        lay_out(Dying(sqlite3.connect(path, isolation_level=None), steps))
        os._exit(0)
    if os.wait()[1] == 0:
        print(steps)
        break
"""
"""Lays out a fresh file, or a copy of ``old.db``, and dies before its first statement, its second, and so on; how many it survived."""
