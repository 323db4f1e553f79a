"""The registry of a store of several spaces: which space holds an id or an idempotency key. One hash tag, and one script call a batch.

It keeps the words of a protocol that docs/decisions/034 describes with every crash and race; ``redis_births`` speaks it. In short:

* A *name* is ``"i"`` and an id or ``"k"`` and a key. Who brings in a new job first *asks* for its names, and gets the serial with them. The
  entry then counts a *try* under way in that space.
* The space takes the job only through the *gate* that the entry was made with. Shutting a gate makes sure that no try of the past
  can still bring in anything, whoever made it and however late he is.
* When the outcome is known, the try is *told*, with the serial of the job that has the name by then. An entry with no tries is *settled*:
  it names the serials of those who hold the name. It goes when the last of them is told *gone*, which is compared by serial and so can
  never
  hit a later job of the same name.
* A try that nobody tells of (its process died) is found by its age: the gate is shut, then the space is asked who has the name, and the
  entry, if it is the same still, is settled by that.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import Struct

from callboard.runtime.core.errors import StoreRefused
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Clock
from callboard.stores import redis_scripts as scripts
from callboard.stores.redis_link import Caller
from callboard.stores.redis_scripts import Script
from callboard.stores.redis_space import MAX_ITEMS

__all__ = ["Again", "Asked", "Entry", "Registry", "Taken", "Tiding", "gone", "names_of", "over", "resolved"]

LAYOUT: Final = 1

Tiding = tuple[str | bytes | int, ...]
"""An operation of ``register.lua`` that has no answer."""


class Entry(Struct, frozen=True):
    """What the registry says of a name."""

    raw: bytes
    space: int
    gate: int
    tries: int
    holders: tuple[int, ...]

    @staticmethod
    def of(raw: bytes) -> "Entry | None":
        """Of what is stored; None for nothing."""
        if not raw:
            return None
        space, gate, tries, holders, _ = raw.split(b" ")
        serials = () if holders == b"-" else tuple(int(serial) for serial in holders.split(b","))
        return Entry(raw, int(space), int(gate), int(tries), serials)


class Asked(Struct, frozen=True):
    """A new job may be tried, with this serial."""

    serial: int


class Again(Struct, frozen=True):
    """Another gate of that space is open by now."""

    gate: int


class Taken(Struct, frozen=True):
    """The name is with another space, or about to be."""

    name: str
    entry: Entry


def names_of(job_id: str, key: str | None) -> tuple[str, ...]:
    """The names that a job with this id and key has."""
    return (f"i{job_id}",) if key is None else (f"i{job_id}", f"k{key}")


def over(name: str, space: int, gate: int, holder: int | None) -> Tiding:
    """A try is over; ``holder`` is the serial of the job that was then seen to have the name."""
    return ("T", name, space, gate, "" if holder is None else holder)


def gone(name: str, space: int, serial: int) -> Tiding:
    """The job with that serial is gone."""
    return ("R", name, space, serial)


def resolved(name: str, entry: Entry, holder: int | None, gate: int) -> Tiding:
    """The gate of ``entry`` is shut, ``gate`` is open, and after that ``holder`` was seen to have the name."""
    return ("V", name, entry.raw, "" if holder is None else holder, gate)


class Registry:
    """The keys that begin with ``tag``."""

    def __init__(self, tag: str, *, clock: Clock | None) -> None:
        self._keys = (f"{tag}meta",)
        self._clock = clock

    def open(self, caller: Caller, spaces: int) -> None:
        """Write down how many spaces there are. Raises StoreRefused if there are others, or it has another layout."""
        layout, known = (int(value) for value in self._run(caller, scripts.OPEN, LAYOUT, spaces, ""))
        if layout != LAYOUT:
            what = "upgrade callboard" if layout > LAYOUT else "it is of an older callboard: choose another ?prefix="
            raise StoreRefused(
                f"the registry of the Redis store has layout {layout}, this callboard knows {LAYOUT}: {what}"
            )
        if known != spaces:
            raise StoreRefused(
                f"the Redis store is spread over {known} spaces, not {spaces}, and that never changes: use ?spaces={known}, or"
                " another ?prefix="
            )

    def ask(
        self, caller: Caller, tidings: Iterable[Tiding], births: Sequence[tuple[int, int, Job]]
    ) -> list[Asked | Again | Taken]:
        """Tell ``tidings``, then ask for the names of new jobs: space, gate and job of each."""
        words: list[str | bytes | int] = [word for tiding in tidings for word in tiding]
        answers: list[Asked | Again | Taken] = []
        for start in range(0, len(births), MAX_ITEMS):
            for space, gate, job in births[start : start + MAX_ITEMS]:
                names = names_of(job.id, job.key)
                words += ["B", space, gate, len(names), *names]
            answers += [_answer(answer) for answer in self._run(caller, scripts.REGISTER_BIRTHS, *words)]
            words = []
        return answers

    def tell(self, caller: Caller, tidings: Sequence[Tiding]) -> None:
        """Only tell."""
        for start in range(0, len(tidings), 2 * MAX_ITEMS):
            part = tidings[start : start + 2 * MAX_ITEMS]
            self._run(caller, scripts.REGISTER, *(word for tiding in part for word in tiding))

    def entries(self, caller: Caller, names: Sequence[str]) -> list[Entry | None]:
        """What is known of each name."""
        return [Entry.of(raw) for raw in self._run(caller, scripts.WHEREABOUTS, *names)[1:]]

    def now_ms(self, caller: Caller) -> int:
        """The clock of the registry's server."""
        return int(self._run(caller, scripts.WHEREABOUTS)[0])

    def doubts(self, caller: Caller, *, older_than_ms: int, limit: int) -> list[tuple[str, Entry]]:
        """Names with tries so old that who made them may have died."""
        return _pairs(self._run(caller, scripts.DOUBTS, older_than_ms, limit))

    def stroll(self, caller: Caller, cursor: bytes, count: int) -> tuple[bytes, list[tuple[str, Entry]]]:
        """Some more of all entries, and where to go on; ``b"0"`` at the beginning and at the end."""
        following, *found = self._run(caller, scripts.STROLL, cursor, count)
        return following, _pairs(found)

    def _run(self, caller: Caller, script: Script, *arguments: str | bytes | int) -> Any:
        now = "" if self._clock is None else self._clock()
        return caller.run(script, self._keys, (now, *arguments))


def _answer(answer: Sequence[bytes]) -> Asked | Again | Taken:
    if answer[0]:
        return Asked(int(answer[0]))
    if len(answer) == 2:
        return Again(int(answer[1]))
    entry = Entry.of(answer[2])
    assert entry is not None
    return Taken(answer[1].decode(), entry)


def _pairs(found: Sequence[bytes]) -> list[tuple[str, Entry]]:
    pairs = ((name.decode(), Entry.of(raw)) for name, raw in zip(found[::2], found[1::2], strict=True))
    return [(name, entry) for name, entry in pairs if entry is not None]
