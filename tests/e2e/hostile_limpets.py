"""Clients that do not go by themselves: they say nothing more, read nothing, or do either very slowly, for as long as they are let.

Each holds a place on the server that nobody else can have. The server has a limit against each, and must get rid of all of them by itself.
"""

from functools import partial
from typing import Final

import trio
from tests.e2e.hostile import Attack, Attacker
from tests.e2e.hostile_corpus import PING, frame, handshake, request

__all__ = ["LIMPETS"]

SMALL: Final = 4096
"""A receive buffer."""


async def _falls_silent(attacker: Attacker, data: bytes) -> None:
    """Says that, takes what comes, and waits."""
    wire = await attacker.connect()
    await wire.send(data)
    await wire.read(float("inf"), most=2**40)


async def _takes_nothing(attacker: Attacker, data: bytes) -> None:
    """Says that, and reads no answer."""
    wire = await attacker.connect(receive_buffer=SMALL)
    await wire.send(data)
    await trio.sleep_forever()


async def _sips(attacker: Attacker, data: bytes) -> None:
    """Takes a few bytes a second."""
    wire = await attacker.connect(receive_buffer=SMALL)
    await wire.send(data)
    while True:
        await wire.read(1, most=1)
        await trio.sleep(0.5)


async def _creeps(attacker: Attacker, head: bytes, part: bytes) -> None:
    """Sends a little of an endless request at a time."""
    wire = await attacker.connect()
    await wire.send(head)
    while True:
        await wire.send(part)
        await trio.sleep(0.5)


async def _pings_and_takes_nothing(attacker: Attacker, path: str) -> None:
    """A websocket that shows that it lives, and takes nothing of what it is told."""
    wire = await attacker.connect(receive_buffer=SMALL)
    await wire.send(handshake(attacker.rng, path))
    while True:
        await trio.sleep(0.5)
        await wire.send(frame(attacker.rng, PING, b"here"))


async def _is_a_silent_socket(attacker: Attacker, path: str, data: bytes) -> None:
    """A websocket that takes everything and answers no ping."""
    wire = await attacker.connect()
    await wire.send(handshake(attacker.rng, path.format(attacker.target.followed)) + data)
    await wire.read(float("inf"), most=2**40)


async def _follows_and_takes_nothing(attacker: Attacker) -> None:
    """An event stream that is not read."""
    await _takes_nothing(attacker, request("GET", f"/jobs/{attacker.target.followed}/events?after=0"))


def _posts(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *lines, "", ""]).encode()


_HALVES: Final = (
    *(b"", b"GET", b"GET /plain HTTP/1.1\r\nHost: x\r\n", request("GET", "/plain"), request("GET", "/plain") + b"GET /pl"),
    *(_posts(path, "Content-Length: 10") + b"{" for path in ("/work/x", "/upload", "/drip", "/plain", "/form", "/nowhere")),
    *(_posts(path, "Transfer-Encoding: chunked") + b"5\r\n{" for path in ("/work/x", "/upload", "/drip", "/jobs/x/cancel")),
    _posts("/work/x", "Content-Length: 10", "Expect: 100-continue"),
    _posts("/jobs", "Content-Length: 10"),
)  # fmt: skip
_PATHS: Final = ("/echo", "/deaf", "/talk", "/jobs/stream", "/jobs/{}/stream")

LIMPETS: Final[tuple[Attack, ...]] = (
    *(partial(_falls_silent, data=data) for data in _HALVES),
    *(partial(_takes_nothing, data=request("GET", path)) for path in ("/endless", "/big")),
    partial(_takes_nothing, data=request("GET", "/big") * 20),
    partial(_takes_nothing, data=request("GET", "/jobs/openapi.json") * 500),
    *(partial(_sips, data=request("GET", path)) for path in ("/endless", "/big")),
    partial(_creeps, head=b"GET /plain HTTP/1.1\r\n", part=b"X: y\r\n"),
    partial(_creeps, head=b"GET /", part=b"x"),
    *(partial(_creeps, head=_posts(path, "Content-Length: 99999"), part=b"x") for path in ("/work/x", "/upload", "/drip", "/plain")),
    *(
        partial(_creeps, head=_posts(path, "Transfer-Encoding: chunked"), part=b"1\r\nx\r\n")
        for path in ("/work/x", "/upload", "/drip", "/form", "/nowhere")
    ),
    partial(_pings_and_takes_nothing, path="/talk"),
    *(partial(_is_a_silent_socket, path=path, data=data) for path in _PATHS for data in (b"", b"\x81")),
    _follows_and_takes_nothing,
)  # fmt: skip
