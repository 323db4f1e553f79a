"""``Origin`` on every unsafe method and every handshake: whose pages may, and what cannot be forged."""

from typing import Any

import pytest
from tests.web.matrix import HANDSHAKE, ROWS, Row, ask, make_job
from tests.web.workshop import Site, assert_problem

from callboard.runtime.core.errors import ConfigError
from callboard.web import Callboard
from callboard.web.access import Access
from callboard.web.checks import checked_origins

GUARDED = [row for row in ROWS if not row.mapped and row.method != "GET"]
SAFE = [row for row in ROWS if row.method == "GET"]


async def answered(site: Site, row: Row, headers: dict[str, str]) -> int:
    job_id = await make_job(site, row.of_job, {}) if row.of_job else ""
    answer = await ask(site, row, job_id, headers)
    if answer.status_code != row.status:
        assert assert_problem(answer, 403)["type"] == "urn:callboard:problem:foreign-origin"
    return answer.status_code


async def test_every_unsafe_route_and_every_handshake_refuses_foreign_pages_and_no_safe_one_does(site: Site) -> None:
    assert {"WS", "POST", "DELETE"} <= {row.method for row in GUARDED}
    for row in GUARDED:
        assert await answered(site, row, {"Origin": "https://evil.example"}) == 403, row.name
        assert await answered(site, row, {"Origin": site.url}) == row.status, row.name
        assert await answered(site, row, {}) == row.status, row.name
    for row in SAFE:
        assert await answered(site, row, {"Origin": "https://evil.example"}) == row.status, row.name
    for method, path in (("POST", "/jobs"), ("BREW", "/jobs/x/y"), ("PUT", "/jobs/metrics"), ("DELETE", "/jobs/none")):
        assert_problem(await site.http.request(method, path, headers={"Origin": "https://evil.example"}), 403)


OWN = [
    ("https://shop.example", "shop.example"),
    ("http://shop.example", "shop.example"),
    ("https://SHOP.example", "Shop.EXAMPLE"),
    ("https://shop.example", "shop.example:443"),
    ("http://shop.example", "shop.example:80"),
    ("https://shop.example:443", "shop.example"),
    ("https://shop.example:8443", "shop.example:8443"),
    ("http://[::1]", "[::1]:80"),
    ("http://[::1]:8000", "[::1]:8000"),
    ("http://127.0.0.1:5", "127.0.0.1:5"),
]

FOREIGN = [
    ("null", "shop.example"),
    ("null", ""),
    ("null", "null"),
    ("", "shop.example"),
    ("", ""),
    ("file://", "shop.example"),
    ("file://", ""),
    ("https://", ""),
    ("shop.example", "shop.example"),
    ("//shop.example", "shop.example"),
    ("chrome-extension://shop.example", "shop.example"),
    ("https://shop.example.evil.example", "shop.example"),
    ("https://evil.example/shop.example", "shop.example"),
    ("https://evil.example#shop.example", "shop.example"),
    ("https://shop.example@evil.example", "shop.example"),
    ("https://evil.example@shop.example", "shop.example"),
    ("https://notshop.example", "shop.example"),
    ("https://shop.example:8443", "shop.example"),
    ("https://shop.example:80", "shop.example"),
    ("http://shop.example:443", "shop.example"),
    ("https://shop.example", "shop.example:80"),
    ("https://shop.example", "shop.example:8443"),
    ("https://shop.example https://evil.example", "shop.example"),
    ("https://shop.example,https://evil.example", "shop.example"),
    ("http://[::1]:8000", "[::1]:8001"),
    ("http://[::1]", "::1"),
]


BY_HOST = [(*pair, 404) for pair in OWN] + [(*pair, 403) for pair in FOREIGN]


async def test_the_apps_own_origin_is_that_of_its_host(site: Site) -> None:
    for origin, host, status in BY_HOST:
        headers = {"Origin": origin, "Host": host}
        assert_problem(await site.http.post("/jobs/none/cancel", headers=headers), status)
        assert (await site.http.get("/jobs/none/stream", headers={**headers, **HANDSHAKE})).status_code == status


async def test_a_second_origin_is_judged_too(site: Site) -> None:
    headers = [("Origin", site.url), ("Origin", "https://evil.example")]
    for sent in (headers, headers[::-1]):
        assert_problem(await site.http.post("/jobs/none/cancel", headers=sent), 403)


async def test_what_a_proxy_could_say_and_anyone_can_forge_does_not_count(site: Site) -> None:
    for name in ("X-Forwarded-Host", "X-Original-Host", "X-Forwarded-Server", "Forwarded", "X-Host"):
        text = "host=evil.example;proto=https" if name == "Forwarded" else "evil.example"
        headers = {"Origin": "https://evil.example", name: text}
        assert_problem(await site.http.post("/jobs/none/cancel", headers=headers), 403)


ALLOWED = [
    ("https://Shop.example/", "https://shop.example", 404),
    ("https://shop.example:443", "https://shop.example", 404),
    ("https://shop.example", "HTTPS://SHOP.EXAMPLE:443", 404),
    ("http://[::1]:3000", "http://[::1]:3000", 404),
    ("http://localhost:3000", "http://localhost:3000", 404),
    ("app://callboard", "app://callboard", 404),
    ("null", "null", 404),
    ("*", "null", 404),
    ("*", "https://evil.example", 404),
    ("*", "rubbish", 404),
    ("https://shop.example", "http://shop.example", 403),
    ("https://shop.example", "https://shop.example:8443", 403),
    ("https://shop.example", "https://sub.shop.example", 403),
    ("https://shop.example", "null", 403),
    ("http://localhost:3000", "http://localhost", 403),
]


async def test_allowed_origins(site: Site) -> None:
    for allowed, origin, status in ALLOWED:
        site.board.access = Access(None, None, checked_origins([allowed]))
        assert_problem(await site.http.post("/jobs/none/cancel", headers={"Origin": origin}), status)
        assert (await site.refused_handshake("/jobs/none/stream", Origin=origin)).status_code == status


@pytest.mark.parametrize(
    "wrong", ["shop.example", "https://*.shop.example", "https://shop.example/path", "", 5, "https://"]
)
def test_an_allowed_origin_that_no_browser_sends_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="give a list of origins"):
        Callboard(allowed_origins=[wrong])
