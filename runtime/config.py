"""What can be set, with its defaults and its limits. A wrong value is refused at once, with a message that says what to do."""

import os

from msgspec import Struct

from callboard.runtime.core.errors import ConfigError

__all__ = ["MAX_BULK_JOBS", "MAX_SECONDS", "Config"]

MAX_SECONDS = 1e9
"""Thirty years: longer is a unit mixed up, or infinity, which has no milliseconds."""

MAX_BULK_JOBS = 500
"""As many as the store actor puts into one commit: a bulk submit is never torn."""


class Config(Struct, frozen=True, kw_only=True):
    """Settings of one runtime. Raises ConfigError for a value that cannot work.

    The units are in the names. Handlers may override ``max_retries`` and ``timeout_seconds`` for themselves.
    """

    max_concurrent_jobs: int = 100
    """Attempts that run at the same time in this runtime; 0 for one that only submits and watches."""
    queues: tuple[str, ...] | None = None
    """Run jobs of these queues only; None for those of all handlers. It submits to any."""
    max_processes: int | None = None
    """Worker processes of this runtime, and so attempts of handlers with process=True at the same time; None for as many as it has CPUs."""
    max_queue_size: int = 10_000
    """Waiting jobs a queue may hold; more are refused with 429."""
    max_retries: int = 3
    """Retries of a failed job; the first run is not a retry."""
    retry_base_seconds: float = 2
    """Retry n waits this times ``2**(n-1)``, with 20 % jitter."""
    retry_max_seconds: float = 300
    """Longest wait before a retry."""
    timeout_seconds: float | None = 1800
    """Bound of one attempt; None for none."""
    lease_seconds: float = 30
    """A runtime that is silent for so long has lost its jobs. Leases are extended every third of it."""
    max_lost_leases: int = 3
    """A job that lost more leases than this ends as Failed with WORKER_LOST; 0 for work that must rather fail than repeat."""
    drain_seconds: float = 15
    """From the wish to stop until everything has stopped; its last third, at most 5 s, is for cancelled handlers' cleanup."""
    retention_seconds: float | None = 604_800
    """An ended job's record is kept so long; None for ever."""
    max_body_bytes: int = 1_048_576
    """Largest request body; of a bulk submit, largest line."""
    max_bulk_jobs: int = 500
    """Jobs that one bulk request may bring, and jobs that ``submit_many`` stores in one commit; at most 500."""
    max_bulk_body_bytes: int = 8_388_608
    """Largest body of a bulk request."""
    body_seconds: float = 60
    """A request's body must have come so long after its head; else 408, and the connection is closed."""
    max_result_bytes: int = 1_048_576
    """Largest result, as JSON text."""
    max_events_per_job: int = 1000
    """Events kept of each job, the newest; who resumes further back gets a snapshot."""
    max_attempts_per_job: int = 100
    """Attempts kept in the history of each job, the newest."""
    max_wait_seconds: float = 50
    """Cap of ``Prefer: wait`` and long polls."""
    expose_error_messages: bool = False
    """Show clients the text of any exception, not only of JobFailed. For development."""
    progress_interval_seconds: float = 0.1
    """Progress is stored at most so often per job; between, the newest wins."""
    max_subscriber_events: int = 256
    """Events that wait for one slow subscriber; past it, it rereads from the store."""
    store_timeout_seconds: float = 5
    """How long a caller waits for the store before it is told that the store cannot be reached."""
    poll_seconds: float = 1
    """The net behind wake-up messages: how often to look although nothing was said."""
    unstored_headers: tuple[str, ...] = ()
    """Request headers not to store, besides Authorization, Cookie, Proxy-Authorization, X-Api-Key and X-Auth-Token."""
    redact_query: tuple[str, ...] = ()
    """Query parameters not to store, in any case. Handlers do not see them, and no digest is made of them."""

    def __post_init__(self) -> None:
        for name, low in _INTEGERS.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                none = ", or None" if name in _MAY_BE_NONE else ""
                raise ConfigError(f"{name} is {value!r}: give a whole number, {low} or more{none}")
        if self.max_bulk_jobs > MAX_BULK_JOBS:
            raise ConfigError(f"max_bulk_jobs is {self.max_bulk_jobs}: give at most {MAX_BULK_JOBS}")
        for name, (above, may_be_none) in _SECONDS.items():
            value = getattr(self, name)
            if value is None and may_be_none:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not _fits(value, above):
                bound = f"{'0 or more' if above is None else f'more than {above}'} and at most {MAX_SECONDS:g}"
                none = ", or None" if may_be_none else ""
                raise ConfigError(f"{name} is {value!r}: give seconds, {bound}{none}")
        for name in ("queues", "unstored_headers", "redact_query"):
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"{name} is {value!r}: give a tuple of names")

    @property
    def processes(self) -> int:
        """``max_processes`` as a number."""
        if self.max_processes is not None:
            return self.max_processes
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def cleanup_seconds(self) -> float:
        """The end of ``drain_seconds`` in which cancelled handlers clean up."""
        return min(5.0, self.drain_seconds / 3)


def _fits(value: float, above: float | None) -> bool:
    return (value >= 0 if above is None else value > above) and value <= MAX_SECONDS


_INTEGERS = {
    "max_concurrent_jobs": 0,
    "max_processes": 1,
    "max_queue_size": 1,
    "max_retries": 0,
    "max_lost_leases": 0,
    "max_body_bytes": 1,
    "max_bulk_jobs": 1,
    "max_bulk_body_bytes": 1,
    "max_result_bytes": 2,
    "max_events_per_job": 1,
    "max_attempts_per_job": 1,
    "max_subscriber_events": 1,
}
"""Field -> least value."""

_MAY_BE_NONE = frozenset({"max_processes", "queues"})
"""Those of them."""

_SECONDS: dict[str, tuple[float | None, bool]] = {
    "retry_base_seconds": (None, False),
    "retry_max_seconds": (None, False),
    "timeout_seconds": (0, True),
    "lease_seconds": (0, False),
    "drain_seconds": (None, False),
    "retention_seconds": (None, True),
    "body_seconds": (0, False),
    "max_wait_seconds": (None, False),
    "progress_interval_seconds": (None, False),
    "store_timeout_seconds": (0, False),
    "poll_seconds": (0, False),
}
"""Field -> (must be greater than this, None for 0 allowed; may be None)."""
