"""Records to bytes and back, for stores. JSON, with a schema number in every record.

A reader of the same schema ignores fields that it does not know, so a newer patch may add fields with defaults; a record of a
newer schema is refused.
"""

import msgspec

from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import SCHEMA, Job, Request

__all__ = ["decode_event", "decode_job", "decode_request", "encode_event", "encode_job", "encode_request"]

_encoder = msgspec.json.Encoder()
_job_decoder = msgspec.json.Decoder(Job)
_event_decoder = msgspec.json.Decoder(Event)
_request_decoder = msgspec.json.Decoder(Request)


def encode_job(job: Job) -> bytes:
    """The whole record as JSON text."""
    return _encoder.encode(job)


def decode_job(data: bytes) -> Job:
    """The record of ``encode_job``. Raises StoreRefused if it is of a newer schema or no record at all."""
    try:
        job = _job_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise StoreRefused(f"a stored job cannot be read: {error}") from error
    if job.schema > SCHEMA:
        raise StoreRefused(f"a stored job has schema {job.schema}, this callboard knows {SCHEMA}: upgrade callboard")
    return job


def encode_event(event: Event) -> bytes:
    """The event as JSON text."""
    return _encoder.encode(event)


def decode_event(data: bytes) -> Event:
    """The event of ``encode_event``."""
    return _event_decoder.decode(data)


def encode_request(request: Request) -> bytes:
    """The request as JSON text."""
    return _encoder.encode(request)


def decode_request(data: bytes) -> Request:
    """The request of ``encode_request``."""
    return _request_decoder.decode(data)
