"""The history of attempts as the runtime writes it: one record for each attempt, whatever ends it, and whoever races."""

import logging
import random
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from tests.runtime.kit import FaultyStore, handler, hard_stop, opened
from trio.testing import MockClock

from callboard.runtime import (
    AttemptRecord,
    Config,
    JobContext,
    JobFailed,
    JobNotFound,
    Retry,
    Runtime,
    ThreadJobContext,
)
from callboard.runtime.runtime import open_runtime
from callboard.stores.memory import MemoryDatabase
from callboard.testing import open_virtual_runtime

CONFIG = Config(retry_base_seconds=1, drain_seconds=10)


def outcomes(records: Any) -> list[tuple[int, str]]:
    return [(record.attempt, record.outcome.value) for record in records]


async def ended(runtime: Runtime, job_id: str) -> list[AttemptRecord]:
    """The history of a job that ends by itself."""
    with trio.fail_after(10_000):
        await runtime.wait(job_id)
    return list(await runtime.attempts(job_id))


@handler(max_retries=2)
async def third_time(job: JobContext) -> str:
    await trio.sleep(5)
    if job.attempt < 3:
        try:
            raise KeyError("x")
        except KeyError as error:
            raise ValueError(f"attempt {job.attempt}") from error
    return "done"


async def test_failures_and_a_success(autojump_clock: MockClock) -> None:
    async with opened(None, third_time, config=CONFIG) as runtime:
        job = await runtime.submit("work")
        assert await runtime.attempts(job.id) == ()
        records = await ended(runtime, job.id)
        assert outcomes(records) == [(1, "Failed"), (2, "Failed"), (3, "Completed")]
        for record in records:
            assert record.worker == runtime.worker
            assert 5_000 <= record.ended_ms - record.started_ms < 5_100
        for number, record in enumerate(records[:2], 1):
            assert [(link.relation, link.type) for link in record.exceptions] == [
                ("raised", "ValueError"),
                ("cause", "KeyError"),
            ]
            assert record.exceptions[0].message == f"attempt {number}"
            assert record.exceptions[0].traceback.startswith(f'  File "{__file__}"'), "callboard's own frames are cut"
            assert record.error is not None
            assert (record.error.code, record.error.type) == ("HANDLER_ERROR", "ValueError")
            assert "attempt" not in record.error.message
        assert (records[2].error, records[2].exceptions) == (None, ())
        with pytest.raises(JobNotFound):
            await runtime.attempts("01234567-89ab-7def-8123-456789abcdef")


async def test_an_attempt_that_runs_has_no_record_yet(autojump_clock: MockClock) -> None:
    async with opened(None, third_time, config=CONFIG) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        assert (await runtime.get(job.id)).attempt == 1
        assert await runtime.attempts(job.id) == ()
        await trio.sleep(5)
        assert outcomes(await runtime.attempts(job.id)) == [(1, "Failed")]


async def test_a_retry_by_hand_keeps_the_history_and_numbers_never_repeat(autojump_clock: MockClock) -> None:
    @handler(max_retries=1)
    async def work(job: JobContext) -> None:
        raise JobFailed("NO", "no", retryable=True)

    async with opened(None, work, config=CONFIG) as runtime:
        job = await runtime.submit("work")
        assert outcomes(await ended(runtime, job.id)) == [(1, "Failed"), (2, "Failed")]
        await runtime.retry(job.id)
        records = await ended(runtime, job.id)
        assert outcomes(records) == [(1, "Failed"), (2, "Failed"), (3, "Failed"), (4, "Failed")]
        assert [record.error.code for record in records if record.error] == ["NO"] * 4


async def test_the_newest_are_kept(autojump_clock: MockClock) -> None:
    @handler(max_retries=9)
    async def work(job: JobContext) -> None:
        raise Retry(after_seconds=1)

    async with opened(None, work, config=replace(CONFIG, max_attempts_per_job=3)) as runtime:
        job = await runtime.submit("work")
        records = await ended(runtime, job.id)
        assert outcomes(records) == [(8, "Failed"), (9, "Failed"), (10, "Failed")]


async def test_a_cancel_and_what_was_raised_on_the_way_out(autojump_clock: MockClock) -> None:
    @handler("calm")
    async def calm(job: JobContext) -> None:
        await trio.sleep_forever()

    @handler("upset")
    async def upset(job: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("cannot clean up")

    async with opened(None, calm, upset, config=CONFIG) as runtime:
        for name, chain in (("calm", []), ("upset", ["OSError", "trio.Cancelled"])):
            job = await runtime.submit(name)
            await trio.sleep(1)
            await runtime.cancel(job.id)
            (record,) = await ended(runtime, job.id)
            assert outcomes([record]) == [(1, "Canceled")]
            assert [link.type for link in record.exceptions] == chain
            assert record.error is None
        queued = await runtime.submit("calm", delay_seconds=100)
        await runtime.cancel(queued.id)
        assert await runtime.attempts(queued.id) == (), "it never began"


async def test_a_time_that_is_over(autojump_clock: MockClock) -> None:
    @handler(max_retries=0, timeout_seconds=3)
    async def work(job: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("cannot clean up")

    async with opened(None, work, config=CONFIG) as runtime:
        job = await runtime.submit("work")
        (record,) = await ended(runtime, job.id)
        assert record.error is not None
        assert record.error.code == "TIMEOUT"
        assert record.exceptions[0].message == "cannot clean up"


async def test_a_release_at_the_drain(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()

    @handler()
    async def work(job: JobContext) -> None:
        if job.attempt == 1:
            await trio.sleep_forever()

    async with opened(FaultyStore(database), work, config=CONFIG) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
    async with opened(FaultyStore(database), work, config=CONFIG, seed=2) as later:
        records = await ended(later, job.id)
        assert outcomes(records) == [(1, "Released"), (2, "Completed")]
        assert [record.worker for record in records] == [runtime.worker, later.worker]


async def test_a_lost_lease(autojump_clock: MockClock) -> None:
    """The one who lost it is told so late that it has an outcome of its own by then: that leaves nothing."""
    database = MemoryDatabase()
    store = FaultyStore(database)
    config = replace(CONFIG, lease_seconds=9)

    @handler()
    async def work(job: JobContext) -> str:
        if job.attempt == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(30)
        return "done"

    async with opened(FaultyStore(database), work, config=replace(config, max_concurrent_jobs=0), seed=2) as reaper:
        async with opened(store, work, config=config) as losing:
            job = await reaper.submit("work")
            await trio.sleep(1)
            store.fail("extend", "commit", "lapse", "claim")
            await trio.sleep(20)
            assert outcomes(await reaper.attempts(job.id)) == [(1, "Lost")]
            store.mend()
            records = await ended(reaper, job.id)
            await trio.sleep(60)
            assert list(await reaper.attempts(job.id)) == records
        assert outcomes(records) == [(1, "Lost"), (2, "Completed")]
        assert [record.worker for record in records] == [losing.worker] * 2


async def test_a_kill(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    store = FaultyStore(database)
    config = replace(CONFIG, lease_seconds=9, max_lost_leases=0)
    released = trio.Event()

    @handler()
    async def work(job: JobContext) -> None:
        await released.wait()

    async with opened(FaultyStore(database), work, config=replace(config, max_concurrent_jobs=0), seed=2) as reaper:
        with trio.move_on_after(60):
            async with opened(store, work, config=config) as dying:
                job = await reaper.submit("work")
                await trio.sleep(1)
                hard_stop(dying, store)
        (record,) = await ended(reaper, job.id)
        assert outcomes([record]) == [(1, "Lost")]
        assert record.error is not None
        assert record.error.code == "WORKER_LOST"
        assert (await reaper.get(job.id)).error == record.error


async def test_an_answer_that_was_lost_leaves_one_record(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    @handler(max_retries=1)
    async def work(job: JobContext) -> None:
        await job.progress(50)
        if job.attempt == 1:
            store.fail("commit", seconds=3, after=True)
        raise ValueError("v")

    async with opened(store, work, config=CONFIG) as runtime:
        job = await runtime.submit("work")
        assert outcomes(await ended(runtime, job.id)) == [(1, "Failed"), (2, "Failed")]


async def test_a_failure_that_a_cancel_overtakes_is_recorded_as_it_ends(autojump_clock: MockClock) -> None:
    """The failure is on its way when the other runtime's cancel is stored: the store decides it again, and its record too."""
    database = MemoryDatabase()
    slow = FaultyStore(database)

    @handler(max_retries=5)
    async def work(job: JobContext) -> None:
        await trio.sleep(5)
        raise ValueError("v")

    async with (
        opened(slow, work, config=CONFIG) as running,
        opened(FaultyStore(database), work, config=replace(CONFIG, max_concurrent_jobs=0), seed=2) as other,
    ):
        job = await other.submit("work")
        await trio.sleep(1)
        # Its news come late, so it does not know of the cancel when it decides.
        slow.slow_seconds["wait_news"] = 60
        slow.slow_seconds["get"] = 60
        await trio.sleep(3.5)
        await other.cancel(job.id)
        (record,) = await ended(other, job.id)
        assert running.worker == record.worker
        assert outcomes([record]) == [(1, "Canceled")]
        assert [link.message for link in record.exceptions] == ["v"]
        assert record.error is not None


async def test_a_plain_function_and_frames_of_threads(autojump_clock: None) -> None:
    def work(job: ThreadJobContext) -> None:
        raise ValueError("in a thread")

    async with open_runtime(FaultyStore(), [handler(max_retries=0)(work)], CONFIG, random=random.Random(1)) as runtime:
        job = await runtime.submit("work")
        (record,) = await ended(runtime, job.id)
        assert record.exceptions[0].traceback.startswith(f'  File "{__file__}"')


async def test_what_fails_before_the_handler_has_a_chain_too(autojump_clock: MockClock) -> None:
    @handler(max_retries=0)
    async def work(job: JobContext) -> object:
        return object()

    async with opened(None, work, config=CONFIG) as runtime:
        job = await runtime.submit("work")
        (record,) = await ended(runtime, job.id)
        assert record.error is not None
        assert record.error.code == "RESULT_NOT_ENCODABLE"
        assert record.exceptions
        assert record.exceptions[0].traceback


async def test_virtual_runtimes_have_it_too(autojump_clock: MockClock) -> None:
    async with open_virtual_runtime([third_time], CONFIG) as virtual:
        job = await virtual.submit("work")
        await virtual.drain()
        assert len(await virtual.attempts(job.id)) == 3


class BadText(Exception):
    def __str__(self) -> str:
        raise SystemExit


class BadGroup(ExceptionGroup[Exception]):
    def derive(self, _: Any) -> Any:
        raise RuntimeError("no derive")


class BadCode(JobFailed):
    code = property(lambda self: 1 / 0)

    def __init__(self) -> None:
        pass


class BadRetry(Retry):
    after_seconds = "soon"  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


class BadNotes(Exception):
    __notes__ = property(lambda self: 1 / 0)


class BadClass(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.parametrize("kind", [BadText, BadGroup, BadCode, BadRetry, BadNotes, BadClass])
@pytest.mark.parametrize("expose", [False, True])
async def test_an_exception_that_raises_when_it_is_looked_at_ends_its_attempt_only(
    kind: Any, expose: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    @handler("bad", max_retries=0)
    async def bad(job: JobContext) -> None:
        raise BadGroup("bad", [ValueError("v")]) if kind is BadGroup else kind()

    @handler("good")
    async def good(job: JobContext) -> int:
        return 1

    caplog.set_level(logging.CRITICAL)
    async with opened(None, bad, good, config=replace(CONFIG, expose_error_messages=expose)) as runtime:
        job = await runtime.submit("bad")
        (record,) = await ended(runtime, job.id)
        assert outcomes([record]) == [(1, "Failed")]
        assert record.exceptions[0].type.endswith(kind.__name__)
        assert "in bad" in record.exceptions[0].traceback
        later = await runtime.submit("good")
        assert (await runtime.wait(later.id)).status == "Completed"
