"""Redis Cluster: the whole protocol over a real cluster of three masters and three replicas."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from tests.redis_servers import ClusterSet

from callboard.runtime.core.store import Clock, Store
from callboard.stores.conformance import CHECKS, Check, MakeStore
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
