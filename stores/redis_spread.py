"""Every verb of the store protocol over the spaces of a cluster, synchronous. Commits are ``redis_births``'; the lanes ``redis_cluster``'s.

A queue's jobs are in the space that its name hashes to. A fence tells its space (its remainder), an id the registry.
"""

from binascii import crc_hqx
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final

from redis.exceptions import RedisError

from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Claimed, Clock, Committed, Delete, Due, Extension, Held, JobFilter, Write
from callboard.stores.redis_births import DOUBT_MS, Births, Result
from callboard.stores.redis_cluster_line import channel_of
from callboard.stores.redis_link import Caller
from callboard.stores.redis_registry import Registry
from callboard.stores.redis_space import MAX_ITEMS, Head, Identity, Slice, Space, SpaceNews, SpaceState
from callboard.stores.redis_together import ManyCaller, apart, reachable, together

__all__ = ["Spread"]

MAX_BEATEN: Final = 10
"""How often a claim over several spaces looks again because another process was faster."""

_MAX_HOMES: Final = 10_000
_DOUBTS: Final = 200


class Spread:
    """The spaces ``{prefix:0}`` ... and the registry ``{prefix:ids}``."""

    def __init__(self, prefix: str, spaces: int, *, channel: str, clock: Clock | None) -> None:
        self.spaces = [
            Space(
                f"{{{prefix}:{number}}}:",
                channel=channel_of(channel, number),
                clock=clock,
                spaces=spaces,
                number=number,
            )
            for number in range(spaces)
        ]
        self.registry = Registry(f"{{{prefix}:ids}}:", clock=clock)
        self.births = Births(self.spaces, self.registry, self.space_of)
        self._homes: dict[str, int] = {}
        """id -> where it was seen; the read lane's. Who is not there is asked for at the registry."""
        self._overdue: frozenset[int] = frozenset()
        """Spaces where something has fallen due that no claim has looked at."""

    def space_of(self, queue: str) -> int:
        """Where that queue's jobs are."""
        return crc_hqx(queue.encode(), 0) % len(self.spaces)

    def open(self, caller: ManyCaller) -> None:
        """Lay out what is missing. Raises StoreRefused."""
        self.registry.open(caller, len(self.spaces))
        together(caller, [space.open for space in self.spaces])

    # Writes

    def commit(self, caller: ManyCaller, me: Identity, batch: Sequence[Write | Delete]) -> list[Result]:
        """``Store.commit``."""
        return self.births.commit(caller, me, batch)

    def claim(
        self,
        caller: ManyCaller,
        me: Identity,
        *,
        queues: Sequence[str],
        names: Sequence[str],
        limit: int,
        lease_ms: int,
    ) -> list[Claimed]:
        """``Store.claim``: of several spaces, first look at the heads of all, then take the best of them where they are.

        What is taken from a space never stands behind the last that was chosen, so nothing of a lower priority is taken because
        another process was faster; the rest is looked for again. A space that cannot be reached holds up nobody but its own queues.
        """
        wanted: dict[int, list[str]] = {}
        for queue in queues:
            wanted.setdefault(self.space_of(queue), []).append(queue)
        others = [self.spaces[number] for number in self._overdue if number not in wanted]
        if others:
            # It makes ready what fell due there, for whoever takes from those queues.
            apart(caller, [partial(_peek, space, (), (), 1) for space in others])
        if len(wanted) == 1:
            ((number, theirs),) = wanted.items()
            return self.spaces[number].claim(caller, me, queues=theirs, names=names, limit=limit, lease_ms=lease_ms)
        return self._claim_of_several(caller, me, wanted, names, limit, lease_ms)

    def _claim_of_several(
        self,
        caller: ManyCaller,
        me: Identity,
        wanted: dict[int, list[str]],
        names: Sequence[str],
        limit: int,
        lease_ms: int,
    ) -> list[Claimed]:
        claims: list[Claimed] = []
        beaten = 0
        while len(claims) < limit and beaten < MAX_BEATEN:
            missing = min(limit - len(claims), MAX_ITEMS)
            try:
                peeks = [partial(_peek, self.spaces[number], wanted[number], names, missing) for number in wanted]
                heads = zip(wanted, reachable(caller, peeks), strict=True)
                chosen = sorted((head, number) for number, found in heads for head in found or ())[:missing]
                sizes = Counter(number for _, number in chosen)
                takes = [
                    partial(_claim, self.spaces[number], me, wanted[number], names, size, lease_ms, chosen[-1][0])
                    for number, size in sizes.items()
                ]
                taken = [claim for part in reachable(caller, takes) for claim in part or ()]
            except RedisError:
                if not claims:
                    raise
                # What was taken is told, whatever happened since.
                break
            claims += taken
            if len(taken) == len(chosen) < missing:
                break
            beaten += len(taken) < len(chosen)
        return sorted(claims, key=lambda claim: (-claim.job.priority, claim.job.serial))

    def extend(self, caller: ManyCaller, held: Sequence[Held], *, lease_ms: int) -> list[Extension]:
        """``Store.extend``."""
        by_space: dict[int, list[int]] = {}
        for index, lease in enumerate(held):
            by_space.setdefault(lease.fence % len(self.spaces), []).append(index)
        works = [
            partial(_extend, self.spaces[number], [held[index] for index in part], lease_ms)
            for number, part in by_space.items()
        ]
        answers = [Extension(held=False)] * len(held)
        for part, found in zip(by_space.values(), together(caller, works), strict=True):
            for index, answer in zip(part, found, strict=True):
                answers[index] = answer
        return answers

    def lapse(self, caller: ManyCaller, me: Identity, *, limit: int) -> list[Committed]:
        """``Store.lapse``. It comes round about once a second, so it also tells and settles what commits have left behind."""
        states = reachable(caller, [space.state for space in self.spaces])
        overdue = sorted(
            (state.due.lease_ms, number)
            for number, state in enumerate(states)
            if state is not None and state.due.lease_ms is not None and state.due.lease_ms <= state.now_ms
        )
        lapsed: list[Committed] = []
        failed: RedisError | None = None
        for _, number in overdue:
            try:
                lapsed += self.spaces[number].lapse(caller, me, limit=limit - len(lapsed))
            except RedisError as error:
                failed = error
            if len(lapsed) >= limit:
                break
        # What has lapsed in one space is told, whatever happened in another.
        if failed is not None and not lapsed:
            raise failed
        self._keep_house(caller)
        return lapsed

    def prune(self, caller: ManyCaller, *, ended_before_ms: int, limit: int) -> int:
        """``Store.prune``."""
        count = 0
        for number, space in enumerate(self.spaces):
            if count < limit:
                removed = space.prune(caller, ended_before_ms=ended_before_ms, limit=limit - count)
                self.births.removed(number, removed)
                count += len(removed)
        self.births.tell(caller)
        if count < limit:
            self.births.stroll(caller)
        return count

    def set_paused(self, caller: ManyCaller, me: Identity, queue: str, paused: bool) -> bool:
        """``Store.set_paused``."""
        return self.spaces[self.space_of(queue)].set_paused(caller, me, queue, paused)

    def _keep_house(self, caller: ManyCaller) -> None:
        try:
            self.births.tell(caller)
            self.births.tidy(caller, self.registry.doubts(caller, older_than_ms=DOUBT_MS, limit=_DOUBTS))
        except RedisError:
            # It has time, and the jobs that have lapsed have to be told.
            pass

    # Reads

    def get(self, caller: ManyCaller, job_ids: Sequence[str]) -> list[Job | None]:
        """``Store.get``."""
        found: dict[str, Job] = {}
        self._get_from(caller, {job_id: self._homes[job_id] for job_id in job_ids if job_id in self._homes}, found)
        missing = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in found]
        self._get_from(caller, self._find_homes(caller, missing), found)
        return [found.get(job_id) for job_id in job_ids]

    def events(self, caller: ManyCaller, job_id: str, *, after: int, limit: int) -> list[Event]:
        """``Store.events``."""
        number = self._homes.get(job_id)
        if number is not None and (events := self.spaces[number].events(caller, job_id, after=after, limit=limit)):
            return events
        number = self._find_homes(caller, [job_id]).get(job_id)
        return [] if number is None else self.spaces[number].events(caller, job_id, after=after, limit=limit)

    def attempts(self, caller: ManyCaller, job_id: str) -> list[AttemptRecord]:
        """``Store.attempts``."""
        number = self._homes.get(job_id)
        if number is not None and (attempts := self.spaces[number].attempts(caller, job_id)):
            return attempts
        number = self._find_homes(caller, [job_id]).get(job_id)
        return [] if number is None else self.spaces[number].attempts(caller, job_id)

    def page(self, caller: ManyCaller, where: JobFilter, *, below: int, limit: int) -> list[Job]:
        """The first ``limit`` jobs under that serial, newest first, of all spaces: serials are the registry's, so no two are equal."""
        numbers = range(len(self.spaces)) if where.queue is None else [self.space_of(where.queue)]
        streams = [_Stream(self.spaces[number], below) for number in numbers]
        some = limit if len(streams) == 1 else max(4, 2 * limit // len(streams))
        page: list[Job] = []
        while len(page) < limit:
            while dry := [stream for stream in streams if not stream.jobs and stream.below is not None]:
                slices = together(caller, [partial(stream.read, where, some) for stream in dry])
                for stream, part in zip(dry, slices, strict=True):
                    stream.jobs, stream.below = part.jobs[::-1], part.below
            full = [stream for stream in streams if stream.jobs]
            if not full:
                break
            page.append(max(full, key=lambda stream: stream.jobs[-1].serial).jobs.pop())
        return page

    def states(self, caller: ManyCaller) -> list[SpaceState]:
        """The state of each space."""
        states = together(caller, [space.state for space in self.spaces])
        self._overdue = frozenset(
            number
            for number, state in enumerate(states)
            if state.due.scheduled_ms is not None and state.due.scheduled_ms <= state.now_ms
        )
        return states

    def next_due(self, caller: ManyCaller) -> Due:
        """``Store.next_due``."""
        dues = [state.due for state in self.states(caller)]
        scheduled = [due.scheduled_ms for due in dues if due.scheduled_ms is not None]
        leases = [due.lease_ms for due in dues if due.lease_ms is not None]
        return Due(min(scheduled, default=None), min(leases, default=None))

    def ready(self, caller: ManyCaller, *, up_to: int) -> dict[tuple[str, str], int]:
        """``Store.ready``."""
        parts = together(caller, [partial(_ready, space, up_to) for space in self.spaces])
        return {pair: count for part in parts for pair, count in part.items()}

    def news(
        self, caller: ManyCaller, me: Identity, positions: Sequence[int], numbers: Sequence[int]
    ) -> dict[int, SpaceNews]:
        """What others committed in those spaces after the positions."""
        works = [partial(_news, self.spaces[number], me, positions[number]) for number in numbers]
        return dict(zip(numbers, together(caller, works), strict=True))

    def _get_from(self, caller: ManyCaller, homes: dict[str, int], found: dict[str, Job]) -> None:
        by_space: dict[int, list[str]] = {}
        for job_id, number in homes.items():
            by_space.setdefault(number, []).append(job_id)
        works = [partial(_get, self.spaces[number], part) for number, part in by_space.items()]
        for (number, part), jobs in zip(by_space.items(), together(caller, works), strict=True):
            for job_id, job in zip(part, jobs, strict=True):
                if job is not None:
                    found[job_id] = job
                    self._remember(job_id, number)

    def _find_homes(self, caller: Caller, job_ids: Sequence[str]) -> dict[str, int]:
        if not job_ids:
            return {}
        entries = self.registry.entries(caller, [f"i{job_id}" for job_id in job_ids])
        return {job_id: entry.space for job_id, entry in zip(job_ids, entries, strict=True) if entry is not None}

    def _remember(self, job_id: str, number: int) -> None:
        self._homes.pop(job_id, None)
        self._homes[job_id] = number
        if len(self._homes) > _MAX_HOMES:
            del self._homes[next(iter(self._homes))]


class _Stream:
    """The jobs of one space, newest first; ``jobs`` holds the next, the first of them at its end."""

    def __init__(self, space: Space, below: int) -> None:
        self.jobs: list[Job] = []
        self.below: int | None = below
        self._space = space

    def read(self, where: JobFilter, limit: int, caller: Caller) -> Slice:
        assert self.below is not None
        return self._space.list_slice(caller, where, below=self.below, limit=limit)


def _peek(space: Space, queues: Sequence[str], names: Sequence[str], limit: int, caller: Caller) -> list[Head]:
    return space.peek(caller, queues=queues, names=names, limit=limit)


def _claim(
    space: Space,
    me: Identity,
    queues: Sequence[str],
    names: Sequence[str],
    limit: int,
    lease_ms: int,
    last: Head,
    caller: Caller,
) -> list[Claimed]:
    return space.claim(caller, me, queues=queues, names=names, limit=limit, lease_ms=lease_ms, last=last)


def _extend(space: Space, held: Sequence[Held], lease_ms: int, caller: Caller) -> list[Extension]:
    return space.extend(caller, held, lease_ms=lease_ms)


def _get(space: Space, job_ids: Sequence[str], caller: Caller) -> list[Job | None]:
    return space.get(caller, job_ids)


def _ready(space: Space, up_to: int, caller: Caller) -> dict[tuple[str, str], int]:
    return space.ready(caller, up_to=up_to)


def _news(space: Space, me: Identity, position: int, caller: Caller) -> SpaceNews:
    return space.news(caller, me, position)
