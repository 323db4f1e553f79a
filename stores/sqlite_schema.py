"""The layout of the SQLite file, how an empty one gets it, and how one of an older callboard does.

The record (``job.record``) is authoritative; the columns beside it exist to be searched. The numbers that must never be given
twice (serials, fences, positions of events) are kept in ``counter``, because a record holds its serial before it is a row; beside
them how often a queue was paused or resumed, by which the others see that one was.
``request`` is a table of its own, so that a progress report does not rewrite a large body.
"""

import sqlite3
from typing import Final

__all__ = ["APPLICATION_ID", "OLDEST_VERSION", "USER_VERSION", "lay_out"]

APPLICATION_ID: Final = 0x63626F61
"""``cboa`` in ASCII, in the file's header: this database is callboard's."""

USER_VERSION: Final = 2
"""Of the tables below. A file of a newer one is refused, one of an older is brought up to it when it is opened."""

OLDEST_VERSION: Final = 1
"""That can be brought up."""

_TABLES: Final = """
CREATE TABLE job (
    serial INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    queue TEXT NOT NULL,
    status TEXT NOT NULL,
    priority INTEGER NOT NULL,
    due_ms INTEGER,              -- of a Scheduled job that no claim has looked at since it fell due
    ready INTEGER NOT NULL,      -- 1: a claim may take it; 2: set aside, because its record cannot be read
    lease_ms INTEGER,            -- end of the lease of an InProgress job
    holder INTEGER,              -- origin of the connection that claimed it
    key TEXT UNIQUE,
    owner TEXT,
    completed_ms INTEGER,
    record BLOB NOT NULL
);
CREATE INDEX job_ready ON job (queue, name, priority DESC, serial) WHERE ready = 1;
CREATE INDEX job_aside ON job (serial) WHERE ready = 2;
CREATE INDEX job_due ON job (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX job_lease ON job (lease_ms, serial, holder) WHERE lease_ms IS NOT NULL;
CREATE INDEX job_ended ON job (completed_ms) WHERE completed_ms IS NOT NULL;
CREATE INDEX job_owner ON job (owner, serial) WHERE owner IS NOT NULL;

CREATE TABLE request (serial INTEGER PRIMARY KEY, body BLOB NOT NULL);

CREATE TABLE event (
    pos INTEGER PRIMARY KEY,     -- order of commit, over all jobs
    serial INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    origin INTEGER NOT NULL,     -- of the connection that committed it
    body BLOB NOT NULL
);
CREATE INDEX event_of_job ON event (serial, seq);

CREATE TABLE tally (queue TEXT NOT NULL, status TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (queue, status)) WITHOUT ROWID;

CREATE TABLE counter (
    serial INTEGER NOT NULL,     -- the last one given
    fence INTEGER NOT NULL,
    pos INTEGER NOT NULL,
    lost_pos INTEGER NOT NULL    -- the highest one that was removed
);
INSERT INTO counter VALUES (0, 0, 0, 0);

CREATE TABLE worker (origin INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
"""
"""Layout 1. Never changed: what came later is in the steps, which a new file goes through as well as an old one."""

_STEPS: Final = (
    """
CREATE TABLE attempt (
    serial INTEGER NOT NULL,
    number INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (serial, number)
) WITHOUT ROWID;
CREATE TABLE paused (queue TEXT PRIMARY KEY) WITHOUT ROWID;
ALTER TABLE counter ADD COLUMN queues INTEGER NOT NULL DEFAULT 0
""",
)
"""The first leads from layout 1 to layout 2, and so on."""


def lay_out(connection: sqlite3.Connection) -> None:
    """Turn an empty database, or one of an older layout, into one of ours. One of ours only gets WAL mode, if a copy of it lost that.

    WAL mode comes first, for the tables are one transaction: whenever a process is killed, what it leaves behind is either
    still as it was or whole. Only under the lock between processes. Raises sqlite3.Error.
    """
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.NotSupportedError(f"WAL mode is refused, it stays in {mode} mode")
    is_ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    version: int = connection.execute("PRAGMA user_version").fetchone()[0] if is_ours else 0
    if version == USER_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    for statements in (_TABLES, *_STEPS)[version:]:
        for statement in statements.split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {USER_VERSION}")
    connection.execute("COMMIT")
