"""What can be asked of a job. Imperatives; each carries the time at which it is decided (``now_ms``)."""

from msgspec import Raw, Struct

from callboard.runtime.core.events import LogEntry
from callboard.runtime.core.history import ExceptionInfo
from callboard.runtime.core.job import Failure, Progress

__all__ = ["Cancel", "Claim", "Command", "Fail", "Lapse", "Release", "Report", "Retry", "Stop", "Succeed"]


class Claim(Struct, frozen=True, kw_only=True):
    """A runtime takes the job: ``fence`` was never given before by this store. Only stores ask this."""

    now_ms: int
    worker: str
    fence: int


class Report(Struct, frozen=True, kw_only=True):
    """The handler says how far it is, or writes log lines, or both; in that order they become events."""

    now_ms: int
    logs: tuple[LogEntry, ...] = ()
    progress: Progress | None = None


class Succeed(Struct, frozen=True, kw_only=True):
    """The handler returned ``result`` (JSON text)."""

    now_ms: int
    result: Raw
    location: str | None = None


class Fail(Struct, frozen=True, kw_only=True):
    """The handler failed. If it may be retried, it becomes due ``delay_ms`` from now."""

    now_ms: int
    failure: Failure
    delay_ms: int = 0
    exceptions: tuple[ExceptionInfo, ...] = ()
    """For the history only."""


class Stop(Struct, frozen=True, kw_only=True):
    """The handler and all that it started have ended because a cancel reached them."""

    now_ms: int
    exceptions: tuple[ExceptionInfo, ...] = ()
    """What was raised on the way out; for the history only."""


class Release(Struct, frozen=True, kw_only=True):
    """The runtime shuts down and hands a stopped job back; counts neither as a retry nor as a lost lease."""

    now_ms: int
    exceptions: tuple[ExceptionInfo, ...] = ()
    """What was raised on the way out; for the history only."""


class Lapse(Struct, frozen=True, kw_only=True):
    """The holder's lease ended without a word. Only stores ask this."""

    now_ms: int


class Cancel(Struct, frozen=True, kw_only=True):
    """Someone wants the job to end."""

    now_ms: int


class Retry(Struct, frozen=True, kw_only=True):
    """Someone wants an ended job to run again, with its retries given back."""

    now_ms: int


Command = Claim | Report | Succeed | Fail | Stop | Release | Lapse | Cancel | Retry
