"""What systemd is told, as a real datagram socket hears it."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.conftest import Serve, ServerProcess
from tests.web.parents import until

from callboard.web.notify import Notifier, watchdog_seconds

APP = """
import os, time
from pathlib import Path
from quart_trio import QuartTrio
from callboard.runtime import Config
from callboard.web import Callboard

told_at_import = [name for name in os.environ if name.startswith(("NOTIFY_", "WATCHDOG_"))]
app = QuartTrio(__name__)
board = Callboard(app, config=Config(drain_seconds=1))

@app.get("/environment")
async def environment():
    return [told_at_import, dict(os.environ)]

@app.post("/freeze")
async def freeze():
    Path("frozen").touch()
    while not Path("thaw").exists():
        time.sleep(0.01)
    return "thawed"
"""


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.heard: list[list[str]] = []

    def listen(self, seconds: float) -> None:
        """Take what comes within that time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._line.settimeout(left)
            try:
                self.heard.append(self._line.recv(4096).decode().split("\n"))
            except TimeoutError:
                return

    def wait_for(self, assignment: str) -> list[str]:
        """The first message that has it, from now on or before."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for message in self.heard:
                if assignment in message:
                    return message
            self.listen(0.05)
        raise AssertionError(f"{assignment} was not heard: {self.heard}")

    def close(self) -> None:
        self._line.close()


@pytest.fixture(params=["file", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "notify") if request.param == "file" else f"@callboard-test-{os.getpid()}-{time.monotonic_ns()}"
    )


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    made = Manager(address)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def start(serve: Serve, **environment: str) -> ServerProcess:
    return serve("shop:app", "--store", "memory://", **environment)


@pytest.mark.e2e
def test_ready_and_stopping_are_told(serve: Serve, folder: Path, manager: Manager, address: str) -> None:
    server = start(serve, NOTIFY_SOCKET=address)
    assert manager.wait_for("READY=1") == ["READY=1", f"STATUS=serving on {server.url}"]
    assert manager.heard[0][0] == "READY=1", "something was said before it served"
    assert httpx.get(f"{server.url}/jobs/health/ready").status_code == 200
    at_import, environment = httpx.get(f"{server.url}/environment").json()
    assert at_import == [] and "NOTIFY_SOCKET" not in environment, "children could speak for the server"
    assert server.stop() == 0
    assert manager.wait_for("STOPPING=1")[1].startswith("STATUS=SIGTERM: draining")
    assert not [message for message in manager.heard if "WATCHDOG=1" in message], "nobody asked for that"


@pytest.mark.e2e
def test_the_watchdog_is_fed_by_the_event_loop(serve: Serve, folder: Path, manager: Manager, address: str) -> None:
    server = start(serve, NOTIFY_SOCKET=address, WATCHDOG_USEC="400000")
    manager.wait_for("READY=1")
    manager.heard.clear()
    began = time.monotonic()
    while manager.heard.count(["WATCHDOG=1"]) < 5:
        manager.listen(0.1)
        assert time.monotonic() < began + 30, manager.heard
    assert time.monotonic() > began + 0.5, "five of them in 0.2 s each take 0.8"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(b"POST /freeze HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(lambda: (folder / "frozen").exists(), "the event loop is frozen")
        manager.listen(0.1)
        manager.heard.clear()
        manager.listen(0.9)
        assert manager.heard == [], "it beats although the event loop is frozen"
        (folder / "thaw").touch()
        manager.wait_for("WATCHDOG=1")


@pytest.mark.e2e
def test_a_watchdog_for_another_process_is_not_fed(serve: Serve, folder: Path, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    server = start(serve, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    manager.wait_for("READY=1")
    manager.listen(0.5)
    assert len(manager.heard) == 1
    manager.close()
    # Nobody listens any more, which is no reason to end in disorder.
    assert server.stop(signal.SIGINT) == 0
    assert server.output().count("the service manager cannot be told") == 1


def test_what_is_asked_of_the_watchdog() -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": "2500000"}) == 2.5
    assert watchdog_seconds({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}) == 2.5
    assert watchdog_seconds({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}) is None
    for nonsense in ("", "0", "-1", "soon", "٣"):
        assert watchdog_seconds({"WATCHDOG_USEC": nonsense}) is None


def test_what_cannot_be_told_is_told_once_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for address in (str(tmp_path / "nobody"), "relative", "x" * 200, "nul\0", "@" + "x" * 200):
        notifier = Notifier(address)
        caplog.clear()
        notifier.ready("a")
        notifier.reloading()
        assert len(caplog.records) == 1


def test_without_a_service_manager_nothing_happens() -> None:
    environment = {"HOME": "/"}
    Notifier.of(environment).ready("a")
    assert environment == {"HOME": "/"}
