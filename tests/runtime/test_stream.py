"""Following a job: an unbroken chain from any point, or an explicit gap; the terminal event exactly once."""

import random
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from tests.runtime.kit import FaultyStore, folded, follow, handler, opened, shown
from trio.testing import MockClock

from callboard.runtime import Config, Event, Job, JobContext, JobNotFound, Runtime, ShuttingDown, Snapshot
from callboard.runtime.hub import Hub, Subscription
from callboard.stores.memory import MemoryDatabase

CHATTY = 12
IDLE = Config(max_concurrent_jobs=0)
CHOSEN = str(uuid.UUID(int=5))


@handler(max_retries=1)
async def work(job: JobContext) -> str:
    """Says something every second; fails once."""
    for step in range(CHATTY // 2):
        job.log("info", f"line {step}")
        await job.progress(step, f"step {step}", data=[step])
        await trio.sleep(1)
    if job.attempt == 1:
        raise ValueError
    return "whole"


def events_in(told: list[Snapshot | Event]) -> list[Event]:
    return [item for item in told if isinstance(item, Event)]


def gaps_in(told: list[Snapshot | Event]) -> int:
    return sum(item.gap for item in told if isinstance(item, Snapshot))


async def finished(runtime: Runtime) -> tuple[Job, list[Event]]:
    """A job that has ended, and its whole history."""
    job = await runtime.wait((await runtime.submit("work")).id)
    assert job.status == "Completed"
    events = events_in(await follow(runtime, job.id, after=0))
    assert [event.seq for event in events] == list(range(1, job.seq + 1))
    return job, events


async def test_fold_of_the_events_is_the_document_at_every_seq(autojump_clock: MockClock) -> None:
    documents: dict[int, dict[str, Any]] = {}
    store = FaultyStore()
    async with opened(store, work) as runtime:

        def note(events: Any) -> None:
            for event in events:
                record = store._inner._shared.find(event.job_id)
                assert record is not None
                documents[record.job.seq] = shown(record.job)

        runtime.on_events.append(note)
        job, events = await finished(runtime)
        assert set(documents) >= {1, 2, job.seq}
        for seq, document in documents.items():
            assert folded([event for event in events if event.seq <= seq]) == document
        assert {event.type for event in events} == {"status", "progress", "log"}
        assert [event.log.message for event in events if event.log][:2] == ["line 0", "line 1"]


async def test_live_follower_sees_all_and_ends_after_the_terminal_event(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        told = await follow(runtime, job.id)
        assert isinstance(told[0], Snapshot)
        assert not told[0].gap
        ended = await runtime.get(job.id)
        assert folded(told) == shown(ended)
        assert [event.seq for event in events_in(told)] == list(range(told[0].seq + 1, ended.seq + 1))
        assert [event.is_terminal for event in events_in(told)].count(True) == 1
        assert runtime.stats().subscribers == 0


@pytest.mark.parametrize("late_seconds", [0.5, 3.2, 7, 30])
async def test_late_follower_begins_with_a_snapshot(autojump_clock: MockClock, late_seconds: float) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(late_seconds)
        now = await runtime.get(job.id)
        told = await follow(runtime, job.id)
        assert told[0] == Snapshot(now)
        assert folded(told) == shown(await runtime.get(job.id))
        if late_seconds == 30:
            assert len(told) == 1


async def test_resume_at_every_seq(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        job, events = await finished(runtime)
        for after in range(job.seq + 1):
            told = await follow(runtime, job.id, after=after)
            assert told == events[after:]


async def test_resume_while_it_runs(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        results: dict[int, list[Snapshot | Event]] = {}

        async def resume(after: int) -> None:
            results[after] = await follow(runtime, job.id, after=after)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                await trio.sleep(1.3)
                for after in range((await runtime.get(job.id)).seq + 1):
                    if after not in results:
                        results[after] = []
                        nursery.start_soon(resume, after)
        history = events_in(await follow(runtime, job.id, after=0))
        for after, told in results.items():
            assert gaps_in(told) == 0
            before = folded(history[:after])
            assert folded([*history[:after], *told]) == shown(await runtime.get(job.id))
            assert events_in(told)[0].since == before.get("seq", 0)


@pytest.mark.parametrize("ended", [True, False])
async def test_resume_ahead_of_the_job_is_a_gap(autojump_clock: MockClock, ended: bool) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        if ended:
            await runtime.wait(job.id)
        told = await follow(runtime, job.id, after=999)
        first = told[0]
        assert isinstance(first, Snapshot)
        assert first.gap
        assert (len(told) == 1) is ended
        assert folded(told) == shown(await runtime.get(job.id))


async def test_history_that_was_trimmed_is_a_gap(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=Config(max_events_per_job=5)) as runtime:
        job = await runtime.wait((await runtime.submit("work")).id)
        assert await follow(runtime, job.id, after=1) == [Snapshot(job, gap=True)]
        assert await follow(runtime, job.id, after=job.seq - 6) == [Snapshot(job, gap=True)]
        reached = await follow(runtime, job.id, after=job.seq - 5)
        assert [item.seq for item in reached] == list(range(job.seq - 4, job.seq + 1))


async def test_follower_of_nothing(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        for unknown in (CHOSEN, "nonsense"):
            with pytest.raises(JobNotFound):
                await follow(runtime, unknown)
        assert runtime.stats().subscribers == 0


@pytest.mark.parametrize(("kept", "gaps"), [(1000, 0), (20, 1)])
async def test_slow_follower_rereads_and_gets_a_gap_only_where_history_ends(
    autojump_clock: MockClock, kept: int, gaps: int
) -> None:
    @handler()
    async def flood(job: JobContext) -> None:
        for number in range(100):
            job.log("info", f"line {number}")
            await trio.sleep(0.2)

    config = Config(max_subscriber_events=4, max_events_per_job=kept)
    async with opened(None, flood, config=config) as runtime:
        job = await runtime.submit("work")
        told: list[Snapshot | Event] = []
        async with runtime.watch(job.id) as events:
            async for item in events:
                told.append(item)
                if len(told) == 3:
                    await trio.sleep(12)
        assert gaps_in(told) == gaps
        assert folded(told) == shown(await runtime.get(job.id))
        if gaps == 0:
            assert len([event for event in events_in(told) if event.log]) == 100


async def test_stalled_follower_costs_bounded_memory_and_slows_nobody(autojump_clock: MockClock) -> None:
    @handler()
    async def flood(job: JobContext) -> None:
        for number in range(2000):
            job.log("info", f"line {number}")
            await trio.sleep(0.11)

    async with opened(None, flood, config=Config(max_subscriber_events=10)) as runtime:
        job = await runtime.submit("work")
        async with runtime.watch(job.id) as events:
            await events.__anext__()
            ended = await runtime.wait(job.id)
            assert ended.started_ms is not None and ended.completed_ms is not None
            assert ended.completed_ms - ended.started_ms < 230_000
            assert len(events._inbox._events) <= 10


async def test_merged_progress_keeps_the_chain(autojump_clock: MockClock) -> None:
    @handler()
    async def busy(job: JobContext) -> None:
        for number in range(50):
            await job.progress(number)
            await trio.sleep(0.2)
        job.log("info", "between")
        await trio.sleep(0.2)
        await job.progress(99, data={"last": True})

    async with opened(None, busy, config=Config(max_subscriber_events=3)) as runtime:
        job = await runtime.submit("work")
        told: list[Snapshot | Event] = []
        async with runtime.watch(job.id) as events:
            told.append(await events.__anext__())
            await trio.sleep(5)
            async for item in events:
                told.append(item)
                await trio.sleep(2)
        merged = [event for event in events_in(told) if event.seq - event.since > 1]
        assert merged, "nothing was merged: the test tests nothing"
        assert {event.type for event in merged} == {"progress"}
        assert gaps_in(told) == 0
        assert [event.log.message for event in events_in(told) if event.log] == ["between"]
        assert folded(told) == shown(await runtime.get(job.id))


async def test_terminal_event_exactly_once_and_again_after_a_retry_by_hand(autojump_clock: MockClock) -> None:
    @handler(max_retries=0)
    async def fails_first(job: JobContext) -> int:
        await trio.sleep(1)
        if job.attempt == 1:
            raise ValueError
        return job.attempt

    async with opened(None, fails_first) as runtime:
        job = await runtime.submit("work")
        first = await follow(runtime, job.id)
        assert [event.status for event in events_in(first) if event.is_terminal] == ["Failed"]
        seen = first[-1].seq
        await runtime.retry(job.id)
        second = await follow(runtime, job.id, after=seen)
        assert [event.status for event in events_in(second) if event.is_terminal] == ["Completed"]
        assert folded([*first, *second]) == shown(await runtime.get(job.id))
        # One that slept through all of it is told the whole story in order.
        whole = await follow(runtime, job.id, after=0)
        assert [event.status for event in events_in(whole) if event.is_terminal] == ["Failed", "Completed"]


async def test_follower_that_stalls_over_a_retry_by_hand_sees_both_ends(autojump_clock: MockClock) -> None:
    @handler(max_retries=0)
    async def fails_first(job: JobContext) -> int:
        await trio.sleep(1)
        if job.attempt == 1:
            raise ValueError
        return job.attempt

    async with opened(None, fails_first) as runtime:
        job = await runtime.submit("work")
        told: list[Snapshot | Event] = []
        async with runtime.watch(job.id) as events:
            told.append(await events.__anext__())
            await runtime.wait(job.id)
            await runtime.retry(job.id)
            await runtime.wait(job.id)
            told += [item async for item in events]
        assert [event.status for event in events_in(told) if event.is_terminal] == ["Failed", "Completed"]
        assert folded(told) == shown(await runtime.get(job.id))


async def test_purged_and_reused_id_is_another_story(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, work) as runtime:
        job = await runtime.submit("work", job_id=CHOSEN)
        async with runtime.watch(CHOSEN) as events:
            told = [await events.__anext__()]
            await runtime.cancel(job.id)
            await trio.sleep(0.1)
            runtime._hub.lag_all()
            await runtime.purge(CHOSEN)
            await runtime.submit("work", job_id=CHOSEN)
            told += [item async for item in events]
        # The old story is told as a gap into the new one, never mixed with it.
        assert gaps_in(told) == 1
        assert folded(told) == shown(await runtime.get(CHOSEN))


async def test_follower_of_a_purged_job_ends(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        job = await runtime.submit("work")
        async with runtime.watch(job.id) as events:
            await events.__anext__()
            await runtime.cancel(job.id)
            await trio.sleep(0.1)
            runtime._hub.lag_all()
            await runtime.purge(job.id)
            with trio.fail_after(5):
                assert [item async for item in events] == []


async def test_follower_in_the_other_process(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), work) as owner:
        async with opened(FaultyStore(database), work, config=IDLE, seed=2) as other:
            job = await other.submit("work")
            told = await follow(other, job.id)
            assert gaps_in(told) == 0
            assert folded(told) == shown(await owner.get(job.id))


async def test_follower_over_a_store_outage_misses_nothing(autojump_clock: MockClock) -> None:
    """News fails, reads fail, and one commit takes effect although it said that it did not."""
    database = MemoryDatabase()
    mine, theirs = FaultyStore(database), FaultyStore(database)
    async with opened(mine, work) as owner:
        async with opened(theirs, work, config=IDLE, seed=2) as other:
            job = await owner.submit("work")
            told: list[list[Snapshot | Event]] = [[], []]

            async def run(index: int, runtime: Runtime) -> None:
                told[index] = await follow(runtime, job.id, after=0)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, 0, owner)
                nursery.start_soon(run, 1, other)
                await trio.sleep(2)
                mine.fail("commit", seconds=2, after=True)
                await trio.sleep(3)
                theirs.fail(seconds=5)
                mine.fail("get", "events", seconds=3)
            for one in told:
                assert gaps_in(one) == 0
                assert folded(one) == shown(await owner.get(job.id))


class ForgetfulStore(FaultyStore):
    """A connection to a store that has lost the newest writes, as a server may that failed over."""

    lost_after: Job | None = None

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        jobs = await super().get(job_ids)
        return jobs if self.lost_after is None else [self.lost_after for _ in jobs]

    async def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        events = await super().events(job_id, after=after, limit=limit)
        return [event for event in events if self.lost_after is None or event.seq <= self.lost_after.seq]


async def test_what_the_store_has_lost_is_told_as_a_gap(autojump_clock: MockClock) -> None:
    """Without it the follower would wait for events beyond what it was told, which the job may never reach again."""
    database = MemoryDatabase()
    forgetful = ForgetfulStore(database)
    async with opened(FaultyStore(database), work) as owner:
        async with opened(forgetful, work, config=IDLE, seed=2) as other:
            job = await owner.submit("work")
            await trio.sleep(1.5)
            async with other.watch(job.id) as events:
                early = await owner.get(job.id)
                told = [await events.__anext__()]
                while told[-1].seq < early.seq + 4:
                    told.append(await events.__anext__())
                assert gaps_in(told) == 0
                forgetful.lost_after = early
                other._hub.lag_all()
                with trio.fail_after(30):
                    while not isinstance(again := await events.__anext__(), Snapshot):
                        pass
                assert again == Snapshot(early, gap=True)


async def test_news_that_is_gone_for_good_makes_everybody_reread(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    deaf = FaultyStore(database)
    async with opened(FaultyStore(database), work) as owner:
        async with opened(deaf, work, config=IDLE, seed=2) as other:
            job = await owner.submit("work")
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    with trio.fail_after(60):
                        told = await follow(other, job.id, after=0)
                    assert folded(told) == shown(await owner.get(job.id))
                    assert gaps_in(told) == 0

                nursery.start_soon(run)
                await trio.sleep(1)
                deaf.fail("wait_news", seconds=20)
                await trio.sleep(19)  # the job has ended: no later event will show the hole
                assert (await owner.get(job.id)).status == "Completed"
                database.forgotten = database.position - 1
                database.feed.clear()


async def wander(runtime: Runtime, job_id: str, source: random.Random, tally: dict[str, int]) -> None:
    """A client that joins late, stalls, disconnects and resumes, until it has seen the end."""
    await trio.sleep(source.uniform(0, 12))
    state: dict[str, Any] = {}
    terminal = 0
    while not terminal and state.get("status") not in ("Completed", "Failed", "Canceled"):
        async with runtime.watch(job_id, after=state.get("seq")) as events:
            patience = source.randint(1, 20)
            async for item in events:
                if isinstance(item, Snapshot):
                    tally["gaps"] += item.gap
                    assert item.gap is bool(state), "a snapshot in the middle has to say that it is a gap"
                    state = {}
                elif item.is_terminal:
                    terminal += 1
                before = state.get("seq")
                state = {**state, **folded([item], None)} if before is None else merged(state, item)
                if source.random() < 0.2:
                    await trio.sleep(source.uniform(0, 3))
                patience -= 1
                if patience == 0:
                    break
        await trio.sleep(source.uniform(0, 1))
    assert terminal <= 1
    assert state == shown(await runtime.get(job_id))
    tally["ends"] += 1


def merged(state: dict[str, Any], item: Snapshot | Event) -> dict[str, Any]:
    import msgspec

    assert isinstance(item, Event)
    assert item.since == state["seq"], "the chain is broken"
    return state | {name: msgspec.json.decode(value) for name, value in item.changes.items()}


@pytest.mark.parametrize("kept", [1000, 8])
async def test_200_jobs_and_200_wandering_clients(autojump_clock: MockClock, kept: int) -> None:
    source = random.Random(kept)
    tally = {"ends": 0, "gaps": 0}

    @handler(max_retries=1)
    async def lively(job: JobContext) -> int:
        for step in range(source.randint(1, 12)):
            job.log("info", f"{step}")
            await job.progress(step)
            await trio.sleep(source.uniform(0, 1))
        if source.random() < 0.3:
            raise ValueError
        return job.attempt

    config = Config(max_concurrent_jobs=50, max_subscriber_events=5, max_events_per_job=kept, retry_base_seconds=1)
    async with opened(None, lively, config=config) as runtime:
        jobs = [await runtime.submit("work") for _ in range(200)]
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(wander, runtime, job.id, random.Random(source.random()), tally)
        assert runtime.stats().subscribers == 0
    assert tally["ends"] == 200
    assert (tally["gaps"] > 0) is (kept == 8)


# The mailbox of one subscriber


def event(seq: int, kind: Any = "progress", job_id: str = "a") -> Event:
    return Event(
        job_id=job_id, seq=seq, since=seq - 1, type=kind, at_ms=0, status="InProgress", name="n", queue="q", changes={}
    )


async def test_subscription_merges_only_adjoining_progress() -> None:
    inbox = Subscription(10)
    for one in (event(1), event(2), event(4), event(5, "log"), event(6), event(7)):
        inbox.offer(one)
    events, lagged = await inbox.take()
    assert [(one.since, one.seq) for one in events] == [(0, 2), (3, 4), (4, 5), (5, 7)]
    assert not lagged


async def test_subscription_drops_all_at_its_bound_and_says_so() -> None:
    inbox = Subscription(2)
    for seq in range(1, 5):
        inbox.offer(event(seq, "log"))
    events, lagged = await inbox.take()
    assert lagged
    assert len(events) <= 2
    assert inbox.is_empty


async def test_hub_serves_filters_and_says_when_it_closes() -> None:
    hub = Hub()
    with hub.subscribe_where(lambda one: one.job_id == "b", 10) as some, hub.subscribe("a", 10) as one:
        assert hub.subscribers == 2
        hub.publish([event(1, "log"), event(2, "log", "b")])
        assert [told.seq for told in (await some.take())[0]] == [2]
        assert [told.seq for told in (await one.take())[0]] == [1]
        hub.lag_all()
        assert (await some.take()) == ([], True)
        hub.publish([event(3, "log", "b")])
        hub.close()
        assert [told.seq for told in (await some.take())[0]] == [3]
        with pytest.raises(ShuttingDown):
            await some.take()
    with hub.subscribe("a", 10) as late:
        with pytest.raises(ShuttingDown):
            await late.take()
    assert hub.subscribers == 0
