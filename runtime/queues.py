"""What is told of a queue: whether it is paused and how many jobs it holds. Pure."""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from callboard.runtime.core.job import Status

__all__ = ["Queue", "all_queues"]


class Queue(Struct, frozen=True):
    """One queue as the store has it, for all processes; a status that ``counts`` does not name has no job."""

    name: str
    paused: bool
    counts: dict[Status, int] = {}


def all_queues(
    worked_on: Iterable[str], counts: Mapping[tuple[str, Status], int], paused: Iterable[str]
) -> tuple[Queue, ...]:
    """The queues that a handler works on, that hold jobs or that are paused, by name."""
    held: dict[str, dict[Status, int]] = {}
    for (name, status), count in counts.items():
        if count:
            held.setdefault(name, {})[status] = count
    stopped = set(paused)
    return tuple(Queue(name, name in stopped, held.get(name, {})) for name in sorted({*worked_on, *held, *stopped}))
