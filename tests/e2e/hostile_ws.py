"""Attacks over websockets: handshakes, what comes in one packet with them, frames of every wrong kind, and clients that vanish."""

from collections.abc import Callable
from random import Random
from typing import Any, Final

import trio
from tests.e2e.hostile import Attack, Attacker, Wire
from tests.e2e.hostile_corpus import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    SOCKETS,
    TEXT,
    bomb,
    frame,
    handshake,
    message,
    mutated,
    packed,
)

__all__ = ["WEBSOCKET_ATTACKS"]

BOMB: Final = bomb(50_000_000)
BIG: Final = b"m" * 2**20
PROTOCOLS: Final = (b"\xff", b"\xc3\xa4, x", b",,", b"a" * 9000, b"chat", b"a b")
EXTENSIONS: Final = (
    b"\xff",
    b"permessage-deflate; x=\xff",
    b"a;b;c=;",
    b";" * 999,
    b"permessage-deflate; server_max_window_bits=99",
)
DEFLATE: Final = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")


def _path(attacker: Attacker) -> str:
    return attacker.rng.choice(SOCKETS).format(attacker.target.followed)


async def _open(attacker: Attacker, path: str, **options: Any) -> Wire:
    wire = await attacker.connect(**options)
    headers = [DEFLATE] if attacker.rng.random() < 0.5 else []
    await wire.send(handshake(attacker.rng, path, *headers))
    await wire.answered()
    return wire


def wrong_frames(rng: Random) -> list[Callable[[], bytes]]:
    """Ways to break the protocol, or to stretch it."""
    return [
        lambda: frame(rng, TEXT, b"part", final=False) * rng.choice([1, 50]),
        lambda: frame(rng, 0, b"no beginning"),
        lambda: frame(rng, TEXT, b"begins", final=False) + frame(rng, PING, b"between") + frame(rng, 0, b"ends"),
        lambda: frame(rng, TEXT, b"begins", final=False) + frame(rng, TEXT, b"begins again"),
        lambda: frame(rng, PING, b"p" * rng.choice([125, 126, 70_000])),
        lambda: frame(rng, PING, b"in parts", final=False),
        lambda: frame(rng, rng.choice([3, 4, 7, 11, 15]), b"reserved"),
        lambda: frame(rng, rng.choice([TEXT, BINARY, PING, CLOSE]), b"reserved", reserved=rng.randrange(1, 8)),
        lambda: frame(rng, TEXT, b"unmasked", masked=False),
        lambda: frame(rng, TEXT, rng.choice([b"\xff", b"\xed\xa0\x80", b"\xc3", b"ok \xf4\x90\x80\x80"])),
        lambda: frame(rng, TEXT, b"\xe2", final=False) + frame(rng, 0, b"\x82\xac"),
        lambda: frame(
            rng, CLOSE, rng.choice([b"", b"\x03", b"\x03\xe8", b"\x03\xec", b"\x03\xed", b"\0\0", b"\xff\xff"])
        ),
        lambda: frame(rng, CLOSE, b"\x03\xe8" + rng.choice([b"bye", b"\xff", b"r" * 123, b"r" * 200])) * 2,
        lambda: frame(rng, CLOSE, b"\x03\xe8") + frame(rng, TEXT, b"after the end") * 5,
        lambda: frame(rng, TEXT, b"x", length=rng.choice([2**63 - 1, 2**63, 2**64 - 1, 2**31, 2**40])),
        lambda: frame(rng, BINARY, b"\0" * 5, length=126),
        lambda: bytes([0x81, 0xFE, 0, 1, 0, 0, 0, 0]) + b"x",
        lambda: frame(rng, rng.choice([TEXT, BINARY]), BOMB, reserved=4),
        lambda: frame(rng, TEXT, BOMB[:20_000], reserved=4, final=False) + frame(rng, 0, BOMB[20_000:]),
        lambda: frame(rng, TEXT, BIG + b"too much"),
        lambda: frame(rng, TEXT, BIG[:100_000], final=False) + frame(rng, 0, BIG[:100_000], final=False) * 12,
        lambda: frame(rng, PING) * rng.choice([10, 2000]),
        lambda: frame(rng, PONG, b"nobody asked") * 100,
        lambda: frame(rng, TEXT) * 300,
        lambda: frame(rng, 0, final=False) * 300,
        lambda: frame(rng, TEXT, b"", final=False) + frame(rng, 0, b"", final=False) * 2000,
        lambda: packed(rng, rng.choice([1, 2, 14, 300])),
    ]


async def frames_in_disorder(attacker: Attacker) -> None:
    """Good messages and bad frames by turns."""
    rng = attacker.rng
    wire = await _open(attacker, _path(attacker))
    wrong = wrong_frames(rng)
    for _ in range(rng.choice([1, 3, 10])):
        if rng.random() < 0.5:
            await wire.dribble(frame(rng, TEXT, message(rng, attacker.target)))
        else:
            await wire.dribble(rng.choice(wrong)())
        if rng.random() < 0.3:
            await wire.answered(0.1)
    await wire.leave()


async def mutated_frames(attacker: Attacker) -> None:
    """What the many-job socket understands, spoiled inside the frame or across it."""
    rng = attacker.rng
    wire = await _open(attacker, rng.choice(["/jobs/stream", "/jobs/stream", "/echo"]))
    for _ in range(rng.choice([2, 10, 40])):
        text, other = message(rng, attacker.target), message(rng, attacker.target)
        if rng.random() < 0.7:
            await wire.send(frame(rng, TEXT, mutated(rng, text, other) if rng.random() < 0.7 else text))
        else:
            await wire.dribble(mutated(rng, frame(rng, TEXT, text), frame(rng, BINARY, other)))
        if rng.random() < 0.2:
            await wire.answered(0.05)
    await wire.leave()


async def early_frames(attacker: Attacker) -> None:
    """The first frames come in one packet with the handshake."""
    rng = attacker.rng
    wire = await attacker.connect()
    data = handshake(rng, _path(attacker))
    if rng.random() < 0.6:
        data += frame(rng, TEXT, message(rng, attacker.target)) * rng.choice([1, 5])
    else:
        data += rng.choice(wrong_frames(rng))()
    await wire.dribble(data) if rng.random() < 0.3 else await wire.send(data)
    await wire.read(rng.choice([0, 0.3]))
    await wire.leave()


async def bad_handshakes(attacker: Attacker) -> None:
    """A good handshake and one thing that is wrong with it."""
    rng = attacker.rng
    data = handshake(rng, _path(attacker))
    key = data[data.index(b"Sec-WebSocket-Key") :].split(b"\r\n")[0]
    end = b"\r\n\r\n"
    changes: list[tuple[bytes, list[bytes]]] = [
        (
            key,
            [
                b"Sec-WebSocket-Key: ",
                b"Sec-WebSocket-Key: \xff\xfe",
                b"Sec-WebSocket-Key: short",
                key + b"\r\n" + key,
                b"X: y",
            ],
        ),
        (b"Version: 13", [b"Version: 12", b"Version: \xff", b"Version: ", b"Version: 13, 8", b"Version: 13\r\nX: y"]),
        (b"Upgrade: websocket", [b"Upgrade: h2c", b"Upgrade: websocket, foo", b"Upgrade: WebSocket", b"Upgrade: \xff"]),
        (
            b"Connection: Upgrade",
            [b"Connection: keep-alive, Upgrade", b"Connection: close", b"Connection: upgrade\xff"],
        ),
        (b"GET /", [b"POST /", b"HEAD /", b"get /", b"GET ?", b"GET http://[", b"GET *"]),
        (b"HTTP/1.1", [b"HTTP/1.0"]),
        (
            b"Host: 127.0.0.1",
            [b"Host: \xff", b"X: y", b"Host: x\r\nOrigin: http://evil.example", b"Host: x\r\nOrigin: \xff"],
        ),
        (end, [b"\r\nSec-WebSocket-Protocol: " + value + end for value in PROTOCOLS]),
        (end, [b"\r\nSec-WebSocket-Extensions: " + value + end for value in EXTENSIONS]),
        (end, [b"\r\nContent-Length: 5\r\n\r\nhello", b"\r\nExpect: 100-continue\r\n\r\n"]),
        (
            end,
            [
                b"\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ],
        ),
    ]
    old, new = rng.choice(changes)
    wire = await attacker.connect()
    data = data.replace(old, rng.choice(new), 1)
    await wire.dribble(mutated(rng, data, data) if rng.random() < 0.3 else data)
    if await wire.answered(1):
        await wire.send(frame(rng, TEXT, b"hello"))
    await wire.leave()


async def vanishers(attacker: Attacker) -> None:
    """Goes in the middle of a frame, of the handshake, or of what the server says."""
    rng = attacker.rng
    wire = await attacker.connect(receive_buffer=rng.choice([None, 4096]))
    data = handshake(rng, _path(attacker))
    if rng.random() < 0.3:
        data = data[: rng.randrange(len(data))]
    await wire.send(data)
    await wire.read(rng.choice([0, 0.01, 0.3]), most=rng.choice([1, 10_000]))
    whole = frame(rng, TEXT, message(rng, attacker.target) + b" " * rng.choice([0, 5000]))
    await wire.send(whole[: rng.randrange(len(whole) + 1)])
    await wire.leave()


async def unread_sockets(attacker: Attacker) -> None:
    """Lets the server talk, and takes nothing; some of them ask for even more."""
    rng = attacker.rng
    followed = attacker.target.followed
    path = rng.choice(["/talk", f"/jobs/{followed}/stream?after=0", "/jobs/stream", "/echo"])
    wire = await _open(attacker, path, receive_buffer=rng.choice([2048, 8192]))
    with trio.move_on_after(rng.choice([0.5, 2, 6.5])):
        if path == "/jobs/stream":
            said = b'{"type":"subscribe","sub":"%d","queue":"private"}'
            await wire.send(b"".join(frame(rng, TEXT, said % number) for number in range(rng.choice([1, 120]))))
        while rng.random() < 0.99:
            await wire.send(rng.choice([frame(rng, PING, b"p" * 100) * 50, frame(rng, TEXT, b"e" * 5000)]))
            await trio.sleep(0.01)
        await trio.sleep_forever()
    await wire.leave()


async def never_answering(attacker: Attacker) -> None:
    """Reads everything and says nothing, not even a pong."""
    wire = await _open(attacker, _path(attacker))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.read, attacker.rng.choice([1, 7]), 2**22)
    await wire.leave()


async def slow_frames(attacker: Attacker) -> None:
    """Frames byte by byte."""
    rng = attacker.rng
    wire = await _open(attacker, rng.choice(["/echo", "/jobs/stream", "/deaf"]))
    data = frame(rng, TEXT, message(rng, attacker.target)) + rng.choice(wrong_frames(rng))()[:200]
    await wire.creep(data, rng.choice([0.005, 0.1]))
    await wire.leave()


async def crowders(attacker: Attacker) -> None:
    """Fills a socket whose app does not listen, or listens and has to answer."""
    rng = attacker.rng
    wire = await _open(attacker, rng.choice(["/deaf", "/talk", "/echo", "/picky", "/jobs/stream"]))
    with trio.move_on_after(rng.choice([0.5, 3])):
        for _ in range(rng.choice([20, 200])):
            await wire.send(frame(rng, rng.choice([TEXT, BINARY]), BIG[: rng.choice([10, 2000, 200_000])]))
    await wire.leave()


async def half_closed(attacker: Attacker) -> None:
    """FIN at once after the handshake, after a message, or after the close; what comes is read to its end."""
    rng = attacker.rng
    wire = await _open(attacker, _path(attacker))
    await wire.send(
        rng.choice([b"", frame(rng, TEXT, b"hello"), frame(rng, CLOSE, b"\x03\xe8"), frame(rng, TEXT, b"h")[:4]])
    )
    wire.finish()
    await wire.read(rng.choice([0.5, 5]))


WEBSOCKET_ATTACKS: Final[tuple[Attack, ...]] = (
    *(frames_in_disorder,) * 4,
    *(mutated_frames,) * 3,
    *(early_frames,) * 2,
    *(bad_handshakes,) * 2,
    *(vanishers, vanishers, unread_sockets, never_answering, slow_frames, crowders, half_closed),
)
"""As often as each comes."""
