"""The dashboard in a real browser: it shows jobs as they happen, steers them, and runs nothing that a job brings."""

import json

import pytest
from tests.e2e.browser import Page, open_page
from tests.e2e.harness import Site, post, until_ended

pytestmark = pytest.mark.e2e

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def row(job_id: str) -> str:
    """JavaScript: the text of a job's row."""
    return f"(document.querySelector('button[title={json.dumps(job_id)}]')?.closest('tr')?.innerText || '')"


async def press(page: Page, text: str, *, within: str = "document") -> None:
    """Press the first button of that text."""
    await page.until(f"[...{within}.querySelectorAll('button')].some(one => one.textContent === {json.dumps(text)})")
    await page.evaluate(
        f"[...{within}.querySelectorAll('button')].find(one => one.textContent === {json.dumps(text)}).click()"
    )


async def test_the_dashboard_shows_jobs_live_and_steers_them(site: Site) -> None:
    server = await site.start()
    async with server.http() as http:
        old = (await post(http, "quick", value=1))["id"]
        await until_ended(http, old)
        async with open_page(f"http://127.0.0.1:{server.port}/jobs/ui", site.folder) as page:
            await page.until(f"{row(old)}.includes('Completed')")
            await page.until("document.getElementById('link').dataset.state === 'live'")
            born = (await post(http, "endless"))["id"]
            await page.until(f"{row(born)}.includes('InProgress')")
            line = f"document.querySelector('button[title=\"{born}\"]').closest('tr')"
            await press(page, "Cancel", within=line)
            await page.until(f"{row(born)}.includes('Canceled')")
            assert (await http.get(f"/jobs/{born}")).json()["status"] == "Canceled"
            await press(page, "Purge", within=line)
            await page.until(f"{row(born)} === ''")
            assert (await http.get(f"/jobs/{born}")).status_code == 404
