"""Values to JSON text and back, with errors that point at what is wrong; ids."""

import dataclasses
import random
import uuid
from typing import Any

import msgspec
import pydantic
import pytest
from msgspec import Raw

from callboard.runtime import (
    FieldError,
    InvalidPayload,
    InvalidRequest,
    JobContext,
    JobNotFound,
    Request,
    Submission,
    ThreadJobContext,
)
from callboard.runtime.handlers import make_handler
from callboard.runtime.ids import IdFactory, canonical, chosen_id
from callboard.runtime.payload import decode, encode, is_pydantic, storable
from callboard.testing import open_virtual_runtime, run_virtual


class Item(msgspec.Struct, rename="camel"):
    unit_price: int


class Order(msgspec.Struct, rename="camel"):
    line_items: list[Item] = []
    by_name: dict[str, Item] = {}


@dataclasses.dataclass
class Data:
    a: int


class Part(pydantic.BaseModel):
    unit_price: int = pydantic.Field(alias="unitPrice")


class Model(pydantic.BaseModel):
    parts: list[Part] = []
    by_name: dict[str, Part] = {}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Order, b'{"lineItems":[{"unitPrice":5}],"byName":{}}', Order([Item(5)])),
        (Data, b'{"a":1}', Data(1)),
        (dict[str, int], b'{"a":1}', {"a": 1}),
        (list[int], b"[1,2]", [1, 2]),
        (Any, b"null", None),
        (Part, b'{"unitPrice":5}', Part(unitPrice=5)),
    ],
    ids=lambda value: str(value) if isinstance(value, bytes) else "",
)
def test_there_and_back(kind: Any, text: bytes, value: Any) -> None:
    assert decode(kind, text) == decode(kind, Raw(text)) == value
    assert bytes(encode(value)) == text


@pytest.mark.parametrize(
    ("kind", "text", "pointers"),
    [
        (Order, b'{"lineItems":[{"unitPrice":"x"}]}', ["/lineItems/0/unitPrice"]),
        (Order, b'{"lineItems":[{}]}', ["/lineItems/0"]),
        (Order, b'{"byName":{"a":{"unitPrice":null}}}', ["/byName/.../unitPrice"]),
        (Order, b"[]", [""]),
        (dict[int, int], b'{"x":1}', [""]),
        (Model, b'{"parts":[{"unitPrice":"x"},{}]}', ["/parts/0/unitPrice", "/parts/1/unitPrice"]),
        (Model, b'{"by_name":{"a/b~c":{}}}', ["/by_name/a~1b~0c/unitPrice"]),
        (Model, b"[]", [""]),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_errors_point_at_what_is_wrong(kind: Any, text: bytes, pointers: list[str]) -> None:
    with pytest.raises(InvalidPayload) as caught:
        decode(kind, text)
    assert [error.pointer for error in caught.value.errors] == pointers
    assert all(error.detail for error in caught.value.errors)
    assert caught.value.http_status == 422
    assert (pointers[0] or "body") in str(caught.value)


@pytest.mark.parametrize("kind", [Order, Model])
@pytest.mark.parametrize("text", [b"", b"{", b"nonsense", b'{"a":' + b"[" * 5000], ids=lambda text: str(text[:9]))
def test_what_is_no_json(kind: Any, text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body is not JSON") as caught:
        decode(kind, text)
    assert not isinstance(caught.value, InvalidPayload)
    assert caught.value.http_status == 400


def test_validator_that_raises_what_pydantic_does_not_know() -> None:
    class Odd:
        @classmethod
        def model_validate_json(cls, body: bytes) -> None:
            raise ValueError("odd")

        model_json_schema = None

    assert is_pydantic(Odd)
    assert not is_pydantic(Odd())
    with pytest.raises(InvalidPayload) as caught:
        decode(Odd, b"{}")
    assert caught.value.errors == (FieldError("", "odd"),)


def test_text_that_can_be_stored() -> None:
    assert storable("Grüße 🎉") == "Grüße 🎉"
    assert storable("a\udcffb\ud83c") == "a?b?"


# Ids


def test_ids_are_uuids_of_version_7_that_grow() -> None:
    now_ms = 1_700_000_000_000
    make = IdFactory(lambda: now_ms, random.Random(1))
    ids = []
    for step in range(2000):
        now_ms += (0, 0, 1, -5)[step % 4]
        ids.append(make.new())
    assert ids == sorted(set(ids))
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)
    assert uuid.UUID(ids[0]).int >> 80 == 1_700_000_000_000


def test_ids_go_on_when_a_millisecond_is_full() -> None:
    make = IdFactory(lambda: 1000, random.Random(1))
    first = make.new()
    make._tail = (1 << 74) - 1
    second = make.new()
    assert second > first
    assert uuid.UUID(second).int >> 80 == 1001
    assert make.new() > second


def test_ids_of_two_processes_differ() -> None:
    one, two = (IdFactory(lambda: 1000, random.Random(seed)) for seed in (1, 2))
    assert not {one.new() for _ in range(1000)} & {two.new() for _ in range(1000)}


def test_ids_that_are_asked_for() -> None:
    text = "018F3C1E-5B7A-7CC3-98C4-DC0C0C07398F"
    assert canonical(text) == chosen_id(text) == text.lower()
    for wrong in ("", "x", "x" * 36, text.replace("-", ""), f"{{{text}}}", "x" * 1000):
        with pytest.raises(JobNotFound, match="there is no job") as caught:
            canonical(wrong)
        assert len(str(caught.value)) < 70
        with pytest.raises(InvalidRequest, match="the job id must be a UUID"):
            chosen_id(wrong)


@pytest.mark.parametrize("kind", [JobContext, ThreadJobContext])
def test_stored_route_parameters_that_no_longer_decode_are_a_mismatch(kind: type) -> None:
    def in_thread(job: ThreadJobContext) -> None: ...
    async def in_task(job: JobContext) -> None: ...

    async def scenario() -> None:
        work = make_handler("work", in_task if kind is JobContext else in_thread, max_retries=3)
        async with open_virtual_runtime([work]) as board:
            request = Request(route_params={"which": ("uuid", "secret")})
            accepted = await board.runtime.accept(Submission(name="work", request=request))
            (job,) = await board.drain()
            assert job.id == accepted.job.id
            assert job.error is not None
            assert (job.error.code, job.error.type, job.retry_count) == ("PAYLOAD_MISMATCH", "ValueError", 0)

    run_virtual(scenario)
