"""What the launcher makes of its options: settings of the server, the number of open files, a parent's and systemd's words."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from quart_trio import QuartTrio
from tests.conftest import Serve

from callboard.runtime import Config
from callboard.runtime.core.errors import ConfigError
from callboard.web import Callboard, cli, serve, workers
from callboard.web.binds import listening
from callboard.web.hypercorn_fixes import ServeConfig
from callboard.web.multistream import MESSAGE_MARGIN
from callboard.web.server_options import ServerOptions
from callboard.web.surroundings import Surroundings
from callboard.web.watchdog import Watchdog

SHOP = """
from quart_trio import QuartTrio
from callboard.web import Callboard
app = QuartTrio('shop')
Callboard(app)
"""


def config_of(options: ServerOptions) -> ServeConfig:
    app = QuartTrio("shop")
    board = Callboard(app, store="memory://")
    with listening(["127.0.0.1:0"]) as listeners:
        config = serve._Server(app, board, options, Surroundings(), Watchdog())._config(listeners)
    (bind,) = config.bind
    os.close(int(bind.removeprefix("fd://")))
    return config


def test_options_are_checked_wherever_they_come_from() -> None:
    with pytest.raises(ConfigError, match=r"^lead_seconds: -1 is not between 0 and 3600$"):
        ServerOptions(lead_seconds=-1)
    with pytest.raises(ConfigError, match=r"^bind: give at least one"):
        ServerOptions(bind=())
    with pytest.raises(ConfigError, match=r"^root_path: '/shop/' is no path"):
        ServerOptions(root_path="/shop/")


def test_every_option_has_a_place_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[ServerOptions] = []

    def run(_: object, options: ServerOptions, **__: object) -> int:
        given.append(options)
        return 0

    monkeypatch.setattr(serve, "run", run)
    monkeypatch.setattr(cli, "_end", sys.exit)
    (tmp_path / "shop.py").write_text(SHOP)
    words = (
        "--bind 127.0.0.1:1 --bind unix:x --root-path /shop/ --lead-seconds 2.5 --certfile c --keyfile k --ca-certs a"
        " --no-access-log --log-level warning --max-connections 7 --max-header-bytes 5000 --max-message-bytes 6000"
        " --keep-alive-seconds 9"
    )
    ended = CliRunner().invoke(cli.main, ["serve", f"{tmp_path}/shop.py:app", *words.split()])
    assert ended.exit_code == 0, ended.output
    assert given == [
        ServerOptions(
            bind=("127.0.0.1:1", "unix:x"),
            root_path="/shop",
            lead_seconds=2.5,
            certfile="c",
            keyfile="k",
            ca_certs="a",
            access_log=False,
            log_level="warning",
            max_connections=7,
            max_header_bytes=5000,
            max_message_bytes=6000,
            keep_alive_seconds=9,
        )
    ]
    CliRunner().invoke(cli.main, ["serve", f"{tmp_path}/shop.py:app"])
    assert given[1] == ServerOptions()


def test_what_workers_are_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def run_workers(arguments: list[str], options: ServerOptions, *, workers: int, reload: bool) -> int:
        calls.append((arguments, options.bind, workers, reload))
        return 3

    monkeypatch.setattr(workers, "run_workers", run_workers)
    words = "--bind 127.0.0.1:0 --workers 2 --store sqlite:///x.db --no-access-log --lead-seconds 2 --log-level error"
    assert CliRunner().invoke(cli.main, ["serve", "shop:app", *words.split()]).exit_code == 3
    assert CliRunner().invoke(cli.main, ["serve", "shop:app", "--reload"]).exit_code == 3
    expected = [
        "shop:app",
        "--store",
        "sqlite:///x.db",
        "--lead-seconds",
        "2.0",
        "--no-access-log",
        "--log-level",
        "error",
    ]
    assert calls == [
        (expected, ("127.0.0.1:0",), 2, False),
        (["shop:app"], ("127.0.0.1:8000",), 1, True),
    ]


def test_messages_may_be_as_large_as_a_bulk_request() -> None:
    needed = Config().max_bulk_body_bytes + MESSAGE_MARGIN
    assert config_of(ServerOptions()).websocket_max_message_size == needed
    for enough in (needed, needed + 1):
        assert config_of(ServerOptions(max_message_bytes=enough)).websocket_max_message_size == enough
    with pytest.raises(ConfigError, match=f"max_message_bytes: {needed - 1} is less than the {needed}"):
        config_of(ServerOptions(max_message_bytes=needed - 1))


def test_the_environment_is_read_once_and_cleaned() -> None:
    here, there = os.pipe()
    os.set_inheritable(there, True)
    environment = {
        "HOME": "/",
        "NOTIFY_SOCKET": "/x",
        "WATCHDOG_USEC": "1",
        "CALLBOARD_PARENT_FD": str(there),
        "CALLBOARD_WORKERS": "3",
        "CALLBOARD_DRAIN_SECONDS": "1.5",
        "CALLBOARD_KEYFILE_PASSWORD": "sesame",
    }
    found = Surroundings.of(environment)
    assert environment == {"HOME": "/"}
    assert (found.parent_fd, found.workers, found.drain_seconds, found.key_password) == (there, 3, 1.5, "sesame")
    assert not os.get_inheritable(there), "whatever the app starts would hold the line to the parent"
    assert "sesame" not in repr(found)
    os.close(here)
    os.close(there)


def test_a_parent_may_shorten_the_drain_and_not_lengthen_it() -> None:
    board = Callboard(QuartTrio("shop"), config=Config(drain_seconds=5))
    board.limit_drain(9)
    assert board.config.drain_seconds == 5
    board.limit_drain(1.5)
    assert board.config == Config(drain_seconds=1.5)


LIMITS = """
import logging, resource, sys
from callboard.web import serve
logging.basicConfig()
soft, hard, needed = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
serve.allow_descriptors(needed)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "needed", "got", "warns"),
    [(64, 900, 800, 800, False), (64, 900, 2000, 900, True), (500, 900, 400, 500, False)],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    soft: int, hard: int, needed: int, got: int, warns: bool
) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this system allows too few to show it")
    command = [sys.executable, "-c", LIMITS, str(soft), str(hard), str(needed)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == [str(got), str(hard)]
    assert (f"allows {got} open files" in ended.stderr) is warns
    assert len(ended.stderr.splitlines()) == warns


@pytest.mark.e2e
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux only")
def test_a_server_may_open_as_many_files_as_its_connections_need(serve: Serve, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4000:
        pytest.skip("this system allows too few to show it")
    (tmp_path / "shop.py").write_text(SHOP)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        server = serve("shop:app", "--store", "memory://", "--max-connections", "3000")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 3000 < resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] < 4000
    assert "open files" not in server.output()


@pytest.mark.e2e
@pytest.mark.parametrize("wanted", [True, False])
def test_the_access_log_is_written_or_not(serve: Serve, tmp_path: Path, wanted: bool) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    server = serve("shop:app", "--store", "memory://", "--root-path", "/shop", *([] if wanted else ["--no-access-log"]))
    assert httpx.get(f"{server.url}/shop/jobs").status_code == 200
    assert httpx.get(f"{server.url}/shop/jobs/health/ready").status_code == 200
    assert httpx.get(f"{server.url}/shop/jobs", headers={"X-Long": "x" * 33_000}).status_code == 431
    assert server.stop() == 0
    assert ('"status":431' in server.output()) is wanted
    assert ('"path":"/shop/jobs"' in server.output()) is wanted
    assert "health" not in server.output(), "probes that go well are told"
