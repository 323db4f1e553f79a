"""TLS: https and wss with real certificates, reread at SIGHUP; ``certificates/make.sh`` says how they were made."""

import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import Serve, ServerProcess, run_callboard
from trio_websocket import open_websocket_url

pytestmark = pytest.mark.e2e

CERTIFICATES = Path(__file__).parent / "certificates"

APP = """
import os
from quart_trio import QuartTrio
from quart import request
from callboard.web import Callboard

app = QuartTrio(__name__)
board = Callboard(app)

@app.get("/")
async def hello():
    return [request.scheme, os.environ.get("CALLBOARD_KEYFILE_PASSWORD")]

@board.post("/job", name="Job")
async def job(job) -> str:
    return "done"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    for name in ("server.pem", "server.key"):
        shutil.copy(CERTIFICATES / name, tmp_path / name)
    return tmp_path


Start = Callable[..., ServerProcess]


@pytest.fixture
def start(serve: Serve, folder: Path) -> Start:
    def started(*options: str, keyfile: str = "server.key", **environment: str) -> ServerProcess:
        tls = ("--certfile", "server.pem", "--keyfile", keyfile)
        return serve("shop:app", "--store", "memory://", *tls, *options, **environment)

    return started


def trusting(*, client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "authority.pem"))
    if client:
        context.load_cert_chain(CERTIFICATES / "client.pem", CERTIFICATES / "client.key")
    return context


def shown(server: ServerProcess) -> str:
    """Who the server says it is, to a new connection."""
    with connected(server) as line:
        certificate: Any = line.getpeercert()
        return str(certificate["subject"][0][0][1])


def connected(server: ServerProcess, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    url = httpx.URL(server.url)
    line = socket.create_connection((url.host, url.port or 443), timeout=10)
    return (context or trusting()).wrap_socket(line, server_hostname="localhost")


async def test_https_and_wss(start: Start) -> None:
    server = start()
    assert server.url.startswith("https://127.0.0.1:")
    async with httpx.AsyncClient(base_url=server.url, verify=trusting()) as http:
        assert (await http.get("/")).json() == ["https", None]
        job = (await http.post("/job", headers={"Prefer": "wait=10"})).json()
        assert job["result"] == "done"
        where = server.url.replace("https", "wss") + f"/jobs/{job['id']}/stream"
        async with open_websocket_url(where, ssl_context=trusting()) as connection:
            assert '"Completed"' in await connection.get_message()
    assert server.stop() == 0
    assert "Traceback" not in server.output()


def test_which_protocols_are_spoken(start: Start) -> None:
    server = start()
    context = trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with connected(server, context) as line:
        assert line.selected_alpn_protocol() == "http/1.1"
        assert line.version() == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connected(server, context) as line:
        assert line.version() == "TLSv1.2"
    old = trusting()
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    # Deprecated, which is what is shown here.
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError), connected(server, old):
        pass


def test_what_is_no_tls_costs_itself_only(start: Start) -> None:
    server = start()
    url = httpx.URL(server.url)
    for nonsense in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 500, b"", b"\0" * 70000):
        with socket.create_connection((url.host, url.port or 443), timeout=10) as line:
            line.sendall(nonsense)
            line.shutdown(socket.SHUT_WR)
            try:
                while line.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    with pytest.raises(ssl.SSLError):
        connected(server, ssl.create_default_context())
    assert shown(server) == "server"
    assert server.stop() == 0
    assert "Traceback" not in server.output() and "rror" not in server.output(), server.output()


def test_hangup_rereads_the_certificate(start: Start, folder: Path) -> None:
    server = start()
    with connected(server) as kept:
        assert shown(server) == "server"
        shutil.copy(CERTIFICATES / "renewed.pem", folder / "server.pem")
        assert shown(server) == "server", "it was reread unasked"

        # Half of a new pair: what was, stays.
        server.process.send_signal(signal.SIGHUP)
        wait_for(server, "the old certificate stays")
        assert "do not belong together" in server.output()
        assert shown(server) == "server"

        shutil.copy(CERTIFICATES / "renewed.key", folder / "server.key")
        server.process.send_signal(signal.SIGHUP)
        wait_for(server, "new connections get the certificate as it is now")
        assert shown(server) == "renewed"

        (folder / "server.pem").unlink()
        server.process.send_signal(signal.SIGHUP)
        wait_for(server, "the certificate 'server.pem' cannot be read: No such file or directory")
        assert shown(server) == "renewed"

        kept.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(100).startswith(b"HTTP/1.1 200")
    assert server.stop() == 0
    assert "Traceback" not in server.output()


def test_the_service_manager_hears_of_a_reload(start: Start, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(20)
        server = start(NOTIFY_SOCKET=str(folder / "notify"))
        assert manager.recv(1000).startswith(b"READY=1")
        before = time.monotonic_ns() // 1000
        server.process.send_signal(signal.SIGHUP)
        first, second = manager.recv(1000).decode().split("\n")
        assert first == "RELOADING=1"
        assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert manager.recv(1000).startswith(b"READY=1")


def test_an_encrypted_key(start: Start, folder: Path) -> None:
    shutil.copy(CERTIFICATES / "locked.key", folder)
    server = start(keyfile="locked.key", CALLBOARD_KEYFILE_PASSWORD="sesame")
    assert shown(server) == "server"
    assert httpx.get(server.url, verify=trusting()).json() == ["https", None], "the app can read the password"
    server.process.send_signal(signal.SIGHUP)
    wait_for(server, "new connections get the certificate as it is now")
    assert "sesame" not in Path(f"/proc/{server.process.pid}/cmdline").read_text()


def test_clients_need_a_certificate_when_authorities_are_named(start: Start, folder: Path) -> None:
    server = start("--ca-certs", str(CERTIFICATES / "authority.pem"))
    assert httpx.get(server.url, verify=trusting(client=True)).status_code == 200
    with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
        httpx.get(server.url, verify=trusting())
    assert server.stop() == 0
    assert "Traceback" not in server.output()


WRONG = {
    ("server.pem", "nothing.key"): "the key 'nothing.key' cannot be read: No such file or directory",
    ("nothing.pem", "server.key"): "the certificate 'nothing.pem' cannot be read: No such file or directory",
    ("server.pem", "renewed.key"): "cannot be used: they do not belong together",
    ("server.pem", "locked.key"): "CALLBOARD_KEYFILE_PASSWORD",
    ("server.pem", "server.pem"): "cannot be used",
    ("shop.py", "server.key"): "cannot be used",
    ("server.pem", "server.key", "--ca-certs", "shop.py"): "the certificates in 'shop.py' cannot be used",
    ("server.pem", "server.key", "--ca-certs", "nothing.pem"): "the certificates in 'nothing.pem' cannot be used",
}


@pytest.mark.parametrize("files", WRONG, ids=" ".join)
def test_a_certificate_that_cannot_be_used(folder: Path, files: tuple[str, ...]) -> None:
    for name in ("renewed.key", "locked.key"):
        shutil.copy(CERTIFICATES / name, folder)
    certfile, keyfile, *options = files
    environment = {"CALLBOARD_KEYFILE_PASSWORD": "wrong"} if keyfile == "locked.key" else {}
    tls = ("--certfile", certfile, "--keyfile", keyfile, *options)
    ended = run_callboard(folder, "serve", "shop:app", "--bind", "127.0.0.1:0", *tls, **environment)
    assert ended.returncode == 1
    assert WRONG[files] in ended.stderr
    assert "Traceback" not in ended.stderr and "serving on" not in ended.stdout
    assert not list(folder.glob("*.db*")), "the store was opened for nothing"


def wait_for(server: ServerProcess, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in server.output():
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.02)
