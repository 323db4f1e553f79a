"""Resources that the app opens when it starts: there in every attempt, also of jobs left over, and open until the drain is over."""

from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from hypercorn.utils import LifespanFailureError
from msgspec.structs import replace
from quart import current_app
from quart_trio import QuartTrio
from tests.web.workshop import CONFIG, Gates, Site, run_site

from callboard.runtime import JobContext, StoreRefused, ThreadJobContext
from callboard.runtime.core.store import JobFilter
from callboard.web import Callboard

KINDS = ("before_serving", "while_serving")

each_way = pytest.mark.parametrize(
    ("kind", "order"), [(kind, order) for kind in KINDS for order in ("before the board", "after the board")]
)


class Desk:
    """A resource, such as a pool of connections, which takes its time to open."""

    def __init__(self) -> None:
        self.is_open = False
        self.story: list[str] = []

    async def open(self) -> None:
        await trio.sleep(0.1)
        self.is_open = True
        self.story.append("open")

    def use(self, who: str) -> str:
        assert self.is_open, "used while it is closed"
        self.story.append(who)
        return who

    async def close(self) -> None:
        self.is_open = False
        self.story.append("closed")


def add_desk(app: QuartTrio, kind: str) -> None:
    desk = app.extensions["desk"] = Desk()
    if kind == "before_serving":
        app.before_serving(desk.open)
        app.after_serving(desk.close)
    else:

        @app.while_serving
        async def life() -> AsyncGenerator[None, None]:
            await desk.open()
            yield
            await desk.close()


def make_app(board: Callboard, gates: Gates, *, kind: str, order: str) -> QuartTrio:
    app = QuartTrio("desk")
    if order == "before the board":
        add_desk(app, kind)
    board.init_app(app)
    if order == "after the board":
        add_desk(app, kind)

    @board.post("/api/task", name="Task", max_retries=0)
    async def task(job: JobContext) -> str:
        desk: Desk = current_app.extensions["desk"]
        desk.use("task begins")
        await gates.through("task")
        await trio.sleep(0.1)
        return desk.use("task ends")

    @board.post("/api/thread", name="Thread", max_retries=0)
    def in_thread(job: ThreadJobContext) -> str:
        desk: Desk = current_app.extensions["desk"]
        return desk.use(f"thread of {current_app.name}")

    return app


def board_of(store: str, **config: Any) -> Callboard:
    return Callboard(store=store, config=replace(CONFIG, **config))


@each_way
async def test_a_job_left_over_finds_the_resource(tmp_path: Path, kind: str, order: str) -> None:
    store, make = f"sqlite:///{tmp_path}/jobs.db", partial(make_app, kind=kind, order=order)
    async with trio.open_nursery() as nursery:
        site: Site = await nursery.start(run_site, board_of(store, max_concurrent_jobs=0), make)
        ids = [(await site.submit(path, {}))["id"] for path in ("/api/task", "/api/thread")]
        site.stop.set()
    async with trio.open_nursery() as nursery:
        site = await nursery.start(run_site, board_of(store), make)
        site.gates.open("task")
        results = [(await site.ended(job_id))["result"] for job_id in ids]
        site.stop.set()
    assert results == ["task ends", "thread of desk"]
    assert site.app.extensions["desk"].story[-1] == "closed"


@each_way
async def test_the_resource_is_open_until_the_drain_is_over(tmp_path: Path, kind: str, order: str) -> None:
    store, make = f"sqlite:///{tmp_path}/jobs.db", partial(make_app, kind=kind, order=order)
    async with trio.open_nursery() as nursery:
        site: Site = await nursery.start(run_site, board_of(store, drain_seconds=3), make)
        job_id = (await site.submit("/api/task", {}))["id"]
        await site.gates.arrived("task")
        site.stop.set()
    assert site.app.extensions["desk"].story == ["open", "task begins", "task ends", "closed"]
    async with trio.open_nursery() as nursery:
        site = await nursery.start(run_site, board_of(store, max_concurrent_jobs=0), make)
        assert (await site.ended(job_id))["status"] == "Completed"
        site.stop.set()


async def leave_a_job(store: str) -> str:
    async with trio.open_nursery() as nursery:
        make = partial(make_app, kind="while_serving", order="after the board")
        site: Site = await nursery.start(run_site, board_of(store, max_concurrent_jobs=0), make)
        job_id: str = (await site.submit("/api/task", {}))["id"]
        site.stop.set()
    return job_id


async def serve_to_the_end(app: QuartTrio) -> None:
    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "CRITICAL"
    await serve(app, config, shutdown_trigger=trio.sleep_forever)


@pytest.mark.parametrize("has_launcher", [False, True])
async def test_a_start_that_fails_later_runs_no_job_and_ends(tmp_path: Path, has_launcher: bool) -> None:
    store = f"sqlite:///{tmp_path}/jobs.db"
    job_id = await leave_a_job(store)
    board, gates = board_of(store), Gates()
    board.has_launcher = has_launcher
    app = make_app(board, gates, kind="while_serving", order="before the board")

    @app.before_serving
    async def later() -> None:
        await trio.sleep(0.3)
        raise RuntimeError("a later function of the start")

    with trio.fail_after(5), pytest.RaisesGroup(LifespanFailureError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_to_the_end, app)
    async with trio.open_nursery() as nursery:
        make = partial(make_app, kind="while_serving", order="after the board")
        site: Site = await nursery.start(run_site, board_of(store, max_concurrent_jobs=0), make)
        job = (await site.http.get(f"/jobs/{job_id}")).json()
        assert (job["status"], job["attempt"]) == ("Queued", 0)
        site.stop.set()


async def test_a_store_that_is_refused_is_told_although_a_later_function_fails_of_it(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no database" * 1000)
    board = board_of(f"sqlite:///{tmp_path}/jobs.db")
    board.has_launcher = True
    app = make_app(board, Gates(), kind="while_serving", order="before the board")

    @app.before_serving
    async def later() -> None:
        await board.runtime.list(JobFilter())

    with trio.fail_after(5), pytest.RaisesGroup(LifespanFailureError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_to_the_end, app)
    assert isinstance(board.refused, StoreRefused)


async def test_the_apps_own_start_may_submit_and_its_job_waits_for_the_whole_start() -> None:
    board = board_of("memory://")
    gates = Gates()
    gates.all_open = True
    ids = []

    def make(board: Callboard, _: Gates) -> QuartTrio:
        app = make_app(board, gates, kind="while_serving", order="after the board")

        @app.before_serving
        async def early() -> None:
            ids.append((await board.runtime.submit("Task")).id)
            await trio.sleep(0.2)

        return app

    async with trio.open_nursery() as nursery:
        site: Site = await nursery.start(run_site, board, make)
        assert (await site.ended(ids[0]))["status"] == "Completed"
        site.stop.set()


async def test_under_quarts_test_app(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/jobs.db"
    job_id = await leave_a_job(store)
    board, gates = board_of(store), Gates()
    app = make_app(board, gates, kind="while_serving", order="after the board")
    with trio.fail_after(5):
        async with app.test_app():
            await gates.arrived("task")
            gates.open("task")
            assert (await board.runtime.wait(job_id, timeout_seconds=3)).status == "Completed"
    assert app.extensions["desk"].story == ["open", "task begins", "task ends", "closed"]


@pytest.mark.parametrize("before", ["nothing", "a lifespan"])
async def test_without_the_lifespan_protocol_it_starts_and_ends_with_quarts_functions(before: str) -> None:
    board, gates = board_of("memory://"), Gates()
    gates.all_open = True
    app = make_app(board, gates, kind="before_serving", order="before the board")
    with trio.fail_after(5):
        if before == "a lifespan":
            async with app.test_app():
                pass
        async with trio.open_nursery() as app.nursery:
            await app.startup()
            job = await board.runtime.submit("Task")
            assert (await board.runtime.wait(job.id)).status == "Completed"
            await app.shutdown()
    assert app.extensions["desk"].story[-1] == "closed"
