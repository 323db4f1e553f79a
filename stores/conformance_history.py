"""Checks of promise 12: what is kept of a job's attempts."""

from msgspec.structs import replace

from callboard.runtime.core.commands import Fail, Lapse, Release
from callboard.runtime.core.history import AttemptOutcome, AttemptRecord, ExceptionInfo
from callboard.runtime.core.job import Failure, Job
from callboard.runtime.core.store import Delete, Write
from callboard.runtime.core.transition import decide
from callboard.stores.conformance_bench import (
    Bench,
    Check,
    after,
    apply,
    birth,
    cancel,
    check,
    claim,
    equal,
    failing,
    job,
    kinds,
    one,
    progress,
    retry,
    submit,
    succeed,
)

__all__ = ["CHECKS"]


@check
async def promise_12_an_attempt_is_kept_with_the_write_that_ends_it(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1, 2)
    (claimed,) = await claim(here, bench)
    equal(list(await here.attempts(claimed.job.id)), [])
    chain = (
        ExceptionInfo(type="a.B", message="näh\n€", traceback="  File\n", notes=("n", "m")),
        ExceptionInfo(type="C", message="", traceback="", relation="cause", of=0),
    )
    failure = Failure(code="C", message="m", type="B", retryable=False)
    write = after(
        claimed.job, progress(1.0), Fail(now_ms=claimed.job.updated_ms + 5, failure=failure, exceptions=chain)
    )
    equal(kinds(await here.commit([write])), ["Committed"])
    record = AttemptRecord(
        attempt=1,
        worker="here",
        started_ms=claimed.job.started_ms or 0,
        ended_ms=claimed.job.updated_ms + 5,
        outcome=AttemptOutcome.FAILED,
        error=failure,
        exceptions=chain,
    )
    equal(list(await there.attempts(claimed.job.id)), [record])
    equal(list(await there.attempts(job(2).id)), [])
    equal(list(await there.attempts(job(9).id)), [])


@check
async def promise_12_attempts_are_told_oldest_first_through_retries(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, max_retries=1)
    wanted = []
    for ending in (failing(), Release(now_ms=0), failing()):
        (claimed,) = await claim(store, bench)
        change = decide(claimed.job, ending)
        current = await apply(store, claimed.job, ending)
        wanted.append(change.attempt)
    await apply(store, current, retry())
    (claimed,) = await claim(store, bench)
    wanted.append(decide(claimed.job, succeed()).attempt)
    await apply(store, claimed.job, succeed())
    found = list(await store.attempts(claimed.job.id))
    equal(found, wanted)
    equal([item.attempt for item in found], [1, 2, 3, 4])
    equal([item.outcome.value for item in found], ["Failed", "Released", "Failed", "Completed"])


@check
async def promise_12_a_lapse_is_recorded(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1)
    (claimed,) = await claim(here, bench)
    await bench.pass_ms(bench.lease_ms)
    (lapsed,) = await there.lapse(limit=5)
    change = decide(claimed.job, Lapse(now_ms=lapsed.job.updated_ms))
    equal(list(await here.attempts(lapsed.job.id)), [change.attempt])
    # Whoever lost it leaves nothing.
    await here.commit([after(claimed.job, succeed())])
    equal(list(await here.attempts(lapsed.job.id)), [change.attempt])


@check
async def promise_12_a_refused_write_leaves_no_attempt(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1)
    (claimed,) = await claim(store, bench)
    stale = replace(claimed.job, fence=claimed.job.fence + 1)
    batch = [after(stale, succeed()), after(claimed.job, Release(now_ms=0)), after(claimed.job, failing())]
    equal(kinds(await store.commit(batch)), ["Conflict", "Committed", "Conflict"])
    equal([item.outcome for item in await store.attempts(claimed.job.id)], [AttemptOutcome.RELEASED])


@check
async def promise_12_again_brings_its_own_attempt(bench: Bench) -> None:
    """A failure that was overtaken by a cancel ends the attempt as Canceled: that is what its record says."""
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1)
    (claimed,) = await claim(here, bench)
    newer = await apply(there, claimed.job, cancel())

    def again(stored: Job) -> Write:
        return after(stored, failing())

    equal(kinds(await here.commit([replace(after(claimed.job, failing()), again=again)])), ["Committed"])
    (record,) = await there.attempts(claimed.job.id)
    equal(record, decide(newer, failing()).attempt)
    equal(record.outcome, AttemptOutcome.CANCELED)


@check
async def promise_12_only_the_newest_attempts_are_kept(bench: Bench) -> None:
    store = await bench.connect(max_attempts_per_job=2)
    await submit(store, 1, 2)
    for number in range(1, 6):
        (claimed,) = await claim(store, bench)
        await apply(store, claimed.job, Release(now_ms=0))
        found = [item.attempt for item in await store.attempts(claimed.job.id)]
        equal(found, list(range(max(1, number - 1), number + 1)))
    # Two ends of one job in one write.
    (claimed,) = await claim(store, bench)
    released = after(claimed.job, Release(now_ms=0))
    await store.commit([released, after(released.job, cancel())])
    equal([item.attempt for item in await store.attempts(claimed.job.id)], [5, 6])


@check
async def promise_12_the_history_goes_with_the_record(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, 2)
    for item in await claim(store, bench, limit=2):
        await apply(store, item.job, succeed())
    first = await one(store, job(1).id)
    assert first is not None
    born = birth(1)
    equal(kinds(await store.commit([Delete(expected=first), born])), ["Committed", "Committed"])
    equal(list(await store.attempts(first.id)), [])
    equal(len(await store.attempts(job(2).id)), 1)
    equal(await store.prune(ended_before_ms=2**50, limit=10), 1)
    equal(list(await store.attempts(job(2).id)), [])
    await submit(store, 2)
    equal(list(await store.attempts(job(2).id)), [])


@check
async def promise_12_what_ended_and_went_in_one_batch_leaves_nothing(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1)
    (claimed,) = await claim(store, bench)
    ended = after(claimed.job, succeed())
    await store.commit([ended, Delete(expected=ended.job)])
    equal(list(await store.attempts(claimed.job.id)), [])
    await submit(store, 1)
    equal(list(await store.attempts(claimed.job.id)), [])


@check
async def promise_12_the_history_is_durable(bench: Bench) -> None:
    store = await bench.connect("first")
    await submit(store, 1)
    (claimed,) = await claim(store, bench)
    await apply(store, claimed.job, succeed())
    before = list(await store.attempts(claimed.job.id))
    await store.aclose()
    again = await bench.connect("second")
    equal(list(await again.attempts(claimed.job.id)), before)
    equal(len(before), 1)


CHECKS: tuple[Check, ...] = (
    promise_12_an_attempt_is_kept_with_the_write_that_ends_it,
    promise_12_attempts_are_told_oldest_first_through_retries,
    promise_12_a_lapse_is_recorded,
    promise_12_a_refused_write_leaves_no_attempt,
    promise_12_again_brings_its_own_attempt,
    promise_12_only_the_newest_attempts_are_kept,
    promise_12_the_history_goes_with_the_record,
    promise_12_what_ended_and_went_in_one_batch_leaves_nothing,
    promise_12_the_history_is_durable,
)
