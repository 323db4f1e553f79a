"""Header and query values to Python values. Pure; raises InvalidRequest with what would be right."""

import hashlib
import math
import re
from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from callboard.runtime.core.document import parse_time
from callboard.runtime.core.errors import InvalidRequest, JobNotFound
from callboard.runtime.core.job import MAX_PRIORITY, Status
from callboard.runtime.ids import canonical

__all__ = [
    "digest",
    "flag",
    "idempotency_key",
    "is_coded",
    "is_json",
    "is_ndjson",
    "job_id",
    "limit",
    "preferred_wait",
    "priority",
    "redacted",
    "run_at_ms",
    "seconds",
    "sequence",
    "single",
    "statuses",
]

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
_DECIMAL: Final = re.compile(r"[0-9]{1,300}(\.[0-9]{1,300})?", re.ASCII)
"""No more digits than a float can hold with room to spare: what is too long is judged where its meaning is known."""
_NUMBER: Final = re.compile(r"[0-9]{1,300}(\.[0-9]{1,300})?(e[+-]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE)
"""A number of 0 or more as JSON has it, which is how generated clients write one: 1e-07 is one too."""
_RFC_3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:)([0-5][0-9]|60)"
    r"((\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))",
    re.IGNORECASE | re.ASCII,
)
"""Source: RFC 3339, section 5.6. Python reads other forms of ISO 8601 too, week dates among them."""
_NDJSON: Final = frozenset({"application/jsonl", "application/ndjson", "application/x-ndjson"})
_WHOLE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_LEAP_MS: Final = 1000
_DAY_MS: Final = 24 * 3600 * 1000


def job_id(text: str) -> str | None:
    """A job's id in its canonical form; None if ``text`` can be none."""
    try:
        return canonical(text)
    except JobNotFound:
        return None


def preferred_wait(prefer: Iterable[str]) -> float | None:
    """Seconds of the first ``wait`` in ``Prefer`` headers; None if there is none that can be meant.

    Source: RFC 7240, section 2: a preference that is not understood is ignored, and of repeated ones the first counts.
    """
    for preference in _split(",".join(prefer), ","):
        name, _, value = _split(preference, ";")[0].partition("=")
        if name.strip().lower() == "wait":
            value = value.strip().strip('"')
            return float(value) if _DECIMAL.fullmatch(value) else None
    return None


def _split(text: str, sign: str) -> list[str]:
    """``text`` between the signs that are in no quoted string (RFC 9110, section 5.6.4)."""
    parts, start = [], 0
    quoted = escaped = False
    for at, letter in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter == sign and not quoted:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def seconds(text: str, what: str) -> float:
    """A number of seconds, zero or more."""
    value = float(text) if _NUMBER.fullmatch(text.strip()) else math.inf
    if not math.isfinite(value):
        raise InvalidRequest(f"{what} is not a number of seconds: give digits, such as 10 or 2.5")
    return value


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
        found = _RFC_3339.fullmatch(text.strip())
        if found is None:
            raise ValueError("another form of time")
        if found[3] != "60":
            return parse_time(found[0])
        # A leap second ends a day of UTC; the epoch's days have none, so it is the first second of the next.
        at_ms = parse_time(f"{found[1]}59{found[4]}") + _LEAP_MS
        if at_ms % _DAY_MS >= _LEAP_MS:
            raise ValueError("no leap second")
        return at_ms
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "Job-Run-At must be an RFC 3339 time with an offset, such as 2030-01-31T08:00:00Z"
        ) from None


def is_json(content_types: list[str]) -> bool:
    """Whether the values of ``Content-Type`` name JSON in UTF-8.

    Source: RFC 8259, sections 8.1 and 11: always UTF-8, and ``charset`` means nothing; one that says otherwise is a mistake.
    """
    if len(content_types) != 1:
        return False
    kind, *parameters = (part.strip().lower() for part in content_types[0].split(";"))
    charsets = {part[len("charset=") :].strip('"') for part in parameters if part.startswith("charset=")}
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    return is_json and charsets <= {"utf-8", "utf8", "us-ascii"}


def is_coded(content_encodings: list[str]) -> bool:
    """Whether the values of ``Content-Encoding`` name a coding, such as gzip."""
    codings = {part.strip().lower() for part in ",".join(content_encodings).split(",")}
    return not codings <= {"", "identity"}


def redacted(query_string: bytes, names: Collection[str]) -> bytes:
    """A query string without the values of the parameters in ``names`` (in small letters, found in any case)."""
    if not names:
        return query_string
    parts = query_string.split(b"&")
    return b"&".join(part.partition(b"=")[0] if _parameter(part) in names else part for part in parts)


def _parameter(part: bytes) -> str:
    return unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")).decode("utf-8", "replace").lower()


def digest(*parts: bytes | str | None) -> str:
    """A digest of ``parts`` that no other list of parts shares."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        state.update(b"-" if data is None else b"%d:" % len(data) + data)
    return state.hexdigest()
