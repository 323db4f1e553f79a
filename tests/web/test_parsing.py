"""Header and query values, without a server."""

import pytest

from callboard.runtime.core.errors import InvalidRequest
from callboard.web import parsing


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ([], None),
        (["wait=5"], 5),
        (["WAIT = 2.5 ; x=y"], 2.5),
        (["respond-async, wait=3"], 3),
        (["respond-async", 'wait="4"'], 4),
        (["wait=1, wait=9"], 1),
        (["wait"], None),
        (["wait=soon"], None),
        (["wait=-1"], None),
        (["wait=1e3"], None),
        (["waiting=3"], None),
        (["wait=٣"], None),
    ],
)
def test_preferred_wait(prefer: list[str], seconds: float | None) -> None:
    assert parsing.preferred_wait(prefer) == seconds


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("01234567-89AB-7def-8123-456789abcdef", "01234567-89ab-7def-8123-456789abcdef"),
        ("0123456789ab7def8123456789abcdef", None),
        ("urn:uuid:01234567-89ab-7def-8123-456789abcdef", None),
        ("01234567-89ab-7def-8123-456789abcdef\n", None),
        ("٠1234567-89ab-7def-8123-456789abcdef", None),
        ("", None),
    ],
)
def test_job_id(text: str, job_id: str | None) -> None:
    assert parsing.job_id(text) == job_id


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:01Z", 1_000),
        (" 1970-01-01t01:00:00.5+01:00 ", 500),
        ("1970-01-01T00:00:00.123456789z", 123),
        *(
            (text, None)
            for text in ("19700101T000001Z", "1970-W01-4T00:00:00Z", "1970-01-01T00:00Z", "1970-01-01 00:00:01Z")
        ),
        *(
            (text, None)
            for text in ("1970-01-01T00:00:01", "1970-01-01", "1970-13-01T00:00:01Z", "1970-01-01T00:00:01+0100")
        ),
        *((text, None) for text in ("1970-01-01T00:00:01,5Z", "1970-01-01T00:00:01+01:00:30", "١970-01-01T00:00:01Z")),
    ],
)
def test_run_at_is_an_rfc_3339_time(text: str, milliseconds: int | None) -> None:
    if milliseconds is not None:
        assert parsing.run_at_ms(text) == milliseconds
        return
    with pytest.raises(InvalidRequest, match="RFC 3339"):
        parsing.run_at_ms(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), (" 2.5 ", 2.5), ("1e-07", 1e-07), ("0.000123456789012345678", 0.000123456789012345678), ("5E3", 5000)],
)
def test_seconds_are_a_number_as_json_has_it(text: str, seconds: float) -> None:
    assert parsing.seconds(text, "wait") == seconds


@pytest.mark.parametrize("text", ["", "-1", "+1", ".5", "1.", "1e", "1e999", "inf", "nan", "0x10", "1_0", "٣"])
def test_nothing_else_is_a_number_of_seconds(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not a number of seconds"):
        parsing.seconds(text, "wait")


def test_idempotency_key() -> None:
    assert parsing.idempotency_key([]) is None
    assert parsing.idempotency_key([' "8e03" ']) == parsing.idempotency_key(["8e03"]) == "8e03"
    with pytest.raises(InvalidRequest, match="more than once"):
        parsing.idempotency_key(["a", "b"])


def test_digests_tell_parts_apart() -> None:
    lists: list[tuple[str | bytes | None, ...]] = [
        ("a", "b"),
        ("ab", ""),
        ("", "ab"),
        ("ab",),
        ("a", "b", None),
        ("a", "b", ""),
        (),
    ]
    assert len({parsing.digest(*parts) for parts in lists}) == len(lists)
    assert parsing.digest("a") == parsing.digest(b"a")
