"""How fast queues drain, for honest ``Retry-After`` answers."""

import math
from collections import deque
from collections.abc import Callable, Iterable

from callboard.runtime.core.events import Event

__all__ = ["Rates"]

WINDOW = 64
"""Ends of jobs that the rate of a queue is taken from."""
MAX_RETRY_AFTER = 60
MAX_QUEUES = 1000
"""Queues that are remembered; the rest get the default answer."""


class Rates:
    """Fed with every event that was committed here or elsewhere."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ends: dict[str, deque[float]] = {}

    def see(self, events: Iterable[Event]) -> None:
        """Note the ends of jobs."""
        for event in events:
            if event.type == "status" and event.is_terminal:
                self._note_end(event.queue)

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
