"""What apps and the web ask of a runtime: the methods of ``Runtime`` that begin nothing and end nothing.

Every question is bounded: who waits for the store longer than ``store_timeout_seconds`` is told that it cannot be reached.
"""

import builtins
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import trio
from msgspec.structs import replace

from callboard.runtime.backlog import COUNT_UP_TO
from callboard.runtime.bulk import carry_out, with_bodies
from callboard.runtime.clock import RuntimeClock
from callboard.runtime.config import Config
from callboard.runtime.core.codec import decode_job, decode_request, encode_job, encode_request
from callboard.runtime.core.errors import (
    CallboardError,
    InvalidRequest,
    JobExists,
    JobNotFound,
    KeyReused,
    QueueFull,
    QueueNotFound,
    ShuttingDown,
    StoreRefused,
    StoreUnavailable,
)
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import Job, Request, Status
from callboard.runtime.core.store import Committed, Duplicate, Full, JobFilter, Outcome, Page, Write
from callboard.runtime.core.transition import accept
from callboard.runtime.directory import Directory
from callboard.runtime.dispatcher import Dispatcher
from callboard.runtime.feed import Feed, MaySee, open_feed
from callboard.runtime.handlers import Handler, Handlers
from callboard.runtime.hub import Hub
from callboard.runtime.ids import IdFactory, canonical, chosen_id
from callboard.runtime.messages import CancelAsked, PurgeAsked, RetryAsked
from callboard.runtime.queues import Queue, all_queues
from callboard.runtime.rates import Rates
from callboard.runtime.reply import Reply
from callboard.runtime.store_actor import StoreActor
from callboard.runtime.submission import Accepted, Submission, new_job, with_body
from callboard.runtime.tally import Stats, Tally
from callboard.runtime.tracing import Tracing
from callboard.runtime.watch import Watch, open_watch

__all__ = ["Client"]

T = TypeVar("T")

MAX_PAGE = 1000
"""Jobs that ``list`` gives at a time."""


class Client:
    """The asking half of ``Runtime``, which makes and owns the parts that are declared here."""

    config: Config
    handlers: Handlers
    drain_started: trio.Event
    """Set when the runtime begins to drain: no new work, streams and waits end."""
    _store: StoreActor
    _clock: RuntimeClock
    _ids: IdFactory
    _hub: Hub
    _rates: Rates
    _directory: Directory
    _dispatcher: Dispatcher
    _tally: Tally
    _tracing: Tracing
    _finished: trio.Event

    @property
    def draining(self) -> bool:
        return self.drain_started.is_set()

    async def submit(
        self,
        name: str,
        body: Any = None,
        *,
        job_id: str | None = None,
        key: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay_seconds: float | None = None,
        max_retries: int | None = None,
        timeout_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Job:
        """Run the handler ``name`` with ``body``, a value of its type or what msgspec makes of the same JSON.

        Returns when the store has the job. The same ``job_id`` or ``key`` with the same name and body again gives the same job.
        Raises InvalidRequest, InvalidPayload, QueueFull, JobExists, KeyReused, StoreUnavailable, ShuttingDown; ConfigError where the
        handler's priority function fails.
        """
        handler = self._handler(name)
        template = _template(name, queue, priority, delay_seconds, max_retries, timeout_seconds, headers)
        return (await self.accept(with_body(handler, template, body, key=key, job_id=job_id))).job

    async def submit_many(
        self,
        name: str,
        bodies: Iterable[Any],
        *,
        keys: Iterable[str | None] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay_seconds: float | None = None,
        max_retries: int | None = None,
        timeout_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> builtins.list[Job | CallboardError]:
        """Run the handler ``name`` once for each of ``bodies``; ``None`` for a handler that takes none. ``keys`` has one for each.

        The answers are in order: the job, or why that one was refused, which harms none of the others. Every ``max_bulk_jobs`` are
        stored in one commit, whole or not at all. When the store is away its answer is StoreUnavailable for all that are not
        known to be stored: the same keys again give the same jobs. Raises InvalidRequest where nothing could be meant at all.
        """
        handler = self._handler(name)
        template = _template(name, queue, priority, delay_seconds, max_retries, timeout_seconds, headers)
        submissions = await with_bodies(handler, template, bodies, keys)
        answers = await self.accept_many(submissions)
        return [answer if isinstance(answer, CallboardError) else answer.job for answer in answers]

    async def accept(self, submission: Submission) -> Accepted:
        """Store a job whose body fits its handler already. Safe to repeat when it is given an id or a key.

        A caller that is cancelled gives up the answer only. Raises as ``submit``.
        """
        with self._tracing.submitting(submission.name, submission.request) as span:
            write = self._insert(span.carried(submission))
            accepted = self._accepted(write.job, await self._bounded(lambda: self._store.commit(write)))
            span.accepted(accepted.job, replayed=accepted.replayed)
        return accepted

    async def accept_many(
        self, submissions: Sequence[Submission | CallboardError]
    ) -> builtins.list[Accepted | CallboardError]:
        """Store jobs whose bodies fit their handlers already, as ``submit_many`` does. An error among them is its own answer."""
        first = next((one for one in submissions if isinstance(one, Submission)), None)
        if first is None:
            return await self._carry_out(submissions, self._insert, self._accepted)
        with self._tracing.submitting(first.name, first.request) as span:
            carried = [one if isinstance(one, CallboardError) else span.carried(one) for one in submissions]
            answers = await self._carry_out(carried, self._insert, self._accepted)
            span.accepted_many(sum(isinstance(one, Accepted) for one in answers), len(answers))
        return answers

    async def find_many(
        self, submissions: Sequence[Submission | CallboardError]
    ) -> builtins.list[Accepted | CallboardError | None]:
        """For each submission with a key or an id: the job of the same one before, None where there was none, or why it clashes."""
        return await self._carry_out(submissions, self._probe, self._found)

    async def get(self, job_id: str) -> Job:
        """The job as last committed. Raises JobNotFound, StoreUnavailable."""
        job_id = canonical(job_id)
        job = await self._bounded(lambda: self._store.get(job_id))
        if job is None:
            raise JobNotFound(f"there is no job {job_id}")
        return job

    async def list(self, where: JobFilter | None = None, *, cursor: str | None = None, limit: int = 50) -> Page:
        """Up to ``limit`` (1..1000) jobs, newest first. Raises ValueError for a foreign cursor or limit, StoreUnavailable."""
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit is {limit}: give 1 to {MAX_PAGE}")
        return await self._bounded(lambda: self._store.list(where or JobFilter(), cursor, limit))

    async def counts(self) -> dict[tuple[str, Status], int]:
        """How many jobs each (queue, status) holds. Raises StoreUnavailable."""
        return await self._bounded(self._store.counts)

    async def wait(
        self, job_id: str, *, timeout_seconds: float = float("inf"), changed_since: int | None = None
    ) -> Job:
        """Wait until the job has ended (with ``changed_since``: until its ``seq`` is another), or the time is over, or the runtime
        drains. Returns the job as it is then. Raises JobNotFound, StoreUnavailable.
        """
        job_id = canonical(job_id)
        with self._hub.subscribe(job_id, 1) as inbox:
            job, is_stale = await self.get(job_id), False
            with trio.move_on_after(timeout_seconds):
                while not (job.status.is_terminal if changed_since is None else job.seq != changed_since):
                    try:
                        events, lagged = await inbox.take()
                    except ShuttingDown:
                        break
                    is_stale = True
                    if lagged or changed_since is not None or any(event.is_terminal for event in events):
                        job, is_stale = await self.get(job_id), False
        return await self.get(job_id) if is_stale else job

    def watch(self, job_id: str, *, after: int | None = None) -> AbstractAsyncContextManager[Watch]:
        """Follow one job: ``async with runtime.watch(id) as events: async for event in events: ...``.

        Without ``after``, a ``Snapshot`` first; with it, every event with a greater ``seq``. Entering raises JobNotFound,
        StoreUnavailable; iterating raises ShuttingDown when the runtime drains.
        """
        return open_watch(
            self._hub,
            self._store,
            canonical(job_id),
            after=after,
            limit=self.config.max_subscriber_events,
            retry_seconds=self.config.poll_seconds,
            bounded=self._bounded,
        )

    def feed(
        self, where: JobFilter | None = None, *, may_see: MaySee | None = None
    ) -> AbstractAsyncContextManager[Feed]:
        """Follow all jobs that fit, new ones and changes from now on: ``async with runtime.feed(JobFilter(...)) as items: ...``.

        Yields ``Snapshot | Event | Missed``: of each job a snapshot or its birth first, then every event; a job that no longer fits
        gets one last event. ``may_see(job)`` is asked once for each job. Entering raises StoreUnavailable, ShuttingDown;
        iterating raises ShuttingDown when the runtime drains.
        """
        feed = Feed(
            where or JobFilter(),
            self._store,
            now_ms=self._clock.now_ms,
            retry_seconds=self.config.poll_seconds,
            bounded=self._bounded,
            may_see=may_see,
        )
        return open_feed(self._hub, feed, self.config.max_subscriber_events)

    async def cancel(self, job_id: str) -> Job:
        """Ask the job to end. Returns when that is stored: the job is Canceled, or still InProgress with ``cancel_requested``.

        Raises JobNotFound, IllegalTransition (Completed, Failed), StoreUnavailable; after the last the cancel is still
        carried out once the store can be reached.
        """
        reply: Reply[Job] = Reply()
        return await self._ask(canonical(job_id), CancelAsked(reply), reply)

    async def retry(self, job_id: str) -> Job:
        """Queue an ended job again. Raises JobNotFound, IllegalTransition, QueueFull, StoreUnavailable."""
        reply: Reply[Job] = Reply()
        return await self._ask(canonical(job_id), RetryAsked(reply), reply)

    async def purge(self, job_id: str) -> None:
        """Remove an ended job with its events and its key. Raises JobNotFound, IllegalTransition, StoreUnavailable."""
        reply: Reply[Job] = Reply()
        await self._ask(canonical(job_id), PurgeAsked(reply), reply)

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        """How the job's attempts ended, oldest first, with their exceptions; nothing yet of one that runs. The newest
        ``max_attempts_per_job`` are kept. Raises JobNotFound, StoreUnavailable.
        """
        job = await self.get(job_id)
        return await self._bounded(lambda: self._store.attempts(job.id))

    async def queues(self) -> tuple[Queue, ...]:
        """The queues that have a handler here, hold jobs or are paused, by name. Raises StoreUnavailable."""
        counts = await self.counts()
        ready = await self._bounded(lambda: self._store.ready(COUNT_UP_TO))
        paused = await self._bounded(self._store.paused)
        return all_queues(self.handlers, counts, ready, paused)

    async def unserved(self) -> dict[tuple[str, str], int]:
        """Of each (queue, handler's name) that has ready jobs: how many, up to 10,000, or 0 where this runtime takes such jobs.

        The least number that any runtime of a store tells is that of the jobs that nobody takes. Raises StoreUnavailable.
        """
        ready = await self._bounded(lambda: self._store.ready(COUNT_UP_TO))
        return {pair: 0 if self._dispatcher.works_on(*pair) else count for pair, count in ready.items()}

    async def pause(self, queue: str) -> Queue:
        """Start no job of that queue any more, in any process, until ``resume``. Attempts that run go on, and jobs are accepted up
        to ``max_queue_size``. Raises QueueNotFound, StoreUnavailable; pausing it again is harmless.
        """
        return await self._set_paused(queue, True)

    async def resume(self, queue: str) -> Queue:
        """Undo ``pause``: what waited starts at once. Raises QueueNotFound, StoreUnavailable; harmless where nothing is paused."""
        return await self._set_paused(queue, False)

    async def check(self) -> None:
        """Whether this runtime can take work. Raises StoreUnavailable, ShuttingDown."""
        if self.draining:
            raise ShuttingDown("the server is shutting down")
        if self._store.last_error is not None:
            raise StoreUnavailable("the store cannot be reached")
        await self._bounded(self._store.counts)

    def now_ms(self) -> int:
        """The time of day by the store's clock, which may not be this host's: milliseconds since the epoch."""
        return self._clock.now_ms()

    def retry_after_seconds(self, queue: str) -> int:
        """Whole seconds after which asking again makes sense, from the queue's drain rate."""
        return self._rates.retry_after_seconds(queue)

    def stats(self) -> Stats:
        """Numbers of this runtime since its start."""
        return Stats(
            running=self._directory.running,
            slots=self.config.max_concurrent_jobs,
            submitted=dict(self._tally.submits),
            finished=dict(self._tally.ends),
            retried=dict(self._tally.retries),
            lost_leases=self._tally.lost_leases,
            store_errors=self._store.unavailable_total,
            subscribers=self._hub.subscribers,
        )

    # Inside

    async def _set_paused(self, name: str, paused: bool) -> Queue:
        known = {queue.name for queue in await self.queues()}
        if name not in known:
            raise QueueNotFound(f"there is no queue {name!r}: no handler works on it and it holds no job")
        await self._bounded(lambda: self._store.set_paused(name, paused))
        if not paused:
            self._dispatcher.wake()
        return next((queue for queue in await self.queues() if queue.name == name), Queue(name, paused))

    def _handler(self, name: str) -> Handler:
        handler = self.handlers.get(name)
        if handler is None:
            raise InvalidRequest(f"there is no handler named {name!r}")
        return handler

    def _insert(self, submission: Submission) -> Write:
        handler = self._handler(submission.name)
        if self.draining:
            raise ShuttingDown("the server is shutting down: ask again in a moment")
        job_id = self._ids.new() if submission.job_id is None else chosen_id(submission.job_id)
        job = new_job(submission, handler, self.config, job_id=job_id, now_ms=self._clock.now_ms())
        _check_storable(job, submission.request)
        if job.queue not in self.handlers.queues:
            # Runtimes claim from the queues of their handlers only: the job would wait for ever.
            raise InvalidRequest(
                f"no handler works on queue {job.queue!r}: give one of {', '.join(self.handlers.queues)}"
            )
        change = accept(job)
        return Write(
            job=change.job,
            events=change.events,
            request=submission.request,
            max_queue_size=self.config.max_queue_size,
        )

    def _probe(self, submission: Submission) -> Write:
        # A queue of no room: the store tells a duplicate before a full queue, and nothing is ever written.
        return replace(self._insert(submission), max_queue_size=0)

    def _found(self, job: Job, outcome: Outcome) -> Accepted | None:
        return None if isinstance(outcome, Full) else self._accepted(job, outcome)

    async def _carry_out(
        self,
        submissions: Sequence[Submission | CallboardError],
        prepare: Callable[[Submission], Write],
        conclude: Callable[[Job, Outcome], T],
    ) -> builtins.list[T | CallboardError]:
        async def commit(writes: Sequence[Write]) -> Sequence[Outcome | CallboardError]:
            return await self._bounded(lambda: self._store.commit_together(writes))

        size = self.config.max_bulk_jobs
        return await carry_out(submissions, batch_size=size, prepare=prepare, commit=commit, conclude=conclude)

    def _accepted(self, job: Job, outcome: Outcome) -> Accepted:
        match outcome:
            case Committed(stored):
                return Accepted(stored, replayed=False)
            case Duplicate(there) if there.fingerprint is not None and there.fingerprint == job.fingerprint:
                return Accepted(there, replayed=True)
            case Duplicate(there) if there.id == job.id:
                raise JobExists("that job id is taken")
            case Duplicate():
                raise KeyReused("that idempotency key came with a different request before")
            case Full(size):
                raise QueueFull(f"the queue holds {size} jobs, as many as it may: ask again later", job.queue)
            case _:
                raise AssertionError(f"an insert cannot end as {outcome}")

    async def _ask(self, job_id: str, message: Any, reply: Reply[Job]) -> Job:
        async def ask() -> Job:
            await self._directory.tell(job_id, message)
            return await reply.get()

        return await self._bounded(ask)

    async def _bounded(self, call: Callable[[], Awaitable[T]]) -> T:
        """Callers wait for the store so long and no longer."""
        if self._finished.is_set():
            raise ShuttingDown("the runtime has ended")
        with trio.move_on_after(self.config.store_timeout_seconds):
            return await call()
        raise StoreUnavailable("the store did not answer in time")


def _template(
    name: str,
    queue: str | None,
    priority: int | None,
    delay_seconds: float | None,
    max_retries: int | None,
    timeout_seconds: float | None,
    headers: Mapping[str, str] | None,
) -> Submission:
    return Submission(
        name=name,
        request=Request(headers=tuple((headers or {}).items())),
        queue=queue,
        priority=priority,
        delay_ms=None if delay_seconds is None else _milliseconds(delay_seconds),
        max_retries=max_retries,
        timeout_seconds=timeout_seconds,
    )


def _milliseconds(delay_seconds: float) -> int:
    if not math.isfinite(delay_seconds):
        raise InvalidRequest(f"the delay is {delay_seconds} s: give a finite number")
    return round(delay_seconds * 1000)


def _check_storable(job: Job, request: Request) -> None:
    # A driver that cannot write a record is a bug that ends the runtime; what a caller gave must not look like one.
    try:
        decode_job(encode_job(job))
        decode_request(encode_request(request))
    except (TypeError, ValueError, StoreRefused) as error:
        raise InvalidRequest(f"the request cannot be stored: {error}") from error
