"""Following all jobs that fit: whoever folds what it is told has every job as it is, whatever was lost on the way."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from tests.runtime.kit import FaultyStore, handler, hard_stop, opened, shown
from trio.testing import MockClock

from callboard.runtime import (
    Config,
    Event,
    Job,
    JobContext,
    JobFailed,
    JobFilter,
    Missed,
    Runtime,
    ShuttingDown,
    Snapshot,
    Status,
    StoreRefused,
    StoreUnavailable,
    Submission,
)
from callboard.runtime import feed as feeds
from callboard.runtime.core.job import TERMINAL
from callboard.runtime.core.store import Page, Store
from callboard.runtime.feed import Feed, _Known, _Memory, open_feed
from callboard.stores.memory import MemoryDatabase

IDLE = Config(max_concurrent_jobs=0)


@handler(max_retries=1)
async def work(job: JobContext) -> int:
    """Says something for a few seconds; every third job fails at first."""
    for step in range(3):
        await job.progress(step)
        job.log("info", f"line {step}")
        await trio.sleep(0.7)
    if int(job.id[-1], 16) % 3 == 0 and job.attempt == 1:
        raise JobFailed("AGAIN", "once more", retryable=True)
    return job.attempt


@handler("fails", max_retries=0)
async def fails(job: JobContext) -> None:
    await trio.sleep(1)
    raise JobFailed("NO", "as expected")


class Picture:
    """What a client has who folds the feed; refuses what could not be folded."""

    def __init__(self, *statuses: Status) -> None:
        self.statuses = statuses
        self.documents: dict[str, dict[str, Any]] = {}
        """The jobs that fit."""
        self.gone: dict[str, dict[str, Any]] = {}
        """The jobs that fitted, as they were told last."""
        self.items: list[Snapshot | Event | Missed] = []
        self.gaps = 0
        self.ends: Counter[str] = Counter()

    def take(self, item: Snapshot | Event | Missed) -> None:
        self.items.append(item)
        if isinstance(item, Missed):
            return
        if isinstance(item, Snapshot):
            job_id, document = item.job.id, shown(item.job)
            assert job_id not in self.documents or item.gap, "a snapshot that has no reason"
            self.gaps += item.gap
        else:
            job_id = item.job_id
            before = self.documents.get(job_id, {})
            assert item.since == before.get("seq", 0), f"the chain is broken: {item.since} after {before.get('seq')}"
            document = before | {name: msgspec.json.decode(value) for name, value in item.changes.items()}
        if document["status"] in TERMINAL:
            self.ends[job_id] += 1
        if self.statuses and document["status"] not in self.statuses:
            self.documents.pop(job_id, None)
            self.gone[job_id] = document
        else:
            self.documents[job_id] = document

    @property
    def missed(self) -> list[Missed]:
        return [item for item in self.items if isinstance(item, Missed)]

    async def follow(self, items: Feed, *, until_quiet_seconds: float = 20) -> None:
        """Take what comes until nothing has come for so long."""
        while True:
            with trio.move_on_after(until_quiet_seconds) as scope:
                item = await anext(items)
            if scope.cancelled_caught:
                return
            self.take(item)

    async def check(self, runtime: Runtime, job_ids: Sequence[str]) -> None:
        """It is exactly those jobs, each as it is now."""
        assert self.documents == {job_id: shown(await runtime.get(job_id)) for job_id in job_ids}


async def test_new_jobs_from_birth_to_end(autojump_clock: MockClock) -> None:
    async with opened(None, work, fails) as runtime, runtime.feed() as items:
        picture = Picture()
        jobs = [await runtime.submit("work") for _ in range(20)]
        jobs += [await runtime.submit("fails", delay_seconds=5) for _ in range(5)]
        await picture.follow(items)
        assert (picture.gaps, picture.missed) == (0, [])
        assert not any(isinstance(item, Snapshot) for item in picture.items)
        assert picture.ends == {job.id: 1 for job in jobs}
        await picture.check(runtime, [job.id for job in jobs])
        assert runtime.stats().subscribers == 1
    assert runtime.stats().subscribers == 0


async def test_jobs_from_before_begin_with_a_snapshot_when_they_change(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=Config(max_concurrent_jobs=2)) as runtime:
        jobs = [await runtime.submit("work") for _ in range(5)]
        ended = await runtime.wait((await runtime.submit("work", priority=9)).id)
        async with runtime.feed() as items:
            picture = Picture()
            await picture.follow(items)
        firsts = [item for item in picture.items if isinstance(item, Snapshot)]
        assert len(firsts) == len({item.job.id for item in firsts}) <= 5
        assert picture.gaps == 0
        assert ended.id not in picture.documents, "no history"
        left = {job.id for job in jobs if job.id not in picture.documents}
        await picture.check(runtime, [job.id for job in jobs if job.id not in left])


async def test_filters(autojump_clock: MockClock) -> None:
    @handler("elsewhere", queue="other")
    async def elsewhere(job: JobContext) -> None: ...

    async with opened(None, work, fails, elsewhere) as runtime:
        wheres = [JobFilter(name="fails"), JobFilter(queue="other"), JobFilter(owner="ann"), JobFilter(owner="")]
        pictures = [Picture() for _ in wheres]
        async with trio.open_nursery() as nursery:

            async def follow(where: JobFilter, picture: Picture) -> None:
                async with runtime.feed(where) as items:
                    await picture.follow(items)

            for where, picture in zip(wheres, pictures, strict=True):
                nursery.start_soon(follow, where, picture)
            await trio.testing.wait_all_tasks_blocked()
            of = {name: (await runtime.submit(name)).id for name in ("work", "fails", "elsewhere")}
            for owner in ("ann", "bob", ""):
                of[owner] = (await runtime.accept(Submission(name="work", owner=owner))).job.id
        for picture, wanted in zip(pictures, ("fails", "elsewhere", "ann", ""), strict=True):
            await picture.check(runtime, [of[wanted]])


async def test_a_job_that_fits_no_longer_gets_one_last_event(autojump_clock: MockClock) -> None:
    async with opened(None, fails, work) as runtime:
        async with runtime.feed(JobFilter(statuses=(Status.FAILED,))) as items:
            picture = Picture(Status.FAILED)
            job = await runtime.submit("fails")
            other = await runtime.submit("work")
            await picture.follow(items)
            await picture.check(runtime, [job.id])
            assert [type(item) for item in picture.items] == [Snapshot]
            await runtime.retry(job.id)
            await picture.follow(items)
            # Told as it left, and from anew when it failed again; nothing of what was between.
            told = [(type(item), item.seq) for item in picture.items if not isinstance(item, Missed)]
            first, ended = picture.items[0], await runtime.get(job.id)
            assert isinstance(first, Snapshot)
            assert told == [(Snapshot, first.seq), (Event, first.seq + 1), (Snapshot, ended.seq)]
            assert picture.gone[job.id]["status"] == "Queued"
            assert picture.gaps == 0
            await picture.check(runtime, [job.id])
            assert other.id not in picture.gone


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS, Status.SCHEDULED])
async def test_who_is_told_of_a_passing_state_is_told_of_its_end(autojump_clock: MockClock, status: Status) -> None:
    """The store answers slowly: what is read may be over by the time it is told."""
    store, source = FaultyStore(), random.Random(1)
    store.slow_seconds = {"get": 0.3}
    async with opened(store, work, config=Config(max_concurrent_jobs=3)) as runtime:
        async with runtime.feed(JobFilter(statuses=(status,))) as items:
            picture = Picture(status)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(picture.follow, items)
                for _ in range(30):
                    await runtime.submit("work", delay_seconds=source.choice([0, 2]))
                    await trio.sleep(0.2)
        assert picture.gone, "nobody was told of: the test tests nothing"
        assert picture.documents == {}


@pytest.mark.parametrize("known_by", ["its birth", "a list"])
async def test_a_job_that_leaves_while_it_is_being_looked_at_is_told_to_leave(
    autojump_clock: MockClock, known_by: str
) -> None:
    async def may_see(job: Job) -> bool:
        await trio.sleep(1)
        return True

    async with opened(None, work, config=IDLE) as runtime:
        async with runtime.feed(JobFilter(statuses=(Status.QUEUED,)), may_see=may_see) as items:
            picture = Picture(Status.QUEUED)
            publish = runtime._hub.publish
            if known_by == "a list":
                runtime._hub.publish = lambda events: None  # type: ignore[method-assign]
            job = await runtime.submit("work")
            runtime._hub.publish = publish  # type: ignore[method-assign]
            if known_by == "a list":
                runtime._hub.lag_all()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(picture.follow, items)
                await trio.sleep(0.5)
                await runtime.cancel(job.id)
            assert (picture.documents, list(picture.gone)) == ({}, [job.id])


async def test_a_birth_that_waited_while_the_job_left_is_not_told_as_if_it_stayed(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=IDLE) as runtime:
        async with runtime.feed(JobFilter(statuses=(Status.QUEUED,))) as items:
            job = await runtime.submit("work")
            await runtime.cancel(job.id)
            picture = Picture(Status.QUEUED)
            await picture.follow(items)
            assert picture.documents == {}


async def test_a_told_job_that_left_unheard_is_told_to_leave(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=IDLE) as runtime:
        async with runtime.feed(JobFilter(statuses=(Status.QUEUED,))) as items:
            picture = Picture(Status.QUEUED)
            job = await runtime.submit("work")
            await picture.follow(items, until_quiet_seconds=100)
            publish, runtime._hub.publish = runtime._hub.publish, lambda events: None  # type: ignore[method-assign]
            await runtime.cancel(job.id)
            runtime._hub.publish = publish  # type: ignore[method-assign]
            runtime._hub.lag_all()
            await picture.follow(items)
            assert (picture.documents, list(picture.gone)) == ({}, [job.id])


async def test_a_job_from_long_before_that_ended_unheard_is_told(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=Config(max_subscriber_events=1)) as runtime:
        old = await runtime.submit("work", delay_seconds=200)
        await trio.sleep(100)
        async with runtime.feed() as items:
            picture = Picture()
            await picture.follow(items)
            await trio.sleep(200)
            await picture.follow(items)
            assert picture.gaps > 0
            await picture.check(runtime, [old.id])


async def test_may_see_is_asked_once_for_each_job(autojump_clock: MockClock) -> None:
    asked: Counter[str] = Counter()

    async def may_see(job: Job) -> bool:
        asked[job.id] += 1
        await trio.sleep(0.1)
        return int(job.id[-1], 16) % 2 == 0

    async with opened(None, work) as runtime:
        before = [await runtime.submit("work") for _ in range(5)]
        async with runtime.feed(may_see=may_see) as items:
            picture = Picture()
            jobs = [await runtime.submit("work") for _ in range(20)]
            await picture.follow(items)
            runtime._hub.lag_all()
            await picture.follow(items)
        seen = [job.id for job in [*before, *jobs] if int(job.id[-1], 16) % 2 == 0]
        await picture.check(runtime, seen)
        assert asked == {job.id: 1 for job in [*before, *jobs]}
        assert len(seen) < 25, "everybody was seen: the test tests nothing"


@pytest.mark.parametrize("statuses", [(), (Status.COMPLETED,), tuple(Status)])
async def test_a_follower_that_lags_has_everything_in_the_end(
    autojump_clock: MockClock, statuses: tuple[Status, ...]
) -> None:
    async with opened(None, work, config=Config(max_subscriber_events=4)) as runtime:
        before = [await runtime.submit("work") for _ in range(10)]
        async with runtime.feed(JobFilter(statuses=statuses)) as items:
            picture = Picture(*statuses)
            jobs = [await runtime.submit("work") for _ in range(60)]
            picture.take(await anext(items))
            await trio.sleep(30)  # all of them end
            jobs += [await runtime.submit("work") for _ in range(3)]
            await picture.follow(items)
        assert picture.gaps > 50
        assert picture.missed == []
        await picture.check(runtime, [job.id for job in [*before, *jobs]])
        assert max(picture.ends.values()) == 1


async def test_what_passes_even_the_bounds_is_said(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=Config(max_concurrent_jobs=2)) as runtime:
        for remembered, scanned in ((8, 1024), (1024, 8)):
            feed = Feed(
                JobFilter(),
                runtime._store,
                now_ms=runtime._clock.now_ms,
                retry_seconds=1,
                bounded=runtime._bounded,
                remembered=remembered,
                scanned=scanned,
            )
            async with open_feed(runtime._hub, feed, 4) as items:
                picture = Picture()
                for _ in range(30):
                    await runtime.submit("work")
                await trio.sleep(10)
                for _ in range(2):
                    with trio.move_on_after(30):
                        while True:
                            picture.take(await anext(items))
                    runtime._hub.lag_all()
                assert picture.missed
                assert len(feed._memory.ids()) <= remembered


async def test_a_told_job_that_had_to_be_forgotten_is_said_where_that_loses_its_leaving(
    autojump_clock: MockClock,
) -> None:
    async with opened(None, work, config=IDLE) as runtime:
        feed = Feed(
            JobFilter(statuses=(Status.QUEUED,)),
            runtime._store,
            now_ms=runtime._clock.now_ms,
            retry_seconds=1,
            bounded=runtime._bounded,
            remembered=5,
        )
        async with open_feed(runtime._hub, feed, 100) as items:
            picture = Picture(Status.QUEUED)
            for _ in range(9):
                await runtime.submit("work")
            await picture.follow(items)
            assert len(picture.documents) == 9
            assert len(picture.missed) == 1


def test_the_memory_forgets_ended_jobs_first_then_the_oldest() -> None:
    memory = _Memory(3)
    memory.keep("ended", _Known(0, 1, is_told=True, has_ended=True))
    for name in ("a", "b", "c"):
        memory.keep(name, _Known(0, 1, is_told=False))
    assert memory.ids() == ["a", "b", "c"]
    assert not memory.has_forgotten
    memory.keep("a", _Known(0, 2, is_told=True))
    memory.keep("d", _Known(0, 1, is_told=False))
    assert memory.ids() == ["c", "a", "d"]
    assert memory.has_forgotten and not memory.has_lost_told


async def test_lost_events_are_found_again(autojump_clock: MockClock) -> None:
    """The hub drops every fourth event; the next one of the same job shows the hole."""
    source = random.Random(3)
    async with opened(None, work) as runtime:
        publish = runtime._hub.publish
        dropped: list[Event] = []

        def drop_some(events: Any) -> None:
            for event in events:
                if event.status not in TERMINAL and source.random() < 0.25:
                    dropped.append(event)
                else:
                    publish([event])

        runtime._hub.publish = drop_some  # type: ignore[method-assign]
        async with runtime.feed() as items:
            picture = Picture()
            jobs = [await runtime.submit("work") for _ in range(50)]
            await picture.follow(items)
        assert len(dropped) > 50
        assert picture.gaps == 0, "the history was there"
        await picture.check(runtime, [job.id for job in jobs])


async def test_a_hole_that_history_does_not_fill_is_a_gap(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=Config(max_events_per_job=1)) as runtime:
        publish = runtime._hub.publish
        runtime._hub.publish = lambda events: publish(  # type: ignore[method-assign]
            [event for event in events if event.since == 0 or event.is_terminal]
        )
        async with runtime.feed() as items:
            picture = Picture()
            job = await runtime.submit("work")
            await picture.follow(items)
        assert picture.gaps == 1
        await picture.check(runtime, [job.id])


async def test_the_other_process(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    async with opened(FaultyStore(database), work) as owner:
        async with opened(FaultyStore(database), work, config=IDLE, seed=2) as other, other.feed() as items:
            picture = Picture()
            jobs = [await (owner, other)[number % 2].submit("work") for number in range(20)]
            await picture.follow(items)
            assert (picture.gaps, picture.missed) == (0, [])
            await picture.check(owner, [job.id for job in jobs])


async def test_news_that_is_gone_for_good(autojump_clock: MockClock) -> None:
    """For a minute nothing is heard of the other process, while there is something of one's own to hear."""
    database = MemoryDatabase()
    deaf = FaultyStore(database)
    async with opened(FaultyStore(database), work) as owner:
        async with opened(deaf, work, config=IDLE, seed=2) as other, other.feed() as items:
            picture = Picture()
            jobs = [await owner.submit("work") for _ in range(5)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: picture.follow(items, until_quiet_seconds=100))
                await trio.sleep(1)
                deaf.fail("wait_news", seconds=61)
                await trio.sleep(30)
                jobs += [await owner.submit("work") for _ in range(5)]
                for _ in range(30):
                    await trio.sleep(1)
                    jobs.append(await other.submit("work", delay_seconds=500))
                database.forgotten = database.position - 1
                database.feed.clear()
            assert picture.gaps > 0
            assert picture.missed == []
            await picture.check(owner, [job.id for job in jobs])


async def test_an_outage_in_the_middle_of_a_reread(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, work, config=Config(max_subscriber_events=4)) as runtime, runtime.feed() as items:
        picture = Picture()
        jobs = [await runtime.submit("work") for _ in range(40)]
        await trio.sleep(30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: picture.follow(items, until_quiet_seconds=60))
            store.fail("get", "list", seconds=7)
            await trio.sleep(8)
            store.slow_seconds = {"list": 3}
        await picture.check(runtime, [job.id for job in jobs])


async def test_a_drain_ends_it_also_while_the_store_is_away(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, work, config=Config(drain_seconds=1)) as runtime:
        async with runtime.feed() as quiet, runtime.feed() as rereading:
            runtime._hub.lag_all()
            with pytest.raises(trio.TooSlowError), trio.fail_after(1):
                await anext(quiet)  # has reread, and waits
            store.fail("get", "list")
            ended: list[Feed] = []

            async def follow(items: Feed) -> None:
                with pytest.raises(ShuttingDown):
                    await anext(items)
                ended.append(items)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow, quiet)
                nursery.start_soon(follow, rereading)
                await trio.sleep(0.5)
                assert ended == []
                runtime.begin_drain()
                with trio.fail_after(0.1):
                    while len(ended) < 2:  # noqa: ASYNC110
                        await trio.sleep(0.01)
            hard_stop(runtime, store)


async def test_a_store_that_is_away_refuses_the_feed(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, work) as runtime:
        store.fail("list", seconds=10)
        with pytest.raises(StoreUnavailable):
            async with runtime.feed():
                pass
        assert runtime.stats().subscribers == 0


async def test_calls_that_are_cancelled_lose_nothing(autojump_clock: MockClock) -> None:
    source = random.Random(9)
    store = FaultyStore()
    store.slow_seconds = {"get": 0.2, "list": 0.2, "events": 0.2}

    async def may_see(job: Job) -> bool:
        await trio.sleep(0.2)
        return True

    async with opened(store, work, config=Config(max_subscriber_events=20)) as runtime:
        async with runtime.feed(may_see=may_see) as items:
            picture = Picture()
            jobs = [await runtime.submit("work") for _ in range(20)]
            quiet = cut = 0
            while quiet < 200:
                with trio.move_on_after(source.uniform(0.1, 0.5)) as scope:
                    item = await anext(items)
                cut += scope.cancelled_caught and quiet == 0
                quiet = quiet + 1 if scope.cancelled_caught else 0
                if not scope.cancelled_caught:
                    picture.take(item)
            assert cut > 5
            await picture.check(runtime, [job.id for job in jobs])


async def test_a_reused_id_is_another_story(autojump_clock: MockClock) -> None:
    chosen = "00000000-0000-0000-0000-000000000005"
    async with opened(None, work) as runtime, runtime.feed() as items:
        told: list[Any] = []

        async def take_all() -> None:
            with trio.move_on_after(20):
                while True:
                    told.append(await anext(items))

        await runtime.wait((await runtime.submit("work", job_id=chosen)).id)
        await take_all()
        await runtime.purge(chosen)
        await runtime.submit("work", job_id=chosen)
        await take_all()
        assert [item.since for item in told].count(0) == 2
        assert sum(item.is_terminal for item in told) == 2
        # ... and when the birth of the second was lost:
        await runtime.purge(chosen)
        runtime._hub.lag_all()
        await runtime.submit("work", job_id=chosen)
        runtime._hub.lag_all()
        picture = Picture()
        await picture.follow(items)
        await picture.check(runtime, [chosen])


async def test_a_record_that_cannot_be_read_does_not_end_the_feed(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, work, fails) as runtime:
        async with runtime.feed(JobFilter(statuses=(Status.FAILED,))) as items:
            first = await runtime.submit("fails")
            store.fail("get", "list", seconds=3, error=lambda: StoreRefused("a damaged record"))
            picture = Picture(Status.FAILED)
            await picture.follow(items)
            assert picture.items == []
            runtime._hub.lag_all()
            second = await runtime.submit("fails")
            await picture.follow(items)
            await picture.check(runtime, [first.id, second.id])


@pytest.mark.parametrize("kept", [1000, 6])
async def test_100_jobs_and_30_wandering_followers(autojump_clock: MockClock, kept: int) -> None:
    """They stall, lag and come back; when all is quiet, what they were told is what is there."""
    source = random.Random(kept)
    database = MemoryDatabase()
    stores: list[Store] = [FaultyStore(database), FaultyStore(database)]
    config = Config(max_concurrent_jobs=30, max_subscriber_events=8, max_events_per_job=kept, retry_base_seconds=1)
    choices = [(), (Status.COMPLETED,), (Status.FAILED, Status.CANCELED), (Status.QUEUED, Status.IN_PROGRESS)]

    async with opened(stores[0], work, fails, config=config) as one:
        async with opened(stores[1], work, fails, config=config, seed=2) as two:
            jobs: list[Job] = []

            async def wander(number: int) -> None:
                draw = random.Random(source.random())
                statuses = choices[number % 4]
                picture = Picture(*statuses)
                async with (one, two)[number % 2].feed(JobFilter(statuses=statuses)) as items:
                    began = len(jobs)
                    quiet = False
                    while not quiet:
                        with trio.move_on_after(60) as scope:
                            picture.take(await anext(items))
                        quiet = scope.cancelled_caught
                        if draw.random() < 0.1:
                            await trio.sleep(draw.uniform(0, 6))
                fitting = {}
                for job in jobs:
                    document = shown(await one.get(job.id))
                    if not statuses or document["status"] in statuses:
                        fitting[job.id] = document
                assert picture.missed == []
                assert picture.documents.items() <= fitting.items()
                new = {job.id for job in jobs[began:]}
                assert fitting.keys() & new <= picture.documents.keys()

            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(wander, number)
                for _ in range(100):
                    job = await source.choice([one, two]).submit(source.choice(["work", "work", "fails"]))
                    jobs.append(job)
                    await trio.sleep(source.uniform(0, 0.3))
                    if source.random() < 0.1:
                        await source.choice([one, two]).cancel(job.id)


def test_bounds_are_what_the_documents_say() -> None:
    assert (feeds.REMEMBERED, feeds.SCANNED) == (1024, 1024)


class RelapsedStore(FaultyStore):
    """A connection to a store that has lost the newest writes of one job, as a server may that failed over."""

    lost_after: Job | None = None

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        return [self._before(job) for job in await super().get(job_ids)]

    async def list(self, where: JobFilter, *, cursor: str | None, limit: int) -> Page:
        page = await super().list(where, cursor=cursor, limit=limit)
        return Page(tuple(job for job in map(self._before, page.jobs) if job is not None), page.next)

    def _before(self, job: Job | None) -> Job | None:
        lost = self.lost_after
        return lost if job is not None and lost is not None and job.id == lost.id else job


@pytest.mark.parametrize("statuses", [(), (Status.IN_PROGRESS,)])
async def test_what_the_store_has_lost_is_told_as_a_gap(
    autojump_clock: MockClock, statuses: tuple[Status, ...]
) -> None:
    """Without it the follower would keep what is no longer so, and hear nothing until the job has come as far as it was."""
    database = MemoryDatabase()
    relapsed = RelapsedStore(database)
    async with opened(FaultyStore(database), work) as owner:
        async with opened(relapsed, work, config=IDLE, seed=2) as other:
            async with other.feed(JobFilter(statuses=statuses)) as items:
                picture = Picture(*statuses)
                job = await owner.submit("work")
                await trio.sleep(1)
                early = await owner.get(job.id)
                assert early.status is Status.IN_PROGRESS
                await picture.follow(items)
                assert picture.gaps == 0
                relapsed.lost_after = early
                other._hub.lag_all()
                await picture.follow(items)
                assert picture.documents == {job.id: shown(early)}
                assert picture.gaps == 1
