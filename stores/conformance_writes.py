"""Checks of promises 1 to 6 and 9: ``commit`` and ``prune``."""

from itertools import pairwise

from msgspec import Raw
from msgspec.structs import replace

from callboard.runtime.core.commands import Report
from callboard.runtime.core.events import Event, LogEntry
from callboard.runtime.core.job import Failure, Job, Progress, Request, Status
from callboard.runtime.core.store import Committed, Conflict, Delete, Duplicate, Full, Write
from callboard.runtime.core.transition import accept
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
    ids,
    job,
    kinds,
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
async def promise_01_durable_across_connections(bench: Bench) -> None:
    store = await bench.connect("first")
    await submit(store, 1, 2)
    (claimed,) = await claim(store, bench)
    ended = await apply(store, claimed.job, succeed())
    events = await store.events(ended.id, after=0, limit=10)
    counts = await store.counts()
    await store.aclose()
    await store.aclose()
    again = await bench.connect("second")
    equal(await one(again, ended.id), ended)
    equal(list(await again.events(ended.id, after=0, limit=10)), list(events))
    equal(await again.counts(), counts)
    (other,) = await claim(again, bench, limit=5)
    equal((other.job.id, other.request), (job(2).id, request(2)))


@check
async def promise_01_every_field_comes_back(bench: Bench) -> None:
    store = await bench.connect()
    asked = Request(
        body=Raw(b'{"text":"\xe2\x82\xac \\u0000"}'),
        headers=(("accept", "a"), ("accept", "b")),
        route_params={"n": ("int", 7), "x": ("float", 0.5), "s": ("uuid", "u")},
        query_params=(("q", "1"), ("q", "2")),
    )
    new = job(
        1,
        name="näme",
        queue="q/1",
        status=Status.SCHEDULED,
        due_ms=5,
        priority=-1000,
        max_retries=4,
        retry_count=1,
        attempt=2,
        max_lost_leases=0,
        lost_leases=1,
        timeout_seconds=0.25,
        started_ms=3,
        progress=Progress(percent=0.5, message="½", data=Raw(b'{"a":[null]}')),
        error=Failure(code="C", message="m", type="T", retryable=False),
        location="/things/1",
        owner="anna",
        key="k",
        fingerprint="f",
    )
    change = accept(new)
    outcome = committed((await store.commit([Write(job=change.job, events=change.events, request=asked)]))[0])
    equal(replace(outcome.job, serial=0), change.job)
    equal(outcome.events, change.events)
    equal(await one(store, new.id), outcome.job)
    equal(tuple(await store.events(new.id, after=0, limit=5)), change.events)
    (claimed,) = await claim(store, bench, name="näme", queue="q/1")
    equal(claimed.request, asked)
    ended = await apply(store, claimed.job, succeed(result=b'{"deep":[1,2.5,"\\n"]}'))
    equal(await one(store, new.id), ended)
    equal(ended.result, Raw(b'{"deep":[1,2.5,"\\n"]}'))


@check
async def promise_02_one_outcome_each_in_order(bench: Bench) -> None:
    store = await bench.connect()
    (first,) = await submit(store, 1)
    batch: list[Write | Delete] = [birth(2), birth(1), after(first, cancel()), Delete(expected=first), birth(3)]
    outcomes = await store.commit(batch)
    equal(kinds(outcomes), ["Committed", "Duplicate", "Committed", "Conflict", "Committed"])
    equal(ids(await store.get([job(number).id for number in (1, 2, 3)])), [1, 2, 3])
    equal(await store.counts(), {("default", Status.CANCELED): 1, ("default", Status.QUEUED): 2})
    equal(list(await store.commit([])), [])


@check
async def promise_02_an_item_sees_the_ones_before_it(bench: Bench) -> None:
    store = await bench.connect()
    (first,) = await submit(store, 1, key="k")
    ended = after(first, cancel())
    back = after(ended.job, retry())
    again = birth(1, key="k", priority=3)
    outcomes = await store.commit([ended, back, after(first, cancel()), Delete(expected=back.job), again])
    equal(kinds(outcomes), ["Committed", "Committed", "Conflict", "Committed", "Committed"])
    equal(outcomes[2], Conflict(back.job))
    equal(outcomes[3], Committed(back.job, ()))
    born = committed(outcomes[4]).job
    truth(born.serial > first.serial, "an id that is used again gets a new serial")
    equal(await one(store, first.id), born)
    equal(await store.events(first.id, after=0, limit=10), list(again.events))
    equal(await store.counts(), {("default", Status.QUEUED): 1})


@check
async def promise_02_what_came_and_went_in_one_batch_leaves_nothing(bench: Bench) -> None:
    store = await bench.connect()
    (first,) = await submit(store, 1)
    new = birth(2, key="k")
    born = replace(new.job, serial=first.serial + 1)
    outcomes = await store.commit([new, Delete(expected=born)])
    equal(kinds(outcomes[:1]), ["Committed"])
    if isinstance(outcomes[1], Conflict):
        # Serials grow, but need not follow one another where time really passes.
        truth(not bench.clock_is_injected, "the serial of a store whose time stands still can be foretold")
        committed((await store.commit([Delete(expected=committed(outcomes[0]).job)]))[0])
    equal(await one(store, new.job.id), None)
    equal(list(await store.events(new.job.id, after=0, limit=10)), [])
    equal(await store.counts(), {("default", Status.QUEUED): 1})
    (third,) = await submit(store, 3, key="k")
    truth(third.serial > committed(outcomes[0]).job.serial, "a serial is never given twice")


@check
async def promise_03_compares_serial_seq_and_fence(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1)
    (claimed,) = await claim(store, bench)
    current = claimed.job
    for stale in (
        replace(current, serial=current.serial + 1),
        replace(current, seq=current.seq - 1),
        replace(current, seq=current.seq + 1),
        replace(current, fence=current.fence + 1),
        replace(current, fence=0),
    ):
        equal(list(await store.commit([after(stale, succeed())])), [Conflict(current)])
        equal(list(await store.commit([Delete(expected=stale)])), [Conflict(current)])
    equal(await one(store, current.id), current)
    equal(len(await store.events(current.id, after=0, limit=10)), 2)
    ended = await apply(store, current, succeed())
    equal(await one(store, current.id), ended)


@check
async def promise_03_nothing_stored_is_a_conflict_with_none(bench: Bench) -> None:
    store = await bench.connect()
    ghost = replace(birth(1).job, serial=1)
    equal(list(await store.commit([after(ghost, cancel()), Delete(expected=ghost)])), [Conflict(None), Conflict(None)])
    equal(await one(store, ghost.id), None)
    equal(await store.counts(), {})


@check
async def promise_03_the_other_connection_loses_the_race(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    (first,) = await submit(here, 1)
    canceled = await apply(there, first, cancel())
    equal(list(await here.commit([after(first, cancel())])), [Conflict(canceled)])


@check
async def promise_03_again_is_asked_with_the_stored_record(bench: Bench) -> None:
    """A writer that was overtaken writes what it decides from the newer record, whole, in the same commit."""
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1)
    (claimed,) = await claim(here, bench)
    newer = await apply(there, claimed.job, progress(50))
    asked: list[Job] = []

    def again(stored: Job) -> Write:
        asked.append(stored)
        return after(stored, cancel())

    (outcome,) = await here.commit([replace(after(claimed.job, cancel()), again=again)])
    equal(asked, [newer])
    equal(committed(outcome).job, after(newer, cancel()).job)
    equal(await one(there, newer.id), committed(outcome).job)
    seqs = [event.seq for event in await there.events(newer.id, after=0, limit=10)]
    equal(seqs, list(range(1, newer.seq + 2)))


@check
async def promise_03_again_is_not_asked_without_need_and_may_refuse(bench: Bench) -> None:
    store = await bench.connect()
    (first,) = await submit(store, 1)
    asked: list[Job] = []

    def refuse(stored: Job) -> None:
        asked.append(stored)

    write = replace(after(first, cancel()), again=refuse)
    canceled = committed((await store.commit([write]))[0]).job
    equal(asked, [])
    equal(list(await store.commit([write])), [Conflict(canceled)])
    equal(asked, [canceled])
    # What it gives in its stead is compared too.
    stale = replace(write, again=lambda stored: write)
    equal(list(await store.commit([stale])), [Conflict(canceled)])
    ghost = replace(birth(2).job, serial=99)
    equal(list(await store.commit([replace(after(ghost, cancel()), again=refuse)])), [Conflict(None)])
    equal(asked, [canceled])
    equal(len(await store.events(first.id, after=0, limit=10)), 2)


@check
async def promise_04_one_id(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    first, second = await here.commit([birth(1), birth(1, name="other")])
    equal(second, Duplicate(committed(first).job))
    equal(list(await there.commit([birth(1)])), [Duplicate(committed(first).job)])
    equal(await there.counts(), {("default", Status.QUEUED): 1})
    equal(len(await here.events(job(1).id, after=0, limit=10)), 1)


@check
async def promise_04_one_key(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    first, second = await here.commit([birth(1, key="k"), birth(2, key="k")])
    equal(second, Duplicate(committed(first).job))
    equal(list(await there.commit([birth(3, key="k")])), [Duplicate(committed(first).job)])
    await submit(there, 4, 5)
    ended = await apply(here, committed(first).job, cancel())
    equal(list(await there.commit([birth(6, key="k")])), [Duplicate(ended)])
    await here.commit([Delete(expected=ended)])
    (again,) = await submit(there, 6, key="k")
    equal(again.key, "k")


@check
async def promise_04_a_duplicate_is_told_before_a_full_queue(bench: Bench) -> None:
    store = await bench.connect()
    (first,) = await submit(store, 1, key="k")
    batch = [birth(1, max_queue_size=1), birth(2, key="k", max_queue_size=1)]
    equal(list(await store.commit(batch)), [Duplicate(first), Duplicate(first)])


@check
async def promise_05_a_queue_is_bounded(bench: Bench) -> None:
    store = await bench.connect()
    scheduled = birth(2, status=Status.SCHEDULED, due_ms=2**41, max_queue_size=2)
    batch = [
        birth(1, max_queue_size=2),
        scheduled,
        birth(3, max_queue_size=2),
        birth(4, queue="other", max_queue_size=2),
    ]
    outcomes = await store.commit([*batch, birth(5)])
    equal(kinds(outcomes), ["Committed", "Committed", "Full", "Committed", "Committed"])
    equal(outcomes[2], Full(2))
    equal(list(await store.commit([birth(6, max_queue_size=2)])), [Full(3)])
    equal(ids(await store.get([job(3).id, job(6).id])), [-1, -1])


@check
async def promise_05_running_and_ended_jobs_do_not_count(bench: Bench) -> None:
    store = await bench.connect()
    await submit(store, 1, 2)
    running, ending = await claim(store, bench, limit=2)
    await apply(store, ending.job, succeed())
    outcomes = await store.commit([birth(3, max_queue_size=1), birth(4, max_queue_size=1)])
    equal(outcomes[1], Full(1))
    equal(kinds(outcomes), ["Committed", "Full"])
    waiting = committed(outcomes[0]).job
    # Staying in a full queue, leaving it, or staying out of it, is never refused.
    moved = replace(waiting, seq=waiting.seq + 1, priority=5)
    stays = Write(job=moved, events=(_jump(waiting, moved),), expected=waiting, max_queue_size=0)
    leaves = after(moved, cancel(), max_queue_size=0)
    writes = [stays, leaves, after(running.job, progress(5.0), max_queue_size=0)]
    equal(kinds(await store.commit(writes)), ["Committed", "Committed", "Committed"])


@check
async def promise_05_a_retry_joins_the_queue(bench: Bench) -> None:
    store = await bench.connect()
    first, _ = await submit(store, 1, 2)
    ended = await apply(store, first, cancel())
    equal(list(await store.commit([after(ended, retry(), max_queue_size=1)])), [Full(1)])
    equal(await one(store, first.id), ended)
    equal(kinds(await store.commit([after(ended, retry(), max_queue_size=2)])), ["Committed"])
    equal(taken(await claim(store, bench, limit=5)), [1, 2])


@check
async def promise_06_events_in_order(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    await submit(here, 1, 2)
    (claimed,) = await claim(here, bench)
    logs = (LogEntry("info", "one"), LogEntry("warning", "zwei €"))
    report = Report(now_ms=claimed.job.updated_ms, logs=logs, progress=Progress(percent=1.0))
    ended = await apply(here, claimed.job, report, succeed())
    events = await there.events(ended.id, after=0, limit=100)
    equal([event.seq for event in events], [1, 2, 3, 4, 5, 6])
    equal([event.type for event in events], ["status", "status", "log", "log", "progress", "status"])
    equal([event.log for event in events[2:4]], list(logs))
    equal(list(await there.events(ended.id, after=2, limit=3)), list(events[2:5]))
    equal(list(await there.events(ended.id, after=6, limit=3)), [])
    equal(list(await there.events(job(9).id, after=0, limit=3)), [])
    equal(len(await there.events(job(2).id, after=0, limit=100)), 1)


@check
async def promise_06_a_refused_write_leaves_no_event(bench: Bench) -> None:
    store = await bench.connect()
    (first,) = await submit(store, 1)
    stale = replace(first, seq=5)
    await store.commit([birth(1), after(stale, cancel()), birth(2, max_queue_size=0)])
    equal([event.seq for event in await store.events(first.id, after=0, limit=10)], [1])
    equal(list(await store.events(job(2).id, after=0, limit=10)), [])


@check
async def promise_06_only_the_newest_events_are_kept(bench: Bench) -> None:
    store = await bench.connect(max_events_per_job=4)
    await submit(store, 1, 2)
    (claimed,) = await claim(store, bench)
    current = claimed.job
    for percent in range(5):
        current = await apply(store, current, progress(float(percent)))
        events = await store.events(current.id, after=0, limit=100)
        equal([event.seq for event in events], list(range(max(1, current.seq - 3), current.seq + 1)))
    # More in one write than are kept at all.
    current = await apply(store, current, *(progress(float(percent)) for percent in range(9)))
    events = await store.events(current.id, after=0, limit=100)
    equal([event.seq for event in events], list(range(current.seq - 3, current.seq + 1)))
    equal([event.seq for event in await store.events(job(2).id, after=0, limit=100)], [1])


@check
async def promise_06_the_newest_are_counted_where_seqs_have_gaps(bench: Bench) -> None:
    store = await bench.connect(max_events_per_job=3)
    (current,) = await submit(store, 1)
    for seq in (5, 9, 14):
        following = replace(current, seq=seq)
        await store.commit([Write(job=following, events=(_jump(current, following),), expected=current)])
        current = following
    equal([event.seq for event in await store.events(current.id, after=0, limit=10)], [5, 9, 14])


@check
async def promise_09_serials_grow_and_never_come_back(bench: Bench) -> None:
    here, there = await bench.connect("here"), await bench.connect("there")
    serials = [found.serial for found in await submit(here, 3, 1)]
    (second,) = await submit(there, 2)
    serials.append(second.serial)
    # The newest goes, by a purge and by retention, and with it every trace.
    await here.commit([Delete(expected=second)])
    (ended,) = await submit(there, 4)
    serials.append(ended.serial)
    ended = await apply(there, ended, cancel())
    equal(await here.prune(ended_before_ms=2**50, limit=10), 1)
    await there.aclose()
    await here.aclose()
    again = await bench.connect("again")
    reused = await submit(again, 2, 4)
    serials += [found.serial for found in reused]
    truth(all(earlier < later for earlier, later in pairwise(serials)), f"not growing: {serials}")
    for found in reused:
        equal([event.seq for event in await again.events(found.id, after=0, limit=10)], [1])


@check
async def promise_01_prune_removes_ended_jobs(bench: Bench) -> None:
    store = await bench.connect()
    old, recent, live, running = await submit(store, 1, 2, 3, 4, owner="anna")
    old = await apply(store, old, cancel(running.updated_ms + 100))
    recent = await apply(store, recent, cancel(running.updated_ms + 200))
    ended_ms = old.completed_ms or 0
    equal(await store.prune(ended_before_ms=ended_ms, limit=10), 0)
    equal(await store.prune(ended_before_ms=ended_ms + 1, limit=10), 1)
    equal(ids(await store.get([old.id, recent.id, live.id])), [-1, 2, 3])
    equal(list(await store.events(old.id, after=0, limit=10)), [])
    equal(await store.counts(), {("default", Status.QUEUED): 2, ("default", Status.CANCELED): 1})
    equal(await store.prune(ended_before_ms=2**50, limit=10), 1)
    equal(ids(await store.get([live.id, running.id])), [3, 4])


@check
async def promise_01_prune_keeps_to_its_limit_and_spares_the_retried(bench: Bench) -> None:
    store = await bench.connect()
    ended = [await apply(store, found, cancel()) for found in await submit(store, 1, 2, 3, 4, 5)]
    again = await apply(store, ended[0], retry())
    equal([await store.prune(ended_before_ms=2**50, limit=3) for _ in range(3)], [3, 1, 0])
    equal(await one(store, again.id), again)


@check
async def promise_04_pruning_frees_the_key(bench: Bench) -> None:
    store = await bench.connect()
    (first,) = await submit(store, 1, key="k")
    await apply(store, first, cancel())
    equal(await store.prune(ended_before_ms=2**50, limit=10), 1)
    await submit(store, 2, key="k")


def _jump(before: Job, following: Job) -> Event:
    return Event(
        job_id=following.id,
        seq=following.seq,
        since=before.seq,
        type="progress",
        at_ms=following.updated_ms,
        status=following.status,
        name=following.name,
        queue=following.queue,
        changes={},
    )


CHECKS: tuple[Check, ...] = (
    promise_01_durable_across_connections,
    promise_01_every_field_comes_back,
    promise_01_prune_removes_ended_jobs,
    promise_01_prune_keeps_to_its_limit_and_spares_the_retried,
    promise_02_one_outcome_each_in_order,
    promise_02_an_item_sees_the_ones_before_it,
    promise_02_what_came_and_went_in_one_batch_leaves_nothing,
    promise_03_compares_serial_seq_and_fence,
    promise_03_nothing_stored_is_a_conflict_with_none,
    promise_03_the_other_connection_loses_the_race,
    promise_03_again_is_asked_with_the_stored_record,
    promise_03_again_is_not_asked_without_need_and_may_refuse,
    promise_04_one_id,
    promise_04_one_key,
    promise_04_a_duplicate_is_told_before_a_full_queue,
    promise_04_pruning_frees_the_key,
    promise_05_a_queue_is_bounded,
    promise_05_running_and_ended_jobs_do_not_count,
    promise_05_a_retry_joins_the_queue,
    promise_06_events_in_order,
    promise_06_a_refused_write_leaves_no_event,
    promise_06_only_the_newest_events_are_kept,
    promise_06_the_newest_are_counted_where_seqs_have_gaps,
    promise_09_serials_grow_and_never_come_back,
)
