"""Records to wire bytes: the job document with its links, and the frames of a stream. Pure: no request, no store.

Folding a job's events into its last document gives the document that ``GET`` answers at that ``seq``: both are made from the
same fields, and ``links`` is in every event that changes it (the first, and the one that says Completed).
"""

import hashlib
import re
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct

from callboard.runtime.core.document import document, format_time
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Job, Status

__all__ = [
    "PATH_SIGNS",
    "Place",
    "entity_tag",
    "event_frame",
    "expires",
    "job_bytes",
    "job_document",
    "job_fields",
    "job_location",
    "reference",
    "snapshot_frame",
]

PATH_SIGNS: Final = "/:@!$&'()*+,;=~"
"""What stands for itself in a path. Source: RFC 3986, section 3.3."""

_encoder = msgspec.json.Encoder()
_LONE_PERCENT: Final = re.compile("%(?![0-9A-Fa-f]{2})")


class Place(Struct, frozen=True):
    """Where a client sees callboard: a proxy's root path, and the prefix of the job routes."""

    root_path: str
    prefix: str

    def job(self, job_id: str) -> str:
        """Path-absolute reference of a job."""
        return f"{self.root_path}{self.prefix}/{job_id}"

    def resolve(self, location: str) -> str:
        """An app's path seen through the proxy's root path, a full URL without it; as a URI reference."""
        is_path = location.startswith("/") and not location.startswith("//")
        return (self.root_path if is_path else "") + reference(location)


def reference(text: str) -> str:
    """``text`` as a URI reference: what may not stand in one is percent-encoded, what is encoded already is left.

    Source: RFC 3986, section 2.
    """
    return quote(_LONE_PERCENT.sub("%25", text), safe="%/:?#[]@!$&'()*+,;=~", errors="replace")


def job_fields(job: Job, place: Place) -> dict[str, Raw]:
    """The job document, each field as JSON text, in wire order."""
    fields = document(job)
    del fields["location"]
    fields["links"] = _links(job.id, job.status, job.location, place)
    return fields


def job_bytes(job: Job, place: Place) -> bytes:
    """The job document as JSON text."""
    return _encoder.encode(job_fields(job, place))


def job_document(job: Job, place: Place) -> dict[str, Any]:
    """The job document as plain values."""
    decoded: dict[str, Any] = msgspec.json.decode(job_bytes(job, place))
    return decoded


def snapshot_frame(job: Job, place: Place, *, gap: bool) -> bytes:
    """A frame with the whole document; ``gap`` says that what came before is lost to this client."""
    frame = {
        "seq": job.seq,
        "since": 0,
        "type": "snapshot",
        "at": format_time(job.updated_ms),
        "gap": gap,
        "job": job_fields(job, place),
    }
    return _encoder.encode(frame)


def event_frame(event: Event, place: Place) -> bytes:
    """A frame with what changed after ``event.since`` up to ``event.seq``."""
    frame: dict[str, Any] = {
        "seq": event.seq,
        "since": event.since,
        "type": event.type,
        "at": format_time(event.at_ms),
    }
    if event.log is not None:
        frame["level"] = event.log.level
        frame["message"] = event.log.message
    frame["job"] = _changed_fields(event, place)
    return _encoder.encode(frame)


def entity_tag(job: Job) -> str:
    """The strong validator of a job's document, without its quotes.

    The serial is never given twice by a store, so the tag fits no later job of the same id; it is digested because it would
    tell how many jobs everybody else submits.
    """
    digest = hashlib.blake2b(f"{job.id}/{job.serial}/{job.created_ms}".encode(), digest_size=8)
    return f"{digest.hexdigest()}-{job.seq}"


def expires(job: Job, retention_seconds: float | None) -> str | None:
    """When an ended job's record may be gone, as an HTTP date; None while it lives or without a retention."""
    if not job.status.is_terminal or job.completed_ms is None or retention_seconds is None:
        return None
    return formatdate(job.completed_ms / 1000 + retention_seconds, usegmt=True)


def job_location(job: Job, place: Place) -> str | None:
    """Where the created resource is, as the client sees it; an empty text is none."""
    return place.resolve(job.location) if job.location else None


_WITH_LINKS: Final = frozenset({Status.COMPLETED})


def _changed_fields(event: Event, place: Place) -> dict[str, Raw]:
    fields = dict(event.changes)
    location = msgspec.json.decode(fields.pop("location", b"null"), type=str | None)
    if event.since == 0 or event.status in _WITH_LINKS:
        fields["links"] = _links(event.job_id, Status(event.status), location, place)
    return fields


def _links(job_id: str, status: Status, location: str | None, place: Place) -> Raw:
    own = place.job(job_id)
    links = {"self": own, "cancel": f"{own}/cancel", "events": f"{own}/events", "stream": f"{own}/stream"}
    if status is Status.COMPLETED:
        links["result"] = f"{own}/result"
        if location:
            links["location"] = place.resolve(location)
    return Raw(_encoder.encode(links))
