"""Redis Cluster: the jobs spread over several spaces, each in a slot of its own, so that queues are worked on by several servers.

``redis_spread`` composes the spaces, ``redis_births`` keeps ids and keys unique among them, ``redis_cluster_line`` finds the nodes. A
queue is in one space, so one queue is the work of one server; and a commit that brings in new jobs has one round trip more than on one
server, for the registry of ids and keys. docs/decisions/034 and 035 say why, and what a cluster does not promise.
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import trio
from msgspec import Struct

from callboard.runtime.core.errors import CallboardError, ConfigError, StoreUnavailable
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptRecord
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import (
    Claimed,
    Clock,
    Committed,
    Delete,
    Due,
    Extension,
    Held,
    JobFilter,
    News,
    Outcome,
    Page,
    Write,
)
from callboard.stores.cursors import page_cursor, read_page_cursor
from callboard.stores.redis_cluster_line import ClusterDial, ClusterLine
from callboard.stores.redis_link import NET_SECONDS, Caller, Ear, Link
from callboard.stores.redis_space import Identity, SpaceState
from callboard.stores.redis_spread import Spread
from callboard.stores.redis_together import ManyCaller
from callboard.stores.redis_url import RedisSettings

__all__ = ["RedisClusterStore"]

CLOSING_SECONDS: Final = 2.0
"""What is left to be told to the registry when the store is closed may take so long."""

_CURSOR: Final = re.compile(r"n(?:[0-9]{1,19}\.[0-9]{1,19}_)*[0-9]{1,19}\.[0-9]{1,19}")

T = TypeVar("T")


class _Opened(Struct, frozen=True):
    """What an open store holds."""

    link: Link
    me: Identity


class _Point(Struct):
    """How far the news of each space were read."""

    positions: list[int]
    changes: list[int]

    def cursor(self) -> str:
        return "n" + "_".join(
            f"{position}.{changes}" for position, changes in zip(self.positions, self.changes, strict=True)
        )

    @staticmethod
    def of_cursor(cursor: str, spaces: int) -> "_Point":
        pairs = cursor[1:].split("_") if _CURSOR.fullmatch(cursor) else []
        if len(pairs) != spaces:
            raise ValueError("not a cursor of this store: leave it out to begin at the start")
        numbers = [pair.split(".") for pair in pairs]
        return _Point([int(position) for position, _ in numbers], [int(changes) for _, changes in numbers])

    @staticmethod
    def of_states(states: Sequence[SpaceState]) -> "_Point":
        return _Point([state.position for state in states], [state.queue_changes for state in states])


class RedisClusterStore:
    """A store in the Redis Cluster that ``settings`` names, or that URL.

    ``clock`` gives milliseconds since the epoch, for tests; by default leases and due times go by the clock of the queue's server.
    Raises ConfigError for a URL that cannot be meant, or is of no cluster.
    """

    def __init__(self, settings: RedisSettings | str, *, clock: Clock | None = None) -> None:
        self._settings = RedisSettings.of_url(settings) if isinstance(settings, str) else settings
        if self._settings.kind != "cluster":
            raise ConfigError("that is no Redis Cluster: use callboard.stores.redis.RedisStore, or open_store(url)")
        self._channel = f"{self._settings.prefix}:news"
        self._spread = Spread(self._settings.prefix, self._settings.spaces, channel=self._channel, clock=clock)
        self._opened: _Opened | None = None
        self._heard: int | None = None
        """The generation of the ear at the last look at the news."""

    async def open(self, *, worker: str, max_events_per_job: int, max_attempts_per_job: int) -> None:
        link = Link(self._settings, channel=self._channel, dial=ClusterDial(self._settings), line=ClusterLine)
        await link.open()
        try:
            await link.write(lambda caller: self._spread.open(_many(caller)))
        except BaseException:
            with trio.CancelScope(shield=True):
                await link.aclose()
            raise
        self._opened = _Opened(link, Identity(worker, max_events_per_job, max_attempts_per_job))

    async def aclose(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            with trio.move_on_after(CLOSING_SECONDS, shield=True):
                try:
                    await opened.link.write(self._spread.births.tell)
                except StoreUnavailable:
                    # Others find it.
                    pass
            await opened.link.aclose()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome | CallboardError]:
        return await self._write(lambda caller, me: self._spread.commit(caller, me, batch))

    async def claim(
        self, *, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int
    ) -> Sequence[Claimed]:
        def claim(caller: ManyCaller, me: Identity) -> list[Claimed]:
            return self._spread.claim(caller, me, queues=queues, names=names, limit=limit, lease_ms=lease_ms)

        return await self._write(claim)

    async def extend(self, held: Sequence[Held], *, lease_ms: int) -> Sequence[Extension]:
        return await self._write(lambda caller, _: self._spread.extend(caller, held, lease_ms=lease_ms))

    async def lapse(self, *, limit: int) -> Sequence[Committed]:
        return await self._write(lambda caller, me: self._spread.lapse(caller, me, limit=limit))

    async def prune(self, *, ended_before_ms: int, limit: int) -> int:
        def prune(caller: ManyCaller, _: Identity) -> int:
            return self._spread.prune(caller, ended_before_ms=ended_before_ms, limit=limit)

        return await self._write(prune)

    async def set_paused(self, queue: str, paused: bool) -> bool:
        return await self._write(lambda caller, me: self._spread.set_paused(caller, me, queue, paused))

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        return await self._read(lambda caller: self._spread.get(caller, job_ids))

    async def list(self, where: JobFilter, *, cursor: str | None, limit: int) -> Page:
        below = read_page_cursor(cursor)
        jobs = await self._read(lambda caller: self._spread.page(caller, where, below=below, limit=limit + 1))
        return Page(tuple(jobs[:limit]), page_cursor(jobs[limit - 1].serial) if len(jobs) > limit else None)

    async def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        return await self._read(lambda caller: self._spread.events(caller, job_id, after=after, limit=limit))

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        return await self._read(lambda caller: self._spread.attempts(caller, job_id))

    async def next_due(self) -> Due:
        return await self._read(self._spread.next_due)

    async def counts(self) -> dict[tuple[str, Status], int]:
        return {pair: count for state in await self._states() for pair, count in state.counts.items()}

    async def ready(self, *, up_to: int) -> dict[tuple[str, str], int]:
        return await self._read(lambda caller: self._spread.ready(caller, up_to=up_to))

    async def paused(self) -> Sequence[str]:
        return sorted(queue for state in await self._states() for queue in state.paused)

    async def now_ms(self) -> int:
        return await self._read(self._spread.registry.now_ms)

    async def wait_news(self, cursor: str | None) -> News:
        if cursor is None:
            return News(cursor=_Point.of_states(await self._states()).cursor())
        while True:
            opened = self._connected()
            point = _Point.of_cursor(cursor, self._settings.spaces)
            found = await opened.link.news(_listener(self._spread, opened.me, point))
            is_same_ear = self._heard in (None, found.generation)
            self._heard = found.generation
            cursor = point.cursor()
            if found.events or not found.complete or not is_same_ear or found.queues_changed:
                return News(
                    cursor=cursor,
                    events=found.events,
                    # A node that was away may have come back, or another in its place, without the last that it was told.
                    complete=found.complete and is_same_ear,
                    queues_changed=found.queues_changed,
                )

    def _connected(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailable("the store is not open")
        return self._opened

    async def _write(self, verb: Callable[[ManyCaller, Identity], T]) -> T:
        opened = self._connected()
        return await opened.link.write(lambda caller: verb(_many(caller), opened.me))

    async def _read(self, verb: Callable[[ManyCaller], T]) -> T:
        return await self._connected().link.read(lambda caller: verb(_many(caller)))

    async def _states(self) -> Sequence[SpaceState]:
        return await self._read(self._spread.states)


def _many(caller: Caller) -> ManyCaller:
    assert isinstance(caller, ClusterLine)
    return caller


class _Heard(Struct, frozen=True):
    events: tuple[Event, ...]
    complete: bool
    queues_changed: bool
    is_all: bool
    generation: int


def _listener(spread: Spread, me: Identity, point: _Point) -> Callable[[Caller, Ear], _Heard]:
    """Look at the news of all spaces, and where there are none wait for a message, a second at most, and look again. Moves ``point``."""

    def look(caller: Caller, ear: Ear, numbers: Sequence[int]) -> _Heard:
        events: list[Event] = []
        complete, queues_changed, is_all = True, False, True
        for number, found in spread.news(_many(caller), me, point.positions, numbers).items():
            events += found.events
            complete = complete and found.complete
            is_all = is_all and found.is_all
            queues_changed = queues_changed or found.queue_changes != point.changes[number]
            point.positions[number], point.changes[number] = found.position, found.queue_changes
        return _Heard(tuple(events), complete, queues_changed, is_all, ear.generation)

    def listen(caller: Caller, ear: Ear) -> _Heard:
        everywhere = range(len(spread.spaces))
        ear.listen(0)  # subscribed before the look: what comes after it is heard
        found = look(caller, ear, everywhere)
        # Where there is more, own commits took all the room: to wait then would be to fall behind them.
        if not found.events and found.complete and not found.queues_changed and found.is_all:
            found = look(caller, ear, _wait_for_others(ear, me) or everywhere)
        return found

    return listen


def _wait_for_others(ear: Ear, me: Identity) -> list[int]:
    """The spaces in which another has done something."""
    own = me.worker.encode()
    until = time.monotonic() + NET_SECONDS
    while (seconds := until - time.monotonic()) > 0:
        heard = [payload.split(b" ", 1) for payload in ear.listen(seconds)]
        if numbers := {int(number) for number, origin in heard if origin != own}:
            return sorted(numbers)
    return []
