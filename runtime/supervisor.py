"""The owner of one job's life: an actor with a mailbox, alive while the job runs here or someone speaks to it.

One message at a time, in order of arrival. Every change goes the same way: decide, compare-and-set, and what was committed is
the truth; a Conflict brings the newer record and the command is decided again. Handler code never runs in this task, so nothing that
a handler does can keep the supervisor from answering. A report that cannot be stored waits; an outcome and a cancel are tried
again until the store takes them.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.attempt import Attempt, Failed, Outcome, Reason, Returned, Stopped
from callboard.runtime.context import Reports
from callboard.runtime.core.commands import Cancel, Command, Fail, Release, Report, Retry, Stop, Succeed
from callboard.runtime.core.errors import CallboardError, IllegalTransition, JobNotFound, QueueFull, StoreUnavailable
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.retry import backoff_ms
from callboard.runtime.core.store import Claimed, Committed, Conflict, Delete, Extension, Full, Held, Write
from callboard.runtime.core.transition import Change, decide
from callboard.runtime.handlers import Handler
from callboard.runtime.reply import Reply
from callboard.runtime.submission import MAX_DELAY_MS

if TYPE_CHECKING:
    from callboard.runtime.directory import Directory

__all__ = [
    "CancelAsked",
    "Ended",
    "Message",
    "PurgeAsked",
    "Reported",
    "RetryAsked",
    "Seen",
    "Started",
    "Supervisor",
]

logger = logging.getLogger("callboard.jobs")

T = TypeVar("T")

MAILBOX: Final = 100
"""Messages that may wait for one supervisor; past it, callers wait to send."""


class Started(Struct, frozen=True):
    """The job was claimed for this runtime; the lease holds until ``lease_ends`` (trio's clock, seconds)."""

    claimed: Claimed
    lease_ends: float


class Reported(Struct, frozen=True):
    """The handler said something; what, is in the reports."""


class Ended(Struct, frozen=True):
    """The handler and all that it started have ended."""

    outcome: Outcome


class CancelAsked(Struct, frozen=True):
    reply: Reply[Job]


class RetryAsked(Struct, frozen=True):
    reply: Reply[Job]


class PurgeAsked(Struct, frozen=True):
    reply: Reply[Job]


class Seen(Struct, frozen=True):
    """Another connection changed the job: look."""


Message = Started | Reported | Ended | CancelAsked | RetryAsked | PurgeAsked | Seen


class _LeaseLost(Exception):
    """The stored record is not of our fence any more."""


class Supervisor:
    """Made by the directory, which also ends it: see ``Directory.leave``."""

    def __init__(self, job_id: str, directory: "Directory") -> None:
        self.job_id = job_id
        self._home = directory
        self._send, self._receive = trio.open_memory_channel[Message](MAILBOX)
        self._job: Job | None = None
        self._handler: Handler | None = None
        self._reports = Reports(self._notify)
        self._report_waits = False
        self._flush_at = float("inf")
        self._last_flush = -float("inf")
        self._next_start: Started | None = None
        self._token = trio.lowlevel.current_trio_token()
        self.attempt: Attempt | None = None
        self.fence = 0

    async def tell(self, message: Message) -> None:
        """Put a message into the mailbox; waits while it is full."""
        await self._send.send(message)

    def hint(self) -> None:
        """The job changed elsewhere. Never waits: where the mailbox is full, the supervisor is about to look anyway."""
        try:
            self._send.send_nowait(Seen())
        except trio.WouldBlock:
            pass

    def leases(self) -> list[Held]:
        """What is held here: the attempt's lease, and that of a claim that waits until an older attempt has cleaned up."""
        fences = [] if self.attempt is None else [self.fence]
        if self._next_start is not None:
            fences.append(self._next_start.claimed.job.fence)
        return [Held(self.job_id, fence) for fence in fences]

    def extended(self, fence: int, answer: Extension, lease_ends: float) -> None:
        """The store's answer about one of ``leases``; one that is held lasts until ``lease_ends``."""
        waiting = self._next_start
        if waiting is not None and waiting.claimed.job.fence == fence:
            if answer.held:
                self._next_start = Started(waiting.claimed, lease_ends)
            else:
                self._drop_next_start()
        elif self.attempt is not None and self.fence == fence:
            if answer.held:
                self.attempt.extend_lease(lease_ends)
            if not answer.held or (answer.cancel_requested and not self.attempt.is_stopping):
                self.hint()

    async def run(self) -> None:
        """Handle messages until there is neither an attempt nor a message."""
        async with trio.open_nursery() as nursery:
            while True:
                message = await self._next()
                if message is None:
                    return
                await self._handle(message, nursery)

    async def _next(self) -> Message | None:
        while True:
            try:
                return self._receive.receive_nowait()
            except trio.WouldBlock:
                if self.attempt is None and self._send.statistics().tasks_waiting_send == 0:
                    # No checkpoint between this look and the entry's removal: no message can slip in.
                    self._home.leave(self)
                    return None
            with trio.move_on_at(self._flush_at):
                return await self._receive.receive()
            await self._flush()

    async def _handle(self, message: Message, nursery: trio.Nursery) -> None:
        match message:
            case Started():
                await self._started(message, nursery)
            case Reported():
                self._report_waits = False
                await self._reported()
            case Ended(outcome):
                await self._ended(outcome)
                await self._start_next(nursery)
            case Seen():
                await self._look()
            case CancelAsked(reply):
                await self._answer(reply, self._cancel)
            case RetryAsked(reply):
                await self._answer(reply, self._retry)
            case PurgeAsked(reply):
                await self._answer(reply, self._purge)

    # The attempt

    async def _started(self, message: Started, nursery: trio.Nursery) -> None:
        self._drop_next_start()
        self._next_start = message
        if self.attempt is None:
            await self._start_next(nursery)
        else:
            # A claim whose lease was lost still cleans up here: two attempts of one job never run side by side.
            self.attempt.stop("lease")

    def _drop_next_start(self) -> None:
        """A claim whose lease was lost before it could begin gives its slot back."""
        if self._next_start is not None:
            self._next_start = None
            self._home.attempt_ended()

    async def _start_next(self, nursery: trio.Nursery) -> None:
        message, self._next_start = self._next_start, None
        if message is not None:
            await self._start(message, nursery)

    async def _start(self, started: Started, nursery: trio.Nursery) -> None:
        claimed = started.claimed
        handler = self._home.handlers.get(claimed.job.name)
        assert handler is not None, f"claimed {claimed.job.name!r}, which has no handler here"
        known = self._job
        # A cancel that was under way when the claim was made has seen a newer record of the same claim.
        newer = known is not None and known.fence == claimed.job.fence and known.seq > claimed.job.seq
        self._job = known if newer else claimed.job
        self._handler, self.fence = handler, claimed.job.fence
        self._reports = Reports(self._notify)
        attempt = self.attempt = Attempt(
            claimed.job,
            claimed.request,
            handler,
            config=self._home.config,
            reports=self._reports,
            threads=self._home.threads,
            around=self._home.around,
            lease_ends=started.lease_ends,
        )
        assert self._job is not None
        if self._job.cancel_requested:
            await self._ended(Stopped("cancel"))
        elif self._home.is_draining:
            await self._ended(Stopped("drain"))
        elif trio.current_time() >= started.lease_ends:
            await self._ended(Stopped("lease"))
        else:
            nursery.start_soon(self._run_attempt, attempt)

    async def _run_attempt(self, attempt: Attempt) -> None:
        outcome = await attempt.run()
        await self._send.send(Ended(outcome))

    async def _ended(self, outcome: Outcome) -> None:
        self._flush_at = float("inf")
        try:
            self._log(await self._settle(outcome), outcome)
        except _LeaseLost:
            self._log_lost()
        except StoreUnavailable:
            logger.error("job %s: the store did not take the attempt's outcome; its lease will lapse", self.job_id)
        finally:
            # The record stays: a claim that waits has to see a cancel that was written meanwhile.
            self.attempt, self.fence, self._handler = None, 0, None
            self._home.attempt_ended()

    async def _settle(self, outcome: Outcome) -> Job:
        if isinstance(outcome, Stopped) and outcome.reason == "lease":
            raise _LeaseLost
        logs, progress = self._reports.take()
        # Decided from the same commands each time, so that a try whose answer was lost is recognized.
        report = Report(now_ms=self._now(), logs=logs, progress=progress)
        command = self._command(self._held(), outcome)
        return await self._persist(lambda: self._apply(report, command, fenced=True))

    def _command(self, job: Job, outcome: Outcome) -> Command:
        now_ms = self._now()
        match outcome:
            case Returned(result, location):
                return Succeed(now_ms=now_ms, result=result, location=location)
            case Failed(failure, after_seconds):
                return Fail(now_ms=now_ms, failure=failure, delay_ms=self._delay_ms(job, after_seconds))
            case Stopped("cancel"):
                return Stop(now_ms=now_ms)
            case Stopped():
                return Release(now_ms=now_ms)

    def _delay_ms(self, job: Job, after_seconds: float | None) -> int:
        if after_seconds is not None:
            return min(round(after_seconds * 1000), MAX_DELAY_MS)
        config = self._home.config
        delay_ms = backoff_ms(
            job.retry_count + 1,
            base_seconds=config.retry_base_seconds,
            max_seconds=config.retry_max_seconds,
            random=self._home.random(),
        )
        return min(delay_ms, MAX_DELAY_MS)

    # Reports

    def _notify(self) -> None:
        # Also called from the handler's thread; a second message while one waits would say nothing new.
        if not self._report_waits:
            self._report_waits = True
            self._token.run_sync_soon(self._post_report)

    def _post_report(self) -> None:
        try:
            self._send.send_nowait(Reported())
        except trio.WouldBlock:
            self._report_waits = False

    async def _reported(self) -> None:
        if self.attempt is None or self._reports.is_empty:
            return
        due = self._last_flush + self._home.config.progress_interval_seconds
        if trio.current_time() >= due:
            await self._flush()
        else:
            self._flush_at = due

    async def _flush(self) -> None:
        self._flush_at = float("inf")
        if self.attempt is None or self._reports.is_empty:
            return
        self._last_flush = trio.current_time()
        logs, progress = self._reports.take()
        try:
            await self._apply(Report(now_ms=self._now(), logs=logs, progress=progress), fenced=True)
        except StoreUnavailable:
            self._reports.put_back(logs, progress)
            self._flush_at = trio.current_time() + self._home.config.poll_seconds
        except _LeaseLost:
            self.attempt.stop("lease")

    # What others ask

    async def _answer(self, reply: Reply[Job], act: Callable[[], Awaitable[Job]]) -> None:
        # Cleared before and not after: a claim that was handed over meanwhile has to see what was written (``_start``).
        if self.attempt is None or (self._job is not None and self._job.fence != self.fence):
            self._job = None
        try:
            reply.set(await act())
        except CallboardError as error:
            reply.fail(error)
        except _LeaseLost:
            # The attempt is another runtime's by now: what was asked is asked again of the stored record.
            self._stop_attempt("lease")
            self._job = None
            await self._answer(reply, act)

    async def _cancel(self) -> Job:
        """Written down first; then it reaches the attempt's scope. Tried until the store takes it: a cancel is not lost."""
        command = Cancel(now_ms=self._now())
        return await self._persist(lambda: self._apply(command))

    async def _retry(self) -> Job:
        return await self._apply(Retry(now_ms=self._now()), bounded=True)

    async def _purge(self) -> Job:
        while True:
            job = await self._current()
            if not job.status.is_terminal:
                raise IllegalTransition(f"a job that is {job.status.value} cannot be purged: cancel it first")
            outcome = await self._home.store.commit(Delete(expected=job))
            if isinstance(outcome, Committed):
                return outcome.job
            self._job = None

    async def _look(self) -> None:
        if self.attempt is None:
            return
        try:
            job = await self._home.store.get(self.job_id)
        except StoreUnavailable:
            return  # the heartbeat brings it again
        if job is None or job.fence != self.fence:
            self.attempt.stop("lease")
            self._job = job
            return
        if self._job is None or job.seq > self._job.seq:
            self._job = job
        if job.cancel_requested:
            self.attempt.stop("cancel")

    def _stop_attempt(self, reason: Reason) -> None:
        if self.attempt is not None:
            self.attempt.stop(reason)

    # Decide, compare-and-set, and again

    async def _apply(self, *steps: Command, bounded: bool = False, fenced: bool = False) -> Job:
        """Decide ``steps`` one after another and commit them as one write. Returns the record as committed.

        With ``fenced`` only while the job is held by this attempt's claim, with ``bounded`` only while the queue has room.
        Raises JobNotFound, IllegalTransition, QueueFull, StoreUnavailable, and _LeaseLost when an attempt of ours is
        no longer ours.
        """
        while True:
            before = self._held() if fenced else await self._current()
            change = _decide_all(before, steps)
            after = change.job
            if not change.events:
                return self._noted(after)
            write = self._write(before, steps, change, bounded=bounded, fenced=fenced)
            match await self._home.store.commit(write):
                case Committed(job):
                    return self._noted(job)
                case Full(size):
                    raise QueueFull(f"the queue {before.queue!r} holds {size} jobs, as many as it may")
                case Conflict(current):
                    if current == after:
                        # An earlier try of this very write took effect although the store could not say so.
                        return self._noted(current)
                    self._adopt(current)

    def _write(self, before: Job, steps: tuple[Command, ...], change: Change, *, bounded: bool, fenced: bool) -> Write:
        fence = self.fence

        def again(current: Job) -> Write | None:
            # A record that is this very change already comes from an earlier try whose answer was lost.
            if current == change.job or (fenced and current.fence != fence):
                return None
            try:
                other = _decide_all(current, steps)
            except IllegalTransition:
                return None
            return replace(write, job=other.job, events=other.events, expected=current) if other.events else None

        limit = self._home.config.max_queue_size if bounded else None
        write = Write(job=change.job, events=change.events, expected=before, again=again, max_queue_size=limit)
        return write

    def _noted(self, job: Job) -> Job:
        """This is the record now; a cancel in it, whoever asked, reaches the attempt."""
        self._job = job
        if job.cancel_requested:
            self._stop_attempt("cancel")
        return job

    def _held(self) -> Job:
        """The record that the attempt was claimed with, or a newer one of the same claim."""
        if self._job is None or self._job.fence != self.fence:
            raise _LeaseLost
        return self._job

    async def _current(self) -> Job:
        if self._job is None:
            self._job = await self._home.store.get(self.job_id)
            if self._job is None:
                raise JobNotFound(f"there is no job {self.job_id}")
        return self._job

    def _adopt(self, current: Job | None) -> None:
        if self.attempt is not None and (current is None or current.fence != self.fence):
            raise _LeaseLost
        if current is None:
            self._job = None
            raise JobNotFound(f"there is no job {self.job_id}")
        self._noted(current)

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await write()
            except StoreUnavailable:
                if self._home.is_over:
                    raise
                await trio.sleep(self._home.config.poll_seconds)

    def _now(self) -> int:
        return self._home.clock.now_ms()

    # The log

    def _log(self, job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            level = logging.WARNING if job.status is Status.SCHEDULED else logging.ERROR
            logger.log(
                level,
                "job %s (%s) attempt %d: %s (%s), now %s",
                job.id,
                job.name,
                job.attempt,
                outcome.failure.code,
                outcome.failure.type,
                job.status.value,
                exc_info=outcome.error,
            )
        else:
            logger.debug("job %s (%s) attempt %d: now %s", job.id, job.name, job.attempt, job.status.value)

    def _log_lost(self) -> None:
        logger.warning("job %s: the lease was lost, the attempt's outcome is dropped", self.job_id)


def _decide_all(job: Job, steps: tuple[Command, ...]) -> Change:
    change = Change(job)
    for step in steps:
        following = decide(change.job, step)
        change = Change(following.job, change.events + following.events)
    return change
