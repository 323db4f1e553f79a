"""What the tests of the actors share: a store that fails on demand, handlers in one line, and attempts that are counted."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import msgspec
import trio

from callboard.runtime import Config, Event, Handler, Job, Runtime, Snapshot, StoreUnavailable, open_runtime
from callboard.runtime.core.document import changes, document
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.store import (
    Claimed,
    Committed,
    Delete,
    Due,
    Extension,
    Held,
    JobFilter,
    News,
    Outcome,
    Page,
    Store,
    Write,
)
from callboard.runtime.handlers import make_handler
from callboard.stores.memory import MemoryDatabase, MemoryStore
from callboard.testing import virtual_now_ms

__all__ = ["WRITES", "Census", "FaultyStore", "folded", "follow", "handler", "hard_stop", "opened", "shown"]

T = TypeVar("T")

WRITES = ("commit", "claim", "extend", "lapse", "prune", "set_paused")
READS = ("get", "list", "events", "attempts", "next_due", "counts", "ready", "paused", "now_ms")
VERBS = (*WRITES, *READS, "wait_news")


class FaultyStore:
    """A connection to a memory database that can be slow, cut off, or buggy. Two on one database stand for two processes."""

    def __init__(self, database: MemoryDatabase | None = None, *, clock: Callable[[], int] = virtual_now_ms) -> None:
        self._inner = MemoryStore(database, clock=clock)
        self._broken: dict[str, tuple[float, Callable[[], Exception], bool]] = {}
        self.slow_seconds: dict[str, float] = {}
        """Verb -> seconds that the call takes after it has taken effect."""
        self.calls: list[tuple[float, str]] = []
        self.closed = False

    def fail(
        self,
        *verbs: str,
        seconds: float = float("inf"),
        after: bool = False,
        error: Callable[[], Exception] = lambda: StoreUnavailable("the test cut the store off"),
    ) -> None:
        """Let ``verbs`` (default: all) raise ``error`` for some seconds; ``after``: only once they have taken effect."""
        for verb in verbs or VERBS:
            self._broken[verb] = (trio.current_time() + seconds, error, after)

    def mend(self) -> None:
        """Nothing fails any more."""
        self._broken.clear()

    def count(self, verb: str) -> int:
        """How often ``verb`` was called."""
        return sum(called == verb for _, called in self.calls)

    async def _call(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls.append((trio.current_time(), verb))
        self._raise(verb, after=False)
        answer = await call()
        if verb in self.slow_seconds:
            await trio.sleep(self.slow_seconds[verb])
        self._raise(verb, after=True)
        if verb == "wait_news":
            # It may have begun to wait long before the store was cut off.
            self._raise(verb, after=False)
        return answer

    def _raise(self, verb: str, *, after: bool) -> None:
        until, error, fails_after = self._broken.get(verb, (0.0, Exception, False))
        if trio.current_time() < until and fails_after is after:
            raise error()

    async def open(self, *, worker: str, max_events_per_job: int, max_attempts_per_job: int) -> None:
        await self._inner.open(
            worker=worker, max_events_per_job=max_events_per_job, max_attempts_per_job=max_attempts_per_job
        )

    async def aclose(self) -> None:
        self.closed = True
        await self._inner.aclose()

    async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome]:
        return await self._call("commit", lambda: self._inner.commit(batch))

    async def claim(
        self, *, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int
    ) -> Sequence[Claimed]:
        return await self._call(
            "claim", lambda: self._inner.claim(queues=queues, names=names, limit=limit, lease_ms=lease_ms)
        )

    async def extend(self, held: Sequence[Held], *, lease_ms: int) -> Sequence[Extension]:
        return await self._call("extend", lambda: self._inner.extend(held, lease_ms=lease_ms))

    async def lapse(self, *, limit: int) -> Sequence[Committed]:
        return await self._call("lapse", lambda: self._inner.lapse(limit=limit))

    async def prune(self, *, ended_before_ms: int, limit: int) -> int:
        return await self._call("prune", lambda: self._inner.prune(ended_before_ms=ended_before_ms, limit=limit))

    async def set_paused(self, queue: str, paused: bool) -> bool:
        return await self._call("set_paused", lambda: self._inner.set_paused(queue, paused))

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        return await self._call("get", lambda: self._inner.get(job_ids))

    async def list(self, where: JobFilter, *, cursor: str | None, limit: int) -> Page:
        return await self._call("list", lambda: self._inner.list(where, cursor=cursor, limit=limit))

    async def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        return await self._call("events", lambda: self._inner.events(job_id, after=after, limit=limit))

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        return await self._call("attempts", lambda: self._inner.attempts(job_id))

    async def next_due(self) -> Due:
        return await self._call("next_due", self._inner.next_due)

    async def counts(self) -> dict[Any, int]:
        return await self._call("counts", self._inner.counts)

    async def ready(self, *, up_to: int) -> dict[tuple[str, str], int]:
        return await self._call("ready", lambda: self._inner.ready(up_to=up_to))

    async def paused(self) -> Sequence[str]:
        return await self._call("paused", self._inner.paused)

    async def now_ms(self) -> int:
        return await self._call("now_ms", self._inner.now_ms)

    async def wait_news(self, cursor: str | None) -> News:
        return await self._call("wait_news", lambda: self._inner.wait_news(cursor))


@asynccontextmanager
async def opened(
    store: Store | None, *handlers: Handler, config: Config | None = None, seed: int = 1, **options: Any
) -> AsyncIterator[Runtime]:
    """A runtime with seeded randomness, on a store of its own if none is given."""
    source = random.Random(seed)
    async with open_runtime(store or FaultyStore(), handlers, config, random=source, **options) as runtime:
        yield runtime


def handler(name: str = "work", **options: Any) -> Callable[[Callable[..., Any]], Handler]:
    """``@handler(max_retries=0)`` makes a registered handler of a function."""
    return lambda function: make_handler(name, function, **options)


def hard_stop(runtime: Runtime, store: FaultyStore) -> None:
    """As a kill does: from now on nothing of this runtime reaches the store, and its tasks are torn down at once."""
    store.fail()
    runtime.begin_drain()
    runtime._stop.set()


class Census:
    """Counts attempts from inside the handlers: ``with census.attempt(job.id)``."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.spans: list[tuple[str, float, float]] = []
        """(job id, begun, ended) of every attempt that has ended."""
        self.most_at_once = 0
        self.doubles: list[str] = []
        """Jobs that were seen with two attempts at once."""
        self._now: Counter[str] = Counter()

    @contextmanager
    def attempt(self, job_id: str) -> Iterator[None]:
        """One attempt of that job, for as long as its code runs."""
        begun = trio.current_time()
        self.runs[job_id] += 1
        self._now[job_id] += 1
        if self._now[job_id] > 1:
            self.doubles.append(job_id)
        self.most_at_once = max(self.most_at_once, self._now.total())
        try:
            yield
        finally:
            self._now[job_id] -= 1
            self.spans.append((job_id, begun, trio.current_time()))


async def follow(runtime: Runtime, job_id: str, after: int | None = None) -> list[Snapshot | Event]:
    """Everything that a follower is told, to the end."""
    async with runtime.watch(job_id, after=after) as told:
        return [item async for item in told]


def folded(told: Sequence[Snapshot | Event], start: Job | None = None) -> dict[str, Any]:
    """The document that a client has who folds what it was told; checks that the chain is unbroken."""
    state: dict[str, Any] = {} if start is None else shown(start)
    for item in told:
        if isinstance(item, Snapshot):
            state = shown(item.job)
            continue
        assert item.since == state.get("seq", 0), f"the chain is broken: {item.since} after {state.get('seq')}"
        assert item.seq > item.since
        state |= {name: msgspec.json.decode(value) for name, value in item.changes.items()}
    return state


def shown(job: Job) -> dict[str, Any]:
    """The document of a job, decoded."""
    assert document(job) == changes(None, job)
    return {name: msgspec.json.decode(value) for name, value in document(job).items()}
