"""From a URL to a store, and what can be said of either. Does no I/O."""

from importlib import import_module
from typing import Final, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from callboard.runtime.core.errors import ConfigError
from callboard.runtime.core.store import Store
from callboard.stores.memory import MemoryStore
from callboard.stores.redis_url import REDIS_FORMS, REDIS_SCHEMES, RedisSettings
from callboard.stores.sqlite import SqliteStore
from callboard.stores.sqlite_engine import Synchronous

__all__ = ["open_store", "require_shared"]

_SYNCHRONOUS: Final[dict[str, Synchronous]] = {"full": "FULL", "normal": "NORMAL"}

_ACCEPTED: Final = (
    "use memory://, sqlite:///relative.db or sqlite:////absolute.db,"
    f" the last two with ?synchronous=full (the default) or ?synchronous=normal; or {REDIS_FORMS}"
)


def open_store(url: str) -> Store:
    """The store that ``url`` names, not connected yet: its ``open`` does that. Raises ConfigError.

    ``memory://``, ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` (source: the URLs of SQLAlchemy), or one of ``redis_url``.
    """
    if url.partition("://")[0].lower() in REDIS_SCHEMES:
        return _redis_store(RedisSettings.of_url(url))
    # The URL may hold a password, so no message repeats any of it.
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"the store's URL cannot be read: {_ACCEPTED}") from None
    if parts.scheme == "memory" and url in ("memory:", "memory://"):
        return MemoryStore()
    if parts.scheme == "sqlite" and not parts.netloc and not parts.fragment and len(parts.path) > 1:
        return SqliteStore(unquote(parts.path[1:]), synchronous=_synchronous(parts.query))
    raise ConfigError(f"no store has a URL like that: {_ACCEPTED}")


def require_shared(store: str | Store) -> None:
    """Raises ConfigError if no other process can see what is in that store, or in the one of that URL; or for a URL of none."""
    if isinstance(open_store(store) if isinstance(store, str) else store, MemoryStore):
        raise ConfigError(
            "several processes need a store that they share, and memory is each one's own: use SQLite or Redis"
        )


def _synchronous(query: str) -> Synchronous:
    options = parse_qsl(query, keep_blank_values=True)
    values = [_SYNCHRONOUS.get(value.lower()) for name, value in options if name == "synchronous"]
    if len(values) != len(options) or len(values) > 1 or None in values:
        raise ConfigError(f"the store's URL has an option that is not known: {_ACCEPTED}")
    return values[0] or "FULL" if values else "FULL"


def _redis_store(settings: RedisSettings) -> Store:
    # Here, so that who uses no Redis loads no redis-py.
    name = "redis_cluster" if settings.kind == "cluster" else "redis"
    module = import_module(f"callboard.stores.{name}")
    driver = module.RedisClusterStore if settings.kind == "cluster" else module.RedisStore
    return cast("Store", driver(settings))
