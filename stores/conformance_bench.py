"""What the checks of ``conformance`` stand on: stores of one fresh name, a clock, and short words for what they do to jobs."""

import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Final, Protocol

import trio
import trio.testing
from msgspec import Raw

from callboard.runtime.core.commands import Cancel, Command, Fail, Report, Retry, Succeed
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Failure, Job, Progress, Request, Status
from callboard.runtime.core.store import Claimed, Clock, Committed, News, Store, Write
from callboard.runtime.core.transition import accept, decide

__all__ = [
    "Bench",
    "Check",
    "MakeStore",
    "after",
    "apply",
    "birth",
    "cancel",
    "check",
    "claim",
    "committed",
    "equal",
    "failing",
    "ids",
    "job",
    "kinds",
    "one",
    "progress",
    "request",
    "retry",
    "submit",
    "succeed",
    "taken",
    "truth",
    "woken",
]

MakeStore = Callable[[str, Clock], Store]
"""Two stores made with one name see the same data; a fresh name is empty."""

_START_MS: Final = 1_700_000_000_000
_REAL_LEASE_MS: Final = 400
_MARGIN_MS: Final = 20
_PATIENCE_SECONDS: Final = 20.0


class Check(Protocol):
    """One check; raises AssertionError. ``clock_is_injected=False``: the driver's time is a server's and really passes."""

    __name__: str

    async def __call__(self, make_store: MakeStore, *, clock_is_injected: bool = True) -> None: ...


class Bench:
    """One fresh name and the stores that were opened on it."""

    def __init__(self, make_store: MakeStore, name: str, *, clock_is_injected: bool) -> None:
        self.clock_is_injected = clock_is_injected
        self.lease_ms = 10_000 if clock_is_injected else _REAL_LEASE_MS
        """Long enough for what a check does meanwhile, short enough to wait for."""
        self._make_store = make_store
        self._name = f"{name}-{uuid.uuid4().hex[:12]}"
        self._now_ms = _START_MS
        self._opened: list[Store] = []

    async def connect(
        self, worker: str = "first", *, max_events_per_job: int = 100, max_attempts_per_job: int = 100
    ) -> Store:
        """A connection, closed at the end of the check."""
        store = self._make_store(self._name, self._clock)
        await store.open(
            worker=worker, max_events_per_job=max_events_per_job, max_attempts_per_job=max_attempts_per_job
        )
        self._opened.append(store)
        return store

    async def close(self) -> None:
        """Close what is open; closing twice is harmless by the protocol."""
        for store in self._opened:
            await store.aclose()

    async def pass_ms(self, span_ms: int) -> None:
        """Let the stores' time go on."""
        if self.clock_is_injected:
            self._now_ms += span_ms
        else:
            await trio.sleep((span_ms + _MARGIN_MS) / 1000)

    def _clock(self) -> int:
        return self._now_ms


def check(body: Callable[[Bench], Awaitable[None]]) -> Check:
    """Make a check of a function of a bench."""

    @wraps(body)
    async def run(make_store: MakeStore, *, clock_is_injected: bool = True) -> None:
        bench = Bench(make_store, body.__name__, clock_is_injected=clock_is_injected)
        try:
            with trio.fail_after(_PATIENCE_SECONDS):
                await body(bench)
        finally:
            with trio.CancelScope(shield=True):
                await bench.close()

    return run


def equal(actual: object, wanted: object) -> None:
    """Raises AssertionError, also under ``python -O``."""
    if actual != wanted:
        raise AssertionError(f"got {actual!r}, wanted {wanted!r}")


def truth(condition: object, complaint: str) -> None:
    """Raises AssertionError, also under ``python -O``."""
    if not condition:
        raise AssertionError(complaint)


def job(number: int, **fields: Any) -> Job:
    """A job as submitted; ``number`` makes its id."""
    given: dict[str, Any] = {
        "name": "send",
        "status": Status.QUEUED,
        "created_ms": _START_MS,
        "updated_ms": _START_MS,
    } | fields
    return Job(id=str(uuid.UUID(int=number)), **given)


def request(number: int) -> Request:
    """What was asked for that job; distinct for each number."""
    return Request(body=Raw(b'{"number":%d}' % number), headers=(("x-n", str(number)), ("x-n", "again")))


def birth(number: int, *, max_queue_size: int | None = None, **fields: Any) -> Write:
    """The write that inserts ``job(number)``."""
    change = accept(job(number, **fields))
    return Write(job=change.job, events=change.events, request=request(number), max_queue_size=max_queue_size)


async def submit(store: Store, *numbers: int, **fields: Any) -> list[Job]:
    """Insert jobs in one batch; they must be accepted."""
    return [committed(outcome).job for outcome in await store.commit([birth(number, **fields) for number in numbers])]


def after(current: Job, *commands: Command, max_queue_size: int | None = None) -> Write:
    """The write of what the commands make of a record."""
    following, events, attempt = current, tuple[Event, ...](), None
    for command in commands:
        change = decide(following, command)
        following, events, attempt = change.job, events + change.events, change.attempt or attempt
    return Write(job=following, events=events, expected=current, attempt=attempt, max_queue_size=max_queue_size)


async def apply(store: Store, current: Job, *commands: Command) -> Job:
    """Commit what the commands make of a record; it must be accepted."""
    return committed((await store.commit([after(current, *commands)]))[0]).job


async def claim(
    store: Store, bench: Bench, *, limit: int = 1, name: str = "send", queue: str = "default"
) -> list[Claimed]:
    """Claim for the bench's lease."""
    return list(await store.claim(queues=[queue], names=[name], limit=limit, lease_ms=bench.lease_ms))


async def one(store: Store, job_id: str) -> Job | None:
    """The stored record."""
    return (await store.get([job_id]))[0]


async def woken(store: Store, cursor: str, act: Callable[[], Awaitable[object]]) -> News:
    """The news that wake ``store``, which sleeps when ``act`` begins."""
    told: list[News] = []

    async def listen() -> None:
        told.append(await store.wait_news(cursor))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        await act()
    return told[0]


def committed(outcome: object) -> Committed:
    """The outcome, which must be Committed."""
    if not isinstance(outcome, Committed):
        raise AssertionError(f"refused: {outcome!r}")
    return outcome


def kinds(outcomes: Iterable[object]) -> list[str]:
    """The names of the outcomes."""
    return [type(outcome).__name__ for outcome in outcomes]


def ids(jobs: Iterable[Job | None]) -> list[int]:
    """The numbers that the jobs were made from."""
    return [-1 if found is None else uuid.UUID(found.id).int for found in jobs]


def taken(claimed: Sequence[Claimed]) -> list[int]:
    """The numbers of the claimed jobs."""
    return ids(item.job for item in claimed)


def succeed(now_ms: int = _START_MS, result: bytes = b'"done"') -> Succeed:
    return Succeed(now_ms=now_ms, result=Raw(result))


def failing(now_ms: int = _START_MS, *, delay_ms: int = 0) -> Fail:
    failure = Failure(code="OOPS", message="it broke", type="ValueError", retryable=True)
    return Fail(now_ms=now_ms, failure=failure, delay_ms=delay_ms)


def cancel(now_ms: int = _START_MS) -> Cancel:
    return Cancel(now_ms=now_ms)


def retry(now_ms: int = _START_MS) -> Retry:
    return Retry(now_ms=now_ms)


def progress(percent: float, now_ms: int = _START_MS) -> Report:
    return Report(now_ms=now_ms, progress=Progress(percent=percent, data=Raw(b"[1]")))
