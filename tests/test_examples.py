"""Every example does what its docstring says, in a process of its own and over real sockets."""

import ast
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.redis_servers import RedisServer

if TYPE_CHECKING:
    from tests.conftest import Serve

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
README = EXAMPLES.parent / "README.md"
LIBRARY = Path(sysconfig.get_path("stdlib"))
ENDED = ("Completed", "Failed", "Canceled")


def target(name: str) -> str:
    return f"{EXAMPLES / name}.py:app"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_for(
    http: httpx.Client, job_id: str, *, seconds: float = 60, status: tuple[str, ...] = ENDED
) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job: dict[str, Any] = http.get(f"/jobs/{job_id}?redirect=false").raise_for_status().json()
        if job["status"] in status:
            return job
        time.sleep(0.05)
    raise AssertionError(f"still {job['status']} after {seconds} s")


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_every_example_has_a_test_and_says_how_to_run_it(path: Path) -> None:
    assert [name for name in globals() if name.startswith(f"test_{path.stem}")], f"{path.name} has no test here"
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None
    assert f"examples/{path.name}" in docstring


@pytest.mark.e2e
def test_process_data(serve: "Serve") -> None:
    server = serve(target("process_data"), "--store", "memory://")
    with httpx.Client(base_url=server.url, timeout=30) as http:
        submitted = http.post("/api/process-data", json={"data": "hello", "processingPriority": 2})
        assert submitted.status_code == 202
        accepted = submitted.json()
        assert accepted["name"] == "ProcessData"
        assert accepted["maxRetries"] == 3
        assert submitted.headers["location"] == f"/jobs/{accepted['id']}" == accepted["links"]["self"]
        assert http.post("/api/process-data", json={"processingPriority": 2}).status_code == 422

        job = http.get(f"/jobs/{accepted['id']}?wait=30").json()
    assert job["status"] == "Completed"
    result = job["result"]
    assert set(result) == {"processedData", "processedAt", "characterCount"}
    assert (result["processedData"], result["characterCount"]) == ("Processed: HELLO", 5)
    assert job["startedAt"][:19] < result["processedAt"][:19] <= job["completedAt"][:19]


def test_readme_shows_process_data() -> None:
    """The code on the README's first screen is the example, less the docstrings."""
    shown = README.read_text().split("```python\n", 1)[1].split("```", 1)[0]
    assert ast.dump(without_docstrings(shown)) == ast.dump(
        without_docstrings((EXAMPLES / "process_data.py").read_text())
    )


@pytest.mark.e2e
def test_readme_follows_a_job_over_the_websocket(serve: "Serve", tmp_path: Path) -> None:
    server = serve(target("process_data"), "--store", "memory://")
    shown = README.read_text().split("```python\n", 2)[2].split("```", 1)[0]
    script = tmp_path / "follow.py"
    script.write_text(shown.replace("localhost:8000", server.url.removeprefix("http://")))
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    *events, ended = printed.stdout.splitlines()
    assert events[0].split()[1] == "snapshot"
    assert events[-1].split()[1:3] == ["status", "Completed"]
    assert ended.startswith("ended: {'processedData': 'Processed: HELLO'")


def without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("__all__ =")]
    return tree


@pytest.mark.e2e
def test_todo_api(serve: "Serve", tmp_path: Path) -> None:
    settings = {"TODOS_DB": str(tmp_path / "todos.db"), "TODOS_WORK_SECONDS": "0.5"}
    store = ("--store", "sqlite:///jobs.db")
    server = serve(target("todo_api"), *store, **settings)
    with httpx.Client(base_url=server.url, timeout=30) as http:
        assert http.get("/api/todos").json() == []
        answer = http.post("/api/todos", json={"title": "Write an article", "dueBy": "2027-02-14"})
        assert answer.status_code == 202
        assert int(answer.headers["retry-after"]) >= 0
        job = answer.headers["location"]
        running = http.get(job)
        assert running.status_code == 200
        assert running.json()["status"] in ("Queued", "InProgress")
        assert http.get("/api/todos").json() == []

        ended = wait_for(http, answer.json()["id"])
        assert ended["status"] == "Completed"
        found = http.get(job)
        assert found.status_code == 303
        item = {"id": ended["id"], "title": "Write an article", "dueBy": "2027-02-14"}
        assert found.headers["location"] == f"/api/todos/{ended['id']}" == ended["links"]["location"]
        assert http.get(job, follow_redirects=True).json() == item == ended["result"]
        assert http.get("/api/todos").json() == [item]
        assert http.get("/api/todos/none").status_code == 404
    assert server.stop() == 0

    again = serve(target("todo_api"), *store, **settings)
    with httpx.Client(base_url=again.url, timeout=30) as http:
        assert http.get(job, follow_redirects=True).json() == item


@pytest.mark.e2e
def test_source_survey_of_one_package(serve: "Serve") -> None:
    server = serve(target("source_survey"), "--store", "memory://")
    with httpx.Client(base_url=server.url, timeout=60) as http:
        answer = http.post("/api/survey", json={"package": "json"}, headers={"Prefer": "wait=50"})
        assert answer.status_code == 200
        job = answer.json()
        nothing = http.post("/api/survey", json={"package": "no-such"}, headers={"Prefer": "wait=50"}).json()
        assert http.post("/api/survey", json={"limit": 0}).status_code == 422
    assert job["status"] == "Completed"
    assert job["progress"]["percent"] == 100
    sources = [path.read_bytes() for path in sorted((LIBRARY / "json").rglob("*.py"))]
    functions = [
        (node.end_lineno - node.lineno + 1, node.name)
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]
    (package,) = job["result"]["packages"]
    assert package == {**job["result"]["total"], "package": "json"}
    assert package["files"] == len(sources) == job["progress"]["data"]["of"]
    assert package["unparsed"] == 0
    assert package["lines"] == sum(source.count(b"\n") for source in sources)
    assert package["tokens"] == sum(len(list(tokenize.tokenize(io.BytesIO(source).readline))) for source in sources)
    longest = package["longestFunction"]
    assert (longest["lines"], longest["name"]) == max(functions)
    assert longest["file"].startswith("json/")
    assert nothing["status"] == "Failed"
    assert nothing["error"]["code"] == "NOTHING_TO_SURVEY"
    assert "no-such" in nothing["error"]["message"]


@pytest.mark.e2e
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the child process in /proc")
def test_source_survey_stays_responsive_and_is_canceled_with_its_child(serve: "Serve") -> None:
    server = serve(target("source_survey"), "--store", "sqlite:///jobs.db")
    with httpx.Client(base_url=server.url, timeout=30) as http:
        job_id = http.post("/api/survey", json={}).json()["id"]
        deadline = time.monotonic() + 30
        while not (http.get(f"/jobs/{job_id}").json()["progress"] or {}).get("data"):
            assert time.monotonic() < deadline, "no progress"
        assert [child for child in children_of(server.process.pid) if "count_source" in child]
        check_responsive(http)
        canceled = http.post(f"/jobs/{job_id}/cancel", headers={"Prefer": "wait=20"})
        assert (canceled.status_code, canceled.json()["status"]) == (200, "Canceled")
        assert children_of(server.process.pid) == []


@pytest.mark.e2e
def test_fleet(serve: "Serve", tmp_path: Path, redis_server: RedisServer) -> None:
    """The commands of its docstring, with another port and Redis: an API alone, workers that come, are killed and come again."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / "fleet.py").read_text())) or ""
    serving, working = (
        one(rf"^ *callboard {role} examples/fleet.py:app(.*?)(?: {{2,}}#.*)?$", docstring).split()
        for role in ("serve", "worker")
    )
    path, small = one(r"localhost:8000(/api/\w+) -H 'Prefer: .* -d '(\{.*\})'$", docstring)
    make_large = one(r"^ *(python3 -c .*) > large.json$", docstring)
    large = subprocess.run(
        shlex.split(make_large), cwd=EXAMPLES.parent, capture_output=True, check=True, timeout=60
    ).stdout
    store = {"CALLBOARD_STORE": redis_server.url}
    api = serve(target("fleet"), *serving[: serving.index("--bind")], **store)

    def work() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "callboard.web.cli", "worker", target("fleet"), *working]
        return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **store}, stdin=subprocess.DEVNULL)

    with ExitStack() as started, httpx.Client(base_url=api.url, timeout=60) as http:

        def worker() -> subprocess.Popen[bytes]:
            process = work()
            started.callback(process.wait, 30)
            started.callback(process.kill)
            return process

        def submit(body: str | bytes) -> str:
            answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        waits = submit(small)
        assert http.get(f"/jobs/{waits}?wait=1").json()["status"] == "Queued", "the API runs no jobs"
        first = worker()
        result = wait_for(http, waits)["result"]
        assert result["worker"].endswith(f":{first.pid}")
        assert result["originalSize"] == len(json.loads(small)["text"])
        assert len(result["trials"]) == 28
        assert [trial["size"] for trial in result["trials"]] == sorted(trial["size"] for trial in result["trials"])

        events = followed(http, canceled := submit(large))
        assert next(events)["job"]["status"] in ("Queued", "InProgress")
        assert any(event["type"] == "progress" for event in events), "the API shows what happens in the worker"
        answer = http.post(f"/jobs/{canceled}/cancel", headers={"Prefer": "wait=20"})
        assert (answer.status_code, answer.json()["status"]) == (200, "Canceled")

        stopped = submit(large)
        wait_for(http, stopped, status=("InProgress",))
        first.send_signal(signal.SIGINT)
        assert first.wait(30) == 0
        second = worker()
        assert wait_for(http, stopped)["status"] == "Completed"

        lost = submit(large)
        wait_for(http, lost, status=("InProgress",))
        second.kill()
        third = worker()
        ended = wait_for(http, lost)
        assert (ended["status"], ended["attempt"]) == ("Completed", 2)
        assert ended["result"]["worker"].endswith(f":{third.pid}")


def one(pattern: str, text: str) -> Any:
    """The one place of the text that the pattern's groups find."""
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return found


def followed(http: httpx.Client, job_id: str) -> Iterator[dict[str, Any]]:
    """A job's events, live."""
    with http.stream("GET", f"/jobs/{job_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


@pytest.mark.e2e
def test_similar_files(serve: "Serve") -> None:
    server = serve(target("similar_files"), "--store", "sqlite:///jobs.db")
    with httpx.Client(base_url=server.url, timeout=30) as http:
        answer = http.post("/api/similar", json={"package": "json"}, headers={"Prefer": "wait=20"})
        job = answer.json()
        assert (answer.status_code, job["status"], job["progress"]["percent"]) == (200, "Completed", 100)
        files = [path.name for path in (LIBRARY / "json").glob("*.py")]
        assert job["progress"]["message"] == f"{len(files) * (len(files) - 1) // 2} pairs"
        ratios = [pair["ratio"] for pair in job["result"]]
        assert len(ratios) == 5
        assert ratios == sorted(ratios, reverse=True)
        assert all({pair["first"], pair["second"]} <= set(files) for pair in job["result"])
        nothing = http.post("/api/similar", json={"package": "../x"}, headers={"Prefer": "wait=20"}).json()
        assert nothing["error"]["code"] == "NOTHING_TO_COMPARE"


@pytest.mark.e2e
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the worker process in /proc")
def test_similar_files_stays_responsive_and_is_canceled_with_its_process(serve: "Serve") -> None:
    server = serve(target("similar_files"), "--store", "sqlite:///jobs.db")
    with httpx.Client(base_url=server.url, timeout=30) as http:
        job_id = http.post("/api/similar", json={"package": "encodings"}).json()["id"]
        deadline = time.monotonic() + 30
        while not http.get(f"/jobs/{job_id}").json()["progress"]:
            assert time.monotonic() < deadline, "no progress"
        assert any("spawn_main" in child for child in children_of(server.process.pid))
        check_responsive(http)
        canceled = http.post(f"/jobs/{job_id}/cancel", headers={"Prefer": "wait=20"})
        assert (canceled.status_code, canceled.json()["status"]) == (200, "Canceled")
        assert not any("spawn_main" in child for child in children_of(server.process.pid))


def check_responsive(http: httpx.Client) -> None:
    """The server answers at once, whatever its job does."""
    took = []
    for _ in range(30):
        began = time.monotonic()
        http.get("/jobs/health/live").raise_for_status()
        took.append(time.monotonic() - began)
    assert sorted(took)[15] < 0.2, took


def children_of(pid: int) -> list[str]:
    """The command lines of a process's children, also of those that nobody has waited for."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found.append(Path(f"/proc/{child}/cmdline").read_text())
    return found


def test_count_source_as_a_program() -> None:
    command = [sys.executable, "-I", str(EXAMPLES / "count_source.py"), "--package", "json", "--limit", "2"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    facts = [json.loads(line) for line in printed.splitlines()]
    assert [(fact["number"], fact["of"]) for fact in facts] == [(1, 2), (2, 2)]
    assert [fact["file"] for fact in facts] == ["json/__init__.py", "json/decoder.py"]


def test_count_source_ends_quietly_when_nobody_reads() -> None:
    command = [sys.executable, "-I", str(EXAMPLES / "count_source.py"), "--package", "encodings"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(60) == 1
        assert child.stderr.read() == b""


@pytest.mark.parametrize(
    "source", [b"print 'old'\n", b"# coding: nonsense\n", b"x = '\0'\n", b"\xff = 1\n", b"(" * 3000 + b"\n"]
)
def test_count_source_counts_a_broken_file(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "broken.py").write_bytes(source)
    facts = load("count_source").describe(tmp_path, Path("broken.py"))
    assert facts["problem"]
    assert (facts["file"], facts["lines"], facts["tokens"], facts["longest"]) == ("broken.py", 1, 0, None)


def test_count_source_leaves_out_what_was_installed(tmp_path: Path) -> None:
    for name in ("os.py", "json/decoder.py", "site-packages/trio/run.py", "a/dist-packages/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = load("count_source").source_files(tmp_path, None, None)
    assert [path.as_posix() for path in found] == ["json/decoder.py", "os.py"]


def test_embedded() -> None:
    run = [sys.executable, str(EXAMPLES / "embedded.py")]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)
    lines = [line.split(maxsplit=1) for line in printed.stdout.splitlines()]
    nap = [what for who, what in lines if who == "Nap"]
    primes = [what for who, what in lines if who == "CountPrimes"]
    assert [what for what in nap if what.startswith("nap")][-1] == "nap 3 of 3"
    assert nap[-2:] == ["Completed", "returned 'rested'"]
    assert primes[-2:] == ["Completed", "returned 17984"]
    assert "info: tried every number below 200000" in primes
    assert any(what.endswith("primes so far") for what in primes)
    assert printed.stderr == ""
