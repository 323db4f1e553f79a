"""Header and query values to Python values. Pure; raises InvalidRequest with what would be right."""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from callboard.runtime.core.document import parse_time
from callboard.runtime.core.errors import InvalidRequest
from callboard.runtime.core.job import MAX_PRIORITY, Status

__all__ = [
    "digest",
    "flag",
    "idempotency_key",
    "is_ndjson",
    "job_id",
    "limit",
    "preferred_wait",
    "priority",
    "run_at_ms",
    "seconds",
    "sequence",
    "single",
    "statuses",
]

MAX_LIMIT: Final = 200
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_DECIMAL: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)
_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})",
    re.IGNORECASE | re.ASCII,
)
"""Source: RFC 3339, section 5.6. Python reads other forms of ISO 8601 too, week dates among them."""
_NDJSON: Final = frozenset({"application/jsonl", "application/ndjson", "application/x-ndjson"})
_WHOLE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


def job_id(text: str) -> str | None:
    """A UUID in its canonical lower-case form; None if ``text`` is none."""
    return text.lower() if _UUID.fullmatch(text) else None


def preferred_wait(prefer: Iterable[str]) -> float | None:
    """Seconds of the first ``wait`` in ``Prefer`` headers; None if there is none that can be meant.

    Source: RFC 7240, section 2: a preference that is not understood is ignored, and of repeated ones the first counts.
    """
    for preference in ",".join(prefer).split(","):
        name, _, rest = preference.partition("=")
        if name.strip().lower() == "wait":
            value = rest.partition(";")[0].strip().strip('"')
            return float(value) if _DECIMAL.fullmatch(value) else None
    return None


def seconds(text: str, what: str) -> float:
    """A number of seconds, zero or more."""
    if not _DECIMAL.fullmatch(text.strip()):
        raise InvalidRequest(f"{what} is not a number of seconds: give digits, such as 10 or 2.5")
    return float(text)


def sequence(text: str, what: str) -> int:
    """A whole number, zero or more."""
    if not _WHOLE.fullmatch(text):
        raise InvalidRequest(f"{what} is not a whole number: give the seq of the last event that you have")
    return int(text)


def flag(text: str | None, what: str) -> bool | None:
    """``true`` or ``false``; None if it is not given."""
    if text is None or text in ("true", "false"):
        return None if text is None else text == "true"
    raise InvalidRequest(f"{what} is {text!r}: give true or false")


def limit(text: str) -> int:
    """How many jobs a page holds."""
    if not _WHOLE.fullmatch(text) or not 1 <= int(text) <= MAX_LIMIT:
        raise InvalidRequest(f"limit is {text!r}: give a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def statuses(texts: Iterable[str]) -> tuple[Status, ...]:
    """Statuses by their wire names."""
    try:
        return tuple(dict.fromkeys(Status(text) for text in texts))
    except ValueError:
        raise InvalidRequest(f"status must be one of {', '.join(Status)}") from None


def idempotency_key(values: list[str]) -> str | None:
    """The one ``Idempotency-Key``; quotes round it (a structured-field string) are not part of it."""
    if not values:
        return None
    if len(values) > 1:
        raise InvalidRequest("Idempotency-Key is given more than once: give one")
    key = values[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= 255:
        raise InvalidRequest("Idempotency-Key must have 1 to 255 characters")
    return key


def is_ndjson(content_type: str) -> bool:
    """Whether a ``Content-Type`` says that the body is lines of JSON, by any of the names that are in use."""
    return content_type.partition(";")[0].strip().lower() in _NDJSON


def single(values: list[str], header: str) -> str | None:
    """The one value of a header; None if it is not given."""
    if len(values) > 1:
        raise InvalidRequest(f"{header} is given more than once: give one")
    return values[0] if values else None


def priority(text: str) -> int:
    """The value of ``Job-Priority``."""
    if not re.fullmatch(r"[+-]?[0-9]{1,4}", text.strip(), re.ASCII) or abs(int(text)) > MAX_PRIORITY:
        raise InvalidRequest(f"Job-Priority must be a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}")
    return int(text)


def run_at_ms(text: str) -> int:
    """The value of ``Job-Run-At`` in milliseconds since the epoch."""
    try:
        if not _RFC_3339.fullmatch(text.strip()):
            raise ValueError("another form of time")
        return parse_time(text.strip())
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "Job-Run-At must be an RFC 3339 time with an offset, such as 2030-01-31T08:00:00Z"
        ) from None


def digest(*parts: bytes | str | None) -> str:
    """A digest of ``parts`` that no other list of parts shares."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        state.update(b"-" if data is None else b"%d:" % len(data) + data)
    return state.hexdigest()
