"""One write transaction: the jobs that it touches, loaded in bulk, changed in memory item by item, written back in bulk.

A verb reads and changes rows through the ledger, so that each item of a batch sees what the ones before it did; ``flush`` then
writes the net effect. Deletes go first and inserts last, because an id may be given back and taken again in one batch.
"""

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.core.codec import decode_job, encode_attempt, encode_event, encode_job, encode_request
from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import TERMINAL, WAITING, Job, Request, Status

__all__ = ["Ledger", "Row", "Unreadable", "json_array", "readable"]

logger = logging.getLogger("callboard.stores")

T = TypeVar("T")

Unreadable = Literal["refuse", "pass over"]
"""What a verb does with a stored record that it cannot read: raise StoreRefused, or go on as if it were not there."""

_LOAD: Final = "SELECT serial, lease_ms, holder, record FROM job WHERE"
_LOAD_BY_ID: Final = f"{_LOAD} id IN (SELECT value FROM json_each(?))"
_LOAD_BY_KEY: Final = f"{_LOAD} key IN (SELECT value FROM json_each(?))"
_LOAD_BY_SERIAL: Final = f"{_LOAD} serial IN (SELECT value FROM json_each(?))"
_WAITING: Final = "SELECT coalesce(sum(n), 0) FROM tally WHERE queue = ? AND status IN ('Queued', 'Scheduled')"

_DELETE_JOBS: Final = "DELETE FROM job WHERE serial IN (SELECT value FROM json_each(?))"
_DELETE_REQUESTS: Final = "DELETE FROM request WHERE serial IN (SELECT value FROM json_each(?))"
_DELETE_EVENTS: Final = "DELETE FROM event WHERE serial IN (SELECT value FROM json_each(?)) RETURNING pos"
_DELETE_ATTEMPTS: Final = "DELETE FROM attempt WHERE serial IN (SELECT value FROM json_each(?))"
_INSERT_JOB: Final = (
    "INSERT INTO job (name, queue, status, priority, due_ms, ready, lease_ms, holder, owner, completed_ms, record, serial, id, key)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE_JOB: Final = (
    "UPDATE job SET name = ?, queue = ?, status = ?, priority = ?, due_ms = ?, ready = ?, lease_ms = ?, holder = ?, owner = ?,"
    " completed_ms = ?, record = ? WHERE serial = ?"
)
_INSERT_REQUEST: Final = "INSERT INTO request (serial, body) VALUES (?, ?)"
_INSERT_EVENT: Final = "INSERT INTO event (pos, serial, seq, origin, body) VALUES (?, ?, ?, ?, ?)"
_INSERT_ATTEMPT: Final = "INSERT OR REPLACE INTO attempt (serial, number, body) VALUES (?, ?, ?)"
_TRIM_ATTEMPTS: Final = "DELETE FROM attempt WHERE serial = ? AND number <= ?"
_TRIM_EVENTS: Final = (
    "DELETE FROM event WHERE serial = ? AND seq <="
    " (SELECT seq FROM event WHERE serial = ? ORDER BY seq DESC LIMIT 1 OFFSET ?) RETURNING pos"
)
_ADD_TALLY: Final = (
    "INSERT INTO tally (queue, status, n) VALUES (?, ?, ?) ON CONFLICT (queue, status) DO UPDATE SET n = n + excluded.n"
)


class Row(Struct):
    """One job of the transaction."""

    job: Job
    stored: bool
    """Whether it was in the database before."""
    lease_ms: int | None = None
    holder: int | None = None
    changed: bool = False
    gone: bool = False


class _Counters(Struct):
    serial: int
    fence: int
    pos: int
    lost_pos: int


class Ledger:
    """What one transaction of the connection ``origin`` reads and changes."""

    def __init__(
        self, connection: sqlite3.Connection, *, origin: int, max_events_per_job: int, max_attempts_per_job: int
    ) -> None:
        self.connection = connection
        self.origin = origin
        self._max_events = max_events_per_job
        self._max_attempts = max_attempts_per_job
        row = connection.execute("SELECT serial, fence, pos, lost_pos FROM counter").fetchone()
        self._counters = _Counters(*row)
        self._counters_before = _Counters(*row)
        self._rows: dict[int, Row] = {}
        self._by_id: dict[str, Row] = {}
        self._by_key: dict[str, Row] = {}
        self._unseen: list[int] = []
        self._tally: Counter[tuple[str, str]] = Counter()
        self._waiting_before: dict[str, int] = {}
        self._requests: list[tuple[int, bytes]] = []
        self._events: list[tuple[int, int, int, int, bytes]] = []
        self._attempts: list[tuple[int, int, bytes]] = []

    def load_ids(self, job_ids: Sequence[str], *, unreadable: Unreadable) -> None:
        """Make the jobs of these ids known to ``by_id``."""
        self._load(_LOAD_BY_ID, job_ids, unreadable)

    def load_keys(self, keys: Sequence[str], *, unreadable: Unreadable) -> None:
        """Make the jobs of these keys known to ``by_key``."""
        self._load(_LOAD_BY_KEY, keys, unreadable)

    def load_serials(self, serials: Sequence[int], *, unreadable: Unreadable) -> list[Row]:
        """The rows of these serials that could be loaded, in the same order."""
        self._load(_LOAD_BY_SERIAL, serials, unreadable)
        return [self._rows[serial] for serial in serials if serial in self._rows]

    def by_id(self, job_id: str) -> Row | None:
        """The loaded row of that id."""
        return self._by_id.get(job_id)

    def by_key(self, key: str | None) -> Row | None:
        """The loaded row of that key."""
        return None if key is None else self._by_key.get(key)

    def waiting(self, queue: str) -> int:
        """How many jobs of ``queue`` wait now."""
        if queue not in self._waiting_before:
            self._waiting_before[queue] = self.connection.execute(_WAITING, (queue,)).fetchone()[0]
        return self._waiting_before[queue] + sum(self._tally[queue, status.value] for status in WAITING)

    def next_fence(self) -> int:
        """A fence that was never given before."""
        self._counters.fence += 1
        return self._counters.fence

    def insert(self, job: Job, request: Request, events: Iterable[Event]) -> Job:
        """A new row; the job with its serial."""
        self._counters.serial += 1
        job = replace(job, serial=self._counters.serial)
        self._remember(Row(job, stored=False, changed=True))
        self._tally[job.queue, job.status.value] += 1
        self._requests.append((job.serial, encode_request(request)))
        self._append(job.serial, events)
        return job

    def change(
        self,
        row: Row,
        job: Job,
        events: Iterable[Event],
        *,
        attempt: AttemptRecord | None = None,
        lease_ms: int | None = None,
    ) -> None:
        """The next record of a row, which ended ``attempt``. It keeps its lease while it is InProgress; ``lease_ms`` begins one of
        this connection.
        """
        self._tally[row.job.queue, row.job.status.value] -= 1
        self._tally[job.queue, job.status.value] += 1
        if lease_ms is not None:
            row.lease_ms, row.holder = lease_ms, self.origin
        elif job.status is not Status.IN_PROGRESS:
            row.lease_ms = row.holder = None
        row.job, row.changed = job, True
        self._append(job.serial, events)
        if attempt is not None:
            self._attempts.append((job.serial, attempt.attempt, encode_attempt(attempt)))

    def remove(self, row: Row) -> None:
        """Remove a row with its events, history, id and key."""
        job = row.job
        row.gone = True
        self._tally[job.queue, job.status.value] -= 1
        del self._by_id[job.id]
        if job.key is not None:
            del self._by_key[job.key]

    def remove_unseen(self, serial: int, queue: str, status: str) -> None:
        """Remove a row that was not loaded, whether or not its record can be read."""
        self._unseen.append(serial)
        self._tally[queue, status] -= 1

    def flush(self) -> None:
        """Write everything; the transaction is still open after it."""
        self._flush_gone(self._unseen + [row.job.serial for row in self._rows.values() if row.gone])
        changed = [row for row in self._rows.values() if row.changed and not row.gone]
        execute_many = self.connection.executemany
        execute_many(_UPDATE_JOB, [(*_columns(row), row.job.serial) for row in changed if row.stored])
        born = [row for row in changed if not row.stored]
        execute_many(_INSERT_JOB, [(*_columns(row), row.job.serial, row.job.id, row.job.key) for row in born])
        execute_many(_INSERT_REQUEST, self._requests)
        execute_many(_INSERT_EVENT, self._events)
        self._trim(changed)
        self._flush_attempts()
        execute_many(_ADD_TALLY, [(*pair, change) for pair, change in self._tally.items() if change])
        self._flush_counters()

    def _load(self, statement: str, values: Sequence[str] | Sequence[int], unreadable: Unreadable) -> None:
        if not values:
            return
        for serial, lease_ms, holder, record in self.connection.execute(statement, (json_array(values),)):
            if serial not in self._rows and (job := _decode(record, serial, unreadable)) is not None:
                self._remember(Row(job, stored=True, lease_ms=lease_ms, holder=holder))

    def _remember(self, row: Row) -> None:
        self._rows[row.job.serial] = self._by_id[row.job.id] = row
        if row.job.key is not None:
            self._by_key[row.job.key] = row

    def _append(self, serial: int, events: Iterable[Event]) -> None:
        for event in events:
            self._counters.pos += 1
            self._events.append((self._counters.pos, serial, event.seq, self.origin, encode_event(event)))

    def _flush_gone(self, serials: list[int]) -> None:
        if not serials:
            return
        gone, array = set(serials), json_array(serials)
        self.connection.execute(_DELETE_JOBS, (array,))
        self.connection.execute(_DELETE_REQUESTS, (array,))
        self._lose(self.connection.execute(_DELETE_EVENTS, (array,)))
        self.connection.execute(_DELETE_ATTEMPTS, (array,))
        self._lose([(event[0],) for event in self._events if event[1] in gone])
        self._events = [event for event in self._events if event[1] not in gone]
        self._requests = [request for request in self._requests if request[0] not in gone]
        self._attempts = [attempt for attempt in self._attempts if attempt[0] not in gone]

    def _trim(self, changed: list[Row]) -> None:
        for row in changed:
            # A job has at most as many events as its seq says.
            if row.job.seq > self._max_events:
                self._lose(
                    self.connection.execute(_TRIM_EVENTS, (row.job.serial, row.job.serial, self._max_events)).fetchall()
                )

    def _flush_attempts(self) -> None:
        self.connection.executemany(_INSERT_ATTEMPT, self._attempts)
        # Numbers have no holes: what ends is the attempt that was claimed last.
        old = [(serial, number - self._max_attempts) for serial, number, _ in self._attempts]
        self.connection.executemany(_TRIM_ATTEMPTS, [trim for trim in old if trim[1] > 0])

    def _lose(self, positions: Iterable[tuple[int]]) -> None:
        for (position,) in positions:
            self._counters.lost_pos = max(self._counters.lost_pos, position)

    def _flush_counters(self) -> None:
        if self._counters != self._counters_before:
            self.connection.execute(
                "UPDATE counter SET serial = ?, fence = ?, pos = ?, lost_pos = ?",
                msgspec.structs.astuple(self._counters),
            )


def readable(decode: Callable[[bytes], T], data: bytes, serial: int) -> T | None:
    """What ``data`` holds, or None with a line in the log: one bad record must not stop those beside it."""
    try:
        return decode(data)
    except StoreRefused as error:
        logger.error("the job with serial %d is passed over: %s", serial, error)
        return None


def json_array(values: Sequence[str] | Sequence[int]) -> str:
    """The argument of ``json_each``."""
    return msgspec.json.encode(values).decode()


def _decode(record: bytes, serial: int, unreadable: Unreadable) -> Job | None:
    return decode_job(record) if unreadable == "refuse" else readable(decode_job, record, serial)


def _columns(row: Row) -> tuple[Any, ...]:
    job = row.job
    # A claim that finds a Scheduled job due makes it ready; any later write begins that anew.
    return (
        job.name,
        job.queue,
        job.status.value,
        job.priority,
        job.due_ms if job.status is Status.SCHEDULED else None,
        job.status is Status.QUEUED,
        (row.lease_ms or 0) if job.status is Status.IN_PROGRESS else None,
        row.holder,
        job.owner,
        job.completed_ms if job.status in TERMINAL else None,
        encode_job(job),
    )
