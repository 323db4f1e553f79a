"""Metrics and traces over HTTP: what a scrape finds before and after, on each store; and that nothing of one board is in another's."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Cut, Site, patient

from callboard.stores.memory import MemoryStore

ROOT = Path(__file__).resolve().parents[2]
LABELS = {"name", "queue", "status", "outcome", "verb", "le", "role", "version"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def families(site: Site) -> list[Metric]:
    """All but prometheus-client's own times of birth of each counter."""
    answer = await site.http.get("/jobs/metrics")
    assert answer.status_code == 200
    return [family for family in text_string_to_metric_families(answer.text) if not family.name.endswith("_created")]


async def samples(site: Site) -> Samples:
    found: Samples = {}
    for family in await families(site):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = float(sample.value)
    return found


def labeled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


class Growth:
    """How far each number grew between two scrapes."""

    def __init__(self, before: Samples, after: Samples) -> None:
        self._before, self._after = before, after

    def of(self, sample: str, /, **labels: str) -> float:
        key = (sample, frozenset(labels.items()))
        return self._after[key] - self._before.get(key, 0)


async def test_every_number_of_a_days_work(site: Site) -> None:
    before = await samples(site)
    await site.submit(Prefer="wait=5")
    await site.submit("/api/fail", {"code": "NO", "message": "no", "retryable": True}, Prefer="wait=5")
    held = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    assert (await site.http.post(f"/jobs/{held['id']}/cancel", headers={"Prefer": "wait=5"})).status_code == 200
    grown = Growth(before, await samples(site))

    assert grown.of("callboard_submitted_total", name="Order") == 1
    assert grown.of("callboard_finished_total", name="Order", status="Completed") == 1
    assert grown.of("callboard_finished_total", name="Order", status="Failed") == 0
    assert grown.of("callboard_retried_total", name="Fail") == 1
    assert grown.of("callboard_finished_total", name="Fail", status="Failed") == 1
    assert grown.of("callboard_finished_total", name="Hold", status="Canceled") == 1
    assert grown.of("callboard_queue_seconds_count", name="Fail", queue="default") == 2
    assert grown.of("callboard_handler_seconds_count", name="Order", outcome="Completed") == 1
    assert grown.of("callboard_handler_seconds_count", name="Fail", outcome="Failed") == 2, "once for each attempt"
    assert grown.of("callboard_handler_seconds_count", name="Hold", outcome="Canceled") == 1
    assert grown.of("callboard_processing_seconds_count", name="Fail", status="Failed") == 1
    assert grown.of("callboard_jobs", queue="default", status="Completed") == 1
    assert grown.of("callboard_jobs", queue="default", status="Canceled") == 1
    commits = grown.of("callboard_store_operation_seconds_count", verb="commit")
    assert commits == grown.of("callboard_commit_writes_count") >= 7
    assert grown.of("callboard_commit_writes_sum") >= commits
    assert 0 < grown.of("callboard_store_operation_seconds_sum", verb="commit") < 5
    errors = {key: count for key, count in (await samples(site)).items() if key[0] == "callboard_store_errors_total"}
    assert errors and not any(errors.values())


async def test_durations_are_in_seconds(open_site: OpenSite) -> None:
    site = await open_site(config=CONFIG)
    job = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    await trio.sleep(0.5)
    site.gates.open("a")
    await patient(lambda: ended(site, job["id"]))
    found = await samples(site)
    assert 0.5 <= found["callboard_handler_seconds_sum", labeled(name="Hold", outcome="Completed")] < 5
    # Times of records: this process knows the store's clock no better than it was answered the last time.
    assert 0.2 <= found["callboard_processing_seconds_sum", labeled(name="Hold", status="Completed")] < 5
    assert found["callboard_queue_seconds_sum", labeled(name="Hold", queue="default")] < 2


async def ended(site: Site, job_id: str) -> bool:
    return (await site.http.get(f"/jobs/{job_id}")).json()["completedAt"] is not None


async def test_the_numbers_of_a_handler_are_there_before_its_first_job(site: Site) -> None:
    """Prometheus sees an increase only from a number that was there."""
    found = await samples(site)
    assert found["callboard_submitted_total", labeled(name="Order")] == 0
    assert found["callboard_retried_total", labeled(name="Order")] == 0
    assert found["callboard_finished_total", labeled(name="Order", status="Failed")] == 0
    assert found["callboard_refused_total", labeled(name="Order")] == 0
    await site.submit(Prefer="wait=5")
    assert (await samples(site))["callboard_store_errors_total", labeled(verb="commit")] == 0


async def test_labels_have_few_values_and_names_are_prometheus_own_kind(site: Site) -> None:
    jobs = [await site.submit(Prefer="wait=5") for _ in range(3)]
    for family in await families(site):
        assert re.fullmatch(r"callboard_[a-z_]+", family.name)
        assert family.documentation
        assert "seconds" in family.name or family.type != "histogram" or family.name == "callboard_commit_writes"
        for sample in family.samples:
            assert set(sample.labels) <= LABELS
            assert not set(sample.labels.values()) & {job["id"] for job in jobs}
            assert (family.type == "counter") == sample.name.endswith("_total")


async def test_a_store_that_is_cut_off_costs_its_own_numbers_only(open_site: OpenSite) -> None:
    store = Cut(MemoryStore())
    site = await open_site(store=store)
    await site.submit(Prefer="wait=5")
    store.is_cut = True
    assert (await site.http.post("/api/orders", json={"itemName": "x"})).status_code == 503
    found = await samples(site)
    store.is_cut = False
    assert not [key for key in found if key[0] == "callboard_jobs"]
    assert found["callboard_submitted_total", labeled(name="Order")] == 1
    assert found["callboard_store_errors_total", labeled(verb="commit")] == 1
    assert "callboard_jobs" in {name for name, _ in await samples(site)}


async def test_two_boards_in_one_process_never_meet(open_site: OpenSite) -> None:
    first, second = await open_site(store="memory://"), await open_site(store="memory://")
    before = await samples(second)
    await first.submit(Prefer="wait=5")
    for name in ("callboard_submitted_total", "callboard_finished_total", "callboard_handler_seconds_count"):
        assert total(await samples(first), name) == 1
        assert total(await samples(second), name) == total(before, name) == 0


async def test_two_processes_on_one_store_count_a_job_once(open_site: OpenSite, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db?synchronous=normal"
    sites = await open_site(store=url), await open_site(store=url)
    for _ in range(4):
        await sites[0].submit(Prefer="wait=5")
    scrapes = [await samples(site) for site in sites]
    for name in (
        "callboard_submitted_total",
        "callboard_finished_total",
        "callboard_queue_seconds_count",
        "callboard_handler_seconds_count",
        "callboard_processing_seconds_count",
    ):
        assert sum(total(scrape, name) for scrape in scrapes) == 4, name
    held = [scrape["callboard_jobs", labeled(queue="default", status="Completed")] for scrape in scrapes]
    assert held == [4, 4], "what the store holds is the same for all"


def total(found: Samples, sample: str) -> float:
    return sum(value for (name, _), value in found.items() if name == sample)


async def test_the_page_lists_every_metric_and_no_other(open_site: OpenSite) -> None:
    store = Cut(MemoryStore())
    site = await open_site(store=store)
    await site.submit(Prefer="wait=5")
    store.is_cut = True
    await site.http.post("/api/orders", json={"itemName": "x"})
    store.is_cut = False
    shown = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type) for family in await families(site)
    }
    page = (ROOT / "docs" / "telemetry.md").read_text()
    table = page.partition("| metric | kind |")[2].partition("\n\n")[0]
    listed = {(name, kind) for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.MULTILINE)}
    assert listed == shown
    # What the table for those who come from AsyncEndpoints leads to is there.
    heritage = page.partition("| AsyncEndpoints | callboard |")[2].partition("\n\n")[0]
    names = set(re.findall(r"`(callboard_\w+)", heritage))
    assert names
    assert {re.sub(r"_count$", "", name) for name in names} <= {name for name, _ in shown}


# Traces.


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    yield InMemorySpanExporter()
    assert context.get_current() == {}


def provider_of(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def spans(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def ids(of: Any) -> tuple[str, str]:
    return f"{of.trace_id:032x}", f"{of.span_id:016x}"


async def test_a_trace_goes_from_the_callers_span_to_the_job(
    open_site: OpenSite, exporter: InMemorySpanExporter
) -> None:
    site = await open_site(tracer_provider=provider_of(exporter))
    caller = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    job = await site.submit(Prefer="wait=5", Traceparent=f"00-{caller[0]}-{caller[1]}-01")
    (submit,), (process,) = spans(exporter, "Job.Submit"), spans(exporter, "Job.Process")
    assert ids(submit.parent) == caller
    assert process.parent is None
    assert [ids(link.context) for link in process.links] == [ids(submit.context)]
    assert (process.attributes or {})["job.id"] == job["id"]


async def test_a_request_that_is_refused_before_it_is_a_submission_is_none(
    open_site: OpenSite, exporter: InMemorySpanExporter
) -> None:
    site = await open_site(tracer_provider=provider_of(exporter))
    answer: httpx.Response = await site.http.post("/api/orders", json={"wrong": 1})
    assert answer.status_code == 422
    assert spans(exporter, "Job.Submit") == []
