"""What the tests of another library's defects share: databases of both kinds on virtual time, with connections that can be cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import trio
from tests.runtime.kit import Census, FaultyStore, handler

from callboard.runtime import Config, Handler, JobContext
from callboard.stores.memory import MemoryDatabase
from callboard.stores.sqlite import SqliteStore
from callboard.testing import virtual_now_ms

__all__ = ["IDLE", "NO_NET", "Depot", "Kind", "working"]

Kind = Literal["memory", "sqlite"]

IDLE = Config(max_concurrent_jobs=0)
NO_NET = Config(poll_seconds=100_000)
"""Whoever misses a wake-up message misses it for good."""


class Depot:
    """One database; each connection stands for a process.

    The SQLite driver does all its work on the trio thread here, so that virtual time does not run away from it.
    """

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.path = folder / "jobs.db"
        self._memory = MemoryDatabase()

    def connect(self, make: Callable[..., FaultyStore] = FaultyStore, **options: Any) -> FaultyStore:
        """A store that is not open yet."""
        if self.kind == "memory":
            return make(self._memory, **options)
        inner = SqliteStore(self.path, clock=virtual_now_ms, synchronous="NORMAL", inline_commit_below_ms=1e9)
        return make(inner=inner, **options)


def working(census: Census, seconds: float, name: str = "work", **options: Any) -> Handler:
    """A handler that takes so long and is counted."""

    async def work(job: JobContext) -> int:
        with census.attempt(job.id):
            await trio.sleep(seconds)
        return job.attempt

    return handler(name, **options)(work)
