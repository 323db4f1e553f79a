"""Whether a path may be used as a store: looks at the file without changing it."""

import os
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

from callboard.runtime.core.errors import StoreRefused
from callboard.stores.sqlite_schema import APPLICATION_ID, OLDEST_VERSION, USER_VERSION

__all__ = ["inspect", "uri"]

MOUNTS = Path("/proc/self/mounts")
"""Where Linux lists what is mounted; elsewhere nothing can be told."""

_NETWORK: Final = frozenset(
    {
        "9p",
        "afs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
    }
)
"""Filesystems on which locks or shared memory do not work between machines. Source: sqlite.org/wal.html, "same host"."""

_MAGIC: Final = b"SQLite format 3\0"
_WAL_AT: Final = 2
"""Behind the magic and the page size: the versions for writing and reading. Source: sqlite.org/fileformat.html, 1.3.3."""
_WAL: Final = b"\2\2"


def inspect(path: Path) -> bool:
    """Whether ``path`` holds a store of ours as it is to be, in WAL mode; False when it is for ``lay_out`` to make it one.

    Raises StoreRefused when it is another's.
    """
    _check_place(path)
    try:
        with path.open("r+b") as file:
            head = file.read(len(_MAGIC))
            versions = file.read(_WAL_AT + len(_WAL))[_WAL_AT:]
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreRefused(f"{path} cannot be read and written ({error.strerror}): check its permissions") from error
    if not head:
        return False
    if head != _MAGIC:
        raise StoreRefused(f"{path} is not an SQLite database: give the store a file of its own")
    return _is_ours(path) and versions == _WAL


def uri(path: Path, mode: str) -> str:
    """The name under which SQLite opens an existing file. Source: sqlite.org/uri.html."""
    return f"file:{quote(str(path))}?{mode}"


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise StoreRefused(f"{path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise StoreRefused(f"the directory {path.parent} does not exist: create it first")
    kind = _filesystem(path.parent)
    if kind in _NETWORK or kind.startswith("smb"):
        raise StoreRefused(f"{path} lies on a network filesystem ({kind}), where SQLite cannot lock: use a local disk")
    if not os.access(path if path.exists() else path.parent, os.R_OK | os.W_OK):
        raise StoreRefused(f"{path} cannot be read and written: check its permissions and those of its directory")


def _filesystem(directory: Path) -> str:
    """The type of the filesystem that ``directory`` lies on, or ``""`` where nobody tells."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    longest, kind = "", ""
    for line in lines:
        _, mounted, found, *_ = line.split(" ")
        mounted = mounted.replace("\\040", " ")
        if directory.is_relative_to(mounted) and len(mounted) >= len(longest):
            longest, kind = mounted, found
    return kind


def _is_ours(path: Path) -> bool:
    # Without a -wal file nobody has the database open, and `immutable` keeps SQLite from making files beside it.
    mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(uri(path, mode), uri=True, isolation_level=None)
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreRefused(f"{path} cannot be read as an SQLite database ({error}): restore it from a copy") from error
    if application == APPLICATION_ID:
        if not OLDEST_VERSION <= version <= USER_VERSION:
            raise StoreRefused(f"{path} has layout {version}, this callboard knows {USER_VERSION}: upgrade callboard")
        return version == USER_VERSION
    if tables or application:
        raise StoreRefused(f"{path} is an SQLite database of another program: give the store a file of its own")
    return False
