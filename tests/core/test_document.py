"""The job document: every field of the contract, never one left out; times; what an event says changed; merging."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from callboard.runtime.core.codec import decode_job, encode_job
from callboard.runtime.core.document import FIELDS, changes, document, format_time, parse_time
from callboard.runtime.core.events import Event, LogEntry, merge
from callboard.runtime.core.job import Failure, Job, Progress, Status

CONTRACT = [
    *("id", "name", "queue", "status", "retryCount", "maxRetries", "attempt"),
    *("createdAt", "startedAt", "completedAt", "lastUpdatedAt"),
    *("result", "error", "seq", "progress", "scheduledFor", "cancelRequested", "priority"),
]
"""The fields of the document less ``links``, in order. Source: the wire contract."""

NEW = Job(id="j", name="N", status=Status.QUEUED, max_retries=3, created_ms=0, updated_ms=0, seq=1)
ENDED = Job(
    id="j",
    name="N",
    queue="q",
    status=Status.FAILED,
    seq=7,
    priority=-5,
    max_retries=3,
    retry_count=3,
    attempt=4,
    created_ms=1_700_000_000_000,
    started_ms=1_700_000_000_001,
    completed_ms=1_700_000_001_999,
    updated_ms=1_700_000_001_999,
    error=Failure(code="C", message="m", type="T", retryable=True),
    progress=Progress(percent=50, message="half", data=Raw(b"[1]")),
    owner="secret owner",
    key="secret key",
    fingerprint="secret fingerprint",
    worker=None,
)


def shown(job: Job) -> dict[str, Any]:
    fields = {name: msgspec.json.decode(text) for name, text in document(job).items()}
    del fields["location"]  # the web makes links of it
    return fields


@pytest.mark.parametrize("job", [NEW, ENDED], ids=["new", "ended"])
def test_every_field_of_the_contract_is_there_and_no_other(job: Job) -> None:
    assert list(shown(job)) == CONTRACT


def test_what_is_absent_is_null() -> None:
    assert shown(NEW) == {
        "id": "j",
        "name": "N",
        "queue": "default",
        "status": "Queued",
        "retryCount": 0,
        "maxRetries": 3,
        "attempt": 0,
        "createdAt": "1970-01-01T00:00:00.000Z",
        "startedAt": None,
        "completedAt": None,
        "lastUpdatedAt": "1970-01-01T00:00:00.000Z",
        "result": None,
        "error": None,
        "seq": 1,
        "progress": None,
        "scheduledFor": None,
        "cancelRequested": False,
        "priority": 0,
    }


def test_what_is_there_is_shown_as_the_contract_says() -> None:
    assert shown(ENDED) == {
        "id": "j",
        "name": "N",
        "queue": "q",
        "status": "Failed",
        "retryCount": 3,
        "maxRetries": 3,
        "attempt": 4,
        "createdAt": "2023-11-14T22:13:20.000Z",
        "startedAt": "2023-11-14T22:13:20.001Z",
        "completedAt": "2023-11-14T22:13:21.999Z",
        "lastUpdatedAt": "2023-11-14T22:13:21.999Z",
        "result": None,
        "error": {"code": "C", "message": "m", "type": "T", "retryable": True},
        "seq": 7,
        "progress": {"percent": 50, "message": "half", "data": [1]},
        "scheduledFor": None,
        "cancelRequested": False,
        "priority": -5,
    }
    scheduled = replace(NEW, status=Status.SCHEDULED, due_ms=1_000)
    running = replace(NEW, status=Status.IN_PROGRESS, cancel_requested=True, progress=Progress())
    completed = replace(NEW, status=Status.COMPLETED, result=Raw(b'{"n":1.0}'), location="/x")
    assert shown(scheduled)["scheduledFor"] == "1970-01-01T00:00:01.000Z"
    assert shown(running)["cancelRequested"] is True
    assert shown(running)["progress"] == {"percent": None, "message": None, "data": None}
    assert document(completed)["result"] == Raw(b'{"n":1.0}'), "the handler's JSON as it is"
    assert document(completed)["location"] == Raw(b'"/x"')


def test_nothing_private_is_in_the_document() -> None:
    text = msgspec.json.encode(document(replace(ENDED, worker="secret worker", fence=987654)))
    assert b"secret" not in text
    assert b"987654" not in text


def test_changes_hold_what_differs_and_always_id_seq_and_last_updated() -> None:
    assert changes(None, NEW) == document(NEW)
    assert set(changes(NEW, NEW)) == {"id", "seq", "lastUpdatedAt"}
    for attribute, wire, _ in FIELDS:
        if attribute not in ("id", "seq", "updated_ms"):
            other = replace(NEW, **{attribute: getattr(VARIED, attribute)})
            changed = changes(NEW, other)
            assert set(changed) == {"id", "seq", "lastUpdatedAt", wire}
            assert changed[wire] == document(other)[wire]


VARIED = replace(
    ENDED, name="M", max_retries=4, due_ms=5, cancel_requested=True, location="/x", result=Raw(b"1"), created_ms=1
)


def test_what_the_store_alone_knows_changes_nothing_that_is_told() -> None:
    other = replace(NEW, serial=5, fence=6, worker="w", owner="o", key="k", fingerprint="f", lost_leases=1)
    assert set(changes(NEW, other)) == {"id", "seq", "lastUpdatedAt"}


@pytest.mark.parametrize(
    ("percent", "text"),
    [(20, b"20"), (20.0, b"20"), (-0.0, b"0"), (0, b"0"), (100.0, b"100"), (33.5, b"33.5"), (None, b"null")],
)
def test_a_percentage_is_one_text_whether_it_was_said_or_reread(percent: float | None, text: bytes) -> None:
    said = replace(NEW, progress=Progress(percent=percent))
    reread = decode_job(encode_job(said))
    assert document(said) == document(reread)
    assert bytes(document(said)["progress"]) == b'{"percent":%b,"message":null,"data":null}' % text


# Times


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (951_782_400_999, "2000-02-29T00:00:00.999Z"),
        (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_a_time_has_milliseconds_and_z(at_ms: int, text: str) -> None:
    assert format_time(at_ms) == text
    assert parse_time(text) == at_ms


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_comes_back_as_it_was(at_ms: int) -> None:
    assert parse_time(format_time(at_ms)) == at_ms


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2030-01-31T08:00:00Z", 1_896_076_800_000),
        ("2030-01-31T10:00:00+02:00", 1_896_076_800_000),
        ("2030-01-31T08:00:00.5Z", 1_896_076_800_500),
        ("2030-01-31T08:00:00.123456789Z", 1_896_076_800_123),
        ("2030-01-31t08:00:00z", 1_896_076_800_000),  # RFC 3339, section 5.6: either case
        ("1969-12-31T23:59:59.999-00:00", -1),
    ],
)
def test_a_time_may_be_written_in_any_way_of_rfc_3339(text: str, at_ms: int) -> None:
    assert parse_time(text) == at_ms


@pytest.mark.parametrize(
    "text", ["", "soon", "1896076800", "2030-02-30T08:00:00Z", "2030-01-31T25:00:00Z", "2030-01-31T08:00:00"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_a_time_without_an_offset_is_refused_with_what_to_add() -> None:
    with pytest.raises(ValueError, match="end it with Z"):
        parse_time("2030-01-31T08:00:00")


# Merging


def an_event(seq: int, **fields: Any) -> Event:
    known = {"job_id": "j", "seq": seq, "since": seq - 1, "type": "progress", "at_ms": seq, "status": "InProgress"}
    return Event(**{**known, "name": "N", "queue": "q", "owner": "o", "changes": {}, **fields})


def test_two_adjoining_events_merge_into_one_that_stands_for_both() -> None:
    earlier = an_event(4, since=2, log=LogEntry("info", "gone"), changes={"seq": Raw(b"4"), "name": Raw(b'"N"')})
    later = an_event(5, type="status", status="Failed", changes={"seq": Raw(b"5"), "status": Raw(b'"Failed"')})
    assert merge(earlier, later) == replace(
        later, since=2, changes={"seq": Raw(b"5"), "name": Raw(b'"N"'), "status": Raw(b'"Failed"')}
    )


@pytest.mark.parametrize("status", Status)
def test_an_event_is_terminal_when_its_status_ends_the_job(status: Status) -> None:
    ends = status in (Status.COMPLETED, Status.FAILED, Status.CANCELED)
    assert an_event(1, type="status", status=status).is_terminal == ends
    assert not an_event(1, type="log", status=status).is_terminal
