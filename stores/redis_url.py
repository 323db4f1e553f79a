"""Where a Redis store is and how it is spoken to: from a URL, or from a client that the app has already. Does no I/O.

A URL may hold passwords, so no message repeats any of it, and settings show none of them.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import unquote

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.core.errors import ConfigError

__all__ = ["REDIS_FORMS", "REDIS_SCHEMES", "Kind", "RedisSettings", "Secret", "Tls"]

Kind = Literal["standalone", "sentinel", "cluster"]

_PLAIN: Final[dict[str, tuple[Kind, bool]]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
"""scheme -> (kind, TLS)."""

_SCHEMES: Final[dict[str, tuple[Kind, bool]]] = {
    **_PLAIN,
    **{scheme.replace("redis", "valkey"): meaning for scheme, meaning in _PLAIN.items()},
    "unix": ("standalone", False),
}

REDIS_SCHEMES: Final = tuple(_SCHEMES)
"""The schemes of URLs that name a Redis store."""

REDIS_FORMS: Final = (
    "redis://[user:password@]host[:port][/db], rediss:// for the same with TLS, unix:///path/to.sock[?db=0],"
    " redis+sentinel://[user:password@]host[:port],host[:port]/service[/db] or redis+cluster://[user:password@]host[:port],host[:port]"
)
"""The forms of such URLs, for messages."""

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s\[\]:/?#@]+))(?::([0-9]{1,5}))?")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Secret:
    """A text that shows itself to nobody who does not ask."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Tls(Struct, frozen=True, kw_only=True):
    """How the server's certificate is checked, and which certificate is shown to it; None for the system's default."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: Secret | None = None
    check_hostname: bool = True
    more: tuple[tuple[str, Any], ...] = ()
    """Further arguments of redis-py's ``SSLConnection``, of a client that was handed over."""


class RedisSettings(Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """Where the store is and how it is spoken to. Shows no secret in any of its forms."""

    kind: Kind = "standalone"
    addresses: tuple[tuple[str, int], ...] = ()
    """(host, port) of the server, the sentinels or some of the cluster's nodes; none for a socket's path."""
    path: str | None = None
    """The server's UNIX socket."""
    service: str | None = None
    """The name by which sentinels know the master."""
    db: int = 0
    username: Secret | None = None
    password: Secret | None = None
    tls: Tls | None = None
    sentinel_username: Secret | None = None
    sentinel_password: Secret | None = None
    sentinel_tls: Tls | None = None
    prefix: str = "callboard"
    """What the names of all keys and channels begin with, in braces."""
    timeout_seconds: float = 5.0
    """The longest wait for a connection, and for each answer."""
    spaces: int = 16
    """Of a cluster: how many hash tags the queues are spread over."""
    credentials: Any = None
    """The ``CredentialProvider`` of a client that was handed over; it is asked at each connection."""

    def __repr__(self) -> str:
        return f"RedisSettings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in ("kind", "service", "db", "prefix", "timeout_seconds")]

    @classmethod
    def of_url(cls, url: str) -> "RedisSettings":
        """The settings that ``url`` holds. Raises ConfigError, whose message repeats nothing of it."""
        return _of_url(url)

    @classmethod
    def of_client(
        cls, client: Any, *, prefix: str = "callboard", timeout_seconds: float | None = None, spaces: int = 16
    ) -> "RedisSettings":
        """The address, credentials and TLS of a client of redis-py: ``Redis``, also one that a ``Sentinel`` made, or ``RedisCluster``.

        It may be one for threads or one for asyncio, connected or not: the store only reads its settings and makes connections of
        its own, so their timeouts and retries are not the client's; ``timeout_seconds`` is by default its ``socket_timeout``. Raises
        ConfigError.
        """
        settings = _of_client(client)
        seconds = settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        return replace(settings, prefix=_prefix(prefix), timeout_seconds=_bounded(seconds), spaces=_spaces(str(spaces)))


def _bad(what: str) -> ConfigError:
    return ConfigError(f"the Redis store's URL {what}: use {REDIS_FORMS}")


def _of_url(url: str) -> RedisSettings:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        raise _bad("has a scheme that is not known")
    kind, is_tls = _SCHEMES[scheme.lower()]
    if "#" in rest or not rest.isascii() or any(c.isspace() or not c.isprintable() for c in rest):
        raise _bad("holds a character that has to be percent-encoded")
    place, _, query = rest.partition("?")
    authority, slash, path = place.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    options = _options(query, kind, is_tls=is_tls, is_socket=scheme.lower() == "unix")
    options.update(_credentials(userinfo))
    if scheme.lower() == "unix":
        if hosts or not path:
            raise _bad("names no absolute path of a socket")
        return RedisSettings(path=unquote(slash + path), **options)
    addresses = _addresses(hosts, _SENTINEL_PORT if kind == "sentinel" else _PORT)
    if kind == "standalone" and len(addresses) > 1:
        raise _bad("names several servers, which is for redis+sentinel:// and redis+cluster://")
    service = None
    if kind == "sentinel":
        service, _, path = path.partition("/")
        service = unquote(service)
        if not service:
            raise _bad("names no service, which is the name of the master in the sentinels' configuration")
    if path:
        options["db"] = _db(path)
    if kind == "cluster" and options.get("db"):
        raise _bad("names a db, and a cluster has but one")
    return RedisSettings(kind=kind, addresses=addresses, service=service, **options)


def _credentials(userinfo: str) -> dict[str, Secret]:
    username, colon, password = userinfo.partition(":")
    found = {}
    if username:
        if not colon:
            raise _bad("names a user without a password")
        found["username"] = Secret(unquote(username))
    if password:
        found["password"] = Secret(unquote(password))
    return found


def _addresses(hosts: str, port: int) -> tuple[tuple[str, int], ...]:
    addresses = []
    for one in hosts.split(","):
        found = _HOST.fullmatch(one)
        if found is None or not 0 < int(found[3] or port) < 65536:
            raise _bad("has no host, or one that cannot be meant")
        addresses.append((unquote(found[1] or found[2]), int(found[3] or port)))
    return tuple(addresses)


def _db(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise _bad("has a db that is not a number")
    return int(text)


def _text(text: str) -> str:
    if not text:
        raise _bad("has an option without a value")
    return text


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise _bad("has a prefix that is not of 1 to 64 letters, digits, dots, dashes and underscores")
    return text


def _seconds(text: str) -> float:
    return _bounded(float(text) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", text) else 0)


def _bounded(seconds: float) -> float:
    if not 0.05 <= seconds <= 600:
        raise _bad("or client has timeout_seconds that are not from 0.05 to 600")
    return float(seconds)


def _spaces(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= 1024:
        raise _bad("has spaces that are not from 1 to 1024")
    return int(text)


_YES: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def _yes(text: str) -> bool:
    if text.lower() not in _YES:
        raise _bad("has an ssl_check_hostname that is neither true nor false")
    return _YES[text.lower()]


_EVERYWHERE: Final[dict[str, Callable[[str], Any]]] = {"prefix": _prefix, "timeout_seconds": _seconds}
_OF_TLS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "ssl_ca_certs": ("ca_file", _text),
    "ssl_certfile": ("cert_file", _text),
    "ssl_keyfile": ("key_file", _text),
    "ssl_password": ("key_password", lambda text: Secret(_text(text))),
    "ssl_check_hostname": ("check_hostname", _yes),
}
"""Options with the names that redis-py has for them -> (field of Tls, parser)."""


def _options(query: str, kind: Kind, *, is_tls: bool, is_socket: bool) -> dict[str, Any]:
    parsers: dict[str, Callable[[str], Any]] = dict(_EVERYWHERE)
    if is_socket:
        parsers["db"] = _db
    if kind == "sentinel":
        parsers["sentinel_username"] = parsers["sentinel_password"] = lambda text: Secret(_text(text))
    if kind == "cluster":
        parsers["spaces"] = _spaces
    options: dict[str, Any] = {}
    tls: dict[str, Any] = {}
    for pair in query.split("&") if query else ():
        # Not parse_qsl, which makes a space of each plus: passwords and Base64 have many.
        name, value = (unquote(part) for part in pair.partition("=")[::2])
        if name in options or _OF_TLS.get(name, ("", None))[0] in tls:
            raise _bad("has an option twice")
        if is_tls and name in _OF_TLS:
            field, parse = _OF_TLS[name]
            tls[field] = parse(value)
        elif name in parsers:
            options[name] = parsers[name](value)
        else:
            raise _bad(f"has an option that is not one of {_list(parsers, is_tls=is_tls)}")
    if "key_file" in tls and "cert_file" not in tls:
        raise _bad("has an ssl_keyfile without an ssl_certfile")
    if is_tls:
        options["tls"] = Tls(**tls)
        if kind == "sentinel":
            options["sentinel_tls"] = options["tls"]
    return options


def _list(parsers: Mapping[str, object], *, is_tls: bool) -> str:
    return ", ".join(sorted([*parsers, *(_OF_TLS if is_tls else ())]))


def _of_client(client: Any) -> RedisSettings:
    nodes = getattr(client, "nodes_manager", None)
    if nodes is not None:
        arguments = getattr(client, "connection_kwargs", None) or nodes.connection_kwargs
        addresses = tuple((node.host, int(node.port)) for node in nodes.startup_nodes.values())
        return RedisSettings(
            kind="cluster", addresses=addresses, **_taken(arguments, arguments.get("connection_class"))
        )
    pool = getattr(client, "connection_pool", None)
    if pool is None or not isinstance(getattr(pool, "connection_kwargs", None), dict):
        raise ConfigError(
            "that is no client of redis-py: give a redis.Redis, a redis.asyncio.Redis, a RedisCluster, or a URL"
        )
    taken = _taken(pool.connection_kwargs, pool.connection_class)
    if getattr(pool, "service_name", None) is None:
        if pool.connection_kwargs.get("path"):
            return RedisSettings(path=pool.connection_kwargs["path"], **taken)
        return RedisSettings(addresses=(_address(pool.connection_kwargs, _PORT),), **taken)
    if not pool.is_master:
        raise ConfigError("that client reads from replicas, and the store writes: give the one of master_for()")
    sentinels = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    asked = _taken(sentinels[0].connection_kwargs, sentinels[0].connection_class)
    return RedisSettings(
        kind="sentinel",
        addresses=tuple(_address(one.connection_kwargs, _SENTINEL_PORT) for one in sentinels),
        service=pool.service_name,
        sentinel_username=asked.get("username"),
        sentinel_password=asked.get("password"),
        sentinel_tls=asked.get("tls"),
        **taken,
    )


def _address(arguments: Mapping[str, Any], port: int) -> tuple[str, int]:
    return str(arguments.get("host") or "localhost"), int(arguments.get("port") or port)


def _taken(arguments: Mapping[str, Any], connection_class: Any) -> dict[str, Any]:
    """The fields of RedisSettings that a client's arguments tell."""
    taken: dict[str, Any] = {"db": int(arguments.get("db") or 0), "credentials": arguments.get("credential_provider")}
    for name in ("username", "password"):
        if arguments.get(name):
            taken[name] = Secret(str(arguments[name]))
    if arguments.get("socket_timeout"):
        taken["timeout_seconds"] = float(arguments["socket_timeout"])
    # By name: the classes for threads, for asyncio and for Sentinel have no other thing in common.
    classes = getattr(connection_class, "__mro__", ())
    if arguments.get("ssl") or any(one.__name__ == "SSLConnection" for one in classes):
        tls: dict[str, Any] = {}
        for name, (field, _) in _OF_TLS.items():
            if arguments.get(name) is not None:
                value = arguments[name]
                tls[field] = Secret(str(value)) if field == "key_password" else value
        others = {name: value for name, value in arguments.items() if name.startswith("ssl_") and name not in _OF_TLS}
        # None for "no check" is a value too; else it is the default.
        more = {name: value for name, value in others.items() if value is not None or name == "ssl_cert_reqs"}
        taken["tls"] = Tls(**tls, more=tuple(more.items()))
    return taken
