"""2.C of the other library: records that were wrong, half made, unreadable or never removed. Both stores, on virtual time.

Each test is named by the defect's number in ``docs/from-asyncendpoints.md``.
"""

from typing import Any

import msgspec
import trio
from tests.heritage.kit import IDLE, Depot, working
from tests.runtime.kit import Census, FaultyStore, folded, follow, handler, hard_stop, opened, shown
from trio.testing import MockClock

from callboard.runtime import Config, Job, JobContext, Runtime
from callboard.runtime.core import events, job, store


async def test_c07_a_repeated_submit_never_resets_a_job_that_runs(depot: Depot, autojump_clock: MockClock) -> None:
    """Create looked whether the id existed and then wrote all fields, so that a racing repeat reset a running job to Queued."""
    census = Census()
    accepted: list[Job] = []
    async with (
        opened(depot.connect(), working(census, 5)) as runtime,
        opened(depot.connect(), working(census, 5), seed=2) as other,
    ):
        job_id = "01234567-89ab-7def-8123-456789abcdef"

        async def repeat(asked: Runtime, after_seconds: float) -> None:
            await trio.sleep(after_seconds)
            accepted.append(await asked.submit("work", job_id=job_id))

        async with trio.open_nursery() as nursery:
            for number in range(40):  # in one moment, while it runs, and after its end
                nursery.start_soon(repeat, (runtime, other)[number % 2], [0, 0, 1, 4.999, 7][number % 5])
        ended = await runtime.wait(job_id)
    assert (ended.status, ended.attempt) == ("Completed", 1)
    assert len(accepted) == 40
    assert {one.serial for one in accepted} == {ended.serial}
    assert all(one.status == "Completed" for one in accepted if one.seq >= ended.seq)
    assert census.runs == {job_id: 1}


async def test_c09_a_success_leaves_no_error_and_starts_when_it_runs(depot: Depot, autojump_clock: MockClock) -> None:
    """Completed jobs kept an earlier attempt's error, and startedAt was the claim's, long before the handler ran."""
    started: list[tuple[str, int]] = []

    @handler()
    async def work(job: JobContext) -> str:
        started.append((job.id, round(trio.current_time() * 1000)))
        await trio.sleep(7)
        if job.attempt == 1:
            raise OSError("not yet")
        return "done"

    config = Config(max_concurrent_jobs=1, retry_base_seconds=1)
    async with opened(depot.connect(), work, config=config) as runtime:
        jobs = [await runtime.submit("work") for _ in range(3)]
        ended = [await runtime.wait(job.id) for job in jobs]
        for one in ended:
            assert (one.status, one.error, one.retry_count) == ("Completed", None, 1)
            (told,) = [folded(await follow(runtime, one.id, after=0))]
            assert told == shown(one)
            assert told["error"] is None
            assert told["result"] == "done"
            begun = dict(started)[one.id]  # of the last attempt
            assert one.started_ms is not None
            assert abs(one.started_ms - one.created_ms - begun) <= 1
    assert len(started) == 6


def test_c10_nothing_that_a_store_hands_out_can_be_changed() -> None:
    """The memory store handed out its live objects and changed them, so that readers saw half-made states."""
    kinds = [
        kind
        for module in (job, events, store)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    ]
    assert {"Job", "Request", "Progress", "Failure", "Event", "Claimed", "Committed"} <= {
        kind.__name__ for kind in kinds
    }
    assert [kind for kind in kinds if not kind.__struct_config__.frozen] == []


async def test_c10_readers_see_whole_states_only(depot: Depot, autojump_clock: MockClock) -> None:
    """The same, seen by a reader: each record that is ever read is one that the job's events lead to, and stays as it was."""

    @handler(max_retries=1)
    async def work(job: JobContext) -> str:
        for percent in range(5):
            await job.progress(percent, "x", {"n": percent})
            job.log("info", "line")
            await trio.sleep(0.3)
        if job.attempt == 1:
            raise OSError("not yet")
        return "done"

    seen: dict[int, tuple[Job, bytes]] = {}
    async with (
        opened(depot.connect(), work) as runtime,
        opened(depot.connect(), work, config=IDLE, seed=2) as reading,
    ):
        job_id = (await runtime.submit("work")).id
        while True:
            one = await reading.get(job_id)
            before = seen.setdefault(one.seq, (one, msgspec.json.encode(one)))
            assert before[0] == one
            if one.status.is_terminal:
                break
            await trio.sleep(0.01)
        told = await follow(reading, job_id, after=0)
    documents = {item.seq: folded(told[: number + 1]) for number, item in enumerate(told)}
    assert len(seen) > 10
    for seq, (one, as_read) in seen.items():
        assert msgspec.json.encode(one) == as_read
        assert shown(one) == documents[seq]


async def test_c10_what_a_handler_does_to_its_arguments_stays_with_it(depot: Depot, autojump_clock: MockClock) -> None:
    """The same, seen by the next attempt."""
    bodies: list[Any] = []

    @handler()
    async def work(job: JobContext, body: dict[str, Any]) -> None:
        bodies.append(msgspec.json.encode([body, job.route_params, dict(job.headers)]))
        body["list"].append("mine")
        job.route_params["more"] = 1
        if job.attempt < 3:
            raise OSError("not yet")

    async with opened(depot.connect(), work) as runtime:
        job = await runtime.submit("work", {"list": [1]}, headers={"X-A": "b"})
        assert (await runtime.wait(job.id)).status == "Completed"
    assert bodies == [b'[{"list":[1]},{},{"X-A":"b"}]'] * 3


class Counting(FaultyStore):
    """Knows how many jobs each ``lapse`` took."""

    def __init__(self) -> None:
        super().__init__()
        self.lapsed: list[tuple[int, int]] = []

    async def lapse(self, *, limit: int) -> Any:
        taken = await super().lapse(limit=limit)
        self.lapsed.append((limit, len(taken)))
        return taken


async def test_c11_ended_jobs_leave_nothing_to_look_at_and_recovery_is_bounded(
    depot: Depot, autojump_clock: MockClock
) -> None:
    """Ended jobs stayed in the list of those in progress and were scanned again at each pass, all in one call."""
    census, dying = Census(), depot.connect()
    slots = Config(max_concurrent_jobs=450, lease_seconds=10)
    async with opened(dying, working(census, 100), config=slots) as runtime:
        for _ in range(450):
            await runtime.submit("work")
        await trio.sleep(5)
        assert len(census.runs) == 450
        hard_stop(runtime, dying)
    healing = depot.behind(Counting())
    async with opened(healing, working(census, 0), config=slots, seed=2) as runtime:
        await trio.sleep(20)
        assert sum(taken for _, taken in healing.lapsed) == 450
        assert max(limit for limit, _ in healing.lapsed) <= 200
        assert (await healing.next_due()).lease_ms is None
        assert await healing.lapse(limit=1000) == []
    assert set(census.runs.values()) == {2}
