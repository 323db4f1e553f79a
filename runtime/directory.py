"""Job id to live supervisor. A message for a job without one activates it; an idle one leaves. Holds what all supervisors share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import trio

from callboard.runtime.attempt import Around
from callboard.runtime.clock import RuntimeClock
from callboard.runtime.config import Config
from callboard.runtime.core.errors import StoreUnavailable
from callboard.runtime.core.store import Claimed
from callboard.runtime.handlers import Handlers
from callboard.runtime.messages import Message, Started
from callboard.runtime.processes import Processes
from callboard.runtime.store_actor import StoreActor
from callboard.runtime.supervisor import Supervisor
from callboard.runtime.telemetry import Telemetry
from callboard.runtime.threads import Threads, TrioThreads
from callboard.runtime.tracing import Tracing

__all__ = ["Directory"]

MAX_SPOKEN_TO = 10_000
"""Supervisors that may be alive beyond those that run a job; past it, callers are told that the store cannot be reached."""


class Directory:
    """At most one supervisor per job in this runtime."""

    def __init__(
        self,
        *,
        store: StoreActor,
        handlers: Handlers,
        config: Config,
        clock: RuntimeClock,
        random: Callable[[], float],
        around: Around | None,
        threads: Threads | None,
        telemetry: Telemetry,
        tracing: Tracing,
        processes: Processes,
    ) -> None:
        self.store = store
        self.handlers = handlers
        self.config = config
        self.clock = clock
        self.random = random
        self.around = around
        self.threads = threads or TrioThreads(max(1, config.max_concurrent_jobs))
        self.telemetry = telemetry
        self.tracing = tracing
        self.processes = processes
        self.is_draining = False
        self.is_over = False
        """The drain deadline has passed: what the store cannot take now is given up, its lease lapses."""
        self.running = 0
        """Attempts that have a slot."""
        self.running_in_processes = 0
        """Those of them whose handlers run in worker processes."""
        self.on_slot_free: Callable[[], None] = lambda: None
        self._live: dict[str, Supervisor] = {}
        self._is_claiming = False
        self._seen_while_claiming: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the supervisors until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def tell(self, job_id: str, message: Message) -> None:
        """Send to the job's supervisor. Raises StoreUnavailable when too many jobs are spoken to at once."""
        if job_id not in self._live and len(self._live) - self.running >= MAX_SPOKEN_TO:
            raise StoreUnavailable("too many jobs wait for the store")
        await self._supervisor(job_id).tell(message)

    async def start(self, claimed: Claimed, lease_ends: float) -> None:
        """Hand a claimed job to its supervisor; it takes a slot until ``attempt_ended``."""
        self.running += 1
        self.running_in_processes += self._runs_in_process(claimed.job.name)
        supervisor = self._supervisor(claimed.job.id)
        await supervisor.tell(Started(claimed, lease_ends))
        if claimed.job.id in self._seen_while_claiming:
            supervisor.hint()

    def attempt_ended(self, name: str) -> None:
        """A slot that a job of that handler had is free again."""
        self.running -= 1
        self.running_in_processes -= self._runs_in_process(name)
        self.signal()
        self.on_slot_free()

    def leave(self, supervisor: Supervisor) -> None:
        """The supervisor has nothing to do and ends."""
        if self._live.get(supervisor.job_id) is supervisor:
            del self._live[supervisor.job_id]
        self.signal()

    def hint(self, job_ids: Iterable[str]) -> None:
        """These jobs changed elsewhere: whoever runs one of them here has to look."""
        for job_id in job_ids:
            supervisor = self._live.get(job_id)
            if supervisor is not None:
                supervisor.hint()
            elif self._is_claiming:
                self._seen_while_claiming.add(job_id)

    def hint_all(self) -> None:
        """Part of the news is gone: everybody has to look."""
        self.hint(tuple(self._live))

    def attempts(self) -> list[Supervisor]:
        """The supervisors that run an attempt now."""
        return [supervisor for supervisor in self._live.values() if supervisor.attempt is not None]

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Round a claim and the handing over of what it brought: a job may change elsewhere before it has a supervisor here."""
        self._is_claiming = True
        try:
            yield
        finally:
            self._is_claiming = False
            self._seen_while_claiming.clear()

    async def wait_code_ended(self) -> None:
        """Until no handler's code runs here; some outcomes may have yet to be stored."""
        while any(not supervisor.is_settling for supervisor in self.attempts()):
            await self._change()

    async def wait_no_attempts(self) -> None:
        """Until no slot is taken."""
        while self.running:
            await self._change()

    async def wait_empty(self) -> None:
        """Until no supervisor is alive."""
        while self._live:
            await self._change()

    def _supervisor(self, job_id: str) -> Supervisor:
        supervisor = self._live.get(job_id)
        if supervisor is None:
            assert self._nursery is not None, "the directory runs before it is spoken to"
            supervisor = self._live[job_id] = Supervisor(job_id, self)
            self._nursery.start_soon(supervisor.run, name=f"supervisor of {job_id}")
        return supervisor

    def _runs_in_process(self, name: str) -> bool:
        handler = self.handlers.get(name)
        return handler is not None and handler.runs_in == "process"

    def signal(self) -> None:
        """Something changed that ``wait_...`` may wait for."""
        self._changed.set()
        self._changed = trio.Event()

    async def _change(self) -> None:
        await self._changed.wait()
