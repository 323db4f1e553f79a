"""What is told of a queue: whether it is paused and how many jobs it holds. Pure."""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from callboard.runtime.core.job import Status
from callboard.runtime.handlers import Handlers

__all__ = ["Queue", "all_queues"]


class Queue(Struct, frozen=True):
    """One queue as the store has it, for all processes; a status that ``counts`` does not name has no job."""

    name: str
    paused: bool
    counts: dict[Status, int] = {}
    unknown: dict[str, int] = {}
    """Jobs that are ready and that no handler here takes, by the handler's name."""


def all_queues(
    handlers: Handlers,
    counts: Mapping[tuple[str, Status], int],
    ready: Mapping[tuple[str, str], int],
    paused: Iterable[str],
) -> tuple[Queue, ...]:
    """The queues that a handler works on, that hold jobs or that are paused, by name. ``ready``: jobs by queue and handler's name."""
    held: dict[str, dict[Status, int]] = {}
    for (name, status), count in counts.items():
        if count:
            held.setdefault(name, {})[status] = count
    unknown: dict[str, dict[str, int]] = {}
    for (queue, name), count in sorted(ready.items()):
        if count and not handlers.take(queue, name):
            unknown.setdefault(queue, {})[name] = count
    stopped = set(paused)
    return tuple(
        Queue(name, name in stopped, held.get(name, {}), unknown.get(name, {}))
        for name in sorted({*handlers.queues, *held, *unknown, *stopped})
    )
