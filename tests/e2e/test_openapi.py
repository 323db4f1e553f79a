"""A real server against its own OpenAPI document: schemathesis asks it whatever the document allows, and what it forbids.

schemathesis runs as a process of its own, the way its users run it: here it would meet pytest's strict warnings and trio's mode. Its
runs are deterministic; what it found is in the message of the failed test, each with the request that shows it. `openapi_app.py` is
what it asks, `openapi_hooks.py` what it has to be told.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.e2e.harness import Server, Site

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "positive_data_acceptance", "missing_required_header"),
    *("unsupported_method", "allow_header_conformance", "use_after_free", "ensure_resource_availability"),
)
CONFIG = """
[phases.stateful]
max-steps = 8
link-calibration = false
inference.algorithms = []
"""
"""Of links, those that the document has, and no guesses."""

AT_RANDOM = ("--generation-database", "none")

Answer = tuple[str, str, int]
"""Method, path with `ID` and `?purge` where they are, status."""

NOT_ASKED = {"followJob", "openapi"}
"""The one that is excluded, and the one that schemathesis has read before it begins."""


async def start(site: Site, store: str, **environment: str) -> Server:
    """A server of the app, listening."""
    url = site.sqlite if store == "sqlite" else "memory://"
    arguments = [f"{HERE / 'openapi_app.py'}:app", "--bind", "127.0.0.1:0", "--store", url]
    server = site.run(
        [sys.executable, "-m", "callboard.web.cli", "serve", *arguments],
        environment=environment,
    )
    await server.listening()
    return server


async def examine(
    site: Site, server: Server, phases: str, *options: str, examples: int, links_only: bool = False
) -> list[Answer]:
    """Every answer that schemathesis got; an AssertionError with its report if one was wrong."""
    report = site.folder / "report.ndjson"
    (site.folder / "schemathesis.toml").write_text(CONFIG)
    run = "from schemathesis.cli import schemathesis; schemathesis()"
    command = [sys.executable, "-W", "ignore", "-c", run, "run", f"{server.url}/jobs/openapi.json", "--no-color"]
    command += ["--checks", ",".join(CHECKS), "--phases", phases, "--max-examples", str(examples)]
    # An answer that goes on for as long as its job is none to schemathesis; tests/web/test_openapi_answers.py looks at it.
    command += ["--exclude-operation-id", "followJob", "--continue-on-failure", "--report", "ndjson"]
    command += ["--report-ndjson-path", str(report), *options]
    hooks = {
        "SCHEMATHESIS_HOOKS": str(HERE / "openapi_hooks.py"),
        "SCHEMATHESIS_LINKS_ONLY": "yes" if links_only else "no",
    }
    ended = await trio.run_process(
        command,
        cwd=site.folder,
        env={**os.environ, **hooks},
        check=False,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    assert ended.returncode == 0, ended.stdout.decode(errors="replace")
    site.check_output()
    return list(answers(report, server.url))


def answers(report: Path, url: str) -> Iterator[Answer]:
    for line in report.read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for _, interaction, *_ in pairs(recorder.get("interactions", ())):
            request, response = interaction["request"], interaction["response"]
            path, _, query = request["uri"].removeprefix(url).partition("?")
            path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", path) + ("?purge" if "purge=true" in query else "")
            yield request["method"], path, response["status_code"]


def sent(report: Path) -> set[tuple[str, str, int]]:
    """For each operation, what was sent to it (positive or negative data), and the first digit of each answer to that."""
    found = set()
    for line in report.read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for name, case in recorder.get("cases", {}).items():
            answer = recorder["interactions"].get(name, {}).get("response")
            if answer is not None:
                mode = case["value"]["meta"]["generation"]["mode"]
                found.add((recorder["label"], mode, answer["status_code"] // 100))
    return found


def pairs(interactions: Any) -> Any:
    return interactions.items() if isinstance(interactions, dict) else interactions


def statuses(given: list[Answer]) -> set[int]:
    return {status for _, _, status in given}


async def test_no_answer_is_outside_the_document(site: Site) -> None:
    server = await start(site, "memory")
    given = await examine(site, server, "examples,coverage", "--generation-deterministic", examples=1)
    assert statuses(given) >= {200, 202, 400, 404, 405, 409, 422}
    async with server.http() as http:
        document = (await http.get("/jobs/openapi.json")).json()
    labels = {
        f"{method.upper()} {path}"
        for path, found in document["paths"].items()
        for method, operation in found.items()
        if operation["operationId"] not in NOT_ASKED
    }
    seen = sent(site.folder / "report.ndjson")
    assert {(label, "positive", 2) for label in labels} - seen == set(), "right data was never taken"
    assert {(label, "negative", 4) for label in labels} - seen == set(), "wrong data was never refused"


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_links_lead_through_the_life_of_a_job(site: Site, store: str) -> None:
    server = await start(site, store)
    options = (*AT_RANDOM, "--seed", "1", "--mode", "positive")
    given = await examine(site, server, "stateful", *options, examples=40, links_only=True)
    followed = {(method, path.partition("?")[0]) for method, path, _ in given if "/ID" in path}
    # Which ways it takes is partly chance; these it finds each time. tests/web/test_openapi_answers.py takes every one.
    ways = {("GET", "/jobs/ID"), ("DELETE", "/jobs/ID"), ("POST", "/jobs/ID/cancel"), ("POST", "/jobs/ID/retry")}
    assert followed >= ways
    assert {status for _, path, status in given if "/ID" in path} >= {200, 409}


@pytest.mark.parametrize(
    ("store", "caller", "expected"), [("sqlite", "alice", {200, 202, 404}), ("memory", "guest", {200, 403, 404})]
)
async def test_rights_are_in_the_document(site: Site, store: str, caller: str, expected: set[int]) -> None:
    server = await start(site, store, OPENAPI_HOOKS="on")
    options = ("--generation-deterministic", "--header", f"X-Caller: {caller}")
    given = await examine(site, server, "examples,fuzzing", *options, examples=8)
    assert statuses(given) >= expected
    assert (403 in statuses(given)) == (caller == "guest")


async def test_a_full_queue_is_in_the_document(site: Site) -> None:
    server = await start(site, "sqlite", OPENAPI_QUEUE="1", OPENAPI_SLOTS="0")
    options = ("--generation-deterministic", "--mode", "positive")
    given = await examine(site, server, "examples,fuzzing", *options, examples=3)
    assert 429 in statuses(given)


@pytest.mark.soak
@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("hooks", ["off", "on"])
async def test_nor_in_many_more_tries(site: Site, store: str, hooks: str) -> None:
    server = await start(site, store, OPENAPI_HOOKS=hooks, OPENAPI_QUEUE="50")
    headers = (*AT_RANDOM, "--header", "X-Caller: alice")
    given = await examine(site, server, "examples,coverage,fuzzing", *headers, examples=300)
    assert statuses(given) >= {200, 202, 400, 404, 409, 422, 429}
    await examine(site, server, "stateful", *headers, "--mode", "positive", examples=300, links_only=True)
