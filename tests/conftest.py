"""What several test files share: a real server in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.redis_servers import RedisServer, RedisServers

__all__ = ["Serve", "ServerProcess", "redis_server", "redis_servers", "run_callboard", "wait_until"]

START_SECONDS = 30
_URL = re.compile(r"serving on (https?://\S+|unix:\S+)")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Note for ``.ci/failed.py`` whether every test was run, and nothing failed but tests."""
    cache = getattr(session.config, "cache", None)
    if cache is not None and not hasattr(
        session.config, "workerinput"
    ):  # which is one of several processes, not the whole
        is_whole = exitstatus == pytest.ExitCode.TESTS_FAILED and not session.shouldfail and not session.shouldstop
        cache.set("callboard/is_whole", is_whole)


class ServerProcess:
    """A ``callboard serve`` on a port that the system chose."""

    def __init__(self, arguments: list[str], output: Path, folder: Path, environment: dict[str, str]) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "callboard.web.cli", "serve", *arguments],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.url = self._wait_for_url()

    def output(self) -> str:
        """All that it wrote so far."""
        return self._output.read_text(errors="replace")

    def stop(self, how: int = signal.SIGTERM, *, seconds: float = 30) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            found = _URL.search(self.output())
            if found:
                return found[1]
            time.sleep(0.02)
        self.process.kill()
        raise AssertionError(f"the server did not start, exit code {self.process.wait()}:\n{self.output()}")


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 20) -> None:
    """Wait for ``condition``; an AssertionError that names ``what`` when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def run_callboard(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``callboard`` with these arguments, which has to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "callboard.web.cli", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


Serve = Callable[..., ServerProcess]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve("file.py:app", "--store", "memory://", NAME="value")`` starts a server in the test's own folder."""
    started: list[ServerProcess] = []

    def start(target: str, *options: str, **environment: str) -> ServerProcess:
        output = tmp_path / f"server-{len(started)}.log"
        binds = () if "--bind" in options else ("--bind", "127.0.0.1:0")
        arguments = [target, *binds, *options]
        started.append(ServerProcess(arguments, output, tmp_path, environment))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(30)


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One plain server for all tests of this worker; ``redis_server`` hands it out."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """A plain server that runs and is empty; its settings are as they were, so who changes one puts it back or asks ``redis_servers``."""
    if not shared_redis_server.running:
        shared_redis_server.start()
    shared_redis_server.resume()
    shared_redis_server.run("FLUSHALL")
    return shared_redis_server


@pytest.fixture
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServers]:
    """``redis_servers.server(fsync="always")``, ``.sentinels()``, ``.cluster()``: real ones of this test's own, ended with it."""
    # Not the test's own folder, whose name is as long as the test's: a unix socket's path is limited to a hundred characters.
    servers = RedisServers(tmp_path_factory.mktemp("redis"))
    try:
        yield servers
    finally:
        servers.close()
