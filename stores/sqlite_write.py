"""The writing verbs on a ``Ledger``: what each chooses and what it makes of it. All of it runs inside one transaction."""

import heapq
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from typing import Final

from callboard.runtime.core.codec import decode_request
from callboard.runtime.core.commands import Claim, Lapse
from callboard.runtime.core.job import WAITING, Job, Request, Status
from callboard.runtime.core.store import (
    Claimed,
    Committed,
    Conflict,
    Delete,
    Duplicate,
    Extension,
    Full,
    Held,
    Outcome,
    Write,
)
from callboard.runtime.core.transition import decide
from callboard.stores.comparing import check_batch, fitting, is_same
from callboard.stores.sqlite_ledger import Ledger, Row, json_array, readable

__all__ = ["MAX_PROMOTED", "claim", "commit", "extend", "lapse", "promote", "prune", "set_paused"]

MAX_PROMOTED: Final = 2000
"""So many jobs that fell due become ready in one transaction; a claim that finds more makes several, so that the loop turns."""

_MAX_ROUNDS: Final = 100
"""So often one claim sets aside what it cannot read and chooses anew; behind still more of them, others wait for the next claim."""

_PROMOTE: Final = (
    "UPDATE job SET ready = 1, due_ms = NULL"
    " WHERE serial IN (SELECT serial FROM job WHERE due_ms <= ? ORDER BY due_ms, serial LIMIT ?)"
)
_READY: Final = (
    "SELECT -priority, serial FROM job WHERE ready = 1 AND queue = ? AND name = ? ORDER BY priority DESC, serial"
)
_PAUSED: Final = "SELECT queue FROM paused"
_PAUSE: Final = "INSERT OR IGNORE INTO paused (queue) VALUES (?)"
_RESUME: Final = "DELETE FROM paused WHERE queue = ?"
_COUNT_QUEUE_CHANGE: Final = "UPDATE counter SET queues = queues + 1"
_REQUESTS: Final = "SELECT serial, body FROM request WHERE serial IN (SELECT value FROM json_each(?))"
_SET_ASIDE: Final = "UPDATE job SET ready = 2 WHERE serial IN (SELECT value FROM json_each(?))"
_EXTEND: Final = "UPDATE job SET lease_ms = ? WHERE serial IN (SELECT value FROM json_each(?))"
_LAPSED: Final = "SELECT serial FROM job WHERE lease_ms <= ? ORDER BY lease_ms, serial LIMIT ?"
_ORPHANED: Final = (
    "SELECT serial FROM job WHERE lease_ms IS NOT NULL AND holder IN (SELECT value FROM json_each(?))"
    " ORDER BY lease_ms, serial LIMIT ?"
)
_PUT_OFF: Final = "UPDATE job SET lease_ms = ?, holder = NULL WHERE serial IN (SELECT value FROM json_each(?))"
_PUT_OFF_MS: Final = 60_000
"""So long after its lease a job whose record cannot be read is looked at again; until then others have their turn."""

_ENDED: Final = "SELECT serial, queue, status FROM job WHERE completed_ms < ? ORDER BY completed_ms, serial LIMIT ?"
_MAX_VACUUMED: Final = 1000
"""So many pages are given back to the filesystem by one prune."""

_VACUUM_ONE: Final = "PRAGMA incremental_vacuum(1)"


def commit(ledger: Ledger, batch: Sequence[Write | Delete]) -> list[Outcome]:
    """Apply the items in order. Raises StoreRefused, with nothing done, when one names a record that cannot be read.

    To pass over it would give its id or its key to a second job. Whoever sent a batch sends its items anew, one by one.
    """
    check_batch(batch)
    ids = [item.job.id if isinstance(item, Write) else item.expected.id for item in batch]
    keys = [item.job.key for item in batch if isinstance(item, Write) and item.job.key is not None]
    ledger.load_ids(ids, unreadable="refuse")
    ledger.load_keys(keys, unreadable="refuse")
    outcomes = [_apply(ledger, item) for item in batch]
    ledger.flush()
    return outcomes


def promote(connection: sqlite3.Connection, now_ms: int) -> bool:
    """Make jobs that have fallen due ready; whether that were all of them."""
    return connection.execute(_PROMOTE, (now_ms, MAX_PROMOTED)).rowcount < MAX_PROMOTED


def claim(
    ledger: Ledger, *, pairs: Sequence[tuple[str, str]], limit: int, now_ms: int, lease_ms: int, worker: str
) -> list[Claimed]:
    """Take up to ``limit`` ready jobs of the (queue, name) ``pairs`` until ``lease_ms``, none of a paused queue.

    What cannot be read is set aside.
    """
    paused = {queue for (queue,) in ledger.connection.execute(_PAUSED)}
    open_pairs = [pair for pair in pairs if pair[0] not in paused]
    for _ in range(_MAX_ROUNDS):
        chosen = _choose(ledger.connection, open_pairs, limit)
        rows = ledger.load_serials(chosen, unreadable="pass over")
        requests = _requests(ledger.connection, rows)
        if len(requests) == len(chosen):
            break
        # What stands behind must not wait: fewer than asked for means to the runtime that there are no more.
        _set_aside(ledger.connection, [serial for serial in chosen if serial not in requests])
    claimed = []
    for row in rows:
        request = requests.get(row.job.serial)
        if request is not None:
            change = decide(row.job, Claim(now_ms=now_ms, worker=worker, fence=ledger.next_fence()))
            ledger.change(row, change.job, change.events, lease_ms=lease_ms)
            claimed.append(Claimed(change.job, request, change.events))
    ledger.flush()
    return claimed


def extend(ledger: Ledger, held: Sequence[Held], *, lease_ms: int) -> list[Extension]:
    """Let the leases that are still held end at ``lease_ms``; one on a record that cannot be read is not."""
    ledger.load_ids([lease.job_id for lease in held], unreadable="pass over")
    jobs = [_held_job(ledger, lease) for lease in held]
    serials = [job.serial for job in jobs if job is not None]
    ledger.connection.execute(_EXTEND, (lease_ms, json_array(serials)))
    return [Extension(False) if job is None else Extension(True, job.cancel_requested) for job in jobs]


def lapse(ledger: Ledger, *, now_ms: int, dead: Collection[int], limit: int) -> list[Committed]:
    """Take up to ``limit`` jobs whose lease has ended or whose holder is among the ``dead`` origins.

    Those that cannot be read count too; they stay as they are and come again later, so that they hold nobody up for long.
    """
    found = ledger.connection.execute(_LAPSED, (now_ms, limit)).fetchall()
    if dead:
        found += ledger.connection.execute(_ORPHANED, (json_array(list(dead)), limit)).fetchall()
    serials = list(dict.fromkeys(serial for (serial,) in found))[:limit]
    lapsed = []
    for row in ledger.load_serials(serials, unreadable="pass over"):
        change = decide(row.job, Lapse(now_ms=now_ms))
        ledger.change(row, change.job, change.events, attempt=change.attempt)
        lapsed.append(Committed(change.job, change.events))
    taken = {one.job.serial for one in lapsed}
    _put_off(ledger.connection, [serial for serial in serials if serial not in taken], now_ms + _PUT_OFF_MS)
    ledger.flush()
    return lapsed


def prune(ledger: Ledger, *, ended_before_ms: int, limit: int) -> int:
    """Remove up to ``limit`` jobs that ended before then, readable or not, and give pages back to the filesystem."""
    ended = ledger.connection.execute(_ENDED, (ended_before_ms, limit)).fetchall()
    for serial, queue, status in ended:
        ledger.remove_unseen(serial, queue, status)
    ledger.flush()
    _vacuum(ledger.connection)
    return len(ended)


def set_paused(connection: sqlite3.Connection, queue: str, paused: bool) -> bool:
    """Pause or resume; whether that changed anything."""
    changed = connection.execute(_PAUSE if paused else _RESUME, (queue,)).rowcount > 0
    if changed:
        connection.execute(_COUNT_QUEUE_CHANGE)
    return changed


def _vacuum(connection: sqlite3.Connection) -> None:
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    # The sqlite3 module makes one step of a statement without columns, and each step frees one page.
    for _ in range(min(free, _MAX_VACUUMED)):
        connection.execute(_VACUUM_ONE)


def _apply(ledger: Ledger, item: Write | Delete) -> Outcome:
    if isinstance(item, Delete):
        return _delete(ledger, item)
    return _insert(ledger, item) if item.expected is None else _update(ledger, item, item.expected)


def _insert(ledger: Ledger, item: Write) -> Outcome:
    taken = ledger.by_id(item.job.id) or ledger.by_key(item.job.key)
    if taken is not None:
        return Duplicate(taken.job)
    if item.job.status in WAITING and (full := _full(ledger, item)) is not None:
        return full
    return Committed(ledger.insert(item.job, item.request or Request(), item.events), item.events)


def _update(ledger: Ledger, item: Write, expected: Job) -> Outcome:
    row = ledger.by_id(expected.id)
    if row is None or (fits := fitting(item, row.job)) is None:
        return Conflict(None if row is None else row.job)
    joins = fits.job.status in WAITING and row.job.status not in WAITING
    if joins and (full := _full(ledger, fits)) is not None:
        return full
    ledger.change(row, fits.job, fits.events, attempt=fits.attempt)
    return Committed(fits.job, fits.events)


def _delete(ledger: Ledger, item: Delete) -> Outcome:
    row = ledger.by_id(item.expected.id)
    if row is None or not is_same(row.job, item.expected):
        return Conflict(None if row is None else row.job)
    ledger.remove(row)
    return Committed(row.job, ())


def _full(ledger: Ledger, item: Write) -> Full | None:
    if item.max_queue_size is None:
        return None
    size = ledger.waiting(item.job.queue)
    return Full(size) if size >= item.max_queue_size else None


def _choose(connection: sqlite3.Connection, pairs: Sequence[tuple[str, str]], limit: int) -> list[int]:
    """The serials of the first ready jobs over all pairs; each pair is read only as far as it is needed."""
    with ExitStack() as stack:
        cursors = [stack.enter_context(closing(connection.execute(_READY, pair))) for pair in pairs]
        first: Iterator[tuple[int, int]] = heapq.merge(*cursors)
        return [serial for _, serial in islice(first, limit)]


def _requests(connection: sqlite3.Connection, rows: Sequence[Row]) -> dict[int, Request]:
    serials = json_array([row.job.serial for row in rows])
    found = {}
    for serial, body in connection.execute(_REQUESTS, (serials,)):
        if (request := readable(decode_request, body, serial)) is not None:
            found[serial] = request
    return found


def _set_aside(connection: sqlite3.Connection, serials: Sequence[int]) -> None:
    """Let no claim stumble over them again, until someone opens the store anew, who may know how to read them."""
    connection.execute(_SET_ASIDE, (json_array(serials),))


def _put_off(connection: sqlite3.Connection, serials: Sequence[int], lease_ms: int) -> None:
    """Let them belong to nobody until ``lease_ms``, so that no dead holder is told of for their sake."""
    if serials:
        connection.execute(_PUT_OFF, (lease_ms, json_array(serials)))


def _held_job(ledger: Ledger, lease: Held) -> Job | None:
    row = ledger.by_id(lease.job_id)
    if row is None or row.job.status is not Status.IN_PROGRESS or row.job.fence != lease.fence:
        return None
    return row.job
