"""Stored records: what goes in comes out, a patch may add fields, a newer schema is refused."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import fields, replace

from callboard.runtime.core.codec import (
    decode_event,
    decode_job,
    decode_request,
    encode_event,
    encode_job,
    encode_request,
)
from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.events import Event, LogEntry
from callboard.runtime.core.job import SCHEMA, Failure, Job, Progress, Request, Status

MINIMAL = Job(id="j", name="N", status=Status.QUEUED, created_ms=1, updated_ms=2)
FULL = Job(
    id="0190f3c0-0000-7000-8000-000000000000",
    serial=2**53,
    seq=9,
    name="Größe",
    queue="q",
    status=Status.IN_PROGRESS,
    priority=-1000,
    max_retries=4,
    retry_count=1,
    attempt=3,
    max_lost_leases=2,
    lost_leases=1,
    timeout_seconds=1.5,
    created_ms=1,
    updated_ms=2,
    started_ms=3,
    completed_ms=4,
    due_ms=5,
    ready_ms=6,
    begun_ms=7,
    fence=2**53,
    worker="w",
    cancel_requested=True,
    progress=Progress(percent=12.5, message="m", data=Raw(b'{"deep":[1,null]}')),
    result=Raw(b'{"a":1.0}'),
    error=Failure(code="C", message="m", type="T", retryable=True),
    location="/x",
    owner="o",
    key="k",
    fingerprint="f",
)
EVENT = Event(
    job_id="j",
    seq=2,
    since=0,
    type="log",
    at_ms=7,
    status="InProgress",
    name="N",
    queue="q",
    owner="o",
    changes={"seq": Raw(b"2"), "progress": Raw(b'{"percent":1}')},
    log=LogEntry("info", "x"),
)
REQUEST = Request(
    body=Raw(b'{"a":[1]}'),
    headers=(("Accept", "a"), ("Accept", "b")),
    route_params={"n": ("int", 10**30), "x": ("float", 1.0), "u": ("uuid", "0190f3c0-0000-7000-8000-000000000000")},
    query_params=(("q", "1"), ("q", "2")),
    trace_context={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"},
)


def test_the_full_record_leaves_no_field_at_its_default() -> None:
    plain = [field.name for field in fields(Job) if getattr(FULL, field.name) == field.default]
    assert plain == ["schema"]


@pytest.mark.parametrize("job", [MINIMAL, FULL], ids=["minimal", "full"])
def test_a_job_comes_back_as_it_was(job: Job) -> None:
    assert decode_job(encode_job(job)) == job
    assert msgspec.json.decode(encode_job(job))["schema"] == SCHEMA == 1


def test_a_number_of_a_route_keeps_its_type() -> None:
    back = decode_request(encode_request(REQUEST))
    assert back == REQUEST
    assert {name: type(value) for name, (_, value) in back.route_params.items()} == {"n": int, "x": float, "u": str}
    assert decode_request(encode_request(Request())) == Request()


def test_an_event_comes_back_as_it_was() -> None:
    bare = replace(EVENT, owner=None, log=None)
    assert decode_event(encode_event(EVENT)) == EVENT
    assert decode_event(encode_event(bare)) == bare


CODECS: list[tuple[Callable[[bytes], Any], bytes, set[str]]] = [
    (decode_job, encode_job(MINIMAL), {"id", "name", "status", "created_ms", "updated_ms"}),
    (
        decode_event,
        encode_event(replace(EVENT, owner=None, log=None)),
        {"job_id", "seq", "since", "type", "at_ms", "status", "name", "queue", "changes"},
    ),
    (decode_request, encode_request(Request()), set()),
]
each_codec = pytest.mark.parametrize(("decode", "data", "needed"), CODECS, ids=["job", "event", "request"])


@each_codec
def test_unknown_fields_are_ignored_and_fields_with_defaults_may_be_missing(
    decode: Callable[[bytes], Any], data: bytes, needed: set[str]
) -> None:
    stored = msgspec.json.decode(data)
    newer = {**stored, "added_by_a_newer_patch": {"x": 1}}
    older = {name: value for name, value in stored.items() if name in needed}
    assert decode(msgspec.json.encode(newer)) == decode(data)
    assert decode(msgspec.json.encode(older)) == decode(data)


@each_codec
def test_what_is_no_record_is_refused(decode: Callable[[bytes], Any], data: bytes, needed: set[str]) -> None:
    broken = [b"", b"{", b"[]", b"\xff", data[:-1], *(_without(data, name) for name in needed)]
    for text in broken:
        with pytest.raises(StoreRefused, match="cannot be read"):
            decode(text)


def _without(data: bytes, name: str) -> bytes:
    stored = msgspec.json.decode(data)
    del stored[name]
    return msgspec.json.encode(stored)


@pytest.mark.parametrize("more", [{}, {"status": "Paused"}, {"seq": None}], ids=repr)
def test_a_record_of_a_newer_schema_is_refused_whatever_it_holds(more: dict[str, Any]) -> None:
    newer = {**msgspec.json.decode(encode_job(MINIMAL)), "schema": SCHEMA + 1, **more}
    with pytest.raises(StoreRefused, match="has schema 2, this callboard knows 1: upgrade callboard"):
        decode_job(msgspec.json.encode(newer))


def test_a_broken_record_of_this_schema_is_not_called_a_newer_one() -> None:
    broken = {**msgspec.json.decode(encode_job(MINIMAL)), "status": "Paused"}
    with pytest.raises(StoreRefused, match=r"cannot be read.*Paused"):
        decode_job(msgspec.json.encode(broken))


def test_what_an_older_patch_does_not_know_is_gone_when_it_writes_the_record_again() -> None:
    """As docs/embedding.md says: what a newer patch adds must do without itself."""
    newer = msgspec.json.encode(msgspec.json.decode(encode_job(FULL)) | {"novel": 1})
    assert encode_job(decode_job(newer)) == encode_job(FULL)
