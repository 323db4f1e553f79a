"""What must not be kept is in no byte of the store, in no line of the log and in no answer."""

import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, make_site_app

from callboard.runtime import JobContext
from callboard.runtime.core.codec import encode_job, encode_request
from callboard.stores.memory import MemoryDatabase, MemoryStore
from callboard.web import Callboard

SECRET = "s3cret"
HEADERS = [
    *(("Authorization", f"Bearer {SECRET}"), ("AUTHORIZATION", f"Basic {SECRET}"), ("Cookie", f"sid={SECRET}")),
    *(("cookie", f"other={SECRET}"), ("Proxy-Authorization", SECRET), ("X-Api-Key", SECRET), ("x-API-key", SECRET)),
    *(("X-Auth-Token", SECRET), ("X-Session", SECRET), ("x-SESSION", SECRET)),
]
QUERY = f"?token={SECRET}&token={SECRET}&Token={SECRET}&%74oken={SECRET}&pass+word={SECRET}&pass%20word={SECRET}&a=kept"
CONFIG_OF_APP = replace(CONFIG, unstored_headers=("x-session",), redact_query=("token", "Pass Word"))


def talking_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = make_site_app(board, gates)

    @board.post("/api/seen", name="Seen too", max_retries=0)
    async def seen(job: JobContext, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("fail"):
            raise ValueError("no luck")
        return {
            "headers": {name: job.headers.getlist(name) for name in job.headers},
            "query": {name: job.query_params.getlist(name) for name in job.query_params},
        }

    return app


async def lives(site: Site) -> list[dict[str, Any]]:
    """Jobs that complete, fail, are refused and repeated, all with secrets; the documents."""
    documents = []
    bodies: list[dict[str, bool]] = [{}, {"fail": True}]
    for body in bodies:
        for extra in ({}, {"Idempotency-Key": "k" + str(body)}, {"X-Async-Request-Id": str(uuid.uuid4())}):
            for _ in range(2):
                headers = [*HEADERS, *extra.items(), ("Prefer", "wait=5"), ("X-Kept", "kept")]
                answer = await site.http.post(f"/api/seen{QUERY}", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                assert SECRET not in answer.text + str(answer.headers)
                documents.append(answer.json())
    for method, path, sent in [
        ("POST", "/api/seen", []),
        ("POST", "/api/orders", {"itemName": 5}),
        ("GET", "/jobs/none", None),
        ("GET", "/jobs", None),
        ("PUT", "/jobs/metrics", None),
        ("GET", "/jobs/x/y", None),
    ]:
        answer = await site.http.request(method, path + QUERY, json=sent, headers=HEADERS)
        assert SECRET not in answer.text + str(answer.headers)
    return documents


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("jobs.db*"))


def texts_in(client: redis.Redis) -> bytes:
    """All that a server holds, uncompressed."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
    }
    names: Any = client.keys("*")
    return b"".join(key + repr(read[client.type(key)](key)).encode() for key in names)  # type: ignore[index]


async def test_no_secret_is_in_the_stores_bytes_in_the_log_or_in_an_answer(
    open_site: OpenSite, store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    database = MemoryDatabase()
    store: Any = store_url if store_url != "memory://" else MemoryStore(database)
    site = await open_site(make_app=talking_app, store=store, config=CONFIG_OF_APP)
    documents = await lives(site)
    seen = documents[0]["result"]
    assert seen["headers"]["X-Kept"] == ["kept"]
    assert seen["query"] == {"a": ["kept"]}
    if store_url == "memory://":
        stored = b"".join(
            encode_job(record.job) + encode_request(record.request) + repr(record.events).encode()
            for record in database.records.values()
        )
    elif store_url.startswith("redis"):
        with redis.Redis.from_url(store_url) as client:
            stored = texts_in(client)
    else:
        stored = bytes_in(tmp_path)
    assert b"kept" in stored, "the bytes that are looked through are those of the store"
    assert SECRET.encode() not in stored
    assert "no luck" in caplog.text
    for record in caplog.records:
        if not record.name.startswith(("httpcore", "httpx")):  # the client's own, which sent them
            assert SECRET not in f"{record.getMessage()} {record.exc_text} {record.__dict__}"


async def test_a_redacted_parameter_is_in_no_digest_either(open_site: OpenSite) -> None:
    """A digest of a short secret is found by trying; and a renewed token makes no other request, as in a header."""
    site = await open_site(make_app=talking_app, config=CONFIG_OF_APP)
    first = await site.http.post("/api/seen?token=1&a=1", json={}, headers={"Idempotency-Key": "k"})
    for query in ("token=2&a=1", "%74oken=3&a=1"):
        again = await site.http.post(f"/api/seen?{query}", json={}, headers={"Idempotency-Key": "k"})
        if query.startswith("token"):
            assert (again.json()["id"], again.headers["idempotency-replayed"]) == (first.json()["id"], "true")
    for query in ("token=1&a=2", "a=1", "a=1&token=1"):
        other = await site.http.post(f"/api/seen?{query}", json={}, headers={"Idempotency-Key": "k"})
        assert other.status_code == 422


async def test_an_owner_is_shown_nowhere(open_site: OpenSite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site = await open_site(make_app=talking_app, identify=lambda request: request.headers.get("X-Who"))
    headers = {"X-Who": "ann-of-the-house", "X-Kept": "kept", "Prefer": "wait=5"}
    done = await site.http.post("/api/seen", json={"fail": True}, headers=headers)
    path = done.json()["links"]["self"]
    for method, target in [("GET", path), ("GET", "/jobs"), ("GET", "/jobs/metrics"), ("POST", f"{path}/retry")]:
        answer = await site.http.request(method, target, headers=headers)
        assert answer.status_code < 300
        assert "ann-of-the-house" not in answer.text + str(answer.headers)
    assert "ann-of-the-house" not in "\n".join(str(record.__dict__) for record in caplog.records)
