"""The store protocol: what a driver has to do, cut by meaning and not by query.

A driver compares, writes and appends; the rules live in ``transition``. It is called by the store actor only, from the actor's own
task. Numbered promises, each held by ``callboard.stores.conformance``:

1.  *Durable.* When ``commit``, ``claim``, ``extend``, ``lapse`` or ``prune`` returns, what it did is stored, as durably as the store
    promises. When it raises StoreUnavailable, whether it took effect is unknown; nothing is ever half done.
2.  *In order, one by one.* The items of a batch take effect as if each were made alone, one after another; one that is refused
    leaves the others unharmed.
3.  *Compare and set.* A write whose ``expected`` record is not the stored one in ``(serial, seq, fence)`` is a Conflict, unless its
    ``again``, asked with the stored record, gives the write to make in its stead. So one who is overtaken time and again still
    gets his turn: a store that can asks and writes in one step, any other a bounded number of times.
4.  *One id, one key.* While a record lives, no second job gets its id or its ``key``: Duplicate, with the job that has it, also
    where the queue is full.
5.  *Bounded.* A write with ``max_queue_size`` that would put one more job among the waiting ones (Queued, Scheduled) of a queue
    that already holds so many is refused as Full.
6.  *State and events are one write.* Events are kept in order of ``seq``; of each job the newest ``max_events_per_job``.
7.  *Claim.* Chooses among the jobs of the named queues and handlers that are Queued, or Scheduled and due by the store's
    clock: higher priority first, strictly, then order of acceptance. What it makes of a job is
    ``decide(job, Claim(...))`` with a fence that this store never gave before. Jobs of other names or not due hold nobody up.
8.  *Leases* go by the store's clock. ``extend`` moves the end of those that are still held by that fence and tells which are not.
    ``lapse`` applies ``decide(job, Lapse(...))`` to jobs whose lease has ended, and to those whose holder is known to be dead.
9.  *Serials* grow in order of acceptance and are never given twice, not even after a purge.
10. *News.* ``wait_news`` tells every event that another connection committed after the cursor; it may also repeat this connection's own.
11. *Time* comes from the clock that the driver was made with, or from its server.
12. *History.* A write's ``attempt``, and the one of each ``lapse``, is kept in the same step; of each job the newest
    ``max_attempts_per_job``, through retries, until the record goes. A refused write leaves none.
13. *Pause.* ``set_paused`` is stored like a write. From its return until it is taken back no ``claim`` of any connection takes a job
    of that queue; all else goes on, and once a ``claim`` has looked at a job of it that fell due, ``next_due`` tells of it no longer.
    The others hear of the change by ``wait_news``.

At most one write (``commit``, ``claim``, ``extend``, ``lapse``, ``prune``, ``set_paused``), one read (``get``, ``list``, ``events``,
``attempts``, ``next_due``, ``counts``, ``ready``, ``paused``, ``now_ms``) and one ``wait_news`` run at a time, each beside the
others. Any of them may be cancelled only at shutdown.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from callboard.runtime.core.errors import CallboardError
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import Job, Request, Status

__all__ = [
    "Claimed",
    "Clock",
    "Committed",
    "Conflict",
    "Delete",
    "Due",
    "Duplicate",
    "Extension",
    "Full",
    "Held",
    "JobFilter",
    "News",
    "Outcome",
    "Page",
    "Store",
    "Write",
]

Clock = Callable[[], int]
"""Milliseconds since the epoch."""


class Write(Struct, frozen=True, kw_only=True):
    """One job's next record with the events that lead to it."""

    job: Job
    events: tuple[Event, ...]
    expected: Job | None = None
    """The record it was decided from; None for a new job, which comes with its ``request``."""
    request: Request | None = None
    again: "Callable[[Job], Write | None] | None" = None
    """Pure: what to write where another record than ``expected`` is stored, decided from that one; None for a Conflict."""
    max_queue_size: int | None = None
    """Refuse as Full when the job would join a queue that already holds so many waiting jobs; None: never refuse."""
    attempt: AttemptRecord | None = None
    """The attempt that this ends."""


class Delete(Struct, frozen=True, kw_only=True):
    """Remove a record, its events, its history and its key."""

    expected: Job


class Committed(Struct, frozen=True):
    """Done. ``job`` is the record as stored (a new one has its serial now); after a Delete, the record that was removed."""

    job: Job
    events: tuple[Event, ...]


class Conflict(Struct, frozen=True):
    """Refused: the stored record is ``current``, or there is none."""

    current: Job | None


class Duplicate(Struct, frozen=True):
    """Refused: ``job`` has that id or that key."""

    job: Job


class Full(Struct, frozen=True):
    """Refused: the queue holds ``size`` waiting jobs."""

    size: int


Outcome = Committed | Conflict | Duplicate | Full


class Claimed(Struct, frozen=True):
    """One job that is now this worker's to run, until its lease ends."""

    job: Job
    request: Request
    events: tuple[Event, ...]


class Held(Struct, frozen=True):
    """A lease that a worker believes to hold."""

    job_id: str
    fence: int


class Extension(Struct, frozen=True):
    """What became of a lease: ``held`` False means that another owner may run the job by now."""

    held: bool
    cancel_requested: bool = False


class Due(Struct, frozen=True):
    """When something falls due next, in milliseconds since the epoch; None for never."""

    scheduled_ms: int | None
    """The earliest Scheduled job that no claim has looked at since it became due."""
    lease_ms: int | None
    """The earliest end of a lease."""


class JobFilter(Struct, frozen=True, kw_only=True):
    """Which jobs; an empty ``statuses`` or None means any."""

    statuses: tuple[Status, ...] = ()
    name: str | None = None
    queue: str | None = None
    owner: str | None = None


class Page(Struct, frozen=True):
    """Jobs, newest first in order of acceptance; ``next`` is the cursor of the following page or None at the end."""

    jobs: tuple[Job, ...]
    next: str | None


class News(Struct, frozen=True, kw_only=True):
    """What other connections committed since the last ``cursor``."""

    cursor: str
    events: tuple[Event, ...] = ()
    complete: bool = True
    """False when part of it is gone for good: whoever follows a job rereads it."""
    holder_died: bool = False
    """True when a holder of leases was found dead: ``lapse`` has work."""
    queues_changed: bool = False
    """True when a queue was paused or resumed."""


class Store(Protocol):
    """A driver. Made by a cheap constructor that does no I/O; ``open`` connects."""

    async def open(self, *, worker: str, max_events_per_job: int, max_attempts_per_job: int) -> None:
        """Connect as ``worker``, a name that no other connection has, and create what is missing.

        Raises StoreRefused if the store must not be used (foreign, newer, unreadable), StoreUnavailable if it cannot be
        reached now.
        """
        ...

    async def aclose(self) -> None:
        """Let go of everything; calling it twice is harmless."""
        ...

    async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome | CallboardError]:
        """Apply the items in order in one durable step; one outcome each, in the same order.

        StoreRefused says that the stored record which an item met cannot be read, and that the item did nothing: given in the place
        of its outcome by a driver that finds it out when the others are written, raised by one that has written none of them.
        StoreUnavailable in the place of an outcome: it did nothing, for want of room that the others did not need.
        """
        ...

    async def claim(
        self, *, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int
    ) -> Sequence[Claimed]:
        """Take up to ``limit`` jobs that may run now, for ``lease_ms`` milliseconds, as the worker named in ``open``."""
        ...

    async def extend(self, held: Sequence[Held], *, lease_ms: int) -> Sequence[Extension]:
        """Let the leases end ``lease_ms`` milliseconds from now; one answer each, in the same order."""
        ...

    async def lapse(self, *, limit: int) -> Sequence[Committed]:
        """Take up to ``limit`` jobs from holders whose lease has ended or that are known to be dead."""
        ...

    async def prune(self, *, ended_before_ms: int, limit: int) -> int:
        """Remove up to ``limit`` jobs that ended before that time, with events, history and keys; how many were removed."""
        ...

    async def set_paused(self, queue: str, paused: bool) -> bool:
        """Let no claim take jobs of ``queue`` any more, or let them again; whether that changed anything."""
        ...

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        """The records as last committed, in the same order."""
        ...

    async def list(self, where: JobFilter, *, cursor: str | None, limit: int) -> Page:
        """A page of jobs, newest first. Raises ValueError for a cursor that this store did not make."""
        ...

    async def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        """Up to ``limit`` events with a ``seq`` greater than ``after``, oldest first. Those that are no longer kept are missing."""
        ...

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        """How the job's attempts ended, oldest first; none of the one that runs. Those that are no longer kept are missing."""
        ...

    async def next_due(self) -> Due:
        """When something falls due next."""
        ...

    async def counts(self) -> dict[tuple[str, Status], int]:
        """How many jobs each (queue, status) holds; zeros may be left out."""
        ...

    async def ready(self, *, up_to: int) -> dict[tuple[str, str], int]:
        """How many jobs of each (queue, handler name) a claim may take, each counted up to ``up_to``; zeros may be left out.

        A Scheduled job that fell due is among them once a claim has looked at it; a paused queue's are, too. Must not take longer
        where more jobs wait.
        """
        ...

    async def paused(self) -> Sequence[str]:
        """The names of the paused queues, sorted."""
        ...

    async def now_ms(self) -> int:
        """The store's clock."""
        ...

    async def wait_news(self, cursor: str | None) -> News:
        """Wait until another connection changed something after ``cursor``; at once, with no events, for None."""
        ...
