"""The servers that the tests start: they come back on their port, change masters, move slots, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, MovedError, ResponseError
from redis.retry import Retry
from tests.conftest import wait_until
from tests.redis_servers import CERTIFICATES, ClusterSet, RedisServer, RedisServers, SentinelSet, program

LOGIN = ("callboard", "sesame")


def test_the_shared_server_is_empty_and_runs(redis_server: RedisServer) -> None:
    assert redis_server.run("DBSIZE") == 0
    redis_server.run("SET", "left", "over")
    redis_server.pause()


def test_the_shared_server_is_empty_and_runs_again(redis_server: RedisServer) -> None:
    test_the_shared_server_is_empty_and_runs(redis_server)
    redis_server.kill()


def test_a_killed_server_comes_back_on_its_port_with_its_file(redis_servers: RedisServers) -> None:
    server = redis_servers.server(fsync="always", login=LOGIN)
    plain = redis_servers.server()
    client, port, pid = server.client(), server.port, server.pid
    # In a transaction, as a script's writes are in the file too: with a default user of no rights they would not be read back.
    client.eval("redis.call('SET', 'key', 'value') redis.call('SET', 'other', 'value')", 0)
    plain.run("SET", "key", "value")
    server.kill()
    plain.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.get("key")
    server.restart(maxmemory="10mb")
    plain.restart()
    assert (server.port, client.get("key")) == (port, b"value")
    assert server.pid != pid
    assert client.config_get("maxmemory") == {"maxmemory": str(10 * 2**20)}
    assert plain.run("GET", "key") is None
    server.restart()
    assert client.config_get("maxmemory") == {"maxmemory": "0"}


def test_a_paused_server_does_not_answer(redis_servers: RedisServers) -> None:
    server = redis_servers.server()
    server.pause()
    with pytest.raises(redis.exceptions.TimeoutError):
        server.client(socket_timeout=0.3).ping()
    server.resume()
    server.wait_ready()


@pytest.mark.parametrize("login", [None, LOGIN, ("default", "sesame")], ids=["open", "user", "default"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_urls_are_those_of_redis_py(redis_servers: RedisServers, tls: bool, login: tuple[str, str] | None) -> None:
    server = redis_servers.server(login=login, tls=tls, user=["other on >word ~* &* -@all"])
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
    with redis.Redis(unix_socket_path=str(server.socket_path), **options) as client:
        if login is None:
            assert client.ping()
        else:
            with pytest.raises(AuthenticationError):
                client.ping()
    options |= {"ssl_ca_certs": str(CERTIFICATES / "authority.pem")} if tls else {}
    with redis.Redis.from_url(server.url, **options) as client:
        assert client.ping()
        assert client.acl_whoami() == (login[0] if login else "default")
        assert set(client.acl_users()) == {"default", "other"} | ({login[0]} if login else set())


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "login and TLS"])
def test_sentinels_promote_a_replica(redis_servers: RedisServers, guarded: bool) -> None:
    given = {"login": LOGIN, "sentinels_login": ("guard", "word"), "tls": True} if guarded else {}
    servers = redis_servers.sentinels(**given)
    first = servers.master
    assert first is servers.servers[0]
    first.run("SET", "key", "value")
    assert first.run("WAIT", 1, 10_000) == 1
    second = servers.fail_over()
    assert second is servers.master is servers.servers[1]
    assert second.run("GET", "key") == "value"
    assert second.run("SET", "key", "other") in (True, "OK")
    # That it follows the new master is told to it some ten seconds later.
    first.restart()
    assert servers.master is second
    secret = "callboard:sesame@" if guarded else ""
    ports = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in servers.sentinels)
    assert servers.url == f"redis{'s' if guarded else ''}+sentinel://{secret}{ports}/callboard"


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "login and TLS"])
def test_a_cluster_moves_slots_and_promotes_replicas(redis_servers: RedisServers, guarded: bool) -> None:
    given = {"login": LOGIN, "tls": True} if guarded else {}
    cluster = redis_servers.cluster(**given)
    assert len(cluster.masters) == 3
    slot = cluster.slot_of("{a}")
    source = cluster.master_of(slot)
    for key in ("{a}1", "{a}2"):
        source.run("SET", key, "value")
    move = cluster.move(slot)
    assert sorted(move.keys()) == ["{a}1", "{a}2"]
    move.move_keys(["{a}1"])
    with pytest.raises(ResponseError, match=f"ASK {slot}|{slot} 127.0.0.1:{move.target.port}"):
        source.run("GET", "{a}1")
    assert source.run("GET", "{a}2") == "value"
    move.finish()
    with pytest.raises(MovedError):
        source.run("GET", "{a}2")
    assert cluster.master_of(slot) is move.target
    assert move.target.run("GET", "{a}2") == "value"
    assert move.target.run("WAIT", 1, 10_000) == 1

    killed = cluster.kill_master_of(slot)
    assert killed is move.target
    after = cluster.master_of(slot)
    assert after in cluster.nodes[3:] and after.run("GET", "{a}1") == "value"
    killed.restart()
    cluster.settle()
    assert len(cluster.masters) == 3


def running(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        found.append(pid)
    return found


@pytest.mark.parametrize("made", [SentinelSet, ClusterSet], ids=["sentinels", "cluster"])
def test_nothing_is_left_when_the_start_fails(
    tmp_path: Path, made: type[SentinelSet | ClusterSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def fails(servers: SentinelSet | ClusterSet) -> None:
        pids.extend(member.pid for member in servers._members)
        raise RuntimeError("not joined")

    monkeypatch.setattr(made, "_join", fails)
    with pytest.raises(RuntimeError, match="not joined"):
        made(tmp_path / "set").__enter__()
    assert len(pids) >= 5 and not running(pids)


def test_servers_end_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.redis_servers import RedisServer\n"
        "with RedisServer(Path(sys.argv[1])) as server: print(server.pid, flush=True); time.sleep(600)"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "it")], cwd=root, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        assert running([pid])
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not running([pid]), "the server has ended")


def test_who_watched_a_server_that_ended_by_itself_does_not_outlive_it(redis_servers: RedisServers) -> None:
    """It would kill by a number that may be another's by then."""
    server = redis_servers.server()
    watcher = server._watcher
    assert watcher is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.running, "it has ended")
    server.start()
    assert watcher.returncode is not None and not running([watcher.pid])


def test_a_bad_directive_is_told(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match="maxmemory-policy"), RedisServer(tmp_path, maxmemory_policy="whatever"):
        pass
    assert time.monotonic() - began < 30


def test_without_redis_a_test_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_TEST_REDIS_SERVER", "no-such-redis")
    with pytest.raises(pytest.fail.Exception, match="apt install redis-server"):
        program()
