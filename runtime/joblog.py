"""Which job a log record is about: ``job_id``, ``job_name``, ``attempt`` and ``worker`` as attributes of the record.

The runtime's own records about a job carry them (``extra=job_fields(...)``). What a handler logs gets them from ``JobLogFilter``, which
looks at the attempt that the current task or thread belongs to.
"""

import logging
from contextvars import ContextVar
from typing import Final

from callboard.runtime.core.job import Job

__all__ = ["JobLogFilter", "job_fields", "set_current_job"]

Fields = dict[str, str | int | None]

_current: Final[ContextVar[Fields | None]] = ContextVar("callboard's current job", default=None)
_NONE: Final[Fields] = {"job_id": None, "job_name": None, "attempt": None, "worker": None}


class JobLogFilter(logging.Filter):
    """Adds the job's attributes to every record; each is None outside of an attempt, so a format may always name them.

    Put it on a log handler, not on a logger: ``handler.addFilter(JobLogFilter())``. It drops nothing. Tasks and threads that a
    handler starts belong to its attempt.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_current.get() or _NONE).items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def job_fields(job: Job) -> Fields:
    """For ``extra=`` of a log call about ``job``."""
    return {"job_id": job.id, "job_name": job.name, "attempt": job.attempt, "worker": job.worker}


def set_current_job(fields: Fields) -> None:
    """What the current task does from now on, and what it starts, is about this job."""
    _current.set(fields)
