"""Measures how the machine treats a process that only wants to wake up in time: writes down when and by how much it was late.

Run as a process of its own, which shares nothing with those that are tested but the machine. So a bound of a test holds for a busy
machine, too, and no bug can hide behind it. The argument is the file to write to; each line has the time (monotonic) and the lateness.
"""

import os
import sys
import time
from bisect import bisect_left
from pathlib import Path
from typing import Final, Self

__all__ = ["Canary", "main"]

BEAT_SECONDS: Final = 0.01
LEAST_SECONDS: Final = 0.005
"""Less is how every machine is."""
SHARE_SECONDS: Final = 0.0005
"""It computes for so long each time: being woken is not yet being served."""


class Canary:
    """What it has written so far."""

    def __init__(self, path: Path) -> None:
        self._beats: list[tuple[float, float]] = []
        if path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            self._beats = [(float(at), float(late)) for at, late in (line.split() for line in lines)]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read the file."""
        return cls(path)

    def late_seconds(self, since: float, until: float) -> float:
        """The lateness that came together between two times (monotonic)."""
        return sum(late for _, late in self._between(since, until))

    def worst_seconds(self, since: float, until: float) -> float:
        """The longest standstill between two times."""
        return max((late for _, late in self._between(since, until)), default=0.0)

    def _between(self, since: float, until: float) -> list[tuple[float, float]]:
        # A standstill is written down at its end, so the first one after the span may reach into it.
        first = bisect_left(self._beats, (since, 0.0))
        last = bisect_left(self._beats, (until, 0.0))
        return self._beats[first : last + 1]


def main() -> None:
    """Until killed, or until nobody is left to do so."""
    journal = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    parent = os.getppid()
    while os.getppid() == parent:
        began, served = time.monotonic(), time.thread_time()
        time.sleep(BEAT_SECONDS)
        while time.thread_time() - served < SHARE_SECONDS:
            pass
        late = time.monotonic() - began - BEAT_SECONDS - SHARE_SECONDS
        if late > LEAST_SECONDS:
            os.write(journal, f"{time.monotonic():.6f} {late:.6f}\n".encode())


if __name__ == "__main__":
    main()
