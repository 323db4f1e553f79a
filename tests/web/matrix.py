"""Every route that callboard mounts, and what each caller is answered there: one row a route. ``test_matrix.py`` runs it, and fails
when a route is mounted that has no row here.

The callers: ``ann`` owns the job that a request is about, ``bob`` does not, ``carol`` is an operator, and ``None`` has no name.
"""

import re
from typing import Any, Literal

import httpx
from msgspec import Struct
from quart_trio import QuartTrio
from tests.web.workshop import Site

from callboard.runtime.core.job import Job

__all__ = [
    "CALLERS",
    "ROWS",
    "Row",
    "ask",
    "authorize",
    "identify",
    "make_job",
    "mounted",
    "target",
    "who",
]

CALLERS = ("ann", "bob", "carol", None)

OPERATORS_ACTIONS = frozenset({"inspect", "pause"})
"""Refused where callers are named and nothing says who is an operator."""


class Row(Struct, frozen=True, kw_only=True):
    """One route. ``action`` is what ``authorize`` is asked, None where nobody is; ``of_job`` where it is about one job."""

    method: str
    path: str
    """As mounted, behind the prefix; a mapped route is given whole, with ``mapped``."""
    action: str | None
    status: int
    """The answer when it is allowed."""
    of_job: Literal["", "completed", "failed", "scheduled"] = ""
    """Which kind of job it is asked about."""
    query: str = ""
    body: Any = None
    mapped: bool = False

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}{self.query}"

    @property
    def is_operators(self) -> bool:
        return self.action in OPERATORS_ACTIONS

    @property
    def asks_who(self) -> bool:
        """Whether the answer depends on the caller's name where no ``authorize`` is."""
        return bool(self.of_job) or self.action == "submit" or (self.action == "list" and not self.path)


ROWS = (
    Row(method="POST", path="/api/orders", action="submit", status=202, body={"itemName": "x"}, mapped=True),
    Row(method="GET", path="", action="list", status=200),
    Row(method="GET", path="/<job_id>", action="read", status=200, of_job="completed"),
    Row(method="GET", path="/<job_id>/result", action="read", status=200, of_job="completed"),
    Row(method="DELETE", path="/<job_id>", action="cancel", status=200, of_job="scheduled"),
    Row(method="DELETE", path="/<job_id>", action="cancel", status=200, of_job="scheduled", query="?purge=false"),
    Row(method="DELETE", path="/<job_id>", action="purge", status=204, of_job="completed", query="?purge=true"),
    Row(method="POST", path="/<job_id>/cancel", action="cancel", status=200, of_job="scheduled"),
    Row(method="POST", path="/<job_id>/retry", action="retry", status=202, of_job="failed"),
    Row(method="WS", path="/<job_id>/stream", action="stream", status=101, of_job="completed"),
    Row(method="GET", path="/<job_id>/events", action="stream", status=200, of_job="completed"),
    Row(method="WS", path="/stream", action="stream", status=101),
    Row(method="GET", path="/<job_id>/attempts", action="inspect", status=200, of_job="completed"),
    Row(method="GET", path="/queues", action="list", status=200),
    Row(method="POST", path="/queues/<path:queue>/pause", action="pause", status=200),
    Row(method="POST", path="/queues/<path:queue>/resume", action="pause", status=200),
    Row(method="GET", path="/ui", action="ui", status=200),
    Row(method="GET", path="/metrics", action="metrics", status=200),
    Row(method="GET", path="/openapi.json", action=None, status=200),
    Row(method="GET", path="/health/live", action=None, status=200),
    Row(method="GET", path="/health/ready", action=None, status=200),
)

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def identify(request: Any) -> str | None:
    """Who says so in a header."""
    name: str | None = request.headers.get("X-User")
    return name


def authorize(request: Any, action: str, job: Job | None) -> bool:
    """Operators may do everything, the others what is no operator's and, where a job is meant, with their own."""
    caller = identify(request)
    if caller == "carol":
        return True
    return action not in OPERATORS_ACTIONS and (job is None or (caller is not None and job.owner == caller))


def who(caller: str | None) -> dict[str, str]:
    """The headers of a caller."""
    return {} if caller is None else {"X-User": caller}


async def make_job(site: Site, kind: str, headers: dict[str, str]) -> str:
    """The id of a new job of that kind, submitted with ``headers``."""
    match kind:
        case "failed":
            path, body, how = "/api/fail", {"code": "NO", "message": "no"}, {"Prefer": "wait=5"}
        case "scheduled":
            path, body, how = "/api/orders", {"itemName": "x"}, {"Job-Delay": "600"}
        case _:
            path, body, how = "/api/orders", {"itemName": "x"}, {"Prefer": "wait=5"}
    answer = await site.http.post(path, json=body, headers={**how, **headers})
    assert answer.json()["status"].lower() == kind, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def target(row: Row, job_id: str) -> str:
    """What a client asks for."""
    path = re.sub(r"<(?:\w+:)?queue>", "default", row.path.replace("<job_id>", job_id))
    return ("" if row.mapped else "/jobs") + path + row.query


async def ask(site: Site, row: Row, job_id: str, headers: dict[str, str]) -> httpx.Response:
    """The answer, read whole; of a websocket the answer to the handshake."""
    if row.method != "WS":
        return await site.http.request(row.method, target(row, job_id), json=row.body, headers=headers)
    async with site.http.stream("GET", target(row, job_id), headers={**headers, **HANDSHAKE}) as answer:
        if answer.status_code != 101:
            await answer.aread()
        return answer


def mounted(app: QuartTrio) -> set[str]:
    """Each route of callboard's under the prefix as ``METHOD /path``; those that answer what is no route are left out."""
    found: set[str] = set()
    for rule in app.url_map.iter_rules():
        if not str(rule.endpoint).startswith("callboard:") or "unknown" in str(rule.endpoint):
            continue
        if not rule.rule.startswith("/jobs"):
            continue
        methods = {"WS"} if rule.websocket else (rule.methods or set()) - {"HEAD", "OPTIONS"}
        found |= {f"{method} {rule.rule.removeprefix('/jobs')}" for method in methods}
    return found
