"""Checks of promise 13: queues that are paused and resumed."""

import trio
import trio.testing

from callboard.runtime.core.commands import Release
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Extension, Full, Held, News, Store
from callboard.stores.conformance_bench import (
    Bench,
    Check,
    after,
    apply,
    birth,
    check,
    claim,
    equal,
    failing,
    submit,
    succeed,
    taken,
    truth,
    woken,
)

__all__ = ["CHECKS"]


@check
async def promise_13_no_claim_takes_from_a_paused_queue(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1, 2)
    await submit(here, 3, queue="other")
    equal([await here.set_paused("default", True), await there.set_paused("default", True)], [True, False])
    equal([list(await store.paused()) for store in (here, there)], [["default"], ["default"]])
    for store in (here, there):
        equal(taken(await claim(store, bench, limit=5)), [])
    found = await there.claim(queues=["default", "other"], names=["send"], limit=5, lease_ms=bench.lease_ms)
    equal(taken(found), [3])
    equal([await there.set_paused("default", False), await here.set_paused("default", False)], [True, False])
    equal(list(await here.paused()), [])
    equal(taken(await claim(here, bench, limit=5)), [1, 2])


@check
async def promise_13_a_pause_is_durable_and_queues_are_told_sorted(bench: Bench) -> None:
    store = await bench.connect("first")
    for queue in ("b", "ä/ö", "a"):
        await store.set_paused(queue, True)
    await store.aclose()
    again = await bench.connect("second")
    equal(list(await again.paused()), ["a", "b", "ä/ö"])
    await submit(again, 1, queue="a")
    equal(taken(await claim(again, bench, queue="a")), [])


@check
async def promise_13_all_else_goes_on_in_a_paused_queue(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, 2, 3)
    first, second = await claim(store, bench, limit=2)
    await store.set_paused("default", True)
    held = [Held(first.job.id, first.job.fence)]
    equal(list(await store.extend(held, lease_ms=bench.lease_ms)), [Extension(True)])
    equal((await apply(store, first.job, succeed())).status, Status.COMPLETED)
    await apply(store, second.job, Release(now_ms=0))
    outcomes = await store.commit([birth(4, max_queue_size=3), birth(5, max_queue_size=3)])
    equal(outcomes[1], Full(3))
    equal(taken(await claim(store, bench, limit=5)), [])
    await store.set_paused("default", False)
    equal(taken(await claim(store, bench, limit=5)), [2, 3, 4])


@check
async def promise_13_leases_lapse_into_a_paused_queue(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1)
    await claim(here, bench)
    await there.set_paused("default", True)
    await bench.pass_ms(bench.lease_ms)
    equal(len(await there.lapse(limit=5)), 1)
    equal(taken(await claim(there, bench)), [])
    await there.set_paused("default", False)
    equal(taken(await claim(there, bench)), [1])


@check
async def promise_13_what_falls_due_waits_too_and_wakes_nobody_twice(bench: Bench) -> None:
    store = await bench.connect()
    now_ms = await store.now_ms()
    await submit(store, 1, max_retries=1)
    (claimed,) = await claim(store, bench)
    await store.set_paused("default", True)
    await apply(store, claimed.job, failing(now_ms))
    await submit(store, 2, 3, status=Status.SCHEDULED, due_ms=now_ms, priority=1)
    equal((await store.next_due()).scheduled_ms, now_ms)
    equal(taken(await claim(store, bench, limit=5)), [])
    # It has been looked at: no timer may come back for it again and again.
    equal((await store.next_due()).scheduled_ms, None)
    await store.set_paused("default", False)
    equal(taken(await claim(store, bench, limit=5)), [2, 3, 1])


@check
async def promise_13_a_pause_and_a_resume_are_news(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    cursor = (await here.wait_news(None)).cursor
    for paused in (True, False):
        await there.set_paused("q", paused)
        news = await here.wait_news(cursor)
        equal((news.queues_changed, news.complete, news.events), (True, True, ()))
        cursor = news.cursor
    await there.set_paused("q", True)
    await submit(there, 1)
    told: list[News] = []
    while not (any(news.events for news in told) and any(news.queues_changed for news in told)):
        told.append(await here.wait_news(cursor))
        cursor = told[-1].cursor
    # What changed nothing is no news, and what was told is not told again.
    await there.set_paused("q", True)
    await submit(there, 2)
    news = await here.wait_news(cursor)
    equal((news.queues_changed, len(news.events)), (False, 1))


@check
async def promise_13_a_pause_wakes_a_sleeper(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    cursor = (await here.wait_news(None)).cursor
    news = await woken(here, cursor, lambda: there.set_paused("q", True))
    equal(news.queues_changed, True)


@check
async def promise_13_whoever_races_with_a_pause_takes_nothing_after_it(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, *range(200))
    after_pause: list[int] = []
    is_paused = False

    async def work(store: Store) -> None:
        for _ in range(60):
            was_paused = is_paused
            found = await claim(store, bench, limit=2)
            await store.commit([after(item.job, succeed()) for item in found])
            if was_paused:
                after_pause.extend(taken(found))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, there)
        await trio.testing.wait_all_tasks_blocked()
        truth(await here.set_paused("default", True), "it was not paused before")
        is_paused = True
    equal(after_pause, [])


CHECKS: tuple[Check, ...] = (
    promise_13_no_claim_takes_from_a_paused_queue,
    promise_13_a_pause_is_durable_and_queues_are_told_sorted,
    promise_13_all_else_goes_on_in_a_paused_queue,
    promise_13_leases_lapse_into_a_paused_queue,
    promise_13_what_falls_due_waits_too_and_wakes_nobody_twice,
    promise_13_a_pause_and_a_resume_are_news,
    promise_13_a_pause_wakes_a_sleeper,
    promise_13_whoever_races_with_a_pause_takes_nothing_after_it,
)
