"""One run of a handler inside its cancel scopes. It opens, runs and closes; what its outcome means for the job is decided elsewhere.

A job runs if and only if the scope here is open: ``run`` returns only after the handler, every task that it started and
their cleanup have ended.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Final, Literal

import trio
from msgspec import Raw, Struct

from callboard.runtime.config import Config
from callboard.runtime.context import JobContext, ProcessJobContext, Reports, ThreadJobContext
from callboard.runtime.core.job import Failure, Job, Request
from callboard.runtime.failure import judge, timeout_failure
from callboard.runtime.faults import RaisedElsewhere, rebuild
from callboard.runtime.handlers import Handler
from callboard.runtime.misfit import PayloadMismatch, mismatch
from callboard.runtime.payload import decode, encode, reread, storable
from callboard.runtime.processes import ProcessDied, Processes
from callboard.runtime.threads import Threads
from callboard.runtime.wary import is_a, leaves, told, type_name
from callboard.runtime.wire import Gave, NoJson, TooLarge

__all__ = ["Around", "Attempt", "Failed", "Outcome", "Reason", "Returned", "Stopped"]

Around = Callable[[], AbstractAsyncContextManager[Any]]

Reason = Literal["cancel", "drain", "lease"]


class Returned(Struct, frozen=True):
    """The handler returned this value (JSON text)."""

    result: Raw
    location: str | None


class Failed(Struct, frozen=True):
    """The handler failed; ``error`` is its exception for the log and the history, None where there is none."""

    failure: Failure
    after_seconds: float | None = None
    error: BaseException | None = None


class Stopped(Struct, frozen=True):
    """The attempt was told to stop, and has; ``error`` is what it raised on the way out, None where that was in order."""

    reason: Reason
    error: BaseException | None = None


Outcome = Returned | Failed | Stopped

_NOTHING: Final = object()


class Attempt:
    """``stop`` and ``extend_lease`` may be called at any time, before, during and after ``run``."""

    def __init__(
        self,
        job: Job,
        request: Request,
        handler: Handler,
        *,
        config: Config,
        reports: Reports,
        threads: Threads,
        processes: Processes,
        around: Around | None,
        lease_ends: float,
    ) -> None:
        self._job = job
        self._request = request
        self._handler = handler
        self._config = config
        self._reports = reports
        self._threads = threads
        self._processes = processes
        self.handler_name = handler.name
        self._around = around
        self._scope = trio.CancelScope()
        # By this process's own clock a lease's length after the last successful extension was sent the lease is lost.
        self._lease_scope = trio.CancelScope(deadline=lease_ends)
        self._timeout = trio.CancelScope()
        self._reason: Reason | None = None

    def stop(self, reason: Reason) -> None:
        """Cancel the handler. The first reason stands."""
        if self._reason is None:
            self._reason = reason
        self._scope.cancel()

    def extend_lease(self, lease_ends: float) -> None:
        """The lease holds until ``lease_ends`` (trio's clock, seconds)."""
        self._lease_scope.deadline = lease_ends

    @property
    def is_stopping(self) -> bool:
        return self._scope.cancel_called or self._lease_scope.cancel_called

    async def run(self) -> Outcome:
        """Run the handler to its end, whatever end. Only a cancellation from outside and bugs pass through."""
        value: Any = _NOTHING
        error: BaseException | None = None
        if self._job.timeout_seconds is not None:
            self._timeout.deadline = trio.current_time() + self._job.timeout_seconds
        try:
            with self._lease_scope, self._scope, self._timeout:
                value = await self._call()
        except BaseExceptionGroup as group:
            # Cancelled of a scope further out must pass; the handler's own ends here.
            if any(is_a(leaf, KeyboardInterrupt) for leaf in leaves(group)) or _is_torn_down(group):
                raise
            error = told(partial(_without_cancelled, group), None) or group
        except trio.Cancelled as raised:
            if _is_torn_down(raised):
                raise
            error = raised
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # noqa: BLE001 -- a handler's exception ends its attempt only, SystemExit included
            error = raised
        return self._outcome(value, error, timed_out=self._timeout.cancel_called)

    def _outcome(self, value: Any, error: BaseException | None, *, timed_out: bool) -> Outcome:
        if value is not _NOTHING:
            return self._returned(value)
        if self._lease_scope.cancel_called:
            return Stopped("lease")
        if self._reason is not None:
            return Stopped(self._reason, error)
        if timed_out:
            assert self._job.timeout_seconds is not None
            return Failed(timeout_failure(self._job.timeout_seconds), error=error)
        if is_a(error, _Mismatch):
            return Failed(error.failure, error=error.told)
        if is_a(error, ProcessDied):
            # Nobody's choice, as a time that was over: tried again while there are retries, whatever retry_on says.
            failure = Failure(code="WORKER_LOST", message=f"{error}.", type="ProcessDied", retryable=True)
            return Failed(failure, error=error)
        assert error is not None, "a scope that nobody cancelled swallowed a Cancelled"
        verdict = judge(error, self._handler, expose=self._config.expose_error_messages)
        return Failed(verdict.failure, verdict.after_seconds, error)

    async def _call(self) -> Any:
        job, arguments = self._decoded()
        if self._handler.runs_in == "process":
            return await self._processes.run(self._handler, self._job, self._request, self._reports)
        async with self._around() if self._around is not None else nullcontext():
            if self._handler.runs_in == "task":
                return await self._handler.function(job, *arguments)
            return await self._threads.run(self._handler.function, job, *arguments)

    def _is_told_to_stop(self) -> bool:
        return self.is_stopping or self._timeout.cancel_called

    def _decoded(self) -> tuple[Any, list[Any]]:
        """What the handler is called with. In a process both are made again; here they are looked at."""
        try:
            body = [decode(self._handler.request_type, self._request.body)] if self._handler.takes_body else []
            match self._handler.runs_in:
                case "task":
                    return JobContext(self._job, self._request, self._reports, self._is_told_to_stop), body
                case "thread":
                    return ThreadJobContext(self._job, self._request, self._reports, self._threads.check), body
                case "process":
                    return ProcessJobContext(self._job, self._request, self._reports), body
        except Exception as error:  # noqa: BLE001 -- decoding runs the app's own code
            message = "The stored request does not fit the type that this version of the app declares."
            raise _Mismatch(_own_failure("PAYLOAD_MISMATCH", message, error), mismatch(error)) from None

    def _returned(self, value: Any) -> Outcome:
        if isinstance(value, NoJson):
            # A worker process says what it likes.
            return _not_encodable(told(partial(rebuild, value.fault), RaisedElsewhere()))
        if isinstance(value, TooLarge):
            return self._too_large(value.size)
        try:
            result = encode(value.result if isinstance(value, Gave) else value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 -- looking at the value runs the app's own code, SystemExit included
            return _not_encodable(error)
        size = memoryview(result).nbytes
        if size > self._config.max_result_bytes:
            return self._too_large(size)
        if self._handler.location is None:
            return Returned(result, None)
        try:
            given = reread(self._handler.result_type, result) if isinstance(value, Gave) else value
            return Returned(result, _location(self._handler.location(self._job, given)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 -- the app's own code: its failure is the job's, not ours
            verdict = judge(error, self._handler, expose=self._config.expose_error_messages)
            return Failed(verdict.failure, verdict.after_seconds, error)

    def _too_large(self, size: int) -> Outcome:
        message = f"The result has {size} bytes, more than the {self._config.max_result_bytes} that are kept."
        return Failed(Failure(code="RESULT_TOO_LARGE", message=message, type="ResultTooLarge", retryable=False))


def _is_torn_down(error: BaseException) -> bool:
    """Whether a scope round the attempt was cancelled. Any other Cancelled is the handler's own: one that it kept and raised later."""
    has_cancelled = any(is_a(leaf, trio.Cancelled) for leaf in leaves(error))
    return has_cancelled and trio.current_effective_deadline() == -float("inf")


def _without_cancelled(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    return group.split(trio.Cancelled)[1]


class _Mismatch(Exception):
    """Carries the failure of a request that no longer fits its types out of the scopes."""

    def __init__(self, failure: Failure, told: PayloadMismatch) -> None:
        super().__init__(failure.code)
        self.failure = failure
        self.told = told


def _location(found: object) -> str | None:
    if found is not None and not isinstance(found, str):
        raise TypeError(f"location gave {found!r}: let it give a text or None")
    return None if found is None else storable(found)


def _not_encodable(error: BaseException) -> Failed:
    failure = _own_failure("RESULT_NOT_ENCODABLE", "The handler's result has no JSON form.", error)
    return Failed(failure, error=error)


def _own_failure(code: str, message: str, error: BaseException) -> Failure:
    return Failure(code=code, message=message, type=type_name(error), retryable=False)
