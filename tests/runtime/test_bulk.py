"""Many submissions at once: each its own answer, each batch one commit, whole or not at all."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio
from tests.runtime.kit import FaultyStore, handler, opened
from trio.testing import MockClock

from callboard.runtime import (
    CallboardError,
    Config,
    ConfigError,
    InvalidPayload,
    InvalidRequest,
    Job,
    JobContext,
    JobExists,
    QueueFull,
    Runtime,
    ShuttingDown,
    StoreRefused,
    StoreUnavailable,
    Submission,
)
from callboard.runtime.config import MAX_BULK_JOBS
from callboard.runtime.core.store import Delete, Outcome, Write
from callboard.runtime.store_actor import MAX_BATCH, MAX_PENDING, StoreActor
from callboard.runtime.telemetry import Telemetry
from callboard.runtime.tracing import Tracing

IDLE = Config(max_concurrent_jobs=0)
CHOSEN = "018f3c1e-5b7a-7cc3-98c4-dc0c0c07398f"


class Order(msgspec.Struct):
    data: str
    pieces: int = 1


@handler(priority=lambda order: 10 // order.pieces)
async def work(job: JobContext, order: Order) -> str:
    return order.data


@handler("bare")
async def bare(job: JobContext) -> None: ...


class Counting(FaultyStore):
    """Remembers each commit: the jobs that came in it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome]:
        self.batches.append([item.job.id for item in batch if isinstance(item, Write)])
        return await super().commit(batch)


def jobs(answers: Sequence[Job | CallboardError]) -> list[Job]:
    assert all(isinstance(answer, Job) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Job)]


def kinds(answers: Sequence[object]) -> list[str]:
    return [type(answer).__name__ for answer in answers]


async def total(runtime: Runtime) -> int:
    return sum((await runtime.counts()).values())


class Moody(msgspec.Struct):
    """Its author let something out that is no sign of a wrong body."""

    mood: str

    def __post_init__(self) -> None:
        if self.mood == "bad":
            raise LookupError("no such mood")


async def test_a_type_that_cannot_judge_one_body_harms_no_other(autojump_clock: MockClock) -> None:
    @handler("moody")
    async def moody(job: JobContext, body: Moody) -> None: ...

    async with opened(FaultyStore(), moody, config=IDLE) as runtime:
        bodies = [{"mood": "good"}, {"mood": "bad"}, {"mood": "good"}]
        answers = await runtime.submit_many("moody", bodies)
        assert kinds(answers) == ["Job", "ConfigError", "Job"]
        assert str(answers[1]) == "the type of handler 'moody' could not judge the body: no such mood"
        with pytest.raises(ConfigError, match="no such mood"):
            await runtime.submit("moody", bodies[1])


async def test_answers_are_in_order_and_one_refused_harms_no_other(autojump_clock: MockClock) -> None:
    store = Counting()
    async with opened(store, work, config=IDLE) as runtime:
        bodies: list[Any] = [
            Order("a"),
            {"data": 5},
            {"data": "b", "pieces": 2},
            object(),
            Order("c", 0),
            None,
            Order("d"),
        ]
        answers = await runtime.submit_many("work", bodies, headers={"X-Note": "n"}, max_retries=7)
        assert kinds(answers) == [
            *("Job", "InvalidPayload", "Job", "InvalidRequest", "ConfigError", "InvalidPayload", "Job")
        ]
        assert isinstance(answers[1], InvalidPayload) and answers[1].errors[0].pointer == "/data"
        assert isinstance(answers[4], ConfigError) and "gave no priority: integer division" in str(answers[4])
        stored = [answer for answer in answers if isinstance(answer, Job)]
        assert [(job.priority, job.max_retries) for job in stored] == [(10, 7), (5, 7), (10, 7)]
        assert [job.serial for job in stored] == sorted(job.serial for job in stored)
        assert store.batches == [[job.id for job in stored]]
        assert await total(runtime) == 3


async def test_they_run(autojump_clock: MockClock) -> None:
    async with opened(None, work, bare) as runtime:
        accepted = jobs(await runtime.submit_many("work", [Order(f"{number}") for number in range(50)]))
        ended = [await runtime.wait(job.id) for job in accepted]
        assert [bytes(job.result) for job in ended] == [f'"{number}"'.encode() for number in range(50)]
        for job in jobs(await runtime.submit_many("bare", [None, None])):
            assert (await runtime.wait(job.id)).status == "Completed"
        assert kinds(await runtime.submit_many("bare", [None, {}])) == ["Job", "InvalidRequest"]
        assert await runtime.submit_many("bare", []) == []


async def test_each_batch_is_one_commit(autojump_clock: MockClock) -> None:
    store = Counting()
    async with opened(store, work, config=IDLE) as runtime:
        accepted = jobs(await runtime.submit_many("work", ({"data": f"{number}"} for number in range(1100))))
        assert [len(batch) for batch in store.batches] == [500, 500, 100]
        assert [job_id for batch in store.batches for job_id in batch] == [job.id for job in accepted]
    store = Counting()
    async with opened(store, work, config=Config(max_concurrent_jobs=0, max_bulk_jobs=7)) as runtime:
        await runtime.submit_many("work", [Order("a")] * 20)
        assert [len(batch) for batch in store.batches] == [7, 7, 6]


async def test_a_batch_is_never_cut_by_what_waits_beside_it(autojump_clock: MockClock) -> None:
    store = Counting()
    store.slow_seconds["commit"] = 0.2
    groups: list[list[str]] = []

    async with opened(store, work, config=IDLE) as runtime:

        async def many(count: int) -> None:
            groups.append([job.id for job in jobs(await runtime.submit_many("work", [Order("a")] * count))])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.submit, "work", Order("first"))
            await trio.sleep(0.1)
            # All of these wait for the first commit, and are then packed.
            for count in (300, 300, 500, 1, 200, 299):
                nursery.start_soon(many, count)
                nursery.start_soon(runtime.submit, "work", Order("beside"))
        assert len(groups) == 6
        for group in groups:
            (batch,) = [batch for batch in store.batches if group[0] in batch]
            start = batch.index(group[0])
            assert batch[start : start + len(group)] == group
        assert all(len(batch) <= MAX_BATCH for batch in store.batches)
        assert len(store.batches) <= 7, "small ones share a commit"


async def test_the_same_keys_are_the_same_jobs(autojump_clock: MockClock) -> None:
    async with opened(None, work, config=IDLE) as runtime:
        bodies, keys = [Order("a"), Order("b"), Order("c")], ["a", None, "c"]
        first = jobs(await runtime.submit_many("work", bodies, keys=keys))
        again = jobs(await runtime.submit_many("work", bodies, keys=keys))
        assert [job.id for job in again][::2] == [job.id for job in first][::2]
        assert again[1].id != first[1].id
        other = await runtime.submit_many("work", [Order("x"), Order("b"), Order("c")], keys=iter(keys))
        assert kinds(other) == ["KeyReused", "Job", "Job"]
        # One key twice in a batch is one job; with another body it is a clash.
        twice = await runtime.submit_many("work", [Order("n"), Order("n"), Order("o")], keys=["n", "n", "n"])
        assert kinds(twice) == ["Job", "Job", "KeyReused"]
        assert twice[0] == twice[1]
        assert (await runtime.submit("work", Order("n"), key="n")) == twice[0]
        assert await total(runtime) == 6


async def test_chosen_ids_and_what_came_before(autojump_clock: MockClock) -> None:
    async with opened(None, bare, config=IDLE) as runtime:
        chosen = Submission(name="bare", job_id=CHOSEN, fingerprint="f")
        clash = Submission(name="bare", job_id=CHOSEN, fingerprint="g")
        keyed = Submission(name="bare", key="k", fingerprint="f")
        asked: list[Submission | CallboardError] = [
            chosen,
            clash,
            keyed,
            Submission(name="none"),
            InvalidRequest("known before"),
        ]
        assert kinds(await runtime.find_many(asked)) == [
            *("NoneType", "NoneType", "NoneType", "InvalidRequest", "InvalidRequest")
        ]
        assert await total(runtime) == 0, "looking for them stores nothing"
        first = await runtime.accept_many(asked)
        assert kinds(first) == ["Accepted", "JobExists", "Accepted", "InvalidRequest", "InvalidRequest"]
        assert isinstance(first[1], JobExists)
        again = await runtime.accept_many(asked)
        assert [getattr(answer, "replayed", None) for answer in again] == [True, None, True, None, None]
        assert kinds(await runtime.find_many(asked)) == kinds(again)
        assert await total(runtime) == 2


async def test_the_bound_of_the_queue_holds_item_by_item(autojump_clock: MockClock) -> None:
    config = Config(max_concurrent_jobs=0, max_queue_size=3)
    async with opened(None, work, bare, config=config) as runtime:
        answers = await runtime.submit_many("work", [Order("a")] * 5, keys=["a", "b", "a", "c", "d"])
        assert kinds(answers) == ["Job", "Job", "Job", "Job", "QueueFull"]
        assert isinstance(answers[4], QueueFull) and answers[4].queue == "default"
        assert kinds(await runtime.submit_many("work", [Order("a")] * 2, keys=["e", "c"])) == ["QueueFull", "Job"]
        assert await total(runtime) == 3


async def test_who_gives_up_gives_up_the_answer_only(autojump_clock: MockClock) -> None:
    store = Counting()
    store.slow_seconds["commit"] = 2
    async with opened(store, work, config=IDLE) as runtime:
        with trio.move_on_after(1):
            await runtime.submit_many("work", [Order("a")] * 40)
        assert len(store.batches) == 1
        # This one waits behind it, and is taken back whole.
        with trio.move_on_after(0.5):
            await runtime.submit_many("work", [Order("b")] * 40)
        await trio.sleep(10)
        assert len(store.batches) == 1
        assert await total(runtime) == 40


async def test_a_lost_answer_is_safe_to_repeat(autojump_clock: MockClock) -> None:
    store = Counting()
    async with opened(store, work, config=IDLE) as runtime:
        store.fail("commit", seconds=1, after=True)
        bodies, keys = [Order(f"{number}") for number in range(20)], [f"{number}" for number in range(20)]
        answers = await runtime.submit_many("work", bodies, keys=keys)
        assert kinds(answers) == ["StoreUnavailable"] * 20
        assert len({id(answer) for answer in answers}) == 20, "each has an error of its own"
        await trio.sleep(1)
        again = jobs(await runtime.submit_many("work", bodies, keys=keys))
        assert await total(runtime) == len({job.id for job in again}) == 20
        assert [job.id for job in again] == store.batches[0]


async def test_when_the_store_goes_the_rest_is_not_tried(autojump_clock: MockClock) -> None:
    class Leaving(Counting):
        async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome]:
            answers = await super().commit(batch)
            self.fail("commit")
            return answers

    store = Leaving()
    async with opened(store, work, config=Config(max_concurrent_jobs=0, max_bulk_jobs=2)) as runtime:
        answers = await runtime.submit_many("work", [Order("a"), Order("b"), {}, Order("c"), Order("d"), {}])
        assert kinds(answers) == [
            *("Job", "Job", "InvalidPayload", "StoreUnavailable", "StoreUnavailable", "InvalidPayload")
        ]
        assert len(store.batches) == 2
        store.mend()
        assert await total(runtime) == 2


async def test_a_store_that_hangs_is_unavailable_in_time(autojump_clock: MockClock) -> None:
    store = Counting()
    store.slow_seconds["commit"] = 60
    async with opened(store, work, config=Config(max_concurrent_jobs=0, store_timeout_seconds=2)) as runtime:
        assert kinds(await runtime.submit_many("work", [Order("a")] * 1000)) == ["StoreUnavailable"] * 1000
        assert trio.current_time() == 2
        await trio.sleep(100)


async def test_while_the_runtime_drains_nothing_is_taken(autojump_clock: MockClock) -> None:
    async with opened(None, work) as runtime:
        runtime.begin_drain()
        answers = await runtime.submit_many("work", [Order("a"), {}])
        assert isinstance(answers[0], ShuttingDown) and isinstance(answers[1], InvalidPayload)
        assert await total(runtime) == 0


@pytest.mark.parametrize("alone", [True, False])
async def test_a_record_that_cannot_be_read_harms_only_who_meets_it(autojump_clock: MockClock, alone: bool) -> None:
    class Damaged(Counting):
        async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome]:
            if any(isinstance(item, Write) and item.job.key == "damaged" for item in batch):
                raise StoreRefused("a stored job cannot be read")
            return await super().commit(batch)

    store = Damaged()
    store.slow_seconds["commit"] = 1
    async with opened(store, work, config=IDLE) as runtime:
        async with trio.open_nursery() as nursery:
            if not alone:
                nursery.start_soon(runtime.submit, "work", Order("first"))
                await trio.sleep(0.5)
                nursery.start_soon(runtime.submit, "work", Order("beside"))
            answers = await runtime.submit_many("work", [Order("a")] * 3, keys=["a", "damaged", "c"])
        assert kinds(answers) == ["Job", "StoreRefused", "Job"]
        assert await total(runtime) == (2 if alone else 4)


async def test_what_could_never_be_meant_is_raised(autojump_clock: MockClock) -> None:
    async with opened(None, work, bare, config=IDLE) as runtime:
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"name": "nobody"}, "no handler named 'nobody'"),
            ({"keys": ["a"]}, "2 bodies and 1 keys"),
            ({"bodies": "ab"}, "bodies and keys are lists"),
            ({"bodies": {"data": "a"}}, "bodies and keys are lists"),
            ({"keys": "ab"}, "bodies and keys are lists"),
            ({"delay_seconds": float("nan")}, "the delay is nan s"),
        ]
        for options, message in wrong:
            with pytest.raises(InvalidRequest, match=message):
                await runtime.submit_many(**{"name": "work", "bodies": [Order("a"), Order("b")], **options})
        # What each job is asked for itself is each job's answer.
        answers = await runtime.submit_many("work", [Order("a")], priority=5000)
        assert isinstance(answers[0], InvalidRequest) and "the priority is 5000" in str(answers[0])
        assert isinstance((await runtime.submit_many("work", [Order("a")], queue="nowhere"))[0], InvalidRequest)
        assert await total(runtime) == 0


async def test_others_run_between_the_pieces(autojump_clock: MockClock) -> None:
    turns = 0
    seen: list[int] = []

    class Seeing(Counting):
        async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome]:
            seen.append(turns)
            return await super().commit(batch)

    async def spin() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with opened(Seeing(), work, config=IDLE) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(spin)
        before = turns
        await runtime.submit_many("work", [Order("a")] * 480)
        assert seen[0] - before >= 2 * 480 / 16 - 2
        before = turns
        await runtime.submit_many("work", [Order("x" * 20_000)] * 20)
        assert seen[1] - before >= 2 * 20 - 2
        nursery.cancel_scope.cancel()


def test_a_bulk_request_fits_into_one_commit() -> None:
    assert MAX_BULK_JOBS <= MAX_BATCH
    assert Config().max_bulk_jobs == MAX_BULK_JOBS
    for wrong in (0, 501, True, "9"):
        with pytest.raises(ConfigError, match="max_bulk_jobs is"):
            Config(max_bulk_jobs=wrong)  # type: ignore[arg-type]


async def test_what_waits_for_the_store_is_counted_by_the_job(autojump_clock: MockClock) -> None:
    store = Counting()
    actor = StoreActor(
        store,
        publish=lambda events: None,
        recovered=lambda: None,
        telemetry=Telemetry(),
        tracing=Tracing(None, "counting"),
    )
    one: Any = object()
    refused = 0

    async def ask() -> None:
        nonlocal refused
        try:
            await actor.commit_together([one] * MAX_BATCH)
        except StoreUnavailable:
            refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_PENDING // MAX_BATCH + 3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert refused == 3
        # What is taken back makes room.
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert refused == 3
        nursery.cancel_scope.cancel()
    with pytest.raises(ValueError, match="do not fit into one commit"):
        await actor.commit_together([one] * (MAX_BATCH + 1))


async def test_many_bulks_at_once_neither_take_leases_away_nor_hold_up_what_runs(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk: the heartbeat waits for one commit, and not for all that wait, and it is never refused."""
    monkeypatch.setattr("callboard.runtime.store_actor.MAX_BATCH", 10)
    monkeypatch.setattr("callboard.runtime.store_actor.MAX_PENDING", 100)
    runs = 0

    @handler("long")
    async def long(job: JobContext) -> None:
        nonlocal runs
        runs += 1
        await trio.sleep(60)

    @handler("noted", queue="other")
    async def noted(job: JobContext) -> None: ...

    async def flood(runtime: Runtime) -> None:
        while True:
            await runtime.submit_many("noted", [None] * 10)
            await trio.sleep(0.5)

    store = FaultyStore()
    config = Config(max_concurrent_jobs=1, max_bulk_jobs=10, lease_seconds=9, max_queue_size=10**6)
    async with opened(store, long, noted, config=config) as runtime, trio.open_nursery() as nursery:
        job = await runtime.submit("long")
        await runtime.wait(job.id, changed_since=job.seq)
        store.slow_seconds["commit"] = 1.0
        for _ in range(30):
            nursery.start_soon(flood, runtime)
        ended = await runtime.wait(job.id, timeout_seconds=100)
        nursery.cancel_scope.cancel()
        store.slow_seconds.clear()
    assert (runs, ended.status, ended.attempt) == (1, "Completed", 1)
