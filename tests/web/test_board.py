"""The extension's life with its app: when it starts and ends, what it refuses, and what happens when the runtime dies."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from hypercorn.utils import LifespanFailureError
from msgspec.structs import replace
from quart import current_app, g
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Cut, Gates, Site, make_site_app, run_site

from callboard.runtime import JobContext, ShuttingDown
from callboard.runtime.core.errors import ConfigError, HandlerError, StoreRefused
from callboard.stores import open_store
from callboard.web import Callboard


def test_nothing_starts_at_import_or_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    board = Callboard(QuartTrio("idle"))
    with pytest.raises(ConfigError, match="starts with the app"):
        board.runtime  # noqa: B018 - reading it is the test
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("prefix", ["", "/", "jobs", "/jobs/<x>", "/jobs?x", "//jobs", "/a//b", "/a/../b", "/a%20b"])
def test_a_prefix_that_cannot_work_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        Callboard(prefix=prefix)


def test_one_board_is_for_one_app() -> None:
    app = QuartTrio("one")
    board = Callboard(app)
    for act in (lambda: board.init_app(QuartTrio("two")), lambda: Callboard(app)):
        with pytest.raises(ConfigError, match="one app"):
            act()


def test_a_name_registered_twice_is_refused() -> None:
    board = Callboard()

    @board.handler("Twice")
    async def first(job: JobContext) -> None: ...

    with pytest.raises(HandlerError, match="Twice"):

        @board.post("/twice", name="Twice")
        async def second(job: JobContext) -> None: ...

    assert board.mappings == []


async def fits(job: JobContext) -> None: ...


def location(job: Any, result: Any) -> str:
    return "/x"


@pytest.mark.parametrize(
    ("route", "options", "message"),
    [
        ("odd", {}, "give a path, such as"),
        ("", {}, "give a path, such as"),
        ("/odd/<", {}, "give a path, such as"),
        ("/odd/<x>/<x>", {}, "give a path, such as"),
        (5, {}, "give a path, such as"),
        ("/odd/<colour:x>", {}, "give a converter that the app has"),
        ("/odd", {"redirect": True}, "redirect needs to know where to: give location="),
        ("/odd", {"validate": "x"}, "validate is 'x': give a function"),
        ("/odd", {"decorators": fits}, "decorators is <function fits.*: give a list of functions"),
        ("/odd", {"decorators": "ab"}, "decorators is 'ab': give a list of functions"),
        ("/odd", {"decorators": [fits, 5]}, "decorators is .*: give a list of functions"),
        ("/taken/<int:other>", {}, "POST '/taken/<int:other>': handler 'Taken' is there already"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mapping_that_cannot_work_is_refused_and_leaves_nothing_behind(
    route: Any, options: Any, message: str
) -> None:
    app = QuartTrio("odd")
    board = Callboard(app)
    board.post("/taken/<int:number>", name="Taken")(fits)
    with pytest.raises(ConfigError, match=message):
        board.post(route, name="Odd", **options)(fits)
    rules = list(app.url_map.iter_rules())
    assert (board.handlers.names, len(board.mappings)) == (("Taken",), 1)
    board.post("/odd", name="Odd", redirect=True, location=location, decorators=[lambda view: view])(fits)
    board.put("/taken/<int:number>", name="Other method")(fits)
    board.post("/taken/<number>", name="Other converter")(fits)
    assert len(list(app.url_map.iter_rules())) == len(rules) + 3


def test_what_needs_the_app_is_checked_when_there_is_one() -> None:
    board = Callboard()
    board.post("/odd/<colour:x>", name="Odd")(fits)
    with pytest.raises(ConfigError, match="give a path, such as"):
        board.post("odd", name="Other")(fits)
    with pytest.raises(ConfigError, match=r"'Odd' on POST '/odd/<colour:x>': .*give a converter that the app has"):
        board.init_app(QuartTrio("odd"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"authorize": True}, "authorize is True: give a function"),
        ({"identify": "X-User"}, "identify is 'X-User': give a function"),
        (
            {"allowed_origins": "https://shop.example"},
            r"allowed_origins is 'https://shop.example': give a list of origins",
        ),
        ({"allowed_origins": None}, "allowed_origins is None: give a list"),
        ({"allowed_origins": [5]}, "allowed_origins is .*: give a list"),
    ],
    ids=str,
)
def test_hooks_and_origins_that_cannot_be_meant_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Callboard(**options)


def test_a_signature_that_does_not_fit_is_refused() -> None:
    board = Callboard()
    with pytest.raises(HandlerError):

        @board.post("/odd", name="Odd")
        async def odd() -> None: ...

    with pytest.raises(HandlerError):
        board.post("/odd", name="Odd", unheard_of=1)(lambda job: None)  # type: ignore[call-arg]


async def serve_once(app: QuartTrio, *, task_status: trio.TaskStatus[tuple[str, trio.Event]]) -> None:
    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "CRITICAL"
    config.graceful_timeout = 0.2
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
        task_status.started((urls[0], stop))


async def test_an_app_can_be_started_again_and_finds_its_jobs(store_url: str) -> None:
    board = Callboard(store=store_url, config=replace(CONFIG, max_concurrent_jobs=0))
    app = make_site_app(board, Gates())
    runtimes, ids = [], []
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            url, stop = await nursery.start(serve_once, app)
            runtimes.append(board.runtime)
            async with httpx.AsyncClient(base_url=url) as http:
                ids.append((await http.post("/api/orders", json={"itemName": "x"})).json()["id"])
                if store_url.startswith("sqlite"):
                    assert (await http.get(f"/jobs/{ids[0]}")).status_code == 200
            stop.set()
        with pytest.raises(ConfigError):
            board.runtime  # noqa: B018 - reading it is the test
    assert runtimes[0] is not runtimes[1]


async def test_the_store_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_STORE", f"sqlite:///{tmp_path}/from_environment.db")
    async with trio.open_nursery() as nursery:
        site: Site = await nursery.start(run_site, Callboard(config=CONFIG))
        assert (tmp_path / "from_environment.db").exists()
        site.stop.set()


async def test_without_a_store_it_is_a_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALLBOARD_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    async with trio.open_nursery() as nursery:
        site: Site = await nursery.start(run_site, Callboard(config=CONFIG))
        assert (tmp_path / "callboard.db").exists()
        site.stop.set()


async def test_a_store_that_must_not_be_used_stops_the_start(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"this is no database at all, and it must not be touched" * 100)
    before = foreign.read_bytes()
    app = make_site_app(Callboard(store=f"sqlite:///{foreign}", config=CONFIG), Gates())
    with pytest.RaisesGroup(LifespanFailureError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_once, app)
    assert foreign.read_bytes() == before
    with pytest.raises(StoreRefused):
        await open_store(f"sqlite:///{foreign}").open(worker="w", max_events_per_job=10, max_attempts_per_job=100)


def context_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)
    app.config["SHELF"] = "top"

    @board.post("/api/shelf", name="Shelf")
    async def shelf(job: JobContext) -> str:
        value: str = current_app.config["SHELF"]
        return value

    app.extensions["torn down"] = []

    @app.teardown_appcontext
    async def torn_down(error: BaseException | None) -> None:
        app.extensions["torn down"] += [g.shelf] if "shelf" in g else []

    @board.post("/api/own", name="Own")
    async def own(job: JobContext) -> bool:
        was_there = "shelf" in g
        g.shelf = job.id
        return was_there

    @board.post("/api/thread", name="Thread")
    def in_thread(job: Any) -> str:
        job.progress(50, "half")
        return "done in a thread"

    @board.handler("Inner")
    async def inner(job: JobContext, request: int) -> int:
        return request * 2

    @app.get("/outside/<int:number>")
    async def outside(number: int) -> dict[str, Any]:
        job = await board.runtime.submit("Inner", number)
        ended = await board.runtime.wait(job.id)
        return {"status": ended.status}

    return app


async def test_each_attempt_runs_in_a_context_of_the_app_of_its_own(open_site: OpenSite) -> None:
    site = await open_site(make_app=context_app)
    wait = {"Prefer": "wait=5"}
    assert (await site.http.post("/api/shelf", headers=wait)).json()["result"] == "top"
    assert (await site.http.post("/api/thread", headers=wait)).json()["result"] == "done in a thread"
    ids = []
    for _ in range(2):
        job = (await site.http.post("/api/own", headers=wait)).json()
        assert job["result"] is False
        ids.append(job["id"])
    assert site.app.extensions["torn down"] == ids
    assert (await site.http.get("/outside/21")).json() == {"status": "Completed"}


async def test_shutdown_gives_running_jobs_time_and_hands_back_the_rest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    config = replace(CONFIG, drain_seconds=0.3)
    async with trio.open_nursery() as nursery:
        site: Site = await nursery.start(run_site, Callboard(store=url, config=config))
        quick = await site.submit("/api/hold/quick", {})
        stuck = await site.submit("/api/slow", {})
        await site.gates.arrived("quick")
        site.stop.set()
    async with trio.open_nursery() as nursery:
        site = await nursery.start(run_site, Callboard(store=url, config=replace(config, max_concurrent_jobs=0)))
        assert (await site.http.get(f"/jobs/{quick['id']}")).json()["status"] == "Completed"
        handed_back = (await site.http.get(f"/jobs/{stuck['id']}")).json()
        assert (handed_back["status"], handed_back["retryCount"], handed_back["error"]) == ("Queued", 0, None)
        site.stop.set()


async def test_it_works_under_quarts_own_test_client(store_url: str) -> None:
    app = make_site_app(Callboard(store=store_url, config=CONFIG), Gates())
    with trio.fail_after(3):
        async with app.test_app() as running:
            client = running.test_client()
            answer = await client.post("/api/orders", json={"itemName": "x"}, headers={"Prefer": "wait=5"})
            assert (answer.status_code, (await answer.get_json())["status"]) == (200, "Completed")
            missing = await client.post("/api/orders")
            assert missing.status_code == 400
            assert missing.content_type == "application/problem+json"


class Faulty(Cut):
    """A store with a bug: from a signal on, reading what is due breaks in a way that no store may."""

    broken = False
    error: type[BaseException] = RuntimeError

    def __getattr__(self, name: str) -> Any:
        verb = super().__getattr__(name)
        if name in ("open", "aclose"):
            return verb

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.broken:
                raise self.error("a bug in the driver at /secret/path")
            return await verb(*args, **kwargs)

        return call


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt, which would end the test run."""


each_error = pytest.mark.parametrize("error", [RuntimeError, Interrupted])


@each_error
async def test_when_the_runtime_dies_the_server_stops_loudly(store_url: str, error: type[BaseException]) -> None:
    store = Faulty(open_store(store_url))
    store.error = error
    board = Callboard(store=store, config=replace(CONFIG, poll_seconds=0.05))
    with trio.fail_after(5):
        with pytest.RaisesGroup(LifespanFailureError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(run_site, board)
                store.broken = True
    assert board.has_died


@each_error
async def test_under_a_launcher_a_dead_runtime_is_told_and_answers_503(
    store_url: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    store = Faulty(open_store(store_url))
    store.error = error
    board = Callboard(store=store, config=replace(CONFIG, poll_seconds=0.05))
    board.has_launcher = True
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            site: Site = await nursery.start(run_site, board)
            store.broken = True
            await board.wait_fatal()
            assert [record.levelname for record in caplog.records if "runtime has died" in record.message] == [
                "CRITICAL"
            ]
            for method, path in (
                ("POST", "/api/orders"),
                ("GET", "/jobs"),
                ("GET", "/jobs/health/ready"),
                ("GET", "/jobs/health/live"),
            ):
                answer = await site.http.request(method, path, json={"itemName": "x"})
                assert answer.status_code == 503
                assert "secret" not in answer.text
            with pytest.raises(ShuttingDown):
                board.runtime  # noqa: B018 - reading it is the test
            site.stop.set()
