"""The conformance suite against every driver."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.redis_servers import RedisServer

from callboard.runtime.core.store import Clock, Store
from callboard.stores import conformance
from callboard.stores.conformance import CHECKS, Check, MakeStore, check_store
from callboard.stores.memory import MemoryDatabase, MemoryStore, system_clock
from callboard.stores.redis import RedisStore
from callboard.stores.redis_url import RedisSettings
from callboard.stores.sqlite import SqliteStore


def memory_stores(_: Path) -> MakeStore:
    databases: dict[str, MemoryDatabase] = {}

    def make(name: str, clock: Clock) -> Store:
        return MemoryStore(databases.setdefault(name, MemoryDatabase()), clock=clock)

    return make


def sqlite_stores(directory: Path) -> MakeStore:
    return lambda name, clock: SqliteStore(directory / f"{name}.db", clock=clock)


def sqlite_stores_with_commits_in_a_thread(directory: Path) -> MakeStore:
    return lambda name, clock: SqliteStore(directory / f"{name}.db", clock=clock, inline_commit_below_ms=0)


def redis_stores(url: str, *, own_time: bool = False) -> MakeStore:
    def make(name: str, clock: Clock) -> Store:
        return RedisStore(replace(RedisSettings.of_url(url), prefix=name), clock=None if own_time else clock)

    return make


DRIVERS: dict[str, Callable[[Path], MakeStore]] = {
    "memory": memory_stores,
    "sqlite": sqlite_stores,
    "sqlite-thread": sqlite_stores_with_commits_in_a_thread,
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conforms(check: Check, driver: str, tmp_path: Path) -> None:
    await check(DRIVERS[driver](tmp_path))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_redis_conforms(check: Check, redis_server: RedisServer) -> None:
    await check(redis_stores(redis_server.url))


@pytest.fixture(scope="session")
def durable_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("durable"), fsync="always") as server:
        yield server


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_redis_conforms_by_its_own_clock_and_with_every_write_on_the_disk(
    check: Check, durable_redis: RedisServer
) -> None:
    await partial(check, clock_is_injected=False)(redis_stores(durable_redis.url, own_time=True))


async def test_the_whole_suite_on_a_clock_of_its_own(tmp_path: Path) -> None:
    make = memory_stores(tmp_path)
    await check_store(lambda name, _: make(name, system_clock), clock_is_injected=False)


def test_every_check_that_is_written_is_run() -> None:
    folder = Path(conformance.__file__).parent
    written = [
        name
        for file in folder.glob("conformance*.py")
        for name in re.findall(r"^async def (promise_\w+)", file.read_text(), re.MULTILINE)
    ]
    assert len(written) > 50
    assert sorted(written) == sorted(check.__name__ for check in CHECKS)
