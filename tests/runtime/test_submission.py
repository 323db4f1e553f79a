"""Submitting: one id is one job, one key is one job, a full queue refuses, and bad input changes nothing."""

from typing import Any

import msgspec
import pytest
import trio
from tests.runtime.kit import FaultyStore, handler, opened
from trio.testing import MockClock

from callboard.runtime import (
    Accepted,
    Config,
    ConfigError,
    IllegalTransition,
    InvalidPayload,
    InvalidRequest,
    JobContext,
    JobExists,
    JobFilter,
    KeyReused,
    QueueFull,
    Request,
    Runtime,
    Status,
    StoreUnavailable,
    Submission,
)
from callboard.runtime.core.job import NULL

IDLE = Config(max_concurrent_jobs=0)
CHOSEN = "018f3c1e-5b7a-7cc3-98c4-dc0c0c07398f"
YEAR_MS = 366 * 24 * 3600 * 1000


class Order(msgspec.Struct, rename="camel"):
    data: str
    processing_priority: int = 1


@handler()
async def work(job: JobContext, order: Order) -> str:
    return f"{order.data} {job.headers.get('x-note', '')}".strip()


@handler("bare")
async def bare(job: JobContext) -> None: ...


async def total(runtime: Runtime) -> int:
    return sum((await runtime.counts()).values())


async def test_body_may_be_the_type_or_the_same_json(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        for body in (Order("a", 2), {"data": "a", "processingPriority": 2}):
            job = await runtime.submit("work", body, headers={"X-Note": "b"})
            assert (job.status, job.seq, job.attempt, job.queue, job.max_retries) == ("Queued", 1, 0, "default", 3)
            assert bytes((await runtime.wait(job.id)).result) == b'"a b"'


@pytest.mark.parametrize(
    ("name", "body", "pointer"),
    [
        ("work", {"data": 5}, "/data"),
        ("work", {"data": "a", "processingPriority": "high"}, "/processingPriority"),
        ("work", {}, ""),
        ("work", None, ""),
        ("work", [1], ""),
    ],
)
async def test_body_that_does_not_fit(autojump_clock: MockClock, name: str, body: Any, pointer: str) -> None:
    async with opened(None, work) as runtime:
        with pytest.raises(InvalidPayload) as caught:
            await runtime.submit(name, body)
        assert [error.pointer for error in caught.value.errors] == [pointer]
        assert await total(runtime) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "nonsense"}, "no handler named 'nonsense'"),
        ({"name": "bare", "body": {}}, "'bare' takes no body"),
        ({"body": object()}, "the body has no JSON form"),
        ({"job_id": "nonsense"}, "the job id must be a UUID such as"),
        ({"job_id": "x" * 36}, "the job id must be a UUID such as"),
        ({"job_id": CHOSEN.replace("-", "")}, "the job id must be a UUID such as"),
        ({"priority": 1001}, "the priority is 1001"),
        ({"priority": -1001}, "the priority is -1001"),
        ({"priority": 1.5}, "the priority is 1.5"),
        ({"priority": True}, "the priority is True"),
        ({"delay_seconds": -1}, "the delay is -1 s: give 0 or more"),
        ({"delay_seconds": float("nan")}, "the delay is nan s"),
        ({"delay_seconds": float("inf")}, "the delay is inf s"),
        ({"delay_seconds": 367 * 24 * 3600}, "more than a year from now"),
        ({"timeout_seconds": 0}, "the timeout is 0: give seconds, more than 0"),
        ({"timeout_seconds": float("inf")}, "the timeout is inf"),
        ({"timeout_seconds": float("nan")}, "the timeout is nan"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"queue": "\udcff"}, "cannot be stored"),
        ({"headers": {"x": "\udcff"}}, "cannot be stored"),
        ({"key": "\udcff"}, "cannot be stored"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_meant_is_refused(
    autojump_clock: MockClock, options: dict[str, Any], message: str
) -> None:
    async with opened(None, work, bare, config=IDLE) as runtime:
        with pytest.raises(InvalidRequest, match=message):
            await runtime.submit(**{"name": "work", "body": Order("a"), **options})
        assert await total(runtime) == 0
        assert (await runtime.submit("work", Order("a"))).status == "Queued"


async def test_delay_and_time_to_run_at(autojump_clock: MockClock) -> None:
    async with opened(None, bare, config=IDLE) as runtime:
        now_ms = (await runtime.submit("bare")).created_ms

        async def accepted(**options: Any) -> Any:
            return (await runtime.accept(Submission(name="bare", **options))).job

        with pytest.raises(InvalidRequest, match="either a delay or a time"):
            await accepted(delay_ms=0, run_at_ms=0)
        with pytest.raises(InvalidRequest, match="more than a year"):
            await accepted(run_at_ms=now_ms + YEAR_MS + 1)
        for options in ({"delay_ms": 0}, {"run_at_ms": now_ms}, {"run_at_ms": now_ms - 10**9}):
            job = await accepted(**options)
            assert (job.status, job.due_ms) == ("Queued", None)
        for options in ({"delay_ms": 5}, {"run_at_ms": now_ms + 5}, {"delay_ms": YEAR_MS}):
            job = await accepted(**options)
            assert (job.status, job.due_ms) == ("Scheduled", now_ms + options.get("delay_ms", 5))


async def test_smaller_timeout_wins_and_submission_overrides_retries(autojump_clock: MockClock) -> None:
    @handler("short", timeout_seconds=10, max_retries=7, max_lost_leases=1, queue="far", priority=5)
    async def short(job: JobContext) -> None: ...

    @handler("long")
    async def long(job: JobContext) -> None: ...

    config = Config(max_concurrent_jobs=0, timeout_seconds=None, max_retries=4)
    async with opened(None, short, long, config=config) as runtime:
        job = await runtime.submit("short")
        assert (job.timeout_seconds, job.max_retries, job.max_lost_leases) == (10, 7, 1)
        assert (job.queue, job.priority) == ("far", 5)
        assert (await runtime.submit("short", timeout_seconds=20)).timeout_seconds == 10
        assert (await runtime.submit("short", timeout_seconds=3)).timeout_seconds == 3
        job = await runtime.submit("long", max_retries=0, queue="far", priority=-1)
        assert (job.timeout_seconds, job.max_retries, job.queue, job.priority) == (None, 0, "far", -1)
        assert (await runtime.submit("long", timeout_seconds=20)).timeout_seconds == 20
        assert (await runtime.submit("long")).max_retries == 4


@pytest.mark.parametrize("wrong", [5000, "high", True])
async def test_priority_by_a_function_of_the_body(autojump_clock: MockClock, wrong: Any) -> None:
    async def ordered(job: JobContext, order: Order) -> None: ...

    async def plain(job: JobContext) -> None: ...

    ordering = handler("ordered", priority=lambda order: order.processing_priority)(ordered)
    steady = handler("plain", priority=lambda: 9)(plain)
    broken = handler("broken", priority=lambda: wrong)(plain)
    async with opened(None, ordering, steady, broken, config=IDLE) as runtime:
        assert (await runtime.submit("ordered", Order("a", 7))).priority == 7
        assert (await runtime.submit("ordered", Order("a", 7), priority=2)).priority == 2
        assert (await runtime.submit("plain")).priority == 9
        before = await total(runtime)
        with pytest.raises(ConfigError, match=r"'broken' gave no priority: the priority is .*: give a whole number"):
            await runtime.submit("broken")
        assert await total(runtime) == before
        # A submission that brings no body to judge (the web judges before) gets the middle.
        assert (await runtime.accept(Submission(name="plain"))).job.priority == 0


async def test_same_id_is_the_same_job(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        first = await runtime.submit("work", Order("a"), job_id=CHOSEN)
        assert first.id == CHOSEN
        assert (await runtime.submit("work", Order("a"), job_id=CHOSEN.upper())).serial == first.serial
        ended = await runtime.wait(CHOSEN)
        # The same again, long after: the job as it is now.
        assert await runtime.submit("work", Order("a"), job_id=CHOSEN) == ended
        with pytest.raises(JobExists, match="that job id is taken"):
            await runtime.submit("work", Order("b"), job_id=CHOSEN)
        assert await total(runtime) == 1


async def test_same_key_is_the_same_job(autojump_clock: MockClock) -> None:
    async with opened(None, work, bare) as runtime:
        first = await runtime.submit("work", Order("a"), key="k")
        ended = await runtime.wait(first.id)
        assert await runtime.submit("work", Order("a"), key="k") == ended
        for other in (("work", Order("b")), ("bare", None)):
            with pytest.raises(KeyReused, match="came with a different request before"):
                await runtime.submit(*other, key="k")
        assert (await runtime.submit("work", Order("a"), key="l")).id != first.id
        await runtime.purge(first.id)
        assert (await runtime.submit("work", Order("b"), key="k")).id != first.id


async def test_replay_is_told(autojump_clock: MockClock) -> None:
    async with opened(None, bare, config=IDLE) as runtime:
        again = Submission(name="bare", key="k", fingerprint="f", owner="me", request=Request(body=NULL))
        first = await runtime.accept(again)
        assert first == Accepted(first.job, replayed=False)
        assert first.job.owner == "me"
        assert await runtime.accept(again) == Accepted(first.job, replayed=True)
        with pytest.raises(KeyReused):
            await runtime.accept(Submission(name="bare", key="k"))


@pytest.mark.parametrize("by", ["key", "job_id"])
async def test_100_racing_submits_make_one_job(autojump_clock: MockClock, by: str) -> None:
    store = FaultyStore()
    store.slow_seconds["commit"] = 0.01
    ids: list[str] = []
    runs: list[str] = []

    @handler()
    async def once(job: JobContext) -> None:
        runs.append(job.id)

    async with opened(store, once) as runtime:

        async def submit(number: int) -> None:
            await trio.sleep(number / 2000)
            chosen: dict[str, Any] = {by: CHOSEN}
            ids.append((await runtime.submit("work", **chosen)).id)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(submit, number)
        await runtime.wait(ids[0])
        assert len(ids) == 100
        assert set(ids) == set(runs)
        assert len(runs) == await total(runtime) == 1


async def test_lost_answer_is_safe_to_repeat(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, bare, config=IDLE) as runtime:
        store.fail("commit", seconds=1, after=True)
        with pytest.raises(StoreUnavailable):
            await runtime.submit("bare", job_id=CHOSEN)
        await trio.sleep(1)
        assert (await runtime.submit("bare", job_id=CHOSEN)).id == CHOSEN
        assert await total(runtime) == 1


async def test_store_that_hangs_is_unavailable_in_time(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, bare, config=Config(max_concurrent_jobs=0, store_timeout_seconds=2)) as runtime:
        store.slow_seconds["commit"] = 60
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await runtime.submit("bare")
        assert trio.current_time() == 2
        # The second waits behind the first and is taken back: it never reaches the store.
        with pytest.raises(StoreUnavailable):
            await runtime.submit("bare")
        await trio.sleep(100)
        assert await total(runtime) == 1
        assert store.count("commit") == 1


async def test_asker_that_gives_up_gives_up_the_answer_only(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, bare, config=IDLE) as runtime:
        store.slow_seconds["commit"] = 2
        with trio.move_on_after(1):
            await runtime.submit("bare", job_id=CHOSEN)
        await trio.sleep(2)
        assert (await runtime.get(CHOSEN)).status == "Queued"


async def test_full_queue_refuses_submits_and_retries_by_hand(autojump_clock: MockClock) -> None:
    config = Config(max_concurrent_jobs=1, max_queue_size=3)

    @handler()
    async def slow(job: JobContext) -> None:
        await trio.sleep(10)

    async with opened(None, slow, handler("far", queue="far")(bare.function), config=config) as runtime:
        running = await runtime.submit("work")
        await trio.sleep(1)
        waiting = [await runtime.submit("work"), await runtime.submit("work", delay_seconds=100)]
        canceled = await runtime.submit("work")
        await runtime.cancel(canceled.id)
        waiting.append(await runtime.submit("work"))
        with pytest.raises(QueueFull, match="the queue holds 3 jobs"):
            await runtime.submit("work")
        with pytest.raises(QueueFull, match="the queue 'default' holds 3 jobs"):
            await runtime.retry(canceled.id)
        assert (await runtime.get(canceled.id)).status == "Canceled"
        assert (await runtime.submit("far")).status == "Queued"
        # A repeat is no new job and is not refused.
        await runtime.cancel(waiting[0].id)
        kept = await runtime.submit("work", key="k")
        assert (await runtime.submit("work", key="k")).id == kept.id
        await runtime.wait(running.id)
        await trio.sleep(1)
        assert (await runtime.retry(canceled.id)).status == "Queued"


async def test_failed_job_that_is_retried_by_itself_is_never_refused(autojump_clock: MockClock) -> None:
    @handler(max_retries=1)
    async def fails(job: JobContext) -> None:
        await trio.sleep(1)
        if job.attempt == 1:
            raise ValueError

    async with opened(None, fails, config=Config(max_concurrent_jobs=1, max_queue_size=1)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(0.5)
        await runtime.submit("work")
        assert (await runtime.wait(job.id)).status == "Completed"


async def test_retry_needs_an_ended_job_that_is_not_completed(autojump_clock: MockClock) -> None:
    async with opened(None, bare) as runtime:
        job = await runtime.submit("bare", delay_seconds=5)
        with pytest.raises(IllegalTransition, match="a job that is Scheduled; that needs Canceled, Failed"):
            await runtime.retry(job.id)
        await runtime.wait(job.id)
        with pytest.raises(IllegalTransition, match="a job that is Completed"):
            await runtime.retry(job.id)


async def test_list_and_counts(autojump_clock: MockClock) -> None:
    async with opened(None, bare, work) as runtime:
        jobs = [await runtime.submit("bare", delay_seconds=5) for _ in range(5)]
        await runtime.cancel(jobs[0].id)
        page = await runtime.list(limit=3)
        assert [job.id for job in page.jobs] == [job.id for job in jobs[:1:-1]]
        rest = await runtime.list(cursor=page.next)
        assert [job.id for job in rest.jobs] == [jobs[1].id, jobs[0].id]
        assert rest.next is None
        assert len((await runtime.list(JobFilter(statuses=(Status.CANCELED,)))).jobs) == 1
        assert await runtime.counts() == {("default", Status.SCHEDULED): 4, ("default", Status.CANCELED): 1}
        with pytest.raises(ValueError, match="cursor"):
            await runtime.list(cursor="foreign")
        assert (await runtime.submit("bare")).status == "Queued", "a foreign cursor does no harm"
        assert runtime.stats().submitted == {"bare": 6}
