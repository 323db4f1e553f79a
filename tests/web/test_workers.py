"""``--workers``: real parents with real workers, under signals, deaths and load."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.web.parents import SECONDS, Family, Parents, ask, until

from callboard.web.workers import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SETTLED_SECONDS, next_pause

pytestmark = pytest.mark.e2e

APP = """
import json, os, stat, socket, time
from pathlib import Path
import trio
from quart import request
from quart_trio import QuartTrio
from callboard.runtime import Config
from callboard.web import Callboard

if Path("broken").exists():
    raise RuntimeError("a bad app")

app = QuartTrio(__name__)
board = Callboard(app, config=Config(drain_seconds=float(os.environ.get("DRAIN", "20")), poll_seconds=0.05))

@app.get("/pid")
async def pid():
    await trio.sleep(float(request.args.get("seconds", 0)))
    return str(os.getpid())

@app.get("/process")
async def process():
    sockets = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode) or not os.get_inheritable(int(name)):
                continue
        except OSError:
            continue
        with socket.socket(fileno=os.dup(int(name))) as one:
            sockets.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return dict(group=os.getpgrp(), pid=os.getpid(), environment=dict(os.environ), inheritable=sockets,
                stdin=os.readlink("/proc/self/fd/0"))

@app.get("/die")
async def die():
    os._exit(7)

@app.get("/ready/<path:name>")
async def wait_for(name):
    while not Path(name).exists():
        await trio.sleep(0.01)
    return "there"

def note(what, job):
    with open("notes", "a") as file:
        file.write(f"{what} {job.id} {os.getpid()}\\n")

@board.post("/quick", name="Quick")
async def quick(job) -> dict:
    note("quick", job)
    await trio.sleep(0.05)
    return {"pid": os.getpid()}

@board.post("/work", name="Work")
async def work(job) -> dict:
    note("began", job)
    await trio.sleep(3)
    note("ended", job)
    return {}

@board.post("/stuck", name="Stuck")
async def stuck(job) -> None:
    note("stuck", job)
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
"""

FAKE = """
import os, signal, socket, sys, time
from pathlib import Path
import trio
from callboard.web.binds import open_listening
from callboard.web.notify import Notifier
from callboard.web.workers import Parent

worker = '''
import os, signal, socket, sys, time
from pathlib import Path
line = socket.socket(fileno=int(os.environ["CALLBOARD_PARENT_FD"]))
def note(what):
    with open("notes", "a") as file:
        file.write(f"{what} {os.getpid()}\\\\n")
def end(*_):
    time.sleep(float(os.environ.get("LASTING", "0")))
    sys.exit(int(os.environ.get("LAST", "0")))
signal.signal(signal.SIGTERM, end)
note("began")
starts = Path("notes").read_text().count("began")
if starts > 2 and "LATER" in os.environ:
    sys.exit(int(os.environ["LATER"]))
time.sleep(float(os.environ.get("STARTING", "0")))
signal.signal(signal.SIGHUP, lambda *_: note("hangup"))
line.sendall(b"rea")
time.sleep(0.05)
line.sendall(b"dy\\\\nbeat\\\\n")
note("ready")
while True:
    time.sleep(0.05)
'''
import logging
logging.basicConfig(level=logging.INFO)
one = open_listening("127.0.0.1:0")
lines = ["serving on " + one.url("http")]
parent = Parent([sys.executable, "-c", worker], [one.socket], lines, Notifier(), workers=2, rereads="PLAIN" not in os.environ)
sys.exit(trio.run(parent.run))
"""
"""A parent whose workers are no servers: what they do is up to the test."""


@pytest.fixture
def parents(tmp_path: Path) -> Iterator[Parents]:
    (tmp_path / "shop.py").write_text(APP)
    with Parents(tmp_path) as parents:
        yield parents


@pytest.fixture
def pair(parents: Parents) -> Family:
    """Two workers on one SQLite file."""
    return parents.serve("shop.py:app", "--store", "sqlite:///jobs.db", "--workers", "2")


def notes(parents: Parents, what: str) -> list[list[str]]:
    """What workers noted: the words after ``what``."""
    try:
        lines = (parents.folder / "notes").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [words[1:] for words in map(str.split, lines) if words[0] == what]


def submit(url: str, path: str) -> str:
    answer = httpx.post(url + path, headers={"Connection": "close"})
    assert answer.status_code == 202
    job_id: str = answer.json()["id"]
    return job_id


def both(url: str) -> dict[int, str]:
    """One answer of each of the two workers, by pid."""
    found: dict[int, str] = {}

    def is_found() -> bool:
        body = ask(url, "/process")
        found[json.loads(body)["pid"]] = body
        return len(found) == 2

    until(is_found, "both answer")
    return found


class Load:
    """Requests, each on a connection of its own, from several threads, until ``stop``."""

    def __init__(self, url: str, path: str = "/pid", clients: int = 4) -> None:
        self.answered: Counter[int] = Counter()
        self.failed: list[str] = []
        self._url, self._path = url, path
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.answered[int(ask(self._url, self._path))] += 1
            except OSError as error:
                self.failed.append(str(error) or repr(error))


# Serving


def test_both_serve_on_one_port_that_is_told_once(pair: Family) -> None:
    url = pair.url()
    load = Load(url)
    until(lambda: len(load.answered) == 2 and min(load.answered.values()) >= 20, "both answer under load")
    load.stop()
    assert load.failed == []
    assert sorted(load.answered) == pair.workers()
    assert pair.output().count("serving on") == 1
    assert pair.stop() == 0
    assert pair.living() == []


def test_what_a_worker_is_given(parents: Parents) -> None:
    told = {
        "NOTIFY_SOCKET": "/nowhere",
        "WATCHDOG_USEC": "9000000",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "KEPT": "yes",
    }
    family = parents.serve("shop.py:app", "--store", "sqlite:///jobs.db", "--workers", "2", environment=told)
    for pid, body in both(family.url()).items():
        seen = json.loads(body)
        assert seen["group"] == pid, "a group of its own: a Ctrl-C must not reach it twice"
        assert seen["stdin"] == os.devnull
        assert seen["environment"]["KEPT"] == "yes"
        assert (
            not {"CALLBOARD_PARENT_FD", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"}
            & seen["environment"].keys()
        )
        assert 0 not in seen["inheritable"], "what a handler starts must not hold the line to the parent"


def test_jobs_run_once_and_each_is_seen_through_the_shared_port(pair: Family, parents: Parents) -> None:
    url = pair.url()
    job_ids = [submit(url, "/quick") for _ in range(60)]
    for job_id in job_ids:
        # A stream of whichever worker the kernel picks: it ends with the job.
        assert '"Completed"' in ask(url, f"/jobs/{job_id}/events"), job_id
    ran = notes(parents, "quick")
    assert sorted(job_id for job_id, _ in ran) == sorted(job_ids)
    assert {int(pid) for _, pid in ran} == set(pair.workers())


@pytest.mark.parametrize("kind", ["unix", "fd"])
def test_other_kinds_of_binds(parents: Parents, kind: str) -> None:
    options = ["--store", "sqlite:///jobs.db", "--workers", "2"]
    if kind == "unix":
        path = str(parents.folder / "shop.sock")
        family = parents.serve("shop.py:app", *options, bind=f"unix:{path}")
        family.until_said(f"serving on unix:{path}")
        transport = httpx.HTTPTransport(uds=path)
    else:
        with socket.create_server(("127.0.0.1", 0)) as one:
            # The parent inherits it as its standard input, as from inetd.
            family = parents.serve("shop.py:app", *options, bind="fd://0", stdin=one.fileno())
            url = family.url()
            assert url.endswith(f":{one.getsockname()[1]}")
        transport = httpx.HTTPTransport()
        assert [json.loads(body)["stdin"] for body in both(url).values()] == [os.devnull] * 2
    with httpx.Client(transport=transport) as http:
        base = "http://shop" if kind == "unix" else url
        assert int(http.get(f"{base}/pid").text) in family.workers()
    assert family.stop() == 0


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_quicker_one_does_not_cut_short_the_drain_of_the_other(
    pair: Family, parents: Parents, number: signal.Signals
) -> None:
    url = pair.url()
    job_id = submit(url, "/work")
    until(lambda: notes(parents, "began"), "the job runs")
    ((_, pid),) = notes(parents, "began")
    pair.process.send_signal(number)
    until(lambda: pair.workers() == [int(pid)], "the idle one has ended")
    assert notes(parents, "ended") == []
    assert pair.wait() == 0
    assert notes(parents, "ended") == [[job_id, pid]]
    assert "did not stop in time" not in pair.output()


def test_a_service_manager_that_signals_every_process_does_not_end_the_drain(pair: Family, parents: Parents) -> None:
    submit(pair.url(), "/work")
    until(lambda: notes(parents, "began"), "the job runs")
    for pid in pair.workers():
        os.kill(pid, signal.SIGTERM)
    # Two signals that come together are one.
    pair.until_said("draining", times=2)
    assert pair.stop() == 0
    assert notes(parents, "began") == notes(parents, "ended")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_all_at_once(pair: Family, parents: Parents, number: signal.Signals, code: int) -> None:
    url = pair.url()
    while len({pid for _, pid in notes(parents, "stuck")}) < 2:
        submit(url, "/stuck")
        time.sleep(0.1)
    pair.process.send_signal(number)
    pair.until_said("draining", times=2)
    began = time.monotonic()
    assert pair.stop(number) == code
    assert time.monotonic() - began < 10, "the drain time is 20 s"
    assert pair.output().count("second signal: stopping at once") == 2, "each worker was told, none was killed"
    assert pair.living() == []


def test_a_frozen_worker_is_killed_after_a_second_signal(pair: Family) -> None:
    pair.url()
    os.kill(pair.workers()[0], signal.SIGSTOP)
    pair.process.send_signal(signal.SIGTERM)
    until(lambda: len(pair.workers()) == 1, "the other one has ended")
    began = time.monotonic()
    assert pair.stop() == 143
    assert time.monotonic() - began < 15
    assert pair.living() == []


def test_sighup_is_passed_on_to_those_that_serve_and_kept_for_those_that_start(parents: Parents) -> None:
    family = parents.run([sys.executable, "-c", FAKE], environment={"STARTING": "0.7"})
    family.until_said("serving on")
    family.process.send_signal(signal.SIGHUP)
    until(lambda: len(notes(parents, "hangup")) == 2, "both heard it")
    os.kill(family.workers()[0], signal.SIGKILL)
    until(lambda: len(notes(parents, "began")) == 3, "it is started again")
    family.process.send_signal(signal.SIGHUP)
    until(lambda: len(notes(parents, "hangup")) == 4, "both heard it again")
    assert notes(parents, "began")[2] in notes(parents, "hangup")
    assert "died of SIGHUP" not in family.output()
    assert family.stop() == 0


def test_sighup_without_a_certificate_is_a_wish_to_stop_and_never_the_second(parents: Parents) -> None:
    family = parents.run([sys.executable, "-c", FAKE], environment={"PLAIN": "", "LASTING": "1.5"})
    family.until_said("serving on")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
        family.process.send_signal(number)
        time.sleep(0.2)
    assert family.wait() == 0
    assert notes(parents, "hangup") == []
    family = parents.run([sys.executable, "-c", FAKE], environment={"PLAIN": ""})
    family.until_said("serving on")
    assert family.stop(signal.SIGHUP) == 0


def test_the_worst_exit_code_is_the_parents(parents: Parents) -> None:
    family = parents.run([sys.executable, "-c", FAKE], environment={"LAST": "3"})
    family.until_said("serving on")
    assert family.stop() == 3


def test_a_signal_while_the_workers_still_start_is_an_orderly_end(parents: Parents) -> None:
    deaf = FAKE.replace("signal.signal(signal.SIGTERM, end)", "")
    family = parents.run([sys.executable, "-c", deaf], environment={"STARTING": "60"})
    until(lambda: notes(parents, "began"), "it starts")
    assert family.stop() == 0
    assert "serving on" not in family.output()


# Deaths


def test_a_worker_that_dies_is_started_again_and_the_other_goes_on(pair: Family) -> None:
    url = pair.url()
    first, second = pair.workers()
    os.kill(first, signal.SIGKILL)
    pair.until_said(f"worker 1 (pid {first}) died of SIGKILL: starting it again in 0.5 s")
    assert ask(url, "/pid") == str(second)
    pair.until_said("serves again")
    with pytest.raises(OSError):
        ask(url, "/die")
    pair.until_said("ended with code 7: starting it again")
    pair.until_said("serves again", times=2)
    assert len(both(url)) == 2
    assert pair.output().count("serving on") == 1
    assert pair.stop() == 0


def test_the_pause_before_a_restart_grows_and_begins_anew_after_a_good_life() -> None:
    pauses = [0.0]
    for _ in range(10):
        pauses.append(next_pause(pauses[-1], 1.0))
    assert pauses[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert next_pause(LONGEST_PAUSE_SECONDS, SETTLED_SECONDS) == FIRST_PAUSE_SECONDS


def test_the_pause_grows_between_real_deaths_and_a_signal_ends_it(parents: Parents) -> None:
    family = parents.run([sys.executable, "-c", FAKE], environment={"LATER": "5"})
    family.until_said("serving on")
    os.kill(family.workers()[0], signal.SIGKILL)
    for pause in ("0.5", "1", "2"):
        family.until_said(f"starting it again in {pause} s")
    assert len(family.workers()) == 1
    assert family.stop() == 0


def test_a_bad_app_says_so_once(parents: Parents) -> None:
    (parents.folder / "broken").touch()
    family = parents.serve("shop.py:app", "--store", "sqlite:///jobs.db", "--workers", "3")
    assert family.wait() == 1
    assert family.output().count("RuntimeError: a bad app") == 1
    assert "before it served: stopping" in family.output()
    assert "serving on" not in family.output()


def test_a_bad_store_says_so_once(parents: Parents) -> None:
    (parents.folder / "jobs.db").write_text("no database, but long enough to be taken for something" * 100)
    family = parents.serve("shop.py:app", "--store", "sqlite:///jobs.db", "--workers", "3")
    assert family.wait() == 1
    assert family.output().count("callboard cannot serve") == 1


def test_a_bad_command_line_says_so_once(parents: Parents) -> None:
    family = parents.serve("shop.py:nothing", "--workers", "3")
    assert family.wait() == 2
    assert family.output().count("has no 'nothing'") == 1


def test_a_worker_that_later_finds_its_command_line_bad_ends_all(parents: Parents) -> None:
    family = parents.run([sys.executable, "-c", FAKE], environment={"LATER": "2"})
    family.until_said("serving on")
    os.kill(family.workers()[0], signal.SIGKILL)
    assert family.wait() == 2
    assert family.living() == []


def test_a_taken_port_is_told_in_one_line(parents: Parents) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        bind = f"127.0.0.1:{one.getsockname()[1]}"
        family = parents.serve("shop.py:app", "--workers", "2", bind=bind)
        assert family.wait() == 1
    assert bind in family.output() and "Traceback" not in family.output()


@pytest.mark.parametrize("busy", [False, True])
def test_when_the_parent_is_killed_the_workers_drain_and_end(pair: Family, parents: Parents, busy: bool) -> None:
    url = pair.url()
    if busy:
        submit(url, "/work")
        until(lambda: notes(parents, "began"), "the job runs")
    workers = pair.workers()
    pair.process.kill()
    pair.wait()
    until(lambda: pair.living() == [], "they end")
    assert pair.output().count("the parent process has gone") == len(workers)
    assert notes(parents, "began") == notes(parents, "ended")


def test_workers_that_drain_already_are_not_hurried_by_the_parents_death(pair: Family, parents: Parents) -> None:
    submit(pair.url(), "/work")
    until(lambda: notes(parents, "began"), "the job runs")
    pair.process.send_signal(signal.SIGTERM)
    pair.until_said("draining")
    pair.process.kill()
    until(lambda: pair.living() == [], "they end")
    assert notes(parents, "began") == notes(parents, "ended")


def test_a_parent_that_is_killed_while_its_worker_starts_leaves_none_behind(parents: Parents) -> None:
    (parents.folder / "slow.py").write_text("import time; open('importing', 'w'); time.sleep(1.5)\n" + APP)
    family = parents.serve("slow.py:app", "--store", "sqlite:///jobs.db", "--workers", "2")
    until((parents.folder / "importing").exists, "the worker imports the app")
    family.process.kill()
    until(lambda: family.living() == [], "it ends once it has started")
    assert "Traceback" not in family.output()


# Deaths under load


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_under_load_loses_no_new_connection(pair: Family, how: signal.Signals) -> None:
    url = pair.url()
    load = Load(url)
    ends = 2
    try:
        until(lambda: len(load.answered) == 2, "both answer")
        for number in range(ends):
            seen = len(load.answered)
            os.kill(pair.workers()[0], how)
            until(lambda seen=seen: len(load.answered) > seen, "its successor answers")  # type: ignore[misc]
            pair.until_said("starting it again", times=number + 1)
    finally:
        load.stop()
    # Each client has one request at a time: what a killed one had taken is lost with it, and nothing else.
    most = 0 if how == signal.SIGTERM else ends * 4
    assert len(load.failed) <= most, load.failed
    assert not [one for one in load.failed if "refused" in one]
    assert pair.stop() == 0


# The service manager

CERTIFICATES = Path(__file__).parent / "certificates"
TLS = ("--certfile", str(CERTIFICATES / "server.pem"), "--keyfile", str(CERTIFICATES / "server.key"))


@pytest.fixture
def heard(parents: Parents) -> Iterator[Callable[[], list[str]]]:
    """What a service manager heard so far; its socket is ``notify`` in the test's folder."""
    states: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(parents.folder / "notify"))
        one.setblocking(False)

        def look() -> list[str]:
            try:
                while True:
                    states.extend(one.recv(4096).decode().splitlines())
            except BlockingIOError:
                return states

        yield look


def test_the_service_manager_hears_of_all_workers_from_the_parent(
    parents: Parents, heard: Callable[[], list[str]]
) -> None:
    family = parents.serve(
        "shop.py:app",
        *("--store", "sqlite:///jobs.db", "--workers", "2"),
        environment={"NOTIFY_SOCKET": str(parents.folder / "notify"), "WATCHDOG_USEC": "4000000"},
    )
    family.url()
    until(lambda: "READY=1" in heard(), "it is ready")
    assert "STATUS=1 of 2 workers serve" in heard() and heard().count("READY=1") == 1
    until(lambda: heard().count("WATCHDOG=1") >= 2, "the watchdog is fed")
    frozen = family.workers()[1]
    os.kill(frozen, signal.SIGSTOP)
    family.until_said(f"(pid {frozen}) is silent")
    fed = heard().count("WATCHDOG=1")
    family.until_said(f"(pid {frozen}) is silent", times=3)
    assert heard().count("WATCHDOG=1") == fed, "one of two does not answer any more"
    os.kill(frozen, signal.SIGCONT)
    until(lambda: heard().count("WATCHDOG=1") > fed, "it is fed again")
    os.kill(frozen, signal.SIGKILL)
    until(lambda: heard()[-1:] != [] and "STATUS=1 of 2 workers serve" in heard()[-5:], "the loss is told")
    until(lambda: "STATUS=2 of 2 workers serve" in heard()[-5:], "and that it is made good")
    assert family.stop() == 0
    assert "STOPPING=1" in heard()


def test_the_service_manager_hears_that_the_workers_reread_their_certificate(
    parents: Parents, heard: Callable[[], list[str]]
) -> None:
    """With Type=notify-reload it waits for both, and takes a reload without them for a failed one."""
    family = parents.serve(
        "shop.py:app",
        *("--store", "sqlite:///jobs.db", "--workers", "2", *TLS),
        environment={"NOTIFY_SOCKET": str(parents.folder / "notify")},
    )
    family.url()
    until(lambda: "STATUS=2 of 2 workers serve" in heard(), "they serve")
    family.process.send_signal(signal.SIGHUP)
    until(lambda: "RELOADING=1" in heard(), "it rereads")
    until(lambda: "READY=1" in heard()[heard().index("RELOADING=1") :], "it is ready again")
    assert any(re.fullmatch("MONOTONIC_USEC=[0-9]+", one) for one in heard())
    assert family.stop() == 0
    assert "STATUS=the workers drain" in heard()
