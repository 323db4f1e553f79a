"""What whoever started this process tells it through the environment: the service manager, a parent with several workers, an operator.

Read once, and what could be misunderstood by a child process, or must not be known to it, is taken out of the environment.

    NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID     systemd, see ``notify``
    CALLBOARD_PARENT_FD                            the line to a parent process, see ``workers``
    CALLBOARD_WORKERS                              how many processes the parent has started
    CALLBOARD_DRAIN_SECONDS                        drain no longer than that (under --reload)
    CALLBOARD_KEYFILE_PASSWORD                     of the TLS key
"""

import os
from collections.abc import MutableMapping
from dataclasses import dataclass, field

from callboard.web.notify import Notifier

__all__ = ["Surroundings"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """By default: nobody has told it anything."""

    notifier: Notifier = field(default_factory=Notifier)
    parent_fd: int | None = None
    workers: int = 1
    drain_seconds: float | None = None
    key_password: str = field(default="", repr=False)

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> "Surroundings":
        """Takes the variables out of ``environment``."""
        parent_fd = environment.pop("CALLBOARD_PARENT_FD", None)
        if parent_fd is not None:
            os.set_inheritable(int(parent_fd), False)
        drain_seconds = environment.pop("CALLBOARD_DRAIN_SECONDS", None)
        return cls(
            notifier=Notifier.of(environment),
            parent_fd=None if parent_fd is None else int(parent_fd),
            workers=int(environment.pop("CALLBOARD_WORKERS", "1")),
            drain_seconds=None if drain_seconds is None else float(drain_seconds),
            key_password=environment.pop("CALLBOARD_KEYFILE_PASSWORD", ""),
        )
