"""``callboard worker`` and ``serve --jobs``: targets, options, what HTTP shows, signals and exit codes, in processes of their own."""

import re
import signal
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from quart_trio import QuartTrio
from tests.conftest import run_callboard
from tests.web.parents import Family, Parents, until

from callboard.runtime import Config, Handlers
from callboard.runtime.core.errors import ConfigError
from callboard.web import Callboard, cli, workers
from callboard.web.server_options import ServerOptions
from callboard.web.worker import app_of

APP = """
import os
from contextlib import asynccontextmanager
import trio
from quart import current_app
from quart_trio import QuartTrio
from callboard.runtime import Config, Handlers
from callboard.web import Callboard

def note(what):
    with open("notes", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")

app = QuartTrio(__name__)
board = Callboard(app, config=Config(drain_seconds=float(os.environ.get("DRAIN", "20")), poll_seconds=0.05), prefix="/work")

if "REFUSES" in os.environ:
    @app.before_serving
    async def refuse():
        raise RuntimeError("the app will not start")

@app.before_serving
async def before():
    note("before")

@app.while_serving
async def resource():
    app.extensions["resource"] = "open"
    yield
    app.extensions["resource"] = "closed"
    note("closed")

@app.after_serving
async def after():
    note("after")

@app.get("/own")
async def own():
    return "the app's own"

@board.post("/seen", name="Seen")
async def seen(job) -> str:
    note("seen")
    return current_app.extensions["resource"]

@board.post("/hold", name="Hold", queue="slow")
async def hold(job) -> None:
    note("hold")
    try:
        await trio.sleep(3)
        note("held")
    finally:
        with trio.CancelScope(shield="STUCK" in os.environ):
            await trio.sleep(0 if "STUCK" not in os.environ else 60)

@board.post("/die", name="Die", max_lost_leases=0)
async def die(job) -> None:
    os._exit(7)

@board.post("/bug", name="Bug")
async def bug(job) -> None:
    async def broken(*_, **__):
        raise RuntimeError("a bug")
    board.runtime._driver.next_due = broken

bare = Callboard(config=Config(poll_seconds=0.05))

@bare.post("/bare", name="Bare")
async def on_no_app(job) -> str:
    note("bare")
    return current_app.name

jobs = Handlers()

@jobs.handler("Plain")
async def plain(job) -> None:
    note("plain")

empty = Callboard(QuartTrio("empty"))
idle = Callboard(QuartTrio("idle"), config=Config(max_concurrent_jobs=0))

@idle.handler("Idle")
async def idling(job) -> None: ...

number = 3

both = QuartTrio("both")
every = Callboard(both)
for handlers in (board.handlers, bare.handlers, jobs):
    for handler in handlers:
        every.handlers.add(handler)

@both.post("/submit/<name>")
async def submit(name):
    job = await every.runtime.submit(name)
    return {"id": job.id}, 202
"""

STORE = ("--store", "sqlite:///jobs.db")
RUNS = "callboard: running jobs"
PROBES = re.compile(r"callboard: health and metrics on (http://\S+)")


@pytest.fixture
def parents(tmp_path: Path) -> Iterator[Parents]:
    (tmp_path / "shop.py").write_text(APP)
    with Parents(tmp_path) as parents:
        yield parents


@pytest.fixture
def api(parents: Parents) -> str:
    """The URL of a server that runs no jobs and submits any."""
    return parents.serve("shop.py:both", *STORE, "--jobs", "0").url()


def work(parents: Parents, *options: str, target: str = "shop.py:app", **environment: str) -> Family:
    """``callboard worker``, as soon as it runs jobs."""
    command = [sys.executable, "-m", "callboard.web.cli", "worker", target, *STORE, *options]
    family = parents.run(command, environment=environment)
    family.until_said(RUNS)
    return family


def probes(family: Family) -> str:
    family.until_said("health and metrics on")
    found = PROBES.search(family.output())
    assert found is not None
    return found[1]


def notes(parents: Parents, what: str) -> list[str]:
    try:
        lines = (parents.folder / "notes").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line.split()[1] for line in lines if line.split()[0] == what]


def submit(url: str, name: str) -> str:
    answer = httpx.post(f"{url}/submit/{name}", headers={"Connection": "close"})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def ended(url: str, job_id: str) -> dict[str, object]:
    document: dict[str, object] = httpx.get(f"{url}/jobs/{job_id}?wait=30", timeout=60).json()
    return document


# Running


@pytest.mark.e2e
def test_a_worker_lives_as_the_served_app_does(parents: Parents, api: str) -> None:
    family = work(parents)
    pid = str(family.process.pid)
    assert notes(parents, "before") == [pid]
    document = ended(api, submit(api, "Seen"))
    assert (document["status"], document["result"]) == ("Completed", "open")
    assert notes(parents, "seen") == [pid]
    assert family.stop() == 0
    # Quart 0.22 and 0.23 tear down in different orders.
    assert notes(parents, "closed") == notes(parents, "after") == [pid]


@pytest.mark.e2e
def test_a_worker_without_a_bind_listens_nowhere(parents: Parents) -> None:
    family = work(parents)
    inodes = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"}
    links = [one.readlink() for one in Path(f"/proc/{family.process.pid}/fd").iterdir() if one.is_symlink()]
    assert not {f"socket:[{inode}]" for inode in inodes} & {str(link) for link in links}
    assert family.stop(signal.SIGINT) == 0


@pytest.mark.e2e
@pytest.mark.parametrize(("target", "name", "what"), [("bare", "Bare", "bare"), ("jobs", "Plain", "plain")])
def test_a_board_on_no_app_and_handlers_will_do(parents: Parents, api: str, target: str, name: str, what: str) -> None:
    work(parents, target=f"shop.py:{target}")
    assert ended(api, submit(api, name))["status"] == "Completed"
    assert len(notes(parents, what)) == 1


@pytest.mark.e2e
def test_of_http_there_are_health_and_metrics_only(parents: Parents) -> None:
    family = work(parents, "--bind", "127.0.0.1:0")
    with httpx.Client(base_url=probes(family)) as http:
        for path in ("live", "ready"):
            assert http.get(f"/work/health/{path}").json() == {"status": path, "role": "worker"}
        metrics = http.get("/work/metrics").text
        assert 'callboard_info{role="worker"' in metrics and "callboard_slots 100.0" in metrics
        for method, path in (
            ("GET", "/work"),
            ("GET", "/own"),
            ("POST", "/seen"),
            ("GET", "/work/ui"),
            ("GET", "/work/health/live/"),
        ):
            answer = http.request(method, path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        assert http.post("/work/health/live").status_code == 405
    host, port = probes(family).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as one:
        lines = ["GET /work/stream HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
        one.sendall("\r\n".join(lines).encode())
        assert b" 404 " in one.recv(100)
    assert notes(parents, "seen") == []
    assert family.stop() == 0


# The end


@pytest.mark.e2e
def test_the_first_signal_drains_and_readiness_says_so(parents: Parents, api: str) -> None:
    family = work(parents, "--bind", "127.0.0.1:0")
    url = probes(family)
    job_id = submit(api, "Hold")
    until(lambda: notes(parents, "hold"), "it runs")
    family.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{url}/work/health/ready").status_code == 503, "it drains")
    waits = submit(api, "Seen")
    assert family.wait() == 0
    assert notes(parents, "held") and ended(api, job_id)["status"] == "Completed"
    assert httpx.get(f"{api}/jobs/{waits}").json()["status"] == "Queued", "nothing new was begun"


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_it_at_once(parents: Parents, api: str, number: int, code: int) -> None:
    family = work(parents, STUCK="")
    submit(api, "Hold")
    until(lambda: notes(parents, "hold"), "it runs")
    family.process.send_signal(number)
    family.until_said("draining")
    assert family.stop(number) == code


@pytest.mark.e2e
def test_what_does_not_stop_does_not_keep_the_process(parents: Parents, api: str) -> None:
    family = work(parents, STUCK="", DRAIN="1")
    submit(api, "Hold")
    until(lambda: notes(parents, "hold"), "it runs")
    assert family.stop() == 0
    assert "did not stop in time" in family.output()


@pytest.mark.e2e
@pytest.mark.parametrize("options", [(), ("--bind", "127.0.0.1:0")])
def test_when_the_runtime_dies_the_exit_code_is_1(parents: Parents, api: str, options: tuple[str, ...]) -> None:
    family = work(parents, *options)
    submit(api, "Bug")
    assert family.wait() == 1
    assert "runtime has died" in family.output()


@pytest.mark.e2e
def test_an_app_that_will_not_start_and_a_store_that_will_not_open_are_told(parents: Parents, tmp_path: Path) -> None:
    refusing = run_callboard(tmp_path, "worker", "shop.py:app", *STORE, REFUSES="")
    assert refusing.returncode == 1 and "the app will not start" in refusing.stderr
    (tmp_path / "no.db").write_text("no database, but long enough to be taken for something" * 100)
    shut = run_callboard(tmp_path, "worker", "shop.py:app", "--store", "sqlite:///no.db")
    assert shut.returncode == 1 and "callboard cannot run jobs: " in shut.stderr and "Traceback" not in shut.stderr
    with socket.create_server(("127.0.0.1", 0)) as one:
        bind = f"127.0.0.1:{one.getsockname()[1]}"
        taken = run_callboard(tmp_path, "worker", "shop.py:app", *STORE, "--bind", bind)
    assert taken.returncode == 1 and bind in taken.stderr


@pytest.mark.e2e
def test_systemd_is_told(parents: Parents, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(60)
        family = work(parents, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
        assert one.recv(4096).decode().splitlines() == ["READY=1", "STATUS=running jobs"]
        assert [one.recv(4096) for _ in range(2)] == [b"WATCHDOG=1"] * 2
        assert family.stop() == 0
        said = b""
        while not said.startswith(b"STOPPING=1\nSTATUS=SIGTERM: draining"):
            said = one.recv(4096)


# Several


@pytest.mark.e2e
def test_several_under_one_parent(parents: Parents, api: str) -> None:
    family = work(
        parents, "--workers", "2", "--bind", "127.0.0.1:0", "--queue", "default", "--queue", "slow", "--jobs", "1"
    )
    assert family.output().count(RUNS) == 1
    assert httpx.get(f"{probes(family)}/work/health/ready").json()["role"] == "worker"
    pair = family.workers()
    assert len(pair) == 2
    held = [submit(api, "Hold") for _ in range(2)]
    assert {ended(api, job_id)["status"] for job_id in held} == {"Completed"}
    assert sorted(map(int, notes(parents, "hold"))) == pair, "one slot each"
    deadly = submit(api, "Die")
    family.until_said("ended with code 7: starting it again")
    # It is not taken again, by one that would die of it while all stop.
    assert ended(api, deadly)["status"] == "Failed"
    family.until_said("serves again")
    assert family.stop() == 0


@pytest.mark.e2e
def test_several_without_a_socket(parents: Parents, api: str) -> None:
    family = work(parents, "--workers", "2")
    assert ended(api, submit(api, "Seen"))["status"] == "Completed"
    assert family.stop() == 0
    assert family.living() == []


def test_what_workers_are_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def run_workers(arguments: list[str], options: ServerOptions, *, workers: int, reload: bool) -> int:
        calls.append((arguments, options, workers, reload))
        return 3

    monkeypatch.setattr(workers, "run_workers", run_workers)
    words = "--workers 2 --store sqlite:///x.db --queue a --queue b --jobs 5 --log-level error"
    assert CliRunner().invoke(cli.main, ["worker", "shop:app", *words.split()]).exit_code == 3
    expected = [
        "shop:app",
        "--store",
        "sqlite:///x.db",
        "--queue",
        "a",
        "--queue",
        "b",
        "--jobs",
        "5",
        "--log-level",
        "error",
    ]
    assert calls == [(expected, ServerOptions(bind=(), worker=True, access_log=False, log_level="error"), 2, False)]


# What cannot be meant


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("worker shop.py:app --store memory://", 2, "memory is each one's own"),
        ("worker shop.py:app --jobs 0", 2, "a worker is there to run jobs"),
        ("worker shop.py:app --jobs -1", 2, "--jobs"),
        ("worker shop.py:app --queue fast", 2, "no handler works on queue 'fast': give one of default, slow"),
        ("worker shop.py:app --workers 2 --queue fast", 2, "no handler works on queue 'fast'"),
        ("worker shop.py:number", 2, "a int is no QuartTrio app, no Callboard and no Handlers; it has app, both"),
        ("worker shop.py:empty", 1, "there is no handler"),
        ("worker shop.py:idle", 1, "give --jobs"),
        ("worker shop.py:nothing", 2, "has no 'nothing'"),
        ("serve shop.py:app --jobs 0 --store memory://", 2, "memory is each one's own"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: str, code: int, said: str) -> None:
    (tmp_path / "shop.py").write_text(APP)
    refused = run_callboard(tmp_path, *words.split())
    assert (refused.returncode, "Traceback" in refused.stderr) == (code, False), refused.stderr
    assert said in refused.stderr, refused.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("words", ["worker shop.py:app", "serve shop.py:app --jobs 0 --bind 127.0.0.1:0"])
def test_a_store_of_its_own_is_no_use_wherever_it_comes_from(tmp_path: Path, words: str) -> None:
    (tmp_path / "shop.py").write_text(APP)
    refused = run_callboard(tmp_path, *words.split(), CALLBOARD_STORE="memory://")
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False), refused.stderr
    assert "memory is each one's own" in refused.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("words", ["worker shop.py:app", "serve shop.py:app --bind 127.0.0.1:0"])
def test_a_wrong_number_of_jobs_in_the_environment_ends_the_command_in_one_line(tmp_path: Path, words: str) -> None:
    (tmp_path / "shop.py").write_text(APP)
    refused = run_callboard(tmp_path, *words.split(), CALLBOARD_JOBS="many")
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr
    assert refused.stderr.endswith("Error: CALLBOARD_JOBS is 'many': give a whole number, 0 or more\n")


def test_one_target_is_one_app() -> None:
    app = QuartTrio("shop")
    board = Callboard(app)
    assert app_of(app) is app_of(board) is app
    lone, handlers = Callboard(), Handlers()
    assert app_of(lone) is app_of(lone) is lone.app
    made = app_of(handlers).extensions["callboard"]
    assert made.handlers is handlers
    with pytest.raises(ConfigError, match="a str is no QuartTrio app"):
        app_of("shop")


# Roles in code and in the environment


@pytest.mark.parametrize(
    ("config", "jobs", "variable", "role"),
    [
        (None, None, "", "both"),
        (None, 0, "", "api"),
        (None, None, "0", "api"),
        (None, 3, "0", "both"),
        (Config(max_concurrent_jobs=0), None, "", "api"),
        (Config(max_concurrent_jobs=0), None, "4", "both"),
    ],
)
def test_who_decides(
    monkeypatch: pytest.MonkeyPatch, config: Config | None, jobs: int | None, variable: str, role: str
) -> None:
    monkeypatch.setenv("CALLBOARD_JOBS", variable)
    board = Callboard(QuartTrio("shop"), config=config)
    board.use_jobs(jobs)
    assert board.role == role


@pytest.mark.parametrize("text", ["many", "-1", "1.5", " "])
def test_a_wrong_number_of_jobs_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CALLBOARD_JOBS", text)
    with pytest.raises(ConfigError, match=r"^CALLBOARD_JOBS is .*: give a whole number, 0 or more$"):
        _ = Callboard(QuartTrio("shop")).role


@pytest.mark.e2e
def test_an_api_under_plain_hypercorn(parents: Parents) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "hypercorn", "-k", "trio", "-b", f"127.0.0.1:{port}", "shop.py:both"]
    parents.run(command, environment={"CALLBOARD_JOBS": "0", "CALLBOARD_STORE": "sqlite:///jobs.db"})
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return bool(httpx.get(f"{url}/jobs/health/ready").json() == {"status": "ready", "role": "api"})
        except httpx.TransportError:
            return False

    until(is_ready, "it serves")
    job_id = submit(url, "Plain")
    work(parents, target="shop.py:jobs")
    assert ended(url, job_id)["status"] == "Completed"


@pytest.mark.e2e
def test_the_store_of_a_worker_comes_from_where_the_servers_does(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    with Parents(tmp_path) as parents:
        command = [sys.executable, "-m", "callboard.web.cli", "worker", "shop.py:app"]
        family = parents.run(command, environment={"CALLBOARD_STORE": "sqlite:///there.db"})
        family.until_said(RUNS)
        assert family.stop() == 0
    with closing(sqlite3.connect(tmp_path / "there.db")) as connection:
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (0,)
