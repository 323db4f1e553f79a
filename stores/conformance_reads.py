"""Checks of the reading verbs and of promises 10 and 11: pages, counts, due times, news and time."""

from typing import TypeVar

import trio
import trio.testing

from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import Delete, Due, JobFilter, Store
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
    ids,
    job,
    one,
    progress,
    submit,
    succeed,
    truth,
    woken,
)

__all__ = ["CHECKS"]

T = TypeVar("T")


@check
async def promise_03_get_answers_in_the_order_of_the_question(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1, 2, 3)
    equal(ids(await there.get([job(n).id for n in (3, 9, 1, 3)])), [3, -1, 1, 3])
    equal(list(await there.get([])), [])


@check
async def promise_09_pages_neither_skip_nor_repeat(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, *range(10))
    seen: list[int] = []
    cursor, arrived = None, 100
    while True:
        page = await store.list(JobFilter(), cursor=cursor, limit=3)
        seen += ids(page.jobs)
        if page.next is None:
            break
        cursor = page.next
        # While someone turns the pages jobs arrive, change and go.
        await submit(store, arrived)
        await apply(store, (await store.get([job(0).id]))[0] or job(0), cancel())
        arrived += 1
    equal(seen, list(range(9, -1, -1)))


@check
async def promise_09_a_page_survives_the_job_that_it_ended_with(bench: Bench) -> None:
    store = await bench.connect()
    jobs = await submit(store, *range(6))
    page = await store.list(JobFilter(), cursor=None, limit=2)
    await store.commit([Delete(expected=jobs[number]) for number in (4, 3)])
    page = await store.list(JobFilter(), cursor=page.next, limit=2)
    equal(ids(page.jobs), [2, 1])
    page = await store.list(JobFilter(), cursor=page.next, limit=1)
    equal((ids(page.jobs), page.next), ([0], None))
    equal(await store.list(JobFilter(name="nobody"), cursor=None, limit=1), type(page)((), None))


@check
async def promise_09_a_page_holds_what_the_filter_lets_pass(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, owner="anna")
    await submit(store, 2, owner="bert", queue="q")
    await submit(store, 3, name="n", owner="anna", queue="q")
    (ended,) = await submit(store, 4)
    await apply(store, ended, cancel())
    await claim(store, bench, queue="q")
    either = (Status.CANCELED, Status.IN_PROGRESS)
    for where, wanted in (
        (JobFilter(), [4, 3, 2, 1]),
        (JobFilter(statuses=(Status.QUEUED,)), [3, 1]),
        (JobFilter(statuses=either), [4, 2]),
        (JobFilter(name="send"), [4, 2, 1]),
        (JobFilter(queue="q"), [3, 2]),
        (JobFilter(owner="anna"), [3, 1]),
        (JobFilter(owner="anna", queue="q"), [3]),
        (JobFilter(owner="bert", statuses=(Status.QUEUED,)), []),
        (JobFilter(owner="nobody"), []),
        (JobFilter(name="n", queue="q", owner="anna", statuses=(Status.QUEUED,)), [3]),
    ):
        equal((where, await _all_pages(store, where, limit=1)), (where, wanted))
        equal((where, await _all_pages(store, where, limit=9)), (where, wanted))


@check
async def promise_09_a_rare_job_is_found_among_many(bench: Bench) -> None:
    store = await bench.connect()
    (rare,) = await submit(store, 0)
    await apply(store, rare, cancel())
    for start in range(1, 9001, 1000):
        await submit(store, *range(start, start + 1000), owner="many")
    where = JobFilter(statuses=(Status.CANCELED,))
    equal(await _all_pages(store, where, limit=2), [0])
    equal(await _all_pages(store, JobFilter(statuses=(Status.CANCELED,), owner="many"), limit=2), [])


@check
async def promise_09_a_cursor_of_someone_else_is_an_error(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, 2, 3)
    for cursor in (
        "",
        "nonsense",
        "-1",
        "1.5",
        "\N{SUPERSCRIPT TWO}",
        " 1",
        "9" * 60,
        "b" + "9" * 60,
        "b1 ",
        "b-1",
        "\0",
    ):
        try:
            page = await store.list(JobFilter(), cursor=cursor, limit=1)
        except ValueError:
            continue
        raise AssertionError(f"the cursor {cursor!r} was answered with {page!r}")


@check
async def promise_08_next_due_tells_the_earliest(bench: Bench) -> None:
    store = await bench.connect()
    equal(await store.next_due(), Due(None, None))
    later = await store.now_ms() + 10**7
    (far,) = await submit(store, 1, status=Status.SCHEDULED, due_ms=later + 5)
    (near,) = await submit(store, 2, status=Status.SCHEDULED, due_ms=later)
    equal(await store.next_due(), Due(later, None))
    await apply(store, near, cancel())
    equal(await store.next_due(), Due(later + 5, None))
    await store.commit([Delete(expected=far)])
    await submit(store, 3, 4)
    (first,) = await claim(store, bench)
    earliest = (await store.next_due()).lease_ms
    await bench.pass_ms(5)
    (second,) = await claim(store, bench)
    equal(await store.next_due(), Due(None, earliest))
    await apply(store, first.job, succeed())
    truth(((await store.next_due()).lease_ms or 0) > (earliest or 0), "the second lease ends later")
    await apply(store, second.job, succeed())
    equal(await store.next_due(), Due(None, None))


@check
async def promise_05_counts_tell_every_state(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    equal(await here.counts(), {})
    await submit(here, 1, 2, 3, 4)
    await submit(here, 5, status=Status.SCHEDULED, due_ms=2**41)
    (other,) = await submit(here, 6, queue="other")
    first, second, _ = await claim(there, bench, limit=3)
    await apply(there, first.job, succeed())
    await apply(there, second.job, failing())
    await apply(there, other, cancel())
    states = [Status.QUEUED, Status.SCHEDULED, Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED]
    wanted = {("default", status): 1 for status in states} | {("other", Status.CANCELED): 1}
    equal(_no_zeros(await here.counts()), wanted)
    await here.prune(ended_before_ms=2**50, limit=10)
    equal(_no_zeros(await there.counts()), {("default", status): 1 for status in states[:3]})


@check
async def promise_07_ready_tells_what_claims_may_take(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    equal(await here.ready(up_to=10), {})
    await submit(here, 1, 2, 3, name="a")
    await submit(here, 4, name="b")
    (other,) = await submit(here, 5, name="b", queue="other")
    due_ms = await here.now_ms() + bench.lease_ms
    await submit(here, 6, name="late", queue="other", status=Status.SCHEDULED, due_ms=due_ms)
    wanted = {("default", "a"): 3, ("default", "b"): 1, ("other", "b"): 1}
    equal(_no_zeros(await there.ready(up_to=10)), wanted)
    equal(_no_zeros(await there.ready(up_to=2)), wanted | {("default", "a"): 2})
    # A paused queue's jobs are counted, too; those that run, have ended or are not due are not.
    await there.set_paused("other", True)
    equal(_no_zeros(await here.ready(up_to=10)), wanted)
    await there.claim(queues=["default"], names=["a"], limit=1, lease_ms=60_000)
    await apply(there, other, cancel())
    equal(_no_zeros(await here.ready(up_to=10)), {("default", "a"): 2, ("default", "b"): 1})
    await bench.pass_ms(bench.lease_ms)
    await there.set_paused("other", False)
    equal(list(await there.claim(queues=["other"], names=["a"], limit=1, lease_ms=60_000)), [])
    equal(_no_zeros(await here.ready(up_to=10)), {("default", "a"): 2, ("default", "b"): 1, ("other", "late"): 1})


@check
async def promise_10_news_begin_at_once_and_empty(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(there, 1)
    news = await here.wait_news(None)
    equal((news.events, news.complete), ((), True))
    await submit(there, 2)
    news = await here.wait_news(news.cursor)
    equal([event.job_id for event in news.events], [job(2).id])


@check
async def promise_10_every_verb_makes_news(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    cursor = (await here.wait_news(None)).cursor
    wanted: list[Event] = []
    write = birth(1)
    await there.commit([write])
    wanted += write.events
    (claimed,) = await claim(there, bench)
    wanted += claimed.events
    reported = after(claimed.job, progress(1.0), progress(2.0))
    await there.commit([reported])
    wanted += reported.events
    await bench.pass_ms(bench.lease_ms)
    (lapsed,) = await there.lapse(limit=5)
    wanted += lapsed.events
    seen: list[Event] = []
    while len(seen) < len(wanted):
        news = await here.wait_news(cursor)
        truth(news.complete, "nothing was lost")
        seen += news.events
        cursor = news.cursor
    equal(seen, wanted)


@check
async def promise_10_news_wake_a_sleeper(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    cursor = (await here.wait_news(None)).cursor
    news = await woken(here, cursor, lambda: submit(there, 1))
    equal([event.job_id for event in news.events], [job(1).id])


@check
async def promise_10_no_gaps_while_both_commit(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    follower = await bench.connect("follower")
    cursor = (await follower.wait_news(None)).cursor
    seen: dict[str, list[int]] = {}

    async def write(store: Store, first: int) -> None:
        current = await submit(store, *range(first, first + 10), name=f"of {first}")
        for percent in range(10):
            outcomes = await store.commit([after(found, progress(1.0)) for found in await _running(store, current)])
            equal((percent, len(outcomes)), (percent, 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, here, 0)
        nursery.start_soon(write, there, 100)
        while sum(len(seqs) for seqs in seen.values()) < 20 * 12:
            news = await follower.wait_news(cursor)
            truth(news.complete, "nothing was lost")
            cursor = news.cursor
            for event in news.events:
                seen.setdefault(event.job_id, []).append(event.seq)
    equal({job_id: seqs for job_id, seqs in seen.items() if seqs != list(range(1, 13))}, {})


@check
async def promise_10_what_is_lost_is_told(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there", max_events_per_job=3)
    cursor = (await here.wait_news(None)).cursor
    await submit(there, 1)
    (claimed,) = await claim(there, bench)
    await apply(there, claimed.job, *(progress(float(percent)) for percent in range(10)))
    news = await here.wait_news(cursor)
    whole = [event.seq for event in news.events] == list(range(1, 13))
    equal(news.complete, whole)
    # Whoever goes on from there is up to date again.
    await submit(there, 2)
    news = await here.wait_news(news.cursor)
    equal((news.complete, [event.job_id for event in news.events]), (True, [job(2).id]))


@check
async def promise_11_time_is_the_clocks(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    before = await here.now_ms()
    await bench.pass_ms(50)
    later = await there.now_ms()
    if bench.clock_is_injected:
        equal(later - before, 50)
    truth(50 <= later - before < 10_000, f"{later - before} ms have passed")


async def _all_pages(store: Store, where: JobFilter, *, limit: int) -> list[int]:
    found: list[int] = []
    page = await store.list(where, cursor=None, limit=limit)
    while True:
        truth(len(page.jobs) <= limit, "a page keeps to its limit")
        found += ids(page.jobs)
        if page.next is None:
            return found
        page = await store.list(where, cursor=page.next, limit=limit)


async def _running(store: Store, jobs: list[Job]) -> list[Job]:
    """The jobs as they are now, all of them claimed."""
    if (await one(store, jobs[0].id) or jobs[0]).status is Status.QUEUED:
        await store.claim(queues=["default"], names=[jobs[0].name], limit=10, lease_ms=10_000)
    return [found for found in await store.get([item.id for item in jobs]) if found is not None]


def _no_zeros(counts: dict[T, int]) -> dict[T, int]:
    return {pair: count for pair, count in counts.items() if count}


CHECKS: tuple[Check, ...] = (
    promise_03_get_answers_in_the_order_of_the_question,
    promise_05_counts_tell_every_state,
    promise_07_ready_tells_what_claims_may_take,
    promise_08_next_due_tells_the_earliest,
    promise_09_pages_neither_skip_nor_repeat,
    promise_09_a_page_survives_the_job_that_it_ended_with,
    promise_09_a_page_holds_what_the_filter_lets_pass,
    promise_09_a_rare_job_is_found_among_many,
    promise_09_a_cursor_of_someone_else_is_an_error,
    promise_10_news_begin_at_once_and_empty,
    promise_10_every_verb_makes_news,
    promise_10_news_wake_a_sleeper,
    promise_10_no_gaps_while_both_commit,
    promise_10_what_is_lost_is_told,
    promise_11_time_is_the_clocks,
)
