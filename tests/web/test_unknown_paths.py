"""What is answered where no route is, whatever the method; and what a path's own methods are."""

import uuid

import httpx
import pytest
import trio
from tests.web.conftest import OpenSite
from tests.web.matrix import ROWS, Row, target
from tests.web.workshop import Site, assert_problem

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW", "M-SEARCH")

UNKNOWN = (
    *("/jobs/", "/jobs//", "/jobs///", "/jobs/x/y", "/jobs/x/y/z", "/jobs/health/dead", "/jobs/health/live/"),
    *(
        "/jobs//health/live",
        "/jobs/health//live",
        "/jobs//metrics",
        "/jobs//x/cancel",
        "/jobs/x//cancel",
        "/jobs/metrics/",
    ),
    *(
        "/jobs/%2F",
        "/jobs/%2F%2F",
        "/jobs/a%2Fb",
        "/jobs/%2Fmetrics",
        "/jobs/x/%2e%2e/y",
        "/jobs/x/cancel/",
        "/jobs/x/result/",
    ),
    *("/jobs/openapi.json/x", "/jobs/%00/x", "/jobs/%FF/%FE", "/jobs/x%0D%0AX-Evil:%201/y", "/jobs/" + "x/" * 2000),
)


async def ask(site: Site, method: str, path: str) -> httpx.Response:
    return await site.http.request(method, site.url + path)


@pytest.mark.parametrize("method", METHODS)
async def test_an_unknown_path_is_404_whatever_the_method(site: Site, method: str) -> None:
    for path in UNKNOWN:
        answer = await ask(site, method, path)
        assert answer.status_code == 404, (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "x-evil" not in answer.headers and "location" not in answer.headers
        if method == "HEAD":
            assert answer.content == b""
        else:
            assert answer.json()["status"] == 404


async def test_no_redirect_is_made_of_a_doubled_slash(site: Site) -> None:
    """Werkzeug would answer with a page and a Location from the Host header, which anyone can forge."""
    for path in ("/jobs//x", "/jobs//health/live", "/jobs/health//live"):
        answer = await site.http.get(site.url + path, headers={"Host": "evil.example"})
        assert_problem(answer, 404)


async def test_each_route_answers_the_methods_that_it_has_and_names_them(site: Site) -> None:
    routes: dict[str, set[str]] = {}
    for row in ROWS:
        if not row.mapped and row.method != "WS":
            routes.setdefault(row.path, set()).add(row.method)
    for path, own in routes.items():
        allowed = own | {"OPTIONS"} | ({"HEAD"} if "GET" in own else set())
        job_path = target(Row(method="GET", path=path, action=None, status=200), str(uuid.uuid4()))
        for method in METHODS:
            answer = await ask(site, method, job_path)
            if method == "OPTIONS":
                assert (answer.status_code, answer.content) == (204, b""), (method, job_path)
            elif method not in allowed:
                assert answer.status_code == 405, (method, job_path, answer.text)
                assert answer.headers["content-type"] == "application/problem+json"
            else:
                assert answer.status_code in (200, 404), (method, job_path, answer.text)
                continue
            assert answer.headers["allow"] == ", ".join(sorted(allowed))


async def test_a_path_of_its_own_is_no_job(site: Site) -> None:
    for row in ROWS:
        if row.mapped or row.method == "WS" or row.of_job or not row.path or row.path.count("/") > 1:
            continue
        for method in ("DELETE", "PUT", "POST"):
            answer = assert_problem(await ask(site, method, target(row, "")), 405)
            assert answer["detail"] == f"{method} is not for this path."
        assert (await ask(site, "DELETE", f"{target(row, '')}?purge=true")).status_code == 405


async def test_head_is_get_without_a_body_on_every_route(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    places = await site.http.request("DELETE", "/api/things/7", headers={"Prefer": "wait=0"})
    site.gates.open("create 7")
    await site.http.get(f"/jobs/{places.json()['id']}?wait=5&redirect=false")
    paths = [target(row, job["id"]) for row in ROWS if row.method == "GET"]
    paths += [
        f"{places.headers['location']}",
        f"/jobs/{job['id']}?redirect=maybe",
        f"/jobs/{uuid.uuid4()}",
        "/jobs/x/y",
    ]
    for path in paths:
        full, head = await site.http.get(path), await site.http.head(path)
        assert (head.status_code, head.content) == (full.status_code, b""), path
        differing = {"date"}
        if "metrics" in path:
            differing.add("content-length")
        if full.headers.get("content-type", "").startswith("text/event-stream"):
            differing |= {"content-length", "transfer-encoding"}
        assert {*head.headers.items()} ^ {*full.headers.items()} <= {
            (name, value)
            for headers in (head.headers, full.headers)
            for name, value in headers.items()
            if name in differing
        }
    tag = (await site.http.get(f"/jobs/{job['id']}")).headers["etag"]
    assert (await site.http.head(f"/jobs/{job['id']}", headers={"If-None-Match": tag})).status_code == 304


async def test_what_a_client_accepts_changes_nothing(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    for path in (f"/jobs/{job['id']}", "/jobs", "/jobs/x/y", f"/jobs/{uuid.uuid4()}"):
        plain = await site.http.get(path)
        for accept in ("text/html", "application/xml;q=1, */*;q=0", "garbage;;", "*/*"):
            other = await site.http.get(
                path, headers={"Accept": accept, "Accept-Encoding": "gzip", "Accept-Language": "de"}
            )
            assert (other.status_code, other.content) == (plain.status_code, plain.content)
            assert other.headers["content-type"] == plain.headers["content-type"]


async def test_handshakes_where_no_stream_is_are_refused_with_404(site: Site) -> None:
    for path in ("/jobs/x/y", "/jobs/health/live", "/jobs//x/stream", f"/jobs/{uuid.uuid4()}", "/jobs/"):
        refused = await site.refused_handshake(site.url + path)
        assert refused.status_code == 404
        assert refused.headers["content-type"] == "application/problem+json"


async def test_two_apps_in_a_process_keep_their_prefixes_and_their_jobs(open_site: OpenSite) -> None:
    first = await open_site(store="memory://", prefix="/one/jobs")
    second = await open_site(store="memory://", prefix="/two")
    job = (await first.http.post("/api/void", headers={"Prefer": "wait=5"})).json()
    assert job["links"]["self"] == f"/one/jobs/{job['id']}"
    assert (await first.http.get(job["links"]["self"])).json() == job
    assert_problem(await second.http.get(f"/two/{job['id']}"), 404)
    assert (await second.http.get("/two")).json() == {"jobs": [], "next": None}
    for site, path in ((first, "/two"), (second, "/one/jobs")):
        assert (await site.http.get(path)).headers["content-type"].startswith("text/html"), "the app's own 404"


TAG_FORMS = [
    ("%s", 304),
    ("W/%s", 304),
    ('"other", %s', 304),
    ('W/"other" ,%s,"x"', 304),
    ("*", 304),
    ('"other"', 200),
    ('W/"other"', 200),
    ("", 200),
    ('"', 200),
    (",,", 200),
    ("%sx", 200),
]


async def test_if_none_match_in_every_form(site: Site) -> None:
    for form, status in TAG_FORMS:
        job = await site.submit(Prefer="wait=5")
        path = f"/jobs/{job['id']}"
        tag = (await site.http.get(path)).headers["etag"]
        text = form.replace("%sx", tag[:-1] + 'x"').replace("%s", tag)
        answer = await site.http.get(path, headers={"If-None-Match": text})
        assert answer.status_code == status
        assert answer.headers["etag"] == tag
        if status == 304:
            assert answer.content == b"" and "content-type" not in answer.headers
            assert answer.headers["cache-control"] == "private, no-cache"


async def test_several_lines_of_if_none_match_are_one_list(site: Site) -> None:
    job = await site.submit("/api/hold/a", {})
    await site.gates.arrived("a")
    path = f"/jobs/{job['id']}"
    tag = (await site.http.get(path)).headers["etag"]
    lines = [("If-None-Match", '"x"'), ("If-None-Match", tag)]
    assert (await site.http.get(path, headers=lines)).status_code == 304
    began = trio.current_time()
    assert (await site.http.get(f"{path}?wait=0.2", headers=lines)).status_code == 304
    assert trio.current_time() - began >= 0.2


async def test_parameters_given_twice_are_400(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    for query in ("wait=0&wait=0", "redirect=true&redirect=false"):
        assert_problem(await site.http.get(f"/jobs/{job['id']}?{query}"), 400)


async def test_a_huge_wait_is_capped_and_no_mistake(site: Site) -> None:
    job = await site.submit(Prefer="wait=5")
    assert (await site.http.get(f"/jobs/{job['id']}?wait={'9' * 40}")).status_code == 200
    for wrong in ("", "-0", "1e", "٣", "5,5", "9" * 400):
        assert_problem(await site.http.get(f"/jobs/{job['id']}", params={"wait": wrong}), 400)
