"""Numbers for Prometheus. One registry per board, so that two apps in a process, or an app's own metrics, never meet in one.

Counters and histograms are of what this process did itself, so that sums over processes are right; only ``callboard_jobs`` and
``callboard_queue_paused`` are of what the store holds, and are the same in all of them, and ``callboard_unserved_jobs`` is of what
the store holds as one process sees it. Labels have few values: handlers, queues,
statuses and verbs, never a job.
docs/telemetry.md says what each one means.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

import callboard
from callboard.runtime import Job, Queue, Runtime, Stats, StoreUnavailable, Telemetry
from callboard.runtime.core.history import AttemptOutcome
from callboard.runtime.core.job import Status

__all__ = ["Metrics"]

JOB_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
"""Seconds of waiting and working: from a wake-up within the process to a job of a day."""
STORE_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""Seconds of one call: from a dictionary's answer to what callers wait for at most."""
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Writes of one commit; 500 is the store actor's bound."""


class Metrics(Telemetry):
    """What this process did since its start, and what the store holds."""

    content_type: Final = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._snapshot = _Snapshot()
        registry.register(self._snapshot)
        text = "Open streams of this process: websockets and Server-Sent Events."
        self._streams = Gauge("callboard_streams", text, registry=registry)
        self._refused = Counter(
            "callboard_refused", "Submissions refused because the queue was full.", ["name"], registry=registry
        )
        self._queue = _Family(
            "callboard_queue_seconds",
            "From when a job was ready (accepted, due, retried, handed back) to its claim by this process.",
            ("name", "queue"),
            JOB_BUCKETS,
            registry,
        )
        self._handler = _Family(
            "callboard_handler_seconds",
            "How long the code of an attempt ran, with its cleanup.",
            ("name", "outcome"),
            JOB_BUCKETS,
            registry,
        )
        self._processing = _Family(
            "callboard_processing_seconds",
            "From the claim of a job's first attempt to its end, waits between attempts included.",
            ("name", "status"),
            JOB_BUCKETS,
            registry,
        )
        self._operations = _Family(
            "callboard_store_operation_seconds", "Calls of the store.", ("verb",), STORE_BUCKETS, registry
        )
        self._errors = Counter("callboard_store_errors", "Calls of the store that failed.", ["verb"], registry=registry)
        self._errors_of: dict[str, Counter] = {}
        self._batches = _Family("callboard_commit_writes", "Writes in one commit.", (), BATCH_BUCKETS, registry)

    def refused(self, name: str) -> None:
        """A submission to that handler was refused because its queue is full."""
        self._refused.labels(name).inc()

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """A stream is open."""
        with self._streams.track_inprogress():
            yield

    # Told by the runtime

    def claimed(self, job: Job, queue_seconds: float) -> None:
        self._queue.observe((job.name, job.queue), queue_seconds)

    def attempt_ended(self, job: Job, outcome: AttemptOutcome, handler_seconds: float) -> None:
        self._handler.observe((job.name, outcome), handler_seconds)

    def ended(self, job: Job, processing_seconds: float | None) -> None:
        if processing_seconds is not None:
            self._processing.observe((job.name, job.status.value), processing_seconds)

    def store_called(self, verb: str, seconds: float, size: int, error: Exception | None) -> None:
        self._operations.observe((verb,), seconds)
        errors = self._errors_of.get(verb)
        if errors is None:
            # From the verb's first call on, so that the first error is an increase.
            errors = self._errors_of[verb] = self._errors.labels(verb)
        if error is not None:
            errors.inc()
        elif verb == "commit":
            self._batches.observe((), size)

    # Asked by Prometheus

    async def text(self, runtime: Runtime, role: str) -> bytes:
        """The exposition text as of now. A store that cannot be reached leaves what it holds out, nothing else."""
        try:
            held = _of_store(await runtime.queues(), await runtime.unserved())
        except StoreUnavailable:
            held = iter(())
        for name in runtime.handlers.names:
            # From the start on, so that the first increase is one.
            self._refused.labels(name)
        own = _of_process(role)
        self._snapshot.metrics = [*held, own, *_of_stats(runtime.stats(), runtime.handlers.names, runtime.draining)]
        return generate_latest(self._registry)


class _Family:
    """A histogram whose children are found without its lock: an observation is on the way of every job."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._histogram = Histogram(name, text, labels, buckets=buckets, registry=registry)
        self._children: dict[tuple[str, ...], Histogram] = {} if labels else {(): self._histogram}

    def observe(self, values: tuple[str, ...], amount: float) -> None:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._histogram.labels(*values)
        child.observe(amount)


class _Snapshot(Collector):
    """Hands out what was collected a moment ago; reading the store is async, and the registry is not."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def _of_process(role: str) -> Metric:
    text = "1, with what this process does (both, api, worker) and its callboard's version."
    info = GaugeMetricFamily("callboard_info", text, labels=["role", "version"])
    info.add_metric([role, callboard.__version__], 1)
    return info


def _of_store(queues: Iterable[Queue], unserved: Mapping[tuple[str, str], int]) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("callboard_jobs", "Jobs in the store.", labels=["queue", "status"])
    paused = GaugeMetricFamily("callboard_queue_paused", "1 while the queue is paused.", labels=["queue"])
    for queue in queues:
        for status in Status:
            jobs.add_metric([queue.name, status.value], queue.counts.get(status, 0))
        paused.add_metric([queue.name], int(queue.paused))
    yield jobs
    yield paused
    text = "Ready jobs that this process does not take, up to 10,000; 0 for those that it does. The least of all processes counts."
    left = GaugeMetricFamily("callboard_unserved_jobs", text, labels=["queue", "name"])
    for (queue_name, name), count in unserved.items():
        left.add_metric([queue_name, name], count)
    yield left


def _of_stats(stats: Stats, names: Iterable[str], draining: bool) -> Iterator[Metric]:
    yield GaugeMetricFamily("callboard_running_attempts", "Attempts running in this process.", value=stats.running)
    yield GaugeMetricFamily("callboard_slots", "Attempts that may run at once in this process.", value=stats.slots)
    yield GaugeMetricFamily("callboard_draining", "1 while this process shuts down.", value=int(draining))
    text = "Leases of others that ended without a word and were taken back by this process."
    yield CounterMetricFamily("callboard_lost_leases", text, value=stats.lost_leases)
    # From the start on, so that the first increase is one.
    submitted = dict.fromkeys(names, 0) | stats.submitted
    retried = dict.fromkeys(names, 0) | stats.retried
    yield _by_name("callboard_submitted", "Jobs accepted by this process.", submitted)
    yield _by_name("callboard_retried", "Failed attempts of this process that are tried again.", retried)
    finished = CounterMetricFamily("callboard_finished", "Jobs ended by this process.", labels=["name", "status"])
    ends = {(name, status.value): 0 for name in names for status in Status if status.is_terminal} | stats.finished
    for (name, status), count in ends.items():
        finished.add_metric([name, status], count)
    yield finished


def _by_name(name: str, text: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["name"])
    for handler, count in counts.items():
        family.add_metric([handler], count)
    return family
