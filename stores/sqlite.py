"""The embedded default: one SQLite file, durable, shared by the processes of one machine.

Every writing verb is one transaction, in WAL mode, under a fair lock between processes. Beside the file ``jobs.db`` lie
``jobs.db-writer.lock`` and ``jobs.db-turnstile.lock`` (that lock) and one ``jobs.db-worker-<name>.lock`` for every open store, by which
the others see at once that its process has died. They must not be removed while a store is open.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio
from msgspec import Struct

from callboard.runtime.core.errors import StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import (
    Claimed,
    Clock,
    Committed,
    Delete,
    Due,
    Extension,
    Held,
    JobFilter,
    News,
    Outcome,
    Page,
    Write,
)
from callboard.stores import sqlite_read, sqlite_write
from callboard.stores.cursors import page_cursor, read_page_cursor
from callboard.stores.memory import system_clock
from callboard.stores.pace import Pace
from callboard.stores.sqlite_crew import Crew
from callboard.stores.sqlite_engine import Engine, Synchronous
from callboard.stores.sqlite_ledger import Ledger
from callboard.stores.sqlite_place import prepare

__all__ = ["SqliteStore"]

_LOOK_SECONDS: Final = 0.02
"""Between two looks at ``PRAGMA data_version``: the one poll that the design allows by name."""

_HOLDERS_SECONDS: Final = 0.25
"""Between two looks whether the holders of leases live."""

T = TypeVar("T")


class _Opened(Struct, frozen=True):
    """What an open store holds."""

    engine: Engine
    crew: Crew
    max_events_per_job: int
    max_attempts_per_job: int

    async def aclose(self) -> None:
        """Let go of everything; the name last, because whoever sees it free takes our jobs."""
        await self.engine.aclose()
        self.crew.close()


class SqliteStore:
    """A store in the file ``path``.

    ``clock`` gives milliseconds since the epoch, by default the host's. ``synchronous="NORMAL"`` is faster and may lose the last
    commits when the machine (not the process) dies. A COMMIT that takes ``inline_commit_below_ms`` or more on average
    runs in a thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        synchronous: Synchronous = "FULL",
        inline_commit_below_ms: float = 2.0,
    ) -> None:
        self._path = Path(path)
        self._clock = system_clock if clock is None else clock
        self._synchronous: Synchronous = synchronous
        self._inline_commit_below_ms = inline_commit_below_ms
        self._opened: _Opened | None = None
        self._look_at_holders_at = 0.0

    async def open(self, *, worker: str, max_events_per_job: int, max_attempts_per_job: int) -> None:
        await trio.lowlevel.checkpoint()
        path = self._path.resolve()
        lock = await prepare(path)
        try:
            # Held before any row can name the worker, so that no one takes a newcomer for dead.
            crew = Crew(path, worker)
        except BaseException:
            lock.close()
            raise
        engine = Engine(path, lock, synchronous=self._synchronous, pace=Pace(self._inline_commit_below_ms))
        opened = _Opened(engine, crew, max_events_per_job, max_attempts_per_job)
        try:
            await engine.write(crew.register)
        except BaseException:
            await opened.aclose()
            raise
        self._opened = opened

    async def aclose(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome]:
        return await self._write(lambda ledger: sqlite_write.commit(ledger, batch))

    async def claim(
        self, *, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int
    ) -> Sequence[Claimed]:
        pairs = [(queue, name) for queue in dict.fromkeys(queues) for name in dict.fromkeys(names)]
        crew = self._connected().crew

        def promote_and_claim(ledger: Ledger) -> list[Claimed] | None:
            now_ms = self._clock()
            if not sqlite_write.promote(ledger.connection, now_ms):
                return None
            until, worker = now_ms + lease_ms, crew.worker
            return sqlite_write.claim(ledger, pairs=pairs, limit=limit, now_ms=now_ms, lease_ms=until, worker=worker)

        while (claimed := await self._write(promote_and_claim)) is None:
            pass
        return claimed

    async def extend(self, held: Sequence[Held], *, lease_ms: int) -> Sequence[Extension]:
        return await self._write(lambda ledger: sqlite_write.extend(ledger, held, lease_ms=self._clock() + lease_ms))

    async def lapse(self, *, limit: int) -> Sequence[Committed]:
        crew = self._connected().crew

        def lapse(ledger: Ledger) -> Sequence[Committed]:
            dead = crew.dead_holders(ledger.connection)
            lapsed = sqlite_write.lapse(ledger, now_ms=self._clock(), dead=dead, limit=limit)
            crew.forget_dead(ledger.connection)
            return lapsed

        return await self._write(lapse)

    async def prune(self, *, ended_before_ms: int, limit: int) -> int:
        return await self._write(
            lambda ledger: sqlite_write.prune(ledger, ended_before_ms=ended_before_ms, limit=limit)
        )

    async def set_paused(self, queue: str, paused: bool) -> bool:
        return await self._write(lambda ledger: sqlite_write.set_paused(ledger.connection, queue, paused))

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        return await self._read(lambda connection: sqlite_read.get(connection, job_ids))

    async def list(self, where: JobFilter, *, cursor: str | None, limit: int) -> Page:
        below: int | None = read_page_cursor(cursor)
        jobs: list[Job] = []
        while below is not None and len(jobs) <= limit:
            part = await self._read(_slicer(where, below, limit + 1 - len(jobs)))
            jobs += part.jobs
            below = part.below
        return Page(tuple(jobs[:limit]), page_cursor(jobs[limit - 1].serial) if len(jobs) > limit else None)

    async def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        return await self._read(lambda connection: sqlite_read.events(connection, job_id, after=after, limit=limit))

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        return await self._read(lambda connection: sqlite_read.attempts(connection, job_id))

    async def next_due(self) -> Due:
        return await self._read(sqlite_read.next_due)

    async def counts(self) -> dict[tuple[str, Status], int]:
        return await self._read(sqlite_read.counts)

    async def ready(self, *, up_to: int) -> dict[tuple[str, str], int]:
        return await self._read(lambda connection: sqlite_read.ready(connection, up_to=up_to))

    async def paused(self) -> Sequence[str]:
        return await self._read(sqlite_read.paused)

    async def now_ms(self) -> int:
        await trio.lowlevel.checkpoint()
        self._connected()
        return self._clock()

    async def wait_news(self, cursor: str | None) -> News:
        if cursor is None:
            return News(cursor=await self._read(sqlite_read.newest))
        engine, version = self._connected().engine, None
        while True:
            newest = (engine.generation, await self._read(_data_version))
            if newest != version:
                version = newest
                news = await self._news(cursor)
                if news.events or not news.complete or news.queues_changed:
                    return news
                cursor = news.cursor
            if await self._a_holder_died():
                return News(cursor=cursor, holder_died=True)
            await trio.sleep(_LOOK_SECONDS)

    def _connected(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailable("the store is not open")
        return self._opened

    async def _write(self, verb: Callable[[Ledger], T]) -> T:
        opened = self._connected()

        def work(connection: sqlite3.Connection) -> T:
            return verb(
                Ledger(
                    connection,
                    origin=opened.crew.origin,
                    max_events_per_job=opened.max_events_per_job,
                    max_attempts_per_job=opened.max_attempts_per_job,
                )
            )

        return await opened.engine.write(work)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._connected().engine.read(work)

    async def _news(self, cursor: str) -> News:
        origin = self._connected().crew.origin
        return await self._read(lambda connection: sqlite_read.news(connection, cursor, origin=origin))

    async def _a_holder_died(self) -> bool:
        if trio.current_time() < self._look_at_holders_at:
            return False
        self._look_at_holders_at = trio.current_time() + _HOLDERS_SECONDS
        return bool(await self._read(self._connected().crew.dead_holders))


def _slicer(where: JobFilter, below: int, limit: int) -> Callable[[sqlite3.Connection], sqlite_read.Slice]:
    return lambda connection: sqlite_read.slice_below(connection, where, below=below, limit=limit)


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
