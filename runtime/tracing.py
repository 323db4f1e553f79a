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

The app's tracer is only called through ``_Tracer``: its span processors, samplers and id generators are the app's own code.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import trio
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from callboard.runtime.core.job import Job, Request
from callboard.runtime.submission import Submission
from callboard.runtime.wary import Guard, told, type_name

__all__ = ["HandlerSpan", "ProcessSpan", "SubmitSpan", "Tracing", "leave_trace"]

LOOK_SECONDS: Final = 1.0
"""How often to look whether the app has configured an SDK by now; a look costs a microsecond."""
MAX_LINKS: Final = 128
"""Of one span. Source: the SDK's default limit."""
TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})
MAX_HEADER: Final = 512
"""Characters of a trace header that are looked at. Source: W3C Trace Context, section 3.3.1.5."""

_NO_SPAN: Final[Span] = INVALID_SPAN
_w3c: Final = TraceContextTextMapPropagator()
_senders: Final[ContextVar[Sequence[SpanContext]]] = ContextVar("senders of the driver's next call", default=())


def leave_trace() -> None:
    """What the current task does from now on, and what it starts, belongs to no trace: whoever started it is not why."""
    attach(Context())


class _Tracer:
    """The app's tracer. What it raises is logged, once for each step, and leaves the span as it is, or no span at all."""

    def __init__(self, tracer: Tracer, guard: Guard) -> None:
        self._tracer = tracer
        self._guard = guard

    def start(self, name: str, context: Context | None, kind: SpanKind, attributes: Any, **options: Any) -> Span:
        """A new span."""
        start = partial(self._tracer.start_span, name, context, kind, attributes, **options)
        return self._guard.call("the start of a span", start, _NO_SPAN)

    def set(self, span: Span, attributes: dict[str, Any]) -> None:
        """Add attributes."""
        self._guard.call("a span's attributes", lambda: span.set_attributes(attributes), None)

    def fail(self, span: Span, error_type: str, description: str | None = None) -> None:
        """Say that what the span stands for failed."""
        self.set(span, {"error.type": error_type})
        status = Status(StatusCode.ERROR, description)
        self._guard.call("a span's status", lambda: span.set_status(status), None)

    def record(self, span: Span, error: BaseException) -> None:
        """Add ``error`` with its traceback."""

        def record() -> bool:
            span.record_exception(error)
            return True

        # It asks the app's exception for its text.
        if not told(record, False):
            named = {"exception.type": type_name(error)}
            self._guard.call("a span's event", lambda: span.add_event("exception", named), None)

    def end(self, span: Span) -> None:
        """The span is over."""
        self._guard.call("the end of a span", span.end, None)


class SubmitSpan:
    """A submission that is under way; without a ``span`` it is not traced here."""

    def __init__(self, tracer: _Tracer | None = None, span: Span = _NO_SPAN) -> None:
        self._tracer = tracer
        self._span = span
        self._context = {} if tracer is None else _headers(span)

    def carried(self, submission: Submission) -> Submission:
        """What to store: the request knows its place in the trace, which is this span, or else what its own headers say."""
        context = self._context or _from_headers(submission.request)
        if not context:
            return submission
        return replace(submission, request=replace(submission.request, trace_context=context))

    def accepted(self, job: Job, *, replayed: bool) -> None:
        """The store has the job."""
        if self._tracer is not None:
            status = job.status.value
            self._tracer.set(self._span, {"job.id": job.id, "job.status": status, "job.replayed": replayed})

    def accepted_many(self, accepted: int, asked: int) -> None:
        """The store has so many jobs of those that were asked for at once."""
        if self._tracer is not None:
            self._tracer.set(self._span, {"job.count": accepted, "job.refused": asked - accepted})


class HandlerSpan:
    """One ``Handler.Execute``."""

    def __init__(self, tracer: _Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    def failed(self, error_type: str, error: BaseException | None) -> None:
        """The handler failed."""
        self._tracer.fail(self._span, error_type)
        if error is not None:
            self._tracer.record(self._span, error)


class ProcessSpan:
    """One claim's ``Job.Process``, current in the task that made it until ``end``."""

    def __init__(self, tracer: _Tracer, job: Job, request: Request) -> None:
        submitted = _submit_of(request)
        self._tracer = tracer
        self._attributes: dict[str, str | int] = {"job.id": job.id, "job.name": job.name, "job.attempt": job.attempt}
        self._span = tracer.start(
            "Job.Process",
            Context(),
            SpanKind.CONSUMER,
            {**self._attributes, "job.queue": job.queue, "worker.id": job.worker or ""},
            links=[Link(submitted)] if submitted.is_valid else None,
        )
        self._token = attach(trace.set_span_in_context(self._span, Context()))

    @contextmanager
    def executing(self) -> Iterator[HandlerSpan]:
        """Round the handler, in its own task: ``Handler.Execute`` is the current span."""
        span = self._tracer.start("Handler.Execute", None, SpanKind.INTERNAL, self._attributes)
        with _current(span):
            try:
                yield HandlerSpan(self._tracer, span)
            finally:
                self._tracer.end(span)

    def end(self, status: str | None, error_type: str | None) -> None:
        """The attempt is settled. ``status`` is the job's now, None where it is not known here any more."""
        if status is not None:
            self._tracer.set(self._span, {"job.status": status})
        if error_type is not None:
            self._tracer.fail(self._span, error_type)
        self._tracer.end(self._span)
        detach(self._token)


class Tracing:
    """Of one runtime. ``provider`` None is the one that the app makes the global one, whenever it does."""

    def __init__(self, provider: TracerProvider | None, store_type: str) -> None:
        self._provider = provider
        self._store_type = store_type
        self._tracer: _Tracer | None = None
        self._guard = Guard()
        self._look_again = -float("inf")
        self._untraced = SubmitSpan()
        self._find_tracer()

    def submitting(self, name: str, request: Request) -> AbstractContextManager[SubmitSpan]:
        """Round one submission: ``Job.Submit``, within the current span, or else within the caller's whose headers ``request`` brought."""
        tracer = self._find_tracer()
        return nullcontext(self._untraced) if tracer is None else self._submitting(tracer, name, request)

    @contextmanager
    def _submitting(self, tracer: _Tracer, name: str, request: Request) -> Iterator[SubmitSpan]:
        parent = None
        if not trace.get_current_span().get_span_context().is_valid:
            parent = _w3c.extract(_from_headers(request))
        span = tracer.start("Job.Submit", parent, SpanKind.PRODUCER, {"job.name": name})
        with _current(span):
            try:
                yield SubmitSpan(tracer, span)
            except Exception as error:
                kind = type(error).__name__
                tracer.fail(span, kind, f"{kind}: {error}")
                raise
            finally:
                tracer.end(span)

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
        span = self._tracer.start(
            "Store.Operation",
            trace.set_span_in_context(NonRecordingSpan(senders[0]), Context()) if alone else Context(),
            SpanKind.CLIENT,
            {"store.type": self._store_type, "store.operation": verb, "store.batch_size": size},
            links=None if alone else [Link(context) for context in linked[:MAX_LINKS] if context.is_valid],
            start_time=began_ns or None,  # the app may have begun to trace while the call was under way
        )
        if error is not None:
            self._tracer.fail(span, type(error).__name__)
        self._tracer.end(span)

    def now_ns(self) -> int:
        """When a call begins; 0 when nobody traces."""
        return 0 if self._tracer is None else time.time_ns()

    def _find_tracer(self) -> _Tracer | None:
        if self._tracer is None and trio.current_time() >= self._look_again:
            self._look_again = trio.current_time() + LOOK_SECONDS
            found = self._guard.call("the tracer provider", self._look, None)
            self._tracer = None if found is None else _Tracer(found, self._guard)
        return self._tracer

    def _look(self) -> Tracer | None:
        provider = self._provider or trace.get_tracer_provider()
        if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
            return None
        tracer = provider.get_tracer("callboard")
        # An SDK that its environment has disabled gives one that does nothing.
        return None if isinstance(tracer, NoOpTracer) else tracer


def _current(span: Span) -> AbstractContextManager[Span]:
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)


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
