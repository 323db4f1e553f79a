"""From URLs to stores."""

import os
import pprint
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.sentinel

from callboard.runtime.core.errors import ConfigError
from callboard.runtime.core.job import Status
from callboard.stores.memory import MemoryStore
from callboard.stores.opening import open_store, require_shared
from callboard.stores.redis_dial import Dial
from callboard.stores.redis_url import RedisSettings, Secret, Tls
from callboard.stores.sqlite import SqliteStore


@pytest.mark.parametrize("url", ["memory://", "memory:"])
async def test_memory(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, MemoryStore)
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=100)
    assert await store.counts() == {}
    await store.aclose()


@pytest.mark.parametrize("query", ["", "?synchronous=normal", "?synchronous=FULL"])
async def test_absolute_sqlite(tmp_path: Path, query: str) -> None:
    store = open_store(f"sqlite:///{tmp_path}/my%20jobs.db{query}")
    assert isinstance(store, SqliteStore)
    assert os.listdir(tmp_path) == []
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=100)
    assert (tmp_path / "my jobs.db").exists()
    level = await store._connected().engine.write(lambda c: c.execute("PRAGMA synchronous").fetchone()[0])
    assert level == (1 if "normal" in query else 2)
    await store.aclose()


async def test_relative_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("sub")
    store = open_store("sqlite:///sub/jobs.db")
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=100)
    # It is the place at the time of opening that counts.
    monkeypatch.chdir("/")
    assert await store.lapse(limit=1) == []
    assert (tmp_path / "sub" / "jobs.db").exists()
    assert ("default", Status.QUEUED) not in await store.counts()
    await store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jobs.db",
        "memory://host",
        "memory://?x=1",
        "sqlite://",
        "sqlite:///",
        "sqlite://jobs.db",
        "sqlite://user:hunter2@hunter2/jobs.db",
        "sqlite:///jobs.db#hunter2",
        "sqlite:///jobs.db?synchronous=off",
        "sqlite:///jobs.db?synchronous=",
        "sqlite:///jobs.db?hunter2=full",
        "sqlite:///jobs.db?synchronous=full&synchronous=normal",
        "sqlite:///jobs.db?synchronous=full&other=1",
        "postgresql://user:hunter2@hunter2/db",
        "http://[hunter2",
    ],
)
def test_anything_else_is_refused_without_telling_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    text = str(caught.value)
    assert all(form in text for form in ("memory://", "sqlite:///relative.db", "sqlite:////absolute.db"))
    assert "hunter2" not in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


LOGIN: dict[str, Any] = {"username": Secret("us:er"), "password": Secret("hunt er/2+")}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", RedisSettings(addresses=(("host", 6379),))),
        ("REDIS://host:7000/15", RedisSettings(addresses=(("host", 7000),), db=15)),
        ("valkey://[::1]:7000/", RedisSettings(addresses=(("::1", 7000),))),
        ("redis://us%3Aer:hunt%20er%2F2+@host", RedisSettings(addresses=(("host", 6379),), **LOGIN)),
        ("redis://:a@b@host", RedisSettings(addresses=(("host", 6379),), password=Secret("a@b"))),
        ("redis://bob:@host", RedisSettings(addresses=(("host", 6379),), username=Secret("bob"))),
        (
            "redis://host?prefix=other&timeout_seconds=0.5",
            RedisSettings(addresses=(("host", 6379),), prefix="other", timeout_seconds=0.5),
        ),
        ("unix:///run/my%20redis.sock?db=2", RedisSettings(path="/run/my redis.sock", db=2)),
        ("unix://us%3Aer:hunt%20er%2F2+@/run/r", RedisSettings(path="/run/r", **LOGIN)),
        ("rediss://host", RedisSettings(addresses=(("host", 6379),), tls=Tls())),
        (
            "valkeys://host?ssl_ca_certs=/a&ssl_certfile=/b&ssl_keyfile=/c&ssl_password=hunter2&ssl_check_hostname=no",
            RedisSettings(
                addresses=(("host", 6379),),
                tls=Tls(
                    ca_file="/a", cert_file="/b", key_file="/c", key_password=Secret("hunter2"), check_hostname=False
                ),
            ),
        ),
        (
            "redis+sentinel://a,b:7000/my%2Fmaster/3",
            RedisSettings(kind="sentinel", addresses=(("a", 26379), ("b", 7000)), service="my/master", db=3),
        ),
        (
            "rediss+sentinel://us%3Aer:hunt%20er%2F2+@a/m?sentinel_username=e&sentinel_password=hunter+3",
            RedisSettings(
                kind="sentinel",
                addresses=(("a", 26379),),
                service="m",
                tls=Tls(),
                sentinel_tls=Tls(),
                sentinel_username=Secret("e"),
                sentinel_password=Secret("hunter+3"),
                **LOGIN,
            ),
        ),
        (
            "redis+cluster://a,[fe80::1]:7000?spaces=4",
            RedisSettings(kind="cluster", addresses=(("a", 6379), ("fe80::1", 7000)), spaces=4),
        ),
        ("valkeys+cluster://a", RedisSettings(kind="cluster", addresses=(("a", 6379),), tls=Tls())),
    ],
)
def test_redis_urls(url: str, expected: RedisSettings) -> None:
    assert RedisSettings.of_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis:///0",
        "redis:host",
        "redis://us:hunter2@",
        "redis://us:hunter2/x@host",
        "redis://us:hunter2?x@host",
        "redis://us:hunter2#x@host",
        "redis://us:hunter 2@host",
        "redis://us:hunter\u00e92@host",
        "redis://hunter2@host",
        "redis://a:hunter2,b/0",
        "redis://us:hunter2@a,b/0",
        "redis://us:hunter2@host:0",
        "redis://us:hunter2@host:65536",
        "redis://us:hunter2@host:hunter2",
        "redis://us:hunter2@host/hunter2",
        "redis://us:hunter2@host/-1",
        "redis://us:hunter2@host/0/1",
        "redis://us:hunter2@host?hunter2=1",
        "redis://us:hunter2@host?prefix=hunter2{}",
        "redis://us:hunter2@host?prefix=",
        "redis://us:hunter2@host?prefix=a&prefix=hunter2",
        "redis://us:hunter2@host?timeout_seconds=hunter2",
        "redis://us:hunter2@host?timeout_seconds=0",
        "redis://us:hunter2@host?timeout_seconds=nan",
        "redis://us:hunter2@host?timeout_seconds=601",
        "redis://us:hunter2@host?ssl_ca_certs=hunter2",
        "redis://us:hunter2@host?spaces=hunter2",
        "redis://us:hunter2@host?sentinel_password=hunter2",
        "redis://us:hunter2@host?db=1",
        "rediss://us:hunter2@host?ssl_check_hostname=hunter2",
        "rediss://us:hunter2@host?ssl_keyfile=hunter2",
        "rediss://us:hunter2@host?ssl_cert_reqs=none",
        "rediss://us:hunter2@host?ssl_ca_certs=",
        "unix://hunter2",
        "unix://us:hunter2@host/run/redis.sock",
        "unix:///run/hunter2?db=hunter2",
        "redis+sentinel://us:hunter2@a,b",
        "redis+sentinel://us:hunter2@a,b/",
        "redis+sentinel://us:hunter2@a,,b/m",
        "redis+sentinel://us:hunter2@a/m?sentinel_password=",
        "redis+cluster://us:hunter2@a/1",
        "redis+cluster://us:hunter2@a?spaces=0",
        "redis+unix:///run/hunter2",
    ],
)
def test_a_redis_url_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    text = "".join(traceback.format_exception(caught.value, chain=True)).partition("ConfigError")[2]
    assert "hunter" not in text and "redis://[user:password@]host" in text
    assert caught.value.__context__ is None


@pytest.mark.parametrize("url", ["redis://host", "unix:///r", "rediss+sentinel://a/m", "memory://"])
def test_which_store(url: str) -> None:
    if url == "memory://":
        with pytest.raises(ConfigError, match="SQLite or Redis"):
            require_shared(url)
    else:
        assert type(open_store(url)).__name__ == "RedisStore"
        require_shared(url)


def test_who_uses_sqlite_loads_no_redis() -> None:
    code = (
        "import sys; from callboard.stores.opening import open_store, require_shared; open_store('sqlite:///x.db');"
        " print(*{'redis', 'hiredis'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []


TLS_ARGUMENTS: dict[str, Any] = {"ssl": True, "ssl_ca_certs": "/a", "ssl_check_hostname": False, "ssl_password": "p"}
HELD: dict[str, Any] = {"username": Secret("bob"), "password": Secret("hunter2")}


@pytest.mark.parametrize("library", [redis, redis.asyncio])
def test_an_existing_client(library: Any) -> None:
    """Those of asyncio are made outside of asyncio here, as an app does that starts trio later."""
    login = {"username": "bob", "password": "hunter2"}
    of = RedisSettings.of_client
    assert of(library.Redis()) == RedisSettings(addresses=(("localhost", 6379),))
    plain = RedisSettings(addresses=(("host", 7000),), db=3, timeout_seconds=2.0, **HELD)
    assert of(library.Redis(host="host", port=7000, db=3, socket_timeout=2, **login)) == plain
    assert of(library.Redis.from_url("redis://bob:hunter2@host:7000/3?socket_timeout=2")) == plain
    changed = of(library.Redis(host="h"), prefix="p", timeout_seconds=1, spaces=2)
    assert (changed.prefix, changed.timeout_seconds, changed.spaces) == ("p", 1, 2)
    assert of(library.Redis(unix_socket_path="/run/r", db=1)) == RedisSettings(path="/run/r", db=1)
    secure = of(library.Redis(host="host", **TLS_ARGUMENTS)).tls
    assert secure is not None and dict(secure.more)["ssl_cert_reqs"] == "required"
    assert (secure.ca_file, secure.check_hostname, secure.key_password) == ("/a", False, Secret("p"))
    assert of(library.Redis.from_url("rediss://host?ssl_cert_reqs=none")).tls == Tls(more=(("ssl_cert_reqs", "none"),))
    provider = redis.UsernamePasswordCredentialProvider("bob", "hunter2")
    assert of(library.Redis(credential_provider=provider)).credentials is provider

    sentinel = library.sentinel.Sentinel(
        [("a", 1), ("b", 2)], sentinel_kwargs={"password": "hunter3", "ssl": True}, **login
    )
    settings = of(sentinel.master_for("m", db=4))
    assert (settings.kind, settings.addresses, settings.service) == ("sentinel", (("a", 1), ("b", 2)), "m")
    assert (settings.username, settings.password, settings.db) == (Secret("bob"), Secret("hunter2"), 4)
    assert settings.sentinel_password == Secret("hunter3") and settings.sentinel_tls and settings.tls is None
    with pytest.raises(ConfigError, match="master_for"):
        of(sentinel.slave_for("m"))
    for nonsense in (object(), "redis://host", None):
        with pytest.raises(ConfigError, match="no client"):
            of(nonsense)


def test_an_existing_cluster_client() -> None:
    nodes = [redis.asyncio.cluster.ClusterNode("a", 1), redis.asyncio.cluster.ClusterNode("b", 2)]
    client = redis.asyncio.RedisCluster(startup_nodes=nodes, username="bob", password="hunter2", ssl=True)
    settings = RedisSettings.of_client(client)
    assert (settings.kind, settings.addresses) == ("cluster", (("a", 1), ("b", 2)))
    assert settings.tls is not None and settings.password == Secret("hunter2")


def test_settings_show_no_secret() -> None:
    url = "rediss+sentinel://bob:hunter2@hunter3/m?sentinel_username=eve&sentinel_password=hunter4&ssl_password=hunter5&ssl_certfile=x"
    settings = RedisSettings.of_url(url)
    shown = [repr(settings), str(settings), f"{settings}", pprint.pformat(settings), str(settings.__rich_repr__())]
    shown += [repr(settings.tls), repr(settings.password), str(settings.password), repr(Dial(settings).__dict__)]
    assert not re.search("hunter|bob|eve", " ".join(shown).replace("hunter3", ""))
