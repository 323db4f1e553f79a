"""The keys that a Redis store leaves are those of the table in docs/stores.md, and they end as it says."""

import re

from tests.redis_servers import RedisServer
from tests.test_docs import DOCS, rows

from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import Delete, JobFilter, Store
from callboard.stores.conformance_bench import after, apply, cancel, failing, job, submit, succeed
from callboard.stores.redis import RedisStore

TAG = "{callboard}:"
FAR_MS = 2**45
TABLE = rows(DOCS / "stores.md", "| key, behind the tag | type | holds | belongs to | ends |")
KINDS = {cells[0].strip("`"): cells[1] for cells in TABLE}


def pattern(kind: str) -> re.Pattern[str]:
    """``job:<id>`` as what fits it."""
    return re.compile(re.escape(TAG) + re.sub(r"<\w+>", ".*", kind), re.DOTALL)


def found(server: RedisServer) -> dict[str, set[str]]:
    """The keys that are there, by the row of the table that each fits, which must be exactly one and of that type."""
    kinds: dict[str, set[str]] = {}
    with server.fresh_client(decode_responses=True) as client:
        for key in client.scan_iter():
            fitting = [kind for kind in KINDS if pattern(kind).fullmatch(key)]
            assert len(fitting) == 1, f"{key} fits {fitting or 'no row of the table'}"
            assert client.type(key) == KINDS[fitting[0]], key
            # All that goes by itself would be missed by nobody until it is.
            assert client.ttl(key) == -1, f"{key} has a time to live"
            kinds.setdefault(fitting[0], set()).add(key)
    return kinds


async def everything(store: Store) -> list[Job]:
    return list((await store.list(JobFilter(), cursor=None, limit=100)).jobs)


async def fill(store: Store) -> None:
    """Jobs in every state, with all that a job may have."""
    await submit(store, 1, 2, 3, 4, 5, 6, owner="somebody")
    await submit(store, 7, key="once", queue="a:b", name="c:d")
    await submit(store, 8, status=Status.SCHEDULED, due_ms=FAR_MS)
    claimed = await store.claim(queues=["default"], names=["send"], limit=4, lease_ms=600_000)
    done, failed, again, _ = [one.job for one in claimed]
    await apply(store, done, succeed())
    await apply(store, failed, failing(delay_ms=3_600_000))
    await store.commit([after(again, cancel())])
    (waiting,) = await store.get([job(5).id])
    assert waiting is not None
    await apply(store, waiting, cancel())
    await store.set_paused("other", True)


async def test_every_key_fits_one_row_and_every_row_has_a_key(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url)
    await store.open(worker="w", max_events_per_job=50, max_attempts_per_job=50)
    await fill(store)
    assert set(found(redis_server)) == set(KINDS)
    await store.aclose()


async def test_what_ends_with_the_last_job_is_gone_with_it(redis_server: RedisServer) -> None:
    """By purge and by retention alike; what is left does not grow with the jobs that there were."""
    store = RedisStore(redis_server.url)
    await store.open(worker="w", max_events_per_job=50, max_attempts_per_job=50)
    await fill(store)
    await store.set_paused("other", False)
    for one in await everything(store):
        if not one.status.is_terminal:
            await apply(store, one, succeed() if one.status is Status.IN_PROGRESS else cancel())
    purged, *_ = await everything(store)
    await store.commit([Delete(expected=purged)])
    assert await store.prune(ended_before_ms=FAR_MS, limit=500) == 7
    for_ever = {cells[0].strip("`") for cells in TABLE if cells[4].startswith("never")}
    assert set(found(redis_server)) == for_ever == {"notes", "meta"}
    await store.aclose()
