"""The runtime: one nursery with everything in it, its start and its end, and the client that apps and the web use.

    open_runtime ── nursery
      └─ services (shielded: they end in order, not all at once)
           ├─ store actor ........ the one user of the driver: writes, reads
           ├─ news ............... what other processes committed
           ├─ leases ............. heartbeat
           ├─ timers ............. deadlines, reaper, retention
           ├─ backlog ............ says that jobs wait which nobody takes here
           ├─ dispatcher ......... free slots -> claim -> directory
           ├─ workers ............ processes of handlers with process=True
           └─ directory
                └─ supervisor .... one per job that runs or is spoken to
                     └─ attempt .. the handler in its cancel scopes

Data goes one way: command, decide, commit, event, everybody (``Runtime._published``).

The end: stop claiming and tell everybody (``drain_started``), let attempts run until the drain deadline less the time for
cleanup, cancel them, hand back what has stopped, and last of all stop the store actor. What does not stop is never handed back:
it keeps its slot and its lease, and leaving ``open_runtime`` waits for it.
"""

import logging
import multiprocessing
import random as randomness
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from opentelemetry.trace import TracerProvider

from callboard.runtime.attempt import Around
from callboard.runtime.backlog import Backlog
from callboard.runtime.client import Client
from callboard.runtime.clock import RuntimeClock
from callboard.runtime.config import Config
from callboard.runtime.core.errors import ConfigError
from callboard.runtime.core.events import Event
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import News, Store
from callboard.runtime.directory import Directory
from callboard.runtime.dispatcher import Dispatcher
from callboard.runtime.handlers import Handler, Handlers
from callboard.runtime.hub import Hub
from callboard.runtime.ids import IdFactory
from callboard.runtime.leases import Leases
from callboard.runtime.processes import Processes, WorkerProcesses
from callboard.runtime.rates import Rates
from callboard.runtime.references import check_reference
from callboard.runtime.store_actor import StoreActor
from callboard.runtime.tally import Tally
from callboard.runtime.telemetry import Telemetry
from callboard.runtime.threads import Threads
from callboard.runtime.timers import Timers
from callboard.runtime.tracing import Tracing, leave_trace
from callboard.runtime.wary import Guard

__all__ = ["Runtime", "open_runtime"]

logger = logging.getLogger("callboard.runtime")


class Runtime(Client):
    """Made by ``open_runtime``. All methods are for tasks of the same ``trio.run``."""

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        config: Config,
        *,
        around: Around | None,
        random: randomness.Random,
        threads: Threads | None,
        tally: Tally,
        tracing: Tracing,
        processes: Processes | None,
        claims: bool,
    ) -> None:
        self.config = config
        self.handlers = handlers
        self.drain_started = trio.Event()
        self.on_events: list[Callable[[Sequence[Event]], None]] = []
        """Called with the events of every commit, as they are published; must be quick. What they raise is logged, the first time."""
        self.worker = f"{uuid.UUID(int=random.getrandbits(128))}"
        self._guard = Guard()
        self._driver = store
        self._tally = tally
        self._tracing = tracing
        self._store = StoreActor(
            store, publish=self._published, recovered=self._reread, telemetry=tally, tracing=tracing
        )
        self._clock = RuntimeClock()
        self._ids = IdFactory(self._clock.now_ms, random)
        self._hub = Hub()
        self._rates = Rates(trio.current_time)
        self._workers = WorkerProcesses(config)
        self._directory = Directory(
            store=self._store,
            handlers=handlers,
            config=config,
            clock=self._clock,
            random=random.random,
            around=around,
            threads=threads,
            telemetry=tally,
            tracing=tracing,
            processes=processes or self._workers,
        )
        self._dispatcher = Dispatcher(self._directory)
        if not claims:
            self._dispatcher.hold()
        self._leases = Leases(self._directory)
        self._timers = Timers(self._directory, self._dispatcher, self._leases)
        self._backlog = Backlog(self._directory)
        self._stop = trio.Event()
        self._finished = trio.Event()
        self._has_failed = False
        self._drained = trio.Event()

    def begin_claiming(self) -> None:
        """Run jobs from now on, where ``open_runtime(claims=False)`` put that off. Idempotent."""
        self._dispatcher.begin()

    # Ending

    def begin_drain(self) -> None:
        """Take no new work from now on, end streams and waits; ``drain`` waits for the rest. Idempotent."""
        self.drain_started.set()
        self._directory.is_draining = True
        self._dispatcher.stop()
        self._hub.close()

    async def drain(self) -> None:
        """Stop claiming, let attempts run, cancel them in time for their cleanup; returns when all have stopped or at the deadline.

        Idempotent; a caller that is cancelled does not stop it.
        """
        self.begin_drain()
        await self._drained.wait()

    # Inside

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        leave_trace()
        # Shielded: a cancellation of the surrounding code becomes an orderly end through ``_close``, not a torn one.
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as services:
                    services.start_soon(self._store.run)
                    await services.start(self._directory.run)
                    await services.start(self._store.follow_news, self._news, self.config.poll_seconds)
                    services.start_soon(self._leases.run)
                    services.start_soon(self._timers.run)
                    services.start_soon(self._timers.prune)
                    services.start_soon(self._backlog.run)
                    services.start_soon(self._dispatcher.run)
                    services.start_soon(self._workers.serve)
                    services.start_soon(self._drain_when_asked)
                    task_status.started()
                    await self._stop.wait()
                    services.cancel_scope.cancel()
                await self._driver.aclose()
        except BaseException:
            self._has_failed = True
            raise
        finally:
            self._drained.set()
            self._finished.set()

    async def _drain_when_asked(self) -> None:
        await self.drain_started.wait()
        deadline = trio.current_time() + self.config.drain_seconds
        with trio.move_on_at(deadline - self.config.cleanup_seconds):
            # What a claim that is under way brings is handed back too, and not left to its lease.
            await self._dispatcher.stopped.wait()
            await self._directory.wait_no_attempts()
        for supervisor in self._directory.attempts():
            assert supervisor.attempt is not None
            supervisor.attempt.stop("drain")
        with trio.move_on_at(deadline):
            await self._dispatcher.stopped.wait()
            await self._directory.wait_no_attempts()
        self._directory.is_over = True
        for supervisor in self._directory.attempts():
            assert supervisor.witness is not None
            text = "job %s has not stopped; it keeps its slot and its lease"
            logger.error(text, supervisor.job_id, extra=supervisor.witness.log_fields)
        self._drained.set()

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._leave_if_dead, nursery.cancel_scope)
                await self.drain()
                await self._directory.wait_code_ended()
                with trio.move_on_after(self.config.store_timeout_seconds):
                    await self._directory.wait_no_attempts()
                    await self._directory.wait_empty()
                self._stop.set()
                await self._finished.wait()

    async def _leave_if_dead(self, scope: trio.CancelScope) -> None:
        await self._finished.wait()
        scope.cancel()

    def _published(self, events: Sequence[Event]) -> None:
        self._hub.publish(events)
        self._rates.see(events)
        for observer in self.on_events:
            self._guard.call("an observer of events", partial(observer, events), None)
        self._dispatcher.see(events)
        if any(event.status == Status.SCHEDULED for event in events):
            self._timers.wake()

    def _news(self, news: News) -> None:
        self._published(news.events)
        self._directory.hint(dict.fromkeys(event.job_id for event in news.events))
        if not news.complete:
            self._reread()
        if news.holder_died:
            self._timers.wake()
        if news.queues_changed:
            # One may have been resumed. Of a pause the store tells each claim.
            self._dispatcher.wake()

    def _reread(self) -> None:
        self._hub.lag_all()
        self._directory.hint_all()
        self._dispatcher.wake()
        self._timers.wake()


@asynccontextmanager
async def open_runtime(
    store: Store,
    handlers: Handlers | Iterable[Handler],
    config: Config | None = None,
    *,
    around: Around | None = None,
    random: randomness.Random | None = None,
    threads: Threads | None = None,
    telemetry: Telemetry | None = None,
    tracer_provider: TracerProvider | None = None,
    processes: Processes | None = None,
    claims: bool = True,
) -> AsyncIterator[Runtime]:
    """Open ``store`` and run jobs with ``handlers`` until the block is left, then drain and close the store.

    ``around()`` is entered round every attempt. ``random`` draws ids and jitter; by default the system's randomness.
    ``threads`` runs plain functions; by default trio's worker threads. ``processes`` runs those of ``process=True``; by default worker
    processes of this runtime. ``telemetry`` is told what the runtime does. Spans go to ``tracer_provider``, by default OpenTelemetry's
    global one, if the app has set one. Without ``claims`` it accepts jobs and runs none until ``begin_claiming``. Raises HandlerError for
    a handler that no worker process would find, ConfigError for one of ``config.queues`` that no handler works on, StoreRefused,
    StoreUnavailable when the store cannot be opened. A bug in the runtime cancels the block and comes out as an ExceptionGroup; the
    block's own exceptions come out as they are.
    """
    if isinstance(store, str):
        raise ConfigError("open_runtime takes a store, not a URL: callboard.stores.open_store(url) makes one")
    _refuse_start_in_worker()
    config = config or Config()
    runtime = Runtime(
        store,
        _checked(handlers, config, has_processes=processes is not None),
        config,
        around=around,
        random=random or randomness.SystemRandom(),
        threads=threads,
        processes=processes,
        claims=claims,
        tally=Tally(telemetry or Telemetry()),
        tracing=Tracing(tracer_provider, type(store).__name__.removesuffix("Store").lower()),
    )
    async with _living(runtime, store):
        yield runtime


@asynccontextmanager
async def _living(runtime: Runtime, store: Store) -> AsyncIterator[None]:
    """Round the block of ``open_runtime``: open the store, run, drain, close; and whose failure it was."""
    keep = runtime.config
    await store.open(
        worker=runtime.worker,
        max_events_per_job=keep.max_events_per_job,
        max_attempts_per_job=keep.max_attempts_per_job,
    )
    bodys_error: BaseException | None = None
    try:
        for _ in range(2):  # the first answer may take long, because a driver had to connect
            asked = trio.current_time()
            runtime._clock.set(await store.now_ms(), asked=asked)
        async with trio.open_nursery() as nursery:
            await nursery.start(runtime._run)
            try:
                yield
            except BaseException as error:
                bodys_error = error
                raise
            finally:
                await runtime._close()
    except BaseExceptionGroup:
        if bodys_error is not None and not runtime._has_failed:
            # The nursery's wrapping says nothing: nobody but the block itself failed.
            raise bodys_error from bodys_error.__cause__
        raise
    finally:
        if sys.exc_info()[0] is not None:
            with trio.CancelScope(shield=True):
                await store.aclose()


def _checked(handlers: Handlers | Iterable[Handler], config: Config, *, has_processes: bool) -> Handlers:
    registry = handlers if isinstance(handlers, Handlers) else Handlers(handlers)
    registry.require_queues(config.queues or ())
    for handler in registry:
        if handler.runs_in == "process" and not has_processes:
            check_reference(handler.function, f"handler {handler.name!r}")
    return registry


def _refuse_start_in_worker() -> None:
    # A worker process imports the script that was started, to find the handlers in it.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "a worker process must not start what it only imports: put the start of the server under if __name__ == '__main__':"
        )
