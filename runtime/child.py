"""What runs in a worker process: finds the handler, runs it, reports while it runs and says how it ended.

``begin`` is called once when the process starts, ``work`` for each attempt. The process lives as long as its runtime does: on its lifeline,
a connection on which nobody speaks, the kernel kills it and everything it started the moment that the runtime is gone, whatever the
handler does, also while it holds the interpreter's lock.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import threading
import traceback
from typing import Final

from msgspec import Raw

from callboard.runtime.context import ProcessJobContext, Reports
from callboard.runtime.core.codec import decode_job, decode_request
from callboard.runtime.faults import Fault, describe
from callboard.runtime.handlers import make_handler
from callboard.runtime.payload import decode, encode
from callboard.runtime.references import Reference, resolve
from callboard.runtime.wary import told, type_name
from callboard.runtime.wire import (
    WELCOME,
    Ending,
    Frames,
    Gave,
    Hello,
    Line,
    NoJson,
    Order,
    Raised,
    Step,
    TooLarge,
    frame,
    max_ending_bytes,
    read_order,
)

__all__ = ["begin", "work"]

LOOK_MILLISECONDS: Final = 250
"""How often to look whether the lifeline is still there. Its end is seen at once."""

BROKEN: Final = 70
"""Exit code of a worker whose connection to its runtime broke, or that has a bug of ours. Source: EX_SOFTWARE of sysexits.h."""


def begin(address: str, token: str) -> None:
    """Make this process its runtime's own: a group of its own, deaf to the signals of the terminal, tied to the lifeline."""
    # A group of its own, so that what the handler starts can be killed with it.
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    # The runtime says when a worker ends, not a Ctrl-C or a service manager that signals everybody: it drains first.
    # (Caught and not ignored: what is ignored stays so in the programs that a handler starts.)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)
    lifeline = socket.socket(socket.AF_UNIX)
    lifeline.connect(address)
    lifeline.sendall(frame(Hello(token, os.getpid())))
    if lifeline.recv(1) != WELCOME:
        os._exit(BROKEN)
    threading.Thread(target=_watch, args=(lifeline,), name="callboard lifeline", daemon=True).start()
    if hasattr(fcntl, "F_SETSIG"):
        # Linux: the end of the line is a SIGKILL for the whole group, sent by the kernel. The thread above needs the lock.
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgid(0) if os.getpgid(0) == os.getpid() else os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def work(address: str, token: str) -> None:
    """Run the attempt whose token it is. Never raises: what the handler does is said on the connection."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(address)
            line.sendall(frame(Hello(token, os.getpid())))
            order = _order(line)
            sender = _Sender(line, order.report_seconds)
            ending = _run(order, sender.reports)
            sender.close()
            line.sendall(frame(ending))
    except BaseException as error:  # noqa: BLE001 -- a bug of ours, or the connection is gone: nobody can be told
        if not isinstance(error, OSError):
            traceback.print_exc()
        os._exit(BROKEN)


def _ignore(number: int, _: object) -> None:
    pass


def _watch(lifeline: socket.socket) -> None:
    number = lifeline.fileno()
    is_same = os.fstat(number).st_ino
    poll = select.poll()
    poll.register(number, select.POLLIN)
    try:
        # Whatever comes is the end; so is a handler that closes what is not its own.
        while not poll.poll(LOOK_MILLISECONDS) and os.fstat(number).st_ino == is_same:
            pass
    except OSError:
        pass
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(BROKEN)


def _order(line: socket.socket) -> Order:
    frames = Frames(2**32)
    while (data := frames.take()) is None:
        received = line.recv(65536)
        if not received:
            os._exit(BROKEN)
        frames.feed(received)
    return read_order(data)


def _run(order: Order, reports: Reports) -> Ending:
    try:
        function = resolve(Reference(order.module, order.function, order.file))
        handler = make_handler(order.name, function, process=True)
        request = decode_request(bytes(order.request))
        job = ProcessJobContext(decode_job(bytes(order.job)), request, reports)
        arguments = [decode(handler.request_type, request.body)] if handler.takes_body else []
        value = function(job, *arguments)
    except BaseException as error:  # noqa: BLE001 -- a handler's exception ends its attempt only, SystemExit included
        return Raised(_described(error))
    try:
        result = encode(value)
    except BaseException as error:  # noqa: BLE001 -- looking at the value runs the app's own code
        return NoJson(_described(error))
    size = memoryview(result).nbytes
    return TooLarge(size) if size > order.max_result_bytes else Gave(result)


def _described(error: BaseException) -> Fault:
    # Looking at an exception runs the app's own code: one that cannot be described is at least named.
    fault = told(lambda: describe(error, skip_frames=1), None)
    if fault is not None and len(frame(Raised(fault))) <= max_ending_bytes(0):
        return fault
    name = type_name(error)
    return Fault(kinds=(f"builtins.{name}",), module="builtins", name=name, text="")


class _Sender:
    """Sends what the handler reports from a thread, at most once in ``seconds``: the handler never waits, and what it says
    in between waits in ``reports``, which are bounded.
    """

    def __init__(self, line: socket.socket, seconds: float) -> None:
        self.reports = Reports(self._notify)
        self._line = line
        self._seconds = seconds
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def _notify(self) -> None:
        if self._thread is None:
            # Not before it is needed: most short handlers say nothing.
            self._thread = threading.Thread(target=self._run, name="callboard reports", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Send what is left; nothing is sent any more when this returns. Raises OSError."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._flush()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._wake.wait()
                self._wake.clear()
                self._flush()
                self._closing.wait(self._seconds)
        except OSError:
            pass  # the runtime has hung up: it ends this process

    def _flush(self) -> None:
        logs, progress = self.reports.take()
        frames = [frame(Line(entry.level, entry.message)) for entry in logs]
        if progress is not None:
            frames.append(frame(Step(progress.percent, progress.message, Raw(progress.data))))
        for one in frames:
            self._line.sendall(one)
