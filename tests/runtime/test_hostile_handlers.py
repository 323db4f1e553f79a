"""Handlers that do odd things: each ends its own attempt, and nothing else."""

import sys
import threading
from typing import Any

import pytest
import trio
from tests.runtime.kit import opened
from trio.testing import MockClock

from callboard.runtime import Config, Job, JobContext, JobFailed, ProcessJobContext, Retry
from callboard.runtime.context import Reports
from callboard.runtime.faults import Fault, Frame
from callboard.runtime.handlers import make_handler
from callboard.runtime.wire import NoJson


async def good(job: JobContext) -> int:
    await trio.sleep(1)
    return 1


async def end_of(function: Any, **options: Any) -> Job:
    """The job of ``function`` after its end; a job beside it, on the only other slot, has to complete."""
    config = Config(max_retries=0, max_concurrent_jobs=2, drain_seconds=3)
    handlers = make_handler("work", function, **options), make_handler("good", good)
    with trio.fail_after(4000):
        async with opened(None, *handlers, config=config) as runtime:
            job = await runtime.submit("work")
            neighbour = await runtime.submit("good")
            assert (await runtime.wait(neighbour.id, timeout_seconds=60)).status == "Completed"
            return await runtime.wait(job.id, timeout_seconds=3000)


async def a_cancelled() -> BaseException:
    kept: BaseException | None = None
    with trio.move_on_after(1):
        try:
            await trio.sleep(10)
        except trio.Cancelled as error:
            kept = error
            raise
    assert kept is not None
    return kept


async def test_a_cancelled_that_was_kept_is_a_failure(autojump_clock: MockClock) -> None:
    async def work(job: JobContext) -> None:
        raise await a_cancelled()

    job = await end_of(work)
    assert job.status == "Failed"
    assert job.error is not None
    assert job.error.type == "Cancelled"


async def test_a_cancelled_that_was_kept_beside_another_error(autojump_clock: MockClock) -> None:
    async def work(job: JobContext) -> None:
        raise BaseExceptionGroup("both", [await a_cancelled(), ValueError("own")])

    job = await end_of(work)
    assert job.error is not None
    assert job.error.type == "ValueError"


async def test_a_cancel_does_not_spread_through_what_two_jobs_share(autojump_clock: MockClock) -> None:
    """As a cache does that remembers how its first loader ended."""
    ended = trio.Event()
    errors: list[BaseException] = []
    loading: list[str] = []

    async def work(job: JobContext) -> None:
        if loading:
            await ended.wait()
            raise errors[0]
        loading.append(job.id)
        try:
            await trio.sleep(100)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            ended.set()

    async with opened(None, make_handler("work", work), config=Config(max_retries=0)) as runtime:
        first = await runtime.submit("work")
        await trio.sleep(1)
        second = await runtime.submit("work")
        await trio.sleep(1)
        await runtime.cancel(first.id)
        assert (await runtime.wait(first.id, timeout_seconds=60)).status == "Canceled"
        assert (await runtime.wait(second.id, timeout_seconds=60)).status == "Failed"
        assert runtime.stats().running == 0


async def test_generator_exit(autojump_clock: MockClock) -> None:
    async def work(job: JobContext) -> None:
        raise GeneratorExit

    assert (await end_of(work)).status == "Failed"


class NoInit(JobFailed):
    def __init__(self, why: str) -> None:
        Exception.__init__(self, why)


class NumberCode(JobFailed):
    def __init__(self) -> None:
        super().__init__("X", "m")
        self.code = 404  # type: ignore[assignment]


class RetryNoInit(Retry):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "code", "attempts"),
    [
        (lambda: NoInit("x"), "HANDLER_ERROR", 1),
        (NumberCode, "404", 1),
        (RetryNoInit, "HANDLER_ERROR", 2),
    ],
    ids=["no init", "number as code", "retry without init"],
)
async def test_subclasses_that_forget(autojump_clock: MockClock, make: Any, code: str, attempts: int) -> None:
    async def work(job: JobContext) -> None:
        raise make()

    job = await end_of(work, max_retries=1)
    assert job.error is not None
    assert (job.status, job.error.code, job.attempt) == ("Failed", code, attempts)


async def test_a_retry_after_longer_than_time_itself(autojump_clock: MockClock) -> None:
    async def work(job: JobContext) -> None:
        raise Retry(1e306)

    job = await end_of(work, max_retries=1)
    assert job.status == "Scheduled"
    assert job.due_ms is not None


class Float(float):
    """As numpy's float64."""


class Text(str):
    """As a translated text that is looked up late."""


async def test_subclasses_of_plain_types(autojump_clock: MockClock) -> None:
    async def work(job: JobContext) -> None:
        job.log(Text("info"), Text("x"))
        await job.progress(Float(12.5), Text("u"))
        await trio.sleep(1)

    job = await end_of(work)
    assert job.status == "Completed"
    assert job.progress is not None
    assert job.progress.percent == 12.5


def test_no_line_is_lost_between_a_thread_and_the_loop() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        reports = Reports(lambda: None)
        lines = 20_000
        taken = 0

        def write() -> None:
            for _ in range(lines):
                while len(reports._logs) > 500:
                    pass
                reports.add_log("info", "x")

        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            taken += len(reports.take()[0])
        writer.join()
        assert taken + len(reports.take()[0]) == lines
    finally:
        sys.setswitchinterval(interval)


class Leaving:
    """Has a JSON form, until someone asks for it."""

    @property
    def model_dump_json(self) -> None:
        raise SystemExit(3)


async def test_exit_while_the_result_is_encoded(autojump_clock: MockClock) -> None:
    async def work(job: JobContext) -> Any:
        return Leaving()

    job = await end_of(work)
    assert job.error is not None
    assert (job.error.code, job.error.type) == ("RESULT_NOT_ENCODABLE", "SystemExit")


async def test_exit_while_the_location_is_asked_for(autojump_clock: MockClock) -> None:
    async def work(job: JobContext) -> None:
        pass

    def location(job: Job, value: Any) -> str:
        sys.exit(3)

    job = await end_of(work, location=location)
    assert job.error is not None
    assert (job.error.code, job.error.type) == ("HANDLER_ERROR", "SystemExit")


async def test_a_fault_from_a_worker_process_that_no_traceback_can_show(autojump_clock: MockClock) -> None:
    fault = Fault(kinds=(), module="m", name="N", text="", frames=(Frame("f", "g", 2**70),))

    class Hostile:
        async def run(self, *_: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return NoJson(fault)

    async with opened(None, make_handler("work", in_process, process=True), processes=Hostile()) as runtime:
        job = await runtime.wait((await runtime.submit("work")).id, timeout_seconds=60)
    assert job.error is not None
    assert job.error.code == "RESULT_NOT_ENCODABLE"


def in_process(job: ProcessJobContext) -> None:
    pass
