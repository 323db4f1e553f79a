"""What happened to a job, as a websocket, a log and another process see it."""

from typing import Literal

from msgspec import Raw, Struct

from callboard.runtime.core.job import TERMINAL

__all__ = ["Event", "EventType", "LogEntry", "merge", "merged_progress"]

EventType = Literal["status", "progress", "log"]


class LogEntry(Struct, frozen=True):
    """One line that a handler wrote with ``job.log``."""

    level: str
    message: str


class Event(Struct, frozen=True, kw_only=True):
    """Everything that happened to one job after ``since`` up to ``seq``.

    ``changes`` maps each changed field's wire name to its whole new value as JSON text, except ``links``, which depends on
    where the job is asked for; ``location`` stands in its place. ``status`` is the job's status at ``seq``.
    """

    job_id: str
    seq: int
    since: int
    type: EventType
    at_ms: int
    status: str
    name: str
    queue: str
    owner: str | None = None
    changes: dict[str, Raw]
    log: LogEntry | None = None

    @property
    def is_terminal(self) -> bool:
        return self.type == "status" and self.status in TERMINAL


def merge(earlier: Event, later: Event) -> Event:
    """One event that stands for two adjoining ones (``later.since == earlier.seq``); keeps the later one's type."""
    return Event(
        job_id=later.job_id,
        seq=later.seq,
        since=earlier.since,
        type=later.type,
        at_ms=later.at_ms,
        status=later.status,
        name=later.name,
        queue=later.queue,
        owner=later.owner,
        changes={**earlier.changes, **later.changes},
        log=later.log,
    )


def merged_progress(earlier: Event, later: Event) -> Event | None:
    """Both in one where that loses nothing: progress of one job, the later right after the earlier. None for any other two.

    Source: the wire contract; nothing but progress is ever merged.
    """
    adjoin = (earlier.job_id, earlier.seq) == (later.job_id, later.since)
    return merge(earlier, later) if adjoin and earlier.type == later.type == "progress" else None
