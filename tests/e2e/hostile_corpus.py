"""What hostile clients start from: well-formed requests, handshakes, frames and messages, and the ways to spoil them.

Pure: everything is made of a generator of random numbers and a ``Target``. Nothing here opens a connection.
"""

import base64
import gzip
import json
import random
import struct
import uuid
import zlib
from collections.abc import Callable
from typing import Any, Final

from tests.e2e.hostile import Target

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PONG",
    "SOCKETS",
    "TEXT",
    "any_request",
    "chunked",
    "frame",
    "handshake",
    "message",
    "mutated",
    "packed",
    "request",
    "steering",
]

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

TOKENS: Final = (
    *(b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\0", b"\xff", b"\xc3\x28", b"\xe2\x82\xac", b"\xed\xa0\x80", b"%00", b"%ff", b"%"),
    *(b" ", b"\t", b":", b": ", b";", b",", b'"', b"{", b"[", b"[" * 3000, b"\\ud800", b"1e999", b"-1", b"0", b"NaN", b"null"),
    *(b"99999999999999999999", b"4294967296", b"9" * 5000, b"0x10", b"\xd9\xa3"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"Connection: upgrade\r\n", b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"Host: x\r\n"),
    *(b"0\r\n\r\n", b"5\r\nhello\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.0", b"HTTP/9.9"),
    *(b"If-None-Match: *\r\n", b"Prefer: wait=1\r\n", b"Range: bytes=0-5\r\n", b"Cookie: session=x\r\n", b"Content-Encoding: gzip\r\n"),
)  # fmt: skip
"""What parsers trip over."""

SOCKETS: Final = ("/echo", "/deaf", "/talk", "/picky", "/jobs/stream", "/jobs/{}/stream", "/jobs/{}/stream?after=0")
"""Where websockets are; ``{}`` is the job that does not end."""

_LISTS: Final = (
    *("/jobs", "/jobs?status=Queued&status=Completed&limit=5", "/jobs?name=Work&queue=public&limit=200", "/jobs?limit=1&cursor=%s"),
    *("/jobs/{}", "/jobs/{}?wait=0.5", "/jobs/{}/result", "/jobs/{}/attempts", "/jobs/queues", "/jobs/health/live", "/jobs/health/ready"),
    *("/jobs/openapi.json", "/jobs/ui", "/plain", "/nowhere", "/jobs/nowhere/at/all", "/jobs/{}/stream", "/echo", "/plain?x=%%ff&y=%%00"),
)  # fmt: skip


def packed(rng: random.Random, size: int) -> bytes:
    """``size`` bytes that no parser expects."""
    return rng.randbytes(size)


def request(
    method: str, path: str, *headers: tuple[str, str], body: bytes | None = None, rng: random.Random | None = None
) -> bytes:
    """A request; with ``rng``, its body may be in chunks."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers)]
    payload = b""
    if body is not None:
        if rng is not None and rng.random() < 0.4:
            lines.append("Transfer-Encoding: chunked")
            payload = chunked(rng, body)
        else:
            lines.append(f"Content-Length: {len(body)}")
            payload = body
    return "\r\n".join(lines).encode("latin1") + b"\r\n\r\n" + payload


def chunked(rng: random.Random, body: bytes) -> bytes:
    """The body in chunks of any size, and their end."""
    parts = []
    while body:
        size = rng.choice([1, 2, 10, 100, 5000, 100_000])
        parts.append(b"%x\r\n%b\r\n" % (len(body[:size]), body[:size]))
        if len(parts) > 50:
            parts.append(b"%x\r\n%b\r\n" % (len(body[size:]), body[size:]) if body[size:] else b"")
            break
        body = body[size:]
    return b"".join(parts) + b"0\r\n\r\n"


def steering(rng: random.Random) -> bytes:
    """The life of a job on one connection, none of whose answers is waited for."""
    job = uuid.UUID(int=rng.getrandbits(128), version=4)
    json_type = ("Content-Type", "application/json")
    submit = request(
        "POST",
        f"/work/{rng.randrange(9)}",
        json_type,
        ("X-Async-Request-Id", str(job)),
        ("Job-Delay", str(rng.choice([0, 0, 1]))),
        body=b"{}",
        rng=rng,
    )
    steps = [
        request("GET", f"/jobs/{job}"),
        request("GET", f"/jobs/{job}?wait=1"),
        request("POST", f"/jobs/{job}/cancel", ("Prefer", "wait=1"), body=b"", rng=rng),
        request("DELETE", f"/jobs/{job}", body=b"", rng=rng),
        request("POST", f"/jobs/{job}/retry", body=b"", rng=rng),
        request("DELETE", f"/jobs/{job}?purge=true"),
        request("GET", f"/jobs/{job}/result"),
        request("GET", f"/jobs/{job}/events", ("Last-Event-ID", "1")),
        submit,
    ]
    return submit + b"".join(rng.choices(steps, k=rng.randrange(1, 6)))


def any_request(rng: random.Random, target: Target) -> bytes:
    """One of the requests that the server understands."""
    return rng.choice(_MAKERS)(rng, target)


def _read(rng: random.Random, target: Target) -> bytes:
    path = rng.choice(_LISTS).replace("{}", target.followed).replace("%s", target.cursor).replace("%%", "%")
    headers = [
        ("If-None-Match", '"x", W/"y"'),
        ("Prefer", "wait=1, respond-async"),
        ("Accept", "*/*"),
        ("Cookie", "a=b; c"),
        ("Origin", "http://127.0.0.1"),
        ("Connection", "close"),
        ("Authorization", "Bearer x"),
    ]
    return request(rng.choice(["GET", "GET", "GET", "HEAD", "OPTIONS"]), path, *rng.sample(headers, rng.randrange(3)))


def _submit(rng: random.Random, target: Target) -> bytes:
    bodies = [
        b"{}",
        b'{"a": [1, 2.5, "\\u20ac", null]}',
        json.dumps({"text": "x" * rng.choice([10, 3000, 60_000, 70_000, 300_000])}).encode(),
        b'{"deep": ' + b"[" * 200 + b"]" * 200 + b"}",
        b"[1]",
        b"\xef\xbb\xbf{}",
    ]
    headers = [
        ("Idempotency-Key", f"key {rng.randrange(20)}"),
        ("X-Async-Request-Id", str(uuid.UUID(int=rng.randrange(50), version=4))),
        ("Prefer", "wait=0.5"),
        ("Job-Delay", "1"),
        ("Job-Priority", str(rng.randrange(-1000, 1000))),
        ("Job-Timeout", "5"),
        ("Expect", "100-continue"),
        ("Connection", "close"),
    ]
    chosen = rng.sample(headers, rng.randrange(3))
    return request("POST", "/work/one", ("Content-Type", "application/json"), *chosen, body=rng.choice(bodies), rng=rng)


def _bulk(rng: random.Random, target: Target) -> bytes:
    lines = [b'{"n": %d}' % number for number in range(rng.choice([1, 3, 40, 120]))]
    if rng.random() < 0.3:
        lines += [b"", b"3", b"{", b'{"x": "%b"}' % (b"y" * 70_000)]
    headers = [("Idempotency-Key", f"bulk {rng.randrange(20)}")] if rng.random() < 0.5 else []
    kind = rng.choice(["application/x-ndjson", "application/jsonl"])
    return request("POST", "/work/bulk", ("Content-Type", kind), *headers, body=b"\n".join(lines), rng=rng)


def _compressed(rng: random.Random, target: Target) -> bytes:
    body = gzip.compress(b'{"x": "' + b"0" * rng.choice([100, 5_000_000]) + b'"}', 6)
    path = rng.choice(["/work/gzip", "/upload", "/drip"])
    return request("POST", path, ("Content-Type", "application/json"), ("Content-Encoding", "gzip"), body=body, rng=rng)


def _own(rng: random.Random, target: Target) -> bytes:
    body = b"u" * rng.choice([0, 1, 5000, 200_000])
    return request("POST", rng.choice(["/upload", "/drip"]), body=body, rng=rng)


def _form(rng: random.Random, target: Target) -> bytes:
    if rng.random() < 0.5:
        body = b"&".join(b"f%d=%%20v" % number for number in range(rng.choice([1, 50, 3000])))
        return request("POST", "/form", ("Content-Type", "application/x-www-form-urlencoded"), body=body, rng=rng)
    part = b'--b\r\nContent-Disposition: form-data; name="f%d"; filename="x.txt"\r\nContent-Type: text/plain\r\n\r\ndata\r\n'
    body = b"".join(part % number for number in range(rng.choice([1, 20, 300]))) + b"--b--\r\n"
    return request("POST", "/form", ("Content-Type", "multipart/form-data; boundary=b"), body=body, rng=rng)


def _follow(rng: random.Random, target: Target) -> bytes:
    path = f"/jobs/{target.followed}/events" + rng.choice(["", "?after=0", "?after=99999999", "?after=x"])
    return request("GET", path, *([("Last-Event-ID", "3")] if rng.random() < 0.5 else []))


def _steered(rng: random.Random, target: Target) -> bytes:
    return steering(rng)


def _shaken(rng: random.Random, target: Target) -> bytes:
    return handshake(rng, rng.choice(SOCKETS).format(target.followed)) + frame(rng, TEXT, message(rng, target))


_MAKERS: Final[tuple[Callable[[random.Random, Target], bytes], ...]] = (
    *(_read, _read, _submit, _submit, _bulk, _compressed, _own, _form, _follow, _steered, _shaken),
)


# Websockets


def handshake(rng: random.Random, path: str, *headers: tuple[str, str]) -> bytes:
    """A good one, unless ``headers`` spoil it."""
    key = base64.b64encode(rng.randbytes(16)).decode()
    good = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
    ]
    return request("GET", path, *good, *headers)


def frame(
    rng: random.Random,
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    reserved: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A frame; ``length`` is what it says of itself, if that is not the truth."""
    says = len(payload) if length is None else length
    bit = 0x80 if masked else 0
    head = bytes([(0x80 if final else 0) | reserved << 4 | opcode])
    if says < 126:
        head += bytes([bit | says])
    elif says < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", says)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", says)
    if not masked:
        return head + payload
    # Masking costs the attacker more than the server: most masks are zero.
    mask = rng.randbytes(4) if rng.random() < 0.1 else b"\0\0\0\0"
    if mask != b"\0\0\0\0":
        size = len(payload)
        spread = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(spread, "big")).to_bytes(size, "big")
    return head + mask + payload


def message(rng: random.Random, target: Target) -> bytes:
    """One that the many-job socket understands, or nearly."""
    said: list[Any] = [
        {"type": "subscribe", "id": target.followed, "sub": f"s{rng.randrange(5)}"},
        {"type": "subscribe", "id": target.followed, "after": rng.choice([0, 3, 10**9, -1, "x"])},
        {"type": "subscribe", "sub": f"f{rng.randrange(200)}", "name": "Work"},
        {"type": "subscribe", "sub": "g", "queue": "private", "status": ["InProgress", "Completed"]},
        {"type": "subscribe", "sub": "h", "status": "Nonsense"},
        {"type": "unsubscribe", "sub": f"s{rng.randrange(5)}"},
        {"type": "cancel", "id": str(uuid.UUID(int=rng.randrange(50), version=4))},
        {
            "type": "submit",
            "ref": "r",
            "path": "/work/ws",
            "jobs": [{"n": number} for number in range(rng.choice([1, 30]))],
        },
        {"type": "submit", "ref": "k", "path": "/work/ws", "jobs": [{}], "idempotencyKey": f"ws {rng.randrange(9)}"},
        {
            "type": "submit",
            "ref": "",
            "path": rng.choice(["/plain", "/jobs", "//", "/work/%ff", "x" * 5000]),
            "jobs": [[]],
        },
        {"type": rng.choice(["", "x", 5, None])},
        [],
        "text",
        10**400,
    ]
    return json.dumps(rng.choice(said)).encode()


def bomb(size: int) -> bytes:
    """Zeros of that size, as permessage-deflate packs them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(bytes(size)) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


# Spoiling


def mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """``data`` after a few of: bits flipped, bytes lost, doubled, moved or put in, lines doubled, a part of ``other`` in it."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        at = _somewhere(rng, data)
        way = rng.randrange(9)
        if way == 0 and data:
            data = data[:at] + bytes([data[min(at, len(data) - 1)] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif way == 1:
            data = data[:at] + data[at + rng.choice([1, 1, 4, 50]) :]
        elif way == 2:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif way == 3:
            data = data[:at] + data[max(0, at - rng.randrange(1, 60)) : at] + data[at:]
        elif way == 4:
            lines = data.split(b"\r\n")
            here = rng.randrange(min(len(lines), 12))
            lines.insert(rng.randrange(min(len(lines), 12)), lines[here])
            data = b"\r\n".join(lines)
        elif way == 5:
            lines = data.split(b"\r\n")
            lines.pop(rng.randrange(min(len(lines), 12)))
            data = b"\r\n".join(lines)
        elif way == 6:
            data = data[:at] + other[_somewhere(rng, other) :]
        elif way == 7:
            data = data[:at] + rng.randbytes(rng.choice([1, 2, 8, 100])) + data[at:]
        else:
            data = data[:at] + rng.choice(TOKENS) + data[at + rng.randrange(1, 12) :]
    return data


def _somewhere(rng: random.Random, data: bytes) -> int:
    """A place in ``data``, rather in the head than in a long body."""
    return rng.randrange(min(len(data), rng.choice([20, 200, 400, 10**9])) + 1)
