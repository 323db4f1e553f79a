"""The job document of the wire contract, less its ``links``, and the difference between two of them.

Events are made by comparing records field by field with the same table that renders the document, so folding events into
a document gives the next document by construction.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from callboard.runtime.core.job import NULL, Job, Progress

__all__ = ["FIELDS", "changes", "document", "format_time", "parse_time"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encoder = msgspec.json.Encoder()


def format_time(at_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds and ``Z``, for ``at_ms`` milliseconds since the epoch."""
    moment = _EPOCH + timedelta(milliseconds=at_ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def parse_time(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time with an offset. Raises ValueError."""
    moment = datetime.fromisoformat(text.upper())  # t and z may be small letters. Source: RFC 3339, section 5.6
    if moment.tzinfo is None:
        raise ValueError("the time has no offset: end it with Z or +00:00")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _plain(value: Any) -> Raw:
    return Raw(_encoder.encode(value))


def _time(value: int | None) -> Raw:
    return NULL if value is None else Raw(b'"' + format_time(value).encode() + b'"')


def _progress(value: Progress | None) -> Raw:
    # 20 and 20.0 are one number to msgspec and to a reread record, but not one text: a fold must give what GET answers.
    if value is not None and value.percent is not None and value.percent % 1 == 0:
        value = replace(value, percent=int(value.percent))
    return _plain(value)


def _raw(value: Raw) -> Raw:
    return value


FIELDS: Final[tuple[tuple[str, str, Callable[[Any], Raw]], ...]] = (
    ("id", "id", _plain),
    ("name", "name", _plain),
    ("queue", "queue", _plain),
    ("status", "status", _plain),
    ("retry_count", "retryCount", _plain),
    ("max_retries", "maxRetries", _plain),
    ("attempt", "attempt", _plain),
    ("created_ms", "createdAt", _time),
    ("started_ms", "startedAt", _time),
    ("completed_ms", "completedAt", _time),
    ("updated_ms", "lastUpdatedAt", _time),
    ("result", "result", _raw),
    ("error", "error", _plain),
    ("seq", "seq", _plain),
    ("progress", "progress", _progress),
    ("due_ms", "scheduledFor", _time),
    ("cancel_requested", "cancelRequested", _plain),
    ("priority", "priority", _plain),
    ("location", "location", _plain),
)
"""(attribute of Job, wire name, encoder). ``location`` is not on the wire by itself: the web puts it into ``links``."""

_ALWAYS = frozenset({"id", "seq", "updated_ms"})


def document(job: Job) -> dict[str, Raw]:
    """Every wire field of ``job`` but ``links``, in wire order, each as JSON text."""
    return {wire: encode(getattr(job, attribute)) for attribute, wire, encode in FIELDS}


def changes(before: Job | None, after: Job) -> dict[str, Raw]:
    """The wire fields that differ, with their whole new values; ``id``, ``seq`` and ``lastUpdatedAt`` always."""
    if before is None:
        return document(after)
    changed = {}
    for attribute, wire, encode in FIELDS:
        value = getattr(after, attribute)
        if attribute in _ALWAYS or value != getattr(before, attribute):
            changed[wire] = encode(value)
    return changed
