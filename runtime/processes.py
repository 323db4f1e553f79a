"""Where handlers of ``process=True`` run: in worker processes that this runtime starts, speaks to, kills and ends.

Owns the pool (trio-parallel's, a context of our own) and the socket on which workers call back; what they say is bounded and checked, and
can end no more than their own attempt. When ``run`` returns or raises, the attempt's process runs none of its code any more.

Nothing is opened before the first such attempt. The socket is local to the machine and to the user: on Linux in the abstract namespace,
which leaves no file behind when the runtime is killed, elsewhere in a directory of its own; and each attempt has a secret of its own.
"""

import contextlib
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import trio
from msgspec import Raw
from trio_parallel import (  # type: ignore[import-untyped]
    BrokenWorkerError,
    WorkerContext,
    open_worker_context,
)

from callboard.runtime.child import begin, work
from callboard.runtime.config import Config
from callboard.runtime.context import Reports
from callboard.runtime.core.codec import encode_job, encode_request
from callboard.runtime.core.job import Job, Request
from callboard.runtime.faults import rebuild
from callboard.runtime.handlers import Handler
from callboard.runtime.references import reference_of
from callboard.runtime.wire import (
    WELCOME,
    Ending,
    Frames,
    Hello,
    Line,
    Order,
    Raised,
    Said,
    Step,
    WireError,
    frame,
    max_ending_bytes,
    read_hello,
    read_said,
)

__all__ = ["ProcessDied", "Processes", "WorkerProcesses"]

logger: Final = logging.getLogger("callboard.processes")

IDLE_SECONDS: Final = 300.0
"""A worker that has had nothing to do for so long ends."""
REAP_SECONDS: Final = 30.0
"""How often to look for workers that have ended so."""
GRACE_SECONDS: Final = 1.0
"""What idle workers get to end with the runtime; then they are killed."""
HELLO_SECONDS: Final = 10.0
LAST_WORDS_SECONDS: Final = 2.0
"""What a dead worker's connection gets to end. The kernel closes it at once; only a process that the handler forked can hold it."""
GROUP_SECONDS: Final = 1.0
"""What the programs that a killed worker had started get to be gone."""
RESULT_SECONDS: Final = 60.0
"""What a result that has been sent gets to be read: it is here already, so this is a net only."""
MAX_HELLO_BYTES: Final = 1024
_CREDENTIALS: Final = struct.Struct("3i")


class ProcessDied(Exception):
    """The worker process ended, or could not be started, and not because anyone here wanted it to."""


class Processes(Protocol):
    """Runs the handlers of ``process=True``."""

    async def run(self, handler: Handler, job: Job, request: Request, reports: Reports) -> Any:
        """The handler's value, or ``Gave``, ``NoJson`` or ``TooLarge`` for one that stayed in another process.

        Raises what the handler raised, ProcessDied. Cancelled, the process is killed; not before it is dead does this end.
        """
        ...


class WorkerProcesses:
    """At most ``config.processes`` of them. ``serve`` has to run for ``run`` to work."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._limiter = trio.CapacityLimiter(config.processes)
        self._needed = trio.Event()
        self._ready = trio.Event()
        self._context: WorkerContext | None = None
        self._refused: OSError | None = None
        self._address = ""
        self._lifeline = secrets.token_hex(16)
        self._calls: dict[str, _Call] = {}

    async def serve(self) -> None:
        """Hold the pool and the socket until cancelled; then end the workers and wait until they are gone."""
        while True:
            await self._needed.wait()
            try:
                await self._serve()
            except OSError as error:
                # Told to those who wait; the next attempt tries again.
                self._refused = error
                ready, self._ready, self._needed = self._ready, trio.Event(), trio.Event()
                ready.set()

    async def run(self, handler: Handler, job: Job, request: Request, reports: Reports) -> Any:
        """See ``Processes.run``."""
        call = _Call(self._order(handler, job, request), reports, self._config.max_result_bytes)
        context = await self._opened()
        token = secrets.token_hex(16)
        self._calls[token] = call
        try:
            await self._work(context, token, call)
        finally:
            del self._calls[token]
        if call.ending is None:
            raise ProcessDied("The worker process ended without a word")
        if isinstance(call.ending, Raised):
            raise rebuild(call.ending.fault)
        return call.ending

    async def _work(self, context: WorkerContext, token: str, call: "_Call") -> None:
        died: ProcessDied | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_kill_if_cancelled, call)
                try:
                    # What goes through the pool's own pipe is small: a worker that dies while a long job is being written to it
                    # would be replaced again and again.
                    await context.run_sync(work, self._address, token, kill_on_cancel=True, limiter=self._limiter)
                    call.is_over = True
                except BrokenWorkerError as error:
                    died = self._death(error, call)
                except OSError as error:
                    died = ProcessDied(f"No worker process could be started: {error}")
                nursery.cancel_scope.cancel()
        finally:
            if not call.is_over:
                await call.end_group()
            with trio.move_on_after(RESULT_SECONDS if call.is_over else LAST_WORDS_SECONDS, shield=True):
                await call.wait_ended()
        if died is not None:
            # Not raised above: the pool's exception holds the process and its descriptors, and this one may be kept for long.
            raise died

    def _death(self, error: BrokenWorkerError, call: "_Call") -> ProcessDied:
        if call.violation is not None:
            return ProcessDied(f"The worker process was ended: it sent {call.violation}")
        code = getattr(error.args[-1], "exitcode", None)
        return ProcessDied(f"The worker process that ran the job died ({_cause_of_death(code)})")

    def _order(self, handler: Handler, job: Job, request: Request) -> bytes:
        reference = reference_of(handler.function, f"handler {handler.name!r}")
        return frame(
            Order(
                name=handler.name,
                module=reference.module,
                function=reference.name,
                file=reference.file,
                job=Raw(encode_job(job)),
                request=Raw(encode_request(request)),
                max_result_bytes=self._config.max_result_bytes,
                report_seconds=min(max(self._config.progress_interval_seconds, 0.02), 1.0),
            )
        )

    async def _opened(self) -> WorkerContext:
        ready = self._ready
        self._needed.set()
        await ready.wait()
        if self._context is None:
            raise ProcessDied(f"No worker process could be started: {self._refused}") from self._refused
        return self._context

    # The pool and the socket

    async def _serve(self) -> None:
        _allow_children()
        with _listening() as (listener, self._address):
            async with trio.open_nursery() as nursery:
                connections = await nursery.start(self._listen, listener)
                init = partial(begin, self._address, self._lifeline)
                try:
                    async with open_worker_context(
                        IDLE_SECONDS, init=init, grace_period=GRACE_SECONDS
                    ) as self._context:
                        self._ready.set()
                        while True:
                            await trio.sleep(REAP_SECONDS)
                            self._context.statistics()
                except BrokenWorkerError as error:
                    logger.debug("not every worker process ended by itself: %s", error)
                finally:
                    connections.cancel()

    async def _listen(self, listener: trio.SocketListener, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        # Shielded, because the end of its lifeline kills a worker: those that are idle are asked first.
        with trio.CancelScope(shield=True) as scope:
            task_status.started(scope)
            await trio.serve_listeners(self._connected, [listener])

    async def _connected(self, stream: trio.SocketStream) -> None:
        """One connection, from its first word to its end. Nothing that comes may raise."""
        try:
            async with stream:
                hello: Hello | None = None
                with trio.move_on_after(HELLO_SECONDS):
                    hello = await _hello(stream)
                if hello is None:
                    return
                if hello.token == self._lifeline:
                    await stream.send_all(WELCOME)
                    await stream.receive_some(1)
                call = self._calls.get(hello.token)
                if call is not None and call.peer is None:
                    await call.serve(stream, hello.pid)
        except (trio.BrokenResourceError, WireError) as error:
            logger.debug("a connection of a worker process ended: %r", error)


class _Call:
    """One attempt in a worker, and the connection on which the worker speaks of it."""

    def __init__(self, order: bytes, reports: Reports, max_result_bytes: int) -> None:
        self.peer: int | None = None
        """The worker's process id, once it has called."""
        self.ending: Ending | None = None
        self.is_over = False
        """The worker has done with it and lives on."""
        self.violation: str | None = None
        """What it said that it may not say; it is killed then."""
        self._order = order
        self._reports = reports
        self._frames = Frames(max_ending_bytes(max_result_bytes))
        self._ended = trio.Event()

    async def serve(self, stream: trio.SocketStream, peer: int) -> None:
        """Give the order and take what is said until the ending, or the end of the connection."""
        self.peer = peer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kill_rest_of_dead)
            try:
                await stream.send_all(self._order)
                await self._hear(stream)
            except WireError as error:
                self.violation = f"what is no report and no result: {error}"
            except trio.BrokenResourceError:
                pass
            finally:
                if self.ending is None:
                    # It is dead; or it lives and has closed what it was given, and then nobody hears of it any more.
                    self.kill()
                self._ended.set()
            nursery.cancel_scope.cancel()

    async def _hear(self, stream: trio.SocketStream) -> None:
        while self.ending is None and (received := await stream.receive_some(65536)):
            self._frames.feed(received)
            while self.ending is None and (data := self._frames.take()) is not None:
                self._heard(read_said(data))

    async def _kill_rest_of_dead(self) -> None:
        # A process that the handler forked holds all that the worker held, and so nobody would see that the worker is dead.
        if self.peer is not None and hasattr(os, "pidfd_open"):
            with contextlib.suppress(ProcessLookupError), _closing(os.pidfd_open(self.peer)) as watched:
                await trio.lowlevel.wait_readable(watched)
                self.kill()

    def _heard(self, said: Said) -> None:
        try:
            match said:
                case Line(level, message):
                    self._reports.add_log(level, message)
                case Step(percent, message, data):
                    self._reports.set_progress(percent, message, msgspec.json.decode(data))
                case ending:
                    self.ending = ending
        except (ValueError, RecursionError) as error:
            raise WireError(str(error)) from error

    def kill(self) -> bool:
        """End the worker and what it started; whether there was anyone. Not after ``run``: its process id may be another's then."""
        try:
            if self.peer is not None:
                os.killpg(self.peer, signal.SIGKILL)
                return True
        except (ProcessLookupError, PermissionError):
            pass
        return False

    async def end_group(self) -> None:
        """Kill what the worker had started, and wait until it is gone."""
        seconds = 0.001
        with trio.move_on_after(GROUP_SECONDS, shield=True):
            while self.kill() and _has_living(self.peer):
                await trio.sleep(seconds)
                seconds = min(2 * seconds, 0.05)

    async def wait_ended(self) -> None:
        """Until all that was said is heard."""
        if self.peer is not None:
            await self._ended.wait()


async def _hello(stream: trio.SocketStream) -> Hello:
    pid = None
    if hasattr(socket, "SO_PEERCRED"):
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _ = _CREDENTIALS.unpack(credentials)
        if user != os.geteuid():
            raise WireError(f"a process of user {user}")
    frames = Frames(MAX_HELLO_BYTES)
    while (data := frames.take()) is None:
        received = await stream.receive_some(MAX_HELLO_BYTES)
        if not received:
            raise WireError("the end, before a word")
        frames.feed(received)
    hello = read_hello(data)
    return hello if pid is None else Hello(hello.token, pid)


async def _kill_if_cancelled(call: _Call) -> None:
    # At once, and not after the pool has waited for its worker: a process that the handler forked could keep it waiting.
    try:
        await trio.sleep_forever()
    finally:
        if not call.is_over:
            call.kill()


def _has_living(group: int | None) -> bool:
    """Whether a process of that group runs. The dead belong to it until init has seen to them, which in some containers is never."""
    if not os.path.isdir("/proc/self"):
        return True
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as stat:
                state, _, of = stat.read().rpartition(")")[2].split()[:3]
                if int(of) == group and state not in "ZX":
                    return True
    return False


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listening() -> Iterator[tuple[trio.SocketListener, str]]:
    folder = None if sys.platform == "linux" else tempfile.mkdtemp(prefix="callboard-")
    address = f"\0callboard-{secrets.token_hex(16)}" if folder is None else os.path.join(folder, "workers")
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.bind(address)
            line.listen(128)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(line)), address
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _allow_children() -> None:
    # Hypercorn's workers are daemons to multiprocessing, which forbids them to have children lest they outlive them. Ours cannot.
    process = multiprocessing.current_process()
    if process.daemon:
        process.daemon = False


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
