"""Two servers on one redis-server under load, and what has to hold when its trouble is over.

``under_load`` starts everything, lets the test make trouble, and then checks: every acknowledged job is there and has ended by itself as
its kind has to; no two attempts of one job at once, and none after the one that the record says was the last; each attempt's end is
told once; streams had no gap; no server was restarted, logged a bug or told the password. The journal is outside the store.
"""

import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, Final, TypeVar

import httpx
import trio
from tests.e2e.harness import (
    SILENCE_SECONDS,
    Document,
    Fold,
    Load,
    Server,
    Site,
    all_jobs,
    check_end,
    document,
    until,
    until_idle,
)
from tests.redis_servers import Login, RedisServer
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError

__all__ = ["LOGIN", "Trouble", "in_thread", "under_load"]

T = TypeVar("T")

LOGIN: Final[Login] = ("callboard", "open-sesame")
"""Of the redis-server; the password must be nowhere in what the servers write."""

CLIENTS: Final = 4
FOLLOWERS: Final = 3

RECOVERY_SECONDS: Final = 60
"""A bound for a busy machine; what is waited for takes a second or two, or a lease."""

TRY_LATER: Final = 1013
"""The code with which a stream is closed that has to be resumed."""

PATIENT: Final[dict[str, Any]] = {
    "max_lost_leases": 1000,
    "retry_base_seconds": 0.05,
    "max_concurrent_jobs": 10,
    # A caller is told sooner that the store is away than it is by default.
    "store_timeout_seconds": 2,
}


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """The load goes on while the redis-server is dealt with."""
    return await trio.to_thread.run_sync(call, *arguments)


class Trouble:
    """What a test of a fault works with: the load, the servers, and questions about how they are."""

    def __init__(self, site: Site, servers: Sequence[Server]) -> None:
        self.site = site
        self.servers = servers
        self.load = Load()
        self.load.servers = list(servers)
        self.streams: dict[str, Fold] = {}
        self.resumed = 0
        """How often a stream had to be opened again."""
        self.lost_since = float("inf")
        """When the first write was acknowledged that Redis has lost, as its durability level lets it; by the clock of the journal."""
        self.broken_promises: list[AssertionError] = []
        """What clients met that may not be, unless Redis has lost something."""

    async def progress(self, jobs: int = 20) -> None:
        """Wait until the servers have taken and ended so many more jobs: everything goes on by itself."""
        accepted, ended = len(self.load.accepted), len(self.site.journal.lines("end"))

        def went_on() -> bool:
            return (
                len(self.load.accepted) >= accepted + jobs and len(self.site.journal.lines("end")) >= ended + jobs // 2
            )

        await until(went_on, f"the load goes on: {len(self.load.accepted)} accepted", seconds=RECOVERY_SECONDS)

    async def ready(self, wanted: bool) -> None:
        """Wait until every server says that it can, or cannot, take work; that it lives is said all the time."""
        code = 200 if wanted else 503
        deadline = trio.current_time() + RECOVERY_SECONDS
        for server in self.servers:
            async with server.http() as http:
                while (answer := await http.get("/jobs/health/ready")).status_code != code:
                    assert trio.current_time() < deadline, f"readiness is not {code} but {answer.text}"
                    await trio.sleep(0.05)
                assert (await http.get("/jobs/health/live")).status_code == 200

    async def is_refused(self, http: httpx.AsyncClient) -> None:
        """A submission is answered 503, with a problem document that tells nothing about Redis."""
        answer = await http.post("/run/quick", json={})
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["content-type"] == "application/problem+json"
        assert "redis" not in answer.text.lower() and "127.0.0.1" not in answer.text

    # The load

    async def submit(self, source: random.Random) -> None:
        """One client: jobs of every kind with ids of its own, one after another."""
        while not self.load.stopping:
            job_id = str(uuid.UUID(int=source.getrandbits(128)))
            kind = source.choices(["quick", "flaky", "refused", "endless"], [6, 1, 1, 1])[0]
            await self.load.submit(kind, {"seconds": source.choice([0, 0.02, 0.3]), "value": job_id}, job_id)
            if kind == "endless":
                with self._noting():
                    await self.load.cancel(job_id)
            await trio.sleep(source.uniform(0.01, 0.05))

    async def follow(self, source: random.Random) -> None:
        """One client: a job that ticks, and its stream to the end, over as many connections to either server as it takes."""
        while not self.load.stopping:
            job_id = str(uuid.UUID(int=source.getrandbits(128)))
            await self.load.submit("ticking", {"ticks": 20, "interval": 0.05}, job_id)
            fold = self.streams[job_id] = Fold()
            with self._noting():
                for turn in count(source.randrange(2)):
                    await self._follow(self.servers[turn % len(self.servers)], job_id, fold)
                    if fold.ended:
                        break
                    self.resumed += 1
                    await trio.sleep(0.1)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.broken_promises.append(error)

    async def _follow(self, server: Server, job_id: str, fold: Fold) -> None:
        try:
            async with server.stream(job_id, after=fold.seq) as socket:
                while True:
                    with trio.fail_after(SILENCE_SECONDS):
                        frame = await socket.get_message()
                    fold.take(frame)
        except* HandshakeError as rejected:
            for refusal in leaves(rejected):
                assert isinstance(refusal, ConnectionRejected) and refusal.status_code == 503, refusal
        except* AssertionError as broken:
            raise leaves(broken)[0] from None
        except* ConnectionClosed as closed:
            for error in leaves(closed):
                assert isinstance(error, ConnectionClosed) and error.reason is not None
                assert error.reason.code == TRY_LATER or (error.reason.code == 1000 and fold.ended), (
                    error.reason,
                    fold.document,
                )

    # Afterwards

    async def settle(self) -> None:
        """Wait until no job is alive, and check what has to hold."""
        assert all(server.exit_code is None for server in self.servers), "a server ended"
        async with self.servers[0].http() as http, self.servers[-1].http() as other:
            await until_idle(http, seconds=RECOVERY_SECONDS)
            jobs = await all_jobs(http)
            assert jobs == await all_jobs(other)
            touched = self._touched_late()
            if self.broken_promises and self.lost_since == float("inf"):
                raise self.broken_promises[0]
            for job_id, (kind, body) in self.load.accepted.items():
                if job_id in touched:
                    continue
                if kind == "ticking":
                    assert jobs[job_id]["status"] == "Completed" and jobs[job_id]["result"] == {"ticks": 20}
                else:
                    check_end(jobs[job_id], kind, body)
            self._check_attempts({job_id: job for job_id, job in jobs.items() if job_id not in touched})
            again = [job_id for job_id, job in jobs.items() if job["attempt"] > 1 and job_id not in touched]
            for job_id in [*again, *list(jobs)[:20]]:
                await check_history(http, jobs[job_id])
            for job_id, fold in self.streams.items():
                if job_id not in touched:
                    assert (fold.ends, fold.gaps) == (1, 0)
                    assert fold.document == await document(http, job_id)
        for server in self.servers:
            assert server.exit_code is None
            assert LOGIN[1] not in server.output()
        self.site.check_output()

    def _touched_late(self) -> set[str]:
        """The jobs of which something was acknowledged or done since the first write that Redis has lost."""
        late = {line.job for line in self.site.journal.lines() if line.at >= self.lost_since}
        return late | {job_id for job_id, at in self.load.accepted_at.items() if at >= self.lost_since}

    def _check_attempts(self, jobs: dict[str, Document]) -> None:
        if self.lost_since == float("inf"):
            self.site.journal.check_no_overlap({})
        starts, ends = Counter[str](), Counter[tuple[str, int]]()
        for line in self.site.journal.lines():
            if line.job not in jobs:
                continue
            if line.what == "start":
                starts[line.job] = max(starts[line.job], line.attempt)
            elif line.what == "end":
                ends[line.job, line.attempt] += 1
        for job_id, job in jobs.items():
            assert starts[job_id] <= job["attempt"], f"an attempt began after the job had ended: {job}"
            if job["status"] != "Canceled":
                assert starts[job_id] == job["attempt"], f"ended without an attempt: {job}"
                assert ends[job_id, job["attempt"]] == 1, f"the last attempt did not end: {job}"


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group and in its groups."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


async def check_history(http: httpx.AsyncClient, job: Document) -> None:
    """Each attempt has ended once, and the last one is the only one whose outcome counts as the job's."""
    told = (await http.get(f"/jobs/{job['id']}/attempts")).raise_for_status().json()["attempts"]
    if job["status"] == "Canceled":
        # One that was cancelled while it waited had no last attempt.
        assert [one["attempt"] for one in told] in ([], list(range(1, job["attempt"] + 1)))
        return
    assert [one["attempt"] for one in told] == list(range(1, job["attempt"] + 1)), told
    outcomes = [one["outcome"] for one in told]
    assert outcomes[-1] == job["status"], (outcomes, job)
    assert set(outcomes[:-1]) <= {"Lost", "Failed"} and outcomes.count("Completed") <= 1, outcomes
    assert outcomes[:-1].count("Failed") == job["retryCount"], (outcomes, job)


@asynccontextmanager
async def under_load(
    site: Site, redis: RedisServer, *, options: str = "", seed: int = 20261122, **config: Any
) -> AsyncIterator[Trouble]:
    """Start two servers on ``redis`` and clients that ask both; afterwards end the load and check.

    ``options`` are of the store's URL, ``config`` is of ``Config``.
    """
    environment = {"CALLBOARD_STORE": redis.url + options}
    servers = [site.launch(environment=environment, **{**PATIENT, **config}) for _ in range(2)]
    for server in servers:
        await server.listening()
    trouble = Trouble(site, servers)
    source = random.Random(seed)
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(trouble.submit, random.Random(source.random()))
        for _ in range(FOLLOWERS):
            nursery.start_soon(trouble.follow, random.Random(source.random()))
        await trouble.progress()
        yield trouble
        await trouble.progress()
        await trouble.ready(True)
        trouble.load.stopping = True
        with trio.fail_after(RECOVERY_SECONDS):
            while nursery.child_tasks:  # noqa: ASYNC110  they end by themselves
                await trio.sleep(0.05)
    await trouble.settle()
