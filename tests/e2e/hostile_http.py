"""Attacks over HTTP/1: spoiled requests, spoiled framing, too much of everything, and clients that are slow, silent, or gone midway."""

from typing import Final

import trio
from tests.e2e.hostile import Attack, Attacker
from tests.e2e.hostile_corpus import any_request, chunked, mutated, packed, request, steering

__all__ = ["HTTP_ATTACKS"]


async def mutants(attacker: Attacker) -> None:
    """Some requests in a row, of which some are spoiled."""
    rng, target = attacker.rng, attacker.target
    wire = await attacker.connect()
    for _ in range(rng.choice([1, 1, 2, 4])):
        data = b"".join(any_request(rng, target) for _ in range(rng.choice([1, 1, 3])))
        await wire.dribble(mutated(rng, data, any_request(rng, target)))
        if not await wire.answered(rng.choice([0.05, 0.5])):
            break
    await wire.leave()


async def leavers(attacker: Attacker) -> None:
    """A good request whose client goes before all is sent, or before all is answered."""
    rng = attacker.rng
    wire = await attacker.connect(receive_buffer=rng.choice([None, 4096]))
    data = any_request(rng, attacker.target)
    if rng.random() < 0.5:
        data = data[: rng.randrange(len(data))]
    await wire.dribble(data)
    await wire.read(rng.choice([0, 0.01, 0.2]), most=rng.choice([0, 1, 10**6]))
    await wire.leave()


async def pipeliners(attacker: Attacker) -> None:
    """Many requests at once; the answers are read late or never."""
    rng = attacker.rng
    wire = await attacker.connect(receive_buffer=rng.choice([None, 4096]))
    requests = [any_request(rng, attacker.target) for _ in range(rng.choice([5, 30]))]
    await wire.dribble(b"".join(requests))
    await trio.sleep(rng.choice([0, 0.3]))
    await wire.read(1, most=rng.choice([100, 10**6]))
    await wire.leave()


async def steerers(attacker: Attacker) -> None:
    """A job's life in one packet."""
    wire = await attacker.connect()
    await wire.dribble(steering(attacker.rng))
    await wire.read(attacker.rng.random() * 2)
    await wire.leave()


async def misframers(attacker: Attacker) -> None:
    """Length and chunks that do not fit."""
    rng = attacker.rng
    path = rng.choice(["/work/x", "/upload", "/drip", "/form", "/plain", "/nowhere"]).encode()
    lengths = [
        *(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: -1"),
        *(b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, chunked"),
        *(b"Content-Length: 5, 5", b"Content-Length: 0x5", b"Content-Length: " + b"9" * 30, b"Content-Length: \xb2"),
        *(b"Transfer-Encoding: chunked",) * 6,
        *(b"Content-Length: 100", b"Content-Length: 99999999"),
    ]  # fmt: skip
    bodies = [
        *(
            b"hello",
            b"5\r\nhello\r\n",
            b"g\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"5;" + b"x" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
        ),
        *(
            b"ffffffffffffffff\r\nhello",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"0\r\n" + b"T: v\r\n" * 500 + b"\r\n",
            b"0\r\n\xff: \0\r\n\r\n",
        ),
        *(b"5\nhello\n0\n\n", b"5\r\nhello\r\n" * 3000, b"1\r\n{\r\n" * 2, b"0" * 30_000, chunked(rng, b"{}" * 40_000)),
    ]
    wire = await attacker.connect()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%b\r\n\r\n" % (path, rng.choice(lengths))
    await wire.dribble(head + rng.choice(bodies) + (any_request(rng, attacker.target) if rng.random() < 0.5 else b""))
    await wire.read(rng.choice([0.1, 1]))
    await wire.leave()


async def odd_heads(attacker: Attacker) -> None:
    """Request lines and headers that few clients send."""
    rng = attacker.rng
    lines = [
        *(b"GET http://127.0.0.1/plain HTTP/1.1", b"GET //plain HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT x:1 HTTP/1.1"),
        *(b"GET /plain HTTP/1.0", b"GET /plain HTTP/1.2", b"GET /plain HTTP/2.0", b"GET /plain", b"GET  /plain HTTP/1.1"),
        *(b"GET /pl\xc3\xa4in HTTP/1.1", b"GET /plain?\xff HTTP/1.1", b"GET /%ff%00%c3 HTTP/1.1", b"GET /" + b"x" * 9000 + b" HTTP/1.1"),
        *(b"PRI * HTTP/2.0\r\n\r\nSM", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"G\xc8T /plain HTTP/1.1", b"FOO /jobs HTTP/1.1"),
        *(b"GET /jobs/%2e%2e/plain HTTP/1.1", b"GET /jobs/\\ HTTP/1.1", b"GET plain HTTP/1.1", b"GET ?x HTTP/1.1", b"GET [::1 HTTP/1.1"),
        *(b"TRACE / HTTP/1.1", b"GET http://[ HTTP/1.1", b"GET http://a:b@c:d/ HTTP/1.1", b"get /plain HTTP/1.1", b"POST /work/x HTTP/1.0"),
    ]  # fmt: skip
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: "
    heads = [
        *(b"Host: x", b"", b"Host: x\r\nHost: y", b"Host: \xff\xfe", b"Host: [::1", b"Host: x:99999999", b"Host: a b", b"Host:"),
        *(b"Host: x\r\nX: " + b"y" * 12_000, b"Host: x\r\nX: " + b"y" * 70_000, b"Host: x\r\n" + b"X: y\r\n" * 3000, b"Host: x\r\nX: \0"),
        *(b"Host: x\r\n folded: y", b"Host: x\r\nX : y", b"Host: x\r\n: y", b"Host: x\r\nX\xe4: y", b"Host: x\r\nX: \xff\x80"),
        *(b"Host: x\r\n" + h2c + b"AAMAAABkAAQAAP__", b"Host: x\r\n" + h2c + b"\xff", b"Host: x\r\n" + h2c + b"*", b"Host: x\r\nno colon"),
        *(b"Host: x\r\nExpect: 100-continue\r\nContent-Length: 5", b"Host: x\r\nExpect: \xff\r\nTransfer-Encoding: chunked"),
        *(b"Host: x\r\nCookie: " + b"a=b; " * 1000, b"Host: x\r\nContent-Type: \xff; charset=\0"),
        *(b"Host: x\r\nOrigin: \xff", b"Host: x\r\nOrigin: null", b"Host: x\r\nRange: bytes=-5", b"Host: x\r\nIf-None-Match: \xff, W/"),
        *(b"Host: x\r\nConnection: close, keep-alive, upgrade\r\nUpgrade: foo", b"Host: x\r\nTE: trailers\r\nTrailer: x"),
        b"Host: x\r\nContent-Type: multipart/form-data",
    ]  # fmt: skip
    wire = await attacker.connect()
    await wire.dribble(b"%b\r\n%b\r\n\r\n" % (rng.choice(lines), rng.choice(heads)))
    if await wire.answered(rng.choice([0.1, 1])) and rng.random() < 0.5:
        await wire.dribble(any_request(rng, attacker.target))
    await wire.leave()


async def slow_senders(attacker: Attacker) -> None:
    """A request byte by byte, slower than anybody would wait for it."""
    rng = attacker.rng
    wire = await attacker.connect()
    data = any_request(rng, attacker.target)
    start = rng.choice([0, 0, data.find(b"\r\n\r\n") + 4])
    await wire.send(data[:start])
    await wire.creep(data[start:], rng.choice([0.01, 0.3, 1.1]))
    await wire.leave()


async def silent(attacker: Attacker) -> None:
    """Says nothing, or half a sentence, and waits for the server to lose patience."""
    rng = attacker.rng
    wire = await attacker.connect()
    data = rng.choice(
        [
            *(
                b"",
                b"GET",
                b"GET /plain HTTP/1.1\r\nHost: x\r\n",
                b"POST /work/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
            ),
            *(
                b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
                request("GET", "/plain"),
            ),
            b"POST /drip HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
        ]
    )
    await wire.send(data)
    if rng.random() < 0.3:
        wire.finish()
    await wire.read(rng.choice([0.5, 7]))
    await wire.leave()


async def never_readers(attacker: Attacker) -> None:
    """Asks for much and takes nothing of it."""
    rng = attacker.rng
    wire = await attacker.connect(receive_buffer=rng.choice([2048, 8192]))
    followed = attacker.target.followed
    path = rng.choice(["/big", "/endless", f"/jobs/{followed}/events?after=0", "/jobs/openapi.json", "/jobs?limit=200"])
    await wire.send(request("GET", path) * rng.choice([1, 1, 20]))
    await wire.read(1, most=rng.choice([0, 1, 5000]))
    await trio.sleep(rng.choice([0.2, 2, 6.5]))
    await wire.leave()


async def sippers(attacker: Attacker) -> None:
    """Takes a stream bit by bit, and goes in the middle of it."""
    rng = attacker.rng
    wire = await attacker.connect(receive_buffer=4096)
    await wire.send(request("GET", rng.choice(["/endless", "/big", f"/jobs/{attacker.target.followed}/events"])))
    for _ in range(rng.choice([1, 10])):
        await wire.read(0.5, most=1000)
        await trio.sleep(0.1)
    wire.reset() if rng.random() < 0.5 else wire.close()


async def drowners(attacker: Attacker) -> None:
    """More body than anybody takes, in chunks or at once, through answers that say so."""
    rng = attacker.rng
    wire = await attacker.connect()
    path = rng.choice(["/work/big", "/upload", "/drip", "/form", "/plain", "/nowhere", "/jobs/x/cancel"])
    kind = rng.choice(["application/json", "application/x-ndjson", "multipart/form-data; boundary=b", "text/plain"])
    headers = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}"]
    block = rng.choice([b"x", b"{}\n", b"[", b"--b\r\n"]) * 16_000
    in_chunks = rng.random() < 0.7
    headers.append("Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {10**9}")
    await wire.send("\r\n".join(headers).encode() + b"\r\n\r\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.read, 3)
        part = b"%x\r\n%b\r\n" % (len(block), block) if in_chunks else block
        for _ in range(rng.choice([5, 40, 150])):
            await wire.send(part)
        nursery.cancel_scope.cancel()
    await wire.leave()


async def babblers(attacker: Attacker) -> None:
    """Nothing that means anything."""
    rng = attacker.rng
    wire = await attacker.connect()
    await wire.dribble(packed(rng, rng.choice([1, 20, 500, 70_000])))
    await wire.leave()


HTTP_ATTACKS: Final[tuple[Attack, ...]] = (
    *(mutants,) * 6,
    *(leavers,) * 3,
    *(pipeliners, steerers, misframers, misframers, odd_heads, odd_heads),
    *(slow_senders, silent, never_readers, sippers, drowners, babblers),
)
"""As often as each comes."""
