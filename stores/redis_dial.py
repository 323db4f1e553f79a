"""How one connection of redis-py is made from the settings: no pool, no retry, explicit timeouts. It runs in the caller's thread."""

import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from callboard.stores.redis_url import RedisSettings, Secret, Tls

__all__ = ["CLIENT_NAME", "SENTINEL_SECONDS", "Connection", "Dial", "NoMaster", "arguments", "hang_up"]

CLIENT_NAME: Final = "callboard"
"""What CLIENT LIST shows."""

CONNECT_SECONDS: Final = 5.0
"""The longest wait for a server to take a connection, which nothing can cut short."""

SENTINEL_SECONDS: Final = 1.0
"""The longest wait for one sentinel: there are others to ask."""


class Connection(Protocol):
    """The part of redis-py's connections that is used here; each raises what redis-py raises, and closes itself when in doubt."""

    redis_connect_func: Callable[[Any], None] | None
    handshake_metadata: dict[bytes, Any] | None

    @property
    def is_connected(self) -> bool: ...
    def connect(self) -> None: ...
    def on_connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def can_read(self, timeout: float = 0) -> bool: ...
    def send_command(self, *args: str | bytes | int) -> None: ...
    def read_response(
        self, *, timeout: float = ..., disconnect_on_error: bool = True, push_request: bool = False
    ) -> Any: ...
    def _get_socket(self) -> socket.socket | None: ...


class _TlsConnection(redis.SSLConnection):
    """One that can be cut off while it shakes hands, which a server that hangs may let last for all of the timeout."""

    handshaking: socket.socket | None = None
    watch: Callable[[], None]

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> Any:
        # A handle of its own: the wrapper takes the socket's away at once, and gives nothing back before the hands are shaken.
        with sock.dup() as self.handshaking:
            try:
                self.watch()
                return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
            finally:
                self.handshaking = None


def arguments(settings: RedisSettings) -> dict[str, Any]:
    """The arguments of redis-py that all connections to data servers have in common, but for the address."""
    return {
        "db": settings.db,
        "credential_provider": settings.credentials,
        **_common(settings, settings.username, settings.password, settings.tls),
    }


def _common(
    settings: RedisSettings, username: Secret | None, password: Secret | None, tls: Tls | None
) -> dict[str, Any]:
    common: dict[str, Any] = {
        "username": username.reveal() if username else None,
        "password": password.reveal() if password else None,
        "socket_timeout": settings.timeout_seconds,
        "socket_connect_timeout": min(settings.timeout_seconds, CONNECT_SECONDS),
        # A command is sent once: redis-py's default, ten retries, runs one twice when the server is slow.
        "retry": Retry(NoBackoff(), 0),
        # A connection that is closed is noticed before it is used, one that is dead by keepalive or the timeout: no PING between.
        "health_check_interval": 0,
        # RESP3: one connection for commands and messages, and the greeting says version, mode and role.
        "protocol": 3,
        "decode_responses": False,
        # Two commands less for each connection.
        "driver_info": None,
    }
    if tls is not None:
        common |= {
            "ssl_ca_certs": tls.ca_file,
            "ssl_certfile": tls.cert_file,
            "ssl_keyfile": tls.key_file,
            # Without one, OpenSSL would ask the terminal.
            "ssl_password": tls.key_password.reveal() if tls.key_password else "",
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": tls.check_hostname,
            **dict(tls.more),
        }
    return common


class NoMaster(RedisConnectionError):
    """The sentinels name no master. ``last`` is what the last of them raised, None where one answered that it knows none."""

    def __init__(self, last: RedisError | None) -> None:
        super().__init__("no sentinel names a master")
        self.last = last


class Dial:
    """Makes connections to wherever the master is now; for several threads."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self.era = 0
        """Changes when the master is, or may be, another server: connections of an older era are to be left."""
        self.tried: tuple[tuple[str, int] | None, Tls | None] = (None, settings.tls)
        """The address that was last dialed, and how; for the diagnosis of what went wrong."""
        self._sentinels = settings.addresses
        self._master: tuple[str, int] | None = None

    def connect(self, show: Callable[[Connection], None]) -> Connection:
        """A new connection to the master. Raises what redis-py raises, and what ``show`` raises.

        ``show`` is given each connection several times: before there is a socket, and whenever there is one that ``cut`` can find.
        """
        settings = self.settings
        address: tuple[str, int] | None = None
        if settings.path is None:
            address = self._discover(show) if settings.kind == "sentinel" else settings.addresses[0]
        connection = _make(address, settings.tls, path=settings.path, **arguments(settings))
        self.tried = address, settings.tls
        _dial(connection, show)
        try:
            _introduce(connection, is_master=settings.kind != "cluster")
        except BaseException:
            hang_up(connection)
            raise
        if address != self._master:
            self._master = address
            self.era += 1
        return connection

    def doubt_master(self) -> None:
        """Someone was told that the master is none any more."""
        self.era += 1

    def _discover(self, show: Callable[[Connection], None]) -> tuple[str, int]:
        """Source: Redis documentation, "Guidelines for Redis clients with support for Sentinel"."""
        settings = self.settings
        last: RedisError | None = None
        for sentinel in self._sentinels:
            common = _common(settings, settings.sentinel_username, settings.sentinel_password, settings.sentinel_tls)
            seconds = min(settings.timeout_seconds, SENTINEL_SECONDS)
            common |= {"socket_timeout": seconds, "socket_connect_timeout": seconds, "protocol": 2}
            connection = _make(sentinel, settings.sentinel_tls, **common)
            self.tried = sentinel, settings.sentinel_tls
            try:
                _dial(connection, show)
                connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", settings.service or "")
                reply = connection.read_response()
            except RedisError as error:
                last = error
                continue
            finally:
                hang_up(connection)
            if reply is None:
                last = None
                continue
            # The one that answers is asked first the next time.
            self._sentinels = (sentinel, *(one for one in settings.addresses if one != sentinel))
            return reply[0].decode(), int(reply[1])
        raise NoMaster(last)

    @staticmethod
    def cut(connection: Connection | None) -> None:
        """From another thread: whoever waits for ``connection`` gets an error at once. It is for its own thread to close."""
        if connection is None:
            return
        found = connection._get_socket()
        try:
            if found is not None:
                # Not the method of an SSLSocket, which takes the TLS state away under its reader's hands.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
            elif isinstance(connection, _TlsConnection) and connection.handshaking is not None:
                # Its reading end only: Python loses a socket that is not connected any more when TLS begins.
                connection.handshaking.shutdown(socket.SHUT_RD)
        except OSError:
            # It is closed already.
            pass


def hang_up(connection: Connection) -> None:
    """Close the connection, which its thread has left."""
    try:
        connection.disconnect()
    except (RedisError, OSError):
        # There is nothing more to close.
        pass


def _make(address: tuple[str, int] | None, tls: Tls | None, *, path: str | None = None, **options: Any) -> Connection:
    if address is None:
        kind: Any = redis.UnixDomainSocketConnection
        return cast("Connection", kind(path=path, **options))
    kind = redis.Connection if tls is None else _TlsConnection
    return cast("Connection", kind(host=address[0], port=address[1], **options))


def _dial(connection: Connection, show: Callable[[Connection], None]) -> None:
    def greet(connected: Connection) -> None:
        # Who was dropped before there was a socket ends here; from here on ``cut`` finds it.
        show(connected)
        connected.on_connect()

    show(connection)
    if isinstance(connection, _TlsConnection):
        connection.watch = partial(show, connection)
    connection.redis_connect_func = greet
    try:
        connection.connect()
    finally:
        # They refer to it, and it to them.
        connection.redis_connect_func = None
        if isinstance(connection, _TlsConnection):
            del connection.watch


def _introduce(connection: Connection, *, is_master: bool) -> None:
    """Give it its name, and see that it is no replica: sentinels may be late, and a name may still lead to the old master.

    In a cluster a replica tells who serves which slot as well as a master does, and sends everything else there.
    """
    connection.send_command("CLIENT", "SETNAME", CLIENT_NAME)
    try:
        connection.read_response()
    except ResponseError:
        # The user may not; it is for people who look at CLIENT LIST.
        pass
    if is_master and (connection.handshake_metadata or {}).get(b"role") == b"replica":
        raise ReadOnlyError("it is a replica")
