"""Two processes on one store that fail, crash and restart at random while clients submit, one by one and many at once, cancel,
retry, pause and resume: nothing is lost.
"""

import random
import uuid
from collections import Counter
from typing import Any

import pytest
import trio
from tests.runtime.kit import WRITES, Census, FaultyStore, folded, follow, handler, hard_stop, opened, shown
from trio.testing import MockClock

from callboard.runtime import (
    CallboardError,
    Config,
    Event,
    Handler,
    Job,
    JobContext,
    JobFailed,
    ProcessJobContext,
    QueueFull,
    Request,
    Retry,
    Runtime,
    ShuttingDown,
    StoreUnavailable,
)
from callboard.runtime.context import Reports
from callboard.runtime.core.history import AttemptOutcome
from callboard.runtime.handlers import make_handler
from callboard.runtime.processes import ProcessDied
from callboard.stores.memory import MemoryDatabase

CHAOS_SECONDS = 600
CONFIG = Config(
    max_concurrent_jobs=6, max_retries=2, retry_max_seconds=20, drain_seconds=6, max_lost_leases=2, max_processes=3
)
NAMES = ("work", "count")


def count(job: ProcessJobContext) -> int:
    """Never called: ``WorkersOfChaos`` stands for the processes that would."""
    raise AssertionError


class WorkersOfChaos:
    """Worker processes that take their time, die, and need a moment to be dead when they are killed."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._running = 0

    async def run(self, handler: Handler, job: Job, request: Request, reports: Reports) -> Any:
        source = self._world.source
        assert CONFIG.max_processes is not None
        assert self._running < CONFIG.max_processes, "more was claimed than can run"
        self._running += 1
        try:
            with self._world.census.attempt(job.id):
                try:
                    reports.set_progress(1, "begun", None)
                    await trio.sleep(source.expovariate(1 / 5))
                    if source.random() < 0.2:
                        raise ProcessDied("it died")
                    return job.attempt
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(source.choice([0, 0, 0.001]))
        finally:
            self._running -= 1


class World:
    """Everything that happens, drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.database = MemoryDatabase()
        self.census = Census()
        self.alive: dict[int, tuple[Runtime, FaultyStore]] = {}
        self.accepted: list[str] = []
        self.calm = trio.Event()
        self.over = trio.Event()
        self.seen: Counter[str] = Counter()

    def handler(self) -> Handler:
        """Works, talks, and ends in every way there is; its cleanup takes no time, so that it ends with its lease."""

        @handler()
        async def work(job: JobContext) -> int:
            with self.census.attempt(job.id):
                for step in range(self.source.randint(0, 4)):
                    job.log("info", f"step {step}")
                    await job.progress(step)
                    await trio.sleep(self.source.expovariate(1 / 3))
                fate = self.source.random()
                if fate < 0.1:
                    raise ValueError
                if fate < 0.3:
                    raise JobFailed("NO", "not today")
                if fate < 0.4:
                    raise Retry(after_seconds=self.source.uniform(0, 10))
                return job.attempt

        return work

    async def process(self, number: int) -> None:
        """A process that lives for a while, leaves in order or is killed, and is started again."""
        while not self.over.is_set():
            store = FaultyStore(self.database)
            handlers = self.handler(), make_handler("count", count, process=True, queue="numbers")
            seed, workers = self.source.getrandbits(32), WorkersOfChaos(self)
            async with opened(store, *handlers, config=CONFIG, seed=seed, processes=workers) as runtime:
                self.alive[number] = (runtime, store)
                with trio.move_on_after(self.source.uniform(20, 150)):
                    await self.calm.wait()
                if self.calm.is_set():
                    await self.over.wait()
                    assert (runtime.stats().running, runtime._directory._live) == (0, {})
                del self.alive[number]
                if not self.calm.is_set() and self.source.random() < 0.6:
                    self.seen["killed"] += 1
                    hard_stop(runtime, store)

    async def faults(self) -> None:
        """Cuts a store off, wholly or in part, before or after its calls take effect."""
        while not self.calm.is_set():
            await trio.sleep(self.source.expovariate(1 / 40))
            if self.alive and not self.calm.is_set():
                _, store = self.source.choice(list(self.alive.values()))
                verbs = self.source.choice([(), WRITES, ("commit",), ("claim",), ("extend",), ("get",), ("wait_news",)])
                store.fail(*verbs, seconds=self.source.uniform(0, 45), after=self.source.random() < 0.4)
                store.slow_seconds = {"commit": 0.05} if self.source.random() < 0.3 else {}
                self.seen["faults"] += 1

    async def client(self) -> None:
        """Submits one job until it is accepted, and then does with it what comes to mind."""
        await trio.sleep(self.source.uniform(0, CHAOS_SECONDS))
        if self.source.random() < 0.2:
            await self.submit_many()
        job_id = str(uuid.UUID(int=self.source.getrandbits(128)))
        name = self.source.choice(NAMES)
        delay = self.source.choice([None, None, self.source.uniform(0, 30)])
        while job_id not in self.accepted:
            try:
                await self.anyone().submit(name, job_id=job_id, delay_seconds=delay)
                self.accepted.append(job_id)
            except (StoreUnavailable, ShuttingDown, QueueFull):
                self.seen["refused"] += 1
                await trio.sleep(self.source.uniform(0, 5))
        while not self.calm.is_set() and self.source.random() < 0.7:
            await trio.sleep(self.source.expovariate(1 / 10))
            try:
                verb = self.source.choice(["cancel", "cancel", "retry", "retry", "wait"])
                if verb == "wait":
                    await self.anyone().wait(job_id, timeout_seconds=self.source.uniform(0, 20))
                else:
                    await getattr(self.anyone(), verb)(job_id)
                self.seen[verb] += 1
            except CallboardError:
                self.seen["refused"] += 1

    async def submit_many(self) -> None:
        """Six at once, again with the same keys until all of them are in."""
        name, keys = self.source.choice(NAMES), [str(self.source.getrandbits(64)) for _ in range(6)]
        answers: list[Any] = []
        while not answers or not all(isinstance(answer, Job) for answer in answers):
            await trio.sleep(self.source.uniform(0, 5))
            try:
                answers = await self.anyone().submit_many(name, [None] * 6, keys=keys)
            except StoreUnavailable:
                continue
            # One commit: whole or not at all.
            assert len({isinstance(answer, Job) for answer in answers}) == 1
        assert len({job.id for job in answers}) == 6
        self.accepted += [job.id for job in answers]
        self.seen["many"] += 1

    async def operator(self) -> None:
        """Pauses a queue now and then. What is told to be paused is not claimed from."""
        while not self.calm.is_set():
            await trio.sleep(self.source.expovariate(1 / 60))
            queue = self.source.choice(["default", "numbers"])
            try:
                await self.anyone().pause(queue)
                before = {job_id: job.attempt for job_id, job in self.stored(queue)}
                await trio.sleep(self.source.uniform(0, 20))
                if queue in self.database.paused:
                    for job_id, job in self.stored(queue):
                        assert job.attempt == before.get(job_id, 0), "claimed from a paused queue"
                self.seen["pause"] += 1
                await self.anyone().resume(queue)
            except CallboardError:
                self.seen["refused"] += 1
        # Where nothing waits in a paused queue, all may be over before it is resumed.
        while self.database.paused and not self.over.is_set():
            await trio.sleep(1)
            for queue in tuple(self.database.paused):
                try:
                    await self.anyone().resume(queue)
                except CallboardError:
                    self.seen["refused"] += 1

    def stored(self, queue: str) -> list[tuple[str, Job]]:
        jobs = (record.job for record in self.database.records.values())
        return [(job.id, job) for job in jobs if job.queue == queue]

    def anyone(self) -> Runtime:
        if not self.alive:
            raise StoreUnavailable("nobody is alive")
        return self.source.choice(list(self.alive.values()))[0]

    async def settle(self) -> None:
        """No more faults: everything has to come to its end by itself."""
        self.calm.set()
        await trio.sleep(10)
        assert len(self.alive) == 2
        for _, store in self.alive.values():
            store.mend()
            store.slow_seconds.clear()
        with trio.fail_after(1000):
            for job_id in self.accepted:
                await self.anyone().wait(job_id)

    async def check(self) -> None:
        assert self.census.doubles == []
        for job_id in self.accepted:
            job = await self.anyone().get(job_id)
            assert job.status.is_terminal
            assert (job.fence, job.worker, job.due_ms, job.cancel_requested) == (0, None, None, False)
            story = await follow(self.anyone(), job_id, after=0)
            events = [item for item in story if isinstance(item, Event)]
            assert [event.seq for event in events] == list(range(1, job.seq + 1))
            assert folded(events) == shown(job)
            statuses = [event.status for event in events if event.type == "status"]
            assert statuses.count("InProgress") >= job.attempt
            assert self.census.runs[job_id] <= job.attempt
            history = await self.anyone().attempts(job_id)
            assert [one.attempt for one in history] == list(range(1, job.attempt + 1))
            assert len([one for one in history if one.outcome is AttemptOutcome.COMPLETED]) == (
                job.status == "Completed"
            )
            self.seen[job.status.value] += 1
        await trio.sleep(15)  # a heartbeat, and a last try of a write whose answer was lost
        self.over.set()


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_and_nothing_runs_twice_at_once(autojump_clock: MockClock, seed: int) -> None:
    world = World(seed)
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(world.process, number)
        nursery.start_soon(world.faults)
        nursery.start_soon(world.operator)
        async with trio.open_nursery() as clients:
            for _ in range(120):
                clients.start_soon(world.client)
            await trio.sleep(CHAOS_SECONDS)
            world.calm.set()
        await world.settle()
        await world.check()
    assert len(world.accepted) >= 120
    for name in ("killed", "many", "pause", "faults", "refused", "cancel", "retry", "Completed", "Failed", "Canceled"):
        assert world.seen[name] > 0, f"no {name}: the test tests too little"
