"""One owner: heartbeats, lost leases, late outcomes, poison jobs and clocks that leap."""

import pytest
import trio
from tests.runtime.kit import Census, FaultyStore, handler, hard_stop, opened
from trio.testing import MockClock

from callboard.runtime import Config, Handler, IllegalTransition, JobContext, JobNotFound
from callboard.runtime.core.transition import WORKER_LOST
from callboard.stores.memory import MemoryDatabase
from callboard.testing import virtual_now_ms

IDLE = Config(max_concurrent_jobs=0)


def working(seconds: float, census: Census, cleanup_seconds: float = 0) -> Handler:
    """A handler that works for some seconds and cleans up after itself."""

    @handler()
    async def work(job: JobContext) -> int:
        with census.attempt(job.id):
            try:
                await trio.sleep(seconds)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(cleanup_seconds)
            return job.attempt

    return work


async def test_healthy_job_of_ten_leases_runs_once(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    async with opened(FaultyStore(database), working(300, census)) as owner:
        async with opened(FaultyStore(database), working(300, census), seed=2) as other:
            job = await owner.submit("work")
            ended = await other.wait(job.id)
            assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 1, 0)
            assert owner.stats().lost_leases == other.stats().lost_leases == 0
    assert census.runs == {job.id: 1}


async def test_handler_that_never_awaits_much_needs_nothing_for_its_lease(autojump_clock: MockClock) -> None:
    """The heartbeat is the runtime's: a store that is slow now and then does no harm."""
    census, store = Census(), FaultyStore()
    async with opened(store, working(200, census)) as runtime:
        job = await runtime.submit("work")
        for _ in range(6):
            store.fail(seconds=15)
            await trio.sleep(30)
        assert (await runtime.wait(job.id)).attempt == 1


async def test_runtime_that_is_cut_off_stops_its_attempt_by_its_own_clock(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    lonely = FaultyStore(database)
    async with opened(lonely, working(1000, census)):
        async with opened(FaultyStore(database), working(0, census), config=IDLE, seed=2) as asking:
            job = await asking.submit("work")
            await trio.sleep(15)
            sent = max(time for time, verb in lonely.calls if verb == "extend")
            lonely.fail()
            await trio.sleep(100)
            assert [end for _, _, end in census.spans] == [pytest.approx(sent + 30)]
            async with opened(FaultyStore(database), working(5, census), seed=3):
                ended = await asking.wait(job.id)
            assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 2, 1)
            lonely.mend()
    assert census.doubles == []


async def test_other_runtime_takes_the_job_over_after_the_lease(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    lonely = FaultyStore(database)
    async with opened(lonely, working(50, census)) as owner:
        job = await owner.submit("work")
        await trio.sleep(1)
        async with opened(FaultyStore(database), working(50, census), seed=2) as other:
            last_heard = max(time for time, verb in lonely.calls if verb in ("claim", "extend"))
            lonely.fail(seconds=60)
            ended = await other.wait(job.id)
    first, second = census.spans
    assert first[2] <= second[1], "two attempts side by side"
    assert second[1] == pytest.approx(last_heard + 30, abs=1.1)
    assert (ended.worker, ended.status, ended.attempt) == (None, "Completed", 2)
    assert bytes(ended.result) == b"2"


async def test_late_outcome_of_a_lost_lease_is_refused(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The code does not stop in time and returns a value: too late, the job is another's."""
    database = MemoryDatabase()
    lonely = FaultyStore(database)

    @handler()
    async def work(job: JobContext) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(70 if job.attempt == 1 else 50)
        return f"by attempt {job.attempt}"

    async with opened(FaultyStore(database), work, config=IDLE, seed=3) as asking:
        async with opened(lonely, work):
            job = await asking.submit("work")
            await trio.sleep(1)
            async with opened(FaultyStore(database), work, seed=2):
                lonely.fail(seconds=60)
                await trio.sleep(75)  # the first has returned by now, the second still runs
                assert (await asking.get(job.id)).status == "InProgress"
                assert "the lease was lost, the attempt's outcome is dropped" in caplog.text
                ended = await asking.wait(job.id)
                assert bytes(ended.result) == b'"by attempt 2"'
                assert ended.attempt == 2


async def test_late_outcome_that_finds_the_store_mended_is_refused_by_its_fence(autojump_clock: MockClock) -> None:
    """As above, but nobody has told the first runtime: its commit itself has to be refused."""
    census, database = Census(), MemoryDatabase()
    lonely = FaultyStore(database)
    async with opened(lonely, working(40, census)) as owner:
        job = await owner.submit("work")
        await trio.sleep(1)
        lonely.fail("extend", "get", "wait_news", "lapse")
        supervisor = owner._directory._live[job.id]
        assert supervisor.attempt is not None
        supervisor.attempt.extend_lease(float("inf"))  # a clock that stands still
        async with opened(FaultyStore(database), working(100, census), seed=2) as other:
            lonely.fail("claim")
            await trio.sleep(60)
            taken = await other.get(job.id)
            assert (taken.status, taken.worker, taken.attempt) == ("InProgress", other.worker, 2)
            assert owner._directory.running == 0
            assert bytes((await other.wait(job.id)).result) == b"2"
        lonely.mend()


async def test_two_attempts_of_one_job_never_run_side_by_side_in_one_runtime(autojump_clock: MockClock) -> None:
    """The old one cleans up for a long time; the store has given the job to the same runtime again."""
    census, database = Census(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(FaultyStore(database), working(0, census), config=IDLE, seed=2) as asking:
        async with opened(store, working(20, census, cleanup_seconds=50)) as runtime:
            job = await asking.submit("work")
            await trio.sleep(1)
            store.fail("extend", "claim", "commit", seconds=40)  # lapses after 30 s, is claimed again after 40 s
            await trio.sleep(45)
            assert runtime._directory.running == 2
            assert len(census.spans) == 0
            ended = await asking.wait(job.id)
            assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 2, 1)
            assert runtime._directory.running == 0
    assert census.doubles == []


async def test_claim_that_waits_for_an_old_cleanup_keeps_its_lease_and_its_one_slot(autojump_clock: MockClock) -> None:
    """Cleanup of many leases: no poison verdict, no slot that is lost for ever."""
    census, database = Census(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(FaultyStore(database), working(0, census), config=IDLE, seed=2) as asking:
        async with opened(store, working(20, census, cleanup_seconds=300)) as runtime:
            job = await asking.submit("work")
            await trio.sleep(1)
            store.fail("extend", "claim", "commit", seconds=40)
            ended = await asking.wait(job.id)
            assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 2, 1)
            await trio.sleep(1)
            assert runtime._directory.running == 0
    assert census.doubles == []


async def test_runtime_that_lost_a_job_answers_from_the_stored_record(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    lonely = FaultyStore(database)

    async with opened(lonely, working(20, census, cleanup_seconds=100)) as owner:
        job = await owner.submit("work")
        await trio.sleep(1)
        lonely.fail("extend", "claim", "commit", "wait_news", seconds=60)
        async with opened(FaultyStore(database), working(1, census), seed=2) as other:
            assert (await other.wait(job.id)).status == "Completed"
            await trio.sleep(40)  # the owner can reach the store again, its own attempt still cleans up
            with pytest.raises(IllegalTransition, match="a job that is Completed"):
                await owner.cancel(job.id)
            with pytest.raises(IllegalTransition, match="a job that is Completed"):
                await owner.retry(job.id)
            await owner.purge(job.id)
            with pytest.raises(JobNotFound):
                await owner.cancel(job.id)
            assert owner._directory.running == 1


@pytest.mark.parametrize("ending", ["value", "error", "progress"])
async def test_attempt_of_a_job_that_was_lost_and_purged_ends_quietly(autojump_clock: MockClock, ending: str) -> None:
    database = MemoryDatabase()
    lonely = FaultyStore(database)

    @handler()
    async def work(job: JobContext) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(80 if job.attempt == 1 else 1)
            if ending == "progress":
                await job.progress(50)
                await trio.sleep(10)
        if job.attempt == 1 and ending == "error":
            raise ValueError
        return "value"

    async with opened(lonely, work) as owner:
        job = await owner.submit("work")
        await trio.sleep(1)
        lonely.fail("extend", "claim", "commit", "wait_news", seconds=60)
        async with opened(FaultyStore(database), work, seed=2) as other:
            await other.wait(job.id)
            await other.purge(job.id)
            await trio.sleep(30)
            with pytest.raises(JobNotFound):
                await owner.cancel(job.id)
            await trio.sleep(60)
            assert owner._directory._live == {}
        assert (await owner.submit("work")).status == "Queued"


@pytest.mark.parametrize(("max_lost_leases", "runs"), [(3, 4), (1, 2), (0, 1)])
async def test_job_whose_workers_die_ends_as_worker_lost(
    autojump_clock: MockClock, max_lost_leases: int, runs: int
) -> None:
    census, database = Census(), MemoryDatabase()
    asking_only = Config(max_concurrent_jobs=0, max_lost_leases=max_lost_leases)
    async with opened(FaultyStore(database), working(0, census), config=asking_only) as asking:
        job = await asking.submit("work")
        for number in range(runs):
            store = FaultyStore(database)
            async with opened(store, working(1000, census), seed=10 + number) as dying:
                await trio.sleep(2)
                assert (await asking.get(job.id)).worker == dying.worker
                hard_stop(dying, store)
            await trio.sleep(35)
        ended = await asking.get(job.id)
    assert (ended.status, ended.error, ended.lost_leases, ended.attempt) == ("Failed", WORKER_LOST, runs, runs)
    assert census.runs == {job.id: runs}


async def test_handlers_own_bound_of_lost_leases_wins(autojump_clock: MockClock) -> None:
    @handler(max_lost_leases=0)
    async def work(job: JobContext) -> None: ...

    async with opened(None, work, config=Config(max_concurrent_jobs=0, max_lost_leases=7)) as runtime:
        assert (await runtime.submit("work")).max_lost_leases == 0


async def test_cancel_of_a_job_whose_worker_died_is_carried_out_when_the_lease_lapses(
    autojump_clock: MockClock,
) -> None:
    census, database = Census(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(FaultyStore(database), working(0, census), config=IDLE) as asking:
        async with opened(store, working(1000, census), seed=2) as dying:
            job = await asking.submit("work")
            await trio.sleep(2)
            hard_stop(dying, store)
        asked = trio.current_time()
        assert (await asking.cancel(job.id)).status == "InProgress"
        ended = await asking.wait(job.id)
        assert ended.status == "Canceled"
        assert 25 <= trio.current_time() - asked <= 31
        assert asking.stats().lost_leases == 1


async def test_releases_at_shutdown_are_not_counted(autojump_clock: MockClock) -> None:
    census, database = Census(), MemoryDatabase()
    fragile = Config(max_concurrent_jobs=0, max_lost_leases=0, max_retries=0)
    async with opened(FaultyStore(database), working(0, census), config=fragile) as asking:
        job = await asking.submit("work")
        for number in range(5):
            async with opened(FaultyStore(database), working(1000, census), seed=10 + number):
                await trio.sleep(2)
        handed_back = await asking.get(job.id)
        assert (handed_back.status, handed_back.lost_leases, handed_back.retry_count) == ("Queued", 0, 0)
        assert handed_back.attempt == 5


class LeapingClock:
    """Virtual time that can be set forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return virtual_now_ms() + self.ahead_ms


@pytest.mark.parametrize("leap_seconds", [3600, 40, -3600])
@pytest.mark.parametrize("at", [0.0, 0.3, 5.5, 9.999])
async def test_store_clock_that_leaps_reaps_no_living_job(
    autojump_clock: MockClock, leap_seconds: int, at: float
) -> None:
    clock, census, database = LeapingClock(), Census(), MemoryDatabase()
    async with opened(FaultyStore(database, clock=clock), working(300, census)) as owner:
        async with opened(FaultyStore(database, clock=clock), working(300, census), seed=2) as other:
            jobs = [await runtime.submit("work") for runtime in (owner, other) for _ in range(3)]
            await trio.sleep(20 + at)
            clock.ahead_ms += leap_seconds * 1000
            for job in jobs:
                ended = await owner.wait(job.id)
                assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 1, 0)
    assert set(census.runs.values()) == {1}


@pytest.mark.parametrize("slow_seconds", [0.9, 1.1, 3])
async def test_a_leap_that_a_slow_answer_tells_reaps_no_living_job(
    autojump_clock: MockClock, slow_seconds: float
) -> None:
    """As after a laptop's sleep, when everything is slow for a while."""
    clock, census, database = LeapingClock(), Census(), MemoryDatabase()
    store = FaultyStore(database, clock=clock)
    async with opened(store, working(300, census)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(20.3)
        clock.ahead_ms += 3_600_000
        store.slow_seconds["now_ms"] = slow_seconds
        ended = await runtime.wait(job.id)
        assert (ended.status, ended.attempt, ended.lost_leases) == ("Completed", 1, 0)


async def test_dead_holders_are_found_although_the_clock_leapt(autojump_clock: MockClock) -> None:
    clock, census, database = LeapingClock(), Census(), MemoryDatabase()
    store = FaultyStore(database, clock=clock)
    async with opened(FaultyStore(database, clock=clock), working(0, census), config=IDLE) as asking:
        async with opened(store, working(1000, census), seed=2) as dying:
            job = await asking.submit("work")
            await trio.sleep(2)
            hard_stop(dying, store)
        clock.ahead_ms += 3_600_000
        await trio.sleep(20)
        assert (await asking.get(job.id)).status == "Queued"


async def test_own_leases_are_extended_before_anyone_is_reaped(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat that did not come for more than half a lease: ``reap`` extends first."""
    census, store = Census(), FaultyStore()
    async with opened(store, working(100, census)) as runtime:
        job = await runtime.submit("work")
        await trio.sleep(1)
        runtime._leases._sent = trio.current_time() - 16
        before = len(store.calls)
        await runtime._leases.reap()
        assert [verb for _, verb in store.calls[before:] if verb in ("extend", "lapse")] == ["extend", "lapse"]
        runtime._leases._sent = trio.current_time() - 16
        store.fail("extend", seconds=0.5)
        before = store.count("lapse")
        await runtime._leases.reap()
        assert store.count("lapse") == before
        assert (await runtime.wait(job.id)).attempt == 1


async def test_lease_that_another_has_is_noticed_by_the_heartbeat(autojump_clock: MockClock) -> None:
    """Without news: the answer of ``extend`` says that the lease is gone, and the attempt stops at once."""
    census, database = Census(), MemoryDatabase()
    deaf, other = FaultyStore(database), FaultyStore(database, clock=lambda: virtual_now_ms() + 100_000)
    # One slot, which is taken: it does not claim the job again while the old attempt runs.
    async with opened(deaf, working(100, census), config=Config(max_concurrent_jobs=1)) as owner:
        job = await owner.submit("work")
        await trio.sleep(1)
        deaf.fail("wait_news")
        await other.open(worker="other", max_events_per_job=10, max_attempts_per_job=100)
        assert len(await other.lapse(limit=10)) == 1
        await trio.sleep(10)
        assert [end - begun for _, begun, end in census.spans] == [pytest.approx(10, abs=0.1)]
        assert (await owner.get(job.id)).attempt == 2


@pytest.mark.parametrize("asker", ["here", "elsewhere"])
async def test_cancel_of_a_claim_that_waits_for_an_old_cleanup(autojump_clock: MockClock, asker: str) -> None:
    census, database = Census(), MemoryDatabase()
    store = FaultyStore(database)
    async with opened(FaultyStore(database), working(0, census), config=IDLE, seed=2) as asking:
        async with opened(store, working(20, census, cleanup_seconds=100)) as runtime:
            job = await runtime.submit("work")
            await trio.sleep(1)
            store.fail("extend", "claim", "commit", seconds=40)
            await trio.sleep(45)
            assert runtime._directory.running == 2
            await (runtime if asker == "here" else asking).cancel(job.id)
            assert (await runtime.wait(job.id)).status == "Canceled"
            assert trio.current_time() == pytest.approx(120, abs=0.1)
    assert census.runs == {job.id: 1}
