"""A real Chromium for tests, driven over its own debugging protocol: open a page, ask it, wait for what it shows.

Where there is no Chromium the test is skipped, unless CALLBOARD_REQUIRE_BROWSER is set, as CI does.
"""

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

__all__ = ["Page", "open_page"]

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
    "--remote-debugging-port=0",
)
_START_SECONDS: Final = 60


class Page:
    """One open page."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; a promise is waited for."""
        answer = await self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, *, seconds: float = 30) -> Any:
        """The first true value of ``expression``."""
        deadline = time.monotonic() + seconds
        while not (value := await self.evaluate(expression)):
            assert time.monotonic() < deadline, f"the page did not come to {expression}: {await self.text()}"
            await trio.sleep(0.05)
        return value

    async def text(self) -> str:
        """What a reader sees."""
        text: str = await self.evaluate("document.body.innerText")
        return text

    async def screenshot(self) -> bytes:
        """What it looks like, as PNG."""
        return base64.b64decode((await self._call("Page.captureScreenshot", format="png"))["data"])

    async def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await self._socket.get_message())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]


@asynccontextmanager
async def open_page(url: str, folder: Path) -> AsyncIterator[Page]:
    """``url`` in a fresh Chromium with its profile in ``folder``."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CALLBOARD_REQUIRE_BROWSER"):
            pytest.fail("there is no chromium: on Debian, apt install chromium")
        pytest.skip("there is no chromium here")
    process = _launch(program, folder / "chromium")
    try:
        port = await _port(folder / "chromium" / "DevToolsActivePort", process)
        async with httpx.AsyncClient(timeout=30) as http:
            target = (await http.put(f"http://127.0.0.1:{port}/json/new?{url}")).json()
        async with open_websocket_url(target["webSocketDebuggerUrl"], max_message_size=64 * 2**20) as socket:
            yield Page(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _launch(program: str, profile: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


async def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while (port := _read_port(file)) is None:
        assert process.poll() is None, "chromium ended"
        assert time.monotonic() < deadline, "chromium did not start"
        await trio.sleep(0.05)
    return port


def _read_port(file: Path) -> int | None:
    """Chromium writes two lines, the first of which is the port."""
    lines = file.read_text().split("\n") if file.exists() else []
    return int(lines[0]) if len(lines) > 1 else None
