"""``--reload``: which files count, and a real server that is replaced when one changes."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain, count, repeat
from pathlib import Path

import httpx
import pytest
import trio
from tests.conftest import run_callboard
from tests.web.parents import Family, Parents, ask, until

from callboard.web import reload
from callboard.web.reload import Stamp, folders_of, snapshot, summary, watch

pytestmark = pytest.mark.e2e

APP = """
import os, time
import trio
from quart_trio import QuartTrio
from callboard.runtime import Config
from callboard.web import Callboard
from words import WORD

time.sleep(float(os.environ.get("IMPORTING", "0")))
app = QuartTrio(__name__)
board = Callboard(app, config=Config(drain_seconds=20, poll_seconds=0.05, max_lost_leases=1))

@app.get("/word")
async def word():
    return WORD

@app.get("/die")
async def die():
    os._exit(7)

@app.get("/config")
async def config():
    return str(board.config.drain_seconds)

@board.post("/hold", name="Hold")
async def hold(job) -> None:
    await trio.sleep_forever()

@board.post("/frozen", name="Frozen")
async def frozen(job) -> None:
    open("frozen", "w").close()
    time.sleep(3600)
"""


@pytest.fixture
def parents(tmp_path: Path) -> Iterator[Parents]:
    (tmp_path / "shop.py").write_text(APP)
    write(tmp_path, "one")
    with Parents(tmp_path) as parents:
        yield parents


def write(folder: Path, word: str) -> None:
    """Change what the app says, as an editor does: a new file in the old one's place."""
    text = f"WORD = {word!r}\n" if word.isidentifier() else word
    (folder / ".words.tmp").write_text(text)
    (folder / ".words.tmp").replace(folder / "words.py")


def start(parents: Parents, environment: dict[str, str] | None = None) -> tuple[Family, str]:
    family = parents.serve("shop.py:app", "--store", "sqlite:///jobs.db", "--reload", environment=environment)
    url = family.url()
    assert ask(url, "/word") == "one"
    return family, url


def until_it_says(family: Family, url: str, word: str) -> None:
    try:
        until(lambda: ask(url, "/word") == word, f"it says {word}")
    except (AssertionError, OSError) as error:
        raise AssertionError(f"{error!r}\n{family.output()}") from error


def status(url: str, job_id: str) -> dict[str, object]:
    answer = httpx.get(f"{url}/jobs/{job_id}", timeout=60)
    document: dict[str, object] = answer.json()
    return document


def submit(url: str, path: str) -> str:
    job_id: str = httpx.post(url + path, headers={"Connection": "close"}, timeout=60).json()["id"]
    return job_id


# The server


def test_a_changed_file_is_served_and_the_change_is_told_in_one_line(parents: Parents) -> None:
    family, url = start(parents)
    (before,) = family.workers()
    write(parents.folder, "two")
    until_it_says(family, url, "two")
    (after,) = family.workers()
    assert before != after
    assert family.output().count("words.py changed: restarting") == 1
    assert family.output().count("serving on") == 1 and "serves again" in family.output()
    (parents.folder / "another.py").write_text("")
    family.until_said("another.py changed")
    family.until_said("serves again", times=2)
    (parents.folder / "another.py").unlink()
    family.until_said("another.py changed", times=2)
    family.until_said("serves again", times=3)
    (parents.folder / "notes.txt").write_text("no code")
    time.sleep(1.5)
    assert family.output().count("changed: restarting") == 3
    assert family.stop() == 0
    assert family.living() == []


def test_requests_wait_while_it_restarts(parents: Parents) -> None:
    """Not one fails, on connections of their own, though the new code needs its time to start."""
    _, url = start(parents, {"IMPORTING": "1.5"})
    heard: list[str] = []
    failed: list[OSError] = []
    stopping = threading.Event()

    def browse() -> None:
        while not stopping.is_set():
            try:
                heard.append(ask(url, "/word"))
            except OSError as error:
                failed.append(error)

    thread = threading.Thread(target=browse)
    thread.start()
    try:
        write(parents.folder, "two")
        until(lambda: "two" in heard or failed, "the new code is heard")
    finally:
        stopping.set()
        thread.join(60)
    assert failed == []
    assert set(heard) == {"one", "two"}


def test_code_that_does_not_import_shows_its_traceback_and_waits_for_the_next_change(parents: Parents) -> None:
    family, url = start(parents)
    write(parents.folder, "WORD = = 3\n")
    family.until_said("SyntaxError")
    family.until_said("waiting for a change")
    assert family.workers() == [] and family.process.poll() is None
    # A request that comes now is answered by the code that comes next.
    heard: list[str] = []
    thread = threading.Thread(target=lambda: heard.append(ask(url, "/word")))
    thread.start()
    write(parents.folder, "mended")
    thread.join(60)
    assert heard == ["mended"]
    assert family.output().count("Traceback") == 1
    assert family.stop() == 0


def test_the_first_start_may_fail_too_and_a_signal_ends_the_wait(parents: Parents) -> None:
    write(parents.folder, "WORD = = 3\n")
    family = parents.serve("shop.py:app", "--store", "memory://", "--reload")
    family.until_said("waiting for a change")
    write(parents.folder, "one")
    assert ask(family.url(), "/word") == "one"
    write(parents.folder, "WORD = = 3\n")
    family.until_said("waiting for a change", times=2)
    assert family.stop(signal.SIGINT) == 0


def test_a_bad_command_line_ends_it_at_the_first_start_only(parents: Parents) -> None:
    family = parents.serve("shop.py:nothing", "--reload")
    assert family.wait() == 2
    family, url = start(parents)
    whole = (parents.folder / "shop.py").read_text()
    (parents.folder / "shop.py").write_text(whole + "app = None\n")
    family.until_said("ended with code 2: waiting for a change")
    (parents.folder / "shop.py").write_text(whole)
    until_it_says(family, url, "one")


def test_a_server_that_dies_waits_for_a_change(parents: Parents) -> None:
    family, url = start(parents)
    with pytest.raises(OSError):
        ask(url, "/die")
    family.until_said("ended with code 7: waiting for a change")
    write(parents.folder, "two")
    until_it_says(family, url, "two")


def test_a_job_that_runs_is_handed_back_uncounted_and_goes_on_in_the_new_code(parents: Parents) -> None:
    family, url = start(parents)
    assert ask(url, "/config") == "1.0", "development is quick: the app's own drain time is 20 s"
    job_id = submit(url, "/hold")
    until(lambda: status(url, job_id)["status"] == "InProgress", "it runs")
    # If its lease were lost each time, it would fail at the second.
    for number in range(3):
        write(parents.folder, f"again{number}")
        until_it_says(family, url, f"again{number}")
        until(lambda: status(url, job_id)["status"] == "InProgress", "it runs again")
    assert family.stop() == 0


def test_a_worker_that_does_not_stop_is_killed(parents: Parents) -> None:
    family, url = start(parents)
    (before,) = family.workers()
    httpx.post(f"{url}/frozen", timeout=60)
    until((parents.folder / "frozen").exists, "the handler holds the interpreter")
    began = time.monotonic()
    write(parents.folder, "two")
    family.until_said(f"(pid {before}) did not stop within 2 s: killed")
    assert time.monotonic() - began < 20
    family.until_said("serves again")


def test_reload_goes_with_one_worker(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("raise SystemExit(9)")
    ended = run_callboard(tmp_path, "serve", "shop.py:app", "--reload", "--workers", "2")
    assert ended.returncode == 2
    assert "--reload" in ended.stderr


# The files


def test_which_files_count(tmp_path: Path) -> None:
    for name in (
        "shop.py",
        "deep/er/code.py",
        "page.html",
        ".hidden.py",
        ".git/hook.py",
        "env/pyvenv.cfg",
        "env/lib/thing.py",
        "node_modules/thing.py",
        "deep/__pycache__/code.py",
        "lib/site-packages/thing.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    assert sorted(snapshot([tmp_path])) == [str(tmp_path / "deep/er/code.py"), str(tmp_path / "shop.py")]
    assert snapshot([tmp_path / "nowhere"]) == {}


def test_which_folders_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "shop").mkdir(parents=True)
    (here / "shop" / "__init__.py").write_text("raise RuntimeError('imported')")
    (there / "store").mkdir(parents=True)
    (there / "store" / "__init__.py").write_text("raise RuntimeError('imported')")
    (there / "app.py").write_text("")
    assert folders_of("shop.main:app", here) == [here]
    assert folders_of("shop", here) == [here]
    assert folders_of("nowhere.main:app", here) == [here]
    assert folders_of("shop/__init__.py:app", here) == [here]
    assert folders_of("../there/app.py:app", here) == [here, there]
    assert folders_of("../app.py:app", here) == [tmp_path]
    assert folders_of("store.main:app", here) == [here]
    monkeypatch.syspath_prepend(str(there))
    assert folders_of("store.main:app", here) == [here, there / "store"]
    assert folders_of("pytest:app", here) == [here], "what is installed does not change"


def test_a_change_is_told_in_few_words(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.py" for name in "abcde"]
    assert summary(paths[:1], tmp_path) == "a.py changed"
    assert summary(paths, tmp_path) == "a.py, b.py, c.py and 2 more changed"
    assert summary(paths[:1], tmp_path / "other") == f"{paths[0]} changed"


def scripted(monkeypatch: pytest.MonkeyPatch, looks: Iterator[dict[str, Stamp]]) -> None:
    """What the watcher sees, one look after the other; in virtual time, which a real look would stop."""

    async def look(_: Sequence[Path]) -> tuple[dict[str, Stamp], float]:
        return next(looks), 0.001

    monkeypatch.setattr(reload, "_look", look)


async def test_a_change_is_told_when_nothing_changes_any_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    first, second = (1, 1, 1), (2, 2, 2)
    before: dict[str, Stamp] = {"old": first}
    half = [{"old": first, "a": first}, {"old": first, "a": first, "b": first}, {"old": first, "a": second, "b": first}]
    scripted(monkeypatch, chain([before, *half], repeat(half[-1])))
    told: list[Sequence[Path]] = []
    with trio.move_on_after(60):
        await watch([], told.append)
    assert told == [[Path("a"), Path("b")]]


async def test_a_change_that_is_taken_back_at_once_is_none(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    before: dict[str, Stamp] = {"old": (1, 1, 1)}
    scripted(monkeypatch, chain([before, {}], repeat(before)))
    told: list[Sequence[Path]] = []
    with trio.move_on_after(60):
        await watch([], told.append)
    assert told == []


async def test_what_changes_all_the_time_is_told_nevertheless(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    scripted(monkeypatch, ({"log.py": (number, 1, 1)} for number in count()))
    told: list[Sequence[Path]] = []
    with trio.move_on_after(30):
        await watch([], told.append)
    assert 2 < len(told) < 30


async def test_several_files_that_are_written_together_are_one_change(tmp_path: Path) -> None:
    told: list[str] = []
    changed = trio.Event()

    def tell(paths: Sequence[Path]) -> None:
        told.extend(path.name for path in paths)
        changed.set()

    for name in "abc":
        (tmp_path / f"{name}.py").write_text("")
    async with trio.open_nursery() as nursery:
        await nursery.start(watch, [tmp_path], tell)
        # The same time and another size, the same size and another time, another file of the same time and size.
        before = (tmp_path / "a.py").stat()
        (tmp_path / "a.py").write_text("longer")
        os.utime(tmp_path / "a.py", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(tmp_path / "b.py", ns=(1, 1))
        (tmp_path / "d.py").write_text("")
        with trio.fail_after(30):
            await changed.wait()
        nursery.cancel_scope.cancel()
    assert told == ["a.py", "b.py", "d.py"]
