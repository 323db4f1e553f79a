"""Hostile clients: what one attack is, how many run at once, and what is kept of them so that a failure can be repeated.

``Attacker`` is one attack on its way: it has a generator of random numbers of its own, which ``seed`` and ``number`` determine, and opens
``Wire``s, which note what they send. ``Horde`` keeps so and so many attacks in flight, and keeps the last of them. The attacks
themselves are in ``hostile_http`` and ``hostile_ws``.
"""

import itertools
import random
import re
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

__all__ = ["Attack", "Attacker", "Horde", "Target", "Wire"]

ATTACK_SECONDS: Final = 8.0
"""No attack lasts longer."""
KEPT_ATTACKS: Final = 300
KEPT_BYTES: Final = 8192
"""Of what one attack sent; all of it comes again from its seed and number."""
GONE: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)
"""What an attacker meets whose connection the server has cut."""
_RESET: Final = struct.pack("ii", 1, 0)
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d\d\d) ")


@dataclass(frozen=True)
class Target:
    """What is attacked."""

    port: int
    followed: str
    """Id of a job that says much and does not end."""
    cursor: str
    """Of a list."""
    tls: bool = False


@dataclass
class Record:
    """What is kept of one attack."""

    number: int
    name: str
    began: float
    ended: float | None = None
    notes: list[str] = field(default_factory=list)
    kept: int = 0

    def note(self, what: str, data: bytes = b"") -> None:
        """Add a line, with as much of ``data`` as there is room for."""
        room = KEPT_BYTES - self.kept
        if room <= 0:
            return
        self.kept += len(data) + 16
        more = f"... ({len(data)} bytes)" if len(data) > room else ""
        self.notes.append(f"{time.time() - self.began:8.3f} {what} {data[:room]!r}{more}" if data else what)


class Wire:
    """One connection of an attacker."""

    def __init__(self, attacker: "Attacker", stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._rng = attacker.rng
        self._attacker = attacker
        self._stream = stream
        self._raw = stream if isinstance(stream, trio.SocketStream) else stream.transport_stream

    async def send(self, data: bytes) -> None:
        """All at once."""
        self._attacker.record.note("sends", data)
        await self._stream.send_all(data)

    async def dribble(self, data: bytes) -> None:
        """In a few parts, cut anywhere, with pauses."""
        cuts = sorted(self._rng.randrange(len(data) + 1) for _ in range(self._rng.randrange(6)))
        for start, end in itertools.pairwise([0, *cuts, len(data)]):
            if start < end:
                await self.send(data[start:end])
                await trio.sleep(self._rng.choice([0, 0, 0.001, 0.05]))

    async def creep(self, data: bytes, pause_seconds: float) -> None:
        """Byte by byte."""
        self._attacker.record.note(f"sends byte by byte, every {pause_seconds} s,", data)
        for at in range(len(data)):
            await self._stream.send_all(data[at : at + 1])
            await trio.sleep(pause_seconds)

    async def read(self, seconds: float, most: int = 2**20) -> bytes:
        """What comes within the time, until it ends or ``most`` bytes have come."""
        parts: list[bytes] = []
        size = 0
        with trio.move_on_after(seconds):
            while size < most:
                data = await self._stream.receive_some(65536)
                if not data:
                    break
                parts.append(bytes(data))
                size += len(data)
        text = b"".join(parts)
        self._attacker.saw(text)
        return text

    async def answered(self, seconds: float = 3) -> bytes:
        """The first bytes of an answer."""
        with trio.move_on_after(seconds):
            data = bytes(await self._stream.receive_some(65536))
            self._attacker.saw(data)
            return data
        return b""

    def finish(self) -> None:
        """Send FIN, and go on reading."""
        self._attacker.record.note("FIN")
        self._raw.socket.shutdown(trio.socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        self._attacker.record.note("RST")
        self._raw.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _RESET)
        self._raw.socket.close()

    def close(self) -> None:
        """Close without a word."""
        self._raw.socket.close()

    async def leave(self) -> None:
        """Go in one of the ways that there are."""
        way = self._rng.randrange(5)
        if way == 0:
            self.reset()
        elif way == 1:
            self.close()
        elif way == 2:
            self.finish()
            await self.read(1)
        elif way == 3:
            await self.read(self._rng.random())
            self.reset()
        else:
            await self.read(1)


class Attacker:
    """One attack on its way."""

    def __init__(self, target: Target, seed: str, number: int, statuses: Counter[str]) -> None:
        self.target = target
        self.rng = random.Random(f"{seed}/{number}")
        self.record = Record(number, "", time.time())
        self._statuses = statuses
        self._wires: list[Wire] = []

    def saw(self, answer: bytes) -> None:
        """Count the statuses of what came."""
        for status in _STATUS.findall(answer):
            self._statuses[status.decode()] += 1
        if answer:
            self.record.note("was told", answer[:60])

    async def connect(self, *, receive_buffer: int | None = None) -> Wire:
        """A new connection; the receive buffer as small as told."""
        socket = trio.socket.socket()
        if receive_buffer is not None:
            socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        try:
            await socket.connect(("127.0.0.1", self.target.port))
            socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = trio.SocketStream(socket)
            # Some do not know that they should speak TLS.
            if self.target.tls and self.rng.random() < 0.8:
                stream = trio.SSLStream(trio.SocketStream(socket), _trusting(), server_hostname="localhost")
                await stream.do_handshake()
        except BaseException:
            socket.close()
            raise
        self._wires.append(Wire(self, stream))
        self.record.note(f"connects ({receive_buffer=})")
        return self._wires[-1]

    def close(self) -> None:
        """Close what is open."""
        for wire in self._wires:
            wire.close()


Attack = Callable[[Attacker], Awaitable[None]]


class Horde:
    """Attackers of all kinds, so and so many at once; ``seed`` says which."""

    def __init__(self, attacks: Sequence[Attack], seed: str) -> None:
        self.attacks = attacks
        self.seed = seed
        self.counts: Counter[str] = Counter()
        """Attacks by name."""
        self.statuses: Counter[str] = Counter()
        """Answers that attackers got, by status."""
        self._numbers = itertools.count()
        self._ended: deque[Record] = deque(maxlen=KEPT_ATTACKS)
        self._running: dict[int, Record] = {}

    async def rage(self, target: Target, *, seconds: float, at_once: int) -> None:
        """Attack for so long. Who is still at it then goes without a word."""

        async def attack_one_by_one() -> None:
            while True:
                await self.attack(target, next(self._numbers))

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(at_once):
                    nursery.start_soon(attack_one_by_one)

    async def cling(self, target: Target, limpets: Sequence[Attack]) -> None:
        """Every one of them once, at the same time, until the server has cut them all off."""
        async with trio.open_nursery() as nursery:
            for limpet in limpets:
                nursery.start_soon(self.attack, target, next(self._numbers), limpet, float("inf"))

    async def attack(
        self, target: Target, number: int, attack: Attack | None = None, seconds: float = ATTACK_SECONDS
    ) -> None:
        """The attack of that number, for so long at most."""
        attacker = Attacker(target, self.seed, number, self.statuses)
        attack = attack or attacker.rng.choice(self.attacks)
        record = attacker.record
        record.name = getattr(getattr(attack, "func", attack), "__name__", "?")
        self._running[number] = record
        try:
            with trio.move_on_after(seconds):
                await attack(attacker)
        except* GONE:
            record.note("was cut off")
            # Nobody listens, perhaps: no reason to spin.
            await trio.sleep(0.01)
        finally:
            attacker.close()
            self.counts[record.name] += 1
            record.ended = time.time()
            self._ended.append(self._running.pop(number))

    def write(self, path: Path) -> None:
        """The attacks that run and the last that have ended, the newest at the end."""
        with path.open("w") as file:
            for record in [*self._ended, *self._running.values()]:
                took = "still runs" if record.ended is None else f"took {record.ended - record.began:.3f} s"
                began = time.strftime("%H:%M:%S", time.localtime(record.began)) + f".{record.began % 1 * 1000:03.0f}"
                print(f"seed {self.seed} number {record.number} {record.name}: began {began}, {took}", file=file)
                for line in record.notes:
                    print(f"    {line}", file=file)


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
