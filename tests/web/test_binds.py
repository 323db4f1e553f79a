"""Where a server listens: several addresses, unix sockets and their files, sockets that were handed over."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.conftest import Serve, run_callboard

from callboard.web.binds import Listening, inherited_binds, listening, parse_bind

APP = """
import os
from quart_trio import QuartTrio
from callboard.web import Callboard

app = QuartTrio(__name__)
board = Callboard(app)

@app.get("/environment")
async def environment():
    return dict(os.environ)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def serve_once(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_callboard(folder, "serve", "shop:app", "--store", "memory://", *options)


def answer_of(address: str) -> int:
    """The status of ``/environment`` at an address as the server prints it."""
    if address.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=address.removeprefix("unix:"))
        with httpx.Client(transport=transport, base_url="http://shop") as http:
            return http.get("/environment").status_code
    return httpx.get(f"{address}/environment").status_code


PARSED = {
    "127.0.0.1:0": ("127.0.0.1", 0),
    "localhost:65535": ("localhost", 65535),
    "[::1]:80": ("::1", 80),
    "unix:shop.sock": ("shop.sock", -1),
    "unix:/run/a:b": ("/run/a:b", -1),
    "fd://3": ("", 3),
}


@pytest.mark.parametrize("bind", PARSED)
def test_what_a_bind_may_be(bind: str) -> None:
    assert parse_bind(bind) == PARSED[bind]


@pytest.mark.parametrize(
    "bind",
    [
        "",
        "8000",
        ":80",
        "a:",
        "a:-1",
        "a:65536",
        "a:٣",
        "::1:80",
        "[::1]",
        "[a]:80",
        "unix:",
        "fd://",
        "fd://-1",
        "fd://٣",
    ],
)
def test_what_it_may_not_be(bind: str) -> None:
    with pytest.raises(ValueError, match=r"an example is|stands in brackets"):
        parse_bind(bind)


@pytest.mark.parametrize(
    ("family", "name", "local"),
    [
        (socket.AF_INET, ("127.0.0.1", 1), True),
        (socket.AF_INET, ("127.8.8.8", 1), True),
        (socket.AF_INET, ("0.0.0.0", 1), False),
        (socket.AF_INET, ("10.0.0.1", 1), False),
        (socket.AF_INET6, ("::1", 1, 0, 0), True),
        (socket.AF_INET6, ("::", 1, 0, 0), False),
        (socket.AF_INET6, ("fe80::1%eth0", 1, 0, 2), False),
        (socket.AF_UNIX, "/run/x", True),
    ],
)
def test_what_only_this_machine_can_reach(family: int, name: object, local: bool) -> None:
    with socket.socket() as any_socket:
        assert Listening(any_socket, family, name).is_local is local


@pytest.mark.e2e
def test_several_addresses_are_served_and_told(serve: Serve, folder: Path) -> None:
    server = serve(
        *(
            "shop:app",
            "--store",
            "memory://",
            "--bind",
            "127.0.0.1:0",
            "--bind",
            "127.0.0.1:0",
            "--bind",
            "unix:shop.sock",
        )
    )
    told = [line.split()[-1] for line in server.output().splitlines() if "serving on" in line]
    assert len(told) == len(set(told)) == 3
    assert [answer_of(address if address[:4] == "http" else f"unix:{folder}/shop.sock") for address in told] == [
        200
    ] * 3
    file = folder / "shop.sock"
    assert stat.S_IMODE(file.stat().st_mode) == 0o660
    assert server.stop() == 0
    assert not file.exists()
    assert "Traceback" not in server.output()


@pytest.mark.e2e
@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(serve: Serve, folder: Path) -> None:
    server = serve("shop:app", "--store", "memory://", "--bind", "[::1]:0")
    assert server.url.startswith("http://[::1]:")
    assert answer_of(server.url) == 200


@pytest.mark.e2e
def test_an_address_that_is_taken_leaves_the_others_and_their_files(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = serve_once(folder, "--bind", "unix:shop.sock", "--bind", f"127.0.0.1:{port}")
    assert ended.returncode == 1
    assert f"cannot serve: cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr and "serving on" not in ended.stdout
    assert not (folder / "shop.sock").exists()


@pytest.mark.e2e
def test_the_file_of_a_dead_server_is_replaced_and_that_of_a_living_one_is_not(serve: Serve, folder: Path) -> None:
    first = serve("shop:app", "--store", "memory://", "--bind", "unix:shop.sock")
    refused = serve_once(folder, "--bind", "unix:shop.sock")
    assert refused.returncode == 1
    assert "cannot listen on unix:shop.sock: another server listens there" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert answer_of(f"unix:{folder}/shop.sock") == 200
    first.process.kill()
    first.process.wait()
    assert (folder / "shop.sock").exists()
    second = serve("shop:app", "--store", "memory://", "--bind", "unix:shop.sock")
    assert answer_of(f"unix:{folder}/shop.sock") == 200
    assert second.stop() == 0
    assert not (folder / "shop.sock").exists()


@pytest.mark.e2e
def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    (folder / "notes").write_text("dear diary")
    ended = serve_once(folder, "--bind", "unix:notes")
    assert ended.returncode == 1
    assert "there is a file of that name, and it is no socket" in ended.stderr
    assert (folder / "notes").read_text() == "dear diary"


def test_the_file_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    with socket.socket(socket.AF_UNIX) as successor:
        with listening([f"unix:{path}"]) as (one,):
            path.unlink()
            successor.bind(str(path))
            one.socket.close()
        assert path.exists()


def test_the_mode_of_the_file_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    for mask in (0, 0o077):
        before = os.umask(mask)
        try:
            with listening([f"unix:{path}"]) as (one,):
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
                one.socket.close()
            assert os.umask(mask) == mask, "the umask was not put back"
        finally:
            os.umask(before)


@pytest.mark.e2e
def test_inherited_sockets(folder: Path, serve: Serve) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        wrong.set_inheritable(True)
        command = [sys.executable, "-m", "callboard.web.cli", "serve", "shop:app", "--store", "memory://", "--bind"]
        for bind, complaint in ((f"fd://{wrong.fileno()}", "no stream socket"), ("fd://987", "Bad file descriptor")):
            ended = subprocess.run(
                [*command, bind], cwd=folder, capture_output=True, text=True, timeout=30, pass_fds=[wrong.fileno()]
            )
            assert ended.returncode == 1
            assert f"cannot listen on {bind}: " in ended.stderr and complaint in ended.stderr
            assert "Traceback" not in ended.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("is_meant", [True, False])
def test_sockets_from_systemd(folder: Path, is_meant: bool) -> None:
    """As systemd hands them over: from number 3, with the process's own id in the environment."""
    program = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
command = "-m callboard.web.cli serve shop:app --store memory://".split()
os.execv(sys.executable, [sys.executable, *command, *sys.argv[2:]])
"""
    options = [] if is_meant else ["--bind", "127.0.0.1:0"]
    with socket.create_server(("127.0.0.1", 0)) as given, (folder / "out").open("w") as output:
        port, number = given.getsockname()[1], given.fileno()
        command = [sys.executable, "-c", program, str(number), *options]
        process = subprocess.Popen(command, cwd=folder, pass_fds=[number], stdout=output, stderr=output)
    try:
        while "serving on" not in (told := (folder / "out").read_text()):
            assert process.poll() is None, told
        address = told.split("serving on ")[1].split()[0]
        assert (address == f"http://127.0.0.1:{port}") is is_meant
        assert not [name for name in httpx.get(f"{address}/environment").json() if name.startswith("LISTEN_")]
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_sockets_that_systemd_meant_for_another_process() -> None:
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "2"}
    assert inherited_binds(environment) == ()
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert inherited_binds(environment) == ("fd://3", "fd://4")
    assert environment == {"HOME": "/"}
    assert inherited_binds({}) == inherited_binds({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == ()
