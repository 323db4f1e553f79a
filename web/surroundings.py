"""What whoever started this process tells it through the environment: the service manager, a parent with workers, an operator. And what
such a parent says to its workers.

Read once, and what could be misunderstood by a child process, or must not be known to it, is taken out of the environment.

    NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID     systemd, see ``notify``
    CALLBOARD_PARENT_FD                            the line to a parent process, see ``workers``
    CALLBOARD_WORKERS                              how many processes the parent has started
    CALLBOARD_DRAIN_SECONDS                        drain no longer than that (under --reload)
    CALLBOARD_KEYFILE_PASSWORD                     of the TLS key
"""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Final

from callboard.web.binds import LISTEN_VARIABLES
from callboard.web.notify import Notifier

__all__ = ["Surroundings", "environment_of_worker"]

_PARENT: Final = "CALLBOARD_PARENT_FD"
_WORKERS: Final = "CALLBOARD_WORKERS"
_DRAIN: Final = "CALLBOARD_DRAIN_SECONDS"
_PASSWORD: Final = "CALLBOARD_KEYFILE_PASSWORD"


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
        parent_fd = environment.pop(_PARENT, None)
        if parent_fd is not None:
            os.set_inheritable(int(parent_fd), False)
        drain_seconds = environment.pop(_DRAIN, None)
        return cls(
            notifier=Notifier.of(environment),
            parent_fd=None if parent_fd is None else int(parent_fd),
            workers=int(environment.pop(_WORKERS, "1")),
            drain_seconds=None if drain_seconds is None else float(drain_seconds),
            key_password=environment.pop(_PASSWORD, ""),
        )


def environment_of_worker(
    environment: Mapping[str, str], *, parent_fd: int, workers: int, drain_seconds: float | None
) -> dict[str, str]:
    """``environment``, which is the parent's, with what ``Surroundings.of`` shall read in a worker, and without the parent's sockets."""
    made = {name: value for name, value in environment.items() if name not in LISTEN_VARIABLES}
    made |= {_PARENT: str(parent_fd), _WORKERS: str(workers)}
    if drain_seconds is not None:
        made[_DRAIN] = str(drain_seconds)
    return made
