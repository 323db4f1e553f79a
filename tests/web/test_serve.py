"""The launcher: signals, exit codes and deadlines, in processes of their own."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import httpx
import pytest
from tests.conftest import Serve, ServerProcess, run_callboard, wait_until

from callboard.web.serve import board_of

pytestmark = pytest.mark.e2e

APP = """
import os, time
import trio
from quart import request
from quart_trio import QuartTrio
from callboard.runtime import Config
from callboard.web import Callboard

app = QuartTrio(__name__)
board = Callboard(app, config=Config(drain_seconds=float(os.environ.get("DRAIN", 0.9)), poll_seconds=0.05))

@board.post("/hold", name="Hold")
async def hold(job) -> None:
    await trio.sleep_forever()

@board.post("/stuck", name="Stuck")
async def stuck(job) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

@board.post("/thread", name="Thread")
def in_a_thread(job) -> None:
    time.sleep(30)

@board.post("/frozen", name="Frozen")
async def frozen(job) -> None:
    try:
        await trio.sleep_forever()
    finally:
        time.sleep(30)

@app.post("/kill")
async def kill():
    error = KeyboardInterrupt if "interrupt" in request.args else RuntimeError
    async def broken(*_, **__):
        raise error("a bug")
    board.runtime._driver.next_due = broken
    board.runtime._driver.claim = broken
    return "dying"

plain = QuartTrio("plain")
"""


class Start(Protocol):
    def __call__(self, **environment: str) -> ServerProcess: ...


@pytest.fixture
def start(serve: Serve, tmp_path: Path) -> Start:
    (tmp_path / "shop.py").write_text(APP)

    def make(**environment: str) -> ServerProcess:
        return serve("shop.py:app", "--store", "sqlite:///jobs.db", **environment)

    return make


@pytest.fixture
def started(start: Start) -> ServerProcess:
    return start()


def wait_until_not_ready(server: ServerProcess) -> None:
    wait_until(lambda: httpx.get(f"{server.url}/jobs/health/ready").status_code == 503, "it does not drain")


def post(server: ServerProcess, path: str) -> str:
    answer = httpx.post(server.url + path)
    assert answer.status_code == 202
    job_id: str = answer.json()["id"]
    url = f"{server.url}/jobs/{job_id}"
    wait_until(lambda: httpx.get(url).json()["status"] == "InProgress", "the job did not start")
    return job_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_with_nothing_to_do_ends_at_once_with_0(start: Start, number: int) -> None:
    started = start(DRAIN="60")
    began = time.monotonic()
    assert started.stop(number) == 0
    assert time.monotonic() - began < 30


def test_while_it_drains_http_still_answers_and_the_job_is_handed_back(start: Start) -> None:
    started = start(DRAIN="5")
    job_id = post(started, "/hold")
    with httpx.Client(base_url=started.url) as http:
        assert http.get("/jobs/health/ready").status_code == 200
        started.process.send_signal(signal.SIGTERM)
        wait_until_not_ready(started)
        assert http.get("/jobs/health/live").status_code == 200
        assert http.post("/hold").status_code == 503
        assert http.get(f"/jobs/{job_id}").json()["status"] == "InProgress"
    assert started.process.wait(30) == 0
    again = start()
    document = httpx.get(f"{again.url}/jobs/{job_id}").json()
    assert document["retryCount"] == 0 and document["attempt"] in (1, 2)
    assert document["status"] in ("Queued", "InProgress")


@pytest.mark.parametrize("path", ["/stuck", "/thread", "/frozen"])
def test_what_will_not_stop_does_not_keep_the_process_and_is_not_handed_back(
    started: ServerProcess, serve: Serve, path: str
) -> None:
    job_id = post(started, path)
    began = time.monotonic()
    assert started.stop() == 0
    assert time.monotonic() - began < 20, "the handlers take 30 s"
    assert "did not stop in time" in started.output()
    again = serve("shop.py:app", "--store", "sqlite:///jobs.db")
    document = httpx.get(f"{again.url}/jobs/{job_id}").json()
    assert document["status"] in ("InProgress", "Queued"), (
        "the lease, or the dead holder's file lock, decides; nothing else does"
    )


def test_a_second_signal_stops_at_once(start: Start) -> None:
    started = start(DRAIN="60")
    post(started, "/stuck")
    started.process.send_signal(signal.SIGINT)
    wait_until_not_ready(started)
    began = time.monotonic()
    assert started.stop(signal.SIGINT) == 130
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("how", ["", "?interrupt"])
def test_if_the_runtime_dies_the_exit_code_is_1(started: ServerProcess, how: str) -> None:
    httpx.post(f"{started.url}/kill{how}")
    assert started.process.wait(30) == 1
    assert "runtime has died" in started.output()


def test_a_client_that_pins_a_websocket_does_not_keep_the_process(started: ServerProcess) -> None:
    job_id = post(started, "/hold")
    host, port = started.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as pinned:
        lines = [
            f"GET /jobs/{job_id}/stream HTTP/1.1",
            *(f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"),
            *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        pinned.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b"101" in pinned.recv(100)
        began = time.monotonic()
        assert started.stop() == 0
        assert time.monotonic() - began < 20


def test_an_app_without_a_board_and_a_taken_port_are_told(started: ServerProcess, tmp_path: Path) -> None:
    port = started.url.rpartition(":")[2]
    taken = run_callboard(tmp_path, "serve", "shop.py:app", "--bind", f"127.0.0.1:{port}", "--store", "memory://")
    assert taken.returncode == 1
    assert "cannot serve" in taken.stderr and "Traceback" not in taken.stderr
    with pytest.raises(Exception, match="no board"):
        board_of(object())


def test_a_bind_to_the_world_without_authorize_warns_loudly(started: ServerProcess, tmp_path: Path) -> None:
    assert "ANYONE" not in started.output()
    program = """
import socket
from callboard.web import serve
from callboard.web.binds import Listening
from callboard.web.server_options import ServerOptions
from callboard.web.surroundings import Surroundings
from callboard.web.watchdog import Watchdog
from shop import app, board
everywhere = Listening(None, socket.AF_INET, ("0.0.0.0", 80))
here = Listening(None, socket.AF_INET, ("127.0.0.1", 81))
for options in (ServerOptions(), ServerOptions(certfile="a", keyfile="b", ca_certs="c")):
    serve._Server(app, board, options, Surroundings(), Watchdog())._warn_if_open([here, everywhere])
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert output.stderr.count("ANYONE WHO CAN REACH 0.0.0.0:80") == 1, output.stderr
    assert "81" not in output.stderr
