"""The actors: what runs jobs, and the client to ask for them.

``open_runtime`` is the way in; ``JobContext`` is what a handler sees; ``JobFailed`` and ``Retry`` are how it ends a job other than
by returning. The names are loaded on first use, so that stores, which need the pure core only, load no actor.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callboard.runtime.config import Config
    from callboard.runtime.context import JobContext, Params, ProcessJobContext, ThreadJobContext
    from callboard.runtime.core.errors import (
        CallboardError,
        ConfigError,
        FieldError,
        HandlerError,
        IllegalTransition,
        InvalidPayload,
        InvalidRequest,
        JobExists,
        JobNotFound,
        KeyReused,
        QueueFull,
        QueueNotFound,
        ShuttingDown,
        StoreRefused,
        StoreUnavailable,
    )
    from callboard.runtime.core.events import Event, LogEntry
    from callboard.runtime.core.history import AttemptOutcome, AttemptRecord, ExceptionInfo
    from callboard.runtime.core.job import Failure, Job, Progress, Request, Status
    from callboard.runtime.core.store import JobFilter, Page
    from callboard.runtime.failure import JobFailed, Retry
    from callboard.runtime.feed import Feed, Missed
    from callboard.runtime.handlers import Handler, Handlers
    from callboard.runtime.joblog import JobLogFilter
    from callboard.runtime.queues import Queue
    from callboard.runtime.runtime import Runtime, open_runtime
    from callboard.runtime.submission import Accepted, Submission
    from callboard.runtime.tally import Stats
    from callboard.runtime.telemetry import Telemetry
    from callboard.runtime.watch import Snapshot, Watch

__all__ = [
    "Accepted",
    "AttemptOutcome",
    "AttemptRecord",
    "CallboardError",
    "Config",
    "ConfigError",
    "Event",
    "ExceptionInfo",
    "Failure",
    "Feed",
    "FieldError",
    "Handler",
    "HandlerError",
    "Handlers",
    "IllegalTransition",
    "InvalidPayload",
    "InvalidRequest",
    "Job",
    "JobContext",
    "JobExists",
    "JobFailed",
    "JobFilter",
    "JobLogFilter",
    "JobNotFound",
    "KeyReused",
    "LogEntry",
    "Missed",
    "Page",
    "Params",
    "ProcessJobContext",
    "Progress",
    "Queue",
    "QueueFull",
    "QueueNotFound",
    "Request",
    "Retry",
    "Runtime",
    "ShuttingDown",
    "Snapshot",
    "Stats",
    "Status",
    "StoreRefused",
    "StoreUnavailable",
    "Submission",
    "Telemetry",
    "ThreadJobContext",
    "Watch",
    "open_runtime",
]

_HOMES = {
    "callboard.runtime.config": ("Config",),
    "callboard.runtime.context": ("JobContext", "Params", "ProcessJobContext", "ThreadJobContext"),
    "callboard.runtime.core.errors": (
        "CallboardError",
        "ConfigError",
        "FieldError",
        "HandlerError",
        "IllegalTransition",
        "InvalidPayload",
        "InvalidRequest",
        "JobExists",
        "JobNotFound",
        "KeyReused",
        "QueueFull",
        "QueueNotFound",
        "ShuttingDown",
        "StoreRefused",
        "StoreUnavailable",
    ),
    "callboard.runtime.core.events": ("Event", "LogEntry"),
    "callboard.runtime.core.history": ("AttemptOutcome", "AttemptRecord", "ExceptionInfo"),
    "callboard.runtime.core.job": ("Failure", "Job", "Progress", "Request", "Status"),
    "callboard.runtime.core.store": ("JobFilter", "Page"),
    "callboard.runtime.failure": ("JobFailed", "Retry"),
    "callboard.runtime.feed": ("Feed", "Missed"),
    "callboard.runtime.handlers": ("Handler", "Handlers"),
    "callboard.runtime.joblog": ("JobLogFilter",),
    "callboard.runtime.queues": ("Queue",),
    "callboard.runtime.runtime": ("Runtime", "open_runtime"),
    "callboard.runtime.submission": ("Accepted", "Submission"),
    "callboard.runtime.tally": ("Stats",),
    "callboard.runtime.telemetry": ("Telemetry",),
    "callboard.runtime.watch": ("Snapshot", "Watch"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(home), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __all__
