"""One space: the jobs under one hash tag of a Redis server, and every verb of the store protocol on them, each as one script.

Synchronous: it runs in the thread of a lane, with that lane's connection. It decides nothing about jobs; what its scripts choose and mark
is read by ``redis_records``. A space keeps the promises of the protocol by itself, because everything in it lies in one slot.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace
from redis.exceptions import OutOfMemoryError

from callboard.runtime.core.codec import (
    decode_attempt,
    decode_request,
    encode_attempt,
    encode_event,
    encode_job,
    encode_request,
)
from callboard.runtime.core.commands import Lapse
from callboard.runtime.core.errors import CallboardError, StoreRefused, StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import SCHEMA, TERMINAL, Job, Request, Status
from callboard.runtime.core.store import (
    Claimed,
    Clock,
    Committed,
    Conflict,
    Delete,
    Due,
    Duplicate,
    Extension,
    Full,
    Held,
    JobFilter,
    Outcome,
    Write,
)
from callboard.runtime.core.transition import decide
from callboard.stores import redis_scripts as scripts
from callboard.stores.comparing import check_batch, fitting
from callboard.stores.redis_errors import REASONS
from callboard.stores.redis_link import Caller
from callboard.stores.redis_records import Stored, claimed, read_events, read_job
from callboard.stores.redis_scripts import Script

__all__ = ["Barred", "Head", "Identity", "Removed", "Slice", "Space", "SpaceNews", "SpaceState"]

logger: Final = logging.getLogger("callboard.store")

LAYOUT: Final = 1
"""Of the keys. A server that holds another one is refused."""

MAX_ITEMS: Final = 200
"""Jobs of one script: with more, whoever stands behind it waits over 2 ms. Source: measured before the project began."""

MAX_BYTES: Final = 8 * 2**20
"""Of one script, unless a single item has more: what is too much to be sent within a timeout is so the next time, too."""

MAX_OVERTAKEN: Final = 20
"""How often one item of a batch is decided again (promise 3)."""

MAX_NEWS: Final = 500
"""Events that are enough for one answer of ``news``."""

_MAX_SLICE: Final = 500
"""Jobs that one slice of a list looks at in each sorted set."""

_SHELVED_MS: Final = 3_600_000
"""How long a job whose record cannot be read is left alone after its lease."""


class Identity(Struct, frozen=True):
    """Who writes: the name of the open store, and what it keeps of each job."""

    worker: str
    max_events_per_job: int
    max_attempts_per_job: int


class Barred(Struct, frozen=True):
    """The gate that a new job was to come through is shut; that one is open."""

    gate: int


class Head(Struct, frozen=True, order=True):
    """One of the first in line: sorts by priority, higher first, then by order of acceptance."""

    score: int
    place: str


class Removed(Struct, frozen=True):
    """A job that is gone."""

    job_id: str
    serial: int
    key: str | None


class Slice(Struct, frozen=True):
    """Part of a list; ``below`` is the serial to go on below, None at the end."""

    jobs: list[Job]
    below: int | None


class SpaceState(Struct, frozen=True):
    """The space as a whole."""

    now_ms: int
    due: Due
    counts: dict[tuple[str, Status], int]
    paused: list[str]
    position: int
    """Of the newest event."""
    queue_changes: int


class SpaceNews(Struct, frozen=True):
    """What others committed after a position."""

    position: int
    queue_changes: int
    complete: bool
    events: list[Event]
    is_all: bool
    """Whether ``position`` is that of the newest event."""


class Space:
    """The keys that begin with ``tag``, such as ``{callboard}:``; commits are announced on ``channel``."""

    def __init__(self, tag: str, *, channel: str, clock: Clock | None = None, spaces: int = 1, number: int = 0) -> None:
        self._keys = (f"{tag}meta",)
        self._channel = channel
        self._clock = clock
        self._spaces = spaces
        self._number = number

    def open(self, caller: Caller) -> None:
        """Lay out an empty space. Raises StoreRefused for one of another layout, or that is one of another number of spaces."""
        found = self._run(caller, scripts.OPEN, LAYOUT, self._spaces, self._number)
        layout, spaces = int(found[0]), int(found[1])
        if layout != LAYOUT:
            what = "upgrade callboard" if layout > LAYOUT else "it is of an older callboard: choose another ?prefix="
            raise StoreRefused(f"the Redis store has layout {layout}, this callboard knows {LAYOUT}: {what}")
        if spaces != self._spaces:
            raise StoreRefused(
                f"the Redis store is spread over {spaces} spaces, not {self._spaces}, and that never changes: use"
                f" ?spaces={spaces}, or another ?prefix="
            )

    def commit(self, caller: Caller, me: Identity, batch: Sequence[Write | Delete]) -> list[Outcome | CallboardError]:
        """``Store.commit``; in the place of an outcome StoreRefused where the stored record cannot be read, StoreUnavailable for a new job
        that a full server has no room for. Raises StoreUnavailable when that is all that there is to say.
        """
        found = self.commit_through(None, caller, me, batch)
        outcomes = [outcome for outcome in found if not isinstance(outcome, Barred)]
        full = [outcome for outcome in outcomes if isinstance(outcome, StoreUnavailable)]
        if full and len(full) == len(outcomes):
            raise full[0]
        return outcomes

    def commit_through(
        self, gate: int | None, caller: Caller, me: Identity, batch: Sequence[Write | Delete]
    ) -> list[Outcome | CallboardError | Barred]:
        """The same for new jobs that have their serial and come through a gate (None: as in ``commit``); a full server raises.

        If it is shut, the last outcome is Barred, and that item and those behind it did nothing.
        """
        check_batch(batch)
        outcomes: list[Outcome | CallboardError | Barred] = []
        rest, overtaken = list(batch), 0
        while rest:
            items = _first_part(rest, may_decide=overtaken < MAX_OVERTAKEN)
            part = rest[: len(items)]
            answers = self._commit(caller, me, items, gate)
            again: Write | None = None
            for item, answer in zip(part, answers, strict=False):
                if answer[0] == b"G":
                    return [*outcomes, Barred(int(answer[1]))]
                if answer[0] == b"A":
                    assert isinstance(item, Write)
                    outcome, again = _decide_again(item, Stored(*answer[1:]))
                    if again is not None:
                        break
                else:
                    outcome = _outcome(item, answer)
                assert outcome is not None
                outcomes.append(outcome)
            overtaken = 0 if again is None else overtaken + 1
            done = len(batch) - len(outcomes)
            rest = list(batch[len(batch) - done :])
            if again is not None:
                rest[0] = again
        return outcomes

    def claim(
        self,
        caller: Caller,
        me: Identity,
        *,
        queues: Sequence[str],
        names: Sequence[str],
        limit: int,
        lease_ms: int,
        last: Head | None = None,
    ) -> list[Claimed]:
        """``Store.claim``; of those only that do not stand behind ``last``."""
        until = ("", "") if last is None else (last.score, last.place)
        claims: list[Claimed] = []
        queues, names = list(dict.fromkeys(queues)), list(dict.fromkeys(names))
        while queues and names and limit > 0:
            asked = min(limit, MAX_ITEMS)
            who = (self._channel, me.worker, me.max_events_per_job, me.worker)
            among: tuple[int | str, ...] = (len(queues), *queues, *names)
            finished, *marked = self._run(caller, scripts.CLAIM, *who, asked, lease_ms, SCHEMA, *until, *among)
            claims += [one for fields in marked if (one := _read_claimed(*fields)) is not None]
            limit -= len(marked)
            if finished and len(marked) < asked:
                break
        return claims

    def peek(self, caller: Caller, *, queues: Sequence[str], names: Sequence[str], limit: int) -> list[Head]:
        """The first that ``claim`` would take."""
        queues, names = list(dict.fromkeys(queues)), list(dict.fromkeys(names))
        while True:
            finished, *found = self._run(caller, scripts.PEEK, limit, SCHEMA, len(queues), *queues, *names)
            if finished:
                pairs = zip(found[::2], found[1::2], strict=True)
                return [Head(int(score), place.decode()) for score, place in pairs]

    def extend(self, caller: Caller, held: Sequence[Held], *, lease_ms: int) -> list[Extension]:
        """``Store.extend``."""
        answers: list[Extension] = []
        for start in range(0, len(held), MAX_ITEMS):
            pairs = [value for lease in held[start : start + MAX_ITEMS] for value in (lease.job_id, lease.fence)]
            found = self._run(caller, scripts.EXTEND, lease_ms, *pairs)
            answers += [Extension(held=state > 0, cancel_requested=state == 2) for state in found]
        return answers

    def lapse(self, caller: Caller, me: Identity, *, limit: int) -> list[Committed]:
        """``Store.lapse``: read what is overdue, decide, and write on condition that it is overdue still."""
        lapsed: list[Committed] = []
        while len(lapsed) < limit:
            now_ms, *overdue = self._run(caller, scripts.OVERDUE, min(limit - len(lapsed), MAX_ITEMS))
            writes = []
            for job_id, fence, *fields in overdue:
                try:
                    job = read_job(Stored(*fields))
                except StoreRefused as error:
                    logger.error("job %s, whose lease is over, is passed over: %s", job_id.decode(), error)
                    self._run(caller, scripts.EXTEND, _SHELVED_MS, job_id, fence)
                else:
                    change = decide(job, Lapse(now_ms=int(now_ms)))
                    writes.append(Write(job=change.job, events=change.events, expected=job, attempt=change.attempt))
            answers = self._commit(caller, me, [_encode(write, is_lapse=True) for write in writes])
            for write, answer in zip(writes, answers, strict=True):
                if answer[0] == b"C":
                    lapsed.append(Committed(write.job, write.events))
            if len(overdue) < MAX_ITEMS:
                break
        return lapsed

    def prune(self, caller: Caller, *, ended_before_ms: int, limit: int) -> list[Removed]:
        """``Store.prune``; what was removed."""
        removed: list[Removed] = []
        while len(removed) < limit:
            asked = min(limit - len(removed), MAX_ITEMS)
            found = self._run(caller, scripts.PRUNE, ended_before_ms, asked)
            removed += [
                Removed(job_id.decode(), int(serial), key[1:].decode() if key else None)
                for job_id, serial, key in found
            ]
            if len(found) < asked:
                break
        return removed

    def set_paused(self, caller: Caller, me: Identity, queue: str, paused: bool) -> bool:
        """``Store.set_paused``."""
        return bool(self._run(caller, scripts.PAUSE, self._channel, me.worker, queue, int(paused)))

    def get(self, caller: Caller, job_ids: Sequence[str]) -> list[Job | None]:
        """``Store.get``."""
        found = (Stored.of(fields) for fields in self._run(caller, scripts.GET, *job_ids))
        return [None if stored is None else read_job(stored) for stored in found]

    def find(self, caller: Caller, names: Sequence[str]) -> list[Stored | None]:
        """Who owns each name: ``"i"`` and an id, or ``"k"`` and a key."""
        return [Stored.of(fields) for fields in self._run(caller, scripts.FIND, *names)]

    def bar(self, caller: Caller, gate: int) -> int:
        """Shut ``gate``, and those before it; the one that is open now."""
        return int(self._run(caller, scripts.BAR, gate))

    def list_slice(self, caller: Caller, where: JobFilter, *, below: int, limit: int) -> Slice:
        """Up to ``limit`` jobs with a serial under ``below``, newest first, out of the next few hundred."""
        statuses = [status.value for status in where.statuses or Status]
        chosen = (*map(_some, (where.owner, where.name, where.queue)), *statuses)
        start = f"{min(below, 10**16 - 1):016d}"
        following, *found = self._run(caller, scripts.LIST, start, limit, _MAX_SLICE, *chosen)
        jobs = []
        for fields in found:
            try:
                jobs.append(read_job(Stored(*fields)))
            except StoreRefused as error:
                logger.error("the job with serial %s is passed over: %s", fields[1].decode(), error)
        return Slice(jobs, int(following) if following else None)

    def events(self, caller: Caller, job_id: str, *, after: int, limit: int) -> list[Event]:
        """``Store.events``."""
        return read_events(self._run(caller, scripts.EVENTS, job_id, after, limit))

    def attempts(self, caller: Caller, job_id: str) -> list[AttemptRecord]:
        """``Store.attempts``."""
        return [decode_attempt(text) for text in self._run(caller, scripts.ATTEMPTS, job_id)]

    def ready(self, caller: Caller, *, up_to: int) -> dict[tuple[str, str], int]:
        """``Store.ready``."""
        found = self._run(caller, scripts.READY)
        return {_pair(pair): min(int(count), up_to) for pair, count in zip(found[::2], found[1::2], strict=True)}

    def state(self, caller: Caller) -> SpaceState:
        """What ``now_ms``, ``next_due``, ``counts``, ``paused`` and the first cursor of the news are made of."""
        now_ms, due, lease, counts, paused, position, changes = self._run(caller, scripts.STATE)
        return SpaceState(
            now_ms=int(now_ms),
            due=Due(int(float(due)) if due else None, int(float(lease)) if lease else None),
            counts=dict(_counts(counts)),
            paused=sorted(queue.decode() for queue in paused),
            position=int(position),
            queue_changes=int(changes),
        )

    def news(self, caller: Caller, me: Identity, position: int) -> SpaceNews:
        """What others committed after ``position``, or the first part of it."""
        reached, changes, complete, payloads, newest = self._run(caller, scripts.NEWS, me.worker, position, MAX_NEWS)
        events = read_events(payloads)
        is_complete = bool(complete) and len(events) == len(payloads)
        return SpaceNews(int(reached), int(changes), is_complete, events, reached == newest)

    def _commit(
        self, caller: Caller, me: Identity, items: "Sequence[_Item]", gate: int | None = None
    ) -> list[list[bytes]]:
        if not items:
            return []
        try:
            script = scripts.COMMIT_BIRTHS if any(map(_is_birth, items)) else scripts.COMMIT
            return self._send(caller, me, items, script, gate)
        except OutOfMemoryError:
            # There is no room for new jobs; what runs may end all the same, and hears that it did, however many submit beside it.
            others = [item for item in items if not _is_birth(item)]
            given = iter(self._send(caller, me, others, scripts.COMMIT) if others else ())
            if gate is not None:
                raise
        answers: list[list[bytes]] = []
        for item in items:
            answer = [b"O"] if _is_birth(item) else next(given)
            answers.append(answer)
            if answer[0] == b"A":
                break
        return answers

    def _send(
        self, caller: Caller, me: Identity, items: "Sequence[_Item]", script: Script, gate: int | None = None
    ) -> list[list[bytes]]:
        who = (self._channel, me.worker, me.max_events_per_job, me.max_attempts_per_job)
        values = [value for item in items for value in item]
        answers: list[list[bytes]] = self._run(caller, script, *who, SCHEMA, "" if gate is None else gate, *values)
        return answers

    def _run(self, caller: Caller, script: Script, *arguments: str | bytes | int) -> Any:
        now = "" if self._clock is None else self._clock()
        return caller.run(script, self._keys, (now, *arguments))


_Item = Sequence[str | bytes | int]
"""One item of ``commit.lua``."""


def _some(text: str | None) -> str:
    """A text, which may be empty, behind a mark; '' for none."""
    return "" if text is None else f"={text}"


def _is_birth(item: _Item) -> bool:
    return item[0] == "I"


def _encode(item: Write | Delete, *, may_decide: bool = True, is_lapse: bool = False) -> _Item:
    expected = item.expected
    version: tuple[int | str, ...] = ("", "", "")
    if expected is not None:
        version = (expected.serial, expected.seq, expected.fence)
    elif isinstance(item, Write) and item.job.serial:
        version = (item.job.serial, "", "")
    if isinstance(item, Delete):
        return ("D", item.expected.id, *version, *[""] * 14, 0)
    job = item.job
    flags = ("a" if item.again is not None and may_decide else "") + ("l" if is_lapse else "")
    if expected is None:
        beside = encode_request(item.request or Request())
    else:
        beside = b"" if item.attempt is None else encode_attempt(item.attempt)
    return (
        "I" if expected is None else "U",
        job.id,
        *version,
        flags,
        job.queue,
        job.name,
        job.priority,
        job.status.value,
        job.seq,
        job.fence,
        (job.completed_ms if job.status in TERMINAL else job.due_ms) or 0,
        _some(job.key),
        _some(job.owner),
        int(job.cancel_requested),
        "" if item.max_queue_size is None else item.max_queue_size,
        encode_job(job),
        beside,
        len(item.events),
        *(b"%d %b" % (event.seq, encode_event(event)) for event in item.events),
    )


def _first_part(batch: Sequence[Write | Delete], *, may_decide: bool) -> list[_Item]:
    """As many items as fit into one script, at least the first."""
    part: list[_Item] = []
    size = 0
    for item in batch[:MAX_ITEMS]:
        encoded = _encode(item, may_decide=may_decide)
        size += sum(len(value) for value in encoded if isinstance(value, bytes))
        if part and size > MAX_BYTES:
            break
        part.append(encoded)
    return part


def _outcome(item: Write | Delete, answer: Sequence[bytes]) -> Outcome | CallboardError:
    kind, *fields = answer
    if kind == b"O":
        return StoreUnavailable(REASONS["OOM"])
    if kind == b"C":
        assert isinstance(item, Write)
        return Committed(replace(item.job, serial=int(fields[0])), item.events)
    if kind == b"F":
        return Full(int(fields[0]))
    stored = Stored.of(fields)
    if stored is None:
        return Conflict(None)
    try:
        job = read_job(stored)
    except StoreRefused as error:
        return error
    if kind == b"R":
        return Committed(job, ())
    return Duplicate(job) if kind == b"D" else Conflict(job)


def _decide_again(item: Write, stored: Stored) -> tuple[Outcome | CallboardError | None, Write | None]:
    """What ``item`` is refused with, or what is to be written in its stead."""
    try:
        job = read_job(stored)
    except StoreRefused as error:
        return error, None
    other = fitting(item, job)
    return (Conflict(job), None) if other is None else (None, replace(other, again=item.again))


def _read_claimed(job_id: bytes, record: bytes, serial: bytes, mark: bytes, request: bytes) -> Claimed | None:
    """None with a line in the log for one that cannot be read: its lease will end."""
    try:
        change = claimed(Stored(record, serial, mark))
        return Claimed(change.job, decode_request(request), change.events)
    except StoreRefused as error:
        logger.error("job %s was claimed and is passed over: %s", job_id.decode(), error)
        return None


def _pair(text: bytes) -> tuple[str, str]:
    """Of what ``ready_key`` in ``space.lua`` makes."""
    length, _, rest = text.partition(b":")
    return rest[: int(length)].decode(), rest[int(length) + 1 :].decode()


def _counts(fields: Any) -> Iterable[tuple[tuple[str, Status], int]]:
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    for field, count in pairs:
        queue, _, status = field.decode().rpartition("/")
        yield (queue, Status(status)), int(count)
