"""One job's record as its supervisor knows it, and the one way to change it: decide, compare-and-set, and again.

What was committed is the truth. A Conflict brings the newer record and the commands are decided again; so do the store's own
questions (``Write.again``). It knows the fence of the attempt that runs here and lets nothing fenced be written without it.
"""

from collections.abc import Callable

import trio
from msgspec.structs import replace

from callboard.runtime.clock import RuntimeClock
from callboard.runtime.config import Config
from callboard.runtime.core.commands import Command
from callboard.runtime.core.errors import IllegalTransition, JobNotFound, QueueFull, StoreUnavailable
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Committed, Conflict, Delete, Full, Outcome, Write
from callboard.runtime.core.transition import Change, decide
from callboard.runtime.store_actor import StoreActor

__all__ = ["LeaseLost", "Record"]


class LeaseLost(Exception):
    """The stored record is not held by the claim of the attempt that runs here."""


class Record:
    """``cancel_seen`` is called whenever the newest record says that a cancel was asked for.

    ``is_over()`` says that the drain deadline has passed: what the store cannot take now is given up.
    """

    def __init__(
        self,
        job_id: str,
        *,
        store: StoreActor,
        config: Config,
        clock: RuntimeClock,
        cancel_seen: Callable[[], None],
        is_over: Callable[[], bool],
    ) -> None:
        self._job_id = job_id
        self._store = store
        self._config = config
        self._clock = clock
        self._cancel_seen = cancel_seen
        self._is_over = is_over
        self._known: Job | None = None
        self._doubt: tuple[tuple[Command, ...], Job] | None = None
        """The commands of a try whose answer was lost, and the record that it has made if it took effect."""
        self.fence = 0
        """Of the attempt that runs here; 0 when none does."""

    def now_ms(self) -> int:
        """The time at which commands are decided."""
        return self._clock.now_ms()

    def hold(self, claimed: Job) -> Job:
        """An attempt begins. Returns the newest record of that claim: a cancel may have been written since it was made."""
        self.fence = claimed.fence
        if self._known is None or self._known.fence != claimed.fence or self._known.seq < claimed.seq:
            self._known = claimed
        return self._known

    def let_go(self) -> None:
        """The attempt has ended. What is known stays: a claim that waits has to see a cancel that was written meanwhile."""
        self.fence = 0

    def forget_unheld(self) -> None:
        """Before a question from outside: ask the store again, unless what is known is of the attempt that runs here."""
        if not self.fence or (self._known is not None and self._known.fence != self.fence):
            self._known = None

    def forget(self) -> None:
        """Ask the store the next time."""
        self._known = None

    def held(self) -> Job:
        """The record that the attempt was claimed with, or a newer one of the same claim. Raises LeaseLost."""
        if self._known is None or self._known.fence != self.fence:
            raise LeaseLost
        return self._known

    async def current(self) -> Job:
        """The record as far as it is known, else from the store. Raises JobNotFound, StoreUnavailable."""
        if self._known is None:
            self._known = await self._store.get(self._job_id)
            if self._known is None:
                raise JobNotFound(f"there is no job {self._job_id}")
        return self._known

    async def look(self) -> None:
        """Take what the store has now. Raises LeaseLost if the attempt that runs here does not hold it any more."""
        job = await self._store.get(self._job_id)
        if job is None or job.fence != self.fence:
            self._known = job
            raise LeaseLost
        if self._known is None or job.seq >= self._known.seq:
            self._note(job)

    async def persist(self, *steps: Command, fenced: bool = False) -> Job:
        """``apply``, tried until the store takes it or all is over."""
        while True:
            try:
                return await self.apply(*steps, fenced=fenced)
            except StoreUnavailable:
                if self._is_over():
                    raise
                await trio.sleep(self._config.poll_seconds)

    async def apply(self, *steps: Command, bounded: bool = False, fenced: bool = False) -> Job:
        """Decide ``steps`` one after another and commit them as one write. Returns the record as committed.

        With ``fenced`` only while the job is held by this attempt's claim, with ``bounded`` only while the queue has room.
        Repeated with the same commands, it recognizes a try that took effect although its answer was lost. Raises
        JobNotFound, IllegalTransition, QueueFull, StoreUnavailable, LeaseLost.
        """
        while True:
            before = self.held() if fenced else await self.current()
            change = _decide_all(before, steps)
            if not change.events or self._doubt == (steps, before):
                return self._note(before)
            match await self._commit(steps, change, self._write(before, steps, change, bounded=bounded, fenced=fenced)):
                case Committed(job):
                    return self._note(job)
                case Full(size):
                    raise QueueFull(f"the queue {before.queue!r} holds {size} jobs, as many as it may", before.queue)
                case Conflict(current):
                    if current == change.job:
                        return self._note(current)
                    self._adopt(current)

    async def remove(self) -> Job:
        """Purge the ended job; the record that was removed. Raises JobNotFound, IllegalTransition, StoreUnavailable."""
        while True:
            job = await self.current()
            if not job.status.is_terminal:
                raise IllegalTransition(f"a job that is {job.status.value} cannot be purged: cancel it first")
            if isinstance(await self._store.commit(Delete(expected=job)), Committed):
                return job
            self._known = None

    async def _commit(self, steps: tuple[Command, ...], change: Change, write: Write) -> Outcome:
        self._doubt = None
        try:
            return await self._store.commit(write, is_own=self.fence != 0)
        except StoreUnavailable:
            self._doubt = steps, change.job
            raise

    def _write(self, before: Job, steps: tuple[Command, ...], change: Change, *, bounded: bool, fenced: bool) -> Write:
        write = Write(
            job=change.job,
            events=change.events,
            expected=before,
            attempt=change.attempt,
            max_queue_size=self._config.max_queue_size if bounded else None,
        )
        fence = self.fence if fenced else None

        def again(current: Job) -> Write | None:
            # A record that is this very change already comes from an earlier try whose answer was lost.
            if current == change.job or fence not in (None, current.fence):
                return None
            try:
                other = _decide_all(current, steps)
            except IllegalTransition:
                return None
            if not other.events:
                return None
            return replace(write, job=other.job, events=other.events, attempt=other.attempt, expected=current)

        return replace(write, again=again)

    def _adopt(self, current: Job | None) -> None:
        if self.fence and (current is None or current.fence != self.fence):
            raise LeaseLost
        if current is None:
            self._known = None
            raise JobNotFound(f"there is no job {self._job_id}")
        self._note(current)

    def _note(self, job: Job) -> Job:
        self._known = job
        if job.cancel_requested:
            self._cancel_seen()
        return job


def _decide_all(job: Job, steps: tuple[Command, ...]) -> Change:
    change = Change(job)
    for step in steps:
        following = decide(change.job, step)
        change = Change(following.job, change.events + following.events, following.attempt or change.attempt)
    return change
