"""``GET <jobs>/{id}/events``: the chain of events, resume, the proper end, and clients that leave or never read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h11
import msgspec
import pytest
import trio
from msgspec.structs import replace
from tests.web.conftest import OpenSite
from tests.web.test_stream import fold, none_open, run_steps, streams
from tests.web.workshop import CONFIG, Site, assert_problem, patient

from callboard.web import sse

UNKNOWN = "01234567-89ab-7def-8123-456789abcdef"


class Stream:
    """Reads Server-Sent Events as a browser does, and refuses what callboard does not send.

    On a socket of its own: httpx leaves generators behind where a response is not read to its end.
    """

    def __init__(self, line: trio.SocketStream) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.comments = 0
        self.retry_ms: int | None = None
        self._line = line
        self._http = h11.Connection(h11.CLIENT)
        self._text = b""

    async def ask(self, path: str, headers: dict[str, str]) -> None:
        request = h11.Request(method="GET", target=path, headers=[("Host", "localhost"), *headers.items()])
        await self._line.send_all((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        answer = await self._receive()
        assert isinstance(answer, h11.Response)
        self.status = answer.status_code
        self.headers = {name.decode(): value.decode() for name, value in answer.headers}

    async def next(self) -> dict[str, Any] | None:
        """The next event's frame; None at the end of the response."""
        while True:
            message, end, rest = self._text.partition(b"\n\n")
            if not end:
                match await self._receive():
                    case h11.Data(data=data):
                        self._text += data
                    case h11.EndOfMessage():
                        assert self._text == b"", "half a message"
                        return None
                continue
            self._text = rest
            frame = self._frame(message.decode())
            if frame is not None:
                return frame

    def _frame(self, message: str) -> dict[str, Any] | None:
        last_id, data = None, ""
        for line in message.split("\n"):
            field, _, value = line.partition(":")
            match field:
                case "id":
                    last_id = int(value)
                case "data":
                    data = value
                case "retry":
                    self.retry_ms = int(value)
                case "":
                    self.comments += 1
                case _:
                    raise AssertionError(f"a browser would not pass this on as a message: {line}")
        if not data:
            return None
        frame: dict[str, Any] = msgspec.json.decode(data)
        assert frame["seq"] == last_id
        return frame

    async def rest(self) -> list[dict[str, Any]]:
        """Every frame to the end of the response."""
        frames = []
        with trio.fail_after(5):
            while (frame := await self.next()) is not None:
                frames.append(frame)
        return frames

    async def _receive(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._line.receive_some())
        return event


@asynccontextmanager
async def events(
    site: Site, job_id: str, after: int | None = None, *, buffer_bytes: int | None = None, **headers: str
) -> AsyncIterator[Stream]:
    """The stream of one job, which must be there."""
    query = "" if after is None else f"?after={after}"
    socket = trio.socket.socket()
    if buffer_bytes is not None:
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, buffer_bytes)
    await socket.connect(("127.0.0.1", int(site.url.rpartition(":")[2])))
    async with trio.SocketStream(socket) as line:
        stream = Stream(line)
        await stream.ask(
            f"/jobs/{job_id}/events{query}", {name.replace("_", "-"): value for name, value in headers.items()}
        )
        assert stream.status == 200
        yield stream


async def test_a_snapshot_first_then_each_event_and_the_end_after_the_terminal_one(site: Site) -> None:
    job_id = await run_steps(site, "s", 2)
    await site.gates.arrived("s 0")
    async with events(site, job_id) as stream:
        first = await stream.next()
        assert first is not None and (first["type"], first["gap"]) == ("snapshot", False)
        site.gates.open("s 0")
        await site.gates.arrived("s 1")
        site.gates.open("s 1")
        received = [first, *await stream.rest()]
    headers = stream.headers
    assert headers["content-type"].partition(";")[0] == "text/event-stream"
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    assert stream.retry_ms
    document = (await site.http.get(f"/jobs/{job_id}")).json()
    assert fold(received) == document
    assert document["links"]["events"] == f"/jobs/{job_id}/events"
    assert [frame["message"] for frame in received if frame["type"] == "log"] == ["did 0", "did 1"]
    await patient(partial(none_open, site))


async def test_resume_by_header_or_parameter_has_no_gap_and_no_repeat(site: Site) -> None:
    job_id = await run_steps(site, "s", 3)
    await site.gates.arrived("s 0")
    received: list[dict[str, Any]] = []
    async with events(site, job_id, 0) as stream:
        received.append(await stream.next() or {})
    for step in range(3):
        seq = received[-1]["seq"]
        # A page's address stays as it is: the header, which the browser keeps, is newer and wins.
        async with events(site, job_id, 0, Last_Event_ID=str(seq)) as stream:
            site.gates.open(f"s {step}")
            received.append(await stream.next() or {})
    async with events(site, job_id, received[-1]["seq"]) as stream:
        received += await stream.rest()
    assert fold(received) == (await site.http.get(f"/jobs/{job_id}")).json()
    assert all(frame["type"] != "snapshot" for frame in received)


async def test_a_resume_at_or_past_the_end_is_answered_204(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    path = f"/jobs/{job['id']}/events"
    for query, headers in (
        (f"?after={job['seq']}", {}),
        (f"?after={job['seq'] + 5}", {}),
        ("", {"Last-Event-ID": str(job["seq"])}),
        ("?after=0", {"Last-Event-ID": str(job["seq"])}),
    ):
        answer = await site.http.get(path + query, headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
        assert "content-type" not in answer.headers
    async with events(site, job["id"], job["seq"] - 1) as stream:
        assert [frame["seq"] for frame in await stream.rest()] == [job["seq"]]
    async with events(site, job["id"]) as stream:
        assert [frame["job"] for frame in await stream.rest()] == [job]


async def test_resume_beyond_the_kept_history_or_ahead_of_the_job_is_a_gap_snapshot(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_events_per_job=2))
    job = await site.submit("/api/fail", {"code": "BUSY", "message": "later", "retryable": True}, Prefer="wait=5")
    async with events(site, job["id"], 1) as stream:
        received = await stream.rest()
    assert (received[0]["type"], received[0]["gap"]) == ("snapshot", True)
    assert fold(received) == job
    living = await run_steps(site, "s", 1)
    async with events(site, living, 999) as stream:
        first = await stream.next()
    assert first is not None and (first["type"], first["gap"]) == ("snapshot", True)


async def test_what_cannot_be_meant_is_refused(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    path = f"/jobs/{job['id']}/events"
    for after in ("x", "-1", "1.5", "", "%C2%B2"):
        assert_problem(await site.http.get(f"{path}?after={after}"), 400)
    for last in ("x", "", "-1", "1.0"):
        assert_problem(await site.http.get(path, headers={"Last-Event-ID": last}), 400)
        assert_problem(await site.http.get(f"{path}?after=0", headers={"Last-Event-ID": last}), 400)
    twice = [("Last-Event-ID", "1"), ("Last-Event-ID", "2")]
    assert_problem(await site.http.get(path, headers=twice), 400)
    assert_problem(await site.http.get(f"/jobs/{UNKNOWN}/events"), 404)
    assert_problem(await site.http.get("/jobs/x/events"), 404)
    refused = assert_problem(await site.http.post(path), 405)
    assert refused["title"]


async def test_head_does_not_wait_for_the_end(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    with trio.fail_after(2):
        answer = await site.http.head(f"/jobs/{job_id}/events")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")


async def test_a_comment_keeps_the_line_warm_and_quarts_timeout_does_not_cut_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_WARM_SECONDS", 0.05)
    site.app.config["RESPONSE_TIMEOUT"] = 0.2
    job_id = await run_steps(site, "s", 1)
    await site.gates.arrived("s 0")
    async with events(site, job_id) as stream:
        first = await stream.next() or {}
        await trio.sleep(0.6)
        site.gates.open("s 0")
        received = [first, *await stream.rest()]
    assert stream.comments >= 5
    assert received[-1]["job"]["status"] == "Completed"
    assert fold(received) == (await site.http.get(f"/jobs/{job_id}")).json()


async def test_a_drain_ends_it_at_once_and_the_resume_misses_nothing(open_site: OpenSite) -> None:
    site = await open_site()
    job_id = await run_steps(site, "s", 1)
    await site.gates.arrived("s 0")
    async with events(site, job_id) as stream:
        first = await stream.next()
        assert first is not None
        site.board.runtime.begin_drain()
        with trio.fail_after(0.5):
            assert await stream.next() is None
    # A browser that comes back before the server is gone must not be told to stay away for good.
    async with events(site, job_id, Last_Event_ID=str(first["seq"])) as stream:
        with trio.fail_after(0.5):
            assert await stream.next() is None


async def test_a_client_that_leaves_is_let_go(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    async with events(site, job_id) as stream:
        assert await stream.next()
        assert await streams(site) == 1
    await patient(partial(none_open, site))
    assert site.board.runtime.stats().subscribers == 0
    site.gates.open("s 0")
    assert (await site.ended(job_id))["status"] == "Completed"


@pytest.mark.parametrize("store_url", ["memory", "sqlite"], indirect=True)  # on which a job is faster than its reader
async def test_a_client_that_never_reads_slows_nobody_and_gets_an_unbroken_chain(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, progress_interval_seconds=0, max_subscriber_events=8))
    job = await site.submit("/api/flood", 400)
    async with events(site, job["id"], 0, buffer_bytes=4096) as stalled:
        site.gates.open("flood")
        async with events(site, job["id"], 0) as stream:
            read = await stream.rest()
        ended = await site.ended(job["id"])
        assert fold(read) == ended
        assert await streams(site) == 1, "it was never behind: this test tests nothing"
        late = await stalled.rest()
    assert fold(late) == ended
    await patient(partial(none_open, site))


def identify(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


async def test_who_may_not_see_the_job_gets_404_and_who_may_not_stream_403(open_site: OpenSite) -> None:
    site = await open_site(identify=identify)
    job = await site.submit(X_User="ann")
    path = f"/jobs/{job['id']}/events"
    assert_problem(await site.http.get(path, headers={"X-User": "bob"}), 404)
    async with events(site, job["id"], X_User="ann") as stream:
        assert await stream.next()
    denied = {"stream"}
    other = await open_site(authorize=lambda request, action, job: action not in denied, store="memory://")
    job = await other.submit()
    assert_problem(await other.http.get(f"/jobs/{job['id']}/events"), 403)
    denied = {"read"}
    assert_problem(await other.http.get(f"/jobs/{job['id']}/events"), 404)


async def test_events_honour_the_root_path(open_site: OpenSite) -> None:
    site = await open_site(root_path="/shop")
    job = (await site.http.put("/shop/api/crash", headers={"Prefer": "wait=5"})).json()
    assert job["links"]["events"] == f"/shop/jobs/{job['id']}/events"
    answer = await site.http.get(f"{job['links']['events']}?after=0")
    first = msgspec.json.decode(answer.text.split("data: ")[1].partition("\n")[0])
    assert first["job"]["links"] == job["links"]


async def test_head_says_what_get_says_and_no_length(site: Site) -> None:
    job_id = (await site.submit())["id"]
    answer = await site.http.head(f"/jobs/{job_id}/events")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers
