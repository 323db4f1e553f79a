"""How a server ends, told by its clients: the lead, the drain of every kind of connection, and what else may end it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import trio
from tests.conftest import Serve, ServerProcess, run_callboard, wait_until
from tests.web.workshop import websocket_to
from trio_websocket import ConnectionClosed

pytestmark = pytest.mark.e2e

APP = """
import os, threading, time
import trio
from quart import request
from quart_trio import QuartTrio
from callboard.runtime import Config
from callboard.web import Callboard, serve

app = QuartTrio(__name__)
board = Callboard(app, config=Config(drain_seconds=float(os.environ.get("DRAIN", 6))))

@board.post("/hold", name="Hold")
async def hold(job) -> None:
    await trio.sleep_forever()

@board.post("/stuck", name="Stuck")
async def stuck(job) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

@board.post("/quick", name="Quick")
async def quick(job) -> str:
    return "done"

@app.get("/slow")
async def slow():
    await trio.sleep(float(request.args["seconds"]))
    return "answered"

@app.get("/flood")
async def flood():
    async def endless():
        while True:
            yield b"x" * 65536
    response = await app.make_response(endless())
    response.timeout = None
    return response

@app.post("/tear")
async def tear():
    # As an app does whose own background task has a bug.
    async def broken():
        raise RuntimeError("the app's own bug")
    app.nursery.start_soon(broken)
    return "torn"

ends = trio.Event()
hypercorn_serve = serve.hypercorn_serve

async def unsteady_serve(app, config, *, shutdown_trigger, **options):
    if os.environ["UNSTEADY"] == "returns":
        await hypercorn_serve(app, config, shutdown_trigger=ends.wait, **options)
        return
    async with trio.open_nursery() as nursery:
        async def fail():
            await ends.wait()
            if os.environ["UNSTEADY"] == "raises":
                raise OSError("Hypercorn's bug")
            nursery.cancel_scope.cancel()
        nursery.start_soon(fail)
        await hypercorn_serve(app, config, shutdown_trigger=shutdown_trigger, **options)

if "UNSTEADY" in os.environ:
    serve.hypercorn_serve = unsteady_serve

@app.post("/end-hypercorn")
async def end_hypercorn():
    ends.set()
    return ""

@app.post("/thread")
async def thread():
    threading.Thread(target=time.sleep, args=(60,)).start()
    return ""

@app.before_serving
async def fail_at_start():
    if "SLOW" in os.environ:
        open("starting", "w").close()
        await trio.sleep(float(os.environ["SLOW"]))
    if "FAILS" in os.environ:
        raise RuntimeError("no coffee")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def started(serve: Serve, folder: Path) -> ServerProcess:
    return serve("shop:app", "--store", "sqlite:///jobs.db")


def ready(server: ServerProcess) -> int:
    return httpx.get(f"{server.url}/jobs/health/ready").status_code


def hold(server: ServerProcess, route: str = "/hold") -> str:
    """A job that runs until it is canceled; its path."""
    path: str = httpx.post(f"{server.url}{route}").json()["links"]["self"]
    wait_until(lambda: httpx.get(server.url + path).json()["status"] == "InProgress", "the job did not start")
    return path


# The lead


def test_in_the_lead_readiness_is_red_and_everything_else_goes_on_until_a_second_signal(
    serve: Serve, folder: Path
) -> None:
    server = serve("shop:app", "--store", "sqlite:///jobs.db", "--lead-seconds", "600")
    assert ready(server) == 200
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: ready(server) == 503, "readiness did not go red")
    assert httpx.get(f"{server.url}/jobs/health/live").status_code == 200
    job = httpx.post(f"{server.url}/quick", headers={"Prefer": "wait=10"}, timeout=30)
    assert (job.status_code, job.json()["result"]) == (200, "done"), "work was refused, or did not run"
    with httpx.stream("GET", f"{server.url}{job.json()['links']['self']}/events") as stream:
        assert stream.status_code == 200
    assert server.stop(signal.SIGTERM, seconds=30) == 128 + signal.SIGTERM


def test_after_the_lead_it_ends(serve: Serve, folder: Path) -> None:
    server = serve("shop:app", "--store", "memory://", "--lead-seconds", "1.5")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began > 1.5, "it did not wait for the lead"


# Hangup


def test_a_hangup_without_tls_drains_and_is_never_the_second_signal(serve: Serve, folder: Path) -> None:
    started = serve("shop:app", "--store", "sqlite:///jobs.db", DRAIN="60")
    hold(started)
    started.process.send_signal(signal.SIGHUP)
    wait_until(lambda: ready(started) == 503, "it does not drain")
    started.process.send_signal(signal.SIGHUP)
    started.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    started.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert started.process.poll() is None, "it stopped at once"
    assert started.output().count("draining") == 1, "a further wish gave it more time"
    assert started.stop(signal.SIGTERM) == 128 + signal.SIGTERM


def test_a_hangup_alone_ends_in_order(started: ServerProcess) -> None:
    assert started.stop(signal.SIGHUP) == 0
    assert "SIGHUP: draining" in started.output()


@pytest.mark.parametrize(("slow", "signals", "code"), [("2", 1, 0), ("50", 1, 0), ("50", 2, 143)])
def test_signals_while_it_starts(folder: Path, slow: str, signals: int, code: int) -> None:
    """It ends as soon as it has started, or when the drain time is over; a second one stops it at once."""
    command = [sys.executable, "-m", "callboard.web.cli", "serve", "shop:app", "--bind", "127.0.0.1:0"]
    environment = {**os.environ, "SLOW": slow, "DRAIN": "1" if code == 0 and slow == "50" else "40"}
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        wait_until((folder / "starting").exists, "it does not start")
        for _ in range(signals):
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()
    told = (folder / "out").read_text()
    assert "serving on" not in told and "Traceback" not in told
    assert ("did not stop in time" in told) is (slow == "50" and signals == 1)


# Every kind of connection


async def test_the_drain_of_every_kind_of_connection(started: ServerProcess) -> None:
    """Streams and waits end at once; requests are answered, and connections with none on them closed."""
    said: dict[str, tuple[int, float]] = {}
    host, port = started.url.removeprefix("http://").split(":")

    async with httpx.AsyncClient(base_url=started.url, timeout=20) as http, AsyncExitStack() as stack:
        job = (await http.post("/hold")).json()
        where = job["links"]["self"]
        while (now := await http.get(where)).json()["status"] != "InProgress":  # noqa: ASYNC110 - in another process
            await trio.sleep(0.02)
        before = now.headers["etag"]
        idle = await stack.enter_async_context(await trio.open_tcp_stream(host, int(port)))
        await idle.send_all(b"GET /slow?seconds=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        while not (await idle.receive_some()).endswith(b"answered"):
            pass
        open_ones = 0
        all_open = trio.Event()

        def opened() -> None:
            nonlocal open_ones
            open_ones += 1
            if open_ones == 3:
                all_open.set()

        async def follow(path: str) -> None:
            async with websocket_to(started.url, path) as connection:
                opened()
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        await connection.get_message()
            assert closed.value.reason is not None
            said[path] = (closed.value.reason.code, trio.current_time() - began)

        async def read_events() -> None:
            async with http.stream("GET", f"{where}/events") as stream:
                opened()
                async for _ in stream.aiter_lines():
                    pass
            said["events"] = (stream.status_code, trio.current_time() - began)

        async def wait_long() -> None:
            answer = await http.get(f"{where}?wait=15", headers={"If-None-Match": before})
            said["wait"] = (answer.status_code, trio.current_time() - began)

        async def ask_slowly() -> None:
            answer = await http.get("/slow?seconds=3")
            assert (answer.text, answer.status_code) == ("answered", 200)

        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for path in (f"{where}/stream", "/jobs/stream"):
                    nursery.start_soon(follow, path)
                nursery.start_soon(read_events)
                nursery.start_soon(wait_long)
                nursery.start_soon(ask_slowly)
                await all_open.wait()
                await trio.sleep(0.5)
                began = trio.current_time()
                started.process.send_signal(signal.SIGTERM)
            with trio.fail_after(20):
                assert await idle.receive_some() == b"", "the idle connection was not closed"
            code = await trio.to_thread.run_sync(started.process.wait, 20)
    assert code == 0, started.output()
    codes = {what: close_code for what, (close_code, _) in said.items()}
    assert codes.pop("wait") in (200, 304)
    assert codes == {f"{where}/stream": 1001, "/jobs/stream": 1001, "events": 200}
    assert max(seconds for _, seconds in said.values()) < 5, f"the drain time is 6 s: {said}"
    assert "did not stop in time" not in started.output()
    assert "Traceback" not in started.output()


def test_a_client_that_never_reads_is_cut_off_and_the_watchdog_sleeps(serve: Serve, folder: Path) -> None:
    started = serve("shop:app", "--store", "memory://", DRAIN="60")
    host, port = started.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as pinned:
        pinned.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.5)
        began = time.monotonic()
        assert started.stop() == 0
        assert time.monotonic() - began < 30
    assert "did not stop in time" not in started.output()


# What else may end it


@pytest.mark.parametrize("how", ["raises", "cancels", "returns"])
def test_if_hypercorns_server_dies_the_exit_code_is_1(serve: Serve, folder: Path, how: str) -> None:
    server = serve("shop:app", "--store", "sqlite:///jobs.db", UNSTEADY=how)
    job = hold(server)
    try:
        httpx.post(f"{server.url}/end-hypercorn")
    except httpx.TransportError:
        pass  # it has died before it could answer
    assert server.process.wait(20) == 1
    assert "has died" in server.output()
    assert ("Hypercorn's bug" in server.output()) is (how == "raises")
    assert ("has ended by itself" in server.output()) is (how == "returns")
    again = serve("shop:app", "--store", "sqlite:///jobs.db")
    assert httpx.get(again.url + job).json()["retryCount"] == 0, "the job was not handed back in order"


def test_if_a_background_task_of_the_app_tears_its_lifespan_down_the_exit_code_is_1(started: ServerProcess) -> None:
    """Hypercorn would go on answering, without a runtime."""
    httpx.post(f"{started.url}/tear")
    assert started.process.wait(20) == 1
    assert "the app's own bug" in started.output() and "the runtime has died" in started.output()


def test_what_does_not_stop_does_not_keep_a_torn_server(serve: Serve, folder: Path) -> None:
    server = serve("shop:app", "--store", "sqlite:///jobs.db", DRAIN="1")
    hold(server, "/stuck")
    httpx.post(f"{server.url}/tear")
    assert server.process.wait(20) == 1
    assert "did not stop in time" in server.output()


def test_a_thread_of_the_apps_own_does_not_keep_the_process(serve: Serve, folder: Path) -> None:
    """It gets some seconds, longer here than the watchdog waits for the server: that has ended."""
    server = serve("shop:app", "--store", "memory://", DRAIN="0.5")
    httpx.post(f"{server.url}/thread")
    began = time.monotonic()
    assert server.stop() == 0
    assert 5 <= time.monotonic() - began < 40


# What keeps it from starting


def attempt(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_callboard(folder, "serve", "shop:app", "--bind", "127.0.0.1:0", *options, **environment)


def test_several_workers_do_not_share_memory(folder: Path) -> None:
    """The parent sees what its command line says; what the environment or the app says, each child sees."""
    ended = attempt(folder, CALLBOARD_WORKERS="2", CALLBOARD_STORE="memory://")
    assert ended.returncode == 1
    assert "cannot serve: several processes need a store that they share" in ended.stderr
    assert "Traceback" not in ended.stderr
    (folder / "shop.py").write_text(APP.replace("board = Callboard(app,", "board = Callboard(app, store=memory,"))
    (folder / "shop.py").write_text(
        "from callboard.stores import open_store\nmemory = open_store('memory://')\n" + (folder / "shop.py").read_text()
    )
    ended = attempt(folder, CALLBOARD_WORKERS="2")
    assert (ended.returncode, "several processes" in ended.stderr) == (1, True)


def test_a_store_that_cannot_be_opened(folder: Path) -> None:
    ended = attempt(folder, "--store", "sqlite:///no/such/folder/jobs.db")
    assert ended.returncode == 1
    assert "cannot serve: " in ended.stderr and "no/such/folder" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_app_whose_start_fails(folder: Path) -> None:
    """Its own traceback, because it is its author's to mend, and our line."""
    ended = attempt(folder, "--store", "memory://", FAILS="1")
    assert ended.returncode == 1
    assert "cannot serve: " in ended.stderr and "no coffee" in ended.stderr
    assert "fail_at_start" in ended.stderr
    assert "hypercorn" not in ended.stderr.lower().split("cannot serve")[1]
    assert "serving on" not in ended.stdout


def test_an_app_that_cannot_be_imported(folder: Path) -> None:
    (folder / "shop.py").write_text("def broken():\n    raise KeyError('colour')\nbroken()\n")
    ended = attempt(folder)
    assert ended.returncode == 1
    assert "KeyError: 'colour'" in ended.stderr and 'shop.py", line 2, in broken' in ended.stderr
