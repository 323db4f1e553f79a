"""How fast queues drain, for honest ``Retry-After`` answers, and the counters behind the metrics."""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable

from msgspec import Struct

from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Status

__all__ = ["Rates", "Stats"]

WINDOW = 64
"""Ends of jobs that the rate of a queue is taken from."""
MAX_RETRY_AFTER = 60
MAX_QUEUES = 1000
"""Queues that are remembered; the rest get the default answer."""


class Stats(Struct, frozen=True, kw_only=True):
    """Numbers of one runtime since its start."""

    running: int
    slots: int
    submitted: dict[str, int]
    """By handler name."""
    finished: dict[tuple[str, str], int]
    """Jobs that ended, by (handler name, status), as seen here."""
    retried: dict[str, int]
    """Failed attempts that will be tried again, by handler name."""
    lost_leases: int
    store_errors: int
    subscribers: int


class Rates:
    """Fed with every event that was committed here or elsewhere."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ends: dict[str, deque[float]] = {}
        self.submitted: Counter[str] = Counter()
        self.finished: Counter[tuple[str, str]] = Counter()
        self.retried: Counter[str] = Counter()

    def see(self, events: Iterable[Event]) -> None:
        """Count."""
        for event in events:
            if event.type != "status":
                continue
            if event.since == 0:
                self.submitted[event.name] += 1
            elif event.is_terminal:
                self.finished[event.name, event.status] += 1
                self._note_end(event.queue)
            elif event.status == Status.SCHEDULED:
                self.retried[event.name] += 1

    def retry_after_seconds(self, queue: str) -> int:
        """Whole seconds, 1..60, until the queue will probably have ended another job."""
        ends = self._ends.get(queue)
        if not ends or len(ends) < 2:
            return 1
        seconds = (self._now() - ends[0]) / (len(ends) - 1)
        return min(MAX_RETRY_AFTER, max(1, math.ceil(seconds)))

    def _note_end(self, queue: str) -> None:
        if queue not in self._ends and len(self._ends) >= MAX_QUEUES:
            return
        self._ends.setdefault(queue, deque(maxlen=WINDOW)).append(self._now())
