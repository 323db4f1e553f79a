"""Handlers in worker processes of real servers: however the server was started, and however it ends."""

import shutil
import sys
from pathlib import Path

import pytest
from tests.e2e.harness import Server, Site, document, post, until, until_ended

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc"),
]

GRINDER = Path(__file__).with_name("grinder.py")
SERVE = ["-m", "callboard.web.cli", "serve", "--bind", "127.0.0.1:0"]
HYPERCORN = ["-m", "hypercorn", "-k", "trio", "--bind", "127.0.0.1:0"]

UNGUARDED = (
    GRINDER.read_text().partition("if __name__")[0] + "sys.exit(run(app, ServerOptions(bind=('127.0.0.1:0',))))\n"
)


def is_alive(pid: int) -> bool:
    """Whether that process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def started(site: Site, *command: str, **config: object) -> Server:
    shutil.copy(GRINDER, site.folder)
    (site.folder / "apps").mkdir(exist_ok=True)
    shutil.copy(GRINDER, site.folder / "apps" / "milling.py")
    (site.folder / "unguarded.py").write_text(UNGUARDED)
    server = site.run([sys.executable, *command], environment={"CALLBOARD_STORE": site.sqlite}, **config)
    await server.listening("Running on " if "hypercorn" in command else "callboard: serving on ")
    return server


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ([*SERVE, "grinder:app"], "grinder"),
        ([*SERVE, "apps/milling.py:app"], "milling"),
        ([*HYPERCORN, "grinder:app"], "grinder"),
        (["grinder.py"], "__mp_main__"),
        (["-m", "grinder"], "__mp_main__"),
    ],
    ids=["callboard serve module", "callboard serve file", "hypercorn", "script", "module as script"],
)
async def test_it_works_however_the_app_was_started(site: Site, command: list[str], module: str) -> None:
    server = await started(site, *command)
    async with server.http() as http:
        job = await until_ended(http, (await post(http, "grind"))["id"])
    assert job["status"] == "Completed", server.output()
    assert job["result"]["module"] == module
    worker = job["result"]["pid"]
    assert worker != server.pid
    assert is_alive(worker)
    server.terminate()
    assert await server.ended(seconds=10) == 0
    await until(lambda: not is_alive(worker), "the worker is gone", seconds=2)
    assert server.output().count("erving on") + server.output().count("Running on") == 1
    site.check_output()


async def test_a_script_that_starts_its_server_also_when_it_is_imported_is_told(site: Site) -> None:
    server = await started(site, "unguarded.py", max_retries=0)
    async with server.http() as http:
        job = await until_ended(http, (await post(http, "grind"))["id"])
        assert (job["status"], job["error"]["code"]) == ("Failed", "WORKER_LOST")
        assert "put the start of the server under if __name__ == '__main__'" in server.output()
        assert (await http.get("/jobs/health/live")).status_code == 200
    server.terminate()
    assert await server.ended(seconds=10) == 0


@pytest.mark.parametrize("locked", [False, True], ids=["ticking", "with the interpreter's lock"])
async def test_kill_9_of_the_server_ends_its_workers_before_the_job_is_taken_up_again(site: Site, locked: bool) -> None:
    first = await started(site, *SERVE, "grinder:app")
    async with first.http() as http:
        job_id = (await post(http, "grind", ends_at=2, locked=locked))["id"]
        await until(lambda: bool(site.journal.starts(job_id)), "the job runs")
    worker = site.journal.starts(job_id)[0].pid
    second = await started(site, *SERVE, "grinder:app")
    assert is_alive(worker)
    site.kill(first)
    await until(lambda: not is_alive(worker), "the worker is gone", seconds=0.5)
    async with second.http() as http:
        job = await until_ended(http, job_id)
    assert (job["status"], job["attempt"]) == ("Completed", 2)
    by_attempt = {
        number: [line.at for line in site.journal.lines(job=job_id) if line.attempt == number] for number in (1, 2)
    }
    assert by_attempt[1][-1] < by_attempt[2][0]


async def test_a_drain_lets_short_work_end_and_hands_long_work_back(site: Site) -> None:
    server = await started(site, *SERVE, "grinder:app", drain_seconds=3, max_processes=2)
    async with server.http() as http:
        short = (await post(http, "grind", seconds=1))["id"]
        long = (await post(http, "grind", ends_at=2))["id"]
        await until(lambda: len(site.journal.starts()) == 2, "both run")
        server.terminate()
    assert await server.ended(seconds=3 + 2) == 0
    workers = {line.pid for line in site.journal.starts()}
    await until(lambda: not any(map(is_alive, workers)), "the workers are gone", seconds=1)
    again = await started(site, *SERVE, "grinder:app")
    async with again.http() as http:
        assert (await document(http, short))["status"] == "Completed"
        job = await until_ended(http, long)
    assert (job["status"], job["attempt"], job["retryCount"]) == ("Completed", 2, 0)
    site.check_output()
