"""Commits over several spaces: which items go together, and how a new job gets a name that nobody else has anywhere.

It speaks the protocol of ``redis_registry``. All of it runs in the write lane.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace
from redis.exceptions import RedisError

from callboard.runtime.core.errors import CallboardError, StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Committed, Conflict, Delete, Duplicate, Outcome, Write
from callboard.stores.comparing import check_batch
from callboard.stores.redis_link import Caller
from callboard.stores.redis_records import Stored, read_job
from callboard.stores.redis_registry import (
    Again,
    Asked,
    Entry,
    Registry,
    Taken,
    Tiding,
    gone,
    names_of,
    over,
    resolved,
)
from callboard.stores.redis_space import Barred, Identity, Removed, Space
from callboard.stores.redis_together import ManyCaller, apart, together

__all__ = ["Births"]

WAIT_SECONDS: Final = 0.25
"""How long another process's try may take until its gate is shut: far longer than it does, unless the process has died or stands still."""

_LOOK_SECONDS: Final = 0.01

PATIENCE_SECONDS: Final = 5.0
"""After this the store is unavailable: a name went from hand to hand all the while."""

DOUBT_MS: Final = 30_000
"""Age of a try that nobody told the end of. A process tells within seconds, so this one has died, or cannot reach the store."""

_SOME: Final = 100

Result = Outcome | CallboardError


class _Ticket(Struct, frozen=True):
    """What a new job was given: through this gate it may come in, with this serial."""

    gate: int
    serial: int


class _Run:
    """Items of a batch of which no two in different spaces have a name in common, so that the order between spaces does not matter."""

    def __init__(self) -> None:
        self.spaces: dict[int, int] = {}
        """index of an item -> its space, in order."""
        self._owners: dict[str, int] = {}

    def takes(self, index: int, space: int, names: Sequence[str]) -> bool:
        if any(self._owners.get(name, space) != space for name in names):
            return False
        self.spaces[index] = space
        self._owners.update(dict.fromkeys(names, space))
        return True


class Births:
    """Commits of one process over ``spaces``."""

    def __init__(self, spaces: Sequence[Space], registry: Registry, space_of: Callable[[str], int]) -> None:
        self._spaces = spaces
        self._registry = registry
        self._space_of = space_of
        self._gates = [0] * len(spaces)
        self._tidings: list[Tiding] = []
        """To be told to the registry with the next that it is asked."""
        self._cursor = b"0"

    def commit(self, caller: ManyCaller, me: Identity, batch: Sequence[Write | Delete]) -> list[Result]:
        """``Store.commit``."""
        check_batch(batch)
        results: list[Result | None] = [None] * len(batch)
        for run in self._runs(batch):
            self._commit_run(caller, me, batch, run, results)
        if any(tiding[0] == "R" for tiding in self._tidings):
            self.try_to_tell(caller)
        return [result for result in results if result is not None]

    def removed(self, space: int, removed: Sequence[Removed]) -> None:
        """These are gone; it is told with the next ``tell``."""
        for one in removed:
            self._tidings += [gone(name, space, one.serial) for name in names_of(one.job_id, one.key)]

    def tell(self, caller: Caller) -> None:
        """Tell the registry what happened; what is lost on the way is found by ``tidy`` and ``stroll``."""
        tidings = self._taken_tidings()
        try:
            self._registry.tell(caller, tidings)
        except BaseException:
            self._keep(tidings)
            raise

    def try_to_tell(self, caller: Caller) -> None:
        """The same after something was done that must not look undone."""
        try:
            self.tell(caller)
        except RedisError:
            # What may be told twice is told the next time.
            pass

    def tidy(self, caller: ManyCaller, doubts: Sequence[tuple[str, Entry]]) -> None:
        """Settle tries whose end was never told."""
        by_space: dict[int, list[tuple[str, Entry]]] = {}
        for name, entry in doubts:
            by_space.setdefault(entry.space, []).append((name, entry))
        for space, entries in by_space.items():
            self._shut(caller, space, entries)
        if doubts:
            self.tell(caller)

    def stroll(self, caller: ManyCaller) -> None:
        """Look at some more of the registry: whether those whom it names are there. They are not after a crash between two steps."""
        self._cursor, entries = self._registry.stroll(caller, self._cursor, _SOME)
        settled = [(name, entry) for name, entry in entries if entry.tries == 0]
        for (name, entry), found in zip(settled, self._find_held(caller, settled), strict=True):
            serials = entry.holders if found is None else [one for one in entry.holders if one != int(found.serial)]
            self._tidings += [gone(name, entry.space, serial) for serial in serials]
        self.tell(caller)

    def _runs(self, batch: Sequence[Write | Delete]) -> Iterator[_Run]:
        run = _Run()
        for index, item in enumerate(batch):
            job = item.job if item.expected is None and isinstance(item, Write) else item.expected
            assert job is not None
            space, names = self._space_of(job.queue), names_of(job.id, job.key)
            if not run.takes(index, space, names):
                yield run
                run = _Run()
                run.takes(index, space, names)
        if run.spaces:
            yield run

    def _commit_run(
        self,
        caller: ManyCaller,
        me: Identity,
        batch: Sequence[Write | Delete],
        run: _Run,
        results: list[Result | None],
    ) -> None:
        waiting = dict(run.spaces)
        while waiting:
            tickets = self._ask(caller, batch, waiting, results)
            parts: dict[int, list[int]] = {}
            for index, space in waiting.items():
                if results[index] is None:
                    parts.setdefault(space, []).append(index)
            works = [
                partial(
                    _commit_part, self._spaces[space], self._gates[space], me, [_item(batch, i, tickets) for i in part]
                )
                for space, part in parts.items()
            ]
            failed: Exception | None = None
            barred: dict[int, int] = {}
            for (space, part), answer in zip(parts.items(), apart(caller, works), strict=True):
                if isinstance(answer, Exception):
                    failed = failed or answer
                    continue
                for index, result in zip(part, answer, strict=False):
                    if isinstance(result, Barred):
                        self._gates[space] = max(self._gates[space], result.gate)
                        barred |= dict.fromkeys(part[part.index(index) :], space)
                    else:
                        results[index] = result
                        self._note(space, batch[index], tickets.get(index), result)
            if failed is not None:
                raise failed
            waiting = {index: space for index, space in waiting.items() if index in barred}
        self._seek_elsewhere(caller, me, batch, run, results)

    def _note(self, space: int, item: Write | Delete, ticket: _Ticket | None, result: Result) -> None:
        """What the registry has to hear of an outcome. One that is not clear is left to ``tidy``."""
        if isinstance(item, Delete):
            if isinstance(result, Committed):
                job = result.job
                self._tidings += [gone(name, space, job.serial) for name in names_of(job.id, job.key)]
        elif ticket is not None and not isinstance(result, CallboardError):
            holder = result.job if isinstance(result, Committed | Duplicate) else None
            held = () if holder is None else names_of(holder.id, holder.key)
            for name in names_of(item.job.id, item.job.key):
                serial = holder.serial if holder is not None and name in held else None
                self._tidings.append(over(name, space, ticket.gate, serial))

    def _seek_elsewhere(
        self,
        caller: ManyCaller,
        me: Identity,
        batch: Sequence[Write | Delete],
        run: _Run,
        results: list[Result | None],
    ) -> None:
        """A job that is not in the space of the queue that it was in may have been born again in another."""
        missed = [index for index in run.spaces if results[index] == Conflict(None)]
        if not missed:
            return
        entries = self._registry.entries(caller, [f"i{_expected(batch[index]).id}" for index in missed])
        elsewhere: dict[int, list[int]] = {}
        for index, entry in zip(missed, entries, strict=True):
            if entry is not None and entry.space != run.spaces[index]:
                elsewhere.setdefault(entry.space, []).append(index)
        works = [
            partial(_commit_part, self._spaces[space], None, me, [batch[index] for index in part])
            for space, part in elsewhere.items()
        ]
        for (space, part), answers in zip(elsewhere.items(), together(caller, works), strict=True):
            for index, result in zip(part, answers, strict=True):
                assert not isinstance(result, Barred)
                results[index] = result
                self._note(space, batch[index], None, result)

    # Names of new jobs

    def _ask(
        self,
        caller: ManyCaller,
        batch: Sequence[Write | Delete],
        spaces: dict[int, int],
        results: list[Result | None],
    ) -> dict[int, _Ticket]:
        """A ticket for each new job, or its result."""
        births = {
            index: item.job for index in spaces if isinstance(item := batch[index], Write) and item.expected is None
        }
        tickets: dict[int, _Ticket] = {}
        begun = time.monotonic()
        while waiting := [
            index
            for index in births
            if results[index] is None and (index not in tickets or tickets[index].gate != self._gates[spaces[index]])
        ]:
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise StoreUnavailable("other processes keep an id or an idempotency key busy")
            asked = [(spaces[index], self._gates[spaces[index]], births[index]) for index in waiting]
            taken: dict[int, Taken] = {}
            for index, (space, gate, _), answer in zip(waiting, asked, self._ask_once(caller, asked), strict=True):
                if isinstance(answer, Asked):
                    tickets[index] = _Ticket(gate, answer.serial)
                elif isinstance(answer, Again):
                    self._gates[space] = max(self._gates[space], answer.gate)
                else:
                    taken[index] = answer
            self._meet_ids(caller, {index: (spaces[index], births[index].id) for index in taken}, results)
            taken = {index: one for index, one in taken.items() if results[index] is None}
            if taken:
                self._meet(caller, taken, results, is_patient=time.monotonic() - begun < WAIT_SECONDS)
        return tickets

    def _ask_once(self, caller: Caller, asked: Sequence[tuple[int, int, Job]]) -> list[Asked | Again | Taken]:
        tidings = self._taken_tidings()
        try:
            return self._registry.ask(caller, tidings, asked)
        except BaseException:
            self._keep(tidings)
            raise

    def _meet_ids(self, caller: ManyCaller, wanted: dict[int, tuple[int, str]], results: list[Result | None]) -> None:
        """A job whose key is taken elsewhere, and its id here, is a Duplicate of the one with its id."""
        pairs = [(f"i{job_id}", space) for space, job_id in wanted.values()]
        for index, found in zip(wanted, self._find(caller, pairs), strict=True):
            if found is not None:
                results[index] = _duplicate(found)

    def _meet(
        self, caller: ManyCaller, taken: dict[int, Taken], results: list[Result | None], *, is_patient: bool
    ) -> None:
        """Who has the names that were wanted: a Duplicate of him, or nobody any more."""
        pairs = [(one.name, one.entry) for one in taken.values()]
        unclear: dict[int, list[tuple[str, Entry]]] = {}
        for index, (name, entry), found in zip(taken, pairs, self._find_held(caller, pairs), strict=True):
            if found is not None:
                results[index] = _duplicate(found)
            elif entry.tries == 0:
                self._tidings += [gone(name, entry.space, serial) for serial in entry.holders]
            else:
                unclear.setdefault(entry.space, []).append((name, entry))
        if unclear and is_patient:
            time.sleep(_LOOK_SECONDS)
        elif unclear:
            for space, entries in unclear.items():
                self._shut(caller, space, entries)

    def _shut(self, caller: ManyCaller, space: int, entries: Sequence[tuple[str, Entry]]) -> None:
        """Shut the gate of tries; who has come in until then is to be seen after it, and nobody comes any more."""
        gate = self._spaces[space].bar(caller, max(entry.gate for _, entry in entries))
        self._gates[space] = max(self._gates[space], gate)
        for (name, entry), found in zip(entries, self._find_held(caller, entries), strict=True):
            self._tidings.append(resolved(name, entry, None if found is None else int(found.serial), gate))

    def _find_held(self, caller: ManyCaller, wanted: Sequence[tuple[str, Entry]]) -> list[Stored | None]:
        return self._find(caller, [(name, entry.space) for name, entry in wanted])

    def _find(self, caller: ManyCaller, wanted: Sequence[tuple[str, int]]) -> list[Stored | None]:
        by_space: dict[int, list[int]] = {}
        for index, (_, space) in enumerate(wanted):
            by_space.setdefault(space, []).append(index)
        works = [
            partial(_find, self._spaces[space], [wanted[index][0] for index in part])
            for space, part in by_space.items()
        ]
        found: list[Stored | None] = [None] * len(wanted)
        for part, answers in zip(by_space.values(), together(caller, works), strict=True):
            for index, answer in zip(part, answers, strict=True):
                found[index] = answer
        return found

    def _taken_tidings(self) -> list[Tiding]:
        tidings, self._tidings = self._tidings, []
        return tidings

    def _keep(self, tidings: list[Tiding]) -> None:
        """Those that may be told twice; that a try is over is counted, and left to ``tidy`` when nobody knows whether it was heard."""
        self._tidings = [tiding for tiding in tidings if tiding[0] != "T"] + self._tidings


def _commit_part(
    space: Space, gate: int | None, me: Identity, items: Sequence[Write | Delete], caller: Caller
) -> list[Result | Barred]:
    return space.commit_through(gate, caller, me, items)


def _find(space: Space, names: Sequence[str], caller: Caller) -> list[Stored | None]:
    return space.find(caller, names)


def _item(batch: Sequence[Write | Delete], index: int, tickets: dict[int, _Ticket]) -> Write | Delete:
    item, ticket = batch[index], tickets.get(index)
    if ticket is None or isinstance(item, Delete):
        return item
    return replace(item, job=replace(item.job, serial=ticket.serial))


def _expected(item: Write | Delete) -> Job:
    assert item.expected is not None
    return item.expected


def _duplicate(found: Stored) -> Result:
    try:
        return Duplicate(read_job(found))
    except StoreRefused as error:
        return error
