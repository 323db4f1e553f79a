"""Handlers of ``process=True`` as a client sees them, on each store: progress on the stream while they run, and a cancel that kills."""

from pathlib import Path

import pytest
from quart_trio import QuartTrio
from tests.runtime import process_handlers as functions
from tests.runtime.test_processes import is_alive, pids
from tests.web.conftest import OpenSite
from tests.web.test_stream import fold
from tests.web.workshop import Gates, frames

from callboard.web import Callboard

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


def make_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = QuartTrio("processes")
    board.init_app(app)
    board.post("/api/steps", name="Steps", process=True, max_retries=0)(functions.steps)
    board.post("/api/endless", name="Endless", process=True, max_retries=0)(functions.endless)
    return app


async def test_progress_flows_while_it_runs(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app)
    job = await site.submit("/api/steps", 10)
    async with site.socket(f"/jobs/{job['id']}/stream?after=0") as socket:
        received = await frames(socket)
    told = [frame["job"]["progress"]["data"]["step"] for frame in received if frame["type"] == "progress"]
    assert len(told) > 3, "it came with the end only"
    assert told == sorted(set(told)) and told[-1] <= 9
    ended = await site.ended(job["id"])
    assert fold(received) == ended
    assert (ended["status"], ended["result"]) == ("Completed", 10)


async def test_canceled_means_that_the_process_and_what_it_started_are_dead(
    open_site: OpenSite, tmp_path: Path
) -> None:
    site = await open_site(make_app=make_app)
    job = await site.submit("/api/endless", str(tmp_path / "notes"))
    all_of_them = await pids(tmp_path / "notes")
    assert [is_alive(pid) for pid in all_of_them] == [True, True, True]
    answer = await site.http.post(f"/jobs/{job['id']}/cancel", headers={"Prefer": "wait=5"})
    assert [is_alive(pid) for pid in all_of_them] == [False, False, False]
    assert (answer.status_code, answer.json()["status"]) == (200, "Canceled")
