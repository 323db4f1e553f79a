"""A Redis store behind Sentinel, with real sentinels: it finds the master, and its successor."""

import pytest
import trio
from tests.redis_servers import RedisServers, SentinelSet
from tests.stores.test_redis_link import CHANNEL, INCREMENT, echo, ours, tell

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.stores.redis_link import Link
from callboard.stores.redis_url import RedisSettings


async def opened(url: str) -> Link:
    link = Link(RedisSettings.of_url(url), channel=CHANNEL)
    await link.open()
    return link


async def written(link: Link) -> int:
    """Write until it works again, as the runtime does; how many tries failed."""
    with trio.fail_after(60):
        failures = 0
        while True:
            try:
                await link.write(lambda caller: caller.run(INCREMENT, ["k"], []))
            except StoreUnavailable:
                failures += 1
            else:
                return failures


async def test_writes_go_on_by_themselves_at_the_new_master(redis_servers: RedisServers) -> None:
    servers = redis_servers.sentinels()
    link = await opened(servers.url)
    await written(link)
    await link.read(echo("x"))
    old = servers.master
    new = await trio.to_thread.run_sync(servers.fail_over)
    assert new is not old
    assert await written(link) <= 1
    assert await link.read(echo("x")) == b"x"
    generation, heard = await link.news(lambda caller, ear: (ear.generation, [tell(caller, "x"), ear.listen(30)]))
    assert (generation, heard) == (2, [1, [b"x"]])
    assert len(ours(new)) == 3
    # The old one comes back as a replica, and nobody goes there again.
    old.start()
    assert await written(link) == 0
    await link.aclose()


async def test_who_still_holds_the_old_master_leaves_it(redis_servers: RedisServers) -> None:
    servers = redis_servers.sentinels()
    link = await opened(servers.url)
    await written(link)
    await link.read(echo("x"))
    old = servers.master
    # Sentinel itself kills the connections to a master that it demotes; one that was demoted otherwise keeps them.
    _demote(servers)
    assert {one["id"] for one in ours(old)}
    assert await written(link) >= 1
    assert await link.read(echo("x")) == b"x"
    await link.news(lambda caller, ear: None)
    assert ours(old) == [] and len(ours(servers.master)) == 3
    await link.aclose()


def _demote(servers: SentinelSet) -> None:
    """Make a new master as ``SENTINEL FAILOVER`` does, but leave the old one's clients where they are."""
    old = servers.master
    new = next(server for server in servers.servers if server is not old)
    new.run("REPLICAOF", "NO", "ONE")
    old.run("REPLICAOF", "127.0.0.1", str(new.port))
    for sentinel in servers.sentinels:
        sentinel.run("SENTINEL", "REMOVE", "callboard")
        sentinel.run("SENTINEL", "MONITOR", "callboard", "127.0.0.1", str(new.port), "2")


async def test_a_sentinel_that_is_away_or_late_is_passed_over(redis_servers: RedisServers) -> None:
    servers = redis_servers.sentinels()
    servers.sentinels[0].kill()
    servers.sentinels[1].pause()
    link = await opened(servers.url)
    assert await written(link) == 0
    servers.sentinels[2].kill()
    # It needs none while its connections hold, and says what is missing when they do not.
    assert await written(link) == 0
    servers.sentinels[1].resume()
    await link.aclose()
    with pytest.raises(StoreUnavailable, match="sentinels"):
        servers.sentinels[1].kill()
        await opened(servers.url)


async def test_users_and_passwords_of_both(redis_servers: RedisServers) -> None:
    servers = redis_servers.sentinels(login=("ann", "hunter2"), sentinels_login=("eve", "hunter3"))
    own = "sentinel_username=eve&sentinel_password=hunter3"
    link = await opened(f"{servers.url}?{own}")
    assert await written(link) == 0
    await link.aclose()
    for url, part in (
        (servers.url, "sentinel_password="),
        (f"{servers.url}?sentinel_username=eve&sentinel_password=hunter4", "sentinel_password="),
        (f"{servers.url.replace('hunter2', 'hunter4')}?{own}", "does not take that user"),
        (f"{servers.url.replace('/callboard', '/hunter5')}?{own}", "no service of that name"),
    ):
        with pytest.raises(StoreRefused) as caught:
            await opened(url)
        assert part in str(caught.value) and "hunter" not in str(caught.value)


async def test_tls_to_both(redis_servers: RedisServers) -> None:
    from tests.stores.test_redis_tls import CA

    servers = redis_servers.sentinels(tls=True)
    link = await opened(f"{servers.url}?{CA}")
    assert await written(link) == 0
    await link.aclose()
    with pytest.raises(StoreRefused, match="ssl_ca_certs="):
        await opened(servers.url)
    with pytest.raises(StoreRefused, match="use rediss"):
        await opened(servers.url.replace("rediss", "redis") + "?timeout_seconds=1")


async def test_a_sentinel_and_a_server_are_told_apart(redis_servers: RedisServers) -> None:
    servers = redis_servers.sentinels()
    sentinel, server = servers.sentinels[0].port, servers.master.port
    with pytest.raises(StoreRefused, match=r"redis\+sentinel://"):
        await opened(f"redis://127.0.0.1:{sentinel}")
    with pytest.raises(StoreRefused, match=r"no service|is none"):
        await opened(f"redis+sentinel://127.0.0.1:{server}/callboard")
    replica = next(one for one in servers.servers if one is not servers.master)
    with pytest.raises(StoreRefused, match="replica"):
        await opened(replica.url)
