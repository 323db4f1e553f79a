"""Log records say which job they are about: the runtime's own, and a handler's through the filter."""

import logging
from collections.abc import Iterator

import pytest
import trio
from tests.runtime.kit import FaultyStore, handler, opened
from trio.testing import MockClock

from callboard.runtime import Config, Job, JobContext, JobLogFilter, ThreadJobContext
from callboard.stores.memory import MemoryDatabase, MemoryStore

Fields = tuple[object, object, object, object]


def fields(record: logging.LogRecord) -> Fields:
    return tuple(getattr(record, name, "missing") for name in ("job_id", "job_name", "attempt", "worker"))  # type: ignore[return-value]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What a handler with the filter is given of everything that is logged."""
    taken: list[logging.LogRecord] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            taken.append(record)

    sink = Sink()
    sink.addFilter(JobLogFilter())
    logging.getLogger().addHandler(sink)
    yield taken
    logging.getLogger().removeHandler(sink)


@handler(max_retries=1)
async def failing(job: JobContext) -> None:
    raise OSError


async def test_the_end_of_every_attempt_names_its_job(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(None, failing, handler("well")(well)) as runtime:
        failed, done = await runtime.submit("work"), await runtime.submit("well")
        for job in (failed, done):
            await runtime.wait(job.id)
        of_jobs = {(record.levelname, *fields(record)) for record in caplog.records if record.name == "callboard.jobs"}
        assert of_jobs == {
            ("WARNING", failed.id, "work", 1, runtime.worker),
            ("ERROR", failed.id, "work", 2, runtime.worker),
            ("DEBUG", done.id, "well", 1, runtime.worker),
        }


async def well(job: JobContext) -> None: ...


@handler("sleepy")
async def sleepy(job: JobContext) -> None:
    await trio.sleep(100)


async def test_a_lost_lease_names_its_job_on_both_sides(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    database = MemoryDatabase()
    store = FaultyStore(database)
    async with opened(store, sleepy) as owner:
        job = await owner.submit("sleepy")
        await trio.sleep(1)
        async with opened(FaultyStore(database), sleepy, seed=2) as other:
            store.fail()
            await other.wait(job.id)
            store.mend()
            assert one(caplog, "the lease was lost") == (job.id, "sleepy", 1, owner.worker)
            assert one(caplog, "lost its worker") == (job.id, "sleepy", 1, None)


async def test_an_outcome_that_cannot_be_stored_and_code_that_will_not_stop_name_their_job(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    @handler()
    async def stubborn(job: JobContext) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(50)

    store = FaultyStore()
    async with opened(store, stubborn, config=Config(drain_seconds=5, lease_seconds=500)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        store.fail("commit")
    assert one(caplog, "has not stopped") == (job.id, "work", 1, runtime.worker)
    assert one(caplog, "is not stored") == (job.id, "work", 1, runtime.worker)


def one(caplog: pytest.LogCaptureFixture, text: str) -> Fields:
    (record,) = [record for record in caplog.records if text in record.getMessage()]
    return fields(record)


async def test_what_a_handler_logs_is_its_jobs(autojump_clock: MockClock, records: list[logging.LogRecord]) -> None:
    async def helper() -> None:
        await trio.sleep(1)
        logging.getLogger("app").warning("in a task")

    @handler()
    async def work(job: JobContext) -> None:
        logging.getLogger("app").warning("in the handler")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(helper)

    logging.getLogger("app").warning("before")
    async with opened(None, work) as runtime:
        jobs: list[Job] = [await runtime.submit("work") for _ in range(3)]
        for job in jobs:
            await runtime.wait(job.id)
        logging.getLogger("app").warning("beside")
        told = [(record.getMessage(), *fields(record)) for record in records if record.name == "app"]
        assert sorted(told[1:-1]) == sorted(
            (text, job.id, "work", 1, runtime.worker) for job in jobs for text in ("in the handler", "in a task")
        )
        assert [told[0], told[-1]] == [(text, None, None, None, None) for text in ("before", "beside")]


async def test_what_a_thread_logs_is_its_jobs(records: list[logging.LogRecord]) -> None:
    @handler()
    def work(job: ThreadJobContext) -> None:
        logging.getLogger("app").warning("in a thread")

    async with opened(MemoryStore(), work) as runtime:
        job = await runtime.submit("work")
        await runtime.wait(job.id, timeout_seconds=10)
        assert [fields(record) for record in records if record.name == "app"] == [(job.id, "work", 1, runtime.worker)]


async def test_the_filter_leaves_what_a_record_says_itself(
    autojump_clock: MockClock, records: list[logging.LogRecord]
) -> None:
    @handler()
    async def work(job: JobContext) -> None:
        logging.getLogger("app").warning("about another", extra={"job_id": "other"})

    async with opened(None, work) as runtime:
        await runtime.wait((await runtime.submit("work")).id)
        assert [fields(record)[:3] for record in records if record.name == "app"] == [("other", "work", 1)]
