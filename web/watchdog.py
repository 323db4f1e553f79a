"""A thread that ends the process at a deadline, whatever the event loop does; and the hard end itself. It knows nothing of servers."""

import logging
import os
import sys
import threading
from typing import Final, NoReturn

__all__ = ["Watchdog", "end_process"]

logger: Final = logging.getLogger("callboard.serve")


class Watchdog:
    """One deadline at a time."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._generation = 0
        self._lock = threading.Lock()

    def arm(self, seconds: float, exit_code: int) -> None:
        """End the process with ``exit_code`` in ``seconds``; replaces an earlier deadline."""
        with self._lock:
            self._generation += 1
            generation = self._generation
        threading.Thread(
            target=self._watch, args=(seconds, exit_code, generation), name="callboard watchdog", daemon=True
        ).start()

    def disarm(self) -> None:
        """The process ends by itself."""
        self._stopped.set()

    def _watch(self, seconds: float, exit_code: int, generation: int) -> None:
        if self._stopped.wait(seconds):
            return
        with self._lock:
            if generation != self._generation:
                return
        logger.critical(
            "something did not stop in time: the process ends now; what it held is handed on when its lease lapses"
        )
        end_process(exit_code)


def end_process(code: int) -> NoReturn:
    """End it now: nothing is cleaned up but what was written to the standard streams and the log."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
