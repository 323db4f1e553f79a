"""Requests whose ``Host`` can be no host are refused, and no traceback tells of them."""

import logging

import pytest
import trio
from tests.web.test_livelock import UPGRADE
from tests.web.workshop import connect, serving


@pytest.mark.parametrize("request_line", ["GET /jobs", "GET /nowhere", "POST /api/orders", "GET /jobs/stream"])
async def test_a_host_that_can_be_none_is_400(request_line: str, caplog: pytest.LogCaptureFixture) -> None:
    more = UPGRADE if request_line.endswith("stream") else ""
    async with serving() as site:
        for host in ("x" * 64, "9" * 5000, "a..b", "xn--" + "a" * 70):
            async with await connect(site.url) as line:
                await line.send_all(f"{request_line} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())
                with trio.fail_after(5):
                    answer = await line.receive_some()
                assert answer.startswith(b"HTTP/1.1 400"), (host, answer)
        for host in ("x" * 63 + ":65535", "[::1]:80", "b\u00fccher.example", ""):
            answered = await site.http.get("/jobs", headers=[(b"Host", host.encode("latin1"))])
            assert answered.status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("target", ["?x", "http://[/x", "x:80", "ftp://x/y", "http://x"])
async def test_a_target_that_is_no_path_is_400(target: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as site, await connect(site.url) as line:
        await line.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with trio.fail_after(5):
            answer = await line.receive_some()
        assert answer.startswith(b"HTTP/1.1 400"), answer
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
