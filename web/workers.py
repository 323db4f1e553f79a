"""``--workers N``: a parent that never imports the app, and N server processes that share its listening sockets. (What ``callboard
worker`` starts are processes of the same kind, with few sockets or none.)

The parent opens the sockets once, starts the processes, starts those again that die, and passes signals on; each process drains for
itself, as a single server does. With ``--reload`` it is one process that is replaced when a file changes. Both halves of the line
between a parent and its workers are here: the worker writes ``ready`` and then ``beat``; that the line ends means that the other has gone.

Exit codes are those of a single server, as ``cli`` has them.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Final

import trio

from callboard.web.binds import listening
from callboard.web.logs import configure_logging
from callboard.web.notify import Notifier
from callboard.web.reload import folders_of, summary, watch
from callboard.web.server_options import ServerOptions, told
from callboard.web.surroundings import environment_of_worker

__all__ = ["Parent", "next_pause", "run_workers", "stay_with_parent"]

logger: Final = logging.getLogger("callboard.workers")

BEAT_SECONDS: Final = 1.0
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
SETTLED_SECONDS: Final = 60.0
"""A worker that lived so long has not failed at its start: the next pause is the first again."""
KILL_SECONDS: Final = 2.0
"""What is still there so long after a second signal, or after a changed file, is killed."""
RELOAD_DRAIN_SECONDS: Final = 1.0
"""Shorter than KILL_SECONDS, so that running jobs are handed back, uncounted, before the process is killed."""
MAX_LINE_BYTES: Final = 64
BAD_COMMAND_LINE: Final = 2
STANDARD_ERROR: Final = 2


def run_workers(arguments: Sequence[str], options: ServerOptions, *, workers: int = 1, reload: bool = False) -> int:
    """Serve, or run jobs, with ``workers`` processes until a signal. Returns the process's exit code. For the main thread.

    ``arguments`` are those of ``callboard serve`` (or ``callboard worker``, by the options) for each process, MODULE:APP first, without
    --bind, --workers and --reload; ``options`` are what they amount to, with the binds. ``reload`` goes with one worker.
    """
    configure_logging(options.log_level, access=False)
    has_tls = options.certfile is not None
    try:
        with listening(options.bind) as listeners:
            urls = [one.url("https" if has_tls else "http") for one in listeners]
            sockets = [_out_of_the_way(one.socket) for one in listeners]
            parent = Parent(
                [sys.executable, "-m", "callboard.web.cli", "worker" if options.worker else "serve", *arguments],
                sockets,
                told(urls, worker=options.worker),
                Notifier.of(os.environ),
                workers=workers,
                rereads=has_tls,
                folders=folders_of(arguments[0], Path.cwd()) if reload else None,
            )
            try:
                return trio.run(parent.run)
            finally:
                for one in sockets:
                    one.close()
    except OSError as error:
        logger.error("callboard cannot %s: %s", "run jobs" if options.worker else "serve", error)
        return 1


def _out_of_the_way(one: socket.socket) -> socket.socket:
    """One that came in the place of a standard stream, as from inetd, is moved: the workers' own streams would replace it."""
    if one.fileno() <= STANDARD_ERROR:
        one = socket.socket(fileno=os.dup(one.detach()))
    one.set_inheritable(False)
    return one


def next_pause(last_seconds: float, lived_seconds: float) -> float:
    """How long to wait before a worker that lived so long is started again; ``last_seconds`` was the pause before it, or 0."""
    if last_seconds == 0 or lived_seconds >= SETTLED_SECONDS:
        return FIRST_PAUSE_SECONDS
    return min(last_seconds * 2, LONGEST_PAUSE_SECONDS)


class Worker:
    """One place among the N: the process that fills it, and what is known of that."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: trio.Process | None = None
        self.is_ready = False
        self.was_ready = False
        """Whether any process in this place ever was."""
        self.started_at = -inf
        self.heard_at = -inf
        self.pause_seconds = 0.0

    def send(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self.process is not None:
            self.process.send_signal(number)

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" (pid {self.process.pid})" if self.process is not None else "")


class Parent:
    """Keeps its workers alive until it is told to stop.

    ``command`` starts one; ``--bind fd://N`` for each of ``sockets`` is added; the first worker makes them listen. ``lines`` are printed
    and ``notifier`` is told when all serve. ``rereads``: SIGHUP tells the workers to reread their certificate; otherwise it is one more
    signal to stop. ``folders``, if given, are watched: one worker, that is replaced when a file there changes.
    """

    def __init__(
        self,
        command: Sequence[str],
        sockets: Sequence[socket.socket],
        lines: Sequence[str],
        notifier: Notifier,
        *,
        workers: int,
        rereads: bool = False,
        folders: Sequence[Path] | None = None,
    ) -> None:
        if folders is not None and workers != 1:
            raise ValueError("files are watched for one worker only")
        self._sockets = sockets
        self._command = [*command, *(word for one in sockets for word in ("--bind", f"fd://{one.fileno()}"))]
        self._lines = lines
        self._notifier = notifier
        self._rereads = rereads
        self._folders = folders
        self._workers = [Worker(number) for number in range(1, workers + 1)]
        self._changed = trio.Event()
        self._stop = trio.Event()
        self._code = 0
        self._forced_code: int | None = None
        self._is_up = False
        self._reread_at = -inf
        """When SIGHUP came last."""

    async def run(self) -> int:
        """Until a signal, or until it makes no sense to go on. Returns the exit code."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, signals)
                nursery.start_soon(self._feed_watchdog)
                if self._folders is not None:
                    await nursery.start(watch, self._folders, self._on_change)
                async with trio.open_nursery() as self._keepers:
                    # The first goes ahead: an app that cannot start says so once, and a new store is made by one process.
                    self._keepers.start_soon(self._keep, self._workers[0])
                nursery.cancel_scope.cancel()
        return self._code if self._forced_code is None else self._forced_code

    # One worker

    async def _keep(self, worker: Worker) -> None:
        """Fill its place, again and again."""
        while not self._stop.is_set():
            self._changed = trio.Event()
            code = await self._live(worker)
            if self._stop.is_set():
                # While it serves a worker catches the signal that it was sent; it dies of it before that, and once all is done.
                is_orderly = code == -signal.SIGTERM or self._changed.is_set()
                if not is_orderly:
                    self._code = max(self._code, _exit_code(code))
            elif self._folders is not None:
                await self._wait_for_change(worker, code)
            else:
                await self._recover(worker, code)
            worker.process = None
            worker.is_ready = False

    async def _live(self, worker: Worker) -> int:
        """One process from its start to its end; its return code as ``subprocess`` has it."""
        worker.started_at = trio.current_time()
        try:
            line = await self._start(worker)
        except OSError as error:
            logger.error("worker %d cannot be started: %s", worker.number, error)
            return 1
        assert worker.process is not None
        async with line, trio.open_nursery() as nursery:
            nursery.start_soon(self._listen_to, worker, line)
            nursery.start_soon(self._end_when_changed, worker, self._changed)
            if self._stop.is_set():
                worker.send(signal.SIGTERM)
            code = await worker.process.wait()
            nursery.cancel_scope.cancel()
        return code

    async def _start(self, worker: Worker) -> trio.SocketStream:
        ours, theirs = socket.socketpair()
        try:
            with closing(theirs):
                worker.process = await trio.lowlevel.open_process(
                    self._command,
                    # Not the terminal's: several cannot share it, and a group of its own in the background may not read it.
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *(one.fileno() for one in self._sockets)],
                    # Ctrl-C reaches the parent, which tells the workers: otherwise they would take it for a second signal.
                    process_group=0,
                    env=environment_of_worker(
                        os.environ,
                        parent_fd=theirs.fileno(),
                        workers=len(self._workers),
                        drain_seconds=None if self._folders is None else RELOAD_DRAIN_SECONDS,
                    ),
                )
        except BaseException:
            ours.close()
            raise
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def _listen_to(self, worker: Worker, line: trio.SocketStream) -> None:
        rest = b""
        try:
            async for data in line:
                worker.heard_at = trio.current_time()
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-MAX_LINE_BYTES:]
                if b"ready" in lines and not worker.is_ready:
                    self._on_ready(worker)
        except trio.BrokenResourceError:
            pass  # it died; that is noticed elsewhere

    def _on_ready(self, worker: Worker) -> None:
        if worker is self._workers[0] and not worker.was_ready:
            for other in self._workers[1:]:
                self._keepers.start_soon(self._keep, other)
        worker.is_ready = worker.was_ready = True
        if worker.started_at < self._reread_at:
            worker.send(signal.SIGHUP)
        if self._stop.is_set():
            return
        if self._is_up:
            logger.info("%s serves again", worker)
        elif all(one.was_ready for one in self._workers):
            self._is_up = True
            for line in self._lines:
                print(f"callboard: {line}", flush=True)
            self._notifier.notify("READY=1")
        self._tell_status()

    # What went wrong

    async def _recover(self, worker: Worker, code: int) -> None:
        """It ended without having been told to: what to do depends on how far it had come."""
        if code == BAD_COMMAND_LINE:
            self._end(code)
        elif not worker.was_ready:
            logger.error("%s %s before it served: stopping", worker, _how(code))
            self._end(1)
        else:
            lived = trio.current_time() - worker.started_at
            worker.pause_seconds = next_pause(worker.pause_seconds, lived)
            level = logging.ERROR if code else logging.WARNING
            logger.log(level, "%s %s: starting it again in %g s", worker, _how(code), worker.pause_seconds)
            worker.is_ready = False
            self._tell_status()
            with trio.move_on_after(worker.pause_seconds):
                await self._stop.wait()

    async def _wait_for_change(self, worker: Worker, code: int) -> None:
        if self._changed.is_set():
            return
        if code == BAD_COMMAND_LINE and not worker.was_ready:
            self._end(code)
            return
        logger.error("the server %s: waiting for a change", _how(code))
        await _first_of(self._changed, self._stop)

    def _on_change(self, paths: Sequence[Path]) -> None:
        logger.info("%s: restarting; jobs that run are handed back", summary(paths, Path.cwd()))
        self._changed.set()

    async def _end_when_changed(self, worker: Worker, changed: trio.Event) -> None:
        await changed.wait()
        worker.send(signal.SIGTERM)
        await trio.sleep(KILL_SECONDS)
        logger.warning("%s did not stop within %g s: killed; the next one takes its jobs over", worker, KILL_SECONDS)
        worker.send(signal.SIGKILL)

    # The end

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        count = 0
        async for number in signals:
            if number == signal.SIGHUP and self._rereads:
                self._reread_at = trio.current_time()
                if self._is_up:
                    # Before that, READY=1 would say too much.
                    self._notifier.reloading()
                # One that is not ready may not catch it yet; it is sent then.
                self._send([one for one in self._workers if one.is_ready], number)
                if self._is_up:
                    self._notifier.notify("READY=1")
                continue
            # As in a single server, SIGHUP is never the second: who closes a terminal sends several.
            count += number != signal.SIGHUP
            if count <= 1:
                logger.warning("%s: stopping", signal.Signals(number).name)
                self._end(0)
            else:
                logger.critical("another signal: stopping at once")
                self._forced_code = 128 + number
                self._send(self._workers, signal.SIGINT)
                await trio.sleep(KILL_SECONDS)
                self._send(self._workers, signal.SIGKILL)

    def _end(self, code: int) -> None:
        """Tell all workers to stop. The exit code will be ``code`` or what is worse."""
        self._code = max(self._code, code)
        if not self._stop.is_set():
            self._notifier.notify("STOPPING=1", "STATUS=the workers drain")
            self._stop.set()
            self._send(self._workers, signal.SIGTERM)

    def _send(self, workers: Sequence[Worker], number: int) -> None:
        for worker in workers:
            worker.send(number)

    # The service manager

    async def _feed_watchdog(self) -> None:
        """Tell the service manager that all is well for as long as every worker that serves was heard lately.

        One that is being started does not count: the parent knows of it, and a restart of the whole would not help.
        """
        seconds = self._notifier.watchdog_seconds
        if seconds is None:
            return
        while True:
            await trio.sleep(seconds / 3)
            since = trio.current_time() - max(seconds, 3 * BEAT_SECONDS)
            silent = [one for one in self._workers if one.is_ready and one.heard_at < since]
            if not silent:
                self._notifier.notify("WATCHDOG=1")
            for worker in silent:
                logger.error("%s is silent: the service manager's watchdog is not fed", worker)

    def _tell_status(self) -> None:
        ready = sum(one.is_ready for one in self._workers)
        self._notifier.notify(f"STATUS={ready} of {len(self._workers)} workers serve")


async def stay_with_parent(
    fd: int, gone: Callable[[], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """In a worker that serves: tell the parent so, and that it is alive each second. Calls ``gone`` when the parent is no more."""
    line = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))
    async with line, trio.open_nursery() as nursery:
        nursery.start_soon(_beat, line)
        task_status.started()
        try:
            while await line.receive_some(MAX_LINE_BYTES):
                pass  # it has nothing to say
        except trio.BrokenResourceError:
            pass
        nursery.cancel_scope.cancel()
    gone()


async def _beat(line: trio.SocketStream) -> None:
    message = b"ready\n"
    while True:
        try:
            await line.send_all(message)
        except trio.BrokenResourceError:
            return  # the reader sees it too
        message = b"beat\n"
        await trio.sleep(BEAT_SECONDS)


async def _first_of(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    return f"died of {signal.Signals(-code).name}"
