"""What can be said to a job's supervisor. One message at a time, in order of arrival; a reply is set once."""

from msgspec import Struct

from callboard.runtime.attempt import Outcome
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Claimed
from callboard.runtime.reply import Reply

__all__ = ["CancelAsked", "Ended", "Message", "PurgeAsked", "Reported", "RetryAsked", "Seen", "Started"]


class Started(Struct, frozen=True):
    """The job was claimed for this runtime; the lease holds until ``lease_ends`` (trio's clock, seconds)."""

    claimed: Claimed
    lease_ends: float


class Reported(Struct, frozen=True):
    """The handler said something; what, is in the reports."""


class Ended(Struct, frozen=True):
    """The handler and all that it started have ended."""

    outcome: Outcome


class CancelAsked(Struct, frozen=True):
    """Someone wants the job to end."""

    reply: Reply[Job]


class RetryAsked(Struct, frozen=True):
    """Someone wants the ended job to run again."""

    reply: Reply[Job]


class PurgeAsked(Struct, frozen=True):
    """Someone wants the ended job's record gone."""

    reply: Reply[Job]


class Seen(Struct, frozen=True):
    """Another connection changed the job: look."""


Message = Started | Reported | Ended | CancelAsked | RetryAsked | PurgeAsked | Seen
