"""Which jobs run, in which order, how many at once, and when those that are put off begin."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.lowlevel
from tests.runtime.kit import Census, FaultyStore, handler, opened
from trio.testing import MockClock

from callboard.runtime import Config, Event, Handler, JobContext, Status, StoreUnavailable
from callboard.runtime.core.store import Claimed
from callboard.runtime.directory import Directory
from callboard.runtime.handlers import make_handler
from callboard.stores.memory import MemoryDatabase

IDLE = Config(max_concurrent_jobs=0)


def counted(census: Census, seconds: float = 1, name: str = "work", **options: Any) -> Handler:
    """A handler that takes so long and is counted."""

    async def work(job: JobContext) -> None:
        with census.attempt(job.id):
            await trio.sleep(seconds)

    return handler(name, **options)(work)


class Recording(FaultyStore):
    """Knows how many jobs each claim asked for and got."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.claims: list[tuple[int, int]] = []

    async def claim(
        self, *, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int
    ) -> Sequence[Claimed]:
        claimed = await super().claim(queues=queues, names=names, limit=limit, lease_ms=lease_ms)
        self.claims.append((limit, len(claimed)))
        return claimed


@pytest.mark.parametrize("slots", [1, 3, 7])
async def test_never_more_than_the_slots_and_always_as_many(autojump_clock: MockClock, slots: int) -> None:
    census, store = Census(), Recording()
    async with opened(store, counted(census), config=Config(max_concurrent_jobs=slots)) as runtime:
        jobs = [await runtime.submit("work") for _ in range(42)]
        for job in jobs:
            assert (await runtime.wait(job.id)).status == "Completed"
        # One after another without a pause: wake-up messages, not polls, keep the slots busy.
        assert trio.current_time() == pytest.approx(42 / slots, abs=0.01)
        assert census.most_at_once == slots
        assert all(limit <= slots for limit, _ in store.claims)


async def test_a_claim_asks_for_a_bounded_number_and_the_next_follows_at_once(autojump_clock: MockClock) -> None:
    census, store = Census(), Recording()
    async with opened(store, counted(census), config=Config(max_concurrent_jobs=450), claims=False) as runtime:
        jobs = [await runtime.submit("work") for _ in range(450)]
        runtime.begin_claiming()
        began = trio.current_time()
        for job in jobs:
            assert (await runtime.wait(job.id)).status == "Completed"
        assert trio.current_time() - began == pytest.approx(1, abs=0.01)
        assert [claim for claim in store.claims if claim[1]] == [(200, 200), (200, 200), (50, 50)]


async def test_nothing_is_claimed_before_it_can_run(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, counted(census, 10), config=Config(max_concurrent_jobs=2)) as runtime:
        for _ in range(10):
            await runtime.submit("work")
        for _ in range(45):
            await trio.sleep(1)
            counts = await runtime.counts()
            assert counts.get(("default", Status.IN_PROGRESS), 0) <= 2
        assert (await runtime.counts())["default", Status.IN_PROGRESS] == 2


async def test_priority_and_then_order_of_acceptance(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, counted(census), config=Config(max_concurrent_jobs=1)) as runtime:
        first = await runtime.submit("work")
        await trio.sleep(0.5)
        low = await runtime.submit("work", priority=-5)
        middle = [await runtime.submit("work") for _ in range(3)]
        high = [await runtime.submit("work", priority=1000) for _ in range(2)]
        await runtime.wait(low.id)
    order = [job_id for job_id, _, _ in census.spans]
    assert order == [job.id for job in (first, *high, *middle, low)]


async def test_jobs_of_other_names_and_queues_are_left_alone(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    mine, other, far = counted(census), counted(census, name="other"), counted(census, queue="far")
    async with opened(FaultyStore(database), mine, other, config=IDLE, seed=2) as asking:
        strange = [await asking.submit("other") for _ in range(5)]
        async with opened(FaultyStore(database), far, config=IDLE, seed=3) as asking_far:
            strange.append(await asking_far.submit("work"))
        async with opened(FaultyStore(database), mine) as runtime:
            job = await asking.submit("work")
            assert (await runtime.wait(job.id)).status == "Completed"
            await trio.sleep(5)
            for left in strange:
                assert (await runtime.get(left.id)).status == "Queued"


async def test_runtime_without_handlers_claims_nothing(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store):
        await trio.sleep(10)
        assert store.count("claim") == 0


async def test_submit_in_one_process_wakes_the_other(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    async with opened(FaultyStore(database), counted(census)) as working:
        async with opened(FaultyStore(database), counted(census), config=IDLE, seed=2) as asking:
            await trio.sleep(0.4)
            job = await asking.submit("work")
            assert (await asking.wait(job.id)).status == "Completed"
            assert trio.current_time() == pytest.approx(1.4, abs=0.01)
            assert working.stats().finished == {("work", "Completed"): 1}


async def test_lost_wake_up_is_made_good_by_the_slow_poll(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    deaf = FaultyStore(database)
    async with opened(deaf, counted(census)):
        deaf.fail("wait_news")
        async with opened(FaultyStore(database), counted(census), config=IDLE, seed=2) as asking:
            await trio.sleep(0.4)
            job = await asking.submit("work")
            await asking.wait(job.id)
            assert trio.current_time() <= 0.4 + 1 + 1 + 0.1


@pytest.mark.parametrize("delay_seconds", [0.5, 3, 100, 7200])
async def test_scheduled_job_begins_when_it_is_due_and_not_before(
    autojump_clock: MockClock, delay_seconds: float
) -> None:
    census = Census()
    async with opened(None, counted(census), config=Config(poll_seconds=1000)) as runtime:
        await trio.sleep(5)  # by now the timers sleep for long: the submit has to wake them
        job = await runtime.submit("work", delay_seconds=delay_seconds)
        assert job.status == "Scheduled"
        await runtime.wait(job.id)
    assert [begun for _, begun, _ in census.spans] == [pytest.approx(5 + delay_seconds, abs=0.005)]
    assert census.spans[0][1] >= 5 + delay_seconds


async def test_scheduled_jobs_begin_in_the_order_of_their_times(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, counted(census, 0.1), config=Config(poll_seconds=1000)) as runtime:
        await trio.sleep(5)
        late = await runtime.submit("work", delay_seconds=20)
        early = await runtime.submit("work", delay_seconds=10)
        await runtime.wait(late.id)
    assert [job_id for job_id, _, _ in census.spans] == [early.id, late.id]


async def test_scheduled_job_waits_for_a_free_slot(autojump_clock: MockClock) -> None:
    census = Census()
    async with opened(None, counted(census, 10), config=Config(max_concurrent_jobs=1)) as runtime:
        await runtime.submit("work")
        job = await runtime.submit("work", delay_seconds=3)
        await runtime.wait(job.id)
    assert [begun for _, begun, _ in census.spans] == pytest.approx([0, 10], abs=0.01)


@pytest.mark.parametrize("after", [False, True], ids=["refused", "answers lost"])
async def test_store_that_fails_for_ten_seconds(autojump_clock: MockClock, after: bool) -> None:
    """Submits are refused meanwhile, attempts go on, and afterwards everything does without a restart."""
    census, store = Census(), FaultyStore()
    async with opened(store, counted(census, 4)) as runtime:
        running = [await runtime.submit("work") for _ in range(5)]
        put_off = await runtime.submit("work", delay_seconds=6)
        await trio.sleep(1)
        store.fail(seconds=10, after=after)
        for _ in range(9):
            with pytest.raises(StoreUnavailable):
                await runtime.submit("work")
            with pytest.raises(StoreUnavailable):
                await runtime.check()
            await trio.sleep(1)
        await trio.sleep(3)
        await runtime.check()
        fresh = await runtime.submit("work")
        for job in (*running, put_off, fresh):
            ended = await runtime.wait(job.id)
            assert (ended.status, ended.retry_count) == ("Completed", 0)
            # A claim whose answer was lost lapses; nothing else may be run twice.
            assert census.runs[job.id] <= ended.attempt
        assert {census.runs[job.id] for job in (*running, fresh)} == {1}
        assert runtime.stats().store_errors > 0
        await trio.sleep(40)  # submits whose answer was lost, and claims: those lapse first
        assert runtime._directory._live == {}
        assert set(await runtime.counts()) == {("default", Status.COMPLETED)}
    assert census.doubles == []


async def test_progress_that_could_not_be_stored_is_stored_later(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    @handler()
    async def work(job: JobContext) -> None:
        for second in range(30):
            await job.progress(second)
            job.log("info", f"second {second}")
            await trio.sleep(1)

    async with opened(store, work) as runtime:
        seen: list[Event] = []
        runtime.on_events.append(seen.extend)
        job = await runtime.submit("work")
        await trio.sleep(5.5)
        store.fail("commit", seconds=10)
        await runtime.wait(job.id)
    lines = [event.log.message for event in seen if event.log is not None]
    assert lines == [f"second {second}" for second in range(30)]
    percents = [event.changes["progress"] for event in seen if event.type == "progress"]
    assert 15 < len(percents) < 30


async def test_progress_is_stored_at_most_so_often_and_the_newest_wins(autojump_clock: MockClock) -> None:
    store = FaultyStore()

    @handler()
    async def work(job: JobContext) -> None:
        for step in range(101):
            await job.progress(step)
            await trio.sleep(0.01)

    async with opened(store, work, config=Config(progress_interval_seconds=0.25)) as runtime:
        job = await runtime.submit("work")
        ended = await runtime.wait(job.id)
        assert ended.progress is not None
        assert ended.progress.percent == 100
        # Submit, claim and end besides; the last progress comes with the end.
        assert 4 <= ended.seq - 3 <= 6


async def test_too_many_questions_are_refused_and_the_rest_answered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.store_actor.MAX_PENDING", 3)
    monkeypatch.setattr("callboard.runtime.directory.MAX_SPOKEN_TO", 2)
    store = FaultyStore()
    async with opened(store, counted(Census()), config=IDLE) as runtime:
        jobs = [(await runtime.submit("work")).id for _ in range(8)]
        store.slow_seconds |= {"get": 1, "commit": 1}
        answers: list[str] = []

        async def ask(call: Any, job_id: str) -> None:
            try:
                answers.append((await call(job_id)).status)
            except StoreUnavailable as error:
                answers.append(str(error))

        for call in (runtime.get, runtime.cancel):
            async with trio.open_nursery() as nursery:
                for job_id in jobs:
                    nursery.start_soon(ask, call, job_id)
        assert "too many calls wait for the store" in answers
        assert "too many jobs wait for the store" in answers
        assert {"Queued", "Canceled"} <= set(answers)


async def test_retention_removes_what_ended_long_ago(autojump_clock: MockClock) -> None:
    config = Config(retention_seconds=300)
    async with opened(None, counted(Census()), config=config) as runtime:
        old = await runtime.submit("work")
        await runtime.wait(old.id)
        await trio.sleep(200)
        new = await runtime.submit("work")
        await runtime.wait(new.id)
        await trio.sleep(165)
        assert [job.id for job in (await runtime.list()).jobs] == [new.id]


async def test_retention_goes_on_after_an_outage_and_takes_many(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.timers.PRUNE_LIMIT", 3)
    store = FaultyStore()
    async with opened(store, counted(Census()), config=Config(retention_seconds=90)) as runtime:
        for _ in range(10):
            await runtime.submit("work")
        await trio.sleep(55)
        store.fail("prune", seconds=10)
        await trio.sleep(126)
        assert (await runtime.list()).jobs == ()


async def test_records_are_kept_for_ever_without_retention(autojump_clock: MockClock) -> None:
    store = FaultyStore()
    async with opened(store, counted(Census()), config=Config(retention_seconds=None)) as runtime:
        await runtime.submit("work")
        await trio.sleep(1000)
        assert store.count("prune") == 0
        assert len((await runtime.list()).jobs) == 1


async def test_queues_that_drain_tell_when_to_ask_again(autojump_clock: MockClock) -> None:
    async with opened(None, counted(Census(), 7), config=Config(max_concurrent_jobs=1)) as runtime:
        assert runtime.retry_after_seconds("default") == 1
        for _ in range(6):
            await runtime.submit("work")
        await trio.sleep(6 * 7 + 0.5)
        assert 7 <= runtime.retry_after_seconds("default") <= 8
        assert runtime.retry_after_seconds("unknown") == 1
        await trio.sleep(500)
        assert runtime.retry_after_seconds("default") == 7, "a queue that was empty has not become slower"


async def test_a_queue_that_stands_still_tells_to_wait_longer_and_longer(autojump_clock: MockClock) -> None:
    async with opened(None, counted(Census(), 1000), config=Config(max_concurrent_jobs=1)) as runtime:
        await runtime.submit("work")
        seen = []
        for _ in range(3):
            await trio.sleep(25)
            seen.append(runtime.retry_after_seconds("default"))
        assert seen == [25, 50, 60]


async def test_rates_remember_so_many_queues_and_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.rates.MAX_QUEUES", 1)
    async with opened(None, counted(Census()), counted(Census(), name="other", queue="far")) as runtime:
        for name in ("work", "other"):
            await runtime.wait((await runtime.submit(name)).id)
        assert list(runtime._rates._paces) == ["default"]
        assert runtime.stats().submitted == {"work": 1, "other": 1}


async def test_directory_has_one_supervisor_per_job(autojump_clock: MockClock) -> None:
    async with opened(None, counted(Census(), 5)) as runtime:
        directory: Directory = runtime._directory
        job = await runtime.submit("work")
        await trio.sleep(1)
        assert list(directory._live) == [job.id]
        supervisor = directory._live[job.id]
        await runtime.cancel(job.id)
        await runtime.wait(job.id)
        await trio.lowlevel.checkpoint()
        assert directory._live == {}
        directory.leave(supervisor)
        assert directory._live == {}


async def test_a_due_job_of_a_name_that_another_process_does_not_have_starts_when_due(
    autojump_clock: MockClock,
) -> None:
    """The other one's claim looks at it first and leaves it; the net is an hour away."""
    database = MemoryDatabase()
    started: list[float] = []

    async def mine(job: JobContext) -> None:
        started.append(trio.current_time())

    async def theirs(job: JobContext) -> None:
        pass

    config = Config(poll_seconds=3600, lease_seconds=10_000)
    slow = FaultyStore(database)
    slow.slow_seconds["next_due"] = 0.5
    mine_handler, their_handler = make_handler("mine", mine), make_handler("theirs", theirs)
    async with (
        opened(slow, mine_handler, config=config) as runtime,
        opened(FaultyStore(database), their_handler, config=config, seed=2) as other,
    ):
        began = trio.current_time()
        await runtime.submit("mine", delay_seconds=10)
        await trio.sleep(10.001)
        await other.submit("theirs")
        await trio.sleep(5)
    assert len(started) == 1
    assert started[0] - began < 11
