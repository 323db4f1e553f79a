"""Every way in which an attempt ends, and what becomes of its job."""

import logging
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
from msgspec import Raw
from tests.runtime.kit import FaultyStore, handler, opened
from trio.testing import MockClock

from callboard.runtime import Config, Failure, Handler, Job, JobContext, JobFailed, Retry, Runtime
from callboard.runtime.core.retry import backoff_ms
from callboard.runtime.failure import HIDDEN_MESSAGE

ONCE = Config(max_retries=0)


async def run(work: Handler, config: Config = ONCE, body: Any = None) -> Job:
    """Submit one job and wait for its end."""
    async with opened(None, work, config=config) as runtime:
        job = await runtime.submit("work", body)
        return await runtime.wait(job.id)


async def failure_of(error: BaseException, config: Config = ONCE, **options: Any) -> Failure:
    """What a job that raises ``error`` ends with."""

    @handler(**options)
    async def work(job: JobContext) -> None:
        raise error

    ended = await run(work, config)
    assert ended.status == "Failed"
    assert ended.error is not None
    return ended.error


async def test_value_completes_the_job(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> dict[str, int]:
        await trio.sleep(3)
        return {"answer": 42}

    job = await run(work)
    assert (job.status, bytes(job.result), job.error, job.attempt) == ("Completed", b'{"answer":42}', None, 1)
    assert job.completed_ms is not None and job.started_ms is not None
    assert job.completed_ms - job.started_ms == 3000
    assert (job.fence, job.worker) == (0, None)


async def test_no_value_is_null(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        pass

    job = await run(work)
    assert (job.status, bytes(job.result)) == ("Completed", b"null")


async def test_exception_is_hidden_from_clients_and_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failure = await failure_of(ValueError("the password is xyzzy"))
    assert failure == Failure(code="HANDLER_ERROR", message=HIDDEN_MESSAGE, type="ValueError", retryable=True)
    (record,) = [record for record in caplog.records if record.name == "callboard.jobs"]
    assert record.levelno == logging.ERROR
    assert "the password is xyzzy" in caplog.text


async def test_exposed_message(autojump_clock: MockClock) -> None:
    shown = Config(max_retries=0, expose_error_messages=True)
    assert (await failure_of(ValueError("boom"), shown)).message == "boom"
    assert (await failure_of(ValueError(), shown)).message == "ValueError"


async def test_exception_whose_text_cannot_be_made_ends_its_job_only(autojump_clock: MockClock) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    failure = await failure_of(Mute(), Config(max_retries=0, expose_error_messages=True))
    assert (failure.code, failure.type, failure.message) == ("HANDLER_ERROR", "Mute", "Mute")


async def test_job_failed_is_final_and_shows_its_message(autojump_clock: MockClock) -> None:
    failure = await failure_of(JobFailed("CARD_DECLINED", "no money"), Config())
    assert failure == Failure(code="CARD_DECLINED", message="no money", type="JobFailed", retryable=False)


async def test_retryable_job_failed_is_tried_again(autojump_clock: MockClock) -> None:
    @handler(max_retries=2)
    async def work(job: JobContext) -> None:
        raise JobFailed("BUSY", "the other side is busy", retryable=True)

    job = await run(work)
    assert (job.status, job.attempt, job.retry_count) == ("Failed", 3, 2)
    assert job.error == Failure(code="BUSY", message="the other side is busy", type="JobFailed", retryable=True)


async def test_retry_waits_as_long_as_it_says_and_counts(autojump_clock: MockClock) -> None:
    begun: list[float] = []

    @handler(max_retries=1)
    async def work(job: JobContext) -> None:
        begun.append(trio.current_time())
        raise Retry(after_seconds=100)

    job = await run(work)
    assert (job.status, job.attempt, job.retry_count) == ("Failed", 2, 1)
    assert begun[1] - begun[0] == pytest.approx(100, abs=0.01)
    assert job.error is not None
    assert (job.error.code, job.error.type) == ("HANDLER_ERROR", "Retry")


async def test_retry_without_time_uses_the_backoff(autojump_clock: MockClock) -> None:
    begun: list[float] = []

    @handler(max_retries=1, no_retry_on=(Exception,))
    async def work(job: JobContext) -> None:
        begun.append(trio.current_time())
        raise Retry

    await run(work)
    assert 1.6 <= begun[1] - begun[0] <= 2.41


async def test_retry_of_more_than_a_year_is_refused_or_cut(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="after_seconds is nan"):
        Retry(after_seconds=float("nan"))
    with pytest.raises(ValueError, match="give seconds, 0 or more"):
        Retry(after_seconds=-1)

    @handler(max_retries=1)
    async def work(job: JobContext) -> None:
        raise Retry(after_seconds=1e15)

    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        job = await runtime.get(job.id)
        assert job.status == "Scheduled"
        assert job.due_ms is not None
        assert job.due_ms - job.updated_ms == 366 * 24 * 3600 * 1000


async def test_timeout_bounds_each_attempt_and_is_retried(autojump_clock: MockClock) -> None:
    lengths: list[float] = []

    @handler(timeout_seconds=5, max_retries=1)
    async def work(job: JobContext) -> None:
        begun = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            lengths.append(trio.current_time() - begun)

    job = await run(work)
    assert lengths == pytest.approx([5, 5])
    assert (job.status, job.retry_count) == ("Failed", 1)
    assert job.error == Failure(
        code="TIMEOUT", message="The attempt did not end within 5 s.", type="TimeoutError", retryable=True
    )


async def test_value_returned_in_spite_of_the_timeout_stands(autojump_clock: MockClock) -> None:
    @handler(timeout_seconds=1)
    async def work(job: JobContext) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        return "late but whole"

    assert bytes((await run(work)).result) == b'"late but whole"'


async def test_error_during_the_timeouts_cleanup_is_still_a_timeout(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    @handler(timeout_seconds=1)
    async def work(job: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("cleanup")

    job = await run(work)
    assert job.error is not None
    assert job.error.code == "TIMEOUT"
    assert "KeyError" in caplog.text


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [Retry(), JobFailed("A", "b")])]), "A", "JobFailed"),
        (ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [Retry()])]), "HANDLER_ERROR", "Retry"),
        (ExceptionGroup("g", [ExceptionGroup("h", [KeyError()]), ValueError()]), "HANDLER_ERROR", "KeyError"),
        (BaseExceptionGroup("g", [SystemExit(1), ValueError()]), "HANDLER_ERROR", "SystemExit"),
    ],
    ids=["JobFailed first", "then Retry", "then the first leaf", "with SystemExit"],
)
async def test_precedence_in_exception_groups(
    autojump_clock: MockClock, error: BaseException, code: str, kind: str
) -> None:
    failure = await failure_of(error)
    assert (failure.code, failure.type) == (code, kind)


async def test_outcome_of_a_child_task_is_found(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        async def child() -> None:
            raise JobFailed("DEEP", "from a child")

        async with trio.open_nursery() as outer:
            outer.start_soon(trio.sleep_forever)
            async with trio.open_nursery() as inner:
                inner.start_soon(child)
                await trio.sleep_forever()

    job = await run(work)
    assert job.error == Failure(code="DEEP", message="from a child", type="JobFailed", retryable=False)


@pytest.mark.parametrize(
    ("options", "error", "retryable"),
    [
        ({"retry_on": (OSError,)}, ConnectionError(), True),
        ({"retry_on": (OSError,)}, ValueError(), False),
        ({"no_retry_on": (ValueError,)}, ValueError(), False),
        ({"no_retry_on": (ValueError,)}, OSError(), True),
        ({"retry_on": (OSError,), "no_retry_on": (ConnectionError,)}, ConnectionError(), False),
        ({"retry_on": (OSError,)}, ExceptionGroup("g", [OSError(), ValueError()]), False),
        ({"retry_on": (OSError,)}, JobFailed("A", "b", retryable=True), True),
    ],
)
async def test_retry_on_and_no_retry_on(
    autojump_clock: MockClock, options: dict[str, Any], error: Exception, retryable: bool
) -> None:
    assert (await failure_of(error, **options)).retryable is retryable


class Panic(BaseException):
    """As PyO3 raises when Rust code panics."""


@pytest.mark.parametrize("error", [SystemExit(3), Panic("rust")])
async def test_base_exceptions_end_their_job_only(autojump_clock: MockClock, error: BaseException) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        raise error

    @handler("other")
    async def other(job: JobContext) -> str:
        return "fine"

    async with opened(None, work, other, config=ONCE) as runtime:
        failed = await runtime.wait((await runtime.submit("work")).id)
        assert failed.error is not None
        assert failed.error.type == type(error).__name__
        assert (await runtime.wait((await runtime.submit("other")).id)).status == "Completed"


class Hostile:
    """As a LocalProxy without its context: every look at it raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("outside of its context")


@pytest.mark.parametrize(
    "value", [object(), Hostile(), {"a": Raw(b"{")}, Raw(b"")], ids=["object", "hostile", "broken raw", "empty raw"]
)
async def test_result_without_a_json_form(autojump_clock: MockClock, value: object) -> None:
    @handler(max_retries=5)
    async def work(job: JobContext) -> Any:
        return value

    job = await run(work)
    assert (job.status, job.attempt) == ("Failed", 1)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("RESULT_NOT_ENCODABLE", False)


async def test_result_that_contains_itself(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> Any:
        endless: list[Any] = []
        endless.append(endless)
        return endless

    job = await run(work)
    assert job.error is not None
    assert job.error.code == "RESULT_NOT_ENCODABLE"


@pytest.mark.parametrize(("length", "status"), [(8, "Completed"), (9, "Failed")])
async def test_result_size_is_bounded(autojump_clock: MockClock, length: int, status: str) -> None:
    @handler()
    async def work(job: JobContext) -> str:
        return "x" * length

    job = await run(work, Config(max_result_bytes=10))
    assert job.status == status
    if status == "Failed":
        assert job.error is not None
        assert (job.error.code, job.error.retryable) == ("RESULT_TOO_LARGE", False)
        assert "11 bytes, more than the 10" in job.error.message


class Old(msgspec.Struct):
    a: int


class New(msgspec.Struct):
    b: int


async def test_stored_body_that_no_longer_fits(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    called = False

    async def old(job: JobContext, body: Old) -> None: ...

    async def new(job: JobContext, body: New) -> None:
        nonlocal called
        called = True

    async with opened(store, handler()(old), config=Config(max_concurrent_jobs=0)) as runtime:
        job = await runtime.submit("work", Old(1))
    async with opened(store, handler()(new)) as runtime:
        ended = await runtime.wait(job.id)
    assert not called
    assert ended.error is not None
    assert (ended.error.code, ended.error.type, ended.error.retryable) == ("PAYLOAD_MISMATCH", "InvalidPayload", False)
    assert "stored request does not fit" in ended.error.message


async def failing_times(runtime: Runtime, begun: list[float]) -> Job:
    job = await runtime.wait((await runtime.submit("work")).id)
    assert len(begun) == 5
    return job


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.8), (0.5, 1.0), (0.999, 1.1996)])
async def test_backoff_doubles_up_to_the_cap_with_jitter(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, draw: float, factor: float
) -> None:
    begun: list[float] = []

    @handler(max_retries=4)
    async def work(job: JobContext) -> None:
        begun.append(trio.current_time())
        raise ValueError

    async with opened(None, work, config=Config(retry_base_seconds=2, retry_max_seconds=10)) as runtime:
        monkeypatch.setattr(runtime._directory, "random", lambda: draw)
        job = await failing_times(runtime, begun)
    waits = [later - earlier for earlier, later in pairwise(begun)]
    assert waits == pytest.approx([factor * seconds for seconds in (2, 4, 8, 10)], abs=0.01)
    assert (job.status, job.retry_count, job.attempt) == ("Failed", 4, 5)


def test_backoff_of_an_impossible_retry() -> None:
    assert backoff_ms(5000, base_seconds=0, max_seconds=300, random=0.5) == 0
    with pytest.raises(ValueError, match="count from 1"):
        backoff_ms(0, base_seconds=1, max_seconds=1, random=0)


async def test_error_is_kept_while_waiting_and_null_after_success(autojump_clock: MockClock) -> None:
    @handler()
    async def work(job: JobContext) -> int:
        await job.progress(10)
        if job.attempt < 3:
            raise ValueError
        return job.attempt

    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        waiting = await runtime.get(job.id)
        assert waiting.status == "Scheduled"
        assert waiting.error is not None
        ended = await runtime.wait(job.id)
        assert (ended.status, ended.error, ended.attempt, ended.retry_count) == ("Completed", None, 3, 2)
        assert runtime.stats().retried == {"work": 2}


async def test_retry_by_hand_gives_the_retries_back(autojump_clock: MockClock) -> None:
    @handler(max_retries=1)
    async def work(job: JobContext) -> int:
        if job.attempt <= 3:
            raise ValueError
        return job.attempt

    async with opened(None, work) as runtime:
        job = await runtime.wait((await runtime.submit("work")).id)
        assert (job.status, job.attempt) == ("Failed", 2)
        again = await runtime.retry(job.id)
        assert (again.status, again.retry_count, again.error, again.completed_ms) == ("Queued", 0, None, None)
        ended = await runtime.wait(job.id)
        assert (ended.status, ended.attempt, ended.retry_count) == ("Completed", 4, 1)


@pytest.mark.parametrize(
    ("location", "status", "expected"),
    [
        (lambda job, value: f"/things/{value}", "Completed", "/things/7"),
        (lambda job, value: None, "Completed", None),
        (lambda job, value: 5, "Failed", None),
        (lambda job, value: 1 / 0, "Failed", None),
    ],
    ids=["text", "none", "no text", "raises"],
)
async def test_location_of_what_was_created(
    autojump_clock: MockClock, location: Any, status: str, expected: str | None
) -> None:
    @handler(location=location)
    async def work(job: JobContext) -> int:
        return 7

    job = await run(work)
    assert (job.status, job.location) == (status, expected)


BROKEN_TEXT = "name \udcff of a file"


@pytest.mark.parametrize("how", ["JobFailed", "exposed", "log", "progress", "location"], ids=lambda how: f"in {how}")
async def test_text_that_has_no_utf8_form_ends_no_runtime(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As ``os.listdir`` gives for a file name of other bytes."""
    # pytest-xdist cannot carry such text from its workers, and the log is part of a test's report.
    monkeypatch.setattr(logging.getLogger("callboard.jobs"), "disabled", True)

    @handler(location=(lambda job, value: BROKEN_TEXT) if how == "location" else None)
    async def work(job: JobContext) -> None:
        if how == "log":
            job.log("info", BROKEN_TEXT)
        elif how == "progress":
            await job.progress(message=BROKEN_TEXT)
        elif how == "JobFailed":
            raise JobFailed("BAD_NAME", BROKEN_TEXT)
        elif how == "exposed":
            raise ValueError(BROKEN_TEXT)

    async with opened(None, work, config=Config(max_retries=0, expose_error_messages=True)) as runtime:
        job = await runtime.wait((await runtime.submit("work")).id)
        events = await runtime._store.events(job.id, 0, 100)
    text = msgspec.json.encode((job, events)).decode()
    assert "name ? of a file" in text


async def test_job_failed_needs_a_code() -> None:
    for wrong in ("", None, 5):
        with pytest.raises(TypeError, match="needs a code such as"):
            JobFailed(wrong, "x")  # type: ignore[arg-type]


async def test_attempts_run_inside_around(autojump_clock: MockClock) -> None:
    from contextlib import asynccontextmanager

    seen: list[str] = []

    @asynccontextmanager
    async def around() -> Any:
        seen.append("in")
        yield
        seen.append("out")

    @handler()
    async def work(job: JobContext) -> None:
        seen.append("work")

    async with opened(None, work, around=around) as runtime:
        await runtime.wait((await runtime.submit("work")).id)
    assert seen == ["in", "work", "out"]


@pytest.mark.parametrize("cause", [None, KeyError("gone")], ids=["asked", "asked because"])
async def test_retry_that_was_asked_for_shows_a_traceback_only_for_its_cause(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, cause: Exception | None
) -> None:
    @handler(max_retries=0)
    async def work(job: JobContext) -> None:
        raise Retry from cause

    await run(work)
    (record,) = [record for record in caplog.records if record.name == "callboard.jobs"]
    assert (record.exc_info is not None) is (cause is not None)
