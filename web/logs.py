"""Where the launcher's logs go: access lines to standard output as they are, everything else to standard error.

An app that has configured logging itself, before it is served, is left alone.

Whoever reads standard output may stop reading. A server that waited for him would stand still: access lines that are not taken are kept,
up to a bound, and then dropped and counted.
"""

import logging
import os
import select
import time
from collections import deque
from typing import Final

from callboard.web.access_log import LOGGER_NAME

__all__ = ["LineWriter", "configure_logging"]

logger: Final = logging.getLogger("callboard.logs")

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
STDOUT: Final = 1
MAX_LINES: Final = 10_000
"""Waiting at most: some seconds' worth of requests, in a few megabytes."""
FLUSH_SECONDS: Final = 1.0
"""What a reader gets at the end of the process to take what waits."""


def configure_logging(log_level: str = "info", *, access: bool = True) -> None:
    """Set up logging for the launcher's process, unless the app has. ``access``: whether there is an access log.

    The app has if the root logger has a handler, or, as to the access log, if that logger has one.
    """
    lines = logging.getLogger(LOGGER_NAME)
    if not access:
        lines.disabled = True
    if logging.getLogger().handlers:
        return
    level = logging.getLevelNamesMapping()[log_level.upper()]
    logging.basicConfig(level=level, format=FORMAT)
    if not access or lines.handlers:
        return
    lines.addHandler(LineWriter(STDOUT))
    lines.propagate = False
    if lines.level == logging.NOTSET:
        # The lines were asked for, whatever else is wanted.
        lines.setLevel(min(level, logging.INFO))


class LineWriter(logging.Handler):
    """Writes records as lines to an open ``file`` (a descriptor, which it does not close) and never waits for its reader.

    What the file does not take now is kept for the next record or the end of the process. Lines are shorter than ``select.PIPE_BUF``.
    """

    def __init__(self, file: int, *, max_lines: int = MAX_LINES) -> None:
        super().__init__()
        self._file = file
        self._max_lines = max_lines
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._poll = select.poll()
        self._poll.register(file, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's line, after those that wait; keep it if the file is full, and drop it if too many are kept."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler of the standard library does
            self.handleError(record)
            return
        if len(self._waiting) < self._max_lines:
            self._waiting.append(line.encode(errors="backslashreplace") + b"\n")
        else:
            self._dropped += 1
        self._write(0)

    def flush(self) -> None:
        """Write what waits; the reader gets a second to take it. Called by ``logging.shutdown`` at the end of the process."""
        self._write(FLUSH_SECONDS)

    def _write(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        # Line by line, and not through sys.stdout: a pipe or socket that is ready takes one without waiting.
        while self._waiting and self._poll.poll(max(0, ends - time.monotonic()) * 1000):
            try:
                written = os.write(self._file, self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self._waiting.clear()  # nobody reads any more, or the disk is full: serving goes on
                return
            if written < len(self._waiting[0]):
                self._waiting[0] = self._waiting[0][written:]
            else:
                self._waiting.popleft()
        if self._dropped and not self._waiting:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d lines of the access log were dropped: standard output is not read fast enough", dropped)
