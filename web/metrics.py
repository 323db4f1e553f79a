"""Numbers for Prometheus. One registry per board, so that two apps in a process, or an app's own metrics, never meet in one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from callboard.runtime import Queue, Runtime, Stats
from callboard.runtime.core.job import Status

__all__ = ["Metrics"]


class Metrics:
    """What this process did since its start, and what the store holds."""

    content_type: Final = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._snapshot = _Snapshot()
        self._registry.register(self._snapshot)
        self._streams = Gauge(
            "callboard_streams",
            "Open streams of this process: websockets and Server-Sent Events.",
            registry=self._registry,
        )
        self._refused = Counter(
            "callboard_refused", "Submissions refused because the queue was full.", ["name"], registry=self._registry
        )

    def refused(self, name: str) -> None:
        """A submission to that handler was refused because its queue is full."""
        self._refused.labels(name).inc()

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """A stream is open."""
        with self._streams.track_inprogress():
            yield

    async def text(self, runtime: Runtime) -> bytes:
        """The exposition text as of now. Raises StoreUnavailable."""
        queues = await runtime.queues()
        self._snapshot.metrics = [
            *_of_store(queues),
            *_of_stats(runtime.stats(), runtime.draining),
        ]
        return generate_latest(self._registry)


class _Snapshot(Collector):
    """Hands out what was collected a moment ago; reading the store is async, and the registry is not."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def _of_store(queues: Iterable[Queue]) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("callboard_jobs", "Jobs in the store.", labels=["queue", "status"])
    paused = GaugeMetricFamily("callboard_queue_paused", "1 while the queue is paused.", labels=["queue"])
    for queue in queues:
        for status in Status:
            jobs.add_metric([queue.name, status.value], queue.counts.get(status, 0))
        paused.add_metric([queue.name], int(queue.paused))
    yield jobs
    yield paused


def _of_stats(stats: Stats, draining: bool) -> Iterator[Metric]:
    yield GaugeMetricFamily("callboard_running_attempts", "Attempts running in this process.", value=stats.running)
    yield GaugeMetricFamily("callboard_slots", "Attempts that may run at once in this process.", value=stats.slots)
    yield GaugeMetricFamily("callboard_draining", "1 while this process shuts down.", value=int(draining))
    yield CounterMetricFamily("callboard_lost_leases", "Leases that this process lost.", value=stats.lost_leases)
    yield CounterMetricFamily(
        "callboard_store_errors", "Calls that the store could not answer.", value=stats.store_errors
    )
    yield _by_name("callboard_submitted", "Jobs submitted, as seen by this process.", stats.submitted)
    yield _by_name("callboard_retried", "Failed attempts that are tried again, as seen by this process.", stats.retried)
    finished = CounterMetricFamily(
        "callboard_finished", "Jobs that ended, as seen by this process.", labels=["name", "status"]
    )
    for (name, status), count in stats.finished.items():
        finished.add_metric([name, status], count)
    yield finished


def _by_name(name: str, text: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["name"])
    for handler, count in counts.items():
        family.add_metric([handler], count)
    return family
