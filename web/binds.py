"""Where a server listens: what ``--bind`` may say, the sockets made of it, and the files of unix sockets from first to last.

A bind is ``host:port`` (port 0: any free one), ``[::1]:port``, ``unix:path`` or ``fd://number``, a listening socket that was inherited.

The file of a unix socket is open to its owner and group (0660) whatever the umask, since a proxy in the same group must be able to
write to it; where that is too much, the folder decides. One that a dead server left behind is replaced, one on which somebody listens
is refused, and so is anything else that lies there. It is removed at the end if it is still this server's.
"""

import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["LISTEN_VARIABLES", "Listening", "inherited_binds", "listening", "open_listening", "parse_bind"]

BACKLOG: Final = 100
"""Connections to a unix socket that may wait until the server takes them."""
_UNIX_UMASK: Final = 0o117
LISTEN_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""By these systemd says what sockets it has opened, and for which process. Source: sd_listen_fds(3), as the next."""
_FIRST_INHERITED: Final = 3


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port; the path and -1 of a unix socket, nothing and the number of an inherited one. Raises ValueError with what would do."""
    if bind.startswith("unix:"):
        if len(bind) == len("unix:") or "\0" in bind:
            raise ValueError(f"{bind!r} has no path; an example is unix:/run/shop/http.sock")
        return bind.removeprefix("unix:"), -1
    if bind.startswith("fd://"):
        number = bind.removeprefix("fd://")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise ValueError(f"{bind!r} has no number; an example is fd://3")
        return "", int(number)
    host, colon, port = bind.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536):
        raise ValueError(f"{bind!r} is no host:port; an example is 127.0.0.1:8000")
    if (host[0], host[-1]) == ("[", "]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{bind!r} has no IPv6 address in its brackets; an example is [::1]:8000") from None
    elif not set("[]:").isdisjoint(host):
        raise ValueError(f"{bind!r} is no host:port; an IPv6 address stands in brackets, as in [::1]:8000")
    return host, int(port)


def inherited_binds(environment: MutableMapping[str, str]) -> tuple[str, ...]:
    """The sockets that systemd opened for this process; what says so is taken out of the environment."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = environment.get("LISTEN_FDS", "")
    for name in LISTEN_VARIABLES:
        environment.pop(name, None)
    if not (count.isascii() and count.isdigit() and len(count) < 5):
        return ()
    return tuple(f"fd://{number}" for number in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)))


@dataclass(frozen=True)
class Listening:
    """A socket that is bound to ``name``. TCP sockets do not listen yet: whoever serves them calls ``listen`` when it is ready."""

    socket: socket.socket
    family: int
    name: Any
    """As ``getsockname`` gives it, which a socket that was handed on can no longer tell."""

    @property
    def address(self) -> str:
        """Where clients find it, without a scheme: ``127.0.0.1:8000``, ``[::1]:8000``, ``unix:/run/shop.sock``."""
        if self.family == socket.AF_INET:
            return f"{self.name[0]}:{self.name[1]}"
        if self.family == socket.AF_INET6:
            return f"[{self.name[0]}]:{self.name[1]}"
        return f"unix:{os.fsdecode(self.name)}"

    def url(self, scheme: str) -> str:
        """The same with a scheme, which a unix socket has not."""
        return self.address if self.address.startswith("unix:") else f"{scheme}://{self.address}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.family == socket.AF_UNIX:
            return True
        return ipaddress.ip_address(self.name[0].partition("%")[0]).is_loopback


@contextmanager
def listening(binds: Sequence[str]) -> Iterator[list[Listening]]:
    """A socket for each bind, in their order. At the end those are closed that nobody has detached, and files of unix sockets removed.

    Raises OSError with what is wrong; nothing is open then.
    """
    opened: list[Listening] = []
    files: dict[str, tuple[int, int]] = {}
    try:
        for bind in binds:
            opened.append(open_listening(bind))
            if bind.startswith("unix:"):
                path = os.path.abspath(parse_bind(bind)[0])
                files[path] = _identity(path)
        yield opened
    finally:
        for one in opened:
            one.socket.close()
        for path, identity in files.items():
            _remove(path, identity)


def open_listening(bind: str) -> Listening:
    """Raises OSError, with a message that names the bind."""
    where, number = parse_bind(bind)
    try:
        if bind.startswith("fd://"):
            found = _inherited(number)
        elif bind.startswith("unix:"):
            found = _unix(where)
        else:
            found = _tcp(where, number)
    except OSError as error:
        raise OSError(f"cannot listen on {bind}: {error.strerror or error}") from error
    return Listening(found, found.family, found.getsockname())


def _tcp(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it on Linux.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _inherited(number: int) -> socket.socket:
    found = socket.socket(fileno=number)
    if found.type != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        found.detach()
        raise OSError("it is no stream socket")
    return found


def _unix(path: str) -> socket.socket:
    _make_room(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_UNIX_UMASK)
    try:
        made.bind(path)
        # At once: to another server that starts now, a file on which nobody listens is one left behind.
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def _make_room(path: str) -> None:
    """Remove a socket on which nobody listens. Raises OSError where something else is."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError("there is a file of that name, and it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            # A full queue, or somebody else's: it lives.
            pass
    raise OSError("another server listens there")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove(path: str, identity: tuple[int, int]) -> None:
    try:
        if _identity(path) == identity:
            os.unlink(path)
    except OSError:
        # It is gone, or the folder is: there is nothing left to remove.
        pass
