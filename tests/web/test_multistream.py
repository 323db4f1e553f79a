"""``WS <jobs>/stream``: many subscriptions on one socket, messages that are answered, rights, limits, hostile clients."""

import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace
from tests.web.conftest import OpenSite
from tests.web.test_stream import closed_with, fold, handshake, none_open, run_steps, streams
from tests.web.workshop import CONFIG, Site, assert_problem, patient
from trio_websocket import ConnectionClosed, WebSocketConnection

from callboard.runtime import Job
from callboard.web import multistream
from callboard.web.multistream import MAX_BAD_MESSAGES, MAX_SUBSCRIPTIONS, MAX_UNHEARD

UNKNOWN = "01234567-89ab-7def-8123-456789abcdef"
Frame = dict[str, Any]


class Client:
    """Talks the protocol; sorts what comes by subscription."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.by_sub: dict[str, list[Frame]] = {}
        """The events of each subscription, in order."""
        self.ended: set[str] = set()

    async def say(self, **message: Any) -> None:
        await self.socket.send_message(msgspec.json.encode(message).decode())

    async def next(self) -> Frame:
        """The next frame of any kind."""
        with trio.fail_after(5):
            frame: Frame = msgspec.json.decode(await self.socket.get_message())
        sub = frame.get("sub", "")
        match frame["type"]:
            case "subscribed":
                assert sub not in self.by_sub or sub in self.ended
                self.by_sub[sub] = []
                self.ended.discard(sub)
            case "unsubscribed":
                self.ended.add(sub)
            case "snapshot" | "status" | "progress" | "log":
                assert sub in self.by_sub and sub not in self.ended, f"nobody asked for {frame}"
                self.by_sub[sub].append({name: value for name, value in frame.items() if name != "sub"})
        return frame

    async def until(self, kind: str, sub: str | None = None) -> Frame:
        """Read on to the first frame of that kind."""
        while True:
            frame = await self.next()
            if frame["type"] == kind and sub in (None, frame.get("sub")):
                return frame
            assert frame["type"] != "error", frame

    async def ask(self, **message: Any) -> Frame:
        """Say something and read on to the answer."""
        await self.say(**message)
        while True:
            frame = await self.next()
            if frame["type"] in ("subscribed", "unsubscribed", "canceling", "error", "submitted"):
                return frame

    def document(self, sub: str, job_id: str | None = None) -> Frame:
        """What the frames of a subscription make of one job."""
        frames = [frame for frame in self.by_sub[sub] if job_id in (None, frame["job"]["id"])]
        return fold([{**frame, "job": dict(frame["job"])} for frame in frames])


@asynccontextmanager
async def client(site: Site, **options: Any) -> AsyncIterator[Client]:
    async with site.socket("/jobs/stream", **options) as socket:
        yield Client(socket)


def code(frame: Frame) -> tuple[str, str]:
    assert frame["message"], frame
    return frame["type"], frame["code"]


async def test_two_jobs_on_one_socket_each_to_its_end(site: Site) -> None:
    first, second = await run_steps(site, "a", 2), await run_steps(site, "b", 1)
    async with client(site) as one:
        assert await one.ask(type="subscribe", sub="mine", id=first) == {
            "type": "subscribed",
            "sub": "mine",
            "id": first,
        }
        assert await one.ask(type="subscribe", id=second, after=0) == {
            "type": "subscribed",
            "sub": second,
            "id": second,
        }
        site.gates.open_all()
        ends = [await one.until("unsubscribed") for _ in range(2)]
        assert {end["sub"]: end["id"] for end in ends} == {"mine": first, second: second}
        assert one.by_sub["mine"][0]["type"] == "snapshot" and one.by_sub["mine"][0]["gap"] is False
        assert one.by_sub[second][0]["since"] == 0 and one.by_sub[second][0]["type"] == "status"
        for sub, job_id in (("mine", first), (second, second)):
            assert one.document(sub) == (await site.http.get(f"/jobs/{job_id}")).json()
        # The socket stays for more, and the names are free again.
        assert (await one.ask(type="subscribe", sub="mine", id=first, after=0))["type"] == "subscribed"
        await one.until("unsubscribed", "mine")
        assert one.by_sub["mine"][0]["since"] == 0
        assert await streams(site) == 1
    await patient(partial(none_open, site))


async def test_resume_at_the_end_ahead_and_beyond_history(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, max_events_per_job=2))
    job = await site.submit("/api/fail", {"code": "BUSY", "message": "later", "retryable": True}, Prefer="wait=5")
    async with client(site) as one:
        for after, gap in ((job["seq"], None), (999, True), (1, True), (job["seq"] - 1, None)):
            await one.ask(type="subscribe", sub="s", id=job["id"], after=after)
            await one.until("unsubscribed", "s")
            kinds = [(frame["type"], frame.get("gap")) for frame in one.by_sub["s"]]
            assert kinds == ([] if after == job["seq"] else [("status", None)] if gap is None else [("snapshot", True)])


async def test_a_feed_shows_new_jobs_and_changes_and_no_history(site: Site) -> None:
    old = await site.submit(Prefer="wait=5")
    living = await run_steps(site, "s", 1)
    await site.gates.arrived("s 0")
    async with client(site) as one:
        assert await one.ask(type="subscribe", sub="all") == {"type": "subscribed", "sub": "all"}
        assert (await one.ask(type="subscribe", sub="orders", name="Order", queue="default"))["type"] == "subscribed"
        new = await site.submit(Prefer="wait=5")
        site.gates.open("s 0")
        ended = await site.ended(living)
        while "all" not in one.by_sub or len([f for f in one.by_sub["all"] if f["job"].get("completedAt")]) < 2:
            await one.next()
        assert one.document("all", new["id"]) == new == one.document("orders", new["id"])
        assert one.document("all", living) == ended
        firsts = {frame["job"]["id"]: frame for frame in reversed(one.by_sub["all"])}
        assert firsts[new["id"]]["since"] == 0
        assert (firsts[living]["type"], firsts[living]["gap"]) == ("snapshot", False)
        assert old["id"] not in firsts
        assert {frame["job"]["id"] for frame in one.by_sub["orders"]} == {new["id"]}


@pytest.mark.parametrize("status", ["Failed", ["Failed", "Canceled"]])
async def test_a_feed_by_status_tells_that_a_job_has_left(site: Site, status: Any) -> None:
    async with client(site) as one:
        await one.ask(type="subscribe", sub="failures", status=status)
        job = await site.submit("/api/fail", {"code": "NO", "message": "no"}, Prefer="wait=5")
        assert (await one.until("snapshot"))["job"] == job
        await site.http.post(f"/jobs/{job['id']}/retry")
        assert (await one.until("status"))["job"]["status"] == "Queued"
        assert (await one.until("snapshot"))["job"]["status"] == "Failed"


async def test_unsubscribe_ends_it_at_once(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    async with client(site) as one:
        await one.ask(type="subscribe", id=job_id)
        await one.until("snapshot")
        assert await one.ask(type="unsubscribe", sub=job_id) == {"type": "unsubscribed", "sub": job_id}
        await one.ask(type="subscribe", sub="all")
        site.gates.open_all()
        while one.by_sub["all"] == [] or one.by_sub["all"][-1]["job"].get("status") != "Completed":
            await one.next()
        assert len(one.by_sub[job_id]) <= 2
        assert code(await one.ask(type="unsubscribe", sub=job_id)) == ("error", "unknown-sub")
        assert site.board.runtime.stats().subscribers == 1


@pytest.mark.parametrize("store_url", ["memory", "sqlite"], indirect=True)  # on which a job is faster than its reader
async def test_nothing_comes_after_unsubscribed_although_much_waited(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, progress_interval_seconds=0))
    job = await site.submit("/api/flood", 400)
    async with client(site, receive_buffer=4096) as one:
        await one.ask(type="subscribe", sub="s", id=job["id"], after=0)
        site.gates.open("flood")
        await site.ended(job["id"])
        await one.say(type="unsubscribe", sub="s")
        await one.until("unsubscribed", "s")
        assert one.by_sub["s"][-1]["job"].get("status") != "Completed", "nothing waited: the test tests nothing"
        assert code(await one.ask(type="unsubscribe", sub="s")) == ("error", "unknown-sub")
        assert (await one.ask(type="subscribe", sub="s", id=job["id"]))["type"] == "subscribed"


async def test_cancel_is_answered_at_once_and_its_end_comes_as_an_event(site: Site) -> None:
    job = await site.submit("/api/slow", {})
    async with client(site) as one:
        await one.ask(type="subscribe", sub="s", id=job["id"])
        while one.document("s")["status"] != "InProgress" if one.by_sub["s"] else True:
            await one.next()
        answer = await one.ask(type="cancel", id=job["id"])
        assert (answer["type"], answer["id"], answer["seq"]) == ("canceling", job["id"], answer["job"]["seq"])
        assert answer["job"]["cancelRequested"] is True
        await one.until("unsubscribed", "s")
        document = one.document("s")
        assert document["status"] == "Canceled" and document == await site.ended(job["id"])
        assert sum(frame["job"].get("status") == "Canceled" for frame in one.by_sub["s"]) == 1
        assert (await one.ask(type="cancel", id=job["id"]))["job"]["status"] == "Canceled"
        done = await site.submit(Prefer="wait=5")
        refused = await one.ask(type="cancel", id=done["id"])
        assert (code(refused), refused["id"]) == (("error", "illegal-transition"), done["id"])


async def test_what_cannot_be_done_is_answered_with_the_names_that_the_client_used(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    async with client(site) as one:
        for text in (UNKNOWN, "x", ""):
            for kind in ("cancel", "subscribe"):
                refused = await one.ask(type=kind, id=text)
                assert (code(refused), refused["id"]) == (("error", "job-not-found"), text)
        refused = await one.ask(type="subscribe", sub="mine", id=UNKNOWN)
        assert (refused["sub"], refused["id"]) == ("mine", UNKNOWN)
        assert (await one.ask(type="subscribe", sub="mine", id=job_id))["type"] == "subscribed"
        for message in ({"id": job_id}, {}, {"name": "Order"}):
            refused = await one.ask(type="subscribe", sub="mine", **message)
            assert (code(refused), refused["sub"]) == (("error", "sub-taken"), "mine")
        nowhere = await one.ask(type="submit", ref="r", path="/api/nowhere", jobs=[{}])
        assert (code(nowhere), nowhere["ref"]) == (("error", "not-found"), "r")


async def test_the_subscriptions_of_a_socket_are_bounded(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    async with client(site) as one:
        for number in range(MAX_SUBSCRIPTIONS):
            await one.say(type="subscribe", sub=str(number), id=job_id)
        refused = await one.ask(type="subscribe", sub="one more")
        while refused["type"] != "error":
            refused = await one.next()
        assert (code(refused), refused["sub"]) == (("error", "too-many-subscriptions"), "one more")
        while len(one.by_sub) < MAX_SUBSCRIPTIONS or not all(one.by_sub.values()):
            await one.next()
        await one.say(type="unsubscribe", sub="7")
        await one.until("unsubscribed")
        assert (await one.ask(type="subscribe", sub="one more"))["type"] == "subscribed"
        site.gates.open_all()
        while len(one.ended) < MAX_SUBSCRIPTIONS:
            await one.next()
        ended = await site.ended(job_id)
        assert all(one.document(str(number)) == ended for number in range(MAX_SUBSCRIPTIONS) if number != 7)


BAD: list[str | bytes] = [
    "",
    "subscribe",
    "{",
    "[]",
    "null",
    "7",
    '"subscribe"',
    "{}",
    '{"type": 7}',
    '{"type": "dance"}',
    '{"type": ["subscribe"]}',
    '{"type": "subscribe"}',
    '{"type": "subscribe", "id": 7}',
    '{"type": "subscribe", "sub": ""}',
    '{"type": "subscribe", "sub": 7}',
    '{"type": "subscribe", "sub": "' + "x" * 201 + '"}',
    '{"type": "subscribe", "sub": "s", "status": "Done"}',
    '{"type": "subscribe", "sub": "s", "status": [["Failed"]]}',
    '{"type": "subscribe", "sub": "s", "staus": "Failed"}',
    '{"type": "subscribe", "sub": "s", "after": 1}',
    f'{{"type": "subscribe", "id": "{UNKNOWN}", "after": -1}}',
    f'{{"type": "subscribe", "id": "{UNKNOWN}", "after": "1"}}',
    f'{{"type": "subscribe", "id": "{UNKNOWN}", "after": 1.5}}',
    f'{{"type": "subscribe", "id": "{UNKNOWN}", "after": true}}',
    f'{{"type": "subscribe", "id": "{UNKNOWN}", "after": {10**30}}}',
    f'{{"type": "subscribe", "id": "{UNKNOWN}", "name": "Order"}}',
    '{"type": "unsubscribe"}',
    '{"type": "cancel"}',
    '{"type": "cancel", "id": null}',
    '{"type": "cancel", "id": "' + "x" * 1001 + '"}',
    b"\x00\xff",
    b'{"type": "subscribe", "sub": "s"}',
    "[" * 4000,
    '{"type": "subscribe", "sub": ' + '{"a":' * 1500 + "1" + "}" * 1500 + "}",
    '{"type": "subscribe", "sub": "\\ud800"}',
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
async def test_a_message_that_cannot_be_meant_is_answered(site: Site, bad: str | bytes) -> None:
    async with client(site) as one:
        await one.socket.send_message(bad)
        frame = await one.next()
        assert code(frame) == ("error", "bad-message")
        assert "Traceback" not in frame["message"]
        job = await site.submit(Prefer="wait=5")
        assert (await one.ask(type="subscribe", sub="s", id=job["id"]))["type"] == "subscribed"


async def rest(one: Client) -> list[Frame]:
    frames = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            frames.append(await one.next())
    return frames


async def test_too_many_bad_messages_and_one_too_large_end_the_socket(site: Site) -> None:
    async with client(site) as one:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(MAX_BAD_MESSAGES + 5):
                await one.say(type="dance")
        answers = await rest(one)
        assert [code(frame) for frame in answers] == [("error", "bad-message")] * MAX_BAD_MESSAGES
        assert closed_with(one.socket) == 1008
    for huge in ("x" * 20_000, "é" * 8000, b"x" * 20_000):
        async with client(site) as one:
            await one.socket.send_message(huge)
            assert await rest(one) == []
            assert closed_with(one.socket) == 1009
    await patient(partial(none_open, site))


async def test_who_asks_much_and_reads_nothing_piles_nothing_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends five thousand questions. So many are not answered, and so many do not wait either."""
    heard = most = 0
    hear, take = multistream._Socket._hear, multistream._Socket._take

    async def count(self: Any, text: str | bytes) -> None:
        nonlocal heard
        heard += 1
        await hear(self, text)

    def measure(self: Any, text: str | bytes) -> None:
        nonlocal most
        take(self, text)
        most = max(most, len(self._unheard))

    monkeypatch.setattr(multistream._Socket, "_hear", count)
    monkeypatch.setattr(multistream._Socket, "_take", measure)
    job = await site.submit(Prefer="wait=5")
    question = f'{{"type":"unsubscribe","sub":"{"x" * 60}"}}'.encode()
    frame = bytes([0x81, 0x80 | len(question), 0, 0, 0, 0]) + question
    line = trio.socket.socket()
    line.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    await line.connect(("127.0.0.1", int(site.url.rpartition(":")[2])))
    async with trio.SocketStream(line) as stream:
        await stream.send_all(handshake(job["id"]).replace(f"/{job['id']}/stream".encode(), b"/stream"))
        assert b"101" in await stream.receive_some()
        with trio.move_on_after(20):
            await stream.send_all(frame * 5_000)
        assert 0 < most <= MAX_UNHEARD
        assert heard < 5_000
        # Others are served meanwhile.
        async with client(site) as one:
            assert (await one.ask(type="subscribe", sub="s", id=job["id"]))["type"] == "subscribed"
    await patient(partial(none_open, site))


async def test_who_asks_more_at_once_than_may_wait_is_closed(open_site: OpenSite) -> None:
    """The hook is slow, and the messages are large."""
    slow = trio.Event()

    async def authorize(request: Any, action: str, job: Job | None) -> bool:
        if action == "cancel":
            await slow.wait()
        return True

    site = await open_site(authorize=authorize)
    job = await site.submit("/api/slow", {})
    for count, size in ((MAX_UNHEARD + 1, 0), (6, 9_000)):
        async with client(site) as one:
            await one.say(type="cancel", id=job["id"])
            for _ in range(count):
                await one.say(type="cancel", id=" " * size)
            with trio.fail_after(5):
                await rest(one)
            assert closed_with(one.socket) == 1008
    slow.set()


async def test_a_drain_closes_with_1001_at_once_with_and_without_subscriptions(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    async with client(site) as idle, client(site) as busy:
        await busy.ask(type="subscribe", id=job_id)
        await busy.ask(type="subscribe", sub="all")
        site.board.runtime.begin_drain()
        with trio.fail_after(0.5):
            for one in (idle, busy):
                await rest(one)
                assert closed_with(one.socket) == 1001
                assert not one.ended, "that would be the end of the subscription for good"


async def test_a_client_that_vanishes_leaves_nothing_behind(site: Site) -> None:
    job_id = await run_steps(site, "s", 1)
    for how in ("close", "vanish"):
        async with client(site) as one:
            for number in range(10):
                await one.ask(type="subscribe", sub=str(number), id=job_id)
            await one.ask(type="subscribe", sub="all")
            assert site.board.runtime.stats().subscribers == 11
            if how == "vanish":
                await one.socket._stream.aclose()
        await patient(partial(none_open, site))
        assert site.board.runtime.stats().subscribers == 0
    site.gates.open_all()
    assert (await site.ended(job_id))["status"] == "Completed"


@pytest.mark.parametrize("store_url", ["memory", "sqlite"], indirect=True)  # on which a job is faster than its reader
async def test_one_that_never_reads_slows_nobody_and_a_busy_job_not_the_others(open_site: OpenSite) -> None:
    site = await open_site(config=replace(CONFIG, progress_interval_seconds=0, max_subscriber_events=8))
    job = await site.submit("/api/flood", 400)
    quiet = await run_steps(site, "s", 2)
    await site.gates.arrived("s 0")
    async with client(site, receive_buffer=4096) as stalled:
        for sub, message in (("flood", {"id": job["id"]}), ("quiet", {"id": quiet}), ("all", {})):
            await stalled.ask(type="subscribe", sub=sub, **message)
        site.gates.open("flood")
        async with client(site) as reader:
            await reader.ask(type="subscribe", sub="flood", id=job["id"])
            await reader.until("unsubscribed", "flood")
        site.gates.open_all()
        ended = {job["id"]: await site.ended(job["id"]), quiet: await site.ended(quiet)}
        assert reader.document("flood") == ended[job["id"]]
        assert await streams(site) >= 1
        await stalled.until("unsubscribed", "quiet")
        behind = stalled.by_sub["flood"][-1]["seq"] if stalled.by_sub["flood"] else 0
        assert behind < ended[job["id"]]["seq"], "the quiet job had to wait for all of the busy one"
        while "flood" not in stalled.ended:
            await stalled.next()
        await stalled.say(type="unsubscribe", sub="none")
        while (await stalled.next())["type"] != "error":
            pass
        assert stalled.document("flood") == ended[job["id"]]
        assert stalled.document("quiet") == ended[quiet]
        while not any(
            f["job"]["id"] == job["id"] and f["seq"] == ended[job["id"]]["seq"] for f in stalled.by_sub["all"]
        ):
            await stalled.next()
        for job_id, document in ended.items():
            assert last_of(stalled.by_sub["all"], job_id) == document


def last_of(frames: list[Frame], job_id: str) -> Frame:
    """What a client makes of a feed, in which a gap snapshot may come at any time."""
    document: Frame = {}
    for frame in frames:
        if frame["job"]["id"] == job_id:
            assert frame["type"] == "snapshot" or frame["since"] == document.get("seq", 0)
            document = {**({} if frame["type"] == "snapshot" else document), **frame["job"]}
    return document


# Rights


def identify(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


@asynccontextmanager
async def client_of(site: Site, user: str | None) -> AsyncIterator[Client]:
    from trio_websocket import wrap_client_stream

    host, _, port = site.url.removeprefix("http://").partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream, trio.open_nursery() as nursery:
        headers = [] if user is None else [(b"X-User", user.encode())]
        socket = await wrap_client_stream(nursery, stream, host, "/jobs/stream", extra_headers=headers)
        yield Client(socket)
        with trio.move_on_after(1):
            await socket.aclose()
        nursery.cancel_scope.cancel()


async def test_a_feed_shows_callers_their_own_jobs_only(open_site: OpenSite) -> None:
    site = await open_site(identify=identify)
    async with client_of(site, "ann") as ann, client_of(site, "bob") as bob, client_of(site, None) as nameless:
        for one in (ann, bob, nameless):
            await one.ask(type="subscribe", sub="all")
        jobs = {user: await site.submit(Prefer="wait=5", X_User=user) for user in ("ann", "bob")}
        jobs[""] = await site.submit(Prefer="wait=5")
        for one, user in ((ann, "ann"), (bob, "bob"), (nameless, "")):
            while not one.by_sub["all"] or one.by_sub["all"][-1]["job"].get("status") != "Completed":
                await one.next()
            assert {frame["job"]["id"] for frame in one.by_sub["all"]} == {jobs[user]["id"]}
        for kind in ("subscribe", "cancel"):
            refused = await bob.ask(type=kind, id=jobs["ann"]["id"])
            unknown = await bob.ask(type=kind, id=UNKNOWN)
            assert code(refused) == ("error", "job-not-found")
            assert {**refused, "id": "", "sub": ""} == {**unknown, "id": "", "sub": ""}


async def test_a_feed_is_bound_to_its_caller_also_where_authorize_allows_everything(open_site: OpenSite) -> None:
    site = await open_site(identify=identify, authorize=lambda request, action, job: True)
    async with client_of(site, "ann") as ann:
        await ann.ask(type="subscribe", sub="all")
        await site.submit(Prefer="wait=5", X_User="bob")
        own = await site.submit(Prefer="wait=5", X_User="ann")
        while not ann.by_sub["all"] or ann.by_sub["all"][-1]["job"].get("status") != "Completed":
            await ann.next()
        assert {frame["job"]["id"] for frame in ann.by_sub["all"]} == {own["id"]}


async def test_authorize_is_asked_for_every_message_and_every_job_of_a_feed(open_site: OpenSite) -> None:
    asked: list[tuple[str, str | None]] = []
    denied: set[str] = set()
    hidden: set[str] = set()

    async def authorize(request: Any, action: str, job: Job | None) -> bool:
        await trio.lowlevel.checkpoint()
        assert request.path == "/jobs/stream" or request.path.startswith(("/jobs", "/api"))
        if request.path == "/jobs/stream":
            asked.append((action, job.id if job else None))
        return action not in denied and (job is None or job.name not in hidden)

    site = await open_site(authorize=authorize)
    denied.add("stream")
    assert_problem(await site.refused_handshake("/jobs/stream"), 403)
    denied.clear()
    job = await site.submit()
    async with client(site) as one:
        denied.add("stream")
        for message in ({"id": job["id"]}, {"sub": "all"}):
            assert code(await one.ask(type="subscribe", **message)) == ("error", "forbidden")
        denied.clear()
        denied.add("cancel")
        assert code(await one.ask(type="cancel", id=job["id"])) == ("error", "forbidden")
        denied.clear()
        hidden.add("Order")
        for kind in ("cancel", "subscribe"):
            assert code(await one.ask(type=kind, id=job["id"])) == ("error", "job-not-found")
        await one.ask(type="subscribe", sub="all")
        asked.clear()
        order = await site.submit(Prefer="wait=5")
        void = (await site.http.post("/api/void", headers={"Prefer": "wait=5"})).json()
        while not one.by_sub["all"] or one.by_sub["all"][-1]["job"].get("status") != "Completed":
            await one.next()
        assert {frame["job"]["id"] for frame in one.by_sub["all"]} == {void["id"]}
        assert one.document("all", void["id"]) == void
        assert asked.count(("read", order["id"])) == asked.count(("read", void["id"])) == 1


async def test_a_hook_that_fails_is_answered_and_the_socket_lives(open_site: OpenSite, caplog: Any) -> None:
    fails = False

    def authorize(request: Any, action: str, job: Job | None) -> bool:
        if fails:
            raise RuntimeError("the password is tiger")
        return True

    site = await open_site(authorize=authorize)
    job_id = await run_steps(site, "s", 1)
    async with client(site) as one:
        await one.ask(type="subscribe", sub="feed")
        fails = True
        for message in ({"type": "cancel", "id": job_id}, {"type": "subscribe", "id": job_id}):
            await one.say(**message)
            # The feed may fail at any time from now on, too.
            while (refused := await one.next())["type"] != "error" or refused.get("sub") == "feed":
                pass
            assert code(refused) == ("error", "internal-error")
            assert "tiger" not in str(refused)
        site.gates.open_all()
        while "feed" not in one.ended:
            await one.next()
        fails = False
        assert (await one.ask(type="subscribe", id=job_id))["type"] == "subscribed"
    assert caplog.text.count("the password is tiger") >= 3


async def test_a_foreign_origin_is_refused(open_site: OpenSite) -> None:
    site = await open_site(allowed_origins=["https://shop.example"])
    assert_problem(await site.refused_handshake("/jobs/stream", Origin="https://evil.example"), 403)


async def test_a_store_that_is_away_is_answered(open_site: OpenSite) -> None:
    from tests.web.workshop import Cut

    from callboard.stores.memory import MemoryStore

    store: Any = Cut(MemoryStore())
    site = await open_site(store=store)
    job_id = await run_steps(site, "s", 1)
    async with client(site) as one:
        await one.ask(type="subscribe", sub="s", id=job_id)
        store.is_cut = True
        for message in ({"type": "cancel", "id": job_id}, {"type": "subscribe", "sub": "t", "id": job_id}):
            refused = await one.ask(**message)
            assert code(refused) == ("error", "store-unavailable")
            assert "hunter2" not in str(refused)
        store.is_cut = False
        site.gates.open_all()
        await one.until("unsubscribed", "s")
        assert one.document("s") == await site.ended(job_id)


async def test_many_subscriptions_with_stalls_disconnects_and_resumes(open_site: OpenSite) -> None:
    """Whatever a client does between, for every job the fold of what it was told is what GET answers."""
    site = await open_site(config=replace(CONFIG, max_subscriber_events=6, max_concurrent_jobs=20))
    source = random.Random(11)
    ids = [await run_steps(site, f"g{number}", 4) for number in range(30)]

    async def wander(draw: random.Random) -> None:
        documents: dict[str, Frame] = {}
        finished: set[str] = set()
        while len(finished) < len(ids):
            async with client(site) as one:
                for job_id in ids:
                    if job_id not in finished:
                        seq = documents.get(job_id, {}).get("seq")
                        await one.say(type="subscribe", id=job_id, **({} if seq is None else {"after": seq}))
                for _ in range(draw.randrange(20, 200)):
                    if len(finished) == len(ids):
                        break
                    frame = await one.next()
                    if frame["type"] in ("snapshot", "status", "progress", "log"):
                        job_id = frame["job"]["id"]
                        before = documents.get(job_id, {})
                        if frame["type"] == "snapshot":
                            assert frame["gap"] is bool(before)
                            before = {}
                        else:
                            assert frame["since"] == before["seq"]
                        documents[job_id] = {**before, **frame["job"]}
                    elif frame["type"] == "unsubscribed":
                        finished.add(frame["sub"])
                    if draw.random() < 0.02:
                        await trio.sleep(draw.uniform(0, 0.2))
        for job_id in ids:
            assert documents[job_id] == (await site.http.get(f"/jobs/{job_id}")).json()

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(wander, random.Random(source.random()))
        for step in range(4):
            for number in source.sample(range(30), 30):
                site.gates.open(f"g{number} {step}")
                await trio.sleep(0.01)
    await patient(partial(none_open, site))


def test_ids_are_uuids_in_the_tests_too() -> None:
    assert str(uuid.UUID(UNKNOWN)) == UNKNOWN
