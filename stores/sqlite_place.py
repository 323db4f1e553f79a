"""Makes the file of an SQLite store whole, once, however many processes begin at the same moment."""

import os
import sqlite3
from pathlib import Path

import trio

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.stores.filelock import FairLock
from callboard.stores.sqlite_engine import PATIENCE_SECONDS, is_busy, patiently
from callboard.stores.sqlite_file import inspect, uri
from callboard.stores.sqlite_schema import lay_out

__all__ = ["prepare"]


async def prepare(path: Path) -> FairLock:
    """The lock of the store at ``path``, which exists after this. Raises StoreRefused and StoreUnavailable."""
    ready = _is_ready(path)
    try:
        lock = FairLock(*_lock_paths(path))
    except OSError as error:
        raise StoreRefused(f"no lock file can be made beside {path}: {error.strerror}") from error
    if not ready:
        try:
            await _create(path, lock)
        except BaseException:
            lock.close()
            raise
    return lock


def _is_ready(path: Path) -> bool:
    try:
        return inspect(path)
    except StoreRefused:
        # Another process may just be making it, under the lock. A foreign file has no lock beside it.
        if not _lock_paths(path)[1].exists():
            raise
        return False


async def _create(path: Path, lock: FairLock) -> None:
    try:
        await lock.acquire(PATIENCE_SECONDS)
    except trio.TooSlowError as error:
        raise StoreUnavailable("another process keeps the SQLite store locked") from error
    try:
        if not inspect(path):
            await patiently(lambda: _lay_out(path))
    finally:
        lock.release()


def _lay_out(path: Path) -> None:
    try:
        # It holds what clients send: nobody else's to read. SQLite gives the files beside it the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreRefused(f"no database can be made at {path} ({error.strerror}): check the directory") from error
    try:
        connection = sqlite3.connect(uri(path, "mode=rwc"), uri=True, timeout=0, isolation_level=None)
        try:
            lay_out(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        if is_busy(error):
            raise
        raise StoreRefused(f"no database can be made at {path} ({error}): check the disk and the directory") from error


def _lock_paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + "-turnstile.lock"), path.with_name(path.name + "-writer.lock")
