"""nginx in front, configured as docs/operations.md says, but for TLS and where both listen. Where nginx is installed."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import httpx
import pytest
import trio
from tests.e2e.harness import APP, Document, Fold, Server, Site, post, until, until_ended
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()

AROUND = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxied;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {site}
}}
"""


def configured(upstream: int, port: int, *, location: str = "location / {", passed: str = "http://callboard;") -> str:
    """The document's configuration for these ports."""
    text: str
    (text,) = re.findall(r"^```nginx\n(.*?)^```$", PAGE, re.M | re.S)
    changes = [
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port};"),
        ("ssl_certificate     /etc/ssl/shop.crt;", ""),
        ("ssl_certificate_key /etc/ssl/shop.key;", ""),
        ("location / {", location),
        ("proxy_pass http://callboard;", f"proxy_pass {passed}"),
    ]
    for here, there in changes:
        assert text.count(here) == 1, f"the document has lost {here}"
        text = text.replace(here, there)
    return text


@contextmanager
def running(folder: Path, site: str) -> Iterator[None]:
    folder.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, user=user, site=site))
    assert NGINX is not None
    nginx = subprocess.Popen([NGINX, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")])
    try:
        yield
    finally:
        nginx.terminate()
        nginx.wait(30)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until_open(port: int) -> None:
    def is_open() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    await until(is_open, "nginx listens")


@asynccontextmanager
async def in_front_of(server: Server, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    with running(folder, configured(server.port, port)):
        await until_open(port)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            yield http


@asynccontextmanager
async def socket_at(port: int, path: str) -> AsyncIterator[WebSocketConnection]:
    # The stream is ours because trio-websocket does not close its own when the server has closed first.
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
        yield await wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", path)
        nursery.cancel_scope.cancel()


async def cancel_from_pages(http: httpx.AsyncClient, job: Document) -> None:
    """Of another site, which may not, and of the app's own; the job runs until then."""
    held = await http.get(job["links"]["self"], params={"wait": "0.2"})
    assert held.json()["status"] == "InProgress"
    own, foreign = str(http.base_url).rstrip("/"), "https://elsewhere.example"
    assert (await http.post(job["links"]["cancel"], headers={"Origin": foreign})).status_code == 403
    assert (await http.post(job["links"]["cancel"], headers={"Origin": own})).status_code in (200, 202)


async def test_polls_and_streams_go_through_as_they_happen(site: Site, tmp_path: Path) -> None:
    server = await site.start()
    async with in_front_of(server, tmp_path / "nginx") as http:
        job = await post(http, "quick", seconds=0.5, value=7)
        fold = Fold()
        async with socket_at(http.base_url.port or 0, job["links"]["stream"]) as stream:
            await fold.follow(stream)
        assert fold.document == (await until_ended(http, job["id"]))

        endless = await post(http, "endless")
        told = []
        with trio.fail_after(20):
            async with http.stream("GET", endless["links"]["events"]) as answer:
                async for line in answer.aiter_lines():
                    told.append(line)
                    # It is told before there is more to tell.
                    if '"type":"snapshot"' in line:
                        await cancel_from_pages(http, endless)
        assert '"status":"Canceled"' in "".join(told)

        large = await http.post("/run/quick", json={"value": "x" * 2**21})
        assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")
        lines = f'{{"value":"{"x" * 1_000_000}"}}\n' * 8
        bulk = await http.post("/run/quick", content=lines, headers={"Content-Type": "application/x-ndjson"})
        assert bulk.status_code == 202
        assert (await http.get("/jobs/metrics")).status_code == 403


async def test_a_drain_is_told_through_it(site: Site, tmp_path: Path) -> None:
    server = await site.start(drain_seconds=3)
    async with in_front_of(server, tmp_path / "nginx") as http:
        job = await post(http, "endless", cleanup=0.2)
        async with socket_at(http.base_url.port or 0, job["links"]["stream"]) as stream:
            await stream.get_message()
            server.terminate()
            with pytest.raises(ConnectionClosed) as closed, trio.fail_after(20):
                while True:
                    await stream.get_message()
            assert closed.value.reason is not None and closed.value.reason.code == 1001
        assert (await http.get("/jobs/health/ready")).status_code in (502, 503)
        assert await server.ended() == 0
        assert (await http.get("/jobs/health/ready")).status_code == 502


@pytest.mark.parametrize("passed", ["http://callboard;", "http://callboard/;"], ids=["passed on", "taken away"])
async def test_a_path_of_its_own(site: Site, tmp_path: Path, passed: str) -> None:
    arguments = [f"{APP}:app", "--bind", "127.0.0.1:0", "--store", site.sqlite, "--root-path", "/shop"]
    server = site.run([sys.executable, "-m", "callboard.web.cli", "serve", *arguments])
    await server.listening()
    port = free_port()
    with running(tmp_path / "nginx", configured(server.port, port, location="location /shop/ {", passed=passed)):
        await until_open(port)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            answer = await http.post("/shop/run/quick", json={"value": 1})
            assert answer.status_code == 202
            assert answer.headers["location"].startswith("/shop/jobs/")
            job = answer.json()
            held = await http.get(job["links"]["self"], params={"wait": "20"})
            assert held.json()["status"] == "Completed"
            fold = Fold()
            async with socket_at(http.base_url.port or 0, job["links"]["stream"]) as stream:
                await fold.follow(stream)
            assert fold.ended
