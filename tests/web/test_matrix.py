"""Every route x every caller x every kind of hook: what ``identify`` and ``authorize`` say holds on every way in."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
from quart import Response, abort
from tests.web.conftest import OpenSite
from tests.web.matrix import CALLERS, ROWS, Row, ask, authorize, identify, make_job, mounted, who
from tests.web.workshop import Site, assert_problem

from callboard.runtime import Job


async def test_every_route_under_the_prefix_is_in_the_matrix(site: Site) -> None:
    listed = {f"{row.method} {row.path}" for row in ROWS if not row.mapped}
    assert mounted(site.app) == listed


async def late(answer: Any) -> Any:
    await trio.sleep(0.002)
    return answer


async def identify_late(request: Any) -> Any:
    return await late(identify(request))


async def authorize_late(request: Any, action: str, job: Job | None) -> Any:
    return await late(authorize(request, action, job))


def refused(answer: httpx.Response, status: int, row: Row) -> dict[str, Any]:
    assert answer.status_code == status, (row.name, answer.text)
    return assert_problem(answer, status)


async def test_without_hooks_everyone_may_do_everything(open_site: OpenSite) -> None:
    site = await open_site()
    for row in ROWS:
        for caller in CALLERS:
            job_id = await make_job(site, row.of_job, {}) if row.of_job else ""
            answer = await ask(site, row, job_id, who(caller))
            assert answer.status_code == row.status, (row.name, caller, answer.text)


@pytest.mark.parametrize("hook", [identify, identify_late])
async def test_with_identify_alone_everyone_has_what_is_his_own(open_site: OpenSite, hook: Any) -> None:
    site = await open_site(identify=hook)
    for row in ROWS:
        for caller in CALLERS:
            job_id = await make_job(site, row.of_job, who("ann")) if row.of_job else ""
            answer = await ask(site, row, job_id, who(caller))
            if row.of_job and caller != "ann":
                refused(answer, 404, row)
            elif row.is_operators:
                refused(answer, 403, row)
            else:
                assert answer.status_code == row.status, (row.name, caller, answer.text)


@pytest.mark.parametrize(("named", "allowed"), [(identify, authorize), (identify_late, authorize_late)])
async def test_with_authorize_an_operator_may_what_others_may_not(
    open_site: OpenSite, named: Any, allowed: Any
) -> None:
    site = await open_site(identify=named, authorize=allowed)
    for row in ROWS:
        for caller in CALLERS:
            job_id = await make_job(site, row.of_job, who("ann")) if row.of_job else ""
            answer = await ask(site, row, job_id, who(caller))
            if row.of_job and caller not in ("ann", "carol"):
                refused(answer, 404, row)
            elif row.is_operators and caller != "carol":
                refused(answer, 403, row)
            else:
                assert answer.status_code == row.status, (row.name, caller, answer.text)


async def test_no_to_an_action_is_403_and_nothing_happens(open_site: OpenSite) -> None:
    denied: set[str] = set()
    site = await open_site(authorize=lambda request, action, job: action not in denied)
    for row in ROWS:
        denied.clear()
        job_id = await make_job(site, row.of_job, {}) if row.of_job else ""
        before = await seen(site, job_id)
        denied.update({row.action} if row.action else {"read", "list", "metrics", "stream"})
        answer = await ask(site, row, job_id, {})
        if row.action is None:
            assert answer.status_code == row.status
        else:
            refused(answer, 404 if row.action == "read" else 403, row)
        denied.clear()
        assert await seen(site, job_id) == before, row.name


async def seen(site: Site, job_id: str) -> Any:
    """Every job, and the one in question."""
    jobs = (await site.http.get("/jobs?limit=200")).json()
    return jobs, (await site.http.get(f"/jobs/{job_id}")).json() if job_id else None


def bytes_of(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    headers = [(name, value) for name, value in answer.headers.items() if name != "date"]
    return answer.status_code, sorted(headers), answer.content


@pytest.mark.parametrize(
    "hooks",
    [
        {"identify": identify},
        {"identify": identify, "authorize": authorize},
        {"authorize": lambda request, action, job: job is None or identify(request) == "ann"},
    ],
    ids="+".join,
)
async def test_a_job_of_somebody_elses_is_answered_as_none_is_byte_for_byte(
    open_site: OpenSite, hooks: dict[str, Any]
) -> None:
    site = await open_site(**hooks)
    for row in ROWS:
        if not row.of_job:
            continue
        for caller in ("bob", None):
            chosen = str(uuid.uuid4())
            none = await ask(site, row, chosen, who(caller))
            await make_job(site, row.of_job, {**who("ann"), "X-Async-Request-Id": chosen})
            hidden = await ask(site, row, chosen, who(caller))
            assert hidden.status_code == 404, row.name
            assert bytes_of(hidden) == bytes_of(none), row.name
            assert (await site.http.get(f"/jobs/{chosen}", headers=who("ann"))).status_code == 200


def raising(*_: Any) -> Any:
    raise RuntimeError("cannot reach ldap://admin:hunter2@10.0.0.7")


async def raising_late(*_: Any) -> Any:
    await trio.lowlevel.checkpoint()
    raise RuntimeError("cannot reach ldap://admin:hunter2@10.0.0.7")


RUBBISH: list[Callable[..., Any]] = [
    raising,
    raising_late,
    lambda *_: "no",
    lambda *_: (False, "not you"),
    lambda *_: Response("no", 403),
    lambda *_: 1,
    lambda *_: object(),
]


@pytest.mark.parametrize("hook", RUBBISH)
async def test_an_authorize_that_fails_or_answers_rubbish_allows_nothing(
    open_site: OpenSite, hook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site = await open_site(authorize=lambda *_: True)
    jobs = [(row, await make_job(site, row.of_job, {}) if row.of_job else "") for row in ROWS]
    before = await seen(site, "")
    site.board.access.authorize = hook
    for row, job_id in jobs:
        answer = await ask(site, row, job_id, {})
        if row.action is None:
            assert answer.status_code == row.status
        else:
            assert "hunter2" not in str(refused(answer, 500, row))
    site.board.access.authorize = None
    assert await seen(site, "") == before
    assert [record for record in caplog.records if record.exc_info] != []


async def test_an_authorize_that_forgets_to_answer_says_no(open_site: OpenSite) -> None:
    site = await open_site(authorize=lambda *_: None)
    refused(await ask(site, ROWS[0], "", {}), 403, ROWS[0])


@pytest.mark.parametrize("hook", [raising, raising_late, lambda *_: 7, lambda *_: b"ann", lambda *_: ["ann"]])
async def test_an_identify_that_fails_or_gives_no_name_lets_nobody_in(open_site: OpenSite, hook: Any) -> None:
    site = await open_site()
    jobs = [(row, await make_job(site, row.of_job, {}) if row.of_job else "") for row in ROWS]
    before = await seen(site, "")
    site.board.access.identify = hook
    for row, job_id in jobs:
        answer = await ask(site, row, job_id, {})
        if row.asks_who:
            assert "hunter2" not in str(refused(answer, 500, row))
        else:
            assert answer.status_code == (403 if row.is_operators else row.status)
    site.board.access.identify = None
    assert await seen(site, "") == before


async def test_a_hook_may_abort_with_an_answer_of_its_own(open_site: OpenSite) -> None:
    def login(request: Any) -> str | None:
        if "X-User" not in request.headers:
            abort(401)
        name: str = request.headers["X-User"]
        return name

    site = await open_site(identify=login)
    for row in ROWS:
        job_id = await make_job(site, row.of_job, who("ann")) if row.of_job else ""
        if row.asks_who:
            refused(await ask(site, row, job_id, {}), 401, row)
            assert (await ask(site, row, job_id, who("ann"))).status_code == (403 if row.is_operators else row.status)


async def test_identify_is_asked_once_a_request(open_site: OpenSite) -> None:
    asked: list[str] = []

    async def count(request: Any) -> str | None:
        asked.append(request.path)
        await trio.lowlevel.checkpoint()
        return identify(request)

    site = await open_site(identify=count)
    for _ in range(3):
        await make_job(site, "completed", who("ann"))
    assert len(asked) == 3
    for path in ("/jobs", "/jobs?limit=2"):
        asked.clear()
        await site.http.get(path, headers=who("ann"))
        assert asked == ["/jobs"]
