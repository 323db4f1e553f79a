"""Real redis-servers that the tests start: one, a master with replicas and sentinels, a cluster. Each has its own folder and ports.

A server's port is the system's choice, and is kept for as long as the object lives: a server that was killed comes back on it, and
neither another program nor a client's own end of a connection takes it meanwhile. Everything listens on 127.0.0.1 only. What runs is
ended by the end of the ``with`` block, by process id; should the test run itself be killed, its servers go with it.

``CALLBOARD_TEST_REDIS_SERVER`` names another program than ``redis-server``, such as ``valkey-server``.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

__all__ = [
    "CERTIFICATES",
    "SERVICE",
    "ClusterSet",
    "Login",
    "RedisServer",
    "RedisServers",
    "Sentinel",
    "SentinelSet",
    "SlotMove",
    "program",
]

CERTIFICATES: Final = Path(__file__).parent / "web" / "certificates"
"""``authority.pem`` signed ``server`` (for localhost and 127.0.0.1) and ``client``."""

SERVICE: Final = "callboard"
"""What the sentinels call the master."""

READY_SECONDS: Final = 60
"""A server on a busy machine needs so long at most until it answers."""

Login = tuple[str, str]
"""User and password."""

Directives = Mapping[str, str | Sequence[str] | None]


def program() -> str:
    """The redis-server to start; without one the test fails, because a skipped test looks like a passed one."""
    name = os.environ.get("CALLBOARD_TEST_REDIS_SERVER", "redis-server")
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/sbin")
    if found is None:
        pytest.fail(
            f"the tests of the Redis store start a real {name}, and there is none on PATH. Install Redis 7 or newer: on Debian and "
            "Ubuntu `apt install redis-server`, on Fedora `dnf install redis`, on macOS `brew install redis`; no service has to run"
        )
    return found


def eventually(condition: Callable[[], object], what: Callable[[], str], *, seconds: float = READY_SECONDS) -> None:
    """Wait for ``condition``, in which Redis may be away; an AssertionError with ``what()`` when it does not come true."""
    deadline = time.monotonic() + seconds
    while True:
        last = ""
        try:
            if condition():
                return
        except RedisError as error:
            last = f" ({error!r})"
        assert time.monotonic() < deadline, f"not within {seconds} s: {what()}{last}"
        time.sleep(0.01)


class HeldPort:
    """A free port of 127.0.0.1 that nobody else is given until ``close``.

    The socket is bound and never listens. On Linux a server that sets SO_REUSEADDR, as Redis does, may listen on the port all the
    same, and while none does, whoever connects is refused; but the system gives the port to nobody who asks for any.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


class Process:
    """A process with a configuration file, in a folder of its own, that is started and killed again and again on one port."""

    def __init__(self, folder: Path, *, login: Login | None, tls: bool, arguments: Sequence[str] = ()) -> None:
        self.folder = folder
        self.login = login
        self.tls = tls
        self._arguments = arguments
        self._ports = [HeldPort()]
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._ports[0].number

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None, "never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Also while it is paused."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """All that it wrote, over all its lives."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def directives(self) -> Directives:
        """What is in the configuration file at first; the server itself may rewrite it later."""
        raise NotImplementedError

    def start(self, *, wait: bool = True, **config: str) -> None:
        """Start it, which must not run, with more directives for this life; ``wait`` until it has loaded its data and answers."""
        assert not self.running, "it runs already"
        self.kill()  # who watched one that ended by itself
        file = self.folder / "conf"
        if not file.exists():
            file.write_text("".join(f"{line}\n" for line in lines(self.directives())))
        more = [word for name, value in config.items() for word in (f"--{name.replace('_', '-')}", value)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program(), str(file), *self._arguments, *more],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Its input ends with the test run, however that ends. (PR_SET_PDEATHSIG would end the server with the thread that started it.)
        self._watcher = subprocess.Popen(
            ["sh", "-c", 'read -r _; kill -9 "$1"', "watcher", str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if wait:
            self.wait_ready()

    def wait_ready(self, *, seconds: float = READY_SECONDS) -> None:
        """Until it answers PING, which it does not while it loads its data."""
        with self.fresh_client() as client:

            def answers() -> bool:
                assert self.running, f"redis-server ended by itself:\n{self.log()[-3000:]}"
                return bool(client.execute_command("PING"))

            eventually(answers, lambda: f"it answers:\n{self.log()[-3000:]}", seconds=seconds)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, upon which Redis flushes its file and ends."""
        self._end(signal.SIGTERM)

    def restart(self, *, wait: bool = True, **config: str) -> None:
        """Kill it if it runs, and start it on the same port and folder."""
        self.kill()
        self.start(wait=wait, **config)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, new ones too are taken by the system, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A client with the server's login and TLS that never repeats a command; it is closed in the end."""
        self._clients.append(self.fresh_client(**options))
        return self._clients[-1]

    def fresh_client(self, **options: Any) -> redis.Redis:
        """The same, to be closed by the caller."""
        secure: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(CERTIFICATES / "authority.pem")} if self.tls else {}
        login = {} if self.login is None else {"username": self.login[0], "password": self.login[1]}
        given = {"socket_timeout": 10, "retry": Retry(NoBackoff(), 0), **secure, **login, **options}
        return redis.Redis(host="127.0.0.1", port=self.port, **given)

    def run(self, *command: str | int) -> Any:
        """One command on a connection of its own; its answer with texts as ``str``."""
        with self.fresh_client(decode_responses=True) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        """End the process and let go of everything. May be called again."""
        self.kill()
        for client in self._clients:
            client.close()
        for port in self._ports:
            port.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None or self._watcher is None:
            return
        # The watcher first: it must not outlive the process, whose number may belong to another one later.
        self._watcher.kill()
        self._watcher.wait(30)
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._process.send_signal(how)
        self._process.wait(30)


def lines(directives: Directives) -> Iterator[str]:
    """The lines of a configuration file."""
    for name, value in directives.items():
        for one in [value] if isinstance(value, str) else value or ():
            yield f"{name.replace('_', '-')} {one}"


def secured(login: Login | None, tls: bool, port: int) -> dict[str, str | Sequence[str]]:
    """What a server or a sentinel is told about its port, who may enter, and as whom it enters others."""
    told: dict[str, str | Sequence[str]] = {"bind": "127.0.0.1", "port": "0" if tls else str(port)}
    if tls:
        told |= {
            "tls_port": str(port),
            "tls_cert_file": str(CERTIFICATES / "server.pem"),
            "tls_key_file": str(CERTIFICATES / "server.key"),
            "tls_ca_cert_file": str(CERTIFICATES / "authority.pem"),
            # Clients need no certificate; `tls_auth_clients="yes"` asks for `client.pem`.
            "tls_auth_clients": "no",
            "tls_replication": "yes",
            # What a server shows to another; the cluster's bus asks for one whatever clients need.
            "tls_client_cert_file": str(CERTIFICATES / "client.pem"),
            "tls_client_key_file": str(CERTIFICATES / "client.key"),
        }
    if login is not None:
        user, password = login
        # Nobody can be the default user, which has every right all the same: an append-only file is read with its rights, and without
        # them Redis leaves out what scripts wrote. Source: https://github.com/redis/redis/issues/14541, valkey-io/valkey issue 3983.
        closed = [] if user == "default" else ["default off ~* &* +@all"]
        told["user"] = [f"{user} on >{password} ~* &* +@all", *closed]
    return told


def address(scheme: str, servers: Sequence[Process], path: str = "") -> str:
    """The store's URL of these servers."""
    secure = "rediss" if servers[0].tls else "redis"
    login = "" if servers[0].login is None else "{}:{}@".format(*servers[0].login)
    return f"{secure}{scheme}://{login}{','.join(f'127.0.0.1:{server.port}' for server in servers)}{path}"


class RedisServer(Process):
    """One redis-server. Context manager: starts it, and ends it.

    ``fsync`` turns the append-only file on and says when it is forced to disk; without, everything is gone with the process. ``login``
    makes that user, with every right, and closes the door to all others. ``tls``: it listens with TLS only, as
    ``CERTIFICATES / "server.pem"``. ``config`` are directives with ``_`` for ``-``; a list repeats one, None leaves one out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: Literal["always", "everysec"] | None = None,
        login: Login | None = None,
        tls: bool = False,
        **config: str | Sequence[str] | None,
    ) -> None:
        super().__init__(folder, login=login, tls=tls)
        self._fsync = fsync
        self._config = config

    @property
    def url(self) -> str:
        """``redis://`` or ``rediss://``, with the login."""
        return address("", [self])

    @property
    def socket_path(self) -> Path:
        """Its unix socket."""
        return self.folder / "socket"

    @property
    def unix_url(self) -> str:
        """``unix://``, without a login."""
        return f"unix://{self.socket_path}"

    def directives(self) -> Directives:
        entering = {} if self.login is None else {"masteruser": self.login[0], "masterauth": self.login[1]}
        given: dict[str, str | Sequence[str] | None] = {
            **secured(self.login, self.tls, self.port),
            **entering,
            "dir": str(self.folder),
            # A relative path: how long an absolute one may be is limited to a hundred characters.
            "unixsocket": "socket",
            "save": '""',
            "appendonly": "no" if self._fsync is None else "yes",
            "appendfsync": self._fsync,
            "enable_debug_command": "local",
            # A replica gets its copy at once, and not after five seconds in which others might ask too.
            "repl_diskless_sync_delay": "0",
        }
        users = [*(given.get("user") or ()), *texts(self._config.get("user"))]
        return {**given, **self._config, "user": users}


def texts(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def fields(answer: str) -> dict[str, str]:
    """The lines ``name:value`` of an INFO or CLUSTER INFO."""
    return dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)


def info(server: Process, section: str) -> dict[str, str]:
    with server.fresh_client() as client:
        # Not `info()`, and bytes: that would be parsed.
        client.set_response_callback("INFO", lambda answer, **_: answer)
        return fields(client.execute_command("INFO", section).decode())


class Servers:
    """Several servers that are one store. Context manager: starts them and waits until they know each other; ends them."""

    def __init__(self) -> None:
        self._members: list[Process] = []

    def __enter__(self) -> Self:
        try:
            for member in self._members:
                member.start(wait=False)
            for member in self._members:
                member.wait_ready()
            self._join()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _join(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End them all. May be called again."""
        for member in self._members:
            member.close()


# Sentinel


class Sentinel(Process):
    """One sentinel, which is a redis-server in another mode."""

    def __init__(self, folder: Path, master: RedisServer, told: Mapping[str, str], login: Login | None) -> None:
        super().__init__(folder, login=login, tls=master.tls, arguments=["--sentinel"])
        self._master = master
        self._told = told

    def directives(self) -> Directives:
        told = [f"monitor {SERVICE} 127.0.0.1 {self._master.port} 2"]
        told += [f"{name} {SERVICE} {value}" for name, value in self._told.items()]
        if self._master.login is not None:
            user, password = self._master.login
            told += [f"auth-user {SERVICE} {user}", f"auth-pass {SERVICE} {password}"]
        if self.login is not None:
            told += [f"sentinel-user {self.login[0]}", f"sentinel-pass {self.login[1]}"]
        return {**secured(self.login, self.tls, self.port), "dir": str(self.folder), "sentinel": told}

    def master_port(self) -> int:
        """Where it says that the master is."""
        _, port = self.run("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(port)

    def numbers(self) -> tuple[int, int]:
        """How many replicas and how many other sentinels it knows."""
        answer = self.run("SENTINEL", "MASTER", SERVICE)
        told = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
        return int(told["num-slaves"]), int(told["num-other-sentinels"])


class SentinelSet(Servers):
    """A master, its replicas and three sentinels, two of which have to agree. ``config`` is of the servers, as ``fsync`` is.

    ``sentinels_login`` is what the sentinels themselves ask for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replicas: int = 1,
        fsync: Literal["always", "everysec"] | None = None,
        login: Login | None = None,
        sentinels_login: Login | None = None,
        tls: bool = False,
        down_after_milliseconds: int = 1000,
        **config: str | Sequence[str] | None,
    ) -> None:
        super().__init__()
        first = RedisServer(folder / "server-0", fsync=fsync, login=login, tls=tls, **config)
        following = {**config, "replicaof": f"127.0.0.1 {first.port}"}
        self.servers = [first] + [
            RedisServer(folder / f"server-{number}", fsync=fsync, login=login, tls=tls, **following)
            for number in range(1, replicas + 1)
        ]
        told = {
            "down-after-milliseconds": str(down_after_milliseconds),
            # How long after a failed vote there is another one: twice this.
            "failover-timeout": "3000",
        }
        self.sentinels = [Sentinel(folder / f"sentinel-{n}", first, told, sentinels_login) for n in range(3)]
        self._replicas = replicas
        self._members = [*self.servers, *self.sentinels]

    @property
    def url(self) -> str:
        """``redis+sentinel://``, with the servers' login."""
        plain = address("+sentinel", self.sentinels, f"/{SERVICE}")
        if self.servers[0].login is None:
            return plain
        scheme, rest = plain.split("://")
        return "{}://{}:{}@{}".format(scheme, *self.servers[0].login, rest.rpartition("@")[2])

    @property
    def master(self) -> RedisServer:
        """The server that most sentinels call the master."""
        ports = [sentinel.master_port() for sentinel in self.sentinels if sentinel.running]
        return self._on(max(ports, key=ports.count))

    def fail_over(self) -> RedisServer:
        """Kill the master and wait until every sentinel names another, which agrees. The one that was killed can be restarted."""
        killed = self.master
        killed.kill()

        def replaced() -> bool:
            ports = {sentinel.master_port() for sentinel in self.sentinels if sentinel.running}
            return (
                len(ports) == 1 and ports != {killed.port} and info(self._on(*ports), "replication")["role"] == "master"
            )

        eventually(replaced, lambda: "another master:\n" + self.sentinels[0].log()[-3000:])
        return self.master

    def _on(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)

    def _join(self) -> None:
        def copying() -> bool:
            told = info(self.servers[0], "replication")
            return [v.split(",")[2] for k, v in told.items() if k.startswith("slave") and "," in v] == [
                "state=online"
            ] * self._replicas

        eventually(copying, lambda: "the replicas have their copy:\n" + self.servers[-1].log()[-3000:])
        for sentinel in self.sentinels:
            eventually(
                lambda one=sentinel: one.numbers() == (self._replicas, 2),  # type: ignore[misc]
                lambda one=sentinel: "the sentinels know each other:\n" + one.log()[-3000:],  # type: ignore[misc]
            )


# Cluster


class ClusterNode(RedisServer):
    """One server of a cluster."""

    def __init__(self, folder: Path, *, node_timeout_milliseconds: int, **options: Any) -> None:
        super().__init__(folder, **options)
        self._ports.append(HeldPort())
        self._timeout = node_timeout_milliseconds

    @property
    def bus_port(self) -> int:
        return self._ports[1].number

    def directives(self) -> Directives:
        given = {
            "cluster_enabled": "yes",
            "cluster_config_file": "nodes.conf",
            "cluster_port": str(self.bus_port),
            "cluster_node_timeout": str(self._timeout),
            # However old its copy is, a replica may be promoted: a test waits for it.
            "cluster_replica_validity_factor": "0",
            **({"tls_cluster": "yes"} if self.tls else {}),
        }
        return {**given, **super().directives()}

    def id(self) -> str:
        """What the cluster calls it."""
        return str(self.run("CLUSTER", "MYID"))

    def healthy(self, known: int) -> bool:
        """It says that every slot is served, and knows so many nodes."""
        told = self.told()
        return told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) == known

    def told(self) -> dict[str, str]:
        """CLUSTER INFO."""
        answer = self.run("CLUSTER", "INFO")
        return answer if isinstance(answer, dict) else fields(answer)


class SlotMove:
    """A slot on its way from one master to another: MOVED and ASK as a test wants them. Made by ``ClusterSet.move``."""

    def __init__(self, cluster: "ClusterSet", slot: int, target: ClusterNode) -> None:
        self.slot = slot
        self.source = cluster.master_of(slot)
        self.target = target
        self._cluster = cluster
        assert self.target is not self.source
        # In this order: the source must not send anyone to a target that does not expect it.
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", self.source.id())
        self.source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id())

    def keys(self) -> list[str]:
        """Those that are not moved yet."""
        return list(self.source.run("CLUSTER", "GETKEYSINSLOT", self.slot, 1_000_000))

    def move_keys(self, keys: Sequence[str] | None = None) -> None:
        """Move these, or all that are left. The source then answers ASK for them."""
        login = self.source.login
        entering = () if login is None else ("AUTH2", *login)
        for key in self.keys() if keys is None else keys:
            self.source.run("MIGRATE", "127.0.0.1", self.target.port, "", 0, 10_000, *entering, "KEYS", key)

    def finish(self) -> None:
        """Move what is left and give the slot to the target. The source then answers MOVED."""
        self.move_keys()
        # The target first, so that the slot is never nobody's.
        owner = self.target.id()
        for node in (self.target, self.source):
            node.run("CLUSTER", "SETSLOT", self.slot, "NODE", owner)
        self._cluster.settle()


class ClusterSet(Servers):
    """Three masters with one replica each, and the 16,384 slots in thirds. ``config`` is of each server, as ``fsync`` is."""

    def __init__(
        self,
        folder: Path,
        *,
        fsync: Literal["always", "everysec"] | None = None,
        login: Login | None = None,
        tls: bool = False,
        node_timeout_milliseconds: int = 1500,
        **config: str | Sequence[str] | None,
    ) -> None:
        super().__init__()
        self.nodes = [
            ClusterNode(
                folder / f"node-{number}",
                node_timeout_milliseconds=node_timeout_milliseconds,
                fsync=fsync,
                login=login,
                tls=tls,
                **config,
            )
            for number in range(6)
        ]
        self._members = [*self.nodes]

    @property
    def url(self) -> str:
        """``redis+cluster://`` with every node and the login."""
        return address("+cluster", self.nodes)

    @property
    def masters(self) -> list[ClusterNode]:
        """Those that serve slots now."""
        return list(dict.fromkeys(node for _, _, node in self._ranges()))

    def master_of(self, slot: int) -> ClusterNode:
        """Who serves it now."""
        return next(node for first, last, node in self._ranges() if first <= slot <= last)

    def slot_of(self, key: str) -> int:
        """The slot of a key."""
        return int(self._witness().run("CLUSTER", "KEYSLOT", key))

    def kill_master_of(self, slot: int) -> ClusterNode:
        """Kill who serves the slot and wait until its replica serves it and all is well. The one that was killed, to be restarted."""
        killed = self.master_of(slot)
        killed.kill()
        eventually(
            lambda: all(
                self._on(port) is not killed
                for node in self._living()
                for first, last, port in ranges(node)
                if first <= slot <= last
            ),
            lambda: "the replica was promoted:\n" + self._witness().log()[-3000:],
        )
        self.settle()
        return killed

    def move(self, slot: int, target: ClusterNode | None = None) -> SlotMove:
        """Begin to move a slot to another master; nothing of it has moved yet."""
        source = self.master_of(slot)
        return SlotMove(self, slot, target or next(node for node in self.masters if node is not source))

    def settle(self) -> None:
        """Wait until every node that runs says the same about every slot, and that all are served."""

        def settled() -> bool:
            living = self._living()
            views = {tuple(sorted(ranges(node))) for node in living}
            return len(views) == 1 and all(node.healthy(len(self.nodes)) for node in living)

        eventually(settled, lambda: "the cluster is well:\n" + self._witness().log()[-3000:])

    def _on(self, port: int) -> ClusterNode:
        return next(node for node in self.nodes if node.port == port)

    def _living(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.running]

    def _witness(self) -> ClusterNode:
        return self._living()[0]

    def _ranges(self) -> list[tuple[int, int, ClusterNode]]:
        return [(first, last, self._on(port)) for first, last, port in ranges(self._witness())]

    def _join(self) -> None:
        masters, replicas = self.nodes[:3], self.nodes[3:]
        bounds = [(16384 * number // 3, 16384 * (number + 1) // 3 - 1) for number in range(3)]
        for number, (node, (first, last)) in enumerate(zip(masters, bounds, strict=True), start=1):
            node.run("CLUSTER", "SET-CONFIG-EPOCH", number)
            node.run("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            node.run("CLUSTER", "MEET", "127.0.0.1", masters[0].port, masters[0].bus_port)
        for replica, master in zip(replicas, masters, strict=True):
            # Refused until it has heard of its master.
            eventually(
                lambda a=replica, b=master: a.run("CLUSTER", "REPLICATE", b.id()),  # type: ignore[misc]
                lambda a=replica: "a replica knows its master:\n" + a.log()[-3000:],  # type: ignore[misc]
            )
        self.settle()
        for replica in replicas:
            eventually(
                lambda one=replica: info(one, "replication").get("master_link_status") == "up",  # type: ignore[misc]
                lambda one=replica: "the replicas have their copy:\n" + one.log()[-3000:],  # type: ignore[misc]
            )


def ranges(node: ClusterNode) -> list[tuple[int, int, int]]:
    """First and last slot and the port of the master, as the node sees them."""
    found = []
    for line in cluster_nodes(node).splitlines():
        _, where, flags, _, _, _, _, _, *slots = line.split()
        port = int(where.partition("@")[0].rpartition(":")[2])
        if "master" in flags:
            for slot in slots:
                first, _, last = slot.partition("-")
                if not slot.startswith("["):  # a move that is under way
                    found.append((int(first), int(last or first), port))
    return found


def cluster_nodes(node: ClusterNode) -> str:
    """CLUSTER NODES, not parsed by redis-py."""
    with node.fresh_client() as client:
        client.set_response_callback("CLUSTER NODES", lambda answer, **_: answer)
        answer = client.execute_command("CLUSTER NODES")
        return answer.decode() if isinstance(answer, bytes) else str(answer)


# For the fixture


S = TypeVar("S", bound=Process | Servers)


class RedisServers:
    """Starts what a test asks for, each in a folder of its own, and ends all of it in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Process | Servers] = []

    def server(self, **options: Any) -> RedisServer:
        """A ``RedisServer`` that runs."""
        return self._enter(RedisServer(self._next(), **options))

    def sentinels(self, **options: Any) -> SentinelSet:
        """A ``SentinelSet`` that runs."""
        return self._enter(SentinelSet(self._next(), **options))

    def cluster(self, **options: Any) -> ClusterSet:
        """A ``ClusterSet`` that runs."""
        return self._enter(ClusterSet(self._next(), **options))

    def close(self) -> None:
        """End them all."""
        for one in self._started:
            one.close()

    def _next(self) -> Path:
        return self._folder / str(len(self._started))

    def _enter(self, one: S) -> S:
        self._started.append(one)
        one.__enter__()
        return one
