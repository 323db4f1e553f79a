"""Whole lives: whatever commands come in whatever order, by whatever clock, a job's record and its events keep their promises."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from callboard.runtime.core.codec import (
    decode_attempt,
    decode_event,
    decode_job,
    encode_attempt,
    encode_event,
    encode_job,
)
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
from callboard.runtime.core.document import document
from callboard.runtime.core.errors import IllegalTransition
from callboard.runtime.core.events import LogEntry, merge
from callboard.runtime.core.job import NULL, TERMINAL, Failure, Job, Progress, Status
from callboard.runtime.core.transition import Change, accept, decide

# Any order of times: a clock may be set back.
times = st.integers(0, 2_000_000_000_000)
texts = st.text(st.characters(codec="utf-8"), max_size=5)
values = st.sampled_from([Raw(b"null"), Raw(b"1"), Raw(b'{"a":[true]}')])
failures = st.builds(Failure, code=texts, message=texts, type=texts, retryable=st.booleans())
progress = st.builds(
    Progress, percent=st.none() | st.floats(0, 100) | st.integers(0, 100), message=st.none() | texts, data=values
)
logs = st.lists(st.builds(LogEntry, level=st.just("info"), message=texts), max_size=2).map(tuple)
fences = st.integers(1, 2**53)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Claim, now_ms=times, worker=texts, fence=fences),
    st.builds(Report, now_ms=times, logs=logs, progress=st.none() | progress),
    st.builds(Succeed, now_ms=times, result=values, location=st.none() | texts),
    st.builds(Fail, now_ms=times, failure=failures, delay_ms=st.integers(0, 10_000_000)),
    st.builds(Stop, now_ms=times),
    st.builds(Release, now_ms=times),
    st.builds(Lapse, now_ms=times),
    st.builds(Cancel, now_ms=times),
    st.builds(Retry, now_ms=times),
)


@st.composite
def newborns(draw: st.DrawFn) -> Job:
    """A job as submitted."""
    now_ms, due_ms = draw(times), draw(st.none() | times)
    return Job(
        id="j",
        name=draw(texts),
        status=Status.QUEUED if due_ms is None else Status.SCHEDULED,
        max_retries=draw(st.integers(0, 2)),
        max_lost_leases=draw(st.integers(0, 2)),
        created_ms=now_ms,
        updated_ms=now_ms,
        due_ms=due_ms,
        owner=draw(st.none() | texts),
    )


@settings(max_examples=150, deadline=None)
@given(newborn=newborns(), asked=st.lists(commands, max_size=30))
def test_a_life(newborn: Job, asked: list[Command]) -> None:
    birth = accept(newborn)
    told: dict[str, Raw] = {}
    follow(newborn, birth, told)
    everything, job = list(birth.events), birth.job
    for command in asked:
        change = step(job, command)
        follow(job, change, told)
        check_record(job, change.job, command)
        check_attempt(job, change)
        everything += change.events
        job = change.job
    whole = everything[0]
    for event in everything[1:]:
        whole = merge(whole, event)
    assert (whole.since, whole.seq, whole.changes) == (0, job.seq, document(job))


def step(job: Job, command: Command) -> Change:
    """The change, none where it is refused."""
    try:
        return decide(job, command)
    except IllegalTransition:
        return Change(job)


def follow(before: Job, change: Change, told: dict[str, Raw]) -> None:
    """The events are a chain from ``before`` to the next record, and folding them gives its document."""
    seq, at_ms = before.seq, before.updated_ms
    for event in change.events:
        assert (event.since, event.seq) == (seq, seq + 1)
        assert event.at_ms >= at_ms
        assert {"id", "seq", "lastUpdatedAt"} <= set(event.changes)
        assert event.is_terminal == (event.type == "status" and event.status in TERMINAL)
        assert decode_event(encode_event(event)) == event
        told.update(event.changes)
        seq, at_ms = event.seq, event.at_ms
    after = change.job
    assert (after.seq, after.updated_ms) == (seq, at_ms)
    assert told == document(after)
    if change.events:
        assert change.events[-1].status == after.status
    else:
        assert after == before


def check_attempt(before: Job, change: Change) -> None:
    """An attempt has a record, its own, as soon as it is over and not before."""
    record = change.attempt
    was_running, is_running = (job.status is Status.IN_PROGRESS for job in (before, change.job))
    assert (record is not None) == (was_running and not is_running)
    if record is not None:
        assert (record.attempt, record.worker) == (before.attempt, before.worker)
        assert (record.started_ms, record.ended_ms) == (before.started_ms, change.job.updated_ms)
        assert record.started_ms <= record.ended_ms
        assert decode_attempt(encode_attempt(record)) == record


def check_record(before: Job, after: Job, command: Command) -> None:
    """What holds of every record, and between two that follow each other."""
    running = after.status is Status.IN_PROGRESS
    assert (after.fence != 0) == running
    assert (after.worker is not None) == running
    assert running or not after.cancel_requested
    assert (after.completed_ms is not None) == (after.status in TERMINAL)
    assert (after.due_ms is not None) == (after.status is Status.SCHEDULED)
    assert (after.started_ms is not None) == (after.attempt > 0)
    assert after.status is Status.COMPLETED or (after.result == NULL and after.location is None)
    assert after.status is not Status.COMPLETED or after.error is None
    assert 0 <= after.retry_count <= after.max_retries
    assert 0 <= after.lost_leases <= after.max_lost_leases + after.attempt
    moved = after is not before
    assert after.attempt == before.attempt + (isinstance(command, Claim) and moved)
    times_told: list[Any] = [after.created_ms, after.started_ms, after.completed_ms, after.updated_ms]
    known = [time for time in times_told if time is not None]
    assert known == sorted(known)
    assert (after.started_ms or 0) >= (before.started_ms or 0)
    kept = ("id", "serial", "name", "queue", "priority", "max_retries", "max_lost_leases", "created_ms", "owner")
    assert all(getattr(after, field) == getattr(before, field) for field in kept)
    reread = decode_job(encode_job(after))
    assert reread == after
    assert document(reread) == document(after)
