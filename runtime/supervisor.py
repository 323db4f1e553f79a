"""The owner of one job's life: an actor with a mailbox, alive while the job runs here or someone speaks to it.

One message at a time, in order of arrival. Handler code never runs in this task, so nothing that a handler does can keep the
supervisor from answering. How a record is changed is ``record``'s business, what a handler says ``reporter``'s. An outcome and a cancel
are tried until the store takes them.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from callboard.runtime.attempt import Attempt, Failed, Outcome, Reason, Returned, Stopped
from callboard.runtime.chain import chain_of
from callboard.runtime.core.commands import Cancel, Command, Fail, Release, Retry, Stop, Succeed
from callboard.runtime.core.errors import CallboardError, StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.retry import backoff_ms
from callboard.runtime.core.store import Extension, Held
from callboard.runtime.failure import Retry as Again
from callboard.runtime.messages import CancelAsked, Ended, Message, PurgeAsked, Reported, RetryAsked, Seen, Started
from callboard.runtime.record import LeaseLost, Record
from callboard.runtime.reply import Reply
from callboard.runtime.reporter import Reporter
from callboard.runtime.submission import MAX_DELAY_MS
from callboard.runtime.wary import is_a, told
from callboard.runtime.witness import Witness

if TYPE_CHECKING:
    from callboard.runtime.directory import Directory

__all__ = ["Supervisor"]

logger = logging.getLogger("callboard.jobs")

MAILBOX: Final = 100
"""Messages that may wait for one supervisor; past it, callers wait to send."""


class Supervisor:
    """Made by the directory, which also ends it: see ``Directory.leave``."""

    def __init__(self, job_id: str, directory: "Directory") -> None:
        self.job_id = job_id
        self._home = directory
        self._send, self._receive = trio.open_memory_channel[Message](MAILBOX)
        self._record = Record(
            job_id,
            store=directory.store,
            config=directory.config,
            clock=directory.clock,
            cancel_seen=lambda: self._stop_attempt("cancel"),
            is_over=lambda: directory.is_over,
        )
        self._reporter = Reporter(self._record, directory.config, self._post_report)
        self._next_start: Started | None = None
        self.attempt: Attempt | None = None
        self.witness: Witness | None = None
        """Of ``attempt``."""
        self.is_settling = False
        """The attempt's code has ended; only the store has yet to take its outcome."""

    async def tell(self, message: Message) -> None:
        """Put a message into the mailbox; waits while it is full."""
        await self._send.send(message)

    def hint(self) -> None:
        """The job changed elsewhere. Never waits: where the mailbox is full, the supervisor is about to look anyway."""
        self._post(Seen())

    def leases(self) -> list[Held]:
        """What is held here: the attempt's lease, and that of a claim that waits until an older attempt has cleaned up."""
        fences = [] if self.attempt is None else [self._record.fence]
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
        elif self.attempt is not None and self._record.fence == fence:
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
        raise AssertionError(f"the supervisor of job {self.job_id} ended without leaving")

    async def _next(self) -> Message | None:
        while True:
            try:
                return self._receive.receive_nowait()
            except trio.WouldBlock:
                if self.attempt is None and self._send.statistics().tasks_waiting_send == 0:
                    # No checkpoint between this look and the entry's removal: no message can slip in.
                    self._home.leave(self)
                    return None
            with trio.move_on_at(self._reporter.flush_at):
                return await self._receive.receive()
            await self._report(self._reporter.flush)

    async def _handle(self, message: Message, nursery: trio.Nursery) -> None:
        match message:
            case Started():
                await self._started(message, nursery)
            case Reported():
                await self._report(self._reporter.reported)
            case Ended(outcome):
                await self._ended(outcome)
                await self._start_next(nursery)
            case Seen():
                await self._report(self._record.look)
            case CancelAsked(reply):
                await self._answer(reply, self._cancel)
            case RetryAsked(reply):
                await self._answer(reply, self._retry)
            case PurgeAsked(reply):
                await self._answer(reply, self._record.remove)

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
        dropped, self._next_start = self._next_start, None
        if dropped is not None:
            self._home.attempt_ended(dropped.claimed.job.name)

    async def _start_next(self, nursery: trio.Nursery) -> None:
        message, self._next_start = self._next_start, None
        if message is not None:
            await self._start(message, nursery)

    async def _start(self, started: Started, nursery: trio.Nursery) -> None:
        claimed = started.claimed
        handler = self._home.handlers.get(claimed.job.name)
        assert handler is not None, f"claimed {claimed.job.name!r}, which has no handler here"
        self._reporter = Reporter(self._record, self._home.config, self._post_report)
        attempt = self.attempt = Attempt(
            claimed.job,
            claimed.request,
            handler,
            config=self._home.config,
            reports=self._reporter.reports,
            threads=self._home.threads,
            processes=self._home.processes,
            around=self._home.around,
            lease_ends=started.lease_ends,
        )
        self.witness = Witness(claimed, self._home.telemetry, self._home.tracing)
        if self._record.hold(claimed.job).cancel_requested:
            await self._ended(Stopped("cancel"))
        elif self._home.is_draining:
            await self._ended(Stopped("drain"))
        elif trio.current_time() >= started.lease_ends:
            await self._ended(Stopped("lease"))
        else:
            nursery.start_soon(self._run_attempt, attempt, self.witness)

    async def _run_attempt(self, attempt: Attempt, witness: Witness) -> None:
        outcome = await witness.execute(attempt.run)
        await self._send.send(Ended(outcome))

    async def _ended(self, outcome: Outcome) -> None:
        self.is_settling = True
        self._home.signal()
        witness, settled = self.witness, None
        assert witness is not None, "an attempt has a witness"
        try:
            settled = await self._settle(outcome)
            self._log(settled, outcome, witness)
        except LeaseLost:
            text = "job %s: the lease was lost, the attempt's outcome is dropped"
            logger.warning(text, self.job_id, extra=witness.log_fields)
        except (StoreUnavailable, StoreRefused) as error:
            text = "job %s: the outcome is not stored, the lease will lapse: %s"
            logger.error(text, self.job_id, error, extra=witness.log_fields)
        finally:
            witness.settled(outcome, settled)
            assert self.attempt is not None
            name = self.attempt.handler_name
            self.attempt, self.witness, self.is_settling = None, None, False
            self._record.let_go()
            self._home.attempt_ended(name)

    async def _settle(self, outcome: Outcome) -> Job:
        if isinstance(outcome, Stopped) and outcome.reason == "lease":
            raise LeaseLost
        report = await self._reporter.last()
        return await self._record.persist(report, self._command(self._record.held(), outcome), fenced=True)

    def _command(self, job: Job, outcome: Outcome) -> Command:
        now_ms = self._record.now_ms()
        match outcome:
            case Returned(result, location):
                return Succeed(now_ms=now_ms, result=result, location=location)
            case Failed(failure, after_seconds, error):
                delay_ms = self._delay_ms(job, after_seconds)
                return Fail(now_ms=now_ms, failure=failure, delay_ms=delay_ms, exceptions=chain_of(error))
            case Stopped("cancel", error):
                return Stop(now_ms=now_ms, exceptions=chain_of(error))
            case Stopped(_, error):
                return Release(now_ms=now_ms, exceptions=chain_of(error))

    def _delay_ms(self, job: Job, after_seconds: float | None) -> int:
        if after_seconds is not None:
            return round(min(after_seconds * 1000, MAX_DELAY_MS))
        config = self._home.config
        delay_ms = backoff_ms(
            job.retry_count + 1,
            base_seconds=config.retry_base_seconds,
            max_seconds=config.retry_max_seconds,
            random=self._home.random(),
        )
        return min(delay_ms, MAX_DELAY_MS)

    def _stop_attempt(self, reason: Reason) -> None:
        if self.attempt is not None:
            self.attempt.stop(reason)

    async def _report(self, act: Callable[[], Awaitable[None]]) -> None:
        """Something about the attempt that runs here, which ends when the job turns out not to be its any more."""
        if self.attempt is None:
            return
        try:
            await act()
        except (LeaseLost, StoreRefused):
            self.attempt.stop("lease")
        except StoreUnavailable:
            pass  # the heartbeat brings it again

    def _post_report(self) -> bool:
        return self._post(Reported())

    def _post(self, message: Message) -> bool:
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True

    # What others ask

    async def _answer(self, reply: Reply[Job], act: Callable[[], Awaitable[Job]]) -> None:
        self._record.forget_unheld()
        try:
            reply.set(await act())
        except CallboardError as error:
            reply.fail(error)
        except LeaseLost:
            # The attempt is another runtime's by now: what was asked is asked again of the stored record.
            self._stop_attempt("lease")
            self._record.forget()
            await self._answer(reply, act)

    async def _cancel(self) -> Job:
        """Written down first; then it reaches the attempt's scope. Tried until the store takes it: a cancel is not lost."""
        return await self._record.persist(Cancel(now_ms=self._record.now_ms()))

    async def _retry(self) -> Job:
        return await self._record.apply(Retry(now_ms=self._record.now_ms()), bounded=True)

    # The log

    def _log(self, job: Job, outcome: Outcome, witness: Witness) -> None:
        fields = witness.log_fields
        if isinstance(outcome, Failed):
            level = logging.WARNING if job.status is Status.SCHEDULED else logging.ERROR
            text = "job %s (%s) attempt %d: %s (%s), now %s"
            failure = outcome.failure
            words = (job.id, job.name, job.attempt, failure.code, failure.type, job.status.value)
            # A handler that asks to be run again knows what it does: nobody needs to see where it asked.
            asked = is_a(outcome.error, Again) and outcome.error.__cause__ is None
            shown = None if asked else outcome.error
            # A logging handler formats the app's exception, and may raise what that raises.
            told(lambda: logger.log(level, text, *words, exc_info=shown, extra=fields), None)
        else:
            text = "job %s (%s) attempt %d: now %s"
            logger.debug(text, job.id, job.name, job.attempt, job.status.value, extra=fields)
