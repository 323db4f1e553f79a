"""What systemd is told: ready, reloading, stopping, alive. Source: sd_notify(3), sd_watchdog_enabled(3).

A datagram to the socket that ``NOTIFY_SOCKET`` names, from the event loop: while that is frozen nothing is sent, and systemd restarts what
has said nothing for ``WATCHDOG_USEC``. What cannot be sent is not sent: systemd's absence is no reason to end.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

import trio

__all__ = ["Notifier", "watchdog_seconds"]

logger: Final = logging.getLogger("callboard.serve")


class Notifier:
    """Tells the service manager at ``address``, or nobody; ``watchdog_seconds`` is the longest silence that it bears."""

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self.watchdog_seconds = watchdog_seconds
        self._has_failed = False

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> "Notifier":
        """As the service manager asked. Its variables are taken out, so that no child process speaks for this one."""
        made = cls(environment.get("NOTIFY_SOCKET"), watchdog_seconds(environment))
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            environment.pop(name, None)
        return made

    def notify(self, *assignments: str) -> None:
        """Send ``"READY=1"``, ``"STATUS=..."`` and the like, all in one message."""
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                line.sendto("\n".join(assignments).encode(), address)
        except (OSError, ValueError) as error:
            if not self._has_failed:
                logger.warning("the service manager cannot be told %s: %s", assignments[0], error)
            self._has_failed = True

    def ready(self, status: str) -> None:
        """It serves."""
        self.notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Until the next ``ready``."""
        self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """It is on its way out."""
        self.notify("STOPPING=1", f"STATUS={status}")

    async def beat(self) -> None:
        """Say that the event loop turns, for as long as it does; returns at once if nobody asked."""
        if self._address is None or self.watchdog_seconds is None:
            return
        while True:
            self.notify("WATCHDOG=1")
            await trio.sleep(self.watchdog_seconds / 2)


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """The longest silence that the service manager bears from this process; None where it does not mind."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not (microseconds.isascii() and microseconds.isdigit() and int(microseconds)):
        return None
    return int(microseconds) / 1e6
