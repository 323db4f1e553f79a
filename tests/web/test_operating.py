"""Health, metrics, the OpenAPI document, and what is answered where no route is."""

import dataclasses
from typing import Any

import msgspec
import pydantic
import trio
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from prometheus_client.parser import text_string_to_metric_families
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import Gates, Site, assert_problem, make_site_app

from callboard.runtime import JobContext
from callboard.web import Callboard


async def test_health(site: Site) -> None:
    for path in ("live", "ready"):
        answer = await site.http.get(f"/jobs/health/{path}")
        assert (answer.status_code, answer.json()) == (200, {"status": path, "role": "both"})
        assert answer.headers["cache-control"] == "no-store"


async def test_while_the_app_drains_it_is_alive_but_not_ready(site: Site) -> None:
    site.board.runtime.begin_drain()
    assert (await site.http.get("/jobs/health/live")).status_code == 200
    answer = await site.http.get("/jobs/health/ready")
    assert_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1


async def metric(site: Site, sample_name: str, /, **labels: str) -> float:
    answer = await site.http.get("/jobs/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name == sample_name and sample.labels == labels:
                return float(sample.value)
    raise AssertionError(f"no {sample_name} {labels} in\n{answer.text}")


async def test_metrics_count_what_the_store_holds_and_what_runs(site: Site) -> None:
    assert await metric(site, "callboard_jobs", queue="default", status="Queued") == 0
    await site.submit(Prefer="wait=5")
    await site.submit("/api/fail", {"code": "NO", "message": "no"}, Prefer="wait=5")
    await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    assert await metric(site, "callboard_jobs", queue="default", status="Completed") == 1
    assert await metric(site, "callboard_jobs", queue="default", status="Failed") == 1
    assert await metric(site, "callboard_jobs", queue="default", status="InProgress") == 1
    assert await metric(site, "callboard_running_attempts") == 1
    assert await metric(site, "callboard_submitted_total", name="Order") == 1
    assert await metric(site, "callboard_finished_total", name="Fail", status="Failed") == 1
    assert await metric(site, "callboard_draining") == 0
    site.board.runtime.begin_drain()
    assert await metric(site, "callboard_draining") == 1


async def test_two_boards_in_one_process_keep_their_own_numbers(open_site: OpenSite) -> None:
    first, second = await open_site(store="memory://"), await open_site(store="memory://")
    await first.submit(Prefer="wait=5")
    assert await metric(first, "callboard_jobs", queue="default", status="Completed") == 1
    assert await metric(second, "callboard_jobs", queue="default", status="Completed") == 0


class Tone(pydantic.BaseModel):
    depth: int = 1


class Paint(pydantic.BaseModel):
    colour: str
    tone: Tone | None = None
    coats: int = pydantic.Field(default=1, ge=1)


@dataclasses.dataclass
class Part:
    part_number: int


class Kit(msgspec.Struct, rename="camel", tag_field="kind", tag="kit"):
    many_parts: list[Part]


class Job(msgspec.Struct):
    """An app's own type, of a name that callboard might want for itself."""

    mine: int


def typed_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/paint/<string(length=2):code>", name="paint.wall")
    async def paint(job: JobContext, request: Paint) -> Paint:
        return request

    @board.post("/api/jobs", name="Job")
    async def own(job: JobContext, request: Job) -> int:
        return request.mine

    @board.put("/api/kits", name="Kit")
    async def kit(job: JobContext, request: Kit) -> Part:
        return request.many_parts[0]

    return app


async def test_the_openapi_document_is_valid_and_covers_the_mapped_and_the_job_routes(open_site: OpenSite) -> None:
    site = await open_site(make_app=typed_app)
    document: dict[str, Any] = (await site.http.get("/jobs/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    validate(document, cls=OpenAPIV31SpecValidator)
    paths = document["paths"]
    assert set(paths["/api/orders"]) == {"post"}
    assert set(paths["/api/things/{number}"]) == {"delete"}
    assert "requestBody" not in paths["/api/things/{number}"]["delete"]
    assert paths["/api/things/{number}"]["delete"]["parameters"][0]["schema"]["type"] == "integer"
    asked = paths["/api/orders"]["post"]["parameters"]
    assert {"$ref": "#/components/parameters/JobDelay"} in asked
    assert {"$ref": "#/components/parameters/JobPriority"} in asked
    assert "JobDelay" not in str(paths["/api/fail"])
    components = document["components"]["schemas"]
    assert set(components["Order"]["properties"]) == {"itemName", "howMany"}
    assert components["Order"]["required"] == ["itemName"]
    assert set(components["Paint"]["properties"]) == {"colour", "tone", "coats"}
    assert components["Job"]["properties"] == {"mine": {"type": "integer"}}
    assert set(components["Part"]["properties"]) == {"part_number"}
    body = paths["/api/kits"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Kit"}
    job = await site.submit()
    assert list(components["CallboardJob"]["properties"]) == list(job)
    for method, path in (("get", ""), ("get", "/{job_id}"), ("delete", "/{job_id}"), ("post", "/{job_id}/cancel")):
        assert method in paths[f"/jobs{path}"]
    assert {"/jobs/{job_id}/result", "/jobs/{job_id}/retry", "/jobs/health/live", "/jobs/health/ready"} <= set(paths)


async def test_what_the_types_declare_is_what_is_on_the_wire(open_site: OpenSite) -> None:
    site = await open_site(make_app=typed_app)
    wait = {"Prefer": "wait=5"}
    painted = await site.http.post("/api/paint/ab", json={"colour": "red"}, headers=wait)
    assert painted.json()["result"] == {"colour": "red", "tone": None, "coats": 1}
    problem = assert_problem(await site.http.post("/api/paint/ab", json={"coats": 0}), 422)
    assert {error["pointer"] for error in problem["errors"]} == {"/colour", "/coats"}
    kit = await site.http.put("/api/kits", json={"kind": "kit", "manyParts": [{"part_number": 5}]}, headers=wait)
    assert kit.json()["result"] == {"part_number": 5}
    problem = assert_problem(
        await site.http.put("/api/kits", json={"kind": "kit", "manyParts": [{"part_number": 5}, {}]}), 422
    )
    assert problem["errors"][0]["pointer"] == "/manyParts/1"


async def test_a_method_that_a_path_does_not_take_is_405(site: Site) -> None:
    for method, path, allowed in [
        ("POST", "/jobs", "GET, HEAD, OPTIONS"),
        ("PUT", "/jobs/01234567-89ab-7def-8123-456789abcdef", "DELETE, GET, HEAD, OPTIONS"),
        ("GET", "/jobs/01234567-89ab-7def-8123-456789abcdef/cancel", "OPTIONS, POST"),
        ("BREW", "/jobs/metrics", "GET, HEAD, OPTIONS"),
        ("POST", "/jobs/openapi.json", "GET, HEAD, OPTIONS"),
        ("PATCH", "/jobs/health/live", "GET, HEAD, OPTIONS"),
        ("DELETE", "/jobs/metrics", "GET, HEAD, OPTIONS"),
    ]:
        answer = await site.http.request(method, path)
        assert_problem(answer, 405)
        assert answer.headers["allow"] == allowed
        options = await site.http.options(path)
        assert (options.status_code, options.headers["allow"]) == (204, allowed)


async def test_an_unknown_path_under_the_prefix_is_404(site: Site) -> None:
    for path in ["/jobs/", "/jobs/a/b", "/jobs/health", "/jobs/health/dead", "/jobs/a/result/b", "/jobs/%2e%2e/x"]:
        for method in ["GET", "POST", "OPTIONS", "BREW"]:
            answer = await site.http.request(method, path)
            if path == "/jobs/health" and method == "GET":
                assert_problem(answer, 404)
            elif path == "/jobs/health":
                assert answer.status_code in (204, 405)  # the path of a job with a malformed id
            else:
                assert answer.status_code == 404
                assert answer.headers["content-type"] == "application/problem+json"


async def test_head_is_get_without_a_body(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    answer = await site.http.head(f"/jobs/{job['id']}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["etag"] == (await site.http.get(f"/jobs/{job['id']}")).headers["etag"]


async def test_a_busy_site_answers_everyone(site: Site) -> None:
    async def one() -> None:
        job = await site.submit(Prefer="wait=5")
        assert job["status"] == "Completed"

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(one)
    assert await metric(site, "callboard_jobs", queue="default", status="Completed") == 50
