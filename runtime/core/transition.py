"""The rules of a job's life. Everything that says what may follow what is in this file.

``TABLE`` is the theory: for each command, in which states it is legal and which states may follow. What is not in the
table is refused with ``IllegalTransition`` and changes nothing. ``decide`` applies it: a pure function of the record and
the command to the next record and the events that say so. Stores compare, write and append; they decide nothing, and the two
transitions that they make by themselves (``Claim`` and ``Lapse``) they ask of ``decide`` or are held against it.

Four rules that the table alone does not show:

* A cancel of a running job is a request: it sets ``cancel_requested`` and the job stays InProgress until its code has
  stopped (``Stop``) or its holder is lost (``Lapse``).
* A value that the handler returned before the cancel took hold stands; any other ending after a cancel is Canceled.
* A failure goes back to Scheduled while it is retryable and retries are left.
* A job whose holders die ends as Failed with ``WORKER_LOST`` once more than ``max_lost_leases`` leases have lapsed.

Whatever takes a job out of InProgress ends its attempt, and the change carries that attempt's record for the history.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.core.commands import (
    Cancel,
    Claim,
    Command,
    Fail,
    Lapse,
    Release,
    Report,
    Retry,
    Stop,
    Succeed,
)
from callboard.runtime.core.document import changes
from callboard.runtime.core.errors import IllegalTransition
from callboard.runtime.core.events import Event, EventType, LogEntry
from callboard.runtime.core.history import AttemptOutcome, AttemptRecord
from callboard.runtime.core.job import NULL, WAITING, Failure, Job, Status

__all__ = ["OUTCOMES", "TABLE", "WORKER_LOST", "Change", "accept", "decide", "diagram"]

Q, S, P, C, F, X = (
    Status.QUEUED,
    Status.SCHEDULED,
    Status.IN_PROGRESS,
    Status.COMPLETED,
    Status.FAILED,
    Status.CANCELED,
)

TABLE: Final[dict[type[Command], dict[Status, frozenset[Status]]]] = {
    Claim: {Q: frozenset({P}), S: frozenset({P})},
    Report: {P: frozenset({P})},
    Succeed: {P: frozenset({C})},
    Fail: {P: frozenset({S, F, X})},
    Stop: {P: frozenset({X})},
    Release: {P: frozenset({Q, X})},
    Lapse: {P: frozenset({Q, F, X})},
    Cancel: {Q: frozenset({X}), S: frozenset({X}), P: frozenset({P}), X: frozenset({X})},
    Retry: {F: frozenset({Q}), X: frozenset({Q})},
}
"""command -> state in which it is legal -> states that may follow."""

BIRTHS: Final = frozenset({Q, S})

OUTCOMES: Final[dict[Status, AttemptOutcome]] = {
    C: AttemptOutcome.COMPLETED,
    F: AttemptOutcome.FAILED,
    S: AttemptOutcome.FAILED,
    X: AttemptOutcome.CANCELED,
    Q: AttemptOutcome.RELEASED,
}
"""What an attempt has made of its job -> how it ended, unless it was lost."""

WORKER_LOST: Final = Failure(
    code="WORKER_LOST",
    message="The process that ran this job was lost too often.",
    type="WorkerLost",
    retryable=False,
)


class Change(Struct, frozen=True):
    """The next record and the events that lead to it; no events: nothing changed."""

    job: Job
    events: tuple[Event, ...] = ()
    attempt: AttemptRecord | None = None
    """The attempt that this ended."""


def accept(job: Job) -> Change:
    """The birth of a job: ``job`` as submitted (``seq`` 0, Queued, or Scheduled with ``due_ms``) with its first event."""
    if job.status not in BIRTHS or (job.status is S) != (job.due_ms is not None):
        raise IllegalTransition(f"a job cannot begin as {job.status}")
    born = replace(job, seq=1, ready_ms=job.created_ms if job.due_ms is None else job.due_ms)
    return Change(born, (_event(None, born, "status"),))


def decide(job: Job, command: Command) -> Change:
    """What ``command`` makes of ``job``. Raises IllegalTransition if the job's state does not allow it."""
    row = TABLE[type(command)]
    if job.status not in row:
        raise IllegalTransition(_refusal(job, command))
    change = _RULES[type(command)](job, command)
    assert change.job.status in row[job.status], (job.status, command, change.job.status)
    if job.status is P and change.job.status is not P:
        return replace(change, attempt=_ended_attempt(job, change.job, command))
    return change


def _claim(job: Job, command: Claim) -> Change:
    started_ms = max(job.updated_ms, command.now_ms)
    return _moved(
        job,
        status=P,
        now_ms=command.now_ms,
        attempt=job.attempt + 1,
        started_ms=started_ms,
        begun_ms=started_ms if job.begun_ms is None else job.begun_ms,
        due_ms=None,
        fence=command.fence,
        worker=command.worker,
        progress=None,
    )


def _report(job: Job, command: Report) -> Change:
    events = []
    for log in command.logs:
        logged = replace(job, seq=job.seq + 1, updated_ms=max(job.updated_ms, command.now_ms))
        events.append(_event(job, logged, "log", log))
        job = logged
    if command.progress is not None:
        moved = replace(job, seq=job.seq + 1, updated_ms=max(job.updated_ms, command.now_ms), progress=command.progress)
        events.append(_event(job, moved, "progress"))
        job = moved
    return Change(job, tuple(events))


def _succeed(job: Job, command: Succeed) -> Change:
    return _ended(job, C, command.now_ms, result=command.result, error=None, location=command.location)


def _fail(job: Job, command: Fail) -> Change:
    if job.cancel_requested:
        return _ended(job, X, command.now_ms, error=command.failure)
    if command.failure.retryable and job.retry_count < job.max_retries:
        return _handed_back(
            job,
            S,
            command.now_ms,
            retry_count=job.retry_count + 1,
            due_ms=command.now_ms + command.delay_ms,
            error=command.failure,
        )
    return _ended(job, F, command.now_ms, error=command.failure)


def _stop(job: Job, command: Stop) -> Change:
    return _ended(job, X, command.now_ms)


def _release(job: Job, command: Release) -> Change:
    if job.cancel_requested:
        return _ended(job, X, command.now_ms)
    return _handed_back(job, Q, command.now_ms)


def _lapse(job: Job, command: Lapse) -> Change:
    lost = job.lost_leases + 1
    if job.cancel_requested:
        return _ended(job, X, command.now_ms, lost_leases=lost)
    if lost > job.max_lost_leases:
        return _ended(job, F, command.now_ms, lost_leases=lost, error=WORKER_LOST)
    return _handed_back(job, Q, command.now_ms, lost_leases=lost)


def _cancel(job: Job, command: Cancel) -> Change:
    if job.status is X or job.cancel_requested:
        return Change(job)
    if job.status is P:
        return _moved(job, status=P, now_ms=command.now_ms, cancel_requested=True)
    return _ended(job, X, command.now_ms, due_ms=None)


def _retry(job: Job, command: Retry) -> Change:
    return _moved(
        job,
        status=Q,
        now_ms=command.now_ms,
        retry_count=0,
        lost_leases=0,
        result=NULL,
        error=None,
        progress=None,
        completed_ms=None,
        begun_ms=None,
    )


def _ended_attempt(job: Job, after: Job, command: Command) -> AttemptRecord:
    error = command.failure if isinstance(command, Fail) else None
    if isinstance(command, Lapse):
        outcome = AttemptOutcome.LOST
        error = after.error if after.status is F else None
    else:
        outcome = OUTCOMES[after.status]
    return AttemptRecord(
        attempt=job.attempt,
        worker=job.worker,
        started_ms=job.created_ms if job.started_ms is None else job.started_ms,
        ended_ms=after.updated_ms,
        outcome=outcome,
        error=error,
        exceptions=command.exceptions if isinstance(command, Fail | Stop | Release) else (),
    )


def _ended(job: Job, status: Status, now_ms: int, **fields: Any) -> Change:
    return _moved(
        job,
        status=status,
        now_ms=now_ms,
        completed_ms=max(job.updated_ms, now_ms),
        fence=0,
        worker=None,
        cancel_requested=False,
        **fields,
    )


def _handed_back(job: Job, status: Status, now_ms: int, **fields: Any) -> Change:
    return _moved(job, status=status, now_ms=now_ms, fence=0, worker=None, **fields)


def _moved(job: Job, *, status: Status, now_ms: int, **fields: Any) -> Change:
    # A clock that was set back must not make a job's history run backwards.
    updated_ms = max(job.updated_ms, now_ms)
    if status in WAITING:
        fields["ready_ms"] = fields.get("due_ms") or updated_ms
    after = replace(job, seq=job.seq + 1, status=status, updated_ms=updated_ms, **fields)
    return Change(after, (_event(job, after, "status"),))


def _event(before: Job | None, after: Job, kind: EventType, log: LogEntry | None = None) -> Event:
    return Event(
        job_id=after.id,
        seq=after.seq,
        since=after.seq - 1,
        type=kind,
        at_ms=after.updated_ms,
        status=after.status,
        name=after.name,
        queue=after.queue,
        owner=after.owner,
        changes=changes(before, after),
        log=log,
    )


def _refusal(job: Job, command: Command) -> str:
    verb = type(command).__name__.lower()
    legal = ", ".join(sorted(state.value for state in TABLE[type(command)]))
    return f"cannot {verb} a job that is {job.status.value}; that needs {legal}"


_RULES: Final[dict[type[Command], Callable[[Job, Any], Change]]] = {
    Claim: _claim,
    Report: _report,
    Succeed: _succeed,
    Fail: _fail,
    Stop: _stop,
    Release: _release,
    Lapse: _lapse,
    Cancel: _cancel,
    Retry: _retry,
}


def diagram() -> str:
    """The table as a Mermaid state diagram; ``docs/lifecycle.md`` holds exactly this text."""
    lines = ["stateDiagram-v2", *(f"    [*] --> {state.value}: submit" for state in Status if state in BIRTHS)]
    for command, row in TABLE.items():
        for before in Status:
            for after in Status:
                if after in row.get(before, ()):
                    lines.append(f"    {before.value} --> {after.value}: {command.__name__.lower()}")
    lines += [f"    {state.value} --> [*]" for state in (C, F, X)]
    return "\n".join(lines) + "\n"
