"""A state machine: whatever is asked of two connections, Redis Cluster answers what the memory store answers, over queues in two spaces.

Serials and fences are other numbers there; they are compared by their order of appearance, which for serials is their order.
"""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from msgspec import Struct, structs
from msgspec.structs import replace
from tests.redis_servers import ClusterSet
from tests.stores import test_machine as machine

from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Committed, Held, News, Store, Write
from callboard.stores.redis_cluster import RedisClusterStore, _many, _Point
from callboard.stores.redis_url import RedisSettings

SPACES = 2


class Numbers:
    """The serials and fences of the cluster, and those of memory in their stead: 1, 2, 3."""

    def __init__(self) -> None:
        self.serials: dict[int, int] = {0: 0}
        self.fences: dict[int, int] = {0: 0}

    def learn(self, job: Job) -> None:
        self.serials.setdefault(job.serial, len(self.serials))
        self.fences.setdefault(job.fence, len(self.fences))

    def out(self, found: Any) -> Any:
        """What the cluster told, in memory's numbers."""
        if isinstance(found, Job):
            return replace(found, serial=self.serials[found.serial], fence=self.fences[found.fence])
        if isinstance(found, tuple | list):
            return type(found)(self.out(one) for one in found)
        if isinstance(found, Struct):
            return type(found)(**{name: self.out(getattr(found, name)) for name in found.__struct_fields__})
        return found

    def into(self, asked: Any) -> Any:
        """What is asked with memory's numbers, in the cluster's."""
        back = {told: real for real, told in self.serials.items()}
        fences = {told: real for real, told in self.fences.items()}
        if isinstance(asked, Job):
            return replace(asked, serial=back[asked.serial], fence=fences[asked.fence])
        if isinstance(asked, Held):
            return Held(asked.job_id, fences[asked.fence])
        changed = {"expected": asked.expected and self.into(asked.expected)}
        return structs.replace(asked, **changed, **({"job": self.into(asked.job)} if isinstance(asked, Write) else {}))


class Translated:
    """A connection to the cluster that speaks in memory's numbers."""

    def __init__(self, store: RedisClusterStore, numbers: Numbers) -> None:
        self.store = store
        self.numbers = numbers

    def __getattr__(self, verb: str) -> Any:
        ask = getattr(self.store, verb)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return self.numbers.out(await ask(*args, **kwargs))

        return call

    async def commit(self, batch: Sequence[Any]) -> Any:
        outcomes = await self.store.commit([self.numbers.into(item) for item in batch])
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Committed) and isinstance(item, Write):
                self.numbers.learn(outcome.job)
        return self.numbers.out(outcomes)

    async def claim(self, **asked: Any) -> Any:
        # As the timers do all the time: it tells claims that jobs of other spaces are due as well.
        await self.store.next_due()
        claims = await self.store.claim(**asked)
        for claim in claims:
            self.numbers.learn(claim.job)
        return self.numbers.out(claims)

    async def extend(self, held: Sequence[Held], *, lease_ms: int) -> Any:
        return await self.store.extend([self.numbers.into(lease) for lease in held], lease_ms=lease_ms)


class ClusterTwins(machine.Twins):
    """Redis Cluster, under a prefix of its own of a real cluster."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = uuid.uuid4().hex
        self.numbers = Numbers()

    def connect_driver(self) -> Store:
        settings = replace(RedisSettings.of_url(self.url), prefix=self.prefix, spaces=SPACES)
        return Translated(RedisClusterStore(settings, clock=self.clock), self.numbers)

    @rule(side=machine.sides)
    def lapse(self, side: int) -> None:
        # In which order, and so which of many, is nowhere promised.
        async def ask(store: Store) -> Any:
            return sorted(await store.lapse(limit=100), key=lambda one: one.job.serial)

        self.both(side, ask)

    @rule(side=machine.sides, age_ms=st.sampled_from([0, 20]))
    def prune(self, side: int, age_ms: int) -> None:
        self.both(side, lambda store: store.prune(ended_before_ms=self.now_ms - age_ms, limit=100))

    @rule(side=machine.sides)
    def read_news(self, side: int) -> None:
        expected = trio.run(machine.news_of_memory, self.memory[side], self.cursors[0][side])
        driver = self.driver[side]
        assert isinstance(driver, Translated)
        is_sure = expected is not None and expected.complete
        if is_sure:
            actual = trio.run(machine.news_of, driver, self.cursors[1][side], 10.0)
            assert actual is not None
        else:
            actual = trio.run(look_once, driver.store, self.cursors[1][side])
        if actual.complete and (is_sure or expected is None):
            assert in_some_order(actual) == in_some_order(expected)
            assert actual.queues_changed == bool(expected and expected.queues_changed)
        for number, news in enumerate((expected, actual)):
            if news is not None:
                self.cursors[number][side] = news.cursor


def in_some_order(news: News | None) -> list[tuple[str, int, Event]]:
    """Of two jobs in two spaces nobody knows which event was first; of one job their order is looked at too."""
    events = () if news is None else news.events
    of_jobs: dict[str, list[Event]] = {}
    for event in events:
        of_jobs.setdefault(event.job_id, []).append(event)
    return [(job_id, index, event) for job_id in sorted(of_jobs) for index, event in enumerate(of_jobs[job_id])]


async def look_once(store: RedisClusterStore, cursor: str) -> News:
    opened, point = store._connected(), _Point.of_cursor(cursor, SPACES)
    spaces = range(SPACES)
    found = await opened.link.read(lambda caller: store._spread.news(_many(caller), opened.me, point.positions, spaces))
    changed = any(news.queue_changes != point.changes[number] for number, news in found.items())
    point.positions = [found[number].position for number in spaces]
    point.changes = [found[number].queue_changes for number in spaces]
    return News(
        cursor=point.cursor(),
        events=tuple(event for news in found.values() for event in news.events),
        complete=all(news.complete for news in found.values()),
        queues_changed=changed,
    )


@pytest.fixture
def a_real_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ClusterSet(tmp_path_factory.mktemp("cluster")) as cluster:
        ClusterTwins.url = cluster.url
        yield


TestClusterTwins = pytest.mark.usefixtures("a_real_cluster")(ClusterTwins.TestCase)
TestClusterTwins.settings = settings(max_examples=8, stateful_step_count=30, deadline=None)


def test_the_queues_of_the_machine_are_in_two_spaces() -> None:
    store = RedisClusterStore(replace(RedisSettings.of_url("redis+cluster://127.0.0.1:1"), spaces=SPACES))
    assert len({store._spread.space_of(queue) for queue in machine.QUEUES}) == 2
