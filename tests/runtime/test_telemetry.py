"""What a runtime tells of its work: exact durations on virtual time, everything once, nothing twice."""

import logging
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from tests.runtime.kit import FaultyStore, handler, hard_stop, opened
from trio.testing import MockClock

from callboard.runtime import Config, Handler, Job, JobContext, JobFailed, Retry, Runtime, StoreUnavailable, Telemetry
from callboard.runtime.core.history import AttemptOutcome
from callboard.stores.memory import MemoryDatabase

IDLE = Config(max_concurrent_jobs=0)
WAKE_SECONDS = 0.002
"""Between the time that a job is due and its claim: the store counts whole milliseconds."""


class Recorder(Telemetry):
    """Writes everything down."""

    def __init__(self) -> None:
        self.submits: list[str] = []
        self.claims: list[tuple[str, float]] = []
        self.starts: list[tuple[str, int]] = []
        self.attempts: list[tuple[str, int, str, float]] = []
        self.retries: list[str] = []
        self.ends: list[tuple[str, str, float | None]] = []
        self.lost: list[tuple[str, str]] = []
        self.calls: list[tuple[str, float, int, type[Exception] | None]] = []

    def submitted(self, job: Job) -> None:
        self.submits.append(job.id)

    def claimed(self, job: Job, queue_seconds: float) -> None:
        self.claims.append((job.id, queue_seconds))

    def attempt_started(self, job: Job) -> None:
        self.starts.append((job.id, job.attempt))

    def attempt_ended(self, job: Job, outcome: AttemptOutcome, handler_seconds: float) -> None:
        self.attempts.append((job.id, job.attempt, outcome, handler_seconds))

    def retried(self, job: Job) -> None:
        self.retries.append(job.id)

    def ended(self, job: Job, processing_seconds: float | None) -> None:
        self.ends.append((job.id, job.status, processing_seconds))

    def lease_lost(self, job: Job) -> None:
        self.lost.append((job.id, job.status))

    def store_called(self, verb: str, seconds: float, size: int, error: Exception | None) -> None:
        self.calls.append((verb, seconds, size, None if error is None else type(error)))

    def waits(self, job: Job) -> list[float]:
        return [seconds for job_id, seconds in self.claims if job_id == job.id]

    def outcomes(self, job: Job) -> list[tuple[str, float]]:
        return [(outcome, seconds) for job_id, _, outcome, seconds in self.attempts if job_id == job.id]

    def store_calls(self, verb: str) -> list[tuple[float, int, type[Exception] | None]]:
        return [tuple(rest) for called, *rest in self.calls if called == verb]  # type: ignore[misc]


def about(seconds: float) -> Any:
    """Sums of floating-point times."""
    return pytest.approx(seconds)


def soon(seconds: float) -> Any:
    """So many seconds, or a wake-up later."""
    return pytest.approx(seconds + WAKE_SECONDS / 2, abs=WAKE_SECONDS / 2 + 1e-6)


def sleeping(name: str = "work", **options: Any) -> Handler:
    """A handler that sleeps for as many seconds as it is told."""

    @handler(name, **options)
    async def work(job: JobContext, seconds: float) -> None:
        await trio.sleep(seconds)

    return work


async def test_each_duration_has_one_meaning(autojump_clock: MockClock) -> None:
    """Queue: ready to claim. Handler: its code. Processing: first claim to end, with the wait for the retry."""
    told = Recorder()

    @handler("twice", max_retries=1)
    async def twice(job: JobContext) -> None:
        await trio.sleep(3 if job.attempt == 1 else 2)
        if job.attempt == 1:
            raise Retry(after_seconds=10)

    async with opened(None, sleeping(), twice, config=Config(max_concurrent_jobs=1), telemetry=told) as runtime:
        first = await runtime.submit("work", 7)
        job = await runtime.submit("twice")
        await runtime.wait(job.id)
        assert told.submits == [first.id, job.id]
        assert told.waits(first) == [0]
        assert told.waits(job) == [7, soon(0)]
        assert told.outcomes(job) == [("Failed", about(3)), ("Completed", about(2))]
        assert told.ends == [(first.id, "Completed", 7), (job.id, "Completed", soon(3 + 10 + 2))]
        assert told.retries == [job.id]


async def test_a_delayed_job_waits_from_when_it_is_due(autojump_clock: MockClock) -> None:
    told = Recorder()
    async with opened(None, sleeping(), telemetry=told) as runtime:
        job = await runtime.submit("work", 0, delay_seconds=60)
        await runtime.wait(job.id)
        assert told.waits(job) == [soon(0)]
        assert told.ends == [(job.id, "Completed", 0)]


async def test_after_a_retry_by_hand_both_times_begin_again(autojump_clock: MockClock) -> None:
    told = Recorder()

    @handler(max_retries=0)
    async def work(job: JobContext) -> None:
        await trio.sleep(5)
        if job.attempt == 1:
            raise OSError

    async with opened(None, work, telemetry=told) as runtime:
        job = await runtime.submit("work")
        await runtime.wait(job.id)
        await trio.sleep(1000)
        await runtime.retry(job.id)
        await runtime.wait(job.id)
        assert told.waits(job) == [0, 0]
        assert told.ends == [(job.id, "Failed", 5), (job.id, "Completed", 5)]
        assert told.retries == [], "a retry by hand follows no failed attempt"


async def test_a_handlers_failure_is_told_once(autojump_clock: MockClock) -> None:
    told = Recorder()

    @handler(max_retries=2)
    async def work(job: JobContext) -> None:
        raise JobFailed("NO", "no", retryable=True)

    async with opened(None, work, telemetry=told) as runtime:
        job = await runtime.submit("work")
        await runtime.wait(job.id)
        assert [outcome for outcome, _ in told.outcomes(job)] == ["Failed"] * 3
        assert told.starts == [(job.id, 1), (job.id, 2), (job.id, 3)]
        assert told.retries == [job.id] * 2
        assert [status for _, status, _ in told.ends] == ["Failed"]


async def test_a_new_submission_asks_for_nothing_that_is_not_there(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """No lookup before the insert: no error that is none, no warning."""
    caplog.set_level(logging.INFO)
    told = Recorder()
    async with opened(None, sleeping(), config=IDLE, telemetry=told) as runtime:
        await trio.testing.wait_all_tasks_blocked()
        before = len(told.calls)
        await runtime.submit("work", 1, key="k")
        during = [(verb, error) for verb, _, _, error in told.calls[before:]]
        assert during == [("commit", None)]
    assert caplog.records == []


async def test_a_repeat_is_no_submission(autojump_clock: MockClock) -> None:
    told = Recorder()
    async with opened(None, sleeping(), config=IDLE, telemetry=told) as runtime:
        job = await runtime.submit("work", 1, key="k")
        await runtime.submit("work", 1, key="k")
        assert told.submits == [job.id]
        assert runtime.stats().submitted == {"work": 1}


async def test_canceled_jobs(autojump_clock: MockClock) -> None:
    told = Recorder()
    async with opened(None, sleeping(), config=Config(max_concurrent_jobs=1), telemetry=told) as runtime:
        running, waiting = await runtime.submit("work", 100), await runtime.submit("work", 100)
        await trio.sleep(4)
        for job in (waiting, running):
            await runtime.cancel(job.id)
            await runtime.wait(job.id)
        assert told.ends == [(waiting.id, "Canceled", None), (running.id, "Canceled", 4)]
        assert told.attempts == [(running.id, 1, "Canceled", about(4))]


async def test_what_the_drain_hands_back_is_released(autojump_clock: MockClock) -> None:
    told, database = Recorder(), MemoryDatabase()
    config = Config(drain_seconds=6)
    async with opened(FaultyStore(database), sleeping(), config=config, telemetry=told) as runtime:
        job = await runtime.submit("work", 100)
        await trio.sleep(1)
    assert told.attempts == [(job.id, 1, "Released", about(1 + 4))]
    assert (told.ends, told.lost) == ([], [])
    async with opened(FaultyStore(database), sleeping(), telemetry=told, seed=2):
        await trio.testing.wait_all_tasks_blocked()
        assert told.waits(job)[1] == 0, "it was ready again when it was handed back"


async def test_a_lost_lease_is_told_by_who_takes_the_job_back(autojump_clock: MockClock) -> None:
    lonely, other, database = Recorder(), Recorder(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(store, sleeping(), telemetry=lonely) as owner:
        job = await owner.submit("work", 50)
        await trio.sleep(1)
        async with opened(FaultyStore(database), sleeping(), seed=2, telemetry=other) as rescuer:
            store.fail()
            ended = await rescuer.wait(job.id)
            store.mend()
            await trio.sleep(5)
            assert (ended.status, ended.attempt) == ("Completed", 2)
            assert (lonely.lost, other.lost) == ([], [(job.id, "Queued")])
            assert [outcome for outcome, _ in lonely.outcomes(job)] == ["Lost"]
            assert other.outcomes(job) == [("Completed", about(50))]
            # From the first claim, whoever made it; it followed the submission at once.
            assert ended.completed_ms is not None
            assert lonely.ends == []
            assert other.ends == [(job.id, "Completed", (ended.completed_ms - job.created_ms) / 1000)]
            assert rescuer.stats().lost_leases == 1


async def test_a_job_that_loses_its_workers_is_ended_by_who_takes_it_back(autojump_clock: MockClock) -> None:
    other, database = Recorder(), MemoryDatabase()
    store, poison = FaultyStore(database), sleeping(max_lost_leases=0)
    async with opened(store, poison) as owner:
        job = await owner.submit("work", 500)
        await trio.sleep(1)
        async with opened(FaultyStore(database), poison, seed=2, telemetry=other, config=IDLE) as reaper:
            store.fail()
            ended = await reaper.wait(job.id)
            assert ended.error is not None
            assert ended.error.code == "WORKER_LOST"
            assert other.lost == [(job.id, "Failed")]
            assert [(job_id, status) for job_id, status, _ in other.ends] == [(job.id, "Failed")]
            assert reaper.stats().finished == {("work", "Failed"): 1}
            store.mend()


async def test_two_runtimes_on_one_store_tell_nothing_twice(autojump_clock: MockClock) -> None:
    front, back, database = Recorder(), Recorder(), MemoryDatabase()
    async with opened(FaultyStore(database), sleeping(), config=IDLE, telemetry=front) as asking:
        async with opened(FaultyStore(database), sleeping(), seed=2, telemetry=back) as working:
            jobs = [await asking.submit("work", 1) for _ in range(5)]
            for job in jobs:
                await asking.wait(job.id)
            await trio.sleep(2)
            ids = sorted(job.id for job in jobs)
            assert (sorted(front.submits), back.submits) == (ids, [])
            assert (front.claims, len(back.claims)) == ([], 5)
            assert (front.ends, sorted(job_id for job_id, _, _ in back.ends)) == ([], ids)
            assert (asking.stats().submitted, asking.stats().finished) == ({"work": 5}, {})
            assert (working.stats().submitted, working.stats().finished) == ({}, {("work", "Completed"): 5})


async def test_every_call_of_the_store_is_timed(autojump_clock: MockClock) -> None:
    told, store = Recorder(), FaultyStore()
    async with opened(store, sleeping(), telemetry=told) as runtime:
        store.slow_seconds = {"commit": 0.25, "get": 0.5, "claim": 0.125}
        job = await runtime.submit("work", 1)
        assert told.store_calls("commit") == [(0.25, 1, None)]
        await runtime.get(job.id)
        assert told.store_calls("get") == [(0.5, 1, None)]
        await runtime.wait(job.id)
        assert (0.125, 1, None) in told.store_calls("claim")
        for call in (runtime.list, runtime.counts):
            await call()
        watched = {verb for verb, *_ in told.calls}
        assert watched >= {"commit", "claim", "get", "list", "counts", "next_due", "now_ms", "lapse", "prune"}
        assert "wait_news" not in watched, "it waits by its nature"


async def test_the_size_of_a_batch_is_told(autojump_clock: MockClock) -> None:
    told, store = Recorder(), FaultyStore()
    store.slow_seconds = {"commit": 0.1}
    async with opened(store, sleeping(), config=IDLE, telemetry=told) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.submit, "work", 0)
        await trio.sleep(0.05)
        for number in range(7):
            nursery.start_soon(runtime.submit, "work", number)
    assert [size for _, size, _ in told.store_calls("commit")] == [1, 7]


async def test_a_call_that_fails_is_told_with_its_error(autojump_clock: MockClock) -> None:
    told, store = Recorder(), FaultyStore()
    async with opened(store, sleeping(), config=IDLE, telemetry=told) as runtime:
        store.fail("commit", "wait_news")
        with pytest.raises(StoreUnavailable):
            await runtime.submit("work", 1)
        assert told.store_calls("commit") == [(0, 1, StoreUnavailable)]
        store.mend()
        await runtime.submit("work", 1)
        assert [error for _, _, error in told.store_calls("commit")] == [StoreUnavailable, None]


async def test_a_wait_for_news_is_told_only_when_it_fails(autojump_clock: MockClock) -> None:
    told, database = Recorder(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(store, sleeping(), config=IDLE, telemetry=told):
        async with opened(FaultyStore(database), sleeping(), config=IDLE, seed=2) as other:
            await other.submit("work", 1)
            await trio.sleep(1)
            assert told.store_calls("wait_news") == []
            store.fail("wait_news", seconds=0.5)
            await other.submit("work", 1)
            await trio.sleep(3)
            assert set(told.store_calls("wait_news")) == {(0, 1, StoreUnavailable)}


async def test_a_foreign_cursor_is_no_failure_of_the_store(autojump_clock: MockClock) -> None:
    told = Recorder()
    async with opened(None, sleeping(), config=IDLE, telemetry=told) as runtime:
        with pytest.raises(ValueError):
            await runtime.list(cursor="nonsense")
        assert [error for _, _, error in told.store_calls("list")] == [None]


async def test_every_attempt_that_started_has_ended(autojump_clock: MockClock) -> None:
    told = Recorder()

    @handler(max_retries=3, timeout_seconds=4)
    async def work(job: JobContext, number: int) -> Any:
        await trio.sleep(number % 7)
        if number % 3 == 0 and job.attempt < 3:
            raise OSError
        return object() if number % 5 == 0 else number

    async with opened(None, work, config=Config(max_concurrent_jobs=4), telemetry=told) as runtime:
        await settle(runtime, [(await runtime.submit("work", number)).id for number in range(40)])
    assert sorted(told.starts) == sorted((job_id, attempt) for job_id, attempt, _, _ in told.attempts)
    assert len(told.starts) == len(set(told.starts)) == len(told.claims) > 40
    assert len(told.ends) == 40
    assert len(told.starts) == 40 + len(told.retries)


async def settle(runtime: Runtime, job_ids: list[str]) -> None:
    for job_id in job_ids:
        await runtime.wait(job_id)


class Hostile(Telemetry):
    """Raises whatever it is told."""

    def __init__(self, error: BaseException) -> None:
        self.told: list[str] = []
        for verb in [name for name in vars(Telemetry) if not name.startswith("_")]:
            setattr(self, verb, partial(self._raise, verb, error))

    def _raise(self, verb: str, error: BaseException, *_: Any) -> None:
        self.told.append(verb)
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), ExceptionGroup("g", [OSError()])], ids=repr)
async def test_what_a_listener_raises_is_logged_once_and_harms_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    listener, database = Hostile(error), MemoryDatabase()
    lost = await lost_job(database)

    @handler("failing", max_retries=1)
    async def failing(job: JobContext) -> None:
        raise OSError

    async with opened(FaultyStore(database), sleeping(), failing, telemetry=listener) as runtime:
        runtime.on_events.append(lambda events: listener._raise("events", error))
        job_ids = [
            lost,
            *[(await runtime.submit("work", 0)).id for _ in range(3)],
            (await runtime.submit("failing")).id,
        ]
        ended = [await runtime.wait(job_id) for job_id in job_ids]
        stats = runtime.stats()
    assert [job.status for job in ended] == ["Completed"] * 4 + ["Failed"]
    assert (stats.submitted, stats.retried, stats.lost_leases) == ({"work": 3, "failing": 1}, {"failing": 1}, 1)
    assert stats.finished == {("work", "Completed"): 4, ("failing", "Failed"): 1}
    verbs = {name for name in vars(Telemetry) if not name.startswith("_")}
    assert set(listener.told) == verbs | {"events"}
    complaints = [record.getMessage() for record in caplog.records if record.name == "callboard.runtime"]
    assert len(complaints) == len(verbs) + 1
    assert any("telemetry's submitted raised" in text for text in complaints)


async def lost_job(database: MemoryDatabase) -> str:
    """A job whose holder has fallen silent."""
    store = FaultyStore(database)
    async with opened(store, sleeping(), config=Config(lease_seconds=3)) as runtime:
        job = await runtime.submit("work", 1000)
        await trio.sleep(1)
        hard_stop(runtime, store)
    return job.id
