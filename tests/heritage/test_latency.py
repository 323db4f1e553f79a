"""2.B of the other library: what made jobs wait. Virtual time and counted steps, never the wall clock. Both stores.

Each test is named by the defect's number in ``docs/from-asyncendpoints.md``.
"""

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from tests.heritage.kit import IDLE, Depot, opened_store, working
from tests.runtime.kit import Census, FaultyStore, opened
from trio.testing import MockClock

from callboard.runtime import Config
from callboard.stores.conformance_bench import after, submit, succeed

LOOK_SECONDS = 0.05
"""The one poll that the design allows by name, SQLite's for news of other processes, and some."""


async def test_b01_throughput_is_that_of_the_slots(depot: Depot, autojump_clock: MockClock) -> None:
    """After each claim the worker slept for a poll, so that a process began one job a second whatever its concurrency."""
    census, store = Census(), depot.connect()
    async with opened(store, working(census, 1), config=Config(max_concurrent_jobs=20)) as runtime:
        jobs = [await runtime.submit("work") for _ in range(200)]
        for job in jobs:
            await runtime.wait(job.id)
        assert trio.current_time() < 10.5  # 200 s there
    assert census.most_at_once == 20
    assert store.count("claim") <= 220  # and no busy loop either


async def test_b01_many_short_jobs_on_one_slot_do_not_wait_for_polls(depot: Depot, autojump_clock: MockClock) -> None:
    """The same with jobs that take no time."""
    config = Config(max_concurrent_jobs=1, poll_seconds=100_000)
    async with opened(depot.connect(), working(Census(), 0), config=config) as runtime:
        jobs = [await runtime.submit("work") for _ in range(100)]
        for job in jobs:
            await runtime.wait(job.id)
        assert trio.current_time() < 1  # 100 s there


@pytest.mark.parametrize("where", ["here", "in the other process"])
@pytest.mark.parametrize("how", ["submitted", "due", "retried", "tried again by hand"])
async def test_b02_a_job_starts_when_it_can_and_not_at_the_next_poll(
    depot: Depot, where: str, how: str, autojump_clock: MockClock
) -> None:
    """An idle worker looked every 3 s; a submit woke nobody."""
    census = Census()
    works = working(census, 0)
    config = Config(poll_seconds=100_000, lease_seconds=30_000, retention_seconds=None)
    async with (
        opened(depot.connect(), works, config=config) as runtime,
        opened(depot.connect(), works, config=replace(config, max_concurrent_jobs=0), seed=2) as other,
    ):
        asked = runtime if where == "here" else other
        await trio.sleep(10)
        job = await asked.submit("work", delay_seconds=7 if how in ("due", "tried again by hand") else None)
        can_start = trio.current_time() + (7 if how == "due" else 0)
        if how == "tried again by hand":
            await asked.cancel(job.id)
            await trio.sleep(3)
            can_start = trio.current_time()
            await asked.retry(job.id)
        with trio.move_on_after(30):
            await asked.wait(job.id)
    assert [begun for _, begun, _ in census.spans] == [pytest.approx(can_start, abs=LOOK_SECONDS)]


async def test_b03_losing_a_race_for_a_job_costs_nothing(depot: Depot, autojump_clock: MockClock) -> None:
    """Whoever lost a race for a claim got an error, logged it as the store's, and slept for 5 s."""
    census = Census()
    slots = Config(max_concurrent_jobs=1, poll_seconds=100_000)
    stores = [depot.connect() for _ in range(4)]
    async with (
        opened(stores[0], working(census, 0.1), config=slots) as first,
        opened(stores[1], working(census, 0.1), config=slots, seed=2) as second,
        opened(stores[2], working(census, 0.1), config=slots, seed=3) as third,
        opened(stores[3], working(census, 0.1), config=IDLE, seed=4) as asking,
    ):
        jobs = []
        for _ in range(60):
            jobs.append(await asking.submit("work"))  # each wakes all three
            await trio.sleep(0.04)
        for job in jobs:
            assert (await asking.wait(job.id)).attempt == 1
        # 2.4 s of submits, and three slots that never rest: 60 times 5 s there.
        assert trio.current_time() < 4
        assert [runtime.stats().store_errors for runtime in (first, second, third)] == [0, 0, 0]
    assert sum(store.count("claim") for store in stores) > 70, "nobody lost a race: this test shows nothing"
    assert set(census.runs.values()) == {1}


async def test_b04_a_worker_leaves_alone_what_it_cannot_run(depot: Depot, autojump_clock: MockClock) -> None:
    """A worker without the job's handler claimed it all the same and burned its retries."""
    census = Census()
    stranger = depot.connect()
    async with (
        opened(stranger, working(census, 0, "mine")) as there,
        opened(depot.connect(), working(census, 0, "theirs"), config=IDLE, seed=2) as asking,
    ):
        foreign = [await asking.submit("theirs", priority=10) for _ in range(20)]
        await trio.sleep(60)
        mine = await there.submit("mine")
        assert (await there.wait(mine.id, timeout_seconds=1)).status == "Completed"
        async with opened(depot.connect(), working(census, 0, "theirs"), seed=3):
            for job in foreign:
                ended = await asking.wait(job.id, timeout_seconds=5)
                assert (ended.status, ended.attempt, ended.retry_count) == ("Completed", 1, 0)
    assert set(census.runs.values()) == {1}


async def steps_of_a_claim(store: FaultyStore, ended: int, waiting: int, first_id: int) -> int:
    """How much work a claim of one job is among so many."""
    done = range(first_id, first_id + ended)
    for start in range(0, ended, 200):
        await submit(store, *done[start : start + 200], queue="done")
        claimed = await store.claim(queues=["done"], names=["send"], limit=200, lease_ms=10_000)
        await store.commit([after(one.job, succeed()) for one in claimed])
    waits = range(first_id + ended, first_id + ended + waiting)
    await submit(store, *waits[: waiting // 2])
    await submit(store, *waits[waiting // 2 :], name="elsewhere")
    await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=10_000)
    with counted_steps() as count:
        claimed = await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=10_000)
        steps = count()
    assert len(claimed) == 1
    return steps


@contextmanager
def counted_steps() -> Iterator[Callable[[], int]]:
    """Counts calls of Python and C functions."""
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(step)
    try:
        yield lambda: steps
    finally:
        sys.setprofile(None)


async def test_b05_a_claim_costs_the_same_however_many_jobs_there_are(
    depot: Depot, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim of the memory store scanned and sorted every job that was ever created."""
    machine_steps = _counting_sqlite(monkeypatch)
    costs = []
    for ended, waiting in ((20, 20), (3000, 400)):
        folder = tmp_path / str(ended)
        folder.mkdir()
        store = await opened_store(Depot(depot.kind, folder).connect())
        calls = await steps_of_a_claim(store, ended, waiting, 1)
        before = machine_steps()
        await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=10_000)
        costs.append((calls, machine_steps() - before))
        await store.aclose()
    (few_calls, few_steps), (many_calls, many_steps) = costs
    assert few_calls > 10
    assert many_calls <= 1.5 * few_calls
    if depot.kind == "sqlite":
        assert few_steps > 100
        assert many_steps <= 1.5 * few_steps


def _counting_sqlite(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts the instructions of SQLite's machine, on connections made from now on."""
    connect, steps = sqlite3.connect, 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_progress_handler(step, 1)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connected)
    return lambda: steps
