"""The command line as its users meet it: real processes, signals, ports and wrong arguments."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner
from tests.conftest import Serve, run_callboard

import callboard
from callboard.web.cli import load_app, main

pytestmark = pytest.mark.e2e

APP = """
    import trio
    from quart_trio import QuartTrio
    from callboard.runtime import Config, JobContext
    from callboard.web import Callboard

    app = QuartTrio(__name__)
    board = Callboard(app, config=Config(drain_seconds=1.5))
    other = "not an app"
    bare = QuartTrio("bare")

    @app.get("/")
    async def hello():
        return "hello"

    @board.post("/quick", name="Quick")
    async def quick(job: JobContext) -> int:
        return job.attempt

    @board.post("/slow", name="Slow")
    async def slow(job: JobContext) -> int:
        if job.attempt == 1:
            await trio.sleep_forever()
        return job.attempt
"""


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.py"
    path.write_text(textwrap.dedent(APP))
    return path


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("target", ["shop:app", "shop.py:app", "./shop:app", "shop"])
def test_serve_answers_and_ends_in_order(serve: Serve, app_file: Path, target: str, how: int) -> None:
    server = serve(target, "--store", "memory://")
    assert httpx.get(server.url).text == "hello"
    job = httpx.post(f"{server.url}/quick", headers={"Prefer": "wait=20"}, timeout=30).json()
    assert (job["status"], job["result"]) == ("Completed", 1)
    began = time.monotonic()
    assert server.stop(how) == 0, server.output()
    assert time.monotonic() - began < 10
    assert "Traceback" not in server.output()


def test_a_running_job_is_handed_back_within_the_drain_time(serve: Serve, app_file: Path) -> None:
    server = serve("shop:app", "--store", "sqlite:///jobs.db")
    job = httpx.post(f"{server.url}/slow").json()["links"]["self"]
    deadline = time.monotonic() + 20
    while httpx.get(server.url + job).json()["status"] != "InProgress":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    assert server.stop() == 0, server.output()
    assert time.monotonic() - began < 1.5 + 5

    again = serve("shop:app", "--store", "sqlite:///jobs.db")
    ended = httpx.get(f"{again.url}{job}?wait=20", timeout=30).json()
    assert (ended["status"], ended["result"], ended["retryCount"]) == ("Completed", 2, 0)


def test_a_port_that_is_taken(app_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_callboard(
            app_file.parent, "serve", "shop:app", "--bind", f"127.0.0.1:{port}", "--store", "memory://"
        )
    assert ended.returncode == 1
    assert str(port) in ended.stderr
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_store_that_must_not_be_used(app_file: Path) -> None:
    (app_file.parent / "foreign.db").write_text("this is no database, and nobody may write into it")
    ended = run_callboard(
        app_file.parent, "serve", "shop:app", "--bind", "127.0.0.1:0", "--store", "sqlite:///foreign.db"
    )
    assert ended.returncode == 1
    assert "foreign.db" in ended.stderr.splitlines()[-2]
    assert "Traceback" not in ended.stderr
    assert "serving on" not in ended.stdout
    assert (app_file.parent / "foreign.db").read_text().startswith("this is no database")


WRONG = {
    ("shop:nothing",): "'shop' has no 'nothing'; it has app, bare",
    ("shop:other",): "'other' in 'shop' is a str, not a QuartTrio app; it has app, bare",
    ("shop:bare",): "that app has no board",
    ("no_such_module:app",): "there is no module 'no_such_module'",
    ("shop.inner:app",): "there is no module",
    ("no/such/file.py:app",): "there is no file 'no/such/file.py'",
    (":app",): "is no module:app",
    ("shop:app", "--bind", "8000"): "is no host:port",
    ("shop:app", "--bind", "localhost:99999"): "is no host:port",
    ("shop:app", "--store", "cassandra://db"): "--store",
    (): "Missing argument",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_wrong_command_line(app_file: Path, arguments: tuple[str, ...]) -> None:
    ended = run_callboard(app_file.parent, "serve", *arguments)
    assert ended.returncode == 2
    assert WRONG[arguments] in " ".join(re.sub(r"[│╭╮╰╯─]", "", ended.stderr).split())
    assert "Traceback" not in ended.stderr
    assert not list(app_file.parent.glob("*.db*"))


WRONG_OPTIONS = {
    ("--workers", "0"): "--workers: 0 is less than 1",
    ("--workers", "2", "--reload"): "--reload: it is for one worker",
    ("--workers", "2", "--store", "memory://"): "--store: several processes need a store that they share",
    ("--bind", "127.0.0.1:0", "--bind", "unix:"): "--bind: 'unix:' has no path",
    ("--bind", "fd://x"): "--bind: 'fd://x' has no number",
    ("--bind", "::1:80"): "an IPv6 address stands in brackets",
    ("--bind", "[::x]:80"): "has no IPv6 address in its brackets",
    ("--root-path", "shop"): "--root-path: 'shop' is no path",
    ("--certfile", "a.pem"): "--certfile: give keyfile too",
    ("--keyfile", "a.pem"): "--keyfile: give certfile too",
    ("--ca-certs", "a.pem"): "--ca-certs: give certfile too",
    ("--lead-seconds", "-1"): "--lead-seconds: -1 is not between 0 and 3600",
    ("--lead-seconds", "nan"): "--lead-seconds: nan is not between",
    ("--keep-alive-seconds", "0"): "--keep-alive-seconds: 0 is not between",
    ("--max-connections", "0"): "--max-connections: 0 is not between",
    ("--max-header-bytes", "10"): "--max-header-bytes: 10 is not between",
    ("--max-message-bytes", "0"): "--max-message-bytes: 0 is not between",
    ("--log-level", "loud"): "'loud' is not one of",
}


@pytest.mark.parametrize("arguments", WRONG_OPTIONS, ids=" ".join)
def test_an_option_that_cannot_be_meant(arguments: tuple[str, ...]) -> None:
    """All of them are looked at before the app is."""
    ended = CliRunner().invoke(main, ["serve", "no_such_module:app", *arguments])
    assert ended.exit_code == 2
    assert WRONG_OPTIONS[arguments] in ended.output
    assert "Traceback" not in ended.output


def test_an_error_inside_the_app_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_dependency\n")
    ended = run_callboard(tmp_path, "serve", "broken:app")
    assert ended.returncode == 1
    assert "No module named 'no_such_dependency'" in ended.stderr
    assert "broken.py" in ended.stderr


def test_load_app_tells_two_files_of_one_name_apart(app_file: Path, tmp_path: Path) -> None:
    (tmp_path / "textwrap.py").write_text(app_file.read_text())
    app = load_app(f"{tmp_path / 'textwrap.py'}:app")
    assert app.name == "callboard_app_textwrap"
    assert load_app(f"{app_file}:app") is not app
    with pytest.raises(click.BadParameter, match="is a Callboard, not a QuartTrio app; it has app, bare"):
        load_app(f"{app_file}:board")


def test_version_and_help_are_told_at_once() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"callboard, version {callboard.__version__}\n"
    overview = CliRunner().invoke(main, ["--help"])
    assert overview.exit_code == 0
    assert {"serve", "demo"} <= set(overview.output.split())


def test_demo_once(tmp_path: Path) -> None:
    ended = run_callboard(tmp_path, "demo", "--once", "--package", "json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "202" in ended.stdout
    assert "Completed" in ended.stdout
    assert "progress: 100 %" in ended.stdout
    assert re.search(r"json\W+5\W+0\W+", ended.stdout), ended.stdout
    assert "Try," not in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_stays_up_its_curl_lines_work_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "callboard.web.cli", "demo", "--package", "json"]
    with (tmp_path / "out").open("w") as file:
        demo = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while "until Ctrl-C" not in (shown := (tmp_path / "out").read_text()):
            assert demo.poll() is None and time.monotonic() < deadline, shown
            time.sleep(0.1)
        lines = [line.strip() for line in shown.splitlines() if line.strip().startswith("curl ")]
        assert len(lines) >= 5
        if shutil.which("curl"):
            answers = [shell(line) for line in lines]
            assert [line for line, answer in zip(lines, answers, strict=True) if not 200 <= answer < 300] == [
                line for line in lines if '"limit": 0' in line
            ], answers
        url = httpx.URL(re.findall(r"http://127\.0\.0\.1:\d+", shown)[0])
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0, (tmp_path / "out").read_text()
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
    finally:
        demo.terminate()
        demo.wait(60)


def shell(line: str) -> int:
    """Run a curl line; the status of its answer."""
    command = f"{line} -sS -o /dev/null -w '%{{http_code}}'"
    return int(subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the server in /proc")
def test_demo_says_that_its_server_died(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "callboard.web.cli", "demo"]
    with (tmp_path / "out").open("w") as file:
        demo = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while "progress: " not in (shown := (tmp_path / "out").read_text()):
            assert demo.poll() is None and time.monotonic() < deadline, shown
            time.sleep(0.1)
        (server,) = [
            child
            for task in Path(f"/proc/{demo.pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        os.kill(int(server), signal.SIGKILL)
        assert demo.wait(60) == 1
        assert "the server ended by itself with code -9" in (tmp_path / "out").read_text()
        assert "Traceback" not in (tmp_path / "out").read_text()
    finally:
        demo.terminate()
        demo.wait(60)
