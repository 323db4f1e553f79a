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
