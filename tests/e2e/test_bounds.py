"""What is bounded, at its bound: a full queue, a key that everybody uses at once, a job that kills whoever runs it."""

import signal
import uuid
from typing import Any

import httpx
import pytest
import trio
from tests.e2e.harness import Site, all_jobs, document, post, until, until_ended, until_idle

pytestmark = [
    pytest.mark.e2e,
    # httpx leaves the body's generator behind when a connection breaks under it.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning"),
]


@pytest.mark.parametrize("store", ["memory://", None], ids=["memory", "sqlite"])
async def test_a_full_queue_answers_429_and_harms_nobody(site: Site, store: str | None) -> None:
    slots, room = 2, 25
    gate = site.folder / "gate"
    server = await site.start(store=store, max_concurrent_jobs=slots, max_queue_size=room)
    async with server.http() as http:
        running = [(await post(http, "gated", gate=str(gate)))["id"] for _ in range(slots)]
        await until(lambda: len(site.journal.starts()) == slots, "the slots are taken")
        answers = []

        async def submit() -> None:
            answers.append(await http.post("/run/gated", json={"gate": str(gate)}))

        async with trio.open_nursery() as nursery:
            for _ in range(3 * room):
                nursery.start_soon(submit)
        accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code != 202]
        assert len(accepted) == room
        for answer in refused:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 429

        # A cancel makes room for exactly one; a retry of it has to find room as well.
        assert (await http.post(f"/jobs/{accepted[0]}/cancel")).status_code == 200
        accepted.append((await post(http, "gated", gate=str(gate)))["id"])
        full = await http.post(f"/jobs/{accepted[0]}/retry")
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        assert (await document(http, accepted[0]))["status"] == "Canceled"

        gate.touch()
        await until_idle(http)
        for job_id in [*running, *accepted[1:]]:
            job = await document(http, job_id)
            assert (job["status"], job["attempt"]) == ("Completed", 1)
        assert (await http.post("/run/quick", json={})).status_code == 202
    assert len(site.journal.starts()) >= slots + room
    site.check_output()


async def test_100_submits_of_one_key_make_one_job(site: Site) -> None:
    """On two servers that share the file."""
    first, second = await site.start(), await site.start()
    body, key = {"value": 1, "seconds": 0.2}, {"Idempotency-Key": '"order 17"'}
    answers: list[httpx.Response] = []

    async def submit(http: httpx.AsyncClient) -> None:
        answers.append(await http.post("/run/quick", json=body, headers=key))

    async with first.http() as http, second.http() as other:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(submit, http)
                nursery.start_soon(submit, other)
        assert len(answers) == 100
        assert {answer.status_code for answer in answers} <= {200, 202}
        (job_id,) = {answer.json()["id"] for answer in answers}
        (original,) = [answer for answer in answers if "idempotency-replayed" not in answer.headers]
        assert original.status_code == 202

        ended = await until_ended(http, job_id)
        for client in (http, other):
            again = await client.post("/run/quick", json=body, headers=key)
            assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
            assert again.json() == ended
            assert (await client.post("/run/quick", json={"value": 2}, headers=key)).status_code == 422
        await until_idle(http)
        assert (await all_jobs(http)).keys() == {job_id}
    assert len(site.journal.starts()) == 1
    site.check_output()


@pytest.mark.parametrize("max_lost_leases", [0, 2])
async def test_a_job_that_kills_its_worker_ends(site: Site, max_lost_leases: int) -> None:
    """Whoever supervises the server starts it again each time; after the last loss it stays up, and the others go on."""
    settings: dict[str, Any] = {"max_lost_leases": max_lost_leases, "max_concurrent_jobs": 1}
    server = await site.start(**settings)
    poison = str(uuid.uuid4())
    async with server.http() as http:
        try:
            await http.post("/run/poison", json={}, headers={"X-Async-Request-Id": poison})
        except httpx.TransportError:
            pass  # it was quicker than its answer
    assert await server.ended() == -signal.SIGKILL
    deaths = 1
    while True:
        server = site.launch(**settings)
        try:
            await server.listening()
            async with server.http() as http:
                job = await until_ended(http, poison, seconds=10)
            break
        except Exception:  # noqa: BLE001  a server that died meets its client in many ways
            assert await server.ended(seconds=10) == -signal.SIGKILL
            deaths += 1
            assert deaths <= max_lost_leases + 1, "the poison goes on and on"
    assert deaths == max_lost_leases + 1
    assert (job["status"], job["attempt"], job["retryCount"]) == ("Failed", deaths, 0)
    assert job["error"] == {
        "code": "WORKER_LOST",
        "message": "The process that ran this job was lost too often.",
        "type": "WorkerLost",
        "retryable": False,
    }
    assert len(site.journal.starts(poison)) == deaths
    async with server.http() as http:
        healthy = await until_ended(http, (await post(http, "quick"))["id"])
        assert (healthy["status"], healthy["attempt"]) == ("Completed", 1)
    assert server.exit_code is None
    site.check_output()
