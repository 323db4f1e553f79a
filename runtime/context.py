"""What a handler sees of its job: ``JobContext`` in a trio task, ``ThreadJobContext`` in a thread, ``ProcessJobContext`` in a process."""

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import trio

from callboard.runtime.core.events import LogEntry
from callboard.runtime.core.job import NULL, Job, Progress, Request
from callboard.runtime.payload import encode, storable

__all__ = ["JobContext", "Params", "ProcessJobContext", "Reports", "ThreadJobContext"]

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
MAX_PENDING_LOGS: Final = 1000
"""Log lines that may wait for the store; past it the oldest go, and a line says how many."""
MAX_TEXT: Final = 10_000
"""Characters of a message that are kept."""
MAX_DATA_BYTES: Final = 65_536
"""JSON text of a progress report's ``data``: it is stored with each event and sent to every watcher."""


class Params(Mapping[str, str]):
    """Names with one or more values each. ``params[name]`` is the first value; ``getlist`` gives all of them."""

    def __init__(self, pairs: tuple[tuple[str, str], ...], *, ignore_case: bool = False) -> None:
        self._fold = str.lower if ignore_case else str
        self._values: dict[str, tuple[str, list[str]]] = {}
        for name, value in pairs:
            self._values.setdefault(self._fold(name), (name, []))[1].append(value)

    def __getitem__(self, name: str) -> str:
        return self._values[self._fold(name)][1][0]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    def getlist(self, name: str) -> list[str]:
        """All values of ``name``, in order; empty if there is none."""
        return list(self._values.get(self._fold(name), ("", []))[1])

    def __repr__(self) -> str:
        return f"Params({dict(self)!r})"


class Reports:
    """What a handler said and nobody has stored yet: log lines, and of its progress the newest.

    Written by the handler, possibly from a thread; emptied by the job's supervisor. ``notify`` is called after each
    addition, from the handler's thread.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._logs: deque[LogEntry] = deque()
        self._dropped = 0
        self._progress: Progress | None = None

    def add_log(self, level: str, message: str) -> None:
        if level not in LEVELS:
            raise ValueError(f"the level is {level!r}: give one of {', '.join(LEVELS)}")
        entry = LogEntry(level, storable(str(message)[:MAX_TEXT]))
        with self._lock:
            if len(self._logs) >= MAX_PENDING_LOGS:
                self._logs.popleft()
                self._dropped += 1
            self._logs.append(entry)
        self._notify()

    def set_progress(self, percent: float | None, message: str | None, data: Any) -> None:
        progress = _progress(percent, message, data)
        with self._lock:
            self._progress = progress
        self._notify()

    def take(self) -> tuple[tuple[LogEntry, ...], Progress | None]:
        """All of it, once."""
        with self._lock:
            logs, dropped, progress = list(self._logs), self._dropped, self._progress
            self._logs.clear()
            self._dropped, self._progress = 0, None
        if dropped:
            logs.insert(
                0, LogEntry("warning", f"{dropped} log lines were dropped: the job wrote faster than they are stored")
            )
        return tuple(logs), progress

    @property
    def is_empty(self) -> bool:
        return not self._logs and self._progress is None


class _Context:
    """What both kinds share; read-only."""

    def __init__(self, job: Job, request: Request, reports: Reports) -> None:
        self._reports = reports
        self.id: str = job.id
        """The job's id, a UUID."""
        self.name: str = job.name
        self.attempt: int = job.attempt
        """1 for the first run; grows with every claim, also after a lost worker."""
        self.headers = Params(request.headers, ignore_case=True)
        """The request's headers, less the secret ones."""
        self.route_params: dict[str, Any] = {name: _typed(*pair) for name, pair in request.route_params.items()}
        self.query_params = Params(request.query_params)
        self.deadline: datetime | None = None
        """When this attempt's time is over; None without a timeout."""
        if job.timeout_seconds is not None and job.started_ms is not None:
            self.deadline = datetime.fromtimestamp(job.started_ms / 1000 + job.timeout_seconds, UTC)

    def log(self, level: str, message: str) -> None:
        """Write a line into the job's event stream. ``level`` is debug, info, warning, error or critical.

        Raises ValueError for another level.
        """
        self._reports.add_log(level, message)


class JobContext(_Context):
    """What an ``async def`` handler sees of its job."""

    def __init__(self, job: Job, request: Request, reports: Reports, is_told_to_stop: Callable[[], bool]) -> None:
        super().__init__(job, request, reports)
        self._is_told_to_stop = is_told_to_stop

    @property
    def cancel_requested(self) -> bool:
        """Whether this attempt has been told to stop, for whatever reason; for cleanup that wants to know, shielded or not."""
        return self._is_told_to_stop()

    async def progress(self, percent: float | None = None, message: str | None = None, data: Any = None) -> None:
        """Say how far the job is; a checkpoint. Only the newest progress is kept.

        ``percent`` is 0..100, ``data`` any JSON value of at most 64 kB. Raises ValueError for anything else.
        """
        self._reports.set_progress(percent, message, data)
        await trio.lowlevel.checkpoint()


class ThreadJobContext(_Context):
    """What a plain function sees of its job: the same names, without ``await``."""

    def __init__(self, job: Job, request: Request, reports: Reports, check: Callable[[], None]) -> None:
        super().__init__(job, request, reports)
        self._check = check

    @property
    def cancel_requested(self) -> bool:
        """Whether this attempt has been told to stop, for whatever reason: look at it often and return or raise."""
        try:
            self._check()
        except trio.Cancelled:
            return True
        return False

    def progress(self, percent: float | None = None, message: str | None = None, data: Any = None) -> None:
        """Say how far the job is. The way out when the job was canceled: raises ``trio.Cancelled``, let it pass.

        ``percent`` is 0..100, ``data`` any JSON value of at most 64 kB. Raises ValueError for anything else.
        """
        self._reports.set_progress(percent, message, data)
        self._check()


class ProcessJobContext(_Context):
    """What a handler of ``process=True`` sees of its job, in the worker process: the same names, without ``await``."""

    @property
    def cancel_requested(self) -> bool:
        """Always False: whoever wants this attempt to stop ends the process, which is not asked."""
        return False

    def progress(self, percent: float | None = None, message: str | None = None, data: Any = None) -> None:
        """Say how far the job is. Only the newest progress is kept; it is sent to the runtime every now and then.

        ``percent`` is 0..100, ``data`` any JSON value of at most 64 kB. Raises ValueError for anything else.
        """
        self._reports.set_progress(percent, message, data)


def _progress(percent: float | None, message: str | None, data: Any) -> Progress:
    is_number = isinstance(percent, int | float) and not isinstance(percent, bool)
    if percent is not None and not (is_number and 0 <= percent <= 100):
        raise ValueError(f"percent is {percent!r}: give a number from 0 to 100")
    if message is not None and not isinstance(message, str):
        raise ValueError(f"message is {message!r}: give a text")
    try:
        encoded = NULL if data is None else encode(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data has no JSON form: {error}") from error
    if memoryview(encoded).nbytes > MAX_DATA_BYTES:
        raise ValueError(f"data has {memoryview(encoded).nbytes} bytes as JSON: give at most {MAX_DATA_BYTES}")
    percent = None if percent is None else float(percent)
    return Progress(percent=percent, message=None if message is None else storable(message[:MAX_TEXT]), data=encoded)


def _typed(kind: str, value: str | int | float) -> Any:
    return uuid.UUID(str(value)) if kind == "uuid" else value
