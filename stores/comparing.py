"""What every driver checks of a write before it looks at anything of its own."""

from collections.abc import Sequence

from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Delete, Write

__all__ = ["check_batch", "fitting", "is_same"]


def is_same(stored: Job, expected: Job) -> bool:
    """Whether a write decided from ``expected`` may replace ``stored`` (promise 3)."""
    return (stored.serial, stored.seq, stored.fence) == (expected.serial, expected.seq, expected.fence)


def fitting(item: Write, stored: Job) -> Write | None:
    """``item``, or what it gives in its stead, if that may replace ``stored`` (promise 3)."""
    if item.expected is not None and is_same(stored, item.expected):
        return item
    if item.again is None or (other := item.again(stored)) is None:
        return None
    check_batch([other])
    return other if other.expected is not None and is_same(stored, other.expected) else None


def check_batch(batch: Sequence[Write | Delete]) -> None:
    """Raises ValueError when a write would turn a job into another one: that is a bug of the caller."""
    for item in batch:
        if isinstance(item, Write) and item.expected is not None and _identity(item.job) != _identity(item.expected):
            raise ValueError("a write may not change a job's id, serial, key or queue")


def _identity(job: Job) -> tuple[str, int, str | None, str]:
    return job.id, job.serial, job.key, job.queue
