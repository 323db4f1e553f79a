"""A real browser's ``EventSource`` on ``GET <jobs>/{id}/events``: it resumes by itself after a restart, and stays away after the end."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.e2e.browser import Page, open_page
from tests.e2e.harness import Fold, Server, Site, document, until_ended

pytestmark = pytest.mark.e2e

BROWSER_SECONDS = 60
"""A browser on a busy machine takes a while."""
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
ASKED = os.open(os.environ["ASKED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

@board.post("/ticking", name="Ticking")
async def ticking(job, goes_on: bool) -> int:
    ticks = 0
    while job.attempt == 1 and goes_on or ticks < 5:
        ticks += 1
        await job.progress(None, f"tick {ticks}")
        job.log("info", f"log at {ticks}")
        await trio.sleep(0.1)
    return ticks

@app.after_request
async def asked(response):
    if request.path.endswith("/events"):
        line = json.dumps([request.headers.get("Last-Event-ID"), response.status_code])
        os.write(ASKED, line.encode() + b"\\n")
    return response
"""

SCRIPT = """
window.told = [];
window.source = new EventSource("/jobs/ID/events?after=0");
source.onmessage = (event) => told.push([event.lastEventId, event.data]);
"""


async def started(site: Site, port: int = 0) -> Server:
    (site.folder / "page_app.py").write_text(APP)
    arguments = ["serve", "page_app.py:app", "--bind", f"127.0.0.1:{port}", "--store", site.sqlite]
    environment = {"ASKED": str(site.folder / "asked")}
    server = site.run([sys.executable, "-m", "callboard.web.cli", *arguments], environment=environment)
    await server.listening()
    return server


def asked(site: Site) -> list[list[Any]]:
    """[Last-Event-ID, status] of each request for events that any server saw."""
    return [json.loads(line) for line in (site.folder / "asked").read_text().splitlines()]


async def folded(page: Page) -> Fold:
    """The page's events, checked and folded; it asked for all from the first on."""
    fold = Fold()
    fold.seq = 0
    for last_id, data in await page.evaluate("told"):
        fold.take(data)
        assert last_id == str(fold.seq)
    return fold


async def test_after_the_end_the_browser_comes_once_and_stays_away(site: Site, tmp_path: Path) -> None:
    server = await started(site)
    async with server.http() as http, open_page(f"{server.url}/jobs/health/live", tmp_path) as page:
        job_id = (await http.post("/ticking", json=False)).json()["id"]
        await page.until("location.pathname.startsWith('/jobs/')")
        await page.evaluate(SCRIPT.replace("ID", job_id))
        await page.until("source.readyState === 2", seconds=BROWSER_SECONDS)
        await trio.sleep(QUIET_SECONDS)
        fold = await folded(page)
        assert (fold.ends, fold.gaps) == (1, 0)
        assert fold.document == await document(http, job_id)
        assert await page.evaluate("source.readyState") == 2
        assert asked(site) == [[None, 200], [str(fold.seq), 204]]
    site.check_output()


async def test_after_a_restart_the_browser_resumes_without_gap_or_repeat(site: Site, tmp_path: Path) -> None:
    server = await started(site)
    async with server.http() as http, open_page(f"{server.url}/jobs/health/live", tmp_path) as page:
        job_id = (await http.post("/ticking", json=True)).json()["id"]
        await page.until("location.pathname.startsWith('/jobs/')")
        await page.evaluate(SCRIPT.replace("ID", job_id))
        await page.until("told.length > 6", seconds=BROWSER_SECONDS)
        server.terminate()
        assert await server.ended() == 0
        before = await page.evaluate("told.length")
        again = await started(site, server.port)
        async with again.http() as other:
            ended = await until_ended(other, job_id)
            assert ended["attempt"] == 2
            await page.until("source.readyState === 2", seconds=BROWSER_SECONDS)
            fold = await folded(page)
            assert (fold.ends, fold.gaps) == (1, 0)
            assert fold.document == ended
            assert fold.frames > before
            assert asked(site)[-1] == [str(fold.seq), 204]
            assert [status for _, status in asked(site)].count(204) == 1
    site.check_output()
