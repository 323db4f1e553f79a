"""What became of each attempt of a job, for those who may inspect it: more than its last error, and never part of its document.

The records only; which command ends an attempt and how is in ``transition``, how an exception becomes text is the runtime's.
"""

from enum import StrEnum
from typing import Literal

from msgspec import Struct

from callboard.runtime.core.job import Failure

__all__ = ["AttemptOutcome", "AttemptRecord", "ExceptionInfo", "Relation"]

Relation = Literal["raised", "cause", "context", "member"]


class AttemptOutcome(StrEnum):
    """How an attempt ended; the values are what clients see. Not the job's status: a failed attempt's job may be Scheduled."""

    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELED = "Canceled"
    RELEASED = "Released"
    """Handed back by a runtime that shut down."""
    LOST = "Lost"
    """Its worker fell silent or died."""


class ExceptionInfo(Struct, frozen=True, kw_only=True):
    """One exception of a chain. Bounded text; nothing of it is meant for those who may only read the job."""

    type: str
    """With its module, as in a traceback."""
    message: str
    traceback: str
    """Its own frames with their source lines, innermost last; empty where it has none."""
    relation: Relation = "raised"
    """``raised`` by the handler, or hangs on the exception ``of``: its cause, its context, or a member of that group."""
    of: int | None = None
    """Place in the chain, 0 for the first, of the exception that it hangs on."""
    notes: tuple[str, ...] = ()


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One attempt that has ended. ``attempt`` is its number: 1 for the first, never twice within a job."""

    attempt: int
    worker: str | None
    """Name of the runtime that held it."""
    started_ms: int
    ended_ms: int
    outcome: AttemptOutcome
    error: Failure | None = None
    exceptions: tuple[ExceptionInfo, ...] = ()
    """The handler's exception and all that hangs on it, each behind the one it hangs on."""
