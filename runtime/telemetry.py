"""The seam for numbers: what a runtime tells about its work, to whoever counts. Owns the words, counts nothing itself.

Every number is of what this runtime did itself: two runtimes on one store never tell the same thing twice, so sums over processes are
right. What the store holds is no event and is asked of it (``Runtime.counts``). Traces are ``tracing``'s business.
"""

from callboard.runtime.core.history import AttemptOutcome
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import Claimed, Committed

__all__ = ["Telemetry", "tell_claimed", "tell_committed"]


class Telemetry:
    """Does nothing; override what is wanted. Every method is called in the event loop's thread and must be quick: while it runs nothing
    else does. What it raises is logged, the first time, and changes nothing.

    Seconds are of trio's clock, except those between two times in a job's record, which are of the store's.
    """

    def submitted(self, job: Job) -> None:
        """A new job is in the store. Not called for a repeat of an earlier submission."""

    def claimed(self, job: Job, queue_seconds: float) -> None:
        """An attempt begins; the job waited so long since it was ready (accepted, due, retried by hand or handed back)."""

    def attempt_started(self, job: Job) -> None:
        """The handler begins to run."""

    def attempt_ended(self, job: Job, outcome: AttemptOutcome, handler_seconds: float) -> None:
        """The outcome of an attempt whose handler ran is settled; ``handler_seconds`` is how long its code ran, with its cleanup.

        ``LOST``: its lease was lost, or the store could not be reached, and what it did was dropped.
        Called once for each ``attempt_started``. ``job`` is the record as far as it is known here.
        """

    def retried(self, job: Job) -> None:
        """A failed attempt will be followed by another."""

    def ended(self, job: Job, processing_seconds: float | None) -> None:
        """The job has ended, as Completed, Failed or Canceled.

        ``processing_seconds`` is the time from the claim of its first attempt, waits between attempts included; None for
        a job that never ran. After a retry by hand both begin again.
        """

    def lease_lost(self, job: Job) -> None:
        """Another runtime's lease had ended without a word, and its job was taken back here. ``job`` is the record after that."""

    def store_called(self, verb: str, seconds: float, size: int, error: Exception | None) -> None:
        """The driver was asked ``verb`` of the store protocol. ``size`` is the number of items that were given (``commit``, ``extend``,
        ``get``) or came back (``claim``, ``lapse``), 1 for any other verb; ``error`` is why it failed.

        ``wait_news`` waits by its nature: only its failures are told, with 0 seconds.
        """


def tell_committed(telemetry: Telemetry, committed: Committed) -> None:
    """Tell what one committed write means for its job."""
    job = committed.job
    for event in committed.events:
        if event.type != "status":
            continue
        if event.since == 0:
            telemetry.submitted(job)
        elif event.is_terminal:
            telemetry.ended(job, _seconds(job.begun_ms, job.completed_ms))
        elif event.status == Status.SCHEDULED:
            telemetry.retried(job)


def tell_claimed(telemetry: Telemetry, claimed: Claimed) -> None:
    """Tell how long a claimed job had waited."""
    job = claimed.job
    # A record that an older version wrote does not say since when it is ready.
    ready_ms = job.created_ms if job.ready_ms is None else job.ready_ms
    telemetry.claimed(job, _seconds(ready_ms, job.started_ms) or 0.0)


def _seconds(since_ms: int | None, until_ms: int | None) -> float | None:
    if since_ms is None or until_ms is None:
        return None
    # Clocks of several hosts take part: what seems to end before it began took no time.
    return max(0, until_ms - since_ms) / 1000
