"""``GET <jobs>/{id}/attempts``: the whole chain for those who may inspect, and not a word of it to anyone else."""

from itertools import pairwise
from typing import Any, NoReturn

import trio
from msgspec.structs import replace
from quart_trio import QuartTrio
from tests.web.conftest import OpenSite
from tests.web.workshop import CONFIG, Gates, Site, assert_problem, frames

from callboard.runtime import Job, JobContext, JobFailed, Status, ThreadJobContext
from callboard.runtime.core.store import Delete, Write
from callboard.runtime.core.transition import accept
from callboard.stores.memory import MemoryStore
from callboard.web import Callboard

ANN, BOB, OPERATOR = {"X-User": "ann"}, {"X-User": "bob"}, {"X-User": "operator"}
SECRET = "the password is tiger"


def identify(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


def authorize(request: Any, action: str, job: Any) -> bool:
    """The operator may do everything; others read their own jobs."""
    name = identify(request)
    if name == "operator":
        return True
    return action not in ("inspect", "pause") and (job is None or job.owner == name)


def open_the_safe() -> NoReturn:
    try:
        raise KeyError(SECRET)
    except KeyError:
        error = OSError(f"no: {SECRET}")
        error.add_note(f"note: {SECRET}")
        raise error  # noqa: B904 -- a context is what is tested


def make_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = QuartTrio("attempts")
    board.init_app(app)

    @board.post("/api/group", name="Group", max_retries=1)
    async def group(job: JobContext) -> str:
        if job.attempt > 1:
            return "done"

        async def child() -> None:
            open_the_safe()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
        except ExceptionGroup as members:
            raise RuntimeError(SECRET) from members
        return "unreachable"

    @board.post("/api/thread", name="Thread", max_retries=0)
    def thread(job: ThreadJobContext) -> None:
        open_the_safe()

    @board.post("/api/hold", name="Hold")
    async def hold(job: JobContext) -> None:
        try:
            await gates.through("hold")
        finally:
            if job.attempt == 1:
                raise ValueError(SECRET)

    @board.post("/api/no", name="No", max_retries=0)
    async def no(job: JobContext) -> None:
        raise JobFailed("NO", "for the client") from ValueError(SECRET)

    return app


async def attempts(site: Site, job_id: str, who: dict[str, str] | None = None) -> list[dict[str, Any]]:
    answer = await site.http.get(f"/jobs/{job_id}/attempts", headers=who or {})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    body: dict[str, Any] = answer.json()
    assert list(body) == ["attempts"]
    found: list[dict[str, Any]] = body["attempts"]
    return found


async def done(site: Site, path: str, who: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await site.http.post(path, headers={"Prefer": "wait=5", **(who or {})})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_the_whole_chain(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app)
    job = await done(site, "/api/group")
    assert (job["status"], job["attempt"]) == ("Completed", 2)
    failed, completed = await attempts(site, job["id"])
    assert list(failed) == ["attempt", "worker", "startedAt", "endedAt", "outcome", "error", "exceptions"]
    assert (failed["attempt"], failed["outcome"], completed["attempt"], completed["outcome"]) == (
        1,
        "Failed",
        2,
        "Completed",
    )
    assert failed["worker"] == completed["worker"] == site.board.runtime.worker
    times = [failed["startedAt"], failed["endedAt"], completed["startedAt"], completed["endedAt"]]
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert (completed["startedAt"], completed["endedAt"]) == (job["startedAt"], job["completedAt"])
    assert failed["error"]["code"] == "HANDLER_ERROR"
    assert (completed["error"], completed["exceptions"]) == (None, [])
    chain = failed["exceptions"]
    assert [(link["relation"], link["of"], link["type"]) for link in chain] == [
        ("raised", None, "RuntimeError"),
        ("cause", 0, "ExceptionGroup"),
        ("member", 1, "OSError"),
        ("context", 2, "KeyError"),
    ]
    assert all(list(link) == ["type", "message", "traceback", "relation", "of", "notes"] for link in chain)
    assert chain[0]["message"] == SECRET
    assert chain[2]["notes"] == [f"note: {SECRET}"]
    assert "raise RuntimeError(SECRET) from members" in chain[0]["traceback"]
    assert "in child" in chain[2]["traceback"]
    assert "callboard/runtime" not in chain[0]["traceback"]


async def test_a_plain_function(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app)
    job = await done(site, "/api/thread")
    (record,) = await attempts(site, job["id"])
    assert [link["type"] for link in record["exceptions"]] == ["OSError", "KeyError"]
    assert record["exceptions"][0]["traceback"].count("File") == 2, "the handler's frames and no others"


async def test_a_retry_by_hand_a_cancel_and_a_purge(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app)
    job = (await site.http.post("/api/hold")).json()
    await site.gates.arrived("hold")
    assert await attempts(site, job["id"]) == []
    assert (await site.http.post(f"/jobs/{job['id']}/cancel", headers={"Prefer": "wait=5"})).json()[
        "status"
    ] == "Canceled"
    (canceled,) = await attempts(site, job["id"])
    assert (canceled["outcome"], canceled["exceptions"][0]["message"]) == ("Canceled", SECRET)
    site.gates.open("hold")
    assert (await site.http.post(f"/jobs/{job['id']}/retry")).status_code == 202
    assert (await site.ended(job["id"]))["attempt"] == 2
    assert [one["outcome"] for one in await attempts(site, job["id"])] == ["Canceled", "Completed"]
    assert (await site.http.delete(f"/jobs/{job['id']}?purge=true")).status_code == 204
    assert_problem(await site.http.get(f"/jobs/{job['id']}/attempts"), 404)


async def test_who_may(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app, identify=identify, authorize=authorize)
    job = await done(site, "/api/group", ANN)
    path = f"/jobs/{job['id']}/attempts"
    assert len(await attempts(site, job["id"], OPERATOR)) == 2
    assert SECRET not in assert_problem(await site.http.get(path, headers=ANN), 403)["detail"]
    for who in (BOB, {}):
        hidden = await site.http.get(path, headers=who)
        unknown = await site.http.get("/jobs/01234567-89ab-7def-8123-456789abcdef/attempts", headers=who)
        assert {**assert_problem(hidden, 404), "instance": ""} == {**assert_problem(unknown, 404), "instance": ""}
    assert_problem(await site.http.get("/jobs/nonsense/attempts", headers=OPERATOR), 404)
    assert_problem(await site.http.post(path, headers=OPERATOR), 405)


async def test_to_be_named_is_not_enough(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app, identify=identify)
    for who in (ANN, {}):
        job = await done(site, "/api/group", who)
        assert_problem(await site.http.get(f"/jobs/{job['id']}/attempts", headers=who), 403)
        assert_problem(await site.http.get(f"/jobs/{job['id']}/attempts", headers=BOB), 404)


async def test_authorize_alone_decides_too(open_site: OpenSite) -> None:
    asked: list[tuple[str, bool]] = []

    def note(request: Any, action: str, job: Any) -> bool:
        asked.append((action, job is not None))
        return action != "inspect"

    site = await open_site(make_app=make_app, authorize=note)
    job = await done(site, "/api/no")
    asked.clear()
    assert_problem(await site.http.get(f"/jobs/{job['id']}/attempts"), 403)
    assert asked == [("read", True), ("inspect", True)]


async def test_nothing_of_it_is_anywhere_else(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app, identify=identify, authorize=authorize)
    for path in ("/api/group", "/api/thread", "/api/no"):
        job = await done(site, path, ANN)
        texts = [str(job)]
        for question in (f"/jobs/{job['id']}", "/jobs", f"/jobs/{job['id']}/result", "/jobs/metrics"):
            texts.append((await site.http.get(question, headers=ANN)).text)
        events = [event async for event in _events(site, job["id"])]
        assert events
        texts += map(str, events)
        for text in texts:
            assert "tiger" not in text
            assert "Traceback" not in text
            assert ".py" not in text
        assert "tiger" in str(await attempts(site, job["id"], OPERATOR))


async def _events(site: Site, job_id: str) -> Any:
    async with site.board.runtime.watch(job_id, after=0) as events:
        async for event in events:
            yield event


async def test_streams_tell_no_traceback(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app)
    job = await done(site, "/api/group")
    async with site.socket(f"/jobs/{job['id']}/stream?after=0") as socket:
        told = await frames(socket)
    assert [frame["type"] for frame in told] == ["status"] * 5
    assert "tiger" not in str(told)
    assert ".py" not in str(told)


async def test_the_newest_are_kept(open_site: OpenSite) -> None:
    site = await open_site(make_app=make_app, config=replace(CONFIG, max_attempts_per_job=2))
    job = await done(site, "/api/no")
    for _ in range(3):
        assert (await site.http.post(f"/jobs/{job['id']}/retry")).status_code == 202
        await site.ended(job["id"])
    assert [one["attempt"] for one in await attempts(site, job["id"])] == [3, 4]


async def test_another_job_that_takes_the_id_meanwhile_keeps_its_history_to_itself(open_site: OpenSite) -> None:
    """Between the look at the job and the look at its attempts it is purged, and its id chosen by someone else."""
    chosen = "01234567-89ab-7def-8123-456789abcdef"

    class Swapping(MemoryStore):
        async def attempts(self, job_id: str) -> Any:
            (job,) = await self.get([job_id])
            if job is not None and job.owner == "ann":
                fields: dict[str, Any] = {
                    "id": job_id,
                    "name": "Void",
                    "owner": "bob",
                    "created_ms": 0,
                    "updated_ms": 0,
                }
                change = accept(Job(status=Status.QUEUED, queue="nowhere", **fields))
                await self.commit([Delete(expected=job), Write(job=change.job, events=change.events)])
            return await super().attempts(job_id)

    def may(request: Any, action: str, job: Any) -> bool:
        return job is None or job.owner == identify(request)

    site = await open_site(make_app=make_app, store=Swapping(), identify=identify, authorize=may)
    await done(site, "/api/no", {**ANN, "X-Async-Request-Id": chosen})
    assert_problem(await site.http.get(f"/jobs/{chosen}/attempts", headers=ANN), 404)
