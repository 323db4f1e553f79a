"""Records to bytes and back, for stores. JSON, with a schema number in every job; its request, events and attempts go by it too.

A reader of the same schema ignores fields that it does not know, so a newer patch may add fields with defaults; a job of a newer
schema is refused, whatever else is in it.
"""

from typing import TypeVar

import msgspec

from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import SCHEMA, Job, Request

__all__ = [
    "decode_attempt",
    "decode_event",
    "decode_job",
    "decode_request",
    "encode_attempt",
    "encode_event",
    "encode_job",
    "encode_request",
]

T = TypeVar("T")


class _Schema(msgspec.Struct):
    """The one field that every schema has."""

    schema: int = SCHEMA


_encoder = msgspec.json.Encoder()
_job_decoder = msgspec.json.Decoder(Job)
_event_decoder = msgspec.json.Decoder(Event)
_request_decoder = msgspec.json.Decoder(Request)
_attempt_decoder = msgspec.json.Decoder(AttemptRecord)
_schema_decoder = msgspec.json.Decoder(_Schema)


def encode_job(job: Job) -> bytes:
    """The whole record as JSON text."""
    return _encoder.encode(job)


def decode_job(data: bytes) -> Job:
    """The record of ``encode_job``. Raises StoreRefused if it is of a newer schema or no record at all."""
    try:
        job = _job_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # A newer layout may not fit at all; that it is newer says more than where it does not fit.
        _refuse_newer(_decode(_schema_decoder, data, "job").schema)
        job = _decode(_job_decoder, data, "job")
    _refuse_newer(job.schema)
    return job


def encode_event(event: Event) -> bytes:
    """The event as JSON text."""
    return _encoder.encode(event)


def decode_event(data: bytes) -> Event:
    """The event of ``encode_event``. Raises StoreRefused if it is none."""
    return _decode(_event_decoder, data, "event")


def encode_request(request: Request) -> bytes:
    """The request as JSON text."""
    return _encoder.encode(request)


def decode_request(data: bytes) -> Request:
    """The request of ``encode_request``. Raises StoreRefused if it is none."""
    return _decode(_request_decoder, data, "request")


def encode_attempt(attempt: AttemptRecord) -> bytes:
    """The attempt's record as JSON text."""
    return _encoder.encode(attempt)


def decode_attempt(data: bytes) -> AttemptRecord:
    """The record of ``encode_attempt``. Raises StoreRefused if it is none."""
    return _decode(_attempt_decoder, data, "attempt")


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreRefused(f"a stored {what} cannot be read: {error}") from error


def _refuse_newer(schema: int) -> None:
    if schema > SCHEMA:
        raise StoreRefused(f"a stored job has schema {schema}, this callboard knows {SCHEMA}: upgrade callboard")
