"""From a URL to a store, and what can be said of either. Does no I/O."""

from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from callboard.runtime.core.errors import ConfigError
from callboard.runtime.core.store import Store
from callboard.stores.memory import MemoryStore
from callboard.stores.sqlite import SqliteStore
from callboard.stores.sqlite_engine import Synchronous

__all__ = ["open_store", "require_shared"]

_SYNCHRONOUS: Final[dict[str, Synchronous]] = {"full": "FULL", "normal": "NORMAL"}

_ACCEPTED: Final = (
    "use memory://, sqlite:///relative.db or sqlite:////absolute.db,"
    " the last two with ?synchronous=full (the default) or ?synchronous=normal"
)


def open_store(url: str) -> Store:
    """The store that ``url`` names, not connected yet: its ``open`` does that. Raises ConfigError.

    ``memory://``, ``sqlite:///relative.db`` or ``sqlite:////absolute.db``. Source: the URLs of SQLAlchemy.
    """
    # The URL may hold a password, so no message repeats any of it but a plain scheme.
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"the store's URL cannot be read: {_ACCEPTED}") from None
    if parts.scheme == "memory" and url in ("memory:", "memory://"):
        return MemoryStore()
    if parts.scheme == "sqlite" and not parts.netloc and not parts.fragment and len(parts.path) > 1:
        return SqliteStore(unquote(parts.path[1:]), synchronous=_synchronous(parts.query))
    if parts.scheme in ("redis", "unix"):
        from callboard.stores.redis import RedisStore

        return RedisStore(url)
    raise ConfigError(f"no store has a URL like that: {_ACCEPTED}")


def require_shared(store: str | Store) -> None:
    """Raises ConfigError if no other process can see what is in that store, or in the one of that URL; or for a URL of none."""
    if isinstance(open_store(store) if isinstance(store, str) else store, MemoryStore):
        raise ConfigError("several workers need a store that they share, and memory is each one's own: use SQLite")


def _synchronous(query: str) -> Synchronous:
    options = parse_qsl(query, keep_blank_values=True)
    values = [_SYNCHRONOUS.get(value.lower()) for name, value in options if name == "synchronous"]
    if len(values) != len(options) or len(values) > 1 or None in values:
        raise ConfigError(f"the store's URL has an option that is not known: {_ACCEPTED}")
    return values[0] or "FULL" if values else "FULL"
