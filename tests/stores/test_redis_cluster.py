"""Redis Cluster: the whole protocol over a real cluster of three masters and three replicas."""

import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from tests.redis_servers import CERTIFICATES, ClusterNode, ClusterSet, RedisServer, RedisServers

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Clock, Committed, Conflict, Duplicate, JobFilter, News, Store
from callboard.stores import redis_cluster, redis_spread
from callboard.stores.conformance import CHECKS, Check, MakeStore
from callboard.stores.conformance_bench import (
    after,
    birth,
    cancel,
    committed,
    ids,
    job,
    kinds,
    progress,
    succeed,
    woken,
)
from callboard.stores.redis_check import permissions
from callboard.stores.redis_cluster import RedisClusterStore
from callboard.stores.redis_url import RedisSettings


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSet]:
    with ClusterSet(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def stores(cluster: ClusterSet, *, spaces: int = 5, own_time: bool = False) -> MakeStore:
    def make(name: str, clock: Clock) -> Store:
        settings = replace(RedisSettings.of_url(cluster.url), prefix=name, spaces=spaces)
        return RedisClusterStore(settings, clock=None if own_time else clock)

    return make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conforms(check: Check, cluster: ClusterSet) -> None:
    await check(stores(cluster))


async def opened(cluster: ClusterSet, name: str, worker: str = "w", *, spaces: int = 16, **changes: Any) -> Any:
    settings = replace(RedisSettings.of_url(cluster.url), prefix=name, spaces=spaces, **changes)
    store = RedisClusterStore(settings)
    await store.open(worker=worker, max_events_per_job=100, max_attempts_per_job=100)
    return store


async def closed(*opened: RedisClusterStore) -> None:
    with trio.CancelScope(shield=True):
        for store in opened:
            await store.aclose()


def slot_of_queue(cluster: ClusterSet, store: RedisClusterStore, name: str, queue: str) -> int:
    return cluster.slot_of(f"{{{name}:{store._spread.space_of(queue)}}}:meta")


QUEUES = tuple(f"queue-{number}" for number in range(8))


class Load:
    """Submitters and workers, each with a store of its own, that try again as the runtime does when the store cannot be reached."""

    def __init__(self, cluster: ClusterSet, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.acknowledged: set[int] = set()
        self.ended: Counter[str] = Counter()
        """job id -> how often a commit that ended it was accepted."""
        self.failures = 0
        self.is_over = False

    async def submit(self, first: int, step: int) -> None:
        store = await opened(self.cluster, self.name, f"submitter-{first}", timeout_seconds=2.0)
        number = first
        while not self.is_over:
            batch = [
                birth(number + 10**6 * part, queue=QUEUES[(number + part) % 8], key=f"{number}-{part}")
                for part in (1, 2)
            ]
            if all(isinstance(one, Committed | Duplicate) for one in await self._insist(partial(store.commit, batch))):
                self.acknowledged |= {number + 10**6, number + 2 * 10**6}
                number += step
        await closed(store)

    async def work(self, worker: str) -> None:
        store = await opened(self.cluster, self.name, worker, timeout_seconds=2.0)
        while not self.is_over or await self._insist(lambda: is_anything_left(store)):
            claims = await self._insist(lambda: store.claim(queues=QUEUES, names=["send"], limit=5, lease_ms=2500))
            for claim in claims:
                write = after(claim.job, progress(1.0), succeed())
                (outcome,) = await self._insist(partial(store.commit, [write]))
                self.ended[claim.job.id] += isinstance(outcome, Committed)
            await self._insist(lambda: store.lapse(limit=100))
            if not claims:
                await trio.sleep(0.01)
        await closed(store)

    async def _insist(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                self.failures += 1
                await trio.sleep(0.02)

    async def until(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        while len(self.acknowledged) < wanted:  # noqa: ASYNC110  a test looks at what the load has done so far
            await trio.sleep(0.01)


async def is_anything_left(store: RedisClusterStore) -> bool:
    counts = await store.counts()
    return any(count for (_, status), count in counts.items() if not status.is_terminal)


async def under_load(load: Load, act: Callable[[], Awaitable[None]]) -> None:
    """Let the load run, ``act`` meanwhile, and wait until all is done."""
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.submit, 0, 2)
            nursery.start_soon(load.submit, 1, 2)
            nursery.start_soon(load.work, "one")
            nursery.start_soon(load.work, "two")
            await load.until(60)
            await act()
            await load.until(60)
            load.is_over = True


async def check_whole(load: Load, *, lost: bool = False) -> None:
    """Each acknowledged job is there, ended once, with every event in its place; and nothing is anywhere twice."""
    store = await opened(load.cluster, load.name, "witness")
    jobs, cursor = [], None
    while True:
        page = await store.list(JobFilter(), cursor=cursor, limit=200)
        jobs += page.jobs
        cursor = page.next
        if cursor is None:
            break
    assert len({one.id for one in jobs}) == len({one.key for one in jobs}) == len(jobs)
    assert [one.serial for one in jobs] == sorted((one.serial for one in jobs), reverse=True)
    if not lost:
        assert load.acknowledged <= set(ids(jobs))
    for one in jobs:
        assert (one.status, one.attempt - one.lost_leases) == (Status.COMPLETED, 1)
        events = await store.events(one.id, after=0, limit=100)
        assert [event.seq for event in events] == list(range(1, one.seq + 1))
        # A commit may have taken effect and its answer been lost.
        assert load.ended[one.id] <= 1
    assert list(await store.get([one.id for one in jobs])) == jobs
    await closed(store)


async def test_queues_are_spread_over_all_masters(cluster: ClusterSet) -> None:
    store = await opened(cluster, "spread")
    await store.commit([birth(number, queue=f"queue-{number}") for number in range(60)])
    held = [node for node in cluster.masters if any("spread" in key for key in node.run("KEYS", "*job:*"))]
    assert len(held) == 3
    counts = await store.counts()
    assert len(counts) == 60
    assert ids((await store.list(JobFilter(), cursor=None, limit=100)).jobs) == list(range(59, -1, -1))
    await closed(store)


async def test_a_claim_takes_the_best_of_all_spaces_and_no_more_than_it_may(cluster: ClusterSet) -> None:
    here, there = await opened(cluster, "claims", "here"), await opened(cluster, "claims", "there")
    await here.commit([birth(n, queue=QUEUES[n % 8], priority=n % 5) for n in range(200)])
    won: list[Any] = []

    async def work(store: RedisClusterStore) -> None:
        while claims := await store.claim(queues=QUEUES, names=["send"], limit=7, lease_ms=60_000):
            assert len(claims) <= 7
            priorities = [claim.job.priority for claim in claims]
            assert priorities == sorted(priorities, reverse=True)
            won.extend(claims)

    first = await here.claim(queues=QUEUES, names=["send"], limit=41, lease_ms=60_000)
    assert Counter(claim.job.priority for claim in first) == {4: 40, 3: 1}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, here)
        nursery.start_soon(work, there)
    assert sorted(ids(claim.job for claim in [*first, *won])) == list(range(200))
    assert len({claim.job.fence for claim in [*first, *won]}) == 200
    await closed(here, there)


async def test_news_of_every_node_wake_a_sleeper_at_once(cluster: ClusterSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_cluster, "NET_SECONDS", 60.0)
    here, there = await opened(cluster, "news", "here"), await opened(cluster, "news", "there")
    cursor = (await here.wait_news(None)).cursor
    with trio.fail_after(30):
        for number, queue in enumerate(QUEUES):
            news = await woken(here, cursor, partial(there.commit, [birth(number, queue=queue)]))
            assert (news.complete, ids_of(news)) == (True, [job(number).id])
            cursor = news.cursor
    await closed(here, there)


def ids_of(news: News) -> list[str]:
    return [event.job_id for event in news.events]


async def test_the_news_go_on_when_the_node_with_the_subscription_drops_it(cluster: ClusterSet) -> None:
    here, there = await opened(cluster, "ear", "here"), await opened(cluster, "ear", "there")
    cursor = (await here.wait_news(None)).cursor
    await there.commit([birth(1)])
    cursor = (await here.wait_news(cursor)).cursor
    for node in cluster.nodes:
        node.run("CLIENT", "KILL", "TYPE", "pubsub")
    await there.commit([birth(2)])
    seen: list[News] = []
    with trio.fail_after(30):
        while job(2).id not in [event.job_id for news in seen for event in news.events]:
            try:
                seen.append(await here.wait_news(cursor))
                cursor = seen[-1].cursor
            except StoreUnavailable:
                pass
    # Messages may have been missed, and that is said.
    assert not all(news.complete for news in seen)
    await closed(here, there)


async def test_another_number_of_spaces_is_refused_by_the_store(cluster: ClusterSet) -> None:
    await closed(await opened(cluster, "number", spaces=4))
    with pytest.raises(StoreRefused, match=r"spread over 4 spaces, not 5.*\?spaces=4"):
        await opened(cluster, "number", spaces=5)


async def test_a_server_that_is_no_cluster_is_refused(redis_server: RedisServer) -> None:
    settings = RedisSettings.of_url(redis_server.url.replace("redis://", "redis+cluster://"))
    with pytest.raises(StoreRefused, match="not a node of a Redis Cluster"):
        await RedisClusterStore(settings).open(worker="w", max_events_per_job=9, max_attempts_per_job=9)


async def test_any_one_node_leads_to_the_cluster_a_replica_too(cluster: ClusterSet) -> None:
    for number, node in enumerate(cluster.nodes):
        settings = replace(
            RedisSettings.of_url(cluster.url), prefix=f"seed-{number}", addresses=(("127.0.0.1", node.port),)
        )
        store = RedisClusterStore(settings)
        await store.open(worker="w", max_events_per_job=9, max_attempts_per_job=9)
        assert kinds(await store.commit([birth(n, queue=queue) for n, queue in enumerate(QUEUES)])) == ["Committed"] * 8
        await closed(store)


async def test_a_call_whose_answer_is_lost_is_told_and_not_repeated(cluster: ClusterSet) -> None:
    store = await opened(cluster, "lost", timeout_seconds=0.3)
    # The node has the script: it will not have to ask for it when nobody is there any more.
    await one_claimed(store)
    await store.commit([birth(n) for n in range(2, 6)])
    node = cluster.master_of(slot_of_queue(cluster, store, "lost", "default"))

    async def come_back() -> None:
        # Soon enough for whoever would dial again.
        await trio.sleep(0.45)
        node.resume()

    node.pause()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        with pytest.raises(StoreUnavailable):
            await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=60_000)
    cluster.settle()
    running = 1
    with trio.fail_after(30):
        while running < 2:
            running = (await anyway(store.counts))["default", Status.IN_PROGRESS]
    assert running == 2
    assert (await store.counts())["default", Status.QUEUED] == 3
    await closed(store)


async def test_nothing_is_taken_that_stands_behind_what_another_took(
    cluster: ClusterSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = await opened(cluster, "beaten", "here"), await opened(cluster, "beaten", "there")
    one, other = QUEUES[0], next(q for q in QUEUES if here._spread.space_of(q) != here._spread.space_of(QUEUES[0]))
    await here.commit(
        [birth(1, queue=one, priority=9), birth(2, queue=one, priority=1), birth(3, queue=other, priority=5)]
    )
    real = redis_spread._claim
    taken: list[Any] = []

    def overtaken(*args: Any) -> Any:
        if not taken:
            taken.extend(
                trio.from_thread.run(partial(there.claim, queues=[one], names=["send"], limit=1, lease_ms=9999))
            )
        return real(*args)

    monkeypatch.setattr(redis_spread, "_claim", overtaken)
    claims = await here.claim(queues=[one, other], names=["send"], limit=1, lease_ms=60_000)
    assert (ids(claim.job for claim in taken), ids(claim.job for claim in claims)) == ([1], [3])
    await closed(here, there)


async def one_claimed(store: RedisClusterStore) -> Sequence[Any]:
    await store.commit([birth(1)])
    return await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=60_000)


async def anyway(ask: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            await trio.sleep(0.02)


async def test_scripts_that_the_nodes_have_forgotten_are_loaded_again(cluster: ClusterSet) -> None:
    store = await opened(cluster, "flush")
    for number in range(3):
        for node in cluster.masters:
            node.run("SCRIPT", "FLUSH")
        outcomes = await store.commit([birth(8 * number + n, queue=queue) for n, queue in enumerate(QUEUES)])
        assert kinds(outcomes) == ["Committed"] * 8
    assert len(await store.claim(queues=QUEUES, names=["send"], limit=30, lease_ms=60_000)) == 24
    await closed(store)


async def test_a_call_that_is_cancelled_ends_at_once_and_the_next_is_well(cluster: ClusterSet) -> None:
    store = await opened(cluster, "cancel", timeout_seconds=30.0)
    (claimed,) = await one_claimed(store)
    node = cluster.master_of(slot_of_queue(cluster, store, "cancel", "default"))
    node.pause()
    try:
        with trio.fail_after(5):
            with trio.move_on_after(0.05):
                await store.commit([after(claimed.job, progress(1.0))])
    finally:
        node.resume()
    with trio.fail_after(30):
        assert isinstance(
            (await anyway(lambda: store.commit([after(claimed.job, succeed())])))[0], Committed | Conflict
        )
    await closed(store)
    assert [thread.name for thread in threading.enumerate() if "Link" in thread.name] == []


async def test_while_half_of_a_slot_has_moved_nothing_is_done_by_halves(cluster: ClusterSet) -> None:
    """On either side a script would find some of the keys only: a job that it does not see could be born again."""
    store = await opened(cluster, "half", timeout_seconds=2.0)
    queue, other = (
        "default",
        next(
            q
            for q in QUEUES
            if slot_of_queue(cluster, store, "half", q) != slot_of_queue(cluster, store, "half", "default")
        ),
    )
    jobs = [committed(one).job for one in await store.commit([birth(n, queue=queue, key=f"k{n}") for n in range(6)])]
    move = cluster.move(slot_of_queue(cluster, store, "half", queue))
    for portion in (0, 1, len(move.keys()) // 2, len(move.keys())):
        move.move_keys(move.keys()[:portion])
        asks: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.commit([birth(0, queue=queue)]),
            lambda: store.commit([birth(7, queue=queue, key="k0"), birth(8, queue=queue)]),
            lambda: store.commit([after(jobs[1], cancel())]),
            lambda: store.claim(queues=[queue], names=["send"], limit=9, lease_ms=60_000),
            lambda: store.get([jobs[2].id]),
            lambda: store.events(jobs[2].id, after=0, limit=9),
        ]
        for ask in asks:
            with pytest.raises(StoreUnavailable):
                await ask()
        assert kinds(await store.commit([birth(100 + portion, queue=other)])) == ["Committed"]
        assert len(await store.claim(queues=[queue, other], names=["send"], limit=1, lease_ms=60_000)) == 1
    move.finish()
    assert list(await anyway(lambda: store.get([one.id for one in jobs]))) == jobs
    outcomes = await store.commit([birth(0, queue=queue), birth(7, queue=other, key="k0"), birth(8, queue=queue)])
    assert outcomes[:2] == [Duplicate(jobs[0]), Duplicate(jobs[0])]
    assert kinds(outcomes[2:]) == ["Committed"]
    await closed(store)


async def test_slots_that_move_under_load(cluster: ClusterSet) -> None:
    load = Load(cluster, "moved")
    witness = await opened(cluster, "moved")
    spaces = {cluster.slot_of(f"{{moved:{number}}}:meta") for number in (0, 1, 2)} | {
        cluster.slot_of("{moved:ids}:meta")
    }

    async def act() -> None:
        for slot in sorted(spaces):
            move = await trio.to_thread.run_sync(cluster.move, slot)
            await trio.to_thread.run_sync(move.move_keys, move.keys()[:5])
            await trio.sleep(0.1)
            await trio.to_thread.run_sync(move.finish)
            await load.until(20)

    await under_load(load, act)
    await check_whole(load)
    await closed(witness)


async def test_a_master_that_dies_under_load(redis_servers: RedisServers) -> None:
    cluster = redis_servers.cluster()
    load = Load(cluster, "failover")
    witness = await opened(cluster, "failover")
    replicated: set[int] = set()

    async def act() -> None:
        slot = slot_of_queue(cluster, witness, "failover", QUEUES[0])
        # What was acknowledged until now is on the replicas before the kill: Redis promises no more than that (docs/decisions/035).
        sure = set(load.acknowledged)
        for node in cluster.masters:
            replicate(cluster, node)
        replicated.update(sure)
        await trio.to_thread.run_sync(cluster.kill_master_of, slot)

    await under_load(load, act)
    assert load.failures > 0
    await check_whole(load, lost=True)
    found = await witness.get([job(number).id for number in sorted(replicated)])
    assert len(replicated) >= 60
    assert None not in found
    await closed(witness)


def replicate(cluster: ClusterSet, node: ClusterNode) -> None:
    """Wait until the node's replica has all that was written until now. WAIT speaks of what its own connection has written."""
    key = next(key for key in map(str, range(10_000)) if cluster.master_of(cluster.slot_of(key)) is node)
    with node.fresh_client(socket_timeout=60) as client:
        client.set(key, "")
        assert client.wait(1, 30_000) == 1
        client.delete(key)


async def test_memory_is_free_again_after_retention(cluster: ClusterSet) -> None:
    store = await opened(cluster, "memory")
    births = [birth(n, queue=QUEUES[n % 8], key=f"k{n}", owner="anna") for n in range(300)]
    outcomes = await store.commit(births)
    await store.commit([after(committed(one).job, cancel()) for one in outcomes])
    keys = keys_of(cluster, "memory")
    assert len(keys) > 900
    assert await store.prune(ended_before_ms=2**50, limit=1000) == 300
    left = keys_of(cluster, "memory")
    # One meta and at most one stream of notes for each space, and the registry's own.
    assert {key.rpartition(":")[2] for key in left} <= {"meta", "notes"}
    assert len(left) <= 2 * 16 + 1
    await closed(store)


def keys_of(cluster: ClusterSet, name: str) -> list[str]:
    return [key for node in cluster.masters for key in node.run("KEYS", f"*{{{name}:*")]


async def test_tls_and_a_user_with_no_more_rights_than_it_needs(redis_servers: RedisServers) -> None:
    cluster = redis_servers.cluster(login=("admin", "long-secret"), tls=True)
    for node in cluster.nodes:
        node.run("ACL", "SETUSER", "app", "on", ">p", *permissions("safe", "cluster").split())
    url = cluster.url.replace("admin:long-secret@", "app:p@")
    store = RedisClusterStore(f"{url}?prefix=safe&ssl_ca_certs={CERTIFICATES / 'authority.pem'}")
    await store.open(worker="w", max_events_per_job=9, max_attempts_per_job=9)
    cursor = (await store.wait_news(None)).cursor
    outcomes = await store.commit([birth(n, queue=queue, key=f"k{n}") for n, queue in enumerate(QUEUES)])
    assert len(await store.claim(queues=QUEUES, names=["send"], limit=3, lease_ms=60_000)) == 3
    (last,) = [one for one in await store.get([job(n).id for n in range(8)]) if one and one.status is Status.QUEUED][:1]
    assert kinds(await store.commit([after(last, cancel())])) == ["Committed"]
    assert await store.prune(ended_before_ms=2**50, limit=9) == 1
    assert await store.lapse(limit=9) == []
    assert len((await store.list(JobFilter(), cursor=None, limit=9)).jobs) == 7
    await store.set_paused("q", True)
    with trio.move_on_after(0.2):
        await store.wait_news(cursor)
    await closed(store)
    assert kinds(outcomes) == ["Committed"] * 8


async def test_a_wrong_password_is_refused_and_not_repeated_in_the_message(redis_servers: RedisServers) -> None:
    cluster = redis_servers.cluster(login=("app", "secret"))
    store = RedisClusterStore(cluster.url.replace("secret", "hunter2"))
    with pytest.raises(StoreRefused) as refused:
        await store.open(worker="w", max_events_per_job=9, max_attempts_per_job=9)
    assert "does not take that user and password" in str(refused.value)
    assert "hunter2" not in str(refused.value)
