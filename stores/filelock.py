"""Locks on files, for processes of one machine: a fair one around writes, and one by which a process shows that it lives.

``flock`` belongs to an open file description, so that two stores in one process exclude each other like two processes, and
the kernel lets go of it however the process ends.
"""

import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

__all__ = ["FairLock", "LifeLock", "is_dead", "life_lock_path", "life_locks", "remove_dead"]

_LOOK_SECONDS: Final = 0.0005
_MAX_NAME: Final = 80
_PROBE_RETRIES: Final = 50


class FairLock:
    """Two files: whoever wants the lock first stands in the turnstile, and leaves it when it has the lock.

    A busy process that lets go and asks again finds the one that waits in the turnstile, and so cannot starve it. A waiter looks
    every half millisecond from the trio loop. A thread in a blocking ``flock`` would wake at once, but must then get the
    interpreter lock back from a busy loop while it holds everybody's lock.
    """

    def __init__(self, turnstile: Path, lock: Path) -> None:
        self._turnstile = _open(turnstile)
        try:
            self._lock = _open(lock)
        except OSError:
            os.close(self._turnstile)
            raise

    async def acquire(self, seconds: float) -> None:
        """Wait for the lock. Raises trio.TooSlowError after ``seconds``."""
        if _try(self._turnstile):
            if _try(self._lock):
                fcntl.flock(self._turnstile, fcntl.LOCK_UN)
                return
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        with trio.fail_after(seconds):
            try:
                await _look(self._turnstile)
                await _look(self._lock)
            finally:
                fcntl.flock(self._turnstile, fcntl.LOCK_UN)

    def release(self) -> None:
        """Let the next one in."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of both files."""
        os.close(self._turnstile)
        os.close(self._lock)


class LifeLock:
    """Held for as long as a store is open under that name; the file goes when it is closed in good order."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError when someone live holds it."""
        self._path = path
        # Whoever looks whether we are dead locks the file for a moment.
        for _ in range(_PROBE_RETRIES):
            descriptor = _lock_current(path)
            if descriptor is not None:
                self._descriptor = descriptor
                return
            time.sleep(0.001)
        raise BlockingIOError(f"the lock of {path.name} is held")

    def close(self) -> None:
        """Let go of the name."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def life_lock_path(database: Path, worker: str) -> Path:
    """Where the lock of ``worker`` lies: beside the database, under a name that any worker's name can be made into."""
    name = quote(worker, safe="")
    if len(name) > _MAX_NAME:
        name = hashlib.sha256(worker.encode()).hexdigest()
    return database.with_name(f"{database.name}-worker-{name}.lock")


def life_locks(database: Path) -> list[Path]:
    """The locks of workers that lie beside ``database``, whoever made them and whether or not he lives."""
    begin = f"{database.name}-worker-"
    # A database may itself be called "jobs.db-worker-x"; the locks around its writes lie here too and must stay.
    others = ("-turnstile.lock", "-writer.lock")
    found = (path for path in database.parent.iterdir() if path.name.startswith(begin))
    return [path for path in found if path.name.endswith(".lock") and not path.name.endswith(others)]


def is_dead(path: Path) -> bool:
    """Whether nobody holds that lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        # Shared, so that two who look do not take each other for the holder.
        return _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def remove_dead(path: Path) -> None:
    """Remove the file of a dead holder; harmless when there is none or when someone has come to hold it."""
    if not path.exists():
        return
    descriptor = _lock_current(path)
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock_current(path: Path) -> int | None:
    """A descriptor that holds the lock of the file that ``path`` names now, or None when it is held."""
    while True:
        descriptor = _open(path)
        if not _try(descriptor):
            os.close(descriptor)
            return None
        # The file may have been removed between opening and locking; a lock on that one would be seen by nobody.
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


async def _look(descriptor: int) -> None:
    while not _try(descriptor):  # noqa: ASYNC110  the kernel tells nobody but a blocked thread; see FairLock
        await trio.sleep(_LOOK_SECONDS)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _try(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
