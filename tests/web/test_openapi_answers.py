"""What the OpenAPI document says of answers, both ways: every answer is in it, and every answer in it is really given."""

from typing import Any

import httpx
import pytest
from tests.web.conftest import OpenSite
from tests.web.test_openapi import Document, follow, misfits, operations
from tests.web.workshop import Cut, Site

from callboard.runtime import Config
from callboard.stores.memory import MemoryStore

NOT_PROVOKED = {"500", "408"}
"""A bug, and a body that takes a minute."""

ELSEWHERE = {"404", "405"}
"""Of mapped routes: the app's own, when its router finds no route."""


class Observer:
    """Checks each answer of a site against its document, and remembers which there were."""

    def __init__(self, site: Site, document: Document) -> None:
        self.document = document
        self.seen: set[tuple[str, str]] = set()
        self.site = site
        site.http.event_hooks["response"].append(self.observe)

    async def observe(self, response: httpx.Response) -> None:
        await response.aread()
        request = response.request
        operation = self.operation(request.method.lower(), request.url.path)
        if operation is None:
            return
        status = str(response.status_code)
        where = f"{request.method} {request.url}: {status}"
        assert status in operation["responses"], f"{where} is not in the document: {response.text}"
        answer = follow(self.document, operation["responses"][status])
        self.check_headers(answer, response, where)
        kind = response.headers.get("content-type", "").partition(";")[0]
        if kind or answer.get("content"):
            schema = answer["content"][kind]["schema"]
            value = response.text if kind.startswith("text/") or "ndjson" in kind else response.json()
            assert misfits(self.document, schema, value) == [], where
        self.seen.add((operation["operationId"], status))

    def check_headers(self, answer: Any, response: httpx.Response, where: str) -> None:
        described = {name: follow(self.document, one) for name, one in answer.get("headers", {}).items()}
        for name, header in described.items():
            assert name in response.headers or not header.get("required"), f"{where} has no {name}"
        ours = set(self.document["components"]["headers"]) & {name.title() for name in response.headers}
        surplus = {name for name in ours if name.lower() not in {known.lower() for known in described}}
        assert not surplus, f"{where}: {surplus} are not in the document"

    def operation(self, method: str, path: str) -> Any:
        """The operation of a request; a path without variables comes first."""
        for template_path in sorted(self.document["paths"], key=lambda path: path.count("{")):
            parts, given = template_path.split("/"), path.split("/")
            if len(parts) == len(given) and all(
                "{" in part or part == real for part, real in zip(parts, given, strict=True)
            ):
                return self.document["paths"][template_path].get(method)
        return None


async def observed(open_site: OpenSite, **options: Any) -> Observer:
    site = await open_site(**options)
    return Observer(site, (await site.http.get("/jobs/openapi.json")).json())


def documented(document: Document, *identifiers: str) -> set[tuple[str, str]]:
    return {
        (operation["operationId"], status)
        for _, _, operation in operations(document)
        if operation["operationId"] in identifiers
        for status in operation["responses"]
        if status not in NOT_PROVOKED
    }


async def submits(site: Site) -> None:
    """Every answer of a mapped route, but those of a store that is away."""
    http, order = site.http, {"itemName": "x"}
    again = {"Idempotency-Key": "k", "Prefer": "wait=5"}
    for body in (order, order, {"itemName": "y"}):
        await http.post("/api/orders", json=body, headers=again)
    own = {"X-Async-Request-Id": "01977f3e-8a4c-7d21-b0f5-3c9d6e2a4b10"}
    for body in (order, order, {"itemName": "y"}):
        await http.post("/api/orders", json=body, headers=own)
    await http.post("/api/void", headers=own)
    await http.post("/api/void", content=b" " * 20_000)
    await http.post("/api/void", headers={"Prefer": "wait=5"})
    await http.post("/api/orders", content="{", headers={"Content-Type": "application/json"})
    await http.post("/api/orders", content="<a/>", headers={"Content-Type": "text/xml"})
    await http.post("/api/orders", json=order | {"itemName": "x" * 20_000})
    await http.post("/api/orders", json=order, headers={"Job-Delay": "60"})
    lines = {"Content-Type": "application/x-ndjson"}
    for text in ('{"itemName": "x"}\n{"itemName": "y"}\n', '{"itemName": "x"}\n{"itemName": 1}\n', "\n"):
        await http.post("/api/orders", content=text, headers=lines)
    await http.post("/api/void", content="{}", headers=lines)
    await http.post("/api/void", headers={"Job-Delay": "1"})
    for key in ("/api/void", "/api/void?other"):
        await http.post(key, headers={"Idempotency-Key": "v", "X-Caller": "guest"})


async def steers(site: Site) -> None:
    """Every answer of the job routes, but those of a store that is away and of rights."""
    http = site.http
    ended = (await site.submit(Prefer="wait=5"))["id"]
    failed = (await site.submit("/api/fail", {"code": "NO", "message": "no"}, Prefer="wait=5"))["id"]
    held = (await site.submit("/api/hold/b", {}))["id"]
    await site.gates.arrived("b")
    site.gates.open("create 7")
    made = (await http.delete("/api/things/7", headers={"Prefer": "wait=5"})).json()["id"]
    nobody = "01977f3e-8a4c-7d21-b0f5-000000000000"
    tag = (await http.get(f"/jobs/{ended}")).headers["etag"]
    await http.get(f"/jobs/{ended}", headers={"If-None-Match": tag})
    await http.get(f"/jobs/{made}", follow_redirects=False)
    await http.get(f"/jobs/{ended}?wait=soon")
    for path in ("", "/result", "/attempts"):
        await http.get(f"/jobs/{nobody}{path}")
        await http.get(f"/jobs/{held}{path}")
        await http.get(f"/jobs/{ended}{path}")
        await http.get(f"/jobs/{failed}{path}")
    for method, action in (("POST", "/cancel"), ("DELETE", ""), ("POST", "/retry")):
        for job_id in (nobody, ended):
            await http.request(method, f"/jobs/{job_id}{action}")
        await http.request(method, f"/jobs/{held}{action}", headers={"Origin": "https://evil.example"})
    await http.delete(f"/jobs/{held}?purge=perhaps")
    later = [(await site.submit(Job_Delay="60"))["id"] for _ in range(2)]
    await http.post(f"/jobs/{later[0]}/cancel")
    await http.get(f"/jobs/{later[0]}/result")
    await http.delete(f"/jobs/{later[1]}")
    await http.post(f"/jobs/{later[1]}/retry")
    await http.delete(f"/jobs/{later[0]}?purge=true")
    await http.get("/jobs?status=Failed&status=Completed&limit=1")
    await http.get("/jobs?limit=0")
    for path in (f"{ended}/events", f"{ended}/events?after=99", f"{ended}/events?after=x", f"{nobody}/events"):
        await http.get(f"/jobs/{path}")
    for path in ("health/live", "health/ready", "metrics", "openapi.json", "ui", "queues"):
        await http.get(f"/jobs/{path}")
    for action in ("pause", "resume"):
        for queue in ("default", "nobody's"):
            await http.post(f"/jobs/queues/{queue}/{action}")
        await http.post(f"/jobs/queues/default/{action}", headers={"Origin": "https://evil.example"})


JOBS = (
    *("followJob", "listJobs", "getJob", "getResult", "deleteJob", "cancelJob", "retryJob"),
    *("listAttempts", "listQueues", "pauseQueue", "resumeQueue", "live", "ready", "metrics", "openapi", "ui"),
)


async def test_each_answer_in_the_document_is_given_and_no_other(open_site: OpenSite) -> None:
    calm = await observed(open_site)
    await submits(calm.site)
    await steers(calm.site)
    seen = set(calm.seen)

    running = calm.site
    for gate, method, action in (("c", "POST", "/cancel"), ("d", "DELETE", "")):
        held = (await running.submit(f"/api/hold/{gate}", {}))["id"]
        await running.gates.arrived(gate)
        assert (await running.http.request(method, f"/jobs/{held}{action}")).status_code == 202
    seen |= calm.seen

    full = await observed(open_site, config=Config(max_queue_size=1, max_concurrent_jobs=0), store="memory://")
    for _ in range(2):
        await full.site.http.post("/api/orders", json={"itemName": "x"})
        first = await full.site.http.post("/api/void")
    assert first.status_code == 429
    job = (await full.site.http.get("/jobs")).json()["jobs"][0]["id"]
    await full.site.http.post(f"/jobs/{job}/cancel")
    await full.site.http.post("/api/void")
    await full.site.http.post(f"/jobs/{job}/retry")
    seen |= full.seen

    for answer in (lambda *_: False, lambda _, action, job: action == "read"):
        strict = await observed(open_site, authorize=answer, store="memory://")
        for method, path in (
            ("GET", "/jobs"),
            ("GET", "/jobs/metrics"),
            ("GET", "/jobs/ui"),
            ("GET", "/jobs/queues"),
            ("POST", "/api/void"),
        ):
            assert (await strict.site.http.request(method, path)).status_code == 403
        seen |= strict.seen

    store = Cut(MemoryStore())
    away = await observed(open_site, store=store, config=Config(store_timeout_seconds=0.2))
    held = (await away.site.submit("/api/hold/a", {}))["id"]
    store.is_cut = True
    await away.site.http.post("/api/orders", json={"itemName": "x"})
    for method, path in MOST:
        assert (await away.site.http.request(method, path.replace("ID", held))).status_code == 503, path
    store.is_cut = False
    seen |= away.seen
    missing = (
        documented(calm.document, "submit_Order", "submit_Void", *JOBS) - seen - {("live", "503"), ("metrics", "503")}
    )
    assert not missing, f"in the document, and never given: {sorted(missing)}"


MOST = [
    *(("GET", path) for path in ("/jobs", "/jobs/ID", "/jobs/ID/result", "/jobs/health/ready")),
    *(("GET", "/jobs/ID/attempts"), ("GET", "/jobs/ID/events"), ("GET", "/jobs/queues")),
    *(("POST", "/jobs/queues/default/pause"), ("POST", "/jobs/queues/default/resume")),
    *(("DELETE", "/jobs/ID"), ("POST", "/jobs/ID/cancel"), ("POST", "/jobs/ID/retry"), ("POST", "/api/void")),
]


@pytest.mark.parametrize("fault", ["status", "field"])
async def test_the_observer_sees_a_planted_fault(open_site: OpenSite, fault: str) -> None:
    watched = await observed(open_site, store="memory://")
    read = watched.document["paths"]["/jobs/{job_id}"]["get"]["responses"]
    if fault == "status":
        del read["404"]
        with pytest.raises(AssertionError, match="404 is not in the document"):
            await watched.site.http.get("/jobs/nobody")
        return
    watched.document["components"]["schemas"]["CallboardJob"]["properties"]["seq"] = {"type": "string"}
    with pytest.raises(AssertionError, match="202"):
        await watched.site.submit()
