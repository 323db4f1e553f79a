"""A real browser's ``EventSource`` on ``GET <jobs>/{id}/events``: it resumes by itself after a restart, and stays away after the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.e2e.harness import Fold, Server, Site, document, until, until_ended

pytestmark = pytest.mark.e2e

REQUIRE: str = "CALLBOARD_REQUIRE_BROWSER"
BROWSER = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0"),
]
BROWSER_SECONDS = 60
"""A browser on a busy machine takes a while until it shows a page."""
QUIET_SECONDS = 4
"""How long nothing must be asked after the end; a browser that comes back does so after one second."""

APP = """
import json, os
import trio
from quart import request
from quart_trio import QuartTrio
from callboard.runtime import Config
from callboard.web import Callboard

app = QuartTrio(__name__)
board = Callboard(app, config=Config(drain_seconds=4, progress_interval_seconds=0.02))
NOTES = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def note(**what):
    os.write(NOTES, json.dumps(what).encode() + b"\\n")

@board.post("/ticking", name="Ticking")
async def ticking(job, body: int) -> int:
    ticks = 0
    while job.attempt == 1 and body or ticks < 5:
        ticks += 1
        await job.progress(None, f"tick {ticks}")
        job.log("info", f"log at {ticks}")
        await trio.sleep(0.1)
    return ticks

@app.after_request
async def asked(response):
    if request.path.endswith("/events"):
        note(asked=request.headers.get("Last-Event-ID"), status=response.status_code)
    return response

@app.post("/report")
async def report():
    note(report=await request.get_json())
    return ""

PAGE = \"\"\"<!doctype html><meta charset="utf-8"><title>live</title><script>
const state = {events: [], opened: 0, ready: -1};
const source = new EventSource("/jobs/ID/events?after=0");
source.onopen = () => { state.opened += 1; };
source.onmessage = (event) => { state.events.push([event.lastEventId, event.data]); };
setInterval(() => {
    state.ready = source.readyState;
    fetch("/report", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(state)}).catch(() => {});
}, 200);
</script>\"\"\"

@app.get("/page/<job_id>")
async def page(job_id):
    return PAGE.replace("ID", job_id)
"""


def test_a_browser_is_there() -> None:
    if not BROWSER and REQUIRE not in os.environ:
        pytest.skip("no chromium here")
    assert BROWSER, f"{REQUIRE} is set, and there is no chromium"


needs_browser = pytest.mark.skipif(not BROWSER, reason="no chromium here; another test says whether it must be")


class Notes:
    """What the app wrote down: who asked for events, and what the page has."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _lines(self) -> list[dict[str, Any]]:
        text = self._path.read_text() if self._path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def asked(self) -> list[tuple[str | None, int]]:
        """(Last-Event-ID, status) of each request for events."""
        return [(line["asked"], line["status"]) for line in self._lines() if "asked" in line]

    @property
    def page(self) -> dict[str, Any]:
        """The newest report."""
        reports = [line["report"] for line in self._lines() if "report" in line]
        return reports[-1] if reports else {"events": [], "opened": 0, "ready": -1}


@contextmanager
def browser(url: str, profile: Path) -> Iterator[None]:
    """A page that is open in a fresh browser."""
    assert BROWSER
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", url]
    with (profile.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(30)


async def started(site: Site, notes: Path, port: int = 0) -> Server:
    (site.folder / "page_app.py").write_text(APP)
    arguments = ["serve", "page_app.py:app", "--bind", f"127.0.0.1:{port}", "--store", site.sqlite]
    server = site.run([sys.executable, "-m", "callboard.web.cli", *arguments], environment={"NOTES": str(notes)})
    await server.listening()
    return server


def folded(page: dict[str, Any]) -> Fold:
    """The page's events, checked and folded; it asked for all from the first on."""
    fold = Fold()
    fold.seq = 0
    for last_id, data in page["events"]:
        fold.take(data)
        assert last_id == str(fold.seq)
    return fold


@needs_browser
async def test_after_the_end_the_browser_comes_once_and_stays_away(site: Site, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    server = await started(site, tmp_path / "notes")
    async with server.http() as http:
        job_id = (await http.post("/ticking", json=0)).json()["id"]
        with browser(f"{server.url}/page/{job_id}", tmp_path / "profile"):
            await until(lambda: notes.page["ready"] == 2, "the source is closed", seconds=BROWSER_SECONDS)
            await trio.sleep(QUIET_SECONDS)
            page = notes.page
        fold = folded(page)
        assert (fold.ends, fold.gaps) == (1, 0)
        assert fold.document == await document(http, job_id)
        assert page["ready"] == 2
        assert page["opened"] == 1
        assert notes.asked == [(None, 200), (str(fold.seq), 204)]
    site.check_output()


@needs_browser
async def test_after_a_restart_the_browser_resumes_without_gap_or_repeat(site: Site, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    server = await started(site, tmp_path / "notes")
    async with server.http() as http:
        job_id = (await http.post("/ticking", json=1)).json()["id"]
        with browser(f"{server.url}/page/{job_id}", tmp_path / "profile"):
            await until(lambda: len(notes.page["events"]) > 6, "events arrive", seconds=BROWSER_SECONDS)
            server.terminate()
            assert await server.ended() == 0
            before = len(notes.page["events"])
            again = await started(site, tmp_path / "notes", server.port)
            async with again.http() as other:
                ended = await until_ended(other, job_id)
                await until(lambda: notes.page["ready"] == 2, "the source is closed", seconds=BROWSER_SECONDS)
                assert ended["attempt"] == 2
                page = notes.page
                fold = folded(page)
                assert (fold.ends, fold.gaps) == (1, 0)
                assert fold.document == await document(other, job_id)
                assert len(page["events"]) > before
                assert notes.asked[-1] == (str(fold.seq), 204)
                assert page["opened"] >= 2
    site.check_output()
