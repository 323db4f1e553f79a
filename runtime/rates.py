"""How fast queues drain, for honest ``Retry-After`` answers."""

import math
from collections import deque
from collections.abc import Callable, Iterable

from callboard.runtime.core.events import Event

__all__ = ["Rates"]

WINDOW = 64
"""Ends of jobs that the pace of a queue is taken from."""
MAX_RETRY_AFTER = 60
MAX_QUEUES = 1000
"""Queues that are remembered; the rest get the default answer."""


class _Pace:
    """How fast one queue drains while it has something to do: idle time says nothing about it."""

    def __init__(self) -> None:
        self._live = 0
        self._marks: deque[float] = deque(maxlen=WINDOW + 1)
        self._before = 0.0

    def note_start(self, now: float) -> None:
        """One more job is there."""
        self._live += 1
        if not self._marks:
            self._marks.append(now)

    def note_end(self, now: float) -> None:
        """A job has ended. It may be one whose start was not seen here."""
        self._live = max(0, self._live - 1)
        self._marks.append(now)
        if self._live == 0 and len(self._marks) > 1:
            self._before = self.seconds(now)
            self._marks.clear()

    def seconds(self, now: float) -> float:
        """Seconds from one end to the next; while none is known yet, how long there was none."""
        marks = self._marks
        if len(marks) > 1:
            return (now - marks[0]) / (len(marks) - 1)
        return max(self._before, now - marks[0] if marks else 0.0)


class Rates:
    """Fed with every event that was committed here or elsewhere."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._paces: dict[str, _Pace] = {}

    def see(self, events: Iterable[Event]) -> None:
        """Note the starts and ends of jobs."""
        for event in events:
            if event.type != "status" or (pace := self._pace(event.queue)) is None:
                continue
            if event.since == 0:
                pace.note_start(self._now())
            elif event.is_terminal:
                pace.note_end(self._now())

    def retry_after_seconds(self, queue: str) -> int:
        """Whole seconds, 1..60, until the queue will probably have ended another job."""
        pace = self._paces.get(queue)
        seconds = 0 if pace is None else pace.seconds(self._now())
        return min(MAX_RETRY_AFTER, max(1, math.ceil(seconds)))

    def _pace(self, queue: str) -> _Pace | None:
        if queue not in self._paces and len(self._paces) >= MAX_QUEUES:
            return None
        return self._paces.setdefault(queue, _Pace())
