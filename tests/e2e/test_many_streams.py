"""Many jobs on one socket over two processes that share a file: a feed in one sees jobs that run in the other, gap-free."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from tests.e2e.harness import ENDED, SILENCE_SECONDS, Document, Server, Site, document, post, until
from trio_websocket import WebSocketConnection, wrap_client_stream

pytestmark = pytest.mark.e2e

JOBS = 120


@asynccontextmanager
async def opened(server: Server) -> AsyncIterator[WebSocketConnection]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream, trio.open_nursery() as nursery:
        socket = await wrap_client_stream(nursery, stream, "127.0.0.1", "/jobs/stream", max_message_size=2**24)
        yield socket
        with trio.move_on_after(5):
            await socket.aclose()
        nursery.cancel_scope.cancel()


class Feed:
    """Folds what a feed tells of each job; refuses a hole."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.gaps = 0
        self.ends: list[str] = []
        self.has_begun = trio.Event()

    async def follow(self, server: Server, *, pause: float = 0, **where: Any) -> None:
        async with opened(server) as socket:
            await socket.send_message(msgspec.json.encode({"type": "subscribe", "sub": "feed", **where}).decode())
            while True:
                self.take(msgspec.json.decode(await socket.get_message()))
                if pause:
                    await trio.sleep(pause)

    def take(self, frame: Document) -> None:
        if frame["type"] == "subscribed":
            self.has_begun.set()
            return
        assert frame["type"] in ("snapshot", "status", "progress", "log"), frame
        job_id = frame["job"]["id"]
        before = self.documents.get(job_id, {})
        if frame["type"] == "snapshot":
            assert frame["gap"] or not before
            self.gaps += frame["gap"]
            before = {}
        else:
            assert frame["since"] == before.get("seq", 0), (before, frame)
        self.documents[job_id] = {**before, **frame["job"]}
        assert self.documents[job_id]["seq"] == frame["seq"]
        if frame["job"].get("status") in ENDED:
            self.ends.append(job_id)

    def has_all(self, job_ids: list[str]) -> bool:
        return all(self.documents.get(job_id, {}).get("status") in ENDED for job_id in job_ids)


async def test_a_feed_sees_the_jobs_of_the_other_process_without_a_gap(site: Site) -> None:
    watching = await site.start(max_concurrent_jobs=3)
    running = await site.start(max_concurrent_jobs=20)
    source = random.Random(4)
    whole, ticking, slow = Feed(), Feed(), Feed()
    async with running.http() as http, watching.http() as other, trio.open_nursery() as nursery:
        nursery.start_soon(whole.follow, watching)
        nursery.start_soon(lambda: ticking.follow(watching, name="ticking"))
        nursery.start_soon(lambda: slow.follow(watching, pause=0.02))
        for feed in (whole, ticking, slow):
            with trio.fail_after(SILENCE_SECONDS):
                await feed.has_begun.wait()
        ids: dict[str, list[str]] = {"ticking": [], "quick": [], "flaky": []}
        for _ in range(JOBS):
            kind = source.choice(list(ids))
            client = source.choice([http, other])
            ids[kind].append((await post(client, kind, ticks=10, interval=0.05, seconds=0.05))["id"])
        everything = [job_id for of_kind in ids.values() for job_id in of_kind]
        await until(lambda: whole.has_all(everything), "the feed tells every end", seconds=60)
        await until(lambda: ticking.has_all(ids["ticking"]), "the feed by name tells every end", seconds=60)
        await until(lambda: slow.has_all(everything), "the slow one comes to the end too", seconds=120)
        assert whole.gaps == 0 == ticking.gaps
        assert sorted(whole.ends) == sorted(everything)
        assert ticking.documents.keys() == set(ids["ticking"])
        for job_id in everything:
            there = await document(http, job_id)
            assert whole.documents[job_id] == there == slow.documents[job_id]
        nursery.cancel_scope.cancel()
    by_server = {line.pid for line in site.journal.starts()}
    assert len(by_server) == 2, "one of them ran nothing: the test tests nothing"
    site.check_output()


async def test_a_cancel_over_the_socket_of_one_process_ends_a_job_of_the_other(site: Site) -> None:
    watching, running = await site.start(max_concurrent_jobs=0), await site.start()
    async with running.http() as http, opened(watching) as socket:
        job_id = (await post(http, "endless"))["id"]
        await until(lambda: bool(site.journal.starts(job_id)), "the job runs")
        for message in ({"type": "subscribe", "id": job_id, "after": 0}, {"type": "cancel", "id": job_id}):
            await socket.send_message(msgspec.json.encode(message).decode())
        seen: list[Document] = []
        with trio.fail_after(SILENCE_SECONDS):
            while not seen or seen[-1]["type"] != "unsubscribed":
                seen.append(msgspec.json.decode(await socket.get_message()))
        assert [frame["type"] for frame in seen].count("canceling") == 1
        statuses = [frame["job"]["status"] for frame in seen if frame.get("seq") and "status" in frame.get("job", {})]
        assert statuses[-1] == "Canceled"
        assert (await document(http, job_id))["status"] == "Canceled"
    site.check_output()
