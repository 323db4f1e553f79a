"""One attempt as metrics, traces and logs see it, from its start by the supervisor to its settled outcome. Decides nothing.

``execute`` runs in the attempt's task, everything else in the supervisor's.
"""

from collections.abc import Awaitable, Callable

import trio

from callboard.runtime.attempt import Failed, Outcome
from callboard.runtime.core.history import AttemptOutcome
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Claimed
from callboard.runtime.core.transition import OUTCOMES
from callboard.runtime.joblog import job_fields, set_current_job
from callboard.runtime.telemetry import Telemetry
from callboard.runtime.tracing import Tracing

__all__ = ["Witness"]


class Witness:
    """Of the attempt that ``claimed`` begins."""

    def __init__(self, claimed: Claimed, telemetry: Telemetry, tracing: Tracing) -> None:
        self._job = claimed.job
        self._telemetry = telemetry
        self._span = tracing.process(claimed.job, claimed.request)
        self._handler_seconds: float | None = None
        self.log_fields = job_fields(claimed.job)
        """For ``extra=`` of log calls about this attempt."""

    async def execute(self, run: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Run the attempt's code."""
        set_current_job(self.log_fields)
        self._telemetry.attempt_started(self._job)
        began = trio.current_time()
        if self._span is None:
            outcome = await run()
        else:
            with self._span.executing() as span:
                outcome = await run()
                if isinstance(outcome, Failed):
                    span.failed(outcome.failure.type, outcome.error)
        self._handler_seconds = trio.current_time() - began
        return outcome

    def settled(self, outcome: Outcome, job: Job | None) -> None:
        """The attempt is over; ``job`` is the record that it has left, None where its outcome was dropped."""
        if self._handler_seconds is not None:
            ended = AttemptOutcome.LOST if job is None else OUTCOMES[job.status]
            self._telemetry.attempt_ended(job or self._job, ended, self._handler_seconds)
        if self._span is not None:
            error_type = outcome.failure.type if isinstance(outcome, Failed) else None
            if job is None:
                error_type = "LeaseLost"
            self._span.end(None if job is None else job.status.value, error_type)
