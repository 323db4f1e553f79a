"""What a space keeps of a job, as bytes, and back: the record with the mark of a claim that no write has followed, and its events.

A claim writes no record. It leaves the mark ``<now_ms> <fence> <worker>``, and what the rules make of record and mark is decided here, by
each who reads: the rules stay in ``decide``.
"""

import logging
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.core.codec import decode_event, decode_job
from callboard.runtime.core.commands import Claim
from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Job
from callboard.runtime.core.transition import Change, decide

__all__ = ["Stored", "claimed", "read_event", "read_events", "read_job"]

logger: Final = logging.getLogger("callboard.store")


class Stored(Struct, frozen=True):
    """One job as a script gives it; the mark is empty where there is none."""

    record: bytes
    serial: bytes
    mark: bytes

    @staticmethod
    def of(fields: Sequence[bytes]) -> "Stored | None":
        """Of ``{record, serial, mark}``, or of nothing."""
        return Stored(*fields) if fields else None


def read_job(stored: Stored) -> Job:
    """The job. Raises StoreRefused if it cannot be read."""
    return claimed(stored).job if stored.mark else _base(stored)


def claimed(stored: Stored) -> Change:
    """What the claim made of the record. Raises StoreRefused if it cannot be read."""
    return _claim(_base(stored), stored.mark)


def read_event(payload: bytes) -> Event:
    """One stored event, ``<seq> <JSON>`` or ``<seq> @<mark>\\n<serial> <record>``. Raises StoreRefused if it cannot be read."""
    _, _, text = payload.partition(b" ")
    if not text.startswith(b"@"):
        return decode_event(text)
    mark, _, rest = text[1:].partition(b"\n")
    serial, _, record = rest.partition(b" ")
    return claimed(Stored(record, serial, mark)).events[0]


def read_events(payloads: Sequence[bytes]) -> list[Event]:
    """Those that can be read; a line in the log for each that cannot."""
    events = []
    for payload in payloads:
        try:
            events.append(read_event(payload))
        except StoreRefused as error:
            logger.error("an event is passed over: %s", error)
    return events


def _base(stored: Stored) -> Job:
    return replace(decode_job(stored.record), serial=int(stored.serial))


def _claim(job: Job, mark: bytes) -> Change:
    now_ms, fence, worker = mark.split(b" ", 2)
    return decide(job, Claim(now_ms=int(now_ms), fence=int(fence), worker=worker.decode()))
