"""The engine for several machines: jobs in a Redis server, or the master that Sentinel names. Also Valkey.

All of a store is one space (``redis_space``) on one server; ``redis_link`` has the connections. Every verb is one hop to a thread and one
script, so it takes effect whole or not at all.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

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
from callboard.stores.cursors import news_cursor, page_cursor, read_news_cursor, read_page_cursor
from callboard.stores.redis_link import NET_SECONDS, Caller, Ear, Link
from callboard.stores.redis_space import Identity, Slice, Space, SpaceNews, SpaceState
from callboard.stores.redis_url import RedisSettings

__all__ = ["RedisStore"]

T = TypeVar("T")


class _Opened(Struct, frozen=True):
    """What an open store holds."""

    link: Link
    me: Identity


class RedisStore:
    """A store in the Redis server that ``settings`` names, or that URL: standalone, or the master of a Sentinel service.

    ``clock`` gives milliseconds since the epoch, for tests; by default time is the server's. Raises ConfigError for a URL that cannot be
    meant and for Redis Cluster, which is ``RedisClusterStore``.
    """

    def __init__(self, settings: RedisSettings | str, *, clock: Clock | None = None) -> None:
        self._settings = RedisSettings.of_url(settings) if isinstance(settings, str) else settings
        if self._settings.kind == "cluster":
            raise ConfigError(
                "that is Redis Cluster: use callboard.stores.redis_cluster.RedisClusterStore, or open_store(url)"
            )
        self._channel = f"{self._settings.prefix}:news"
        self._space = Space(f"{{{self._settings.prefix}}}:", channel=self._channel, clock=clock)
        self._opened: _Opened | None = None
        self._heard: int | None = None
        """The subscription of the last look at the news."""
        self._followed: tuple[int, str] | None = None
        """The same, with the cursor up to which nothing was left to see."""

    async def open(self, *, worker: str, max_events_per_job: int, max_attempts_per_job: int) -> None:
        link = Link(self._settings, channel=self._channel)
        await link.open()
        try:
            await link.write(self._space.open)
        except BaseException:
            with trio.CancelScope(shield=True):
                await link.aclose()
            raise
        self._opened = _Opened(link, Identity(worker, max_events_per_job, max_attempts_per_job))

    async def aclose(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.link.aclose()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def commit(self, batch: Sequence[Write | Delete]) -> Sequence[Outcome | CallboardError]:
        return await self._write(lambda caller, me: self._space.commit(caller, me, batch))

    async def claim(
        self, *, queues: Sequence[str], names: Sequence[str], limit: int, lease_ms: int
    ) -> Sequence[Claimed]:
        def claim(caller: Caller, me: Identity) -> list[Claimed]:
            return self._space.claim(caller, me, queues=queues, names=names, limit=limit, lease_ms=lease_ms)

        return await self._write(claim)

    async def extend(self, held: Sequence[Held], *, lease_ms: int) -> Sequence[Extension]:
        return await self._write(lambda caller, _: self._space.extend(caller, held, lease_ms=lease_ms))

    async def lapse(self, *, limit: int) -> Sequence[Committed]:
        return await self._write(lambda caller, me: self._space.lapse(caller, me, limit=limit))

    async def prune(self, *, ended_before_ms: int, limit: int) -> int:
        def prune(caller: Caller, _: Identity) -> int:
            return len(self._space.prune(caller, ended_before_ms=ended_before_ms, limit=limit))

        return await self._write(prune)

    async def set_paused(self, queue: str, paused: bool) -> bool:
        return await self._write(lambda caller, me: self._space.set_paused(caller, me, queue, paused))

    async def get(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        return await self._read(lambda caller: self._space.get(caller, job_ids))

    async def list(self, where: JobFilter, *, cursor: str | None, limit: int) -> Page:
        below: int | None = read_page_cursor(cursor)
        jobs: list[Job] = []
        while below is not None and len(jobs) <= limit:
            part = await self._read(_slicer(self._space, where, below, limit + 1 - len(jobs)))
            jobs += part.jobs
            below = part.below
        return Page(tuple(jobs[:limit]), page_cursor(jobs[limit - 1].serial) if len(jobs) > limit else None)

    async def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        return await self._read(lambda caller: self._space.events(caller, job_id, after=after, limit=limit))

    async def attempts(self, job_id: str) -> Sequence[AttemptRecord]:
        return await self._read(lambda caller: self._space.attempts(caller, job_id))

    async def next_due(self) -> Due:
        return (await self._state()).due

    async def counts(self) -> dict[tuple[str, Status], int]:
        return (await self._state()).counts

    async def ready(self, *, up_to: int) -> dict[tuple[str, str], int]:
        return await self._read(lambda caller: self._space.ready(caller, up_to=up_to))

    async def paused(self) -> Sequence[str]:
        return (await self._state()).paused

    async def now_ms(self) -> int:
        return (await self._state()).now_ms

    async def wait_news(self, cursor: str | None) -> News:
        if cursor is None:
            # By the lane that follows: of a server that is lost from here on it knows that it was another one.
            state, self._heard = await self._connected().link.news(
                lambda caller, ear: (self._space.state(caller), ear.generation)
            )
            return News(cursor=news_cursor(state.position, state.queue_changes))
        while True:
            opened = self._connected()
            news = await opened.link.news(_listener(self._space, opened.me, cursor, self._followed))
            self._followed = (news.generation, news.cursor) if news.found.is_all else None
            is_same_ear = self._heard in (None, news.generation)
            self._heard = news.generation
            if news.found.events or not news.found.complete or not is_same_ear or news.queues_changed:
                return News(
                    cursor=news.cursor,
                    events=tuple(news.found.events),
                    # A server that was away may have come back without the last that it was told.
                    complete=news.found.complete and is_same_ear,
                    queues_changed=news.queues_changed,
                )
            cursor = news.cursor

    def _connected(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailable("the store is not open")
        return self._opened

    async def _write(self, verb: Callable[[Caller, Identity], T]) -> T:
        opened = self._connected()
        return await opened.link.write(lambda caller: verb(caller, opened.me))

    async def _read(self, verb: Callable[[Caller], T]) -> T:
        return await self._connected().link.read(verb)

    async def _state(self) -> SpaceState:
        return await self._read(self._space.state)


class _Heard(Struct, frozen=True):
    found: SpaceNews
    generation: int
    cursor: str
    queues_changed: bool


def _listener(
    space: Space, me: Identity, cursor: str, followed: tuple[int, str] | None
) -> Callable[[Caller, Ear], _Heard]:
    """Look at the news once someone has said that there are some, or a second has passed.

    Who has not ``followed`` them up to the cursor by this subscription looks at once: what was said before it is not heard.
    """
    position, queues = read_news_cursor(cursor)

    def listen(caller: Caller, ear: Ear) -> _Heard:
        is_told = _is_of_others(ear.listen(0), me)
        found = None
        if is_told or followed != (ear.generation, cursor):
            found = space.news(caller, me, position)
        # Where there is more, own commits took all the room: to wait then would be to fall behind them.
        if found is None or not (
            found.events or not found.complete or not found.is_all or found.queue_changes != queues
        ):
            _wait_for_others(ear, me)
            found = space.news(caller, me, position)
        changes = found.queue_changes
        return _Heard(found, ear.generation, news_cursor(found.position, changes), changes != queues)

    return listen


def _is_of_others(payloads: Sequence[bytes], me: Identity) -> bool:
    own = me.worker.encode()
    return any(payload != own for payload in payloads)


def _wait_for_others(ear: Ear, me: Identity) -> None:
    until = time.monotonic() + NET_SECONDS
    while (seconds := until - time.monotonic()) > 0:
        if _is_of_others(ear.listen(seconds), me):
            return


def _slicer(space: Space, where: JobFilter, below: int, limit: int) -> Callable[[Caller], Slice]:
    return lambda caller: space.list_slice(caller, where, below=below, limit=limit)
