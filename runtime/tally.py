"""Counts what the runtime itself did, for ``Runtime.stats``, on the way to whoever else is told, and lets none of them harm it."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from msgspec import Struct

from callboard.runtime.core.job import Job
from callboard.runtime.telemetry import Telemetry
from callboard.runtime.wary import Guard

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
    """Passes everything on to ``listener``, which is the app's own code: what it raises is logged."""

    def __init__(self, listener: Telemetry) -> None:
        self._guard = Guard()
        self.submits: Counter[str] = Counter()
        self.ends: Counter[tuple[str, str]] = Counter()
        self.retries: Counter[str] = Counter()
        self.lost_leases = 0
        self._submitted = self._guarded(listener, "submitted")
        self._retried = self._guarded(listener, "retried")
        self._ended = self._guarded(listener, "ended")
        self._lease_lost = self._guarded(listener, "lease_lost")
        # What is not counted goes straight through.
        self.claimed = self._guarded(listener, "claimed")  # type: ignore[method-assign]
        self.attempt_started = self._guarded(listener, "attempt_started")  # type: ignore[method-assign]
        self.attempt_ended = self._guarded(listener, "attempt_ended")  # type: ignore[method-assign]
        self.store_called = self._guarded(listener, "store_called")  # type: ignore[method-assign]

    def submitted(self, job: Job) -> None:
        self.submits[job.name] += 1
        self._submitted(job)

    def retried(self, job: Job) -> None:
        self.retries[job.name] += 1
        self._retried(job)

    def ended(self, job: Job, processing_seconds: float | None) -> None:
        self.ends[job.name, job.status] += 1
        self._ended(job, processing_seconds)

    def lease_lost(self, job: Job) -> None:
        self.lost_leases += 1
        self._lease_lost(job)

    def _guarded(self, listener: Telemetry, verb: str) -> Callable[..., None]:
        tell: Callable[..., None] = getattr(listener, verb)
        if getattr(tell, "__func__", None) is getattr(Telemetry, verb):
            return tell  # it does nothing
        what, call = f"telemetry's {verb}", self._guard.call
        return lambda *said: call(what, partial(tell, *said), None)
