"""The job document, its tag and the frames of a stream, without a server: pure functions of records."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from callboard.runtime.core import commands
from callboard.runtime.core.events import Event, LogEntry, merge
from callboard.runtime.core.job import Failure, Job, Progress, Status
from callboard.runtime.core.transition import TABLE, accept, decide
from callboard.web.render import Place, entity_tag, event_frame, expires, job_bytes, job_location, snapshot_frame

ID = "01234567-89ab-7def-8123-456789abcdef"
PLACE = Place("/shop", "/jobs")


def new_job(**fields: Any) -> Job:
    given_fields: dict[str, Any] = {"status": Status.QUEUED, "created_ms": 1_000, "updated_ms": 1_000, "max_retries": 1}
    return Job(**{"id": ID, "name": "Order", **given_fields, **fields})


def folded(events: list[Event]) -> bytes:
    document: dict[str, Raw] = {}
    for event in events:
        frame = msgspec.json.decode(event_frame(event, PLACE), type=dict[str, Raw])
        document.update(msgspec.json.decode(frame["job"], type=dict[str, Raw]))
    return msgspec.json.encode(document)


FAILURE = Failure(code="NO", message="no", type="JobFailed", retryable=True)
COMMANDS = st.one_of(
    st.builds(commands.Claim, now_ms=st.just(2_000), worker=st.just("w"), fence=st.just(1)),
    st.builds(
        commands.Report,
        now_ms=st.just(2_500),
        logs=st.lists(st.just(LogEntry("info", "hm")), max_size=2).map(tuple),
        progress=st.none() | st.builds(Progress, percent=st.none() | st.integers(0, 100), data=st.just(Raw(b"[1]"))),
    ),
    st.builds(
        commands.Succeed,
        now_ms=st.just(3_000),
        result=st.just(Raw(b'{"a":1}')),
        location=st.sampled_from([None, "", "/x", "/ä b"]),
    ),
    st.builds(commands.Fail, now_ms=st.just(3_000), failure=st.just(FAILURE), delay_ms=st.just(5)),
    st.builds(commands.Stop, now_ms=st.just(3_000)),
    st.builds(commands.Release, now_ms=st.just(3_000)),
    st.builds(commands.Lapse, now_ms=st.just(3_000)),
    st.builds(commands.Cancel, now_ms=st.just(3_000)),
    st.builds(commands.Retry, now_ms=st.just(4_000)),
)


@given(st.lists(COMMANDS, max_size=12), st.booleans())
def test_folding_the_events_of_any_life_gives_the_document_byte_for_byte(
    life: list[commands.Command], merging: bool
) -> None:
    change = accept(new_job())
    job, events = change.job, list(change.events)
    for command in life:
        if job.status in TABLE[type(command)]:
            change = decide(job, command)
            job = change.job
            events += change.events
        told = merged(events) if merging else events
        assert folded(told) == job_bytes(job, PLACE)


def merged(events: list[Event]) -> list[Event]:
    told: list[Event] = []
    for event in events:
        if told and event.type == told[-1].type == "progress":
            told[-1] = merge(told[-1], event)
        else:
            told.append(event)
    return told


def test_references_honour_prefix_and_root_path() -> None:
    job = new_job(status=Status.COMPLETED, completed_ms=2_000, location="/orders/5")
    links = msgspec.json.decode(job_bytes(job, PLACE))["links"]
    own = f"/shop/jobs/{ID}"
    assert links == {
        "self": own,
        "cancel": f"{own}/cancel",
        "events": f"{own}/events",
        "stream": f"{own}/stream",
        "result": f"{own}/result",
        "location": "/shop/orders/5",
    }
    elsewhere = replace(job, location="https://files.example/5")
    assert msgspec.json.decode(job_bytes(elsewhere, PLACE))["links"]["location"] == "https://files.example/5"


@pytest.mark.parametrize(
    ("location", "seen"),
    [
        ("/files/ä b.txt", "/shop/files/%C3%A4%20b.txt"),
        ("/a%20b/100%?q=[1]&r=~x#top", "/shop/a%20b/100%25?q=[1]&r=~x#top"),
        ("/x\r\nSet-Cookie: a=b", "/shop/x%0D%0ASet-Cookie:%20a=b"),
        ('/<b>"\\^`{|}\x00\x7f', "/shop/%3Cb%3E%22%5C%5E%60%7B%7C%7D%00%7F"),
        ("https://files.example/ü", "https://files.example/%C3%BC"),
        ("//files.example/5", "//files.example/5"),
        ("things/5", "things/5"),
    ],
)
def test_a_location_is_a_uri_reference(location: str, seen: str) -> None:
    job = new_job(status=Status.COMPLETED, completed_ms=2_000, location=location)
    assert job_location(job, PLACE) == msgspec.json.decode(job_bytes(job, PLACE))["links"]["location"] == seen


def test_an_empty_location_is_none() -> None:
    job = new_job(status=Status.COMPLETED, completed_ms=2_000, location="")
    assert job_location(job, PLACE) is None
    assert "location" not in msgspec.json.decode(job_bytes(job, PLACE))["links"]


def test_a_snapshot_holds_the_whole_document() -> None:
    job = new_job(seq=4)
    frame = msgspec.json.decode(snapshot_frame(job, PLACE, gap=True))
    assert frame["job"] == msgspec.json.decode(job_bytes(job, PLACE))
    assert {name: frame[name] for name in ("seq", "type", "gap", "at")} == {
        "seq": 4,
        "type": "snapshot",
        "gap": True,
        "at": "1970-01-01T00:00:01.000Z",
    }


def test_a_tag_names_one_state_of_one_job() -> None:
    job = new_job(serial=7, seq=3)
    tags = {
        entity_tag(one) for one in (job, replace(job, seq=4), replace(job, serial=8), replace(job, created_ms=2_000))
    }
    assert len(tags) == 4
    assert entity_tag(replace(job, worker="other")) == entity_tag(job)


def test_a_record_expires_after_its_retention() -> None:
    ended = new_job(status=Status.FAILED, completed_ms=0)
    assert expires(ended, 60) == "Thu, 01 Jan 1970 00:01:00 GMT"
    assert expires(ended, None) is None
    assert expires(new_job(), 60) is None
