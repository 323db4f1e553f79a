"""What the launcher can be told, with its defaults. Pure data, checked when it is made: the command line fills it, the server obeys it.

It imports next to nothing, because the command line needs it before it knows what is asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from callboard.web.binds import parse_bind

__all__ = ["LOG_LEVELS", "ServerOptions", "told"]

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Settings of ``callboard serve`` and ``callboard worker`` that are none of the app's. Times are in seconds, sizes in bytes.

    Raises ConfigError for a value that cannot work: the field's name, a colon, and what would do.
    """

    bind: tuple[str, ...] = ("127.0.0.1:8000",)
    """Each ``host:port`` (port 0: a free one), ``unix:path``, or ``fd://number`` of a listening socket that was inherited."""
    worker: bool = False
    """Run the app's jobs and do not serve it: at ``bind``, which may be empty, there are health and metrics and nothing else."""
    root_path: str = ""
    """Where a proxy shows the app, such as ``/shop``."""
    certfile: str | None = None
    keyfile: str | None = None
    ca_certs: str | None = None
    """Clients must show a certificate that one of these has signed."""
    access_log: bool = True
    """One line of JSON for each request on standard output, by the logger ``callboard.access``, whatever ``log_level`` is."""
    log_level: str = "info"
    """Of all other logs, on standard error: this and what is graver."""
    lead_seconds: float = 0.0
    """How long after a signal everything goes on while readiness is red, so that load balancers look elsewhere first."""
    keep_alive_seconds: float = 75.0
    """How long a connection stays open with no request on it: longer than proxies keep theirs, 60 s as a rule, so that none is
    closed under a request. A request's headers must have come within the same time."""
    send_seconds: float = 40.0
    """A connection whose peer takes nothing for so long is cut off."""
    ping_seconds: float = 20.0
    """Interval of websocket pings. Source: the wire contract."""
    silent_seconds: float = 45.0
    """A websocket peer that sent nothing for so long, not even a pong, is dropped: two pings and some patience."""
    max_connections: int = 1000
    """More are answered 503 and closed."""
    max_header_bytes: int = 32 * 1024
    """Request line and headers together; more is answered 431."""
    max_message_bytes: int | None = None
    """One websocket message, all its fragments together; more is closed with 1009. None: what the many-job socket takes, which is
    ``max_bulk_body_bytes`` and 4 kB for what stands round it. Less than that is refused when the server starts."""

    def __post_init__(self) -> None:
        for field, complaint in self._wrong():
            from callboard.runtime.core.errors import ConfigError

            raise ConfigError(f"{field}: {complaint}")

    def _wrong(self) -> Iterator[tuple[str, str]]:
        yield from _wrong_binds(self.bind, may_be_empty=self.worker)
        path = self.root_path
        if path and (path[0] != "/" or path[-1] == "/" or "//" in path or any(c in "?#%\\" or c <= " " for c in path)):
            yield "root_path", f"{path!r} is no path; an example is /shop"
        for field, other in (("certfile", "keyfile"), ("keyfile", "certfile"), ("ca_certs", "certfile")):
            if getattr(self, field) is not None and getattr(self, other) is None:
                yield field, f"give {other} too"
        if self.log_level not in LOG_LEVELS:
            yield "log_level", f"{self.log_level!r} is none of {', '.join(LOG_LEVELS)}"
        for field, (least, most) in _RANGES.items():
            value = getattr(self, field)
            if value is not None and not least <= value <= most:
                yield field, f"{value:g} is not between {least:g} and {most:g}"


def told(urls: Sequence[str], *, worker: bool) -> list[str]:
    """What whoever started it reads when it serves there, or works."""
    if not worker:
        return [f"serving on {url}" for url in urls]
    return ["running jobs", *(f"health and metrics on {url}" for url in urls)]


_DAY: Final = 86_400.0
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "lead_seconds": (0, 3600),
    "keep_alive_seconds": (0.01, _DAY),
    "send_seconds": (0.01, _DAY),
    "ping_seconds": (0.01, _DAY),
    "silent_seconds": (0.01, _DAY),
    "max_connections": (1, 1_000_000),
    "max_header_bytes": (256, MIB),
    "max_message_bytes": (1, 2**40),
}


def _wrong_binds(binds: tuple[str, ...], *, may_be_empty: bool) -> Iterator[tuple[str, str]]:
    if not binds and not may_be_empty:
        yield "bind", "give at least one; an example is 127.0.0.1:8000"
    for bind in binds:
        try:
            parse_bind(bind)
        except ValueError as error:
            yield "bind", str(error)
