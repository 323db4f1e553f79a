"""The layout of the SQLite file and how an empty one gets it.

The record (``job.record``) is authoritative; the columns beside it exist to be searched. The numbers that must never be given
twice (serials, fences, positions of events) are kept in ``counter``, because a record holds its serial before it is a row.
``request`` is a table of its own, so that a progress report does not rewrite a large body.
"""

import sqlite3
from typing import Final

__all__ = ["APPLICATION_ID", "USER_VERSION", "lay_out"]

APPLICATION_ID: Final = 0x63626F61
"""``cboa`` in ASCII, in the file's header: this database is callboard's."""

USER_VERSION: Final = 1
"""Of the tables below. A file of a newer one is refused."""

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


def lay_out(connection: sqlite3.Connection) -> None:
    """Turn an empty database into one of ours. A store of ours only gets WAL mode, if a copy of it lost that.

    WAL mode comes first, for the tables are one transaction: whenever a process is killed, what it leaves behind is either
    still empty or whole. Raises sqlite3.Error.
    """
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.NotSupportedError(f"WAL mode is refused, it stays in {mode} mode")
    if connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {USER_VERSION}")
    connection.execute("COMMIT")
