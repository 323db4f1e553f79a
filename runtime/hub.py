"""Committed events to those who wait for them. Publishing never waits: who is slow is told that it lags and rereads from the store."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import trio

from callboard.runtime.core.errors import ShuttingDown
from callboard.runtime.core.events import Event, merged_progress

__all__ = ["Hub", "Subscription"]


class Subscription:
    """The mailbox of one subscriber: at most ``limit`` events; past it they are dropped and ``lagged`` says so."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: deque[Event] = deque()
        self._wake = trio.Event()
        self._lagged = False
        self.has_lost_news = False
        """Events may be missing that were never offered; whoever minds takes this back."""
        self.closed = trio.Event()
        """Set when the runtime drains."""

    def offer(self, event: Event) -> None:
        """Keep ``event`` for the subscriber; a progress event that nobody has seen gives way to a newer one."""
        merged = merged_progress(self._events[-1], event) if self._events else None
        if merged is not None:
            self._events[-1] = merged
        elif len(self._events) < self._limit:
            self._events.append(event)
        else:
            self.lag()
        self._wake.set()

    def lag(self) -> None:
        """Drop what waits: the subscriber has to reread."""
        self._events.clear()
        self._lagged = True
        self._wake.set()

    def close(self) -> None:
        """No more events: ``take`` raises ShuttingDown once the mailbox is empty."""
        self.closed.set()
        self._wake.set()

    @property
    def is_empty(self) -> bool:
        return not self._events and not self._lagged

    async def take(self) -> tuple[list[Event], bool]:
        """Wait for events; all that wait, in order, and whether some were dropped before them. Raises ShuttingDown."""
        while self.is_empty:
            if self.closed.is_set():
                raise ShuttingDown("the server is shutting down")
            self._wake = trio.Event()
            await self._wake.wait()
        events, lagged = list(self._events), self._lagged
        self._events.clear()
        self._lagged = False
        return events, lagged


class Hub:
    """Who wants which events."""

    def __init__(self) -> None:
        self._by_job: dict[str, set[Subscription]] = {}
        self._by_filter: dict[Subscription, Callable[[Event], bool]] = {}
        self._closed = False

    @contextmanager
    def subscribe(self, job_id: str, limit: int) -> Iterator[Subscription]:
        """The events of one job from now on."""
        subscription = self._new(limit)
        watchers = self._by_job.setdefault(job_id, set())
        watchers.add(subscription)
        try:
            yield subscription
        finally:
            watchers.discard(subscription)
            if not watchers and self._by_job.get(job_id) is watchers:
                del self._by_job[job_id]

    @contextmanager
    def subscribe_where(self, wanted: Callable[[Event], bool], limit: int) -> Iterator[Subscription]:
        """The events of all jobs that ``wanted`` says yes to, from now on."""
        subscription = self._new(limit)
        self._by_filter[subscription] = wanted
        try:
            yield subscription
        finally:
            del self._by_filter[subscription]

    def publish(self, events: Iterable[Event]) -> None:
        """Offer each event to those who want it."""
        for event in events:
            for subscription in self._by_job.get(event.job_id, ()):
                subscription.offer(event)
            for subscription, wanted in self._by_filter.items():
                if wanted(event):
                    subscription.offer(event)

    def lag_all(self) -> None:
        """Part of the news is gone: everybody rereads."""
        for subscription in self._all():
            subscription.has_lost_news = True
            subscription.lag()

    def close(self) -> None:
        """The runtime drains: all streams end."""
        self._closed = True
        for subscription in self._all():
            subscription.close()

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._by_job.values())) + len(self._by_filter)

    def _new(self, limit: int) -> Subscription:
        subscription = Subscription(limit)
        if self._closed:
            subscription.close()
        return subscription

    def _all(self) -> Iterator[Subscription]:
        for watchers in self._by_job.values():
            yield from watchers
        yield from self._by_filter
