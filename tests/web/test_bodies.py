"""What a client may send: media types, codings, odd JSON, odd headers, and HTTP as raw bytes."""

import gzip
import re
from typing import Any

import httpx
import pytest
import trio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Site, assert_problem

ORDER = b'{"itemName": "x"}'


async def post(site: Site, content: bytes, *headers: tuple[str, str | bytes]) -> httpx.Response:
    sent: list[tuple[bytes, bytes]] = [
        (name.encode(), text if isinstance(text, bytes) else text.encode()) for name, text in headers
    ]
    if not any(name == b"Content-Type" for name, _ in sent):
        sent.append((b"Content-Type", b"application/json"))
    return await site.http.post("/api/orders", content=content, headers=sent)


MEDIA_TYPES = [
    ("application/json", 202),
    ("APPLICATION/Json", 202),
    ("application/json; charset=utf-8", 202),
    ('application/json;charset="UTF-8"', 202),
    ("application/json; charset=us-ascii", 202),
    ("application/json; profile=x; a=b", 202),
    ("application/vnd.shop+json", 202),
    ("application/json;", 202),
    ("application/json; charset=iso-8859-1", 415),
    ("application/json; charset=utf-16", 415),
    ("application/json; charset=utf-8; charset=utf-16", 415),
    ("application/jsonp", 415),
    ("application/json, text/plain", 415),
    ("application/x-ndjson-not", 415),
    ("text/json", 415),
    ("json", 415),
    ("", 415),
    ("application/json\xff", 415),
    ("multipart/form-data; boundary=x", 415),
]


async def test_a_media_type_is_json_in_utf_8_or_415(site: Site) -> None:
    for media_type, status in MEDIA_TYPES:
        answer = await post(site, ORDER, ("Content-Type", media_type.encode("latin1")))
        if status == 415:
            assert_problem(answer, 415)
            assert answer.headers["accept"].startswith("application/json")
        assert answer.status_code == status, answer.text


async def test_two_media_types_are_none(site: Site) -> None:
    assert_problem(await post(site, ORDER, ("Content-Type", "application/json"), ("Content-Type", "text/plain")), 415)


CODINGS = ["gzip", "GZIP", "br", "deflate, gzip", "identity, gzip", "x-unheard-of"]


async def test_a_coded_body_is_415_and_says_what_would_do(site: Site) -> None:
    for coding in CODINGS:
        for content in (gzip.compress(ORDER), ORDER):
            answer = await post(site, content, ("Content-Encoding", coding))
            assert "Content-Encoding" in assert_problem(answer, 415)["detail"]
            assert answer.headers["accept-encoding"] == "identity"
        assert (await site.http.get("/jobs")).json()["jobs"] == []


async def test_identity_is_no_coding(site: Site) -> None:
    for coding in ("identity", "", "Identity, identity"):
        assert (await post(site, ORDER, ("Content-Encoding", coding))).status_code == 202


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\xef\xbb\xbf" + ORDER, 400),
        (ORDER.decode().encode("utf-16"), 400),
        (b' \r\n\t{"itemName": "x"} \n', 202),
        (b'{"itemName": "x"} {"itemName": "y"}', 400),
        (b'{"itemName": "x",}', 400),
        (b"{'itemName': 'x'}", 400),
        (b'{"itemName": "\\ud800"}', 400),
        (b'{"itemName": "\\ud83d\\ude00 \\u0000"}', 202),
        (b'{"itemName": "\x00"}', 400),
        (b'{"itemName": "x", "howMany": 9223372036854775808}', 202),
        (b'{"itemName": "x", "howMany": 99999999999999999999999999}', 202),
        (b'{"itemName": "x", "howMany": -0}', 202),
        (b'{"itemName": "x", "howMany": 01}', 400),
        (b'{"itemName": "x", "howMany": 1.5}', 422),
        (b'{"itemName": "x", "howMany": Infinity}', 400),
        (b'{"itemName": "x", "howMany": true}', 422),
        (b'{"itemName": "x", "unknown": {"deep": [1, 2, {}]}}', 202),
        (b'{"itemName": null}', 422),
        (b"[]", 422),
        (b'""', 422),
        (b"   ", 400),
    ],
)
async def test_odd_json_is_taken_or_refused_and_never_breaks(site: Site, content: bytes, status: int) -> None:
    answer = await post(site, content, ("Prefer", "wait=5"))
    if status == 202:
        assert (answer.status_code, answer.json()["status"]) == (200, "Completed"), answer.text
        assert (await site.http.get(answer.json()["links"]["self"])).json() == answer.json()
    else:
        assert_problem(answer, status)
        assert (await site.http.get("/jobs")).json()["jobs"] == []


async def test_json_as_deep_as_a_body_may_be_is_taken_or_refused(site: Site) -> None:
    """How deep is too deep is the interpreter's: Python 3.13 takes what 3.11 refuses."""
    for depth in (50, 4000):
        nested = b"[" * depth + b"]" * depth
        answer = await post(site, b'{"itemName": "x", "unknown": ' + nested + b"}", ("Prefer", "wait=5"))
        if depth == 50 or answer.status_code == 200:
            assert (answer.status_code, answer.json()["status"]) == (200, "Completed"), answer.text
        else:
            assert_problem(answer, 400)
    assert (await site.http.get("/jobs/health/ready")).status_code == 200


async def test_of_a_key_that_is_there_twice_the_last_counts(site: Site) -> None:
    answer = await post(site, b'{"itemName": "a", "itemName": "b"}', ("Prefer", "wait=5"))
    assert answer.json()["result"]["item"] == "b"


ODD_HEADERS = [
    ("User-Agent", b"\xff\xfe", 202),
    ("X-Any", "zwölf".encode(), 202),
    ("Idempotency-Key", "schlüssel".encode(), 202),
    ("Idempotency-Key", b"\xff", 202),
    ("Idempotency-Key", b'"a\\"b"', 202),
    ("Idempotency-Key", b'"', 202),
    ("Prefer", b"w\xffit=5, wait=0", 202),
    ("X-Async-Request-Id", b"\xff", 400),
    ("X-Async-Request-Id", "٠1234567-89ab-7def-8123-456789abcdef".encode(), 400),
    ("If-None-Match", b'"\xff"', 202),
    ("Origin", b"\xff", 202),
    ("X-Long", b"x" * 8000, 202),
    ("Job-Priority", b"\xb2", 400),
]


async def test_headers_of_any_bytes(site: Site) -> None:
    for header, text, status in ODD_HEADERS:
        answer = await post(site, ORDER, (header, text))
        assert answer.status_code == status, answer.text
        if status == 202:
            assert (await site.ended(answer.json()["id"]))["status"] == "Completed"


async def test_a_key_is_the_same_with_and_without_its_quotes_whatever_its_bytes(site: Site) -> None:
    first = await post(site, ORDER, ("Idempotency-Key", b'"\xc3\xbc"'))
    again = await post(site, ORDER, ("Idempotency-Key", b"\xc3\xbc"))
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (first.json()["id"], "true")


async def raw(site: Site, *lines: str | bytes, body: bytes = b"", expect: bytes = b"") -> bytes:
    """The bytes that come back, up to the end of an answer; ``body`` is sent once ``expect`` has come."""
    host, _, port = site.url.removeprefix("http://").partition(":")
    encoded = b"\r\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    received = b""
    with trio.move_on_after(2):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(encoded + b"\r\n\r\n")
            while expect and expect not in received:
                received += await stream.receive_some(65536)
            await stream.send_all(body)
            while not is_whole(received) and (piece := await stream.receive_some(65536)):
                received += piece
    return received


def is_whole(received: bytes) -> bool:
    """Whether an answer has come with its body: not every connection ends with it."""
    head, _, rest = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return is_whole(rest)
    length = re.search(rb"\r\ncontent-length: ([0-9]+)", head, re.IGNORECASE)
    return length is not None and len(rest) >= int(length[1])


JSON = "Content-Type: application/json"


async def test_http_1_0_is_answered(site: Site) -> None:
    length = f"Content-Length: {len(ORDER)}"
    accepted = await raw(site, "POST /api/orders HTTP/1.0", JSON, length, body=ORDER)
    assert accepted.startswith(b"HTTP/1.1 202")
    listed = await raw(site, "GET /jobs HTTP/1.0")
    assert listed.startswith(b"HTTP/1.1 200") and b'"next":null' in listed
    assert (await raw(site, "GET /jobs/none HTTP/1.0")).startswith(b"HTTP/1.1 404")
    foreign = await raw(site, "POST /jobs/none/cancel HTTP/1.0", "Origin: null")
    assert foreign.startswith(b"HTTP/1.1 403"), "without a Host no origin is the app's own"


@pytest.mark.parametrize("path", ["/jobs", "/jobs/none", "/elsewhere"])
@pytest.mark.parametrize("lines", [("HTTP/1.1", "Host: x", "Connection: close"), ("HTTP/1.0",)], ids=["1.1", "1.0"])
async def test_a_connection_that_ends_with_its_answer_is_closed(site: Site, path: str, lines: tuple[str, ...]) -> None:
    host, _, port = site.url.removeprefix("http://").partition(":")
    received = b""
    with trio.fail_after(3):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all("\r\n".join((f"GET {path} {lines[0]}", *lines[1:], "", "")).encode())
            while piece := await stream.receive_some(65536):
                received += piece
    assert is_whole(received)


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(site: Site) -> None:
    lines = ["POST /api/orders HTTP/1.1", "Host: x", JSON, f"Content-Length: {len(ORDER)}", "Connection: close"]
    answer = await raw(site, *lines, "Expect: 100-continue", body=ORDER, expect=b"100 ")
    assert answer.startswith(b"HTTP/1.1 100") and b"HTTP/1.1 202" in answer


async def test_a_body_that_is_too_large_is_413_before_it_was_sent(site: Site) -> None:
    length = f"Content-Length: {CONFIG.max_body_bytes + 1}"
    answer = await raw(site, "POST /api/orders HTTP/1.1", "Host: x", JSON, length, "Expect: 100-continue")
    assert b"HTTP/1.1 413" in answer and b"application/problem+json" in answer


@pytest.mark.parametrize(
    "start",
    [
        b"GET /jobs/\xff\xfe HTTP/1.1",
        b"GET /jobs/%zz%f HTTP/1.1",
        b"GET /jobs/" + b"x" * 12_000 + b" HTTP/1.1",
        b"GET /jobs/x?" + b"y=%ff&" * 2000 + b" HTTP/1.1",
        b"GET /jobs?name=%00%ff%fe HTTP/1.1",
        b"GET http://evil.example/jobs/none HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET /jobs/\x7f HTTP/1.1",
        b"G\xcbT /jobs HTTP/1.1",
        b"GET /jobs HTTP/3.7",
        b"GET /jobs#x HTTP/1.1",
        b"GET jobs HTTP/1.1",
    ],
)
async def test_odd_request_lines_break_nothing(site: Site, start: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = await raw(site, start, "Host: x", "Connection: close")
    assert not answer or answer[9:12] < b"500", answer[:200]
    assert (await site.http.get("/jobs/health/ready")).status_code == 200
    told = [record for record in caplog.records if record.name.startswith("callboard")]
    assert [record for record in told if "keeps its data in memory only" not in record.getMessage()] == []


async def test_a_long_id_is_none(open_site: OpenSite) -> None:
    site: Any = await open_site()
    for job_id in ("x" * 10_000, "0" * 36, "-" * 36, "01234567-89ab-7def-8123-456789abcdef0", "ä" * 36):
        answer = await site.http.get(f"/jobs/{job_id}")
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:callboard:problem:job-not-found")
