"""docs/durability.md against the tests and sources that it names, and the promises of its table that no other test holds."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import trio
from tests.runtime.kit import FaultyStore, handler, opened
from tests.test_docs import DOCS, rows
from trio.testing import MockClock

from callboard.runtime import Config, JobContext, Status
from callboard.runtime.core.store import JobFilter, Store
from callboard.stores import open_store
from callboard.stores.conformance_bench import ids, submit

PAGE = DOCS / "durability.md"
TEXT = PAGE.read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
TABLES = [
    "| store and setting | a worker or web process is killed | the store's server is killed | power fails, the kernel crashes | "
    "the disk is lost | held by |",
    "| setting | the master dies and a replica takes its place | the master is cut off from the replicas, with some of the clients on "
    "its side | held by |",
    "| what | callboard | lost | held by |",
]

SUBMITTER = """
import itertools, sys
import trio
from callboard.stores import open_store
from callboard.stores.conformance_bench import submit

async def main():
    store = open_store(sys.argv[1])
    await store.open(worker="submitter", max_events_per_job=100, max_attempts_per_job=10)
    for number in itertools.count(1):
        await submit(store, number)
        print(number, flush=True)

trio.run(main)
"""
"""Submits jobs one after another and says a number for each that was answered."""


@cache
def functions_of(path: str) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((DOCS.parent / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    assert (DOCS.parent / path).is_file(), f"{path} is no file"
    assert name.startswith("test_")
    assert name in functions_of(path), f"{path} has no test {name}"


@pytest.mark.parametrize("heading", TABLES, ids=["settings", "replicas", "what else"])
def test_every_row_is_held_by_a_test_or_a_source(heading: str) -> None:
    table = rows(PAGE, heading)
    assert len(table) >= 4
    for row in table:
        assert len(row) == heading.count("|") - 1, row
        held_by = row[-1]
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`|\[[A-Z]\d+\]", held_by), f"nothing holds {row[0]!r}"
        left = re.sub(r"`tests/[\w/]+\.py::test_\w+`|\[[A-Z]\d+\]|[,;\s]", "", held_by)
        assert not left, f"{row[0]!r} is held by {left!r}, which is neither a test nor a source"


def test_the_sources_are_those_that_are_named() -> None:
    body, _, _ = TEXT.partition("\n## Sources\n")
    table = rows(PAGE, "| | page | says |")
    assert {row[0] for row in table} == set(re.findall(r"\[([A-Z]\d+)\]", body))
    assert all(row[2] for row in table)


async def numbers(store: Store) -> set[int]:
    """Of all jobs that are there."""
    await store.open(worker="reader", max_events_per_job=100, max_attempts_per_job=10)
    try:
        found: set[int] = set()
        page = await store.list(JobFilter(), cursor=None, limit=500)
        found.update(ids(page.jobs))
        while page.next is not None:
            page = await store.list(JobFilter(), cursor=page.next, limit=500)
            found.update(ids(page.jobs))
        return found
    finally:
        await store.aclose()


async def test_memory_is_gone_with_its_process() -> None:
    """And with its store: nobody else sees it."""
    store = open_store("memory://")
    await store.open(worker="w", max_events_per_job=100, max_attempts_per_job=10)
    await submit(store, 1)
    assert await numbers(open_store("memory://")) == set()
    await store.aclose()


@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_a_killed_process_loses_no_answer(tmp_path: Path, synchronous: str) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}?synchronous={synchronous}"
    answered = submit_until_killed(url)
    assert len(answered) >= 200
    assert answered <= await numbers(open_store(url))


def submit_until_killed(url: str) -> set[int]:
    """What was answered to a process that was killed in mid-work."""
    with subprocess.Popen([sys.executable, "-c", SUBMITTER, url], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            answered = {int(child.stdout.readline()) for _ in range(200)}
        finally:
            child.kill()
        return answered | {int(line) for line in child.stdout if line.endswith("\n")}


async def test_a_claim_whose_answer_was_lost_counts_as_a_lost_lease(autojump_clock: MockClock) -> None:
    """Its job waits for the end of the lease, and with max_lost_leases=0 it fails although nobody has begun it."""
    store = FaultyStore()
    begun: list[str] = []

    async def run(job: JobContext) -> None:
        begun.append(job.id)

    handlers = (handler("Again")(run), handler("Once", max_lost_leases=0)(run))
    async with opened(store, *handlers, config=Config(lease_seconds=30)) as runtime:
        store.fail("claim", seconds=1.5, after=True)
        jobs = [(await runtime.submit(name)).id for name in ("Again", "Once")]
        again, once = [await runtime.wait(job_id) for job_id in jobs]
    assert (again.status, again.attempt, again.lost_leases) == (Status.COMPLETED, 2, 1)
    assert (once.status, once.error and once.error.code) == (Status.FAILED, "WORKER_LOST")
    assert begun == [again.id]
    assert trio.current_time() >= 30
