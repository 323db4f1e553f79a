"""The dashboard in a real browser: it shows jobs as they happen, steers them, and runs nothing that a job brings."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.e2e.browser import Page, open_page
from tests.e2e.harness import Server, Site, post, until_ended
from tests.e2e.ui_app import EVIL

pytestmark = pytest.mark.e2e


def line(job_id: str) -> str:
    """JavaScript: a job's row, or undefined."""
    return f"document.querySelector('button[title={json.dumps(job_id)}]')?.closest('tr')"


def row(job_id: str) -> str:
    """JavaScript: the text of a job's row."""
    return f"({line(job_id)}?.innerText || '')"


def shown(part: str) -> str:
    """JavaScript: the text of one part of the detail."""
    return f"document.getElementById('detail-{part}').innerText"


@asynccontextmanager
async def dashboard(server: Server, folder: Path) -> AsyncIterator[Page]:
    async with open_page(f"http://127.0.0.1:{server.port}/jobs/ui", folder) as page:
        await page.until("document.getElementById('link')?.dataset.state === 'live'")
        yield page


async def hostile(site: Site, **environment: str) -> Server:
    """A server of ``ui_app``."""
    app = Path(__file__).with_name("ui_app.py")
    command = [sys.executable, "-m", "callboard.web.cli", "serve", f"{app}:app", "--bind", "127.0.0.1:0"]
    server = site.run([*command, "--store", site.sqlite], environment=environment)
    await server.listening()
    return server


async def press(page: Page, text: str, *, within: str = "document") -> None:
    """Press the first button of that text."""
    await page.until(f"[...{within}.querySelectorAll('button')].some(one => one.textContent === {json.dumps(text)})")
    await page.evaluate(
        f"[...{within}.querySelectorAll('button')].find(one => one.textContent === {json.dumps(text)}).click()"
    )


async def choose(page: Page, status: str) -> None:
    """Filter by a status."""
    field = "document.getElementById('filter').elements.status"
    await page.evaluate(f"{field}.value = {json.dumps(status)}; {field}.dispatchEvent(new Event('change'))")


async def test_the_dashboard_shows_jobs_live_and_steers_them(site: Site) -> None:
    server = await site.start()
    async with server.http() as http:
        old = (await post(http, "quick", value=1))["id"]
        await until_ended(http, old)
        async with dashboard(server, site.folder) as page:
            await page.until(f"{row(old)}.includes('Completed')")
            born = (await post(http, "endless"))["id"]
            await page.until(f"{row(born)}.includes('InProgress')")
            await press(page, "Cancel", within=line(born).replace("?", ""))
            await page.until(f"{row(born)}.includes('Canceled')")
            assert (await http.get(f"/jobs/{born}")).json()["status"] == "Canceled"
            await press(page, "Retry", within=line(born).replace("?", ""))
            await page.until(f"{row(born)}.includes('InProgress')")
            assert (await http.get(f"/jobs/{born}")).json()["attempt"] == 2
            await press(page, "Cancel", within=line(born).replace("?", ""))
            await press(page, "Purge", within=line(born).replace("?", ""))
            await page.until(f"{row(born)} === ''")
            assert (await http.get(f"/jobs/{born}")).status_code == 404
            assert (await http.delete(f"/jobs/{old}?purge=true")).status_code == 204
            await press(page, "Purge", within=line(old).replace("?", ""))
            await page.until(f"{row(old)} === ''")
            assert await page.evaluate("document.getElementById('notice').textContent") == "There is no such job."


async def test_progress_moves_under_a_button_that_stays_and_the_detail_has_the_log_from_its_beginning(
    site: Site,
) -> None:
    server = await site.start()
    async with server.http() as http, dashboard(server, site.folder) as page:
        job_id = (await post(http, "ticking", ticks=40, interval=0.1))["id"]
        await page.until(f"{row(job_id)}.includes('tick ')")
        await page.evaluate(f"window.kept = [...{line(job_id)}.querySelectorAll('button')].at(-1); kept.focus()")
        first = await page.evaluate(f"{line(job_id)}.querySelector('progress').value")
        await page.until(f"{line(job_id)}.querySelector('progress').value >= {first + 10}")
        assert (
            await page.evaluate("kept.isConnected && document.activeElement === kept && kept.textContent") == "Cancel"
        )
        await page.until(f"{row(job_id)}.includes('tick 8')")
        await page.evaluate(f"document.querySelector('button[title=\"{job_id}\"]').click()")
        await page.until(f"{shown('log')}.includes('INFO  log at 2')")
        await page.until(f"{shown('log')}.includes('log at 37')")
        await page.until(f'{shown("document")}.includes(\'"status": "Completed"\')')
        await page.until(f"{shown('attempts')}.includes('Attempt 1: Completed')")
        assert (await page.evaluate(shown("log"))).count("log at") == 8


async def test_the_detail_says_what_was_raised_in_each_attempt(site: Site) -> None:
    server = await site.start()
    async with server.http() as http, dashboard(server, site.folder) as page:
        job_id = (await post(http, "ticking"))["id"]  # with no body that it understands: KeyError
        await page.until(f"{row(job_id)} !== ''")
        await page.evaluate(f"document.querySelector('button[title=\"{job_id}\"]').click()")
        await page.until(f"{shown('attempts')}.includes(\"[raised] KeyError: 'ticks'\")")


async def test_a_queue_is_paused_and_resumed(site: Site) -> None:
    server = await site.start()
    async with server.http() as http, dashboard(server, site.folder) as page:
        await press(page, "Pause")
        await page.until("document.querySelector('.queue.paused')?.innerText.includes('Resume')")
        assert (await http.get("/jobs/queues")).json()["queues"][0]["paused"] is True
        job_id = (await post(http, "quick", value=1))["id"]
        await page.until(f"{row(job_id)}.includes('Queued')")
        await page.until("document.querySelector('.queue').innerText.includes('1 queued')")
        await press(page, "Resume")
        await page.until(f"{row(job_id)}.includes('Completed')")
        await page.until("!document.querySelector('.queue.paused')")


async def test_a_filter_by_status_lets_go_what_leaves_it_and_asks_for_no_job_again(site: Site) -> None:
    server = await site.start()
    async with server.http() as http, dashboard(server, site.folder) as page:
        done = (await post(http, "quick", value=1))["id"]
        running = (await post(http, "endless"))["id"]
        await page.until(f"{row(done)}.includes('Completed') && {row(running)}.includes('InProgress')")
        await choose(page, "Completed")
        await page.until(f"{row(running)} === '' && {row(done)} !== ''")
        ticking = (await post(http, "ticking", ticks=20, interval=0.05))["id"]
        await page.until(f"{row(ticking)}.includes('Completed')")
        await choose(page, "InProgress")
        await page.until(f"{row(running)} !== '' && {row(done)} === ''")
        assert (await http.post(f"/jobs/{running}/cancel")).is_success
        await page.until(f"{row(running)} === ''")
        await page.until("!document.getElementById('empty').hidden")
        asked = await page.evaluate("performance.getEntriesByType('resource').map(one => new URL(one.name).pathname)")
        assert not [path for path in asked if path.removeprefix("/jobs/") in (done, running, ticking)]


async def test_hostile_texts_are_shown_as_text_and_answers_of_the_apps_own_form_are_not_misread(site: Site) -> None:
    server = await hostile(site)
    async with server.http() as http, dashboard(server, site.folder) as page:
        job_id = (await http.post("/evil")).json()["id"]
        assert (await http.get(f"/jobs/{job_id}")).json()["id"] == 7
        await page.until(f"{row(job_id)}.includes({json.dumps(f'progress {EVIL}')})")
        assert f"Evil {EVIL}" in await page.evaluate(row(job_id))
        await page.until(f"document.getElementById('queues').innerText.includes({json.dumps(f'queue {EVIL}')})")
        await page.evaluate(f"document.querySelector('button[title=\"{job_id}\"]').click()")
        await page.until(f"{shown('log')}.includes({json.dumps(f'log {EVIL}')})")
        await press(page, "Cancel", within=line(job_id).replace("?", ""))
        await page.until(f"{row(job_id)}.includes('Canceled')")
        await press(page, "Retry", within=line(job_id).replace("?", ""))
        await page.until(f"{row(job_id)}.includes('Failed') && {row(job_id)}.includes('CODE')")
        await page.until(f"{shown('attempts')}.includes({json.dumps(f'failure {EVIL}')})")
        await press(page, "Pause")
        await page.until("document.querySelector('.queue.paused') !== null")
        assert await page.evaluate("[...document.querySelectorAll('#jobs tr')].length") == 1
        assert await page.evaluate("document.querySelectorAll('img, main b:not(.queue > b)').length") == 0
        assert await page.evaluate("document.title") == "callboard"
        assert await page.evaluate("document.getElementById('notice').textContent") == ""
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"


async def test_who_may_not_stream_sees_the_list_all_the_same(site: Site) -> None:
    server = await hostile(site, UI_APP_REFUSES="stream")
    async with server.http() as http:
        job_id = (await http.post("/evil")).json()["id"]
        async with open_page(f"http://127.0.0.1:{server.port}/jobs/ui", site.folder) as page:
            await page.until(f"{row(job_id)}.includes('InProgress')")
            assert await page.evaluate("document.getElementById('link').dataset.state") == "lost"
