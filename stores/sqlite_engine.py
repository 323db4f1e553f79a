"""The connections to an SQLite file: one transaction per write, patience when others hold a lock, a new start after an error.

Statements run on the trio thread, only COMMIT may move to a thread; whatever goes wrong, no transaction stays open.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeVar

import trio

from callboard.runtime.core.errors import StoreUnavailable
from callboard.stores.filelock import FairLock
from callboard.stores.pace import Pace
from callboard.stores.sqlite_file import uri

__all__ = ["PATIENCE_SECONDS", "Engine", "Synchronous", "is_busy", "patiently", "snapshot"]

Synchronous = Literal["FULL", "NORMAL"]

PATIENCE_SECONDS: Final = 2.0
"""How long a locked database is waited for."""

_RETRY_SECONDS: Final = 0.01

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})

T = TypeVar("T")


class Engine:
    """A writing and a reading connection to an existing file, made when they are needed and made again after an error."""

    def __init__(self, path: Path, lock: FairLock, *, synchronous: Synchronous, pace: Pace) -> None:
        self._path = path
        self._lock = lock
        self._synchronous = synchronous
        self._pace = pace
        self._open = True
        self._writing = trio.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self.generation = 0
        """How many reading connections there were; ``PRAGMA data_version`` can be compared within one."""
        self._file: tuple[int, int] | None = None
        self._is_in_doubt = False
        """A write has failed since the last one that reached the disk."""

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns, once all that it wrote is durable; nothing of it is when this raises anything."""
        async with self._writing:
            self._check_open()
            try:
                await self._lock.acquire(PATIENCE_SECONDS)
            except trio.TooSlowError as error:
                raise StoreUnavailable("another process keeps the SQLite store locked") from error
            try:
                writer = await patiently(self._begin)
                result = self._work(writer, work)
                await self._commit(writer)
                self._is_in_doubt = False
                return result
            finally:
                self._lock.release()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns; it only reads."""
        await trio.lowlevel.checkpoint()
        try:
            return await patiently(lambda: work(self._reading_connection()))
        except StoreUnavailable:
            self._close_reader()
            raise

    async def aclose(self) -> None:
        """Let a running write end, then close everything for good."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self._open:
                    self._open = False
                    self._close_reader()
                    self._close_writer()
                    self._lock.close()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is not open")

    def _reading_connection(self) -> sqlite3.Connection:
        self._check_open()
        if self._reader is None:
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only = 1")
            self.generation += 1
        return self._reader

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri(self._path, "mode=rw"),
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
        )
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA journal_size_limit = 67108864")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _begin(self) -> sqlite3.Connection:
        if _identity(self._path) != self._file:
            # Someone removed or replaced the file; what is written to the old one would be lost.
            self._close_reader()
            self._close_writer()
        if self._writer is None:
            self._file = _identity(self._path)
            self._writer = self._connect()
        self._writer.execute("BEGIN IMMEDIATE")
        return self._writer

    def _work(self, writer: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._is_in_doubt:
                _touch(writer)
            return work(writer)
        except sqlite3.Error as error:
            self._give_up(writer)
            _fail(error)
        except BaseException:
            self._roll_back(writer)
            raise

    async def _commit(self, writer: sqlite3.Connection) -> None:
        try:
            await self._pace.run(writer.commit)
        except sqlite3.Error as error:
            self._give_up(writer)
            _fail(error)

    def _give_up(self, writer: sqlite3.Connection) -> None:
        self._is_in_doubt = True
        self._roll_back(writer)
        self._close_writer()

    def _roll_back(self, writer: sqlite3.Connection) -> None:
        try:
            writer.rollback()
        except sqlite3.Error:
            # Closing a connection ends its transaction too.
            self._close_writer()


async def patiently(step: Callable[[], T]) -> T:
    """What ``step`` returns, as soon as nobody's lock is in its way. Raises StoreUnavailable after ``PATIENCE_SECONDS``."""
    deadline = trio.current_time() + PATIENCE_SECONDS
    while True:
        try:
            return step()
        except sqlite3.Error as error:
            if not is_busy(error):
                _fail(error)
            if trio.current_time() >= deadline:
                raise StoreUnavailable("another process keeps the SQLite store locked") from error
        await trio.sleep(_RETRY_SECONDS)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether someone else's lock is in the way."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read inside belongs to one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


def _touch(writer: sqlite3.Connection) -> None:
    """Make the transaction write a page: on a full disk one that changes nothing succeeds, and would look as if there was room again."""
    (version,) = writer.execute("PRAGMA user_version").fetchone()
    writer.execute(f"PRAGMA user_version = {version}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _fail(error: sqlite3.Error) -> NoReturn:
    """Raises StoreUnavailable for what the world did, and ``error`` itself for a bug of ours."""
    if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
        raise StoreUnavailable(f"the SQLite store cannot be used now: {error}") from error
    raise error
