"""The record of an attempt: made by whatever ends one, by nothing else, and none of it in the job or its events."""

import pytest
from msgspec import Raw
from msgspec.structs import asdict, replace

from callboard.runtime.core.codec import (
    decode_attempt,
    encode_attempt,
    encode_event,
    encode_job,
)
from callboard.runtime.core.commands import Cancel, Claim, Command, Fail, Lapse, Release, Report, Retry, Stop, Succeed
from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.history import AttemptOutcome, AttemptRecord, ExceptionInfo
from callboard.runtime.core.job import Failure, Job, Progress, Status
from callboard.runtime.core.transition import WORKER_LOST, decide

FAILURE = Failure(code="C", message="m", type="T", retryable=True)
FATAL = replace(FAILURE, retryable=False)
EARLIER = replace(FAILURE, code="EARLIER")
CHAIN = (
    ExceptionInfo(type="T", message="the secret", traceback="  the secret", notes=("the secret",)),
    ExceptionInfo(type="U", message="the secret", traceback="", relation="context", of=0),
)
RUNNING = Job(
    id="j",
    name="N",
    seq=4,
    status=Status.IN_PROGRESS,
    max_retries=1,
    max_lost_leases=0,
    attempt=3,
    created_ms=10,
    started_ms=20,
    updated_ms=30,
    fence=5,
    worker="w",
    error=EARLIER,
)
LENIENT = replace(RUNNING, max_lost_leases=1)
ASKED = replace(RUNNING, cancel_requested=True)


@pytest.mark.parametrize(
    ("job", "command", "outcome", "error", "exceptions"),
    [
        (RUNNING, Succeed(now_ms=50, result=Raw(b"1")), "Completed", None, ()),
        (ASKED, Succeed(now_ms=50, result=Raw(b"1")), "Completed", None, ()),
        (RUNNING, Fail(now_ms=50, failure=FAILURE, exceptions=CHAIN), "Failed", FAILURE, CHAIN),
        (RUNNING, Fail(now_ms=50, failure=FATAL), "Failed", FATAL, ()),
        (ASKED, Fail(now_ms=50, failure=FAILURE, exceptions=CHAIN), "Canceled", FAILURE, CHAIN),
        (ASKED, Stop(now_ms=50, exceptions=CHAIN), "Canceled", None, CHAIN),
        (RUNNING, Release(now_ms=50, exceptions=CHAIN), "Released", None, CHAIN),
        (ASKED, Release(now_ms=50), "Canceled", None, ()),
        (LENIENT, Lapse(now_ms=50), "Lost", None, ()),
        (RUNNING, Lapse(now_ms=50), "Lost", WORKER_LOST, ()),
        (ASKED, Lapse(now_ms=50), "Lost", None, ()),
    ],
)
def test_what_ends_an_attempt_makes_its_record(
    job: Job, command: Command, outcome: str, error: Failure | None, exceptions: tuple[ExceptionInfo, ...]
) -> None:
    change = decide(job, command)
    assert change.attempt == AttemptRecord(
        attempt=3,
        worker="w",
        started_ms=20,
        ended_ms=50,
        outcome=AttemptOutcome(outcome),
        error=error,
        exceptions=exceptions,
    )
    told = encode_job(change.job) + b"".join(map(encode_event, change.events))
    assert b"secret" not in told


@pytest.mark.parametrize(
    ("job", "command"),
    [
        (replace(RUNNING, status=Status.QUEUED, fence=0, worker=None), Claim(now_ms=50, worker="v", fence=6)),
        (replace(RUNNING, status=Status.QUEUED, fence=0, worker=None), Cancel(now_ms=50)),
        (RUNNING, Report(now_ms=50, progress=Progress(percent=1.0))),
        (RUNNING, Cancel(now_ms=50)),
        (ASKED, Cancel(now_ms=50)),
        (replace(RUNNING, status=Status.FAILED, fence=0, worker=None), Retry(now_ms=50)),
    ],
)
def test_nothing_else_makes_one(job: Job, command: Command) -> None:
    assert decide(job, command).attempt is None


def test_a_clock_that_was_set_back_does_not_end_an_attempt_before_it_began() -> None:
    record = decide(RUNNING, Stop(now_ms=1)).attempt
    assert record is not None
    assert (record.started_ms, record.ended_ms) == (20, 30)


def test_a_record_is_written_and_read() -> None:
    record = decide(RUNNING, Fail(now_ms=50, failure=FAILURE, exceptions=CHAIN)).attempt
    assert record is not None
    data = encode_attempt(record)
    assert decode_attempt(data) == record
    assert decode_attempt(data[:-1] + b',"newer":1}') == record, "fields of a newer callboard are passed over"
    with pytest.raises(StoreRefused, match="attempt cannot be read"):
        decode_attempt(data[:-1])


def test_every_outcome_has_a_value_of_its_own_on_the_wire() -> None:
    assert [outcome.value for outcome in AttemptOutcome] == ["Completed", "Failed", "Canceled", "Released", "Lost"]
    assert set(asdict(CHAIN[1])) == {"type", "message", "traceback", "relation", "of", "notes"}
