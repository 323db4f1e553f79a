"""What a Redis store refuses at start, on real servers: users, versions, modes, settings, and what the message says to do."""

import logging
import re
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError
from tests.redis_servers import RedisServer, RedisServers

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.stores.opening import open_store
from callboard.stores.redis_check import COMMANDS, PROBE, check_server, permissions
from callboard.stores.redis_link import Caller, Link
from callboard.stores.redis_scripts import SCRIPTS
from callboard.stores.redis_url import Kind, RedisSettings

RULES = permissions("callboard")
CHANNEL = "callboard:news"
INFO = {
    "redis_version": "7.0.15",
    "redis_mode": "standalone",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "loading": "0",
    "aof_enabled": "1",
}


async def opened(url: str) -> None:
    link = Link(RedisSettings.of_url(url), channel=CHANNEL)
    try:
        await link.open()
        await link.write(lambda caller: None)
    finally:
        await link.aclose()


async def refused(url: str) -> str:
    with pytest.raises(StoreRefused) as caught:
        await opened(url)
    assert "hunter" not in str(caught.value) and "bob" not in str(caught.value)
    return str(caught.value)


def entering(server: RedisServer, login: str) -> str:
    return server.url.replace("://", f"://{login}@", 1)


async def test_users_and_passwords(redis_servers: RedisServers) -> None:
    server = redis_servers.server(login=("default", "hunter2"))
    await opened(server.url)
    await opened(f"redis://:hunter2@127.0.0.1:{server.port}")
    assert "wants a password" in await refused(f"redis://127.0.0.1:{server.port}")
    assert "does not take that user" in await refused(f"redis://:hunter3@127.0.0.1:{server.port}")
    assert "does not take that user" in await refused(f"redis://bob:hunter2@127.0.0.1:{server.port}")
    server.run("ACL", "SETUSER", "bo:b", "on", ">hun:ter/2@#%", *RULES.split())
    await opened(f"redis://bo%3Ab:hun%3Ater%2F2%40%23%25@127.0.0.1:{server.port}/1")
    server.run("ACL", "SETUSER", "bob", "off", ">hunter2", *RULES.split())
    assert "does not take that user" in await refused(f"redis://bob:hunter2@127.0.0.1:{server.port}")
    server.run("ACL", "SETUSER", "open", "on", "nopass", *RULES.split())
    await opened(f"redis://open:@127.0.0.1:{server.port}")


async def test_a_user_with_the_documented_rules_and_no_others_runs_a_whole_store(redis_servers: RedisServers) -> None:
    server = redis_servers.server()
    server.run("ACL", "SETUSER", "bob", "reset", "on", ">hunter2", *RULES.split())
    store = open_store(entering(server, "bob:hunter2"))
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=10)
    await store.claim(queues=["q"], names=["n"], limit=1, lease_ms=1000)
    assert await store.counts() == {}
    await store.set_paused("q", True)
    await store.wait_news(None)
    await store.aclose()


async def test_a_server_whose_file_is_read_by_a_user_without_rights_would_lose_the_jobs(
    redis_servers: RedisServers,
) -> None:
    server = redis_servers.server(fsync="always")
    admin = entering(server, "root:hunter2")
    server.run("ACL", "SETUSER", "root", "on", ">hunter2", "~*", "&*", "+@all")
    await opened(admin)
    with server.client(username="root", password="hunter2") as client:
        client.execute_command("ACL", "SETUSER", "default", "off", "~*", "&*", "+@all")
        await opened(admin)
        for rules in ("reset off", "off ~* +@all -hset", "off resetkeys ~x* +@all"):
            client.execute_command("ACL", "SETUSER", "default", *rules.split())
            assert "ACL SETUSER default off ~* &* +@all" in await refused(admin)


def test_the_rules_are_documented() -> None:
    assert RULES in (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize(
    "without",
    [
        "-evalsha",
        "-eval",
        "-info",
        "-zadd",
        "-xadd",
        "-publish",
        "-time",
        "-hincrby",
        "-subscribe",
        "resetkeys",
        "resetchannels",
    ],
)
async def test_what_the_user_may_not_do_is_told_with_all_that_it_has_to_be_allowed(
    redis_server: RedisServer, without: str
) -> None:
    redis_server.run("ACL", "SETUSER", "bob", "reset", "on", ">hunter2", *RULES.split(), without)
    said = await refused(entering(redis_server, "bob:hunter2"))
    assert RULES in said
    if without.lstrip("-") in ("zadd", "xadd", "publish", "hincrby", "time"):
        assert without.lstrip("-").upper() in said
    redis_server.run("ACL", "DELUSER", "bob")


async def test_a_user_that_may_not_name_its_connection_may_enter_all_the_same(redis_server: RedisServer) -> None:
    redis_server.run("ACL", "SETUSER", "bob", "reset", "on", ">hunter2", *RULES.split(), "-client|setname", "-config")
    await opened(entering(redis_server, "bob:hunter2"))
    redis_server.run("ACL", "DELUSER", "bob")


def test_the_probe_asks_for_every_command_of_the_scripts() -> None:
    texts = "\n".join(script.text for script in SCRIPTS)
    used = set(re.findall(r"call\(\s*'([A-Z]+)'", texts))
    assert len(used) > 15
    assert used == set(COMMANDS)


def test_the_probe_knows_every_command(redis_server: RedisServer) -> None:
    """One that the server cannot parse would pass as allowed."""
    text = PROBE.replace("known and not allowed", "not known")
    lines = [str([name, *words]).replace("'", '"') for name, words in COMMANDS.items()]
    assert redis_server.client().eval(text, 0, *lines) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random", "volatile-lfu"])
async def test_an_evicting_policy(redis_server: RedisServer, policy: str) -> None:
    redis_server.run("CONFIG", "SET", "maxmemory-policy", policy)
    said = await refused(redis_server.url)
    assert policy in said and "noeviction" in said
    redis_server.run("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await opened(redis_server.url)


async def test_a_node_of_a_cluster(redis_servers: RedisServers) -> None:
    server = redis_servers.server(cluster_enabled="yes", save=None)
    assert "redis+cluster://" in await refused(server.url)


async def test_a_db_that_is_not_there(redis_server: RedisServer) -> None:
    assert "does not have the db" in await refused(f"{redis_server.url}/77")


@pytest.mark.parametrize(
    ("config", "warns"), [({}, True), ({"appendonly": "yes"}, False), ({"save": '"3600 1"'}, False)]
)
async def test_a_server_that_persists_nothing_is_warned_of_once(
    redis_servers: RedisServers, caplog: pytest.LogCaptureFixture, config: dict[str, str], warns: bool
) -> None:
    server = redis_servers.server(**config)
    caplog.set_level(logging.INFO)
    await opened(server.url)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns
    if warns:
        assert "appendonly" in caplog.text


@pytest.mark.parametrize(
    ("version", "more", "is_good"),
    [
        ("7.0.0", {}, True),
        ("7.0.15", {}, True),
        ("7.2.4", {"server_name": "valkey", "valkey_version": "8.1.3"}, True),
        ("8.10.2", {}, True),
        ("10.0", {}, True),
        ("6.2.14", {}, False),
        ("6.9.99", {}, False),
        ("5.0.7", {}, False),
        ("", {}, False),
        ("nonsense", {}, False),
    ],
)
def test_versions(version: str, more: dict[str, str], is_good: bool) -> None:
    if is_good:
        check(redis_version=version, **more)
    else:
        with pytest.raises(StoreRefused, match=r"too old: use Redis 7\.0 or newer, or Valkey"):
            check(redis_version=version, **more)


@pytest.mark.parametrize(
    ("changed", "kind", "part"),
    [
        ({"redis_mode": "cluster"}, "standalone", "redis+cluster://"),
        ({"redis_mode": "cluster"}, "sentinel", "redis+cluster://"),
        ({"redis_mode": "standalone"}, "cluster", "use redis://"),
        ({"redis_mode": "sentinel"}, "standalone", "redis+sentinel://"),
        ({"role": "slave"}, "standalone", "replica"),
        ({"maxmemory_policy": "volatile-lru"}, "cluster", "noeviction"),
    ],
)
def test_what_info_says(changed: dict[str, str], kind: Kind, part: str) -> None:
    modes = {"redis_mode": "cluster"} if kind == "cluster" else {}
    with pytest.raises(StoreRefused, match=re.escape(part)):
        check(kind, **{**modes, **changed})


def test_a_server_that_loads_or_was_demoted_is_only_away() -> None:
    with pytest.raises(StoreUnavailable):
        check(loading="1")
    with pytest.raises(StoreUnavailable):
        check("sentinel", role="slave")


def check(kind: Kind = "standalone", /, **changed: str) -> None:
    """``check_server`` on a server that says so."""
    told = "# Server\r\n" + "".join(f"{name}:{value}\r\n" for name, value in {**INFO, **changed}.items())

    def command(*words: Any) -> Any:
        if words[0] == "INFO":
            return told.encode()
        return b"sha" if words[0] == "SCRIPT" else []

    check_server(command, settings=RedisSettings(kind=kind), channel=CHANNEL)


def test_a_provider_that_forbids_config_is_not_accused(caplog: pytest.LogCaptureFixture) -> None:
    def command(*words: Any) -> Any:
        if words[0] == "CONFIG":
            raise ResponseError("unknown command 'CONFIG'")
        told = "".join(f"{name}:{value}\r\n" for name, value in {**INFO, "aof_enabled": "0"}.items())
        return {"INFO": told.encode(), "SCRIPT": b"sha"}.get(words[0], [])

    check_server(command, settings=RedisSettings(), channel=CHANNEL)
    assert caplog.records == []


@contextmanager
def answering(*replies: bytes) -> Iterator[int]:
    """A server that gives each connection these replies, one to each command; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    for reply in replies:
                        if not connection.recv(65536):
                            break
                        connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


async def test_a_server_from_before_hello() -> None:
    with answering(
        b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `bob`, `hunter2`, \r\n"
    ) as port:
        assert "too old" in await refused(f"redis://bob:hunter2@127.0.0.1:{port}")


async def test_protected_mode_and_what_is_no_redis() -> None:
    with answering(b"-DENIED Redis is running in protected mode because hunter2\r\n") as port:
        assert "protected mode" in await refused(f"redis://127.0.0.1:{port}")
    with answering(b"-ERR something else about bob and hunter2\r\n") as port:
        assert "no proxy" in await refused(f"redis://127.0.0.1:{port}")
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        with pytest.raises(StoreUnavailable):
            await opened(f"redis://127.0.0.1:{port}")


async def test_a_server_that_is_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url, why in {
        f"redis://127.0.0.1:{port}": "nobody listens at that address; is it running, and are host and port right?",
        f"unix://{tmp_path}/none": "a file that the URL names is not there: the server's socket, or a certificate",
        "redis://nosuch.invalid": "the host's name cannot be resolved; check it, and the DNS",
    }.items():
        with pytest.raises(StoreUnavailable) as caught:
            await opened(url)
        assert str(caught.value) == f"there is no connection to the Redis server, or it was lost: {why}"
    with pytest.raises(StoreUnavailable, match=r"^none of the sentinels can be reached: nobody listens"):
        await opened(f"redis+sentinel://127.0.0.1:{port}/shop")


async def test_no_secret_is_told_whatever_goes_wrong(
    redis_servers: RedisServers, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every way to fail, and all that can be read afterwards: messages, chains of exceptions, tracebacks, logs down to DEBUG."""
    caplog.set_level(logging.DEBUG)
    server = redis_servers.server(login=("hunter-bob", "hunter-2"))
    secure = redis_servers.server(tls=True, login=("hunter-bob", "hunter-2"))
    login = "hunter-bob:hunter-2@"
    quick = "timeout_seconds=0.5"

    def run(caller: Caller) -> None:
        caller.run(SCRIPTS[0], ["k"], [])

    server.run("ACL", "SETUSER", "hunter-eve", "on", ">hunter-3", "+hello")
    with answering(b"-ERR hunter-bob hunter-2\r\n") as odd, answering(b"%hunter-2\r\n") as nonsense:
        urls = [
            f"redis://hunter-bob:hunter-4@127.0.0.1:{server.port}",
            f"redis://hunter-eve:hunter-3@127.0.0.1:{server.port}",
            f"redis://{login}127.0.0.1:{server.port}/88",
            f"redis://{login}127.0.0.1:{secure.port}?{quick}",
            f"rediss://{login}127.0.0.1:{server.port}?{quick}",
            f"rediss://{login}127.0.0.1:{secure.port}?ssl_password=hunter-5&ssl_certfile=/hunter-6",
            f"redis://{login}127.0.0.1:{odd}",
            f"redis://{login}127.0.0.1:{nonsense}",
            f"redis://{login}hunter-7.invalid",
            f"unix://{login}/hunter-8",
            f"redis+sentinel://{login}127.0.0.1:{server.port}/hunter-9?sentinel_username=hunter-a&sentinel_password=hunter-b",
            f"redis+sentinel://{login}hunter-7.invalid/m",
        ]
        told = []
        for url in urls:
            link = Link(RedisSettings.of_url(url), channel=CHANNEL)
            for call in (link.open, lambda link=link: link.write(run)):
                with pytest.raises((StoreRefused, StoreUnavailable)) as caught:
                    await call()
                told.append(caught.value)
            await link.aclose()
    link = Link(RedisSettings.of_url(f"redis://{login}127.0.0.1:{server.port}?{quick}"), channel=CHANNEL)
    await link.open()
    server.run("ACL", "SETUSER", "hunter-bob", ">hunter-c", "-evalsha")
    with pytest.raises(StoreUnavailable) as caught:
        await link.write(run)
    told.append(caught.value)
    await link.aclose()
    for error in told:
        chain: BaseException | None = error
        while chain is not None:
            assert not isinstance(chain, RedisError), error
            assert "hunter" not in f"{chain} {chain!r} {chain.args}", error
            chain = chain.__cause__ or chain.__context__
        shown = "".join(traceback.format_exception(error))
        assert "hunter" not in "\n".join(line for line in shown.splitlines() if not line.startswith(" "))
    logged = [record.getMessage() + str(record.args) + (record.exc_text or "") for record in caplog.records]
    assert not [line for line in logged if "hunter" in line]
    assert "hunter" not in "".join(capfd.readouterr())
