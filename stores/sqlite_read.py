"""The reading verbs on a connection: plain queries, each answered from one moment."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from callboard.runtime.core.codec import decode_attempt, decode_event, decode_job
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import Due, JobFilter, News
from callboard.stores.cursors import news_cursor, read_news_cursor
from callboard.stores.sqlite_engine import snapshot
from callboard.stores.sqlite_ledger import json_array, readable

__all__ = [
    "Slice",
    "attempts",
    "counts",
    "events",
    "get",
    "newest",
    "news",
    "next_due",
    "paused",
    "ready",
    "slice_below",
]

_SLICE: Final = 4000
"""So many jobs are looked at before the loop may turn: a filter that few jobs pass must not stop everything else."""

_MAX_NEWS: Final = 1000

_GET: Final = "SELECT id, record FROM job WHERE id IN (SELECT value FROM json_each(?))"
_EVENTS: Final = (
    "SELECT body FROM event WHERE serial = (SELECT serial FROM job WHERE id = ?) AND seq > ? ORDER BY seq LIMIT ?"
)
_ATTEMPTS: Final = "SELECT body FROM attempt WHERE serial = (SELECT serial FROM job WHERE id = ?) ORDER BY number"
_FLOOR: Final = "SELECT min(serial) FROM (SELECT serial FROM job WHERE serial < ? ORDER BY serial DESC LIMIT ?)"
_FLOOR_OF_OWNER: Final = (
    "SELECT min(serial) FROM (SELECT serial FROM job WHERE owner = ? AND serial < ? ORDER BY serial DESC LIMIT ?)"
)
_MATCHING: Final = (
    "SELECT serial, record FROM job WHERE {owner} serial < :below AND serial >= :floor"
    " AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))"
    " AND (:name IS NULL OR name = :name) AND (:queue IS NULL OR queue = :queue)"
    " ORDER BY serial DESC LIMIT :limit"
)
_PAGE: Final = _MATCHING.format(owner="")
_PAGE_OF_OWNER: Final = _MATCHING.format(owner="owner = :owner AND")
_READY_NAME: Final = (
    "SELECT queue, name FROM job WHERE ready = 1 AND queue = ? AND name > ? ORDER BY queue, name LIMIT 1"
)
_READY_QUEUE: Final = "SELECT queue, name FROM job WHERE ready = 1 AND queue > ? ORDER BY queue, name LIMIT 1"
_COUNT_READY: Final = "SELECT count(*) FROM (SELECT 1 FROM job WHERE ready = 1 AND queue = ? AND name = ? LIMIT ?)"
_NEWS: Final = "SELECT pos, serial, body FROM event WHERE pos > ? AND origin <> ? ORDER BY pos LIMIT ?"


class Slice(Struct, frozen=True):
    """Some of the jobs that a filter lets pass, and where to go on; None at the end."""

    jobs: list[Job]
    below: int | None


def get(connection: sqlite3.Connection, job_ids: Sequence[str]) -> list[Job | None]:
    """The records in the order of ``job_ids``."""
    found = {job_id: decode_job(record) for job_id, record in connection.execute(_GET, (json_array(job_ids),))}
    return [found.get(job_id) for job_id in job_ids]


def slice_below(connection: sqlite3.Connection, where: JobFilter, *, below: int, limit: int) -> Slice:
    """Up to ``limit`` jobs with a serial under ``below``, newest first, out of the next few thousand."""
    with snapshot(connection):
        if where.owner is None:
            floor = connection.execute(_FLOOR, (below, _SLICE)).fetchone()[0]
        else:
            floor = connection.execute(_FLOOR_OF_OWNER, (where.owner, below, _SLICE)).fetchone()[0]
        if floor is None:
            return Slice([], None)
        statement = _PAGE if where.owner is None else _PAGE_OF_OWNER
        values = _values(where) | {"below": below, "floor": floor, "limit": limit}
        rows = connection.execute(statement, values).fetchall()
    # The limit counts rows that cannot be read as well: where it was met there may be more above the floor.
    below = rows[-1][0] if len(rows) == limit else floor
    found = [readable(decode_job, record, serial) for serial, record in rows]
    return Slice([job for job in found if job is not None], below)


def events(connection: sqlite3.Connection, job_id: str, *, after: int, limit: int) -> list[Event]:
    """Up to ``limit`` events of a job after ``after``, oldest first."""
    return [decode_event(body) for (body,) in connection.execute(_EVENTS, (job_id, after, limit))]


def attempts(connection: sqlite3.Connection, job_id: str) -> list[AttemptRecord]:
    """The attempts of a job that have ended, oldest first."""
    return [decode_attempt(body) for (body,) in connection.execute(_ATTEMPTS, (job_id,))]


def next_due(connection: sqlite3.Connection) -> Due:
    """The earliest due time and the earliest end of a lease."""
    scheduled = "SELECT due_ms FROM job WHERE due_ms IS NOT NULL ORDER BY due_ms LIMIT 1"
    lease = "SELECT lease_ms FROM job WHERE lease_ms IS NOT NULL ORDER BY lease_ms LIMIT 1"
    return Due(*connection.execute(f"SELECT ({scheduled}), ({lease})").fetchone())


def counts(connection: sqlite3.Connection) -> dict[tuple[str, Status], int]:
    """How many jobs each (queue, status) holds."""
    rows = connection.execute("SELECT queue, status, n FROM tally WHERE n > 0")
    return {(queue, Status(status)): count for queue, status, count in rows}


def ready(connection: sqlite3.Connection, *, up_to: int) -> dict[tuple[str, str], int]:
    """How many jobs of each (queue, name) are ready, counted up to ``up_to``."""
    found: dict[tuple[str, str], int] = {}
    with snapshot(connection):
        # From pair to pair through the index: GROUP BY would walk over every ready job. No queue has an empty name.
        pair = connection.execute(_READY_QUEUE, ("",)).fetchone()
        while pair is not None:
            found[pair] = connection.execute(_COUNT_READY, (*pair, up_to)).fetchone()[0]
            pair = connection.execute(_READY_NAME, pair).fetchone() or (
                connection.execute(_READY_QUEUE, pair[:1]).fetchone()
            )
    return found


def paused(connection: sqlite3.Connection) -> list[str]:
    """The paused queues, sorted."""
    return [queue for (queue,) in connection.execute("SELECT queue FROM paused ORDER BY queue")]


def newest(connection: sqlite3.Connection) -> str:
    """The cursor of someone who has seen everything."""
    return news_cursor(*connection.execute("SELECT pos, queues FROM counter").fetchone())


def news(connection: sqlite3.Connection, cursor: str, *, origin: int) -> News:
    """What connections other than ``origin`` committed after ``cursor``, or the first part of it."""
    seen, seen_queues = read_news_cursor(cursor)
    with snapshot(connection):
        newest, lost, queues = connection.execute("SELECT pos, lost_pos, queues FROM counter").fetchone()
        rows = connection.execute(_NEWS, (seen, origin, _MAX_NEWS)).fetchall()
    reached = rows[-1][0] if len(rows) == _MAX_NEWS else newest
    events = [readable(decode_event, body, serial) for _, serial, body in rows]
    fresh = tuple(event for event in events if event is not None)
    complete = lost <= seen <= newest and len(fresh) == len(rows)
    return News(
        cursor=news_cursor(reached, queues), events=fresh, complete=complete, queues_changed=queues != seen_queues
    )


def _values(where: JobFilter) -> dict[str, str | int | None]:
    statuses = json_array([status.value for status in where.statuses]) if where.statuses else None
    return {"statuses": statuses, "name": where.name, "queue": where.queue, "owner": where.owner}
