"""Spans, through the OpenTelemetry API only: nothing happens, and next to nothing is spent, while no SDK is configured.

    app's own server span
      └─ Job.Submit (producer) ....... its context is stored with the job
           └─ Store.Operation
    Job.Process (consumer) ........... one a claim, the root of a trace of its own; links to Job.Submit
      ├─ Handler.Execute ............. current in the handler, its tasks and its threads
      └─ Store.Operation

A ``Store.Operation`` is one call of the driver. If one span asked for it, it is that span's child. A group commit for several has
no parent and links to each. Calls that nobody's span asked for (the polls, the heartbeat) make a span only when they fail, a claim
when it brought something. See docs/decisions/018.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final

import trio
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from callboard.runtime.core.job import Job, Request
from callboard.runtime.submission import Submission
from callboard.runtime.wary import told, type_name

__all__ = ["ProcessSpan", "SubmitSpan", "Tracing", "leave_trace", "mark_failed", "record_exception"]

LOOK_SECONDS: Final = 1.0
"""How often to look whether the app has configured an SDK by now; a look costs a microsecond."""
MAX_LINKS: Final = 128
"""Of one span. Source: the SDK's default limit."""
TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})
MAX_HEADER: Final = 512
"""Characters of a trace header that are looked at. Source: W3C Trace Context, section 3.3.1.5."""

_w3c: Final = TraceContextTextMapPropagator()
_senders: Final[ContextVar[Sequence[SpanContext]]] = ContextVar("senders of the driver's next call", default=())


def leave_trace() -> None:
    """What the current task does from now on, and what it starts, belongs to no trace: whoever started it is not why."""
    attach(Context())


class SubmitSpan:
    """A submission that is under way; without a ``span`` it is not traced here."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span
        self._context = {} if span is None else _headers(span)

    def carried(self, submission: Submission) -> Submission:
        """What to store: the request knows its place in the trace, which is this span, or else what its own headers say."""
        context = self._context or _from_headers(submission.request)
        if not context:
            return submission
        return replace(submission, request=replace(submission.request, trace_context=context))

    def accepted(self, job: Job, *, replayed: bool) -> None:
        """The store has the job."""
        if self._span is not None:
            self._span.set_attributes({"job.id": job.id, "job.status": job.status.value, "job.replayed": replayed})

    def accepted_many(self, accepted: int, asked: int) -> None:
        """The store has so many jobs of those that were asked for at once."""
        if self._span is not None:
            self._span.set_attributes({"job.count": accepted, "job.refused": asked - accepted})


class ProcessSpan:
    """One claim's ``Job.Process``, current in the task that made it until ``end``."""

    def __init__(self, tracer: Tracer, job: Job, request: Request) -> None:
        submitted = _submit_of(request)
        self._tracer = tracer
        self._attributes: dict[str, str | int] = {"job.id": job.id, "job.name": job.name, "job.attempt": job.attempt}
        self._span = tracer.start_span(
            "Job.Process",
            Context(),
            SpanKind.CONSUMER,
            {**self._attributes, "job.queue": job.queue, "worker.id": job.worker or ""},
            [Link(submitted)] if submitted.is_valid else None,
        )
        self._token = attach(trace.set_span_in_context(self._span, Context()))

    @contextmanager
    def executing(self) -> Iterator[Span]:
        """Round the handler, in its own task: ``Handler.Execute`` is the current span."""
        with self._tracer.start_as_current_span("Handler.Execute", attributes=self._attributes) as span:
            yield span

    def end(self, status: str | None, error_type: str | None) -> None:
        """The attempt is settled. ``status`` is the job's now, None where it is not known here any more."""
        if status is not None:
            self._span.set_attribute("job.status", status)
        if error_type is not None:
            mark_failed(self._span, error_type)
        self._span.end()
        detach(self._token)


class Tracing:
    """Of one runtime. ``provider`` None is the one that the app makes the global one, whenever it does."""

    def __init__(self, provider: TracerProvider | None, store_type: str) -> None:
        self._provider = provider
        self._store_type = store_type
        self._tracer: Tracer | None = None
        self._look_again = -float("inf")
        self._untraced = SubmitSpan()
        self._find_tracer()

    def submitting(self, name: str, request: Request) -> AbstractContextManager[SubmitSpan]:
        """Round one submission: ``Job.Submit``, within the current span, or else within the caller's whose headers ``request`` brought."""
        tracer = self._find_tracer()
        return nullcontext(self._untraced) if tracer is None else self._submitting(tracer, name, request)

    @contextmanager
    def _submitting(self, tracer: Tracer, name: str, request: Request) -> Iterator[SubmitSpan]:
        parent = None
        if not trace.get_current_span().get_span_context().is_valid:
            parent = _w3c.extract(_from_headers(request))
        with tracer.start_as_current_span(
            "Job.Submit", parent, SpanKind.PRODUCER, {"job.name": name}, record_exception=False
        ) as span:
            try:
                yield SubmitSpan(span)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                raise

    def process(self, job: Job, request: Request) -> ProcessSpan | None:
        """Begin the ``Job.Process`` of a claim; None when nobody traces."""
        tracer = self._find_tracer()
        return None if tracer is None else ProcessSpan(tracer, job, request)

    # The store's calls

    @property
    def is_on(self) -> bool:
        """Whether someone traces, as far as was looked."""
        return self._tracer is not None

    def sender(self) -> SpanContext | None:
        """The span that the current task is in: to be given to ``calling`` by who makes the call for it."""
        return None if self._tracer is None else trace.get_current_span().get_span_context()

    def calling(self, senders: Iterable[SpanContext | None]) -> None:
        """The driver calls that the current task makes from now on are for those spans."""
        if self._tracer is not None:
            by_id = {(one.trace_id, one.span_id): one for one in senders if one is not None and one.is_valid}
            _senders.set(tuple(by_id.values()))

    def store_called(
        self, verb: str, began_ns: int, size: int, error: Exception | None, claimed: Sequence[Request] = ()
    ) -> None:
        """One call of the driver has ended just now; ``claimed`` are the requests of the jobs that it brought."""
        senders = _senders.get()
        if self._tracer is None or not (senders or claimed or error):
            return
        alone = len(senders) == 1
        linked = senders if not claimed else [_submit_of(request) for request in claimed]
        span = self._tracer.start_span(
            "Store.Operation",
            trace.set_span_in_context(NonRecordingSpan(senders[0]), Context()) if alone else Context(),
            SpanKind.CLIENT,
            {"store.type": self._store_type, "store.operation": verb, "store.batch_size": size},
            None if alone else [Link(context) for context in linked[:MAX_LINKS] if context.is_valid],
            start_time=began_ns or None,  # the app may have begun to trace while the call was under way
        )
        if error is not None:
            mark_failed(span, type(error).__name__)
        span.end()

    def now_ns(self) -> int:
        """When a call begins; 0 when nobody traces."""
        return 0 if self._tracer is None else time.time_ns()

    def _find_tracer(self) -> Tracer | None:
        if self._tracer is None and trio.current_time() >= self._look_again:
            self._look_again = trio.current_time() + LOOK_SECONDS
            provider = self._provider or trace.get_tracer_provider()
            if not isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
                tracer = provider.get_tracer("callboard")
                # An SDK that its environment has disabled gives one that does nothing.
                self._tracer = None if isinstance(tracer, NoOpTracer) else tracer
        return self._tracer


def mark_failed(span: Span, error_type: str) -> None:
    """Say that what the span stands for failed."""
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR)


def record_exception(span: Span, error: BaseException) -> None:
    """Add ``error`` with its traceback to the span."""

    def record() -> bool:
        span.record_exception(error)
        return True

    # It asks the app's exception for its text.
    if not told(record, False):
        span.add_event("exception", {"exception.type": type_name(error)})


def _headers(span: Span) -> dict[str, str]:
    headers: dict[str, str] = {}
    _w3c.inject(headers, trace.set_span_in_context(span, Context()))
    return headers


def _from_headers(request: Request) -> dict[str, str]:
    """The caller's trace context, checked and in its canonical form; empty without one."""
    if not request.headers:
        return {}
    given: dict[str, str] = {}
    for name, value in request.headers:
        lower = name.lower()
        if lower in TRACE_HEADERS and len(value) <= MAX_HEADER:
            given[lower] = value
    if "traceparent" not in given:
        return {}
    return _headers(trace.get_current_span(_w3c.extract(given)))


def _submit_of(request: Request) -> SpanContext:
    """The span that submitted it; one that is not valid where there was none."""
    return trace.get_current_span(_w3c.extract(request.trace_context)).get_span_context()
