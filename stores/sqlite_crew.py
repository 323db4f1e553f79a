"""Who has an SQLite store open, and who of them is dead.

Every connection has an origin, a number that no other ever had, and holds the lock of a file that bears its worker's name. A lease
names the origin of its holder; one whose lock is free, or that the table no longer knows, is dead.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from callboard.runtime.core.errors import StoreRefused
from callboard.stores.filelock import LifeLock, is_dead, life_lock_path, life_locks, remove_dead

__all__ = ["Crew"]

_HOLDERS: Final = (
    "SELECT DISTINCT holder, worker.name FROM job LEFT JOIN worker ON origin = holder"
    " WHERE lease_ms IS NOT NULL AND holder IS NOT NULL"
)


class Crew:
    """The connections to ``database``, seen from the one that is opened as ``worker``."""

    def __init__(self, database: Path, worker: str) -> None:
        """Raises StoreRefused when a live process has that name."""
        self.worker = worker
        self.origin = 0
        self._database = database
        try:
            self._life = LifeLock(life_lock_path(database, worker))
        except BlockingIOError as error:
            raise StoreRefused(f"a live process has this store open as {worker!r}: choose another name") from error
        except OSError as error:
            raise StoreRefused(f"no lock file can be made beside {database}: {error.strerror}") from error

    def register(self, connection: sqlite3.Connection) -> None:
        """Take a fresh origin. If the name had an older one, what that holds belongs to nobody now.

        Jobs that another version could not read and set aside get their chance again.
        """
        connection.execute("UPDATE job SET ready = 1 WHERE ready = 2")
        connection.execute("DELETE FROM worker WHERE name = ?", (self.worker,))
        self.origin = connection.execute("INSERT INTO worker (name) VALUES (?)", (self.worker,)).lastrowid or 0
        self._remove_strays(connection)

    def close(self) -> None:
        """Let go of the name."""
        self._life.close()

    def dead_holders(self, connection: sqlite3.Connection) -> list[int]:
        """The origins of leases that nobody live holds."""
        return [origin for origin, name in connection.execute(_HOLDERS) if self._is_dead(origin, name)]

    def forget_dead(self, connection: sqlite3.Connection) -> None:
        """Strike out dead connections that hold no lease any more, and remove their files."""
        busy = {origin for origin, _ in connection.execute(_HOLDERS)}
        for origin, name in connection.execute("SELECT origin, name FROM worker").fetchall():
            if origin not in busy and self._is_dead(origin, name):
                connection.execute("DELETE FROM worker WHERE origin = ?", (origin,))
                # Should the transaction fail, a missing file says dead as well.
                remove_dead(life_lock_path(self._database, name))

    def _remove_strays(self, connection: sqlite3.Connection) -> None:
        """Remove the files of those who were killed before they could register, or before their file could go.

        One who is about to register holds his lock already; one who has the file open and not yet locked makes another.
        """
        names = connection.execute("SELECT name FROM worker").fetchall()
        known = {life_lock_path(self._database, name) for (name,) in names}
        for path in life_locks(self._database):
            if path not in known:
                # Another user's file is his to remove.
                with suppress(OSError):
                    remove_dead(path)

    def _is_dead(self, origin: int, name: str | None) -> bool:
        if origin == self.origin:
            return False
        return name is None or is_dead(life_lock_path(self._database, name))
