"""Spans: what is there, who is whose child, what is linked; over retries, threads, processes and failures; and none when nobody traces."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from tests.runtime.kit import FaultyStore, handler, hard_stop, opened
from trio.testing import MockClock

from callboard.runtime import (
    Config,
    InvalidRequest,
    Job,
    JobContext,
    JobFailed,
    QueueFull,
    Request,
    StoreUnavailable,
    Submission,
    ThreadJobContext,
)
from callboard.stores import open_store
from callboard.stores.memory import MemoryDatabase, MemoryStore

IDLE = Config(max_concurrent_jobs=0)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Traces:
    """An SDK of its own, and what it was given."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("the app")

    def named(self, name: str, **attributes: Any) -> list[ReadableSpan]:
        return [
            span
            for span in self._exporter.get_finished_spans()
            if span.name == name and attributes.items() <= dict(span.attributes or {}).items()
        ]

    def one(self, name: str, **attributes: Any) -> ReadableSpan:
        (span,) = self.named(name, **attributes)
        return span

    def __len__(self) -> int:
        return len(self._exporter.get_finished_spans())


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Neither a global provider nor a current span."""
    yield
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert context.get_current() == {}


@pytest.fixture
def traces() -> Iterator[Traces]:
    traces = Traces()
    yield traces
    traces.provider.shutdown()


def own(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@handler()
async def work(job: JobContext) -> None:
    await trio.sleep(1)


@handler("failing", max_retries=1)
async def failing(job: JobContext) -> None:
    if job.attempt == 1:
        raise OSError("the disk is gone")


async def test_submit_process_and_handler_are_spans_and_the_process_links_to_the_submit(
    autojump_clock: MockClock, traces: Traces
) -> None:
    async with opened(None, work, tracer_provider=traces.provider) as runtime:
        job = await runtime.submit("work")
        ended = await runtime.wait(job.id)
        submit, process, execute = (traces.one(name) for name in ("Job.Submit", "Job.Process", "Handler.Execute"))
        assert (submit.kind, process.kind, execute.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL)
        assert attributes(submit) == {
            "job.id": job.id,
            "job.name": "work",
            "job.status": "Queued",
            "job.replayed": False,
        }
        assert attributes(process) == {
            "job.id": job.id,
            "job.name": "work",
            "job.queue": "default",
            "job.attempt": 1,
            "job.status": "Completed",
            "worker.id": runtime.worker,
        }
        assert attributes(execute) == {"job.id": job.id, "job.name": "work", "job.attempt": 1}
        assert (parent(process), links(process)) == (None, [own(submit)])
        assert own(process)[0] != own(submit)[0], "a job may outlive its request by days: a trace of its own"
        assert parent(execute) == own(process)
        assert {span.status.status_code for span in (submit, process, execute)} == {StatusCode.UNSET}
    assert ended.worker is None


async def test_a_process_has_no_tag_of_a_store_and_a_store_operation_has_the_stores_own(tmp_path: Path) -> None:
    for store, kind in ((MemoryStore(), "memory"), (open_store(f"sqlite:///{tmp_path}/jobs.db"), "sqlite")):
        traces = Traces()
        async with opened(store, handler()(instant), tracer_provider=traces.provider) as runtime:
            await runtime.wait((await runtime.submit("work")).id, timeout_seconds=10)
        assert not [name for name in attributes(traces.one("Job.Process")) if name.startswith("store.")]
        kinds = {attributes(span)["store.type"] for span in traces.named("Store.Operation")}
        assert kinds == {kind}


async def instant(job: JobContext) -> None: ...


async def test_every_attempt_links_to_the_one_submit_and_says_how_it_ended(
    autojump_clock: MockClock, traces: Traces
) -> None:
    async with opened(None, failing, tracer_provider=traces.provider) as runtime:
        job = await runtime.submit("failing")
        await runtime.wait(job.id)
        submit = traces.one("Job.Submit")
        first, second = (traces.one("Job.Process", **{"job.attempt": number}) for number in (1, 2))
        assert links(first) == links(second) == [own(submit)]
        assert own(first)[0] != own(second)[0]
        assert (attributes(first)["job.status"], attributes(first)["error.type"]) == ("Scheduled", "OSError")
        assert (attributes(second)["job.status"], "error.type" in attributes(second)) == ("Completed", False)
        assert [span.status.status_code for span in (first, second)] == [StatusCode.ERROR, StatusCode.UNSET]
        failed = traces.one("Handler.Execute", **{"job.attempt": 1})
        assert (failed.status.status_code, attributes(failed)["error.type"]) == (StatusCode.ERROR, "OSError")
        (event,) = failed.events
        assert event.attributes is not None
        assert (event.name, event.attributes["exception.message"]) == ("exception", "the disk is gone")
        assert first.events == ()


async def test_an_exception_without_a_text_ends_its_attempt_only(autojump_clock: MockClock, traces: Traces) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @handler(max_retries=0)
    async def mute(job: JobContext) -> None:
        raise Mute

    async with opened(None, mute, tracer_provider=traces.provider) as runtime:
        job = await runtime.submit("work")
        assert (await runtime.wait(job.id)).status == "Failed"
        assert [event.name for event in traces.one("Handler.Execute").events] == ["exception"]


async def test_spans_of_a_handler_and_of_its_tasks_are_children_of_the_handlers(
    autojump_clock: MockClock, traces: Traces
) -> None:
    async def helper(name: str) -> None:
        with traces.tracer.start_as_current_span(name):
            await trio.sleep(1)

    @handler()
    async def work(job: JobContext) -> None:
        with traces.tracer.start_as_current_span("outer"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(helper, "a task of a task")
        await helper("direct")

    async with opened(None, work, tracer_provider=traces.provider) as runtime:
        await runtime.wait((await runtime.submit("work")).id)
        execute = traces.one("Handler.Execute")
        assert parent(traces.one("direct")) == parent(traces.one("outer")) == own(execute)
        assert parent(traces.one("a task of a task")) == own(traces.one("outer"))


async def test_spans_of_a_thread_are_children_of_the_handlers(traces: Traces) -> None:
    @handler()
    def work(job: ThreadJobContext) -> None:
        traces.tracer.start_span("in a thread").end()

    async with opened(MemoryStore(), work, tracer_provider=traces.provider) as runtime:
        await runtime.wait((await runtime.submit("work")).id, timeout_seconds=10)
    assert parent(traces.one("in a thread")) == own(traces.one("Handler.Execute"))


async def test_jobs_at_the_same_time_do_not_mix_their_spans(autojump_clock: MockClock, traces: Traces) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        await trio.sleep(1)
        with traces.tracer.start_as_current_span("mine", attributes={"job.id": job.id}):
            await trio.sleep(1)

    async with opened(None, work, tracer_provider=traces.provider) as runtime:
        jobs = [await runtime.submit("work") for _ in range(5)]
        for job in jobs:
            await runtime.wait(job.id)
        for job in jobs:
            execute = traces.one("Handler.Execute", **{"job.id": job.id})
            process = traces.one("Job.Process", **{"job.id": job.id})
            assert parent(traces.one("mine", **{"job.id": job.id})) == own(execute)
            assert parent(execute) == own(process)
            assert links(process) == [own(traces.one("Job.Submit", **{"job.id": job.id}))]


async def test_a_submit_is_within_the_current_span_and_else_within_the_callers(
    autojump_clock: MockClock, traces: Traces
) -> None:
    headers = {"Traceparent": TRACEPARENT, "Tracestate": "a=b"}
    async with opened(None, work, config=IDLE, tracer_provider=traces.provider) as runtime:
        with traces.tracer.start_as_current_span("the app's own"):
            inside = await runtime.submit("work", headers=headers)
        outside = await runtime.submit("work", headers=headers)
        alone = await runtime.submit("work")
        spans = [traces.one("Job.Submit", **{"job.id": job.id}) for job in (inside, outside, alone)]
        assert parent(spans[0]) == own(traces.one("the app's own"))
        assert parent(spans[1]) == (int(TRACE, 16), int(PARENT, 16))
        assert spans[1].context is not None
        assert spans[1].context.trace_state.to_header() == "a=b"
        assert parent(spans[2]) is None


async def test_what_a_submit_stores_is_the_context_of_its_span(autojump_clock: MockClock, traces: Traces) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), work, config=IDLE, tracer_provider=traces.provider) as runtime:
        await runtime.submit("work")
    submit = traces.one("Job.Submit").context
    assert submit is not None
    parts = (format_trace_id(submit.trace_id), format_span_id(submit.span_id), f"{submit.trace_flags:02x}")
    assert await stored_context(database) == {"traceparent": f"00-{'-'.join(parts)}"}


async def stored_context(database: MemoryDatabase) -> dict[str, str]:
    store = FaultyStore(database)
    await store.open(worker="a test", max_events_per_job=10, max_attempts_per_job=10)
    (claimed,) = await store.claim(queues=["default"], names=["work"], limit=1, lease_ms=1)
    await store.aclose()
    return claimed.request.trace_context


@pytest.mark.parametrize(
    ("headers", "stored"),
    [
        ([("Traceparent", TRACEPARENT)], {"traceparent": TRACEPARENT}),
        (
            [("traceparent", f" {TRACEPARENT}"), ("TRACESTATE", "a=b")],
            {"traceparent": TRACEPARENT, "tracestate": "a=b"},
        ),
        ([("Traceparent", TRACEPARENT), ("Tracestate", "a=" + "b" * 600)], {"traceparent": TRACEPARENT}),
        ([("Traceparent", "nonsense")], {}),
        ([("Traceparent", f"00-{'0' * 32}-{PARENT}-01")], {}),
        ([("Traceparent", TRACEPARENT + "-" + "x" * 600)], {}),
        ([("Tracestate", "a=b")], {}),
        ([], {}),
    ],
)
async def test_the_callers_trace_is_kept_also_where_nobody_traces(
    headers: list[tuple[str, str]], stored: dict[str, str], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), work, config=IDLE) as runtime:
        await runtime.accept(Submission(name="work", request=Request(headers=tuple(headers))))
    assert await stored_context(database) == stored
    assert caplog.records == [], "a caller's bad header is nothing to warn of"


async def test_a_worker_that_traces_links_to_the_caller_of_a_front_that_does_not(
    autojump_clock: MockClock, traces: Traces
) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), work, config=IDLE) as front:
        job = await front.submit("work", headers={"Traceparent": TRACEPARENT})
        async with opened(FaultyStore(database), work, seed=2, tracer_provider=traces.provider):
            await front.wait(job.id)
    assert links(traces.one("Job.Process")) == [(int(TRACE, 16), int(PARENT, 16))]


async def test_a_repeat_is_marked_and_a_refusal_is_an_error(autojump_clock: MockClock, traces: Traces) -> None:
    config = Config(max_concurrent_jobs=0, max_queue_size=1)
    async with opened(None, work, config=config, tracer_provider=traces.provider) as runtime:
        job = await runtime.submit("work", key="k")
        await runtime.submit("work", key="k")
        with pytest.raises(QueueFull):
            await runtime.submit("work")
        repeat = traces.one("Job.Submit", **{"job.replayed": True})
        assert attributes(repeat)["job.id"] == job.id
        refused = traces.one("Job.Submit", **{"error.type": "QueueFull"})
        assert refused.status.status_code is StatusCode.ERROR
        assert len(traces.named("Job.Submit")) == 3


async def test_a_bulk_submission_is_one_span_that_every_job_links_to(autojump_clock: MockClock, traces: Traces) -> None:
    @handler("number")
    async def number(job: JobContext, value: int) -> None: ...

    async with opened(None, number, tracer_provider=traces.provider) as runtime:
        answers = await runtime.submit_many("number", [1, "not a number", 2], headers={"Traceparent": TRACEPARENT})
        jobs = [answer for answer in answers if isinstance(answer, Job)]
        for job in jobs:
            await runtime.wait(job.id)
        submit = traces.one("Job.Submit")
        assert parent(submit) == (int(TRACE, 16), int(PARENT, 16))
        assert attributes(submit) == {"job.name": "number", "job.count": 2, "job.refused": 1}
        for job in jobs:
            assert links(traces.one("Job.Process", **{"job.id": job.id})) == [own(submit)]
        commit = traces.named("Store.Operation", **{"store.operation": "commit", "store.batch_size": 2})[0]
        assert parent(commit) == own(submit)


async def test_a_submit_that_nobody_samples_is_carried_on_as_not_sampled(autojump_clock: MockClock) -> None:
    unsampled, traces, database = Traces(sampler=ParentBased(ALWAYS_OFF)), Traces(), MemoryDatabase()
    async with opened(FaultyStore(database), work, config=IDLE, tracer_provider=unsampled.provider) as front:
        job = await front.submit("work")
        async with opened(FaultyStore(database), work, seed=2, tracer_provider=traces.provider):
            await front.wait(job.id)
    assert len(unsampled) == 0
    (link,) = traces.one("Job.Process").links
    assert link.context.is_valid
    assert not link.context.trace_flags.sampled


@pytest.mark.parametrize(
    ("ending", "status", "error_type"),
    [
        (JobFailed("NO", "no"), "Failed", "JobFailed"),
        (BaseExceptionGroup("many", [OSError(), ValueError()]), "Failed", "OSError"),
        (SystemExit(3), "Failed", "SystemExit"),
        ("cancel", "Canceled", None),
        ("drain", "Queued", None),
        ("lease", None, "LeaseLost"),
        ("before it begins", "Canceled", None),
    ],
    ids=str,
)
async def test_every_ending_closes_its_span(
    ending: Any, status: str | None, error_type: str | None, autojump_clock: MockClock, traces: Traces
) -> None:
    @handler(max_retries=0)
    async def work(job: JobContext) -> None:
        await trio.sleep(1 if isinstance(ending, BaseException) else 1000)
        raise ending

    store = FaultyStore()
    async with opened(store, work, config=Config(retry_base_seconds=0), tracer_provider=traces.provider) as runtime:
        if ending == "before it begins":
            store.slow_seconds["claim"] = 5
        job = await runtime.submit("work")
        await trio.sleep(2)
        if ending == "cancel" or ending == "before it begins":
            await runtime.cancel(job.id)
        elif ending == "lease":
            store.fail("extend")
        if ending != "drain":
            await trio.sleep(40)
            assert attributes(traces.one("Job.Process")).get("job.status") == status
        store.mend()
    process = traces.named("Job.Process")[0]
    assert attributes(process).get("job.status") == status
    assert attributes(process).get("error.type") == error_type
    assert (process.status.status_code is StatusCode.ERROR) == (error_type is not None)
    assert len(traces.named("Handler.Execute")) == (
        0 if ending == "before it begins" else len(traces.named("Job.Process"))
    )


async def test_store_operations_belong_to_who_asked_for_them(autojump_clock: MockClock, traces: Traces) -> None:
    async with opened(None, work, tracer_provider=traces.provider) as runtime:
        job = await runtime.submit("work")
        await runtime.wait(job.id)
        with traces.tracer.start_as_current_span("the app's own") as mine:
            await runtime.get(job.id)
        operations = {"store.type": "faulty", "store.batch_size": 1}
        inserted, settled = traces.named("Store.Operation", **{**operations, "store.operation": "commit"})
        assert parent(inserted) == own(traces.one("Job.Submit"))
        assert parent(settled) == own(traces.one("Job.Process"))
        (read,) = traces.named("Store.Operation", **{**operations, "store.operation": "get"})
        assert parent(read) == (mine.get_span_context().trace_id, mine.get_span_context().span_id)
        (claim,) = traces.named("Store.Operation", **{**operations, "store.operation": "claim"})
        assert (parent(claim), links(claim)) == (None, [own(traces.one("Job.Submit"))])
        assert claim.kind is SpanKind.CLIENT


async def test_what_is_asked_of_a_job_after_its_attempt_is_no_part_of_the_attempt(
    autojump_clock: MockClock, traces: Traces
) -> None:
    store = FaultyStore()
    async with opened(store, work, tracer_provider=traces.provider) as runtime, trio.open_nursery() as nursery:
        job = await runtime.submit("work")
        await trio.sleep(0.5)
        store.slow_seconds["commit"] = 2
        await trio.sleep(1)
        # The outcome is on its way; the supervisor that waits for it is asked next.
        nursery.start_soon(runtime.purge, job.id)
    process = own(traces.one("Job.Process"))
    commits = traces.named("Store.Operation", **{"store.operation": "commit"})
    assert len([span for span in commits if parent(span) == process]) == 1


async def test_a_group_commit_is_one_span_that_links_to_each_of_its_senders(
    autojump_clock: MockClock, traces: Traces
) -> None:
    store = FaultyStore()
    async with opened(store, work, config=IDLE, tracer_provider=traces.provider) as runtime:
        store.slow_seconds["commit"] = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.submit, "work")
            await trio.sleep(0.05)
            for _ in range(3):
                nursery.start_soon(runtime.submit, "work")
        alone, batch = traces.named("Store.Operation", **{"store.operation": "commit"})
        submits = {own(span) for span in traces.named("Job.Submit")}
        assert len(submits) == 4
        assert (attributes(alone)["store.batch_size"], links(alone)) == (1, [])
        assert (attributes(batch)["store.batch_size"], len(links(batch)), parent(batch)) == (3, 3, None)
        assert {parent(alone), *links(batch)} == submits


async def test_nothing_is_traced_while_nothing_happens(autojump_clock: MockClock, traces: Traces) -> None:
    store = FaultyStore()
    with traces.tracer.start_as_current_span("the start of the app"):
        async with opened(store, work, tracer_provider=traces.provider):
            await trio.sleep(100)
            assert store.count("next_due") > 50
            assert store.count("claim") > 50
            assert len(traces) == 0
            store.fail("next_due", "wait_news", seconds=1.5)
            await trio.sleep(10)
            failed = traces.named("Store.Operation", **{"error.type": "StoreUnavailable"})
            assert {attributes(span)["store.operation"] for span in failed} == {"next_due"}
            assert len(traces) == len(failed)
            assert {span.status.status_code for span in failed} == {StatusCode.ERROR}
            assert {parent(span) for span in failed} == {None}


async def test_a_commit_that_fails_is_an_error_of_its_sender(autojump_clock: MockClock, traces: Traces) -> None:
    store = FaultyStore()
    async with opened(store, work, config=IDLE, tracer_provider=traces.provider) as runtime:
        store.fail("commit")
        with pytest.raises(StoreUnavailable):
            await runtime.submit("work")
        submit = traces.one("Job.Submit", **{"error.type": "StoreUnavailable"})
        failed = traces.one("Store.Operation", **{"error.type": "StoreUnavailable"})
        assert parent(failed) == own(submit)


async def test_who_opened_the_runtime_is_no_jobs_parent(autojump_clock: MockClock, traces: Traces) -> None:
    seen: list[Any] = []

    @handler()
    async def work(job: JobContext) -> None:
        seen.append(baggage.get_all())

    token = context.attach(baggage.set_baggage("whose", "the opener's"))
    try:
        with traces.tracer.start_as_current_span("the start of the app"):
            async with opened(None, work, tracer_provider=traces.provider) as runtime:
                job = await runtime.submit("work")
                await runtime.wait(job.id)
    finally:
        context.detach(token)
    assert seen == [{}]
    assert parent(traces.one("Job.Process")) is None


async def test_who_spoke_to_a_job_is_not_the_parent_of_its_next_attempt(
    autojump_clock: MockClock, traces: Traces
) -> None:
    """The supervisor that a request activates may be the one that later runs the job."""
    store = FaultyStore()
    async with opened(store, failing, tracer_provider=traces.provider) as runtime:
        job = await runtime.submit("failing")
        await runtime.wait(job.id)
        with traces.tracer.start_as_current_span("a request"), pytest.raises(Exception, match="cannot retry"):
            await runtime.retry(job.id)
        job = await runtime.submit("failing", delay_seconds=5)
        with traces.tracer.start_as_current_span("another request"):
            await runtime.cancel(job.id)
            await runtime.retry(job.id)
        await runtime.wait(job.id)
        processes = traces.named("Job.Process", **{"job.id": job.id})
        assert [parent(span) for span in processes] == [None] * len(processes)
        assert all(links(span) == [own(traces.one("Job.Submit", **{"job.id": job.id}))] for span in processes)


async def test_a_trace_over_two_runtimes_on_one_file(tmp_path: Path) -> None:
    front_traces, back_traces = Traces(), Traces()
    url = f"sqlite:///{tmp_path}/jobs.db"
    quick = handler()(instant)
    async with (
        opened(open_store(url), quick, config=IDLE, tracer_provider=front_traces.provider) as front,
        opened(open_store(url), quick, seed=2, tracer_provider=back_traces.provider) as back,
    ):
        job = await front.submit("work")
        assert (await front.wait(job.id, timeout_seconds=10)).status == "Completed"
        submit, process = front_traces.one("Job.Submit"), back_traces.one("Job.Process")
        assert attributes(process)["worker.id"] == back.worker
    assert links(process) == [own(submit)]
    assert (front_traces.named("Job.Process"), back_traces.named("Job.Submit")) == ([], [])


async def test_a_job_whose_worker_died_is_linked_from_both_attempts(autojump_clock: MockClock) -> None:
    front, dead, alive, database = Traces(), Traces(), Traces(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(FaultyStore(database), work, config=IDLE, tracer_provider=front.provider) as asking:
        async with opened(store, work, seed=2, tracer_provider=dead.provider) as dying:
            job = await asking.submit("work")
            await trio.sleep(0.5)
            hard_stop(dying, store)
        async with opened(FaultyStore(database), work, seed=3, tracer_provider=alive.provider):
            assert (await asking.wait(job.id)).attempt == 2
    assert links(alive.one("Job.Process")) == [own(front.one("Job.Submit"))]


def test_without_an_sdk_nothing_is_loaded_of_one() -> None:
    code = "import sys, callboard.runtime.runtime; print([name for name in sys.modules if 'opentelemetry.sdk' in name])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


async def test_without_an_sdk_a_handler_has_no_span(autojump_clock: MockClock) -> None:
    seen: list[Any] = []

    @handler()
    async def work(job: JobContext) -> None:
        seen.append(context.get_current())

    async with opened(None, work) as runtime:
        await runtime.wait((await runtime.submit("work")).id)
        assert not runtime._tracing.is_on
    assert seen == [{}]


async def test_a_provider_that_the_app_sets_later_is_found(
    autojump_clock: MockClock, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(None, work) as runtime:
        await runtime.wait((await runtime.submit("work")).id)
        assert len(traces) == 0
        with monkeypatch.context() as patched:
            patched.setattr(trace, "get_tracer_provider", lambda: traces.provider)
            await trio.sleep(2)
            await runtime.wait((await runtime.submit("work")).id)
    assert len(traces.named("Job.Process")) == 1


async def test_a_call_that_began_before_the_app_traced_has_no_start_before_time(
    autojump_clock: MockClock, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, earlier = FaultyStore(), time.time_ns()
    store.slow_seconds["claim"] = 5
    async with opened(store, work) as runtime:
        await runtime.submit("work", headers={"Traceparent": TRACEPARENT})
        await trio.sleep(2)
        with monkeypatch.context() as patched:
            patched.setattr(trace, "get_tracer_provider", lambda: traces.provider)
            await runtime.submit("work", delay_seconds=100)
            await trio.sleep(10)
        claim = traces.one("Store.Operation", **{"store.operation": "claim"})
        assert links(claim) == [(int(TRACE, 16), int(PARENT, 16))]
        assert claim.start_time is not None
        assert claim.start_time >= earlier


@pytest.mark.parametrize("make", [trace.NoOpTracerProvider, lambda: TracerProvider(shutdown_on_exit=False)])
async def test_a_provider_that_does_nothing_is_none(
    make: Callable[[], Any], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with opened(None, work, tracer_provider=make()) as runtime:
        job: Job = await runtime.submit("work")
        assert (await runtime.wait(job.id)).status == "Completed"
        assert not runtime._tracing.is_on


class Hostile(SpanProcessor, Sampler):
    """Raises wherever the SDK asks the app's code."""

    def __init__(self, where: str, error: BaseException) -> None:
        self._where = where
        self._error = error

    def _raise(self, where: str) -> None:
        if where == self._where:
            raise self._error

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._raise("start")

    def on_end(self, span: ReadableSpan) -> None:
        self._raise("end")

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        self._raise("sampler")
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "hostile"


@pytest.mark.parametrize("where", ["start", "end", "sampler", "provider"])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)], ids=repr)
async def test_what_the_apps_sdk_raises_is_logged_once_and_harms_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, where: str, error: BaseException
) -> None:
    hostile, store = Hostile(where, error), FaultyStore()
    provider = TracerProvider(sampler=hostile, shutdown_on_exit=False)
    provider.add_span_processor(hostile)
    if where == "provider":
        provider.get_tracer = lambda *_, **__: hostile._raise(where)  # type: ignore[assignment,method-assign]
    async with opened(store, work, failing, tracer_provider=provider) as runtime:
        jobs = [await runtime.submit(name) for name in ("work", "failing", "work")]
        ended = [await runtime.wait(job.id) for job in jobs]
        await runtime.submit_many("work", [None, None])
        with pytest.raises(InvalidRequest):
            await runtime.submit("work", {"a": "body"})
        store.fail(seconds=2)
        with pytest.raises(StoreUnavailable):
            await runtime.submit("work")
        await trio.sleep(5)
        await runtime.cancel((await runtime.submit("work")).id)
    assert [job.status for job in ended] == ["Completed"] * 3
    complaints = [record.getMessage() for record in caplog.records if record.name == "callboard.runtime"]
    assert len(complaints) == 1, complaints
