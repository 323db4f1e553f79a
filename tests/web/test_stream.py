"""The one-job websocket, over real sockets: snapshot, events, resume, closing, and slow or rude clients."""

import contextlib
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from msgspec.structs import replace
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Site, assert_problem, frames, patient
from trio_websocket import ConnectionClosed, WebSocketConnection

UNKNOWN = "01234567-89ab-7def-8123-456789abcdef"


def fold(received: list[dict[str, Any]], document: dict[str, Any] | None = None, seq: int = 0) -> dict[str, Any]:
    """The document that the frames make of ``document``; checks the chain of ``since`` and ``seq``."""
    folded = dict(document or {})
    for frame in received:
        if frame["type"] == "snapshot":
            folded = frame["job"]
        else:
            assert frame["since"] == seq, (frame, seq)
            folded.update(frame["job"])
        seq = frame["seq"]
        assert folded["seq"] == seq
        assert frame["at"] == folded["lastUpdatedAt"]
    return folded


def closed_with(socket: WebSocketConnection) -> int:
    assert socket.closed is not None
    return socket.closed.code


async def run_steps(site: Site, gate: str, steps: int) -> str:
    job = await site.submit(f"/api/steps/{gate}", steps)
    return str(job["id"])


async def test_a_snapshot_first_then_each_event_and_1000_after_the_terminal_one(site: Site) -> None:
    job_id = await run_steps(site, "s", 2)
    await site.gates.arrived("s 0")
    async with site.socket(f"/jobs/{job_id}/stream") as socket:
        first = msgspec.json.decode(await socket.get_message())
        assert (first["type"], first["gap"], first["seq"]) == ("snapshot", False, first["job"]["seq"])
        site.gates.open("s 0")
        await site.gates.arrived("s 1")
        site.gates.open("s 1")
        rest = await frames(socket)
        assert closed_with(socket) == 1000
    received = [first, *rest]
    assert rest[-1]["type"] == "status" and rest[-1]["job"]["status"] == "Completed"
    assert [frame["message"] for frame in rest if frame["type"] == "log"] == ["did 0", "did 1"]
    assert {frame["level"] for frame in rest if frame["type"] == "log"} == {"info"}
    assert sum(frame["job"].get("status") == "Completed" for frame in received) == 1
    assert fold(received) == (await site.http.get(f"/jobs/{job_id}")).json()


async def test_the_fold_equals_what_get_answers_at_every_seq(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    await site.gates.arrived("s 0")
    async with site.socket(f"/jobs/{job_id}/stream?after=0") as socket:
        received: list[dict[str, Any]] = []
        for opened in (None, "s 0"):
            if opened is not None:
                site.gates.open(opened)
                await site.ended(job_id)
            now = (await site.http.get(f"/jobs/{job_id}")).json()
            with trio.fail_after(5):
                while not received or received[-1]["seq"] < now["seq"]:
                    received.append(msgspec.json.decode(await socket.get_message()))
            at_now = [frame for frame in received if frame["seq"] <= now["seq"]]
            assert fold(at_now) == now
            assert list(fold(at_now)) == list(now)


async def test_the_links_of_a_created_resource_are_in_the_terminal_event(open_site: OpenSite) -> None:
    site = await open_site(root_path="/shop")
    job = (await site.http.request("DELETE", "/shop/api/things/4")).json()
    site.gates.open("create 4")
    await trio.lowlevel.checkpoint()
    document = (await site.http.get(f"/shop/jobs/{job['id']}?wait=5&redirect=false")).json()
    async with site.socket(f"/shop/jobs/{job['id']}/stream?after=0") as socket:
        received = await frames(socket)
    assert received[0]["since"] == 0 and received[0]["job"]["links"] == job["links"]
    assert received[-1]["job"]["links"]["location"] == "/shop/things/4"
    assert "location" not in received[-1]["job"]
    assert fold(received) == document


async def test_resume_has_no_gap_and_no_repeat(site: Site) -> None:
    job_id = await run_steps(site, "s", 3)
    await site.gates.arrived("s 0")
    received: list[dict[str, Any]] = []
    seq = 0
    for step in range(3):
        async with site.socket(f"/jobs/{job_id}/stream?after={seq}") as socket:
            site.gates.open(f"s {step}")
            received.append(msgspec.json.decode(await socket.get_message()))
            seq = received[-1]["seq"]
    async with site.socket(f"/jobs/{job_id}/stream?after={seq}") as socket:
        received += await frames(socket)
        assert closed_with(socket) == 1000
    assert fold(received) == (await site.http.get(f"/jobs/{job_id}")).json()
    assert all(frame["type"] != "snapshot" for frame in received)


async def test_resume_at_the_end_of_an_ended_job_closes_at_once(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    async with site.socket(f"/jobs/{job['id']}/stream?after={job['seq']}") as socket:
        assert await frames(socket) == []
        assert closed_with(socket) == 1000
    async with site.socket(f"/jobs/{job['id']}/stream") as socket:
        received = await frames(socket)
        assert [frame["type"] for frame in received] == ["snapshot"]
        assert received[0]["job"] == job
        assert closed_with(socket) == 1000


async def test_resume_ahead_of_the_job_is_a_gap_snapshot(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    async with site.socket(f"/jobs/{job['id']}/stream?after=999") as socket:
        received = await frames(socket)
    assert [(frame["type"], frame["gap"], frame["seq"]) for frame in received] == [("snapshot", True, job["seq"])]


async def test_resume_beyond_the_kept_history_is_a_gap_snapshot(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_events_per_job=2))
    job = await site.submit("/api/fail", {"code": "BUSY", "message": "later", "retryable": True}, Prefer="wait=5")
    assert job["seq"] > 3
    async with site.socket(f"/jobs/{job['id']}/stream?after=1") as socket:
        received = await frames(socket)
    assert (received[0]["type"], received[0]["gap"]) == ("snapshot", True)
    assert fold(received) == job
    async with site.socket(f"/jobs/{job['id']}/stream?after={job['seq'] - 1}") as socket:
        assert [frame["since"] for frame in await frames(socket)] == [job["seq"] - 1]


async def test_a_handshake_that_cannot_be_meant_is_refused(site: Site) -> None:
    for path, status in [
        (f"/jobs/{UNKNOWN}/stream", 404),
        ("/jobs/x/stream", 404),
        (f"/jobs/{UNKNOWN}/stream?after=x", 400),
        (f"/jobs/{UNKNOWN}/stream?after=-1", 400),
        (f"/jobs/{UNKNOWN}/stream?after=1.5", 400),
        (f"/jobs/{UNKNOWN}/stream?after=", 400),
        ("/jobs/no/such/socket", 404),
    ]:
        assert_problem(await site.refused_handshake(path), status)


async def test_shutdown_closes_with_1001_at_once(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    await site.gates.arrived("s 0")
    async with site.socket(f"/jobs/{job_id}/stream") as socket:
        await socket.get_message()
        site.board.runtime.begin_drain()
        with trio.fail_after(0.5):
            with pytest.raises(ConnectionClosed):
                while True:
                    await socket.get_message()
        assert closed_with(socket) == 1001


async def streams(site: Site) -> float:
    text = (await site.http.get("/jobs/metrics")).text
    return float(next(line for line in text.splitlines() if line.startswith("callboard_streams ")).split()[1])


async def none_open(site: Site) -> bool:
    return await streams(site) == 0


async def test_a_client_that_closes_or_vanishes_is_let_go(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    async with site.socket(f"/jobs/{job_id}/stream") as socket:
        await socket.get_message()
        assert await streams(site) == 1
    await patient(partial(none_open, site))
    stream = await trio.open_tcp_stream("127.0.0.1", int(site.url.rpartition(":")[2]))
    await stream.send_all(handshake(job_id))
    await stream.receive_some()
    assert await streams(site) == 1
    await stream.aclose()
    await patient(partial(none_open, site))
    site.gates.open("s 0")
    assert (await site.ended(job_id))["status"] == "Completed"


def handshake(job_id: str) -> bytes:
    lines = [
        f"GET /jobs/{job_id}/stream HTTP/1.1",
        *("Host: localhost", "Upgrade: websocket", "Connection: Upgrade"),
        *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_a_client_that_talks_too_much_is_closed(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    for messages, size, code in ((3, 5000, 1009), (200, 1, 1008)):
        async with site.socket(f"/jobs/{job_id}/stream") as socket:
            await socket.get_message()
            with contextlib.suppress(ConnectionClosed):
                for _ in range(messages):
                    await socket.send_message("x" * size)
            await frames(socket)
            assert closed_with(socket) == code
    async with site.socket(f"/jobs/{job_id}/stream") as socket:
        await socket.send_message("hello")
        await socket.get_message()
        site.gates.open("s 0")
        assert (await frames(socket))[-1]["job"]["status"] == "Completed"


@pytest.mark.parametrize("answers", [True, False], ids=["answers the close", "never answers"])
async def test_the_connection_of_a_client_that_talks_on_after_the_close_is_closed(site: Site, answers: bool) -> None:
    """A masked text frame of one character, again and again: 1008 arrives, and then the end of the connection."""
    job_id = await run_steps(site, "s", 1)
    message = bytes([0x81, 0x81, 0, 0, 0, 0, ord("x")])
    stream = await trio.open_tcp_stream("127.0.0.1", int(site.url.rpartition(":")[2]))
    received = bytearray()

    async def talk() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(150):
                await stream.send_all(message)
            while not answers:
                await stream.send_all(message)
                await trio.sleep(0.001)

    async def listen() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                received.extend(data)

    async with stream:
        await stream.send_all(handshake(job_id))
        assert b"101" in await stream.receive_some()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                nursery.start_soon(listen)
                code = (1008).to_bytes(2, "big")
                while code not in received:  # noqa: ASYNC110 - what is waited for is behind a socket
                    await trio.sleep(0.01)
                if answers:
                    await trio.sleep(0.05)
                    await stream.send_all(bytes([0x88, 0x82, 0, 0, 0, 0]) + code)
    await patient(partial(none_open, site))


@pytest.mark.parametrize("store_url", ["memory", "sqlite"], indirect=True)  # on which a job is faster than its reader
async def test_a_client_that_never_reads_slows_nobody_and_gets_an_unbroken_chain(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, progress_interval_seconds=0, max_subscriber_events=8))
    job = await site.submit("/api/flood", 400)
    async with site.socket(f"/jobs/{job['id']}/stream?after=0", receive_buffer=4096) as stalled:
        site.gates.open("flood")
        async with site.socket(f"/jobs/{job['id']}/stream?after=0") as reader:
            read = await frames(reader)
        ended = await site.ended(job["id"])
        assert fold(read) == ended
        late = await frames(stalled)
    assert late[-1]["seq"] == ended["seq"]
    assert fold(late) == ended
    assert len(late) < len(read), "it was never behind: this test tests nothing"
