"""What the tests of another library's defects share: databases of both kinds on virtual time, with connections that can be cut."""

from pathlib import Path
from typing import Any, Literal, TypeVar

import trio
from tests.runtime.kit import Census, FaultyStore, handler

from callboard.runtime import Config, Handler, JobContext
from callboard.runtime.core.store import Store
from callboard.stores.memory import MemoryDatabase, MemoryStore
from callboard.stores.sqlite import SqliteStore
from callboard.testing import virtual_now_ms

__all__ = ["IDLE", "Depot", "Kind", "opened_store", "working"]

Kind = Literal["memory", "sqlite"]

T = TypeVar("T", bound=FaultyStore)
S = TypeVar("S", bound=Store)

IDLE = Config(max_concurrent_jobs=0)


class Depot:
    """One database; each connection stands for a process.

    The SQLite driver does all its work on the trio thread here, so that virtual time does not run away from it.
    """

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.path = folder / "jobs.db"
        self._memory = MemoryDatabase()

    def connect(self) -> FaultyStore:
        """A store that is not open yet."""
        return self.behind(FaultyStore())

    def behind(self, store: T) -> T:
        """Let ``store`` stand before this database."""
        if self.kind == "memory":
            store._inner = MemoryStore(self._memory, clock=virtual_now_ms)
        else:
            inner = SqliteStore(self.path, clock=virtual_now_ms, synchronous="NORMAL", inline_commit_below_ms=1e9)
            store._inner = inner  # type: ignore[assignment]
        return store


async def opened_store(store: S, worker: str = "w") -> S:
    """``store``, open."""
    await store.open(worker=worker, max_events_per_job=50, max_attempts_per_job=10)
    return store


def working(census: Census, seconds: float, name: str = "work", **options: Any) -> Handler:
    """A handler that takes so long and is counted."""

    async def work(job: JobContext) -> int:
        with census.attempt(job.id):
            await trio.sleep(seconds)
        return job.attempt

    return handler(name, **options)(work)
