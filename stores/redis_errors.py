"""What redis-py raises, told in our own words: no text of the server or the library leaves, since it may name users and addresses.

Every function here is pure. Who raises its result does so outside of the ``except`` block, so that the original is in no chain either.
"""

import re
import socket
from collections.abc import Iterator
from typing import Final

from redis import exceptions

from callboard.runtime.core.errors import StoreUnavailable

__all__ = ["REASONS", "causes_of", "code_of", "unavailable", "without_connection"]

REASONS: Final[dict[str, str]] = {
    "OOM": "the Redis server has reached its maxmemory; give it more, or remove something",
    "LOADING": "the Redis server is loading its data from disk",
    "READONLY": "the Redis server is a replica, or has become one, and takes no writes",
    "MISCONF": "the Redis server cannot write to its disk, and takes no writes; its own log says why",
    "NOREPLICAS": "the Redis server has fewer good replicas than its min-replicas-to-write, and takes no writes",
    "BUSY": "the Redis server is busy with a script",
    "CLUSTERDOWN": "the Redis Cluster is down: some of its slots are served by nobody",
    "MASTERDOWN": "the Redis server is a replica that has lost its master",
    "TRYAGAIN": "the Redis Cluster is moving a slot",
    "MOVED": "the Redis Cluster has moved a slot",
    "ASK": "the Redis Cluster is moving a slot",
    "NOAUTH": "the Redis server wants a password",
    "WRONGPASS": "the Redis server takes the user and password no more",
    "NOPERM": "the Redis server does not let the user run what the store needs",
    "KILLED": "the Redis server was told to stop a script",
}
"""The code at the beginning of an error reply -> what StoreUnavailable says. Source: the server's source, ``createSharedObjects``; KILLED,
which has no code there, is the reply to a script that SCRIPT KILL has stopped: it had written nothing."""

_BURIED: Final = re.compile(rf"-({'|'.join(REASONS)}) ")
"""Servers before 7.0 report the error of a command in a script as ERR, with the command's own reply in the text."""

_CODES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.AuthenticationError, "WRONGPASS"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "WRONGPASS"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
)
"""Errors of redis-py whose code is no longer in their text; the more special ones come first."""

_OBSTACLES: Final[tuple[tuple[type[OSError], str], ...]] = (
    (socket.gaierror, "the host's name cannot be resolved; check it, and the DNS"),
    (ConnectionRefusedError, "nobody listens at that address; is it running, and are host and port right?"),
    (FileNotFoundError, "a file that the URL names is not there: the server's socket, or a certificate"),
    (PermissionError, "the system does not let this process connect; for a UNIX socket see the rights of its file"),
)
"""What the system said when a connection was to be made -> what a person can do about it."""


def code_of(error: BaseException) -> str | None:
    """The code of an error reply, as ``"OOM"``; None for what is no reply, or has none that is known."""
    status = getattr(error, "status_code", None)
    if status in REASONS:
        return str(status)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if not isinstance(error, exceptions.ResponseError):
        return None
    text = str(error)
    first = text.split(" ", 1)[0]
    if first in REASONS:
        return first
    buried = _BURIED.search(text)
    if buried:
        return buried[1]
    if "can't run this command" in text or "can't access at least one" in text:
        # Before 7.0 this is all that a script says when the user may not run one of its commands.
        return "NOPERM"
    if "killed by user" in text.lower():
        return "KILLED"
    return None


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error, and what led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def without_connection(what: str, error: BaseException) -> StoreUnavailable:
    """``what`` failed for want of a connection, and why, where the system said so."""
    for cause in causes_of(error):
        for kind, obstacle in _OBSTACLES:
            if isinstance(cause, kind):
                return StoreUnavailable(f"{what}: {obstacle}")
    return StoreUnavailable(what)


def unavailable(error: BaseException) -> StoreUnavailable | None:
    """What the world did, as StoreUnavailable; None for anything else, which is a bug of ours."""
    code = code_of(error)
    if code is not None:
        return StoreUnavailable(REASONS[code])
    if isinstance(error, exceptions.ResponseError | exceptions.DataError):
        return None
    if isinstance(error, exceptions.TimeoutError):
        return StoreUnavailable("the Redis server did not answer in time")
    if isinstance(error, exceptions.ConnectionError | exceptions.InvalidResponse):
        return without_connection("there is no connection to the Redis server, or it was lost", error)
    if isinstance(error, exceptions.RedisError | exceptions.RedisClusterException):
        return StoreUnavailable("the Redis server cannot be used now")
    return None
