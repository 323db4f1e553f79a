"""Checks of promises 7 and 8: ``claim``, ``extend`` and ``lapse``."""

import trio
from msgspec.structs import replace

from callboard.runtime.core.commands import Claim, Lapse, Release
from callboard.runtime.core.job import MAX_PRIORITY, Job, Status
from callboard.runtime.core.store import Committed, Conflict, Delete, Due, Extension, Held, Store
from callboard.runtime.core.transition import WORKER_LOST, Change, decide
from callboard.stores.conformance_bench import (
    Bench,
    Check,
    after,
    apply,
    birth,
    cancel,
    check,
    claim,
    committed,
    equal,
    failing,
    job,
    one,
    progress,
    request,
    retry,
    submit,
    succeed,
    taken,
    truth,
)

__all__ = ["CHECKS"]


@check
async def promise_07_priority_then_acceptance(bench: Bench) -> None:
    store = await bench.connect()
    for number, priority in ((5, 0), (4, 7), (3, 0), (2, -MAX_PRIORITY), (1, 7), (6, MAX_PRIORITY)):
        await submit(store, number, priority=priority)
    equal(taken(await claim(store, bench, limit=2)), [6, 4])
    equal(taken(await claim(store, bench)), [1])
    equal(taken(await claim(store, bench, limit=10)), [5, 3, 2])
    equal(taken(await claim(store, bench, limit=10)), [])


@check
async def promise_07_priority_holds_across_queues_and_names(bench: Bench) -> None:
    store = await bench.connect()
    places = [(queue, name) for queue in ("a", "b") for name in ("x", "y")]
    for number in range(16):
        queue, name = places[number % 4]
        await submit(store, number, queue=queue, name=name, priority=number // 4)
    wanted = [12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]
    # Named twice or in another order, it is the same set.
    for limit, expected in ((6, wanted[:6]), (20, wanted[6:])):
        found = await store.claim(queues=["b", "a", "b"], names=["y", "x", "x"], limit=limit, lease_ms=bench.lease_ms)
        equal(taken(found), expected)


@check
async def promise_07_only_the_named_queues_and_handlers(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, name="unknown", priority=9)
    await submit(store, 2, queue="other", priority=9)
    await submit(store, 3)
    equal(taken(await claim(store, bench, limit=5)), [3])
    for queues, names in (([], ["send"]), (["default"], []), (["nowhere"], ["send"]), (["default"], ["nobody"])):
        equal(list(await store.claim(queues=queues, names=names, limit=5, lease_ms=bench.lease_ms)), [])
    equal(taken(await claim(store, bench, queue="other")), [2])
    equal(taken(await claim(store, bench, name="unknown")), [1])


@check
async def promise_07_a_claim_is_what_decide_says(bench: Bench) -> None:
    store = await bench.connect("the worker")
    due_ms = await store.now_ms()
    before = [*await submit(store, 1, owner="anna"), *await submit(store, 2, status=Status.SCHEDULED, due_ms=due_ms)]
    begin_ms = await store.now_ms()
    claimed = await claim(store, bench, limit=2)
    for waiting, item, number in zip(before, claimed, (1, 2), strict=True):
        now_ms = item.job.started_ms or 0
        truth(begin_ms <= now_ms <= await store.now_ms(), "a claim is dated by the store's clock")
        command = Claim(now_ms=now_ms, worker="the worker", fence=item.job.fence)
        equal(Change(item.job, item.events), decide(waiting, command))
        equal(item.request, request(number))
        equal(await one(store, item.job.id), item.job)
        equal(tuple(await store.events(item.job.id, after=1, limit=5)), item.events)
        truth(item.job.fence > 0, "0 is nobody's fence")


@check
async def promise_07_a_fence_is_never_given_twice(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    fences: list[int] = []
    await submit(here, *range(6))
    for store in (here, there, here):
        for item in await claim(store, bench, limit=2):
            fences.append(item.job.fence)
            await apply(store, item.job, Release(now_ms=0))
    (last,) = await claim(there, bench)
    fences.append(last.job.fence)
    ended = await apply(there, last.job, succeed())
    await there.commit([Delete(expected=ended)])
    await here.aclose()
    await there.aclose()
    again = await bench.connect("again")
    fences += [item.job.fence for item in await claim(again, bench, limit=10)]
    equal((len(fences), len(set(fences))), (12, 12))


@check
async def promise_07_not_before_it_is_due(bench: Bench) -> None:
    store = await bench.connect()
    now_ms = await store.now_ms()
    await submit(store, 1, status=Status.SCHEDULED, due_ms=now_ms + bench.lease_ms, priority=3)
    await submit(store, 2, status=Status.SCHEDULED, due_ms=now_ms)
    equal(await store.next_due(), Due(now_ms, None))
    equal(taken(await claim(store, bench, limit=5)), [2])
    equal((await store.next_due()).scheduled_ms, now_ms + bench.lease_ms)
    if bench.clock_is_injected:
        await bench.pass_ms(bench.lease_ms - 1)
        equal(taken(await claim(store, bench, limit=5)), [])
        await bench.pass_ms(1)
    else:
        await bench.pass_ms(bench.lease_ms)
    equal(taken(await claim(store, bench, limit=5)), [1])
    equal((await store.next_due()).scheduled_ms, None)


@check
async def promise_07_due_jobs_stand_in_line_with_the_others(bench: Bench) -> None:
    store = await bench.connect()
    now_ms = await store.now_ms()
    await submit(store, 1, status=Status.SCHEDULED, due_ms=now_ms)
    await submit(store, 2)
    await submit(store, 3, status=Status.SCHEDULED, due_ms=now_ms, priority=1)
    await submit(store, 4, priority=2)
    equal(taken(await claim(store, bench)), [4])
    # All of them were looked at, so no timer has to come back for them.
    equal((await store.next_due()).scheduled_ms, None)
    equal((await one(store, job(3).id) or job(0)).status, Status.SCHEDULED)
    equal(taken(await claim(store, bench)), [3])
    equal(taken(await claim(store, bench, limit=5)), [1, 2])


@check
async def promise_07_a_job_that_was_looked_at_can_still_be_canceled(bench: Bench) -> None:
    store = await bench.connect()
    now_ms = await store.now_ms()
    _, second = await submit(store, 1, 2, status=Status.SCHEDULED, due_ms=now_ms)
    equal(taken(await claim(store, bench)), [1])
    ended = await apply(store, second, cancel(now_ms))
    equal(taken(await claim(store, bench, limit=5)), [])
    equal(await store.counts(), {("default", Status.IN_PROGRESS): 1, ("default", Status.CANCELED): 1})
    await apply(store, ended, retry(now_ms))
    equal(taken(await claim(store, bench, limit=5)), [2])


@check
async def promise_07_thousands_of_future_jobs_hold_nobody_up(bench: Bench) -> None:
    store = await bench.connect()
    later = await store.now_ms() + 10**9
    await submit(store, *range(1, 3001), status=Status.SCHEDULED, due_ms=later, priority=MAX_PRIORITY)
    await submit(store, 5000, 5001, priority=-MAX_PRIORITY)
    equal(taken(await claim(store, bench)), [5000])
    equal(taken(await claim(store, bench, limit=100)), [5001])
    equal((await store.next_due()).scheduled_ms, later)


@check
async def promise_07_thousands_that_fall_due_at_once_keep_their_order(bench: Bench) -> None:
    store = await bench.connect()
    now_ms = await store.now_ms()
    batch = [
        birth(n, status=Status.SCHEDULED, due_ms=now_ms - 5000 + n, priority=int(n == 4999)) for n in range(1, 5001)
    ]
    await store.commit(batch)
    equal(taken(await claim(store, bench, limit=3)), [4999, 1, 2])
    equal((await store.next_due()).scheduled_ms, None)


@check
async def promise_07_what_comes_back_is_claimed_again_in_its_old_place(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, max_retries=1)
    await submit(store, 2, 3)
    first, second = await claim(store, bench, limit=2)
    now_ms = await store.now_ms()
    failed = await apply(store, first.job, failing(now_ms))
    equal((failed.status, failed.due_ms), (Status.SCHEDULED, now_ms))
    await apply(store, second.job, Release(now_ms=now_ms))
    equal(taken(await claim(store, bench, limit=5)), [1, 2, 3])
    equal((await one(store, first.job.id) or job(0)).attempt, 2)


@check
async def promise_07_two_who_race_run_each_job_once(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, *range(200))
    won: list[int] = []

    async def work(store: Store) -> None:
        while found := await claim(store, bench, limit=7):
            won.extend(taken(found))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, here)
        nursery.start_soon(work, there)
    equal(sorted(won), list(range(200)))


@check
async def promise_07_two_thousand_lives(bench: Bench) -> None:
    store = await bench.connect()
    numbers = list(range(2000))
    for start in range(0, 2000, 500):
        await submit(store, *numbers[start : start + 500])
    done: list[int] = []
    while found := await claim(store, bench, limit=300):
        outcomes = await store.commit([after(item.job, progress(50.0), succeed()) for item in found])
        truth(all(isinstance(outcome, Committed) for outcome in outcomes), "every life ends")
        done += taken(found)
    equal(done, numbers)
    equal(await store.counts(), {("default", Status.COMPLETED): 2000})


@check
async def promise_08_extend_tells_what_is_still_held(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, 2, 3, 4)
    first, second, third = await claim(store, bench, limit=3)
    await apply(store, second.job, succeed())
    await apply(store, third.job, cancel())
    held = [Held(item.job.id, item.job.fence) for item in (first, second, third)]
    asked = [*held, Held(held[0].job_id, held[1].fence), Held(job(4).id, 0), Held(job(9).id, 1), held[0]]
    keeps, lost = Extension(True), Extension(False)
    wanted = [keeps, lost, Extension(True, cancel_requested=True), lost, lost, lost, keeps]
    equal(list(await store.extend(asked, lease_ms=bench.lease_ms)), wanted)
    equal(list(await store.extend([], lease_ms=bench.lease_ms)), [])
    equal([event.seq for event in await store.events(first.job.id, after=0, limit=10)], [1, 2])


@check
async def promise_08_extend_moves_the_end(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, 2)
    first, second = await claim(store, bench, limit=2)
    lease_ms = (await store.next_due()).lease_ms or 0
    truth(lease_ms >= (first.job.started_ms or 0) + bench.lease_ms, "a lease lasts as long as was asked")
    held = [Held(first.job.id, first.job.fence)]
    equal(list(await store.extend(held, lease_ms=3 * bench.lease_ms)), [Extension(True)])
    equal((await store.next_due()).lease_ms, lease_ms)
    await bench.pass_ms(bench.lease_ms)
    equal([item.job.id for item in await store.lapse(limit=5)], [second.job.id])
    truth(((await store.next_due()).lease_ms or 0) > lease_ms, "the lease was moved")
    equal(
        list(await store.extend([Held(second.job.id, second.job.fence)], lease_ms=bench.lease_ms)), [Extension(False)]
    )
    await bench.pass_ms(2 * bench.lease_ms)
    equal([item.job.id for item in await store.lapse(limit=5)], [first.job.id])
    equal((await store.next_due()).lease_ms, None)


@check
async def promise_08_lapse_is_what_decide_says(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1)
    (claimed,) = await claim(here, bench)
    reported = await apply(here, claimed.job, progress(1.0))
    if bench.clock_is_injected:
        await bench.pass_ms(bench.lease_ms - 1)
        equal(list(await there.lapse(limit=5)), [])
        await bench.pass_ms(1)
    else:
        await bench.pass_ms(bench.lease_ms)
    (lapsed,) = await there.lapse(limit=5)
    change = decide(reported, Lapse(now_ms=lapsed.job.updated_ms))
    equal(lapsed, Committed(change.job, change.events))
    truth(lapsed.job.updated_ms >= (claimed.job.started_ms or 0) + bench.lease_ms, "dated by the store's clock")
    equal(await one(here, lapsed.job.id), lapsed.job)
    equal(tuple(await here.events(lapsed.job.id, after=reported.seq, limit=5)), lapsed.events)
    equal(list(await there.lapse(limit=5)), [])
    # The old owner's word counts for nothing now, not even when a new one has begun.
    equal(list(await here.commit([after(reported, succeed())])), [Conflict(lapsed.job)])
    (next_claim,) = await claim(there, bench)
    equal(list(await here.commit([after(reported, succeed())])), [Conflict(next_claim.job)])
    truth(next_claim.job.fence != claimed.job.fence, "a new claim has a new fence")


@check
async def promise_08_a_lease_outlives_what_others_write(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1)
    (claimed,) = await claim(here, bench)
    lease_ms = (await here.next_due()).lease_ms
    reported = await apply(here, claimed.job, progress(1.0))
    asked = await apply(there, reported, cancel())
    equal((asked.fence, asked.worker), (claimed.job.fence, "here"))
    equal((await here.next_due()).lease_ms, lease_ms)
    equal(list(await there.lapse(limit=5)), [])
    await apply(here, asked, Release(now_ms=0))
    equal((await here.next_due()).lease_ms, None)


@check
async def promise_08_a_poison_job_fails(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, max_lost_leases=1)
    for status in (Status.QUEUED, Status.FAILED):
        await claim(store, bench)
        await bench.pass_ms(bench.lease_ms)
        (lapsed,) = await store.lapse(limit=5)
        equal(lapsed.job.status, status)
    equal((lapsed.job.error, lapsed.job.lost_leases), (WORKER_LOST, 2))
    equal(await store.counts(), {("default", Status.FAILED): 1})
    equal(await claim(store, bench), [])


@check
async def promise_08_a_lost_job_that_was_to_be_canceled_is(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1)
    (claimed,) = await claim(store, bench)
    await apply(store, claimed.job, cancel())
    await bench.pass_ms(bench.lease_ms)
    (lapsed,) = await store.lapse(limit=5)
    equal(lapsed.job.status, Status.CANCELED)
    equal(await store.prune(ended_before_ms=2**50, limit=5), 1)


@check
async def promise_08_lapse_keeps_to_its_limit(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, *range(5))
    await claim(store, bench, limit=5)
    await bench.pass_ms(bench.lease_ms)
    found: list[Job] = []
    for size in (2, 2, 1, 0):
        lapsed = await store.lapse(limit=2)
        equal(len(lapsed), size)
        found += [committed(item).job for item in lapsed]
    equal(len({item.id for item in found}), 5)
    equal(await store.counts(), {("default", Status.QUEUED): 5})


@check
async def promise_08_an_expired_lease_is_held_until_it_lapses(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1)
    (claimed,) = await claim(store, bench)
    await bench.pass_ms(bench.lease_ms)
    held = [Held(claimed.job.id, claimed.job.fence)]
    equal(list(await store.extend(held, lease_ms=bench.lease_ms)), [Extension(True)])
    equal(list(await store.lapse(limit=5)), [])
    await bench.pass_ms(bench.lease_ms)
    equal(len(await store.lapse(limit=5)), 1)
    # An old fence is worth nothing after somebody else's claim.
    (other,) = await claim(store, bench)
    equal(list(await store.extend(held, lease_ms=bench.lease_ms)), [Extension(False)])
    equal(replace(other.job, fence=0).attempt, 2)


CHECKS: tuple[Check, ...] = (
    promise_07_priority_then_acceptance,
    promise_07_priority_holds_across_queues_and_names,
    promise_07_only_the_named_queues_and_handlers,
    promise_07_a_claim_is_what_decide_says,
    promise_07_a_fence_is_never_given_twice,
    promise_07_not_before_it_is_due,
    promise_07_due_jobs_stand_in_line_with_the_others,
    promise_07_a_job_that_was_looked_at_can_still_be_canceled,
    promise_07_thousands_of_future_jobs_hold_nobody_up,
    promise_07_thousands_that_fall_due_at_once_keep_their_order,
    promise_07_what_comes_back_is_claimed_again_in_its_old_place,
    promise_07_two_who_race_run_each_job_once,
    promise_07_two_thousand_lives,
    promise_08_extend_tells_what_is_still_held,
    promise_08_extend_moves_the_end,
    promise_08_lapse_is_what_decide_says,
    promise_08_a_lease_outlives_what_others_write,
    promise_08_a_poison_job_fails,
    promise_08_a_lost_job_that_was_to_be_canceled_is,
    promise_08_lapse_keeps_to_its_limit,
    promise_08_an_expired_lease_is_held_until_it_lapses,
)
