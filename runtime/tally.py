"""Counts what the runtime itself did, for ``Runtime.stats``, on the way to whoever else is told."""

from collections import Counter

from msgspec import Struct

from callboard.runtime.core.job import Job
from callboard.runtime.telemetry import Telemetry

__all__ = ["Stats", "Tally"]


class Stats(Struct, frozen=True, kw_only=True):
    """What one runtime did since its start; two on one store count nothing twice."""

    running: int
    slots: int
    submitted: dict[str, int]
    """Jobs that this runtime accepted, by handler name."""
    finished: dict[tuple[str, str], int]
    """Jobs that this runtime ended, by (handler name, status)."""
    retried: dict[str, int]
    """Failed attempts of this runtime that will be tried again, by handler name."""
    lost_leases: int
    """Leases of others that ended without a word and were taken back here."""
    store_errors: int
    subscribers: int


class Tally(Telemetry):
    """Passes everything on to ``listener``."""

    def __init__(self, listener: Telemetry) -> None:
        self._listener = listener
        self.submits: Counter[str] = Counter()
        self.ends: Counter[tuple[str, str]] = Counter()
        self.retries: Counter[str] = Counter()
        self.lost_leases = 0
        # What is not counted goes straight through.
        self.claimed = listener.claimed  # type: ignore[method-assign]
        self.attempt_started = listener.attempt_started  # type: ignore[method-assign]
        self.attempt_ended = listener.attempt_ended  # type: ignore[method-assign]
        self.store_called = listener.store_called  # type: ignore[method-assign]

    def submitted(self, job: Job) -> None:
        self.submits[job.name] += 1
        self._listener.submitted(job)

    def retried(self, job: Job) -> None:
        self.retries[job.name] += 1
        self._listener.retried(job)

    def ended(self, job: Job, processing_seconds: float | None) -> None:
        self.ends[job.name, job.status] += 1
        self._listener.ended(job, processing_seconds)

    def lease_lost(self, job: Job) -> None:
        self.lost_leases += 1
        self._listener.lease_lost(job)
