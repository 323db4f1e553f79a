"""How one connection of redis-py is made from the settings: no pool, no retry, explicit timeouts. It runs in the caller's thread."""

import socket
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from callboard.stores.redis_url import RedisSettings, Secret, Tls

__all__ = ["CLIENT_NAME", "Connection", "Dial", "arguments", "hang_up"]

CLIENT_NAME: Final = "callboard"
"""What CLIENT LIST shows."""


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


def arguments(settings: RedisSettings) -> dict[str, Any]:
    """The arguments of redis-py that all connections to data servers have in common, but for the address."""
    return {
        "db": settings.db,
        "credential_provider": settings.credentials,
        "client_name": CLIENT_NAME,
        **_common(settings, settings.username, settings.password, settings.tls),
    }


def _common(
    settings: RedisSettings, username: Secret | None, password: Secret | None, tls: Tls | None
) -> dict[str, Any]:
    common: dict[str, Any] = {
        "username": username.reveal() if username else None,
        "password": password.reveal() if password else None,
        "socket_timeout": settings.timeout_seconds,
        "socket_connect_timeout": settings.timeout_seconds,
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
            "ssl_password": tls.key_password.reveal() if tls.key_password else None,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": tls.check_hostname,
            **dict(tls.more),
        }
    return common


class Dial:
    """Makes connections to wherever the master is."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings

    def make(self) -> Connection:
        """A connection that is not made yet."""
        settings = self._settings
        if settings.path is not None:
            kind: Any = redis.UnixDomainSocketConnection
            address: dict[str, Any] = {"path": settings.path}
        else:
            kind = redis.Connection if settings.tls is None else redis.SSLConnection
            address = dict(zip(("host", "port"), settings.addresses[0], strict=True))
        return cast("Connection", kind(**address, **arguments(settings)))

    def connect(self, connection: Connection, is_dropped: Callable[[], bool]) -> None:
        """Connect, and greet unless ``is_dropped``. Raises what redis-py raises."""

        def greet(connected: Connection) -> None:
            # From here on there is a socket that ``cut`` finds; what was dropped before ends here.
            if is_dropped():
                raise RedisConnectionError("dropped")
            connected.on_connect()

        connection.redis_connect_func = greet
        try:
            connection.connect()
        finally:
            connection.redis_connect_func = None

    @staticmethod
    def cut(connection: Connection | None) -> None:
        """From another thread: whoever waits for ``connection`` gets an error at once. It is for its own thread to close."""
        found = None if connection is None else connection._get_socket()
        if found is not None:
            try:
                # Not the method of an SSLSocket, which takes the TLS state away under its reader's hands.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
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
