"""For tests of your own handlers: a runtime on virtual time, so that an hour of retries takes no time at all.

    from callboard.testing import open_virtual_runtime, run_virtual

    async def scenario():
        async with open_virtual_runtime(handlers) as board:
            job = await board.submit("ProcessData", {"data": "x"})
            await board.drain()                                   # every job has ended, retries and delays included
            assert (await board.get(job.id)).status == "Completed"
            assert [event.type for event in board.events_of(job.id)] == ["status", "status", "status"]

    run_virtual(scenario)

Under pytest-trio, take the ``autojump_clock`` fixture instead of ``run_virtual``. Plain functions run in place, not in threads or
processes: their time is real and would let the virtual clock leap.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
import trio.testing
from msgspec.structs import replace

from callboard.runtime.config import Config
from callboard.runtime.context import ProcessJobContext, Reports
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import LIVE, Job, Request, Status
from callboard.runtime.handlers import Handler, Handlers
from callboard.runtime.payload import decode
from callboard.runtime.queues import Queue
from callboard.runtime.runtime import Runtime, open_runtime
from callboard.stores.memory import MemoryStore

__all__ = ["VirtualRuntime", "open_virtual_runtime", "run_virtual", "virtual_now_ms"]

T = TypeVar("T")

_BIRTHDAY_MS = 1_700_000_000_000
_NEVER_SECONDS = 10 * 366 * 24 * 3600.0


class VirtualRuntime:
    """A runtime on a memory store, with the methods of ``Runtime``. ``runtime`` is the real one; ``events`` is everything that
    happened, in order."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.events: list[Event] = []
        self.submit = runtime.submit
        self.submit_many = runtime.submit_many
        self.get = runtime.get
        self.list = runtime.list
        self.wait = runtime.wait
        self.watch = runtime.watch
        self.feed = runtime.feed
        self.cancel = runtime.cancel
        self.retry = runtime.retry
        self.purge = runtime.purge
        self.attempts = runtime.attempts
        self.queues = runtime.queues
        self.pause = runtime.pause
        self.resume = runtime.resume
        self._happened = trio.Event()

    def events_of(self, job_id: str) -> list[Event]:
        """What happened to one job, in order."""
        return [event for event in self.events if event.job_id == job_id]

    async def drain(self) -> list[Job]:
        """Let (virtual) time pass until every job has ended but those that wait in a paused queue; all jobs, oldest first."""
        while True:
            # Taken before the look, so that an end in between is not missed.
            happened = self._happened
            if not any(_may_go_on(queue) for queue in await self.runtime.queues()):
                break
            await happened.wait()
        jobs: list[Job] = []
        cursor = None
        while True:
            page = await self.runtime.list(cursor=cursor, limit=200)
            jobs += page.jobs
            cursor = page.next
            if cursor is None:
                return jobs[::-1]

    def _record(self, events: Iterable[Event]) -> None:
        self.events += events
        self._happened.set()
        self._happened = trio.Event()


def _may_go_on(queue: Queue) -> bool:
    states = {Status.IN_PROGRESS} if queue.paused else LIVE
    return any(queue.counts.get(status) for status in states)


class _InPlace:
    """Plain functions run in the attempt's own task, those of ``process=True`` too."""

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    def check(self) -> None:
        pass


class _ProcessesInPlace:
    async def run(self, handler: Handler, job: Job, request: Request, reports: Reports) -> Any:
        body = [decode(handler.request_type, request.body)] if handler.takes_body else []
        return await _InPlace().run(handler.function, ProcessJobContext(job, request, reports), *body)


@asynccontextmanager
async def open_virtual_runtime(
    handlers: Handlers | Iterable[Handler], config: Config | None = None
) -> AsyncIterator[VirtualRuntime]:
    """A runtime whose clock is trio's; use it under a ``trio.testing.MockClock`` with autojump.

    Polls, heartbeats and retention are put off for ever, so that virtual years cost nothing.
    """
    settings = replace(
        config or Config(), poll_seconds=_NEVER_SECONDS, lease_seconds=_NEVER_SECONDS, retention_seconds=None
    )
    store = MemoryStore(clock=virtual_now_ms)
    async with open_runtime(store, handlers, settings, threads=_InPlace(), processes=_ProcessesInPlace()) as runtime:
        board = VirtualRuntime(runtime)
        runtime.on_events.append(board._record)
        yield board


def run_virtual(scenario: Callable[[], Awaitable[T]]) -> T:
    """``trio.run`` on virtual time: when all tasks sleep, the clock jumps."""
    return trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def virtual_now_ms() -> int:
    """Trio's clock as milliseconds since the epoch."""
    return _BIRTHDAY_MS + round(trio.current_time() * 1000)
