"""``docs/from-asyncendpoints.md`` against the code: what it names is there, with the defaults and the tests that it says."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from msgspec.structs import fields
from quart_trio import QuartTrio
from tests.web.workshop import Site
from trio.testing import MockClock

from callboard.runtime import Config, Handler, Job, JobContext, Request, Runtime, Status
from callboard.runtime.context import Reports
from callboard.runtime.core.document import FIELDS
from callboard.stores.conformance import CHECKS
from callboard.web import Callboard
from callboard.web.options import MappingOptions

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "from-asyncendpoints.md"
TEXT = PAGE.read_text()
CODE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", CODE)


def listed(text: str) -> list[str]:
    """The names, copied from what was found in its source."""
    return text.split()


THEIR_CALLS = listed(
    """
AddAsyncEndpoints AddAsyncEndpointsInMemoryStore AddAsyncEndpointsRedisStore ConnectionString AddAsyncEndpointsWorker
AddAsyncEndpointHandler AddAsyncEndpointsJsonTypeInfoResolver MapAsyncPost MapAsyncPut MapAsyncPatch MapAsyncDelete
MapAsyncGetJobDetails HandleAsync AsyncContext CancellationToken MethodResult MethodResult.Success
MethodResult.Failure IAsyncEndpointRequestHandler Request Headers RouteParams QueryParams IResult
"""
)
THEIR_OPTIONS = listed(
    """
WorkerId MaximumConcurrency PollingIntervalMs JobTimeoutMinutes BatchSize MaximumQueueSize RecoveryConfigurations
DefaultMaxRetries RetryDelayBaseSeconds EnableDistributedJobRecovery RecoveryCheckIntervalSeconds MaximumRetries
EnableMetrics EnableTracing JobSubmittedResponseFactory JobStatusResponseFactory JobSubmissionErrorResponseFactory
ExceptionResponseFactory JobClaimTimeout MaxConcurrentJobs JobPollingIntervalMs MaxClaimBatchSize
ResponseConfigurations WorkerConfigurations
StaleJobClaimCheckInterval JobManagerConfiguration JobManagerConfigurations
"""
)
THEIR_NUMBERS = listed(
    """
asyncendpoints.jobs.created.total asyncendpoints.jobs.processed.total asyncendpoints.jobs.failed.total
asyncendpoints.jobs.retries.total asyncendpoints.handlers.error.rate asyncendpoints.store.operations.total
asyncendpoints.store.errors.total asyncendpoints.background.processing.rate asyncendpoints.jobs.queue.duration
asyncendpoints.jobs.processing.duration asyncendpoints.handlers.execution.duration
asyncendpoints.store.operation.duration asyncendpoints.jobs.current.count Job.Submit Job.Process Handler.Execute
Store.Operation job.id job.name job.status worker.id store.type error.type
"""
)
THEIR_WIRE = listed(
    """
X-Async-Request-Id Async-Job-Id id name status retryCount maxRetries createdAt startedAt completedAt lastUpdatedAt
result error code message exception type stackTrace innerException Queued Scheduled InProgress Completed Failed
Canceled INVALID_JOB INVALID_JOB_ID JOB_NOT_FOUND JOB_CREATE_FAILED DUPLICATE_JOB JOB_UPDATE_CONFLICT
CONCURRENCY_CONFLICT JOB_STORE_ERROR DESERIALIZATION_ERROR PARSE_ERROR JOB_NOT_CLAIMED JOB_CLAIM_ERROR
JOB_PROCESSING_ERROR JOB_CONSTRUCTION_ERROR UNKNOWN ErrorType ErrorClassifier RetryDelayUntil Payload
InvalidOperationException CreateJob GetJobById UpdateJob ClaimNextJobForWorker SupportsJobRecovery RecoverStuckJobs
Processing DeadLettered Cancelled X-Channel X-Partition-Key IJobNotifier jobId IJobManager IJobStore
AsyncEndpointError
"""
)


def tables(*heading: str) -> list[list[list[str]]]:
    """The rows of every table with that heading."""
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in TEXT.splitlines()]
    found: list[list[list[str]]] = []
    for number, row in enumerate(cells):
        if row == list(heading):
            rest = cells[number + 2 :]
            end = next((index for index, other in enumerate(rest) if not other), len(rest))
            found.append(rest[:end])
    return found


def words(text: str) -> set[str]:
    """Names as they stand in code spans, dotted ones whole and in parts."""
    dotted = re.findall(r"[A-Za-z][\w.-]*\w", text)
    return {*dotted, *(part for name in dotted for part in re.split(r"[.]", name))}


@pytest.mark.parametrize("name", [*THEIR_CALLS, *THEIR_OPTIONS, *THEIR_NUMBERS, *THEIR_WIRE])
def test_everything_of_theirs_is_on_the_page(name: str) -> None:
    assert name in {word for span in SPANS for word in words(span)}


def test_the_table_of_options_has_our_names_and_defaults() -> None:
    (table,) = tables("AsyncEndpoints", "its default", "here", "default", "what is different")
    ours = {field.name: field.default for field in fields(Config)}
    shown = {cells[2].strip("`"): cells[3].strip("`") for cells in table if cells[2] != "–"}
    assert len(shown) > 8
    assert {name: ast.literal_eval(default) for name, default in shown.items()} == {name: ours[name] for name in shown}
    listed = {word for cells in table for word in words(cells[0])}
    assert set(THEIR_OPTIONS[:18]) <= listed
    assert all(not cells[3] for cells in table if cells[2] == "–"), "no default without an option"


def test_options_that_the_page_gives_exist() -> None:
    """Each ``name=`` of a code span is an option of the board, of a mapping, of a handler or of Config."""
    keywords = {
        *inspect.signature(Callboard.__init__).parameters,
        *inspect.signature(Callboard.map).parameters,
        *inspect.signature(Runtime.submit).parameters,
        *MappingOptions.__annotations__,
        *(field.name for field in fields(Config)),
        *inspect.signature(importlib.import_module("callboard.runtime").JobFailed.__init__).parameters,
        *("submitted", "status", "error"),  # of Responses
        *("ge", "le"),  # of msgspec.Meta
    }
    spans = [span for span in SPANS if "?" not in span and not span.startswith('status="')]
    used = {name for span in spans for name in re.findall(r"(?<!\w)(\w+)=", span)}
    assert {"max_lost_leases", "validate", "redirect", "store"} <= used
    assert used - keywords - {"board", "config"} == set()


def test_names_with_underscores_are_ours() -> None:
    known = {
        *(field.name for field in (*fields(Config), *fields(Handler))),
        *inspect.signature(Callboard.map).parameters,
        *inspect.signature(Callboard.__init__).parameters,
        *dir(Runtime),
        *dir(JobContext(_JOB, Request(), Reports(lambda: None), lambda: False)),
        *("next_due", "wait_news", "process_data", "current_app"),
    }
    used = {span for span in SPANS if re.fullmatch(r"[a-z]+(_[a-z]+)+", span) and not span.startswith("callboard_")}
    assert {"retry_on", "redact_query"} <= used
    assert used - known == set()


_JOB = Job(id="j", name="N", status=Status.IN_PROGRESS, created_ms=0, updated_ms=0)


def test_attributes_of_job_exist() -> None:
    seen = set(dir(JobContext(_JOB, Request(), Reports(lambda: None), lambda: False)))
    used = {name for span in SPANS for name in re.findall(r"^job\.(\w+)", span)} - {
        "status"
    }  # theirs: job.id and others
    assert {"headers", "route_params", "progress", "cancel_requested"} <= used
    assert used <= seen


def test_symbols_import() -> None:
    symbols = {span for span in SPANS if re.fullmatch(r"callboard(\.\w+)+", span) and span != "callboard.jobs"}
    assert len(symbols) > 10
    for symbol in symbols:
        module, _, name = symbol.rpartition(".")
        assert hasattr(importlib.import_module(module), name), symbol


async def test_metrics_are_those_that_are_told(site: Site) -> None:
    await site.submit(Prefer="wait=5")
    await site.submit("/api/fail", {"code": "NO", "message": "no"}, Prefer="wait=5")
    told = (await site.http.get("/jobs/metrics")).text
    names = set(re.findall(r"^# TYPE (\w+)", told, re.MULTILINE)) | set(re.findall(r"^(\w+)[ {]", told, re.MULTILINE))
    used = {name for span in SPANS for name in re.findall(r"callboard_\w+", span)}
    assert {"callboard_submitted_total", "callboard_jobs"} <= used
    assert used - names == set()


async def test_routes_are_mounted(site: Site) -> None:
    rules = {
        (method, re.sub(r"<job_id>", "<id>", re.sub(r"<\w+:", "<", rule.rule)))
        for rule in site.app.url_map.iter_rules()
        for method in (["WS"] if rule.websocket else rule.methods or ())
    }
    used = {span for span in SPANS if re.match(r"(GET|POST|DELETE|WS) /jobs", span)}
    assert len(used) > 6
    assert {tuple(span.split(" ", 1)) for span in used} <= rules


def test_fields_of_the_document_are_ours() -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith("| | new: `queue`")]
    shared = next(line for line in TEXT.splitlines() if line.startswith("| `id`, `name`, `status`"))
    named = {name for line in (row, shared) for name in re.findall(r"`(\w+)`", line)}
    ours = {wire for _, wire, _ in FIELDS} - {"location"} | {"links"}
    assert named | {"error", "scheduledFor"} == ours


def test_every_test_that_the_index_names_is_there() -> None:
    (defects,) = tables("number", "defect", "caught by")
    (wanted,) = tables("wanted", "shown by")
    numbers = [cells[0] for cells in defects]
    assert numbers == [
        *(f"2.A.{number}" for number in range(1, 8)),
        *(f"2.B.{number}" for number in range(1, 6)),
        *(f"2.C.{number}" for number in range(1, 14)),
        "2.D",
    ]
    checks = {check.__name__ for check in CHECKS}
    for name in (name for cells in (*defects, *wanted) for name in re.findall(r"`([^`]+)`", cells[-1])):
        path, _, test = name.partition("::")
        assert "/" in path, f"{name} names no file"
        if test.startswith("promise_"):
            assert test in checks, name
        else:
            source = (ROOT / "tests" / path).read_text()
            assert not test or re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), name
    assert all("`" in cells[-1] or "2." in cells[-1] or cells[-1] == "not here" for cells in (*defects, *wanted))


def test_every_test_of_this_folder_is_in_the_index() -> None:
    folder = Path(__file__).parent
    for path in folder.glob("test_*.py"):
        if path != Path(__file__):
            for test in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE):
                assert f"`heritage/{path.name}::{test}`" in TEXT or test == "test_c07_the_crashes_are_real"


async def test_the_translated_examples_work(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("the_translation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for source in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(source, vars(module))
    names: dict[str, Any] = vars(module)
    app: QuartTrio = names["app"]
    async with app.test_app() as served:
        client = served.test_client()
        accepted = await client.post("/api/process-data", json={"data": "hello", "processingPriority": 2})
        assert accepted.status_code == 202
        document = await accepted.get_json()
        assert (document["status"], document["maxRetries"], document["result"]) == ("Queued", 3, None)
        await trio.sleep(6)
        ended = await (await client.get(accepted.headers["Location"])).get_json()
        assert ended["result"]["processedData"] == "Processed: HELLO"
        refused = await client.post("/api/checked", json={"data": " "})
        assert (refused.status_code, (await refused.get_json())["detail"]) == (400, "Data field is required")
        beyond = await client.post("/api/checked", json={"data": "x", "processingPriority": 6})
        assert beyond.status_code == 400
        assert (await client.post("/api/checked", json={"data": "x"})).status_code == 202
        report = await client.post("/api/generate-report?format=csv", headers={"Prefer": "wait=5"})
        assert (await report.get_json())["result"] == {"reportData": "Generated report data", "format": "csv"}
