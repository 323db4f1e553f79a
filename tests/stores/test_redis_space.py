"""What the Redis store does beyond the protocol: its keys and their ends, its marks and ticks, full memory, records that cannot be read."""

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import trio
from msgspec import Raw
from msgspec.structs import replace
from tests.redis_servers import RedisServer, RedisServers

from callboard.runtime.core.commands import Report, Succeed
from callboard.runtime.core.errors import ConfigError, StoreRefused, StoreUnavailable
from callboard.runtime.core.events import LogEntry
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import Claimed, Delete, Held, JobFilter, News, Write
from callboard.stores import redis_scripts, redis_space
from callboard.stores.conformance_bench import (
    after,
    apply,
    birth,
    cancel,
    committed,
    job,
    kinds,
    one,
    progress,
    submit,
    succeed,
    taken,
)
from callboard.stores.redis import RedisStore

LEASE_MS: Final = 10_000


@asynccontextmanager
async def opened(
    server: RedisServer, worker: str = "w", *, options: str = "", clock: Callable[[], int] | None = None
) -> AsyncIterator[RedisStore]:
    store = RedisStore(f"{server.url}{options}", clock=clock)
    await store.open(worker=worker, max_events_per_job=100, max_attempts_per_job=100)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


async def claim(store: RedisStore, limit: int = 10, *, lease_ms: int = LEASE_MS) -> list[Claimed]:
    return list(await store.claim(queues=["default"], names=["send"], limit=limit, lease_ms=lease_ms))


def notes(client: redis.Redis) -> list[dict[bytes, bytes]]:
    found: Any = client.xrange("{callboard}:notes")
    return [fields for _, fields in found]


def keys(client: redis.Redis) -> set[str]:
    found: Any = client.keys("*")
    return {key.decode() for key in found}


# Keys


async def test_every_key_has_an_end_so_that_retention_frees_what_a_job_took(redis_server: RedisServer) -> None:
    client = redis_server.client()
    async with opened(redis_server) as store:
        writes = [birth(number, key=f"k{number}", owner=f"o{number % 7}", priority=number % 3) for number in range(500)]
        writes += [birth(number, status=Status.SCHEDULED, due_ms=1, queue="later") for number in range(500, 600)]
        writes += [birth(600, queue="a:b/c", name="x:y")]
        assert set(kinds(await store.commit(writes))) == {"Committed"}
        claimed = await claim(store, 500)
        claimed += await store.claim(queues=["later", "a:b/c"], names=["send", "x:y"], limit=500, lease_ms=LEASE_MS)
        assert len(claimed) == 601
        await store.commit([after(item.job, progress(50), succeed()) for item in claimed])
        assert len(keys(client)) > 601 * 3
        assert await store.prune(ended_before_ms=2**50, limit=1000) == 601
        assert keys(client) == {"{callboard}:meta", "{callboard}:notes"}
        # A note holds no more than an id and numbers: nothing of what a job carried is left.
        assert len(notes(client)) <= 20
        assert not [text for fields in notes(client) for text in fields.values() if b"number" in text]


async def test_a_purge_leaves_nothing_whatever_state_the_job_is_in(redis_server: RedisServer) -> None:
    client = redis_server.client()
    async with opened(redis_server) as store:
        await submit(store, 1, 2, owner="anna")
        (claimed,) = await claim(store, 1)
        waiting = await one(store, job(2).id)
        assert waiting is not None
        (scheduled,) = await submit(store, 3, status=Status.SCHEDULED, due_ms=2**41, key="k")
        (ended,) = await submit(store, 4)
        ended = await apply(store, ended, cancel())
        assert set(
            kinds(await store.commit([Delete(expected=x) for x in (claimed.job, waiting, scheduled, ended)]))
        ) == {"Committed"}
        assert keys(client) == {"{callboard}:meta", "{callboard}:notes"}


async def test_two_stores_share_a_server_by_their_prefixes(redis_server: RedisServer) -> None:
    async with (
        opened(redis_server, options="?prefix=a") as one_store,
        opened(redis_server, options="?prefix=b") as other,
    ):
        await submit(one_store, 1)
        assert await one(other, job(1).id) is None
        await submit(other, 1)
        assert taken(await claim(one_store)) == [1]
        assert taken(await claim(other)) == [1]
    assert {key.split(":")[0] for key in keys(redis_server.client())} == {"{a}", "{b}"}


async def test_a_space_of_another_layout_is_refused(redis_server: RedisServer) -> None:
    for layout, words in (("99", "upgrade callboard"), ("0", "prefix")):
        redis_server.client().hset("{callboard}:meta", "layout", layout)
        with pytest.raises(StoreRefused, match=words):
            async with opened(redis_server):
                raise AssertionError("it must not open")


def test_a_cluster_is_for_the_other_store() -> None:
    with pytest.raises(ConfigError, match="RedisClusterStore"):
        RedisStore("redis+cluster://127.0.0.1:1")


def test_no_script_blocks_or_names_a_key_outside_of_its_space() -> None:
    for script in redis_scripts.SCRIPTS:
        commands = set(re.findall(r"call\('([A-Z]+)'", script.text))
        assert not commands & {"BLPOP", "BRPOP", "BLMOVE", "BZPOPMIN", "BZPOPMAX", "KEYS", "SCAN", "FLUSHALL"}
        assert not re.findall(r"call\('(?!HGET|TIME)[A-Z]+', '", script.text), "a key that does not begin with the tag"


# Ticks


async def test_ticks_grow_past_a_server_that_forgot_and_a_clock_that_stands(redis_server: RedisServer) -> None:
    async with opened(redis_server, clock=lambda: 5_000) as store:
        await submit(store, 1, 2, 3)
        first = await claim(store)
        ticks = [item.job.serial for item in first] + [item.job.fence for item in first]
        assert ticks == list(range(5_000_000, 5_000_006)) and sorted(set(ticks)) == ticks
    # A failover or a crash may take back the last writes, and with them the counter: time is past it all the same.
    redis_server.client().hdel("{callboard}:meta", "tick")
    async with opened(redis_server, clock=lambda: 5_001) as store:
        (again,) = await submit(store, 4)
        assert again.serial == 5_001_000 > max(ticks)


async def test_ticks_of_the_servers_own_time_are_microseconds(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        now_ms = await store.now_ms()
        jobs = await submit(store, *range(300))
        assert all(0 <= found.serial // 1000 - now_ms < 60_000 for found in jobs)
        assert all(earlier.serial < later.serial for earlier, later in pairwise(jobs))


# News


async def told(store: RedisStore, cursor: str, *, seconds: float = 10) -> News:
    with trio.fail_after(seconds):
        return await store.wait_news(cursor)


async def test_what_was_cut_off_the_notes_is_told_as_missing(redis_server: RedisServer) -> None:
    async with opened(redis_server, "a") as here, opened(redis_server, "b") as there:
        cursor = (await here.wait_news(None)).cursor
        await submit(there, *range(150))
        # What the script does by itself after 20,000 events.
        redis_server.client().xtrim("{callboard}:notes", maxlen=0, approximate=False)
        news = await told(here, cursor)
        assert (news.complete, news.events) == (False, ())
        await submit(there, 500)
        news = await told(here, news.cursor)
        assert news.complete and [event.job_id for event in news.events] == [job(500).id]


async def test_the_notes_are_bounded(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        (current,) = await submit(store, 1)
        (claimed,) = await claim(store)
        current = claimed.job
        logs = tuple(LogEntry("info", str(number)) for number in range(500))
        for _ in range(60):
            write = after(current, Report(now_ms=0, logs=logs))
            current = committed((await store.commit([write]))[0]).job
        sizes = [int(fields[b"size"]) for fields in notes(redis_server.client())]
        assert 20_000 <= sum(sizes) < 30_000 + 100 * 500
        assert len(await store.events(current.id, after=0, limit=1000)) == 100


async def test_events_that_a_job_no_longer_has_are_told_as_missing(redis_server: RedisServer) -> None:
    async with opened(redis_server, "a") as here, opened(redis_server, "b") as there:
        cursor = (await here.wait_news(None)).cursor
        (gone, kept) = await submit(there, 1, 2)
        await there.commit([Delete(expected=gone)])
        news = await told(here, cursor)
        assert not news.complete and [event.job_id for event in news.events] == [kept.id]


async def test_own_commits_do_not_wake(redis_server: RedisServer) -> None:
    async with opened(redis_server, "a") as here, opened(redis_server, "b") as there:
        cursor = (await here.wait_news(None)).cursor
        woken = trio.Event()
        news: list[News] = []

        async def listen() -> None:
            news.append(await told(here, cursor))
            woken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for number in range(20):
                await submit(here, number)
            assert not woken.is_set()
            await submit(there, 100)
        assert [event.job_id for event in news[0].events] == [job(100).id]


async def test_a_listener_looks_once_for_each_commit(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a commit costs the server grows with those who listen."""
    monkeypatch.setattr("callboard.stores.redis.NET_SECONDS", 60.0)
    async with opened(redis_server, "a") as here, opened(redis_server, "b") as there:
        looks = 0
        look = here._space.news

        def counted(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            return look(*arguments)

        here._space.news = counted  # type: ignore
        cursor = (await here.wait_news(None)).cursor
        await submit(there, 0)
        cursor = (await told(here, cursor)).cursor
        looks = 0
        for number in range(1, 11):
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    nonlocal cursor
                    news = await told(here, cursor)
                    assert [event.job_id for event in news.events] == [job(number).id]  # noqa: B023
                    cursor = news.cursor

                nursery.start_soon(listen)
                await trio.sleep(0.1)  # it listens by now, without having looked
                await submit(there, number)
        assert looks == 10


async def test_a_partial_answer_is_read_on_at_once(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.stores.redis.NET_SECONDS", 60.0)
    async with opened(redis_server, "a") as here, opened(redis_server, "b") as there:
        cursor = (await here.wait_news(None)).cursor
        await submit(there, 5000)
        cursor = (await told(here, cursor)).cursor
        for start in range(0, 2000, 200):
            await submit(there, *range(start, start + 200))
        seen: list[str] = []
        while len(seen) < 2000:
            news = await told(here, cursor)
            assert news.complete and len(news.events) <= 800
            seen += [event.job_id for event in news.events]
            cursor = news.cursor
        assert seen == [job(number).id for number in range(2000)]


async def test_own_commits_do_not_hold_up_the_news_of_others(redis_server: RedisServer) -> None:
    """However many own notes lie before them: a cancel may be among them."""
    async with opened(redis_server, "a") as here, opened(redis_server, "b") as there:
        cursor = (await here.wait_news(None)).cursor
        for number in range(2000):
            await submit(here, number)
        await submit(there, 5000)
        news = await told(here, cursor, seconds=6)  # ten looks; a wait of a second at each would be over nine
        assert news.complete and [event.job_id for event in news.events] == [job(5000).id]


async def test_a_server_that_was_emptied_is_told_as_a_gap(redis_server: RedisServer) -> None:
    async with opened(redis_server, "a") as here, opened(redis_server, "b") as there:
        await submit(there, 1, 2, 3)
        cursor = (await here.wait_news(None)).cursor
        redis_server.client().flushall()
        await submit(there, 4)
        news = await told(here, cursor)
        assert not news.complete
        await submit(there, 5)
        news = await told(here, news.cursor)
        assert news.complete and [event.job_id for event in news.events] == [job(5).id]


async def test_a_server_that_was_another_before_the_first_news_is_told_as_a_gap(redis_server: RedisServer) -> None:
    async with opened(redis_server, "a") as here:
        cursor = (await here.wait_news(None)).cursor
        here._connected().link._news._line._hang_up()  # type: ignore[union-attr]
        assert not (await told(here, cursor)).complete


async def test_a_server_that_came_back_is_told_as_a_gap(redis_servers: RedisServers) -> None:
    """It may have lost the last that it was told, so whoever follows a job has to read it again."""
    server = redis_servers.server(fsync="always")
    async with opened(server, "a") as here, opened(server, "b") as there:
        cursor = (await here.wait_news(None)).cursor
        await submit(there, 1)
        cursor = (await told(here, cursor)).cursor
        server.restart()
        news = None
        with trio.fail_after(30):
            while news is None:
                try:
                    news = await here.wait_news(cursor)
                except StoreUnavailable:
                    await trio.sleep(0.05)
        assert not news.complete
        assert await one(there, job(1).id) is not None


async def test_a_message_that_is_lost_is_made_up_for_within_a_second_or_so(redis_server: RedisServer) -> None:
    async with opened(redis_server, "a") as here:
        cursor = (await here.wait_news(None)).cursor
        quiet = RedisStore(redis_server.url)
        quiet._space = redis_space.Space("{callboard}:", channel="nobody listens here")
        await quiet.open(worker="quiet", max_events_per_job=100, max_attempts_per_job=100)
        news: list[News] = []

        async def listen() -> None:
            news.append(await told(here, cursor))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.sleep(0.2)  # it waits for a message by now
            await submit(quiet, 7)
        await quiet.aclose()
        assert [event.job_id for event in news[0].events] == [job(7).id]


# Leases


async def test_a_lease_that_was_extended_meanwhile_does_not_lapse(redis_server: RedisServer) -> None:
    """``lapse`` reads, decides and writes; what its holder did in between stands."""
    now = [1_000_000]
    async with (
        opened(redis_server, "a", clock=lambda: now[0]) as holder,
        opened(redis_server, "b", clock=lambda: now[0]) as reaper,
    ):
        await submit(holder, 1, 2)
        first, second = await claim(holder, lease_ms=100)
        now[0] += 100
        reach = reaper._space._commit

        def extend_first(caller: Any, me: Any, items: Any, gate: Any = None) -> Any:
            held = [Held(first.job.id, first.job.fence)]
            holder._space.extend(caller, held, lease_ms=100)
            return reach(caller, me, items)

        reaper._space._commit = extend_first  # type: ignore[method-assign]
        assert [item.job.id for item in await reaper.lapse(limit=10)] == [second.job.id]
        reaper._space._commit = reach  # type: ignore[method-assign]
        assert await one(reaper, first.job.id) == first.job
        assert await reaper.lapse(limit=10) == []


# Batches


async def test_batches_larger_than_a_script_are_whole_and_in_order(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        births = [birth(number) for number in range(450)]
        outcomes = await store.commit([*births, *births[:30]])
        assert kinds(outcomes) == ["Committed"] * 450 + ["Duplicate"] * 30
        assert taken(await claim(store, 450)) == list(range(450))


async def test_a_list_longer_than_a_slice_neither_skips_nor_repeats(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        for ended in await submit(store, 0, 1, 2):
            await apply(store, ended, cancel())
        await submit(store, *range(3, 700))
        for limit in (1000, 690, 3):
            cursor: str | None = None
            seen: list[str] = []
            while not seen or cursor is not None:
                page = await store.list(JobFilter(), cursor=cursor, limit=limit)
                seen += [found.id for found in page.jobs]
                cursor = page.next
            assert seen == [job(number).id for number in reversed(range(700))]


async def test_a_batch_of_large_records_is_sent_in_parts(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        sizes = []
        run = store._space._run

        def measured(caller: Any, script: Any, *arguments: Any) -> Any:
            sizes.append(sum(len(value) for value in arguments if isinstance(value, bytes)))
            return run(caller, script, *arguments)

        store._space._run = measured  # type: ignore[method-assign]
        await submit(store, *range(40))
        claimed = await claim(store, 40)
        result = Succeed(now_ms=0, result=Raw(b'"' + b"x" * 2**20 + b'"'))
        outcomes = await store.commit([after(item.job, result) for item in claimed])
        assert kinds(outcomes) == ["Committed"] * 40
        assert sum(sizes) > 80 * 2**20 and max(sizes) <= redis_space.MAX_BYTES
        # One that is larger than a part goes alone.
        await submit(store, 40)
        (large,) = await claim(store)
        result = Succeed(now_ms=0, result=Raw(b'"' + b"x" * 9 * 2**20 + b'"'))
        assert kinds(await store.commit([birth(41), after(large.job, result), birth(42)])) == ["Committed"] * 3


async def test_a_writer_that_is_overtaken_for_ever_is_refused_in_the_end(redis_server: RedisServer) -> None:
    async with opened(redis_server, "a") as store, opened(redis_server, "b") as other:
        await submit(store, 1, 2)
        (claimed, _) = await claim(store)
        current = claimed.job
        asked = []

        def again(stored: Job) -> Write:
            asked.append(stored.seq)
            # Someone else is faster, each time.
            other._space.commit(store_caller[0], opened_as, [after(stored, progress(1))])
            return after(stored, cancel())

        store_caller: list[Any] = []
        opened_as = other._connected().me
        await store._connected().link.read(store_caller.append)
        await apply(other, current, progress(2))
        outcomes = await store.commit(
            [replace(after(current, cancel()), again=again), birth(3), Delete(expected=replace(current, serial=1))]
        )
        assert kinds(outcomes) == ["Conflict", "Committed", "Conflict"]
        assert len(asked) == redis_space.MAX_OVERTAKEN


# A server whose memory is full


async def test_a_full_server_refuses_new_jobs_and_lets_those_that_run_go_on_and_end(
    redis_servers: RedisServers,
) -> None:
    server = redis_servers.server(maxmemory_policy="noeviction")
    async with opened(server) as store:
        await submit(store, 1, 2, 3)
        first, second = await claim(store, 2)
        server.run("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await submit(store, 4)
        assert [answer.held for answer in await store.extend([Held(first.job.id, first.job.fence)], lease_ms=1)] == [
            True
        ]
        await apply(store, first.job, progress(10), succeed())
        # With new jobs in its batch, too; one that was overtaken meanwhile has its turn, and so have those behind it.
        ended = await apply(store, second.job, progress(10))
        overtaken = replace(after(second.job, succeed()), again=lambda stored: after(stored, succeed()))
        outcomes = await store.commit([birth(5), overtaken, birth(6), after(ended, succeed()), birth(7)])
        assert kinds(outcomes) == ["StoreUnavailable", "Committed", "StoreUnavailable", "Conflict", "StoreUnavailable"]
        stored = await one(store, second.job.id)
        assert stored is not None and stored.status is Status.COMPLETED
        assert await store.get([job(5).id, job(6).id, job(7).id]) == [None, None, None]
        assert taken(await claim(store)) == [3]
        assert await store.set_paused("default", True)
        assert await store.prune(ended_before_ms=2**50, limit=10) == 2
        server.run("CONFIG", "SET", "maxmemory", "0")
        await submit(store, 4)


# Records that cannot be read

DAMAGE: Final[dict[str, dict[str, str | None]]] = {
    "no JSON": {"record": "x"},
    "no record": {"record": None},
    "newer": {"record": '{"schema":99}', "schema": "99"},
    "request": {"request": "x"},
    "no request": {"request": None},
}


def damage(server: RedisServer, number: int, fields: dict[str, str | None]) -> None:
    for field, value in fields.items():
        key = f"{{callboard}}:job:{job(number).id}"
        if value is None:
            server.client().hdel(key, field)
        else:
            server.client().hset(key, field, value)


@pytest.mark.parametrize("how", DAMAGE)
async def test_a_claim_passes_over_what_cannot_be_read(how: str, redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        await submit(store, 1, 2)
        damage(redis_server, 1, DAMAGE[how])
        assert taken(await claim(store)) == [2]
        assert taken(await claim(store)) == []


async def test_a_job_whose_key_someone_removed_stops_nobody(redis_server: RedisServer) -> None:
    now = [1_000_000]
    async with opened(redis_server, clock=lambda: now[0]) as store:
        await submit(store, 1, 2, 3, 4)
        assert taken(await claim(store, 2, lease_ms=10)) == [1, 2]
        for number in (1, 3):
            redis_server.client().delete(f"{{callboard}}:job:{job(number).id}")
        assert taken(await claim(store, lease_ms=20)) == [4]
        now[0] += 10
        assert [item.job.id for item in await store.lapse(limit=10)] == [job(2).id]
        assert (await store.next_due()).lease_ms == now[0] + 10
        page = await store.list(JobFilter(), cursor=None, limit=10)
        assert [found.id for found in page.jobs] == [job(4).id, job(2).id]


async def test_jobs_of_a_newer_callboard_wait_for_one_and_hold_nobody_up(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        await submit(store, *range(50), priority=5)
        await submit(store, 100)
        for number in range(50):
            damage(redis_server, number, {"schema": "99"})
        assert taken(await claim(store)) == [100]
        assert (await store.counts())["default", Status.QUEUED] == 50
        damage(redis_server, 49, {"schema": "1"})
        assert taken(await claim(store)) == [49]


async def test_others_go_on_beside_a_record_that_cannot_be_read(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(redis_server) as store:
        first, second = await submit(store, 1, 2)
        damage(redis_server, 1, {"record": "secret nonsense"})
        stale = replace(first, seq=9)
        outcomes = await store.commit([birth(1), after(stale, cancel()), birth(3), after(second, cancel())])
        assert kinds(outcomes) == ["StoreRefused", "StoreRefused", "Committed", "Committed"]
        with pytest.raises(StoreRefused, match="cannot be read"):
            await store.get([job(1).id])
        caplog.set_level(logging.ERROR)
        page = await store.list(JobFilter(), cursor=None, limit=10)
        assert [found.id for found in page.jobs] == [job(3).id, job(2).id]
        assert "passed over" in caplog.text and "secret nonsense" not in caplog.text


async def test_a_lapse_goes_on_past_a_record_that_cannot_be_read(redis_server: RedisServer) -> None:
    now = [1_000_000]
    async with opened(redis_server, clock=lambda: now[0]) as store:
        await submit(store, 1, 2)
        await claim(store, lease_ms=10)
        damage(redis_server, 1, {"record": "x"})
        now[0] += 10
        assert [item.job.id for item in await store.lapse(limit=10)] == [job(2).id]
        # It is left alone for an hour, not looked at again and again.
        assert (await store.next_due()).lease_ms == now[0] + 3_600_000


async def test_the_url_says_how_long_to_wait(tmp_path: Path) -> None:
    store = RedisStore(f"unix://{tmp_path}/nobody?timeout_seconds=0.1")
    with pytest.raises(StoreUnavailable):
        await store.open(worker="w", max_events_per_job=1, max_attempts_per_job=1)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.get(["x"])
    await store.aclose()
    await store.aclose()
