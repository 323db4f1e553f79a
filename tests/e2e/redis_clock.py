"""Runs ``callboard`` in a process whose time of day is wrong, by as many seconds as a file says now; its monotonic clock is the machine's.

The first argument is that file, which holds one double; the test may write to it at any time. The rest is callboard's command line.
What is replaced is what Python code asks for the time, before anything else of the process is imported.
"""

import datetime
import mmap
import runpy
import struct
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["Skew", "falsify"]


class Skew:
    """The test's side: a file that says how wrong the clock is."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        path.write_bytes(struct.pack("d", seconds))

    def step(self, seconds: float) -> None:
        """From now on it is wrong by so much."""
        with self.path.open("r+b", buffering=0) as file:
            file.write(struct.pack("d", seconds))


def falsify(path: str) -> None:
    """Make ``time`` and ``datetime`` of this process lie."""
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    true_ns, true_clock = time.time_ns, time.clock_gettime

    def time_ns() -> int:
        wrong_by: float = struct.unpack("d", shared[:8])[0]
        return true_ns() + round(wrong_by * 1e9)

    def clock_gettime(clock: int) -> float:
        return time_ns() / 1e9 if clock == time.CLOCK_REALTIME else true_clock(clock)

    class FalseDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

    time.time_ns, time.time, time.clock_gettime = time_ns, lambda: time_ns() / 1e9, clock_gettime
    datetime.datetime = FalseDatetime  # type: ignore[misc]


if __name__ == "__main__":
    falsify(sys.argv[1])
    del sys.argv[1]
    runpy.run_module("callboard.web.cli", run_name="__main__", alter_sys=True)
