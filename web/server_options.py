"""What the launcher can be told, with its defaults. Pure data: the command line fills it, the server obeys it."""

from dataclasses import dataclass
from typing import Final

__all__ = ["ServerOptions"]

MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Settings of ``callboard serve`` that are none of the app's. Times are in seconds, sizes in bytes."""

    bind: tuple[str, ...] = ("127.0.0.1:8000",)
    """Each ``host:port`` (port 0: a free one), ``unix:path``, or ``fd://number`` of a listening socket that was inherited."""
    root_path: str = ""
    """Where a proxy shows the app, such as ``/shop``."""
    certfile: str | None = None
    keyfile: str | None = None
    ca_certs: str | None = None
    """Clients must show a certificate that one of these has signed."""
    access_log: bool = True
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
    max_message_bytes: int = MIB
    """One websocket message, all its fragments together; more is closed with 1009."""
