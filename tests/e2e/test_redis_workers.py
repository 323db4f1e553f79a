"""Workers that are killed, stopped, busy, many, or wrong about the time, on one store that they share: one owner each, nothing lost.

Each job's attempts write a journal past the store; in the end it is held against what the store says. Bounds of time are those that are
promised, plus what a canary measured that the machine took. ``make soak`` runs the long forms.
"""

import random
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import pytest
import trio
from tests.e2e.harness import Document, Fold, Server, all_jobs, document, post, until, until_ended
from tests.e2e.redis_clock import Skew
from tests.e2e.redis_racer import EXTENDED_MS, Note, count_claims, read_notes
from tests.e2e.redis_site import GRACE_SECONDS, LEASE_SECONDS, Fleet, Lives, wall_to_monotonic
from tests.redis_servers import RedisServer

from callboard.runtime.core.job import Status
from callboard.runtime.core.store import Store
from callboard.stores.conformance_bench import one, submit
from callboard.stores.opening import open_store

pytestmark = pytest.mark.e2e

PATIENT: Final[dict[str, Any]] = {"max_lost_leases": 1000, "retry_base_seconds": 0.05, "max_concurrent_jobs": 30}
"""A job may meet any number of kills here."""

LIVING_JOBS: Final = 40
"""As many are under way at a time, so that two of three workers have slots for all."""


@pytest.fixture
def fleet(tmp_path: Path, redis_server: RedisServer) -> Iterator[Fleet]:
    """Processes on one Redis; what is left of them is killed in the end."""
    with Fleet(tmp_path, redis_server.url) as fleet:
        yield fleet


def due_ms_of(answer: httpx.Response) -> float:
    """When the job of that answer is to run."""
    return datetime.fromisoformat(answer.json()["scheduledFor"]).timestamp() * 1000


class Crowd:
    """Submits jobs of every kind, follows each on a websocket from its first event to its last, and cancels those that have no end."""

    KINDS: Final = {"work": 6, "ticking": 3, "flaky": 2, "plain": 2, "refused": 1, "endless": 1}

    def __init__(self, web: Server, seed: int) -> None:
        self.web = web
        self.stopping = False
        self.accepted: dict[str, tuple[str, Document]] = {}
        self.due_ms: dict[tuple[str, int], float] = {}
        self.folds: dict[str, Fold] = {}
        self._random = random.Random(seed)
        self._room = trio.Semaphore(LIVING_JOBS)

    async def run(self, pause: float) -> None:
        """Until ``stopping``, and then until all have ended."""
        async with self.web.http() as http, trio.open_nursery() as nursery:
            while not self.stopping:
                await self._room.acquire()
                job_id = str(uuid.UUID(int=self._random.getrandbits(128)))
                kind = self._random.choices(list(self.KINDS), list(self.KINDS.values()))[0]
                seconds = self._random.choice([0, 0.05, 0.4, 2.5])
                body: Document = {"seconds": seconds, "value": job_id, "cleanup": seconds / 4}
                body |= {"ticks": round(seconds / 0.05), "interval": 0.05}
                headers = {"X-Async-Request-Id": job_id, "Job-Priority": str(self._random.randint(-3, 3))}
                if self._random.random() < 0.25:
                    headers["Job-Delay"] = str(self._random.choice([0.3, 1, 3]))
                answer = await http.post(f"/run/{kind}", json=body, headers=headers)
                assert answer.status_code == 202, answer.text
                self.accepted[job_id] = kind, body
                if answer.json()["scheduledFor"]:
                    self.due_ms[job_id, 1] = due_ms_of(answer)
                nursery.start_soon(self._follow, job_id)
                if kind == "endless":
                    nursery.start_soon(self._cancel, http, job_id, self._random.uniform(0, 2))
                await trio.sleep(self._random.uniform(0, 2 * pause))

    async def _follow(self, job_id: str) -> None:
        fold = self.folds[job_id] = Fold()
        fold.seq = 0
        async with self.web.stream(job_id, after=0) as socket:
            await fold.follow(socket)
        self._room.release()

    async def _cancel(self, http: Any, job_id: str, seconds: float) -> None:
        await trio.sleep(seconds)
        assert (await http.post(f"/jobs/{job_id}/cancel")).status_code in (200, 202)

    def check(self, jobs: dict[str, Document]) -> None:
        """Every accepted job is there, ended as its kind has to, and its stream told all of it."""
        assert jobs.keys() == self.accepted.keys()
        for job_id, (kind, body) in self.accepted.items():
            job, fold = jobs[job_id], self.folds[job_id]
            assert (fold.gaps, fold.ends) == (0, 1)
            assert fold.document == job
            match kind:
                case "refused":
                    assert (job["status"], job["error"]["code"]) == ("Failed", "E2E_REFUSED"), job
                case "endless":
                    assert (job["status"], job["cancelRequested"]) == ("Canceled", False), job
                case _:
                    assert (job["status"], job["error"]) == ("Completed", None), job
                    assert job["result"] == {"value": body["value"], "attempt": job["attempt"]}
                    assert job["retryCount"] in ((0, 1) if kind == "flaky" else (0,))


class Killer:
    """Keeps a number of workers going by starting another for each that it kills; leaves one at least that is ready."""

    def __init__(self, fleet: Fleet, nursery: trio.Nursery, seed: int) -> None:
        self._fleet = fleet
        self._nursery = nursery
        self._random = random.Random(seed)
        self._ready: list[Server] = []

    async def start(self, workers: int) -> None:
        """That many, and wait for them."""
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(self._start_one)

    async def kill_one(self, number: int) -> None:
        """kill -9 at a moment that only chance knows: of one at work, or, now and then, of one that begins or ends."""
        await until(lambda: len(self._ready) > 1, "two workers are ready", seconds=120)
        await trio.sleep(self._random.uniform(0, 0.8))
        if number % 6 == 4:
            beginner = self._fleet.launch_worker(**PATIENT)
            await trio.sleep(self._random.uniform(0.2, 1.5))
            self._fleet.kill(beginner)
            return
        victim = self._ready.pop(self._random.randrange(len(self._ready)))
        if number % 6 == 5:
            victim.terminate()
            await trio.sleep(self._random.uniform(0, 0.5))
        self._fleet.kill(victim)
        self._nursery.start_soon(self._start_one)

    async def _start_one(self) -> None:
        self._ready.append(await self._fleet.start_worker(**PATIENT))


@pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=pytest.mark.soak)])
async def test_kill_9_of_workers_at_random_moments(fleet: Fleet, kills: int) -> None:
    web = await fleet.start_web(**PATIENT)
    crowd = Crowd(web, seed=20261122)
    async with trio.open_nursery() as nursery:
        killer = Killer(fleet, nursery, seed=5)
        await killer.start(3)
        nursery.start_soon(crowd.run, 0.05)
        for number in range(kills):
            await killer.kill_one(number)
        crowd.stopping = True

    async with web.http() as http:
        crowd.check(await all_jobs(http))
    assert len(crowd.accepted) > 5 * kills, "too little load to show anything"
    fleet.journal.check_no_overlap(fleet.killed)
    lives = await fleet.lives()
    lives.check_whole()
    lives.check_due(fleet, crowd.due_ms)
    recovered = lives.check_recoveries(fleet, lease_seconds=LEASE_SECONDS, early=False)
    assert recovered >= kills, f"the kills hit too little that ran: {recovered}"
    fleet.check_output()


async def test_a_job_that_kills_its_worker_ends_after_the_leases_that_it_may_lose(fleet: Fleet) -> None:
    web = await fleet.start_web()
    workers = [fleet.launch_worker() for _ in range(3)]
    async with web.http() as http:
        job_id = (await post(http, "poison"))["id"]
        job = await until_ended(http, job_id, seconds=60)
        assert (job["status"], job["error"]["code"], job["attempt"]) == ("Failed", "WORKER_LOST", 2)
        # The one that is left is none the worse for it.
        for worker in workers:
            if worker.exit_code is None:
                await fleet.at_work(worker)
        assert (await until_ended(http, (await post(http, "work"))["id"]))["status"] == "Completed"
    fleet.killed = {line.pid: line.at for line in fleet.journal.starts(job_id)}
    assert sorted(fleet.killed) == sorted(worker.pid for worker in workers if worker.exit_code is not None)
    lives = await fleet.lives()
    lives.check_whole()
    assert lives.check_recoveries(fleet, lease_seconds=LEASE_SECONDS, early=False) == 2
    fleet.journal.check_no_overlap(fleet.killed)
    fleet.check_output()


async def test_a_websocket_follows_a_job_through_kills_of_its_workers(fleet: Fleet) -> None:
    """One on one machine, and one that comes back now here, now there; each is told every event once, of all three attempts."""
    webs = [await fleet.start_web(**PATIENT) for _ in range(2)]
    whole, resumed = Fold(), Fold()
    whole.seq = resumed.seq = 0

    async def follow(job_id: str) -> None:
        async with webs[0].stream(job_id, after=0) as socket:
            await whole.follow(socket)

    async def follow_in_parts(job_id: str) -> None:
        while not resumed.ended:
            async with webs[resumed.frames % 2].stream(job_id, after=resumed.seq) as socket:
                await resumed.follow(socket, frames=7)

    async with webs[0].http() as http, webs[1].http() as other, trio.open_nursery() as nursery:
        job_id = (await post(http, "ticking", ticks=40, interval=0.05))["id"]
        nursery.start_soon(follow, job_id)
        nursery.start_soon(follow_in_parts, job_id)
        for attempt in (1, 2):
            worker = await fleet.start_worker(**PATIENT)
            last = f"attempt {attempt} at 12"
            await until(lambda last=last: last in whole.logs, "the attempt is well under way")  # type: ignore[misc]
            fleet.kill(worker)
        await fleet.start_worker(**PATIENT)
        job = await until_ended(http, job_id)
        assert job == await document(other, job_id)
    lives = await fleet.lives()
    lives.check_whole()
    logged = [event.log.message for event in lives.events[job_id] if event.log is not None]
    assert [logged.count(f"attempt {attempt} at 12") for attempt in (1, 2, 3)] == [1, 1, 1]
    for fold in (whole, resumed):
        assert (fold.gaps, fold.ends) == (0, 1)
        assert fold.logs == logged
        assert fold.document == job
    assert (job["status"], job["attempt"]) == ("Completed", 3)
    fleet.check_output()


# Workers that stand still

CALM_LEASE_SECONDS: Final = 4.0
"""So that the other worker, which has much to start at once, surely keeps what it takes."""


async def test_a_worker_that_was_stopped_past_its_lease(fleet: Fleet) -> None:
    """What it says then is refused, its attempts are told to stop and clean up, and the jobs are what the other makes of them: of
    some it had made it already when the first went on, others it runs at that moment.
    """
    config: dict[str, Any] = {"lease_seconds": CALM_LEASE_SECONDS, "max_processes": 2, "max_retries": 0}
    web, stopped = await fleet.start_web(**config), await fleet.start_worker(**config)
    bodies = [("held", {}), ("held", {"returns": True}), ("held_thread", {}), ("held_process", {})]
    async with web.http() as http:
        kinds: dict[str, str] = {}
        quick: set[str] = set()
        gate = fleet.folder / "gate"
        for kind, body in bodies:
            at_once = (await post(http, kind, cleanup=0.7, **body))["id"]
            gated = (await post(http, kind, cleanup=0.7, gate=str(gate), **body))["id"]
            kinds[at_once] = kinds[gated] = kind
            quick.add(at_once)
        await until(lambda: {line.job for line in fleet.journal.starts()} == set(kinds), "all run", seconds=90)
        other = await fleet.start_worker(**config)
        assert fleet.journal.running_in(other.pid) == set()
        await trio.sleep(random.uniform(0, CALM_LEASE_SECONDS / 3))
        await fleet.stop(stopped)
        await until(lambda: len(fleet.journal.starts()) == 2 * len(kinds), "the other has taken them all", seconds=90)
        jobs = {job_id: await until_ended(http, job_id) for job_id in quick}
        resumed = time.monotonic()
        fleet.go_on(stopped)
        for job_id in set(kinds) - quick:
            job = await document(http, job_id)
            assert (job["status"], job["attempt"]) == ("InProgress", 2), (job, other.output())
        asked = {job_id for job_id, kind in kinds.items() if kind != "held_process"}
        await until(
            lambda: {line.job for line in fleet.journal.lines("cleaned up")} == asked, "all have cleaned up", seconds=90
        )
        gate.touch()
        for job_id in kinds:
            jobs[job_id] = await until_ended(http, job_id)
        # It is none the worse for it: what it has to say of other jobs is taken.
        fleet.kill(other)
        last = await until_ended(http, (await post(http, "long", seconds=0))["id"])
        assert last["result"] == {"pid": stopped.pid}
        assert jobs == {job_id: await document(http, job_id) for job_id in kinds}

    lives = await fleet.lives()
    lives.check_whole()
    for job_id, kind in kinds.items():
        check_taken_over(fleet, lives, job_id, kind, stopped, other, resumed)
    fleet.check_output()


def check_taken_over(
    fleet: Fleet, lives: Lives, job_id: str, kind: str, stopped: Server, other: Server, resumed: float
) -> None:
    """``stopped`` lost the job in time, was told so when it went on, and wrote nothing any more; ``other`` made its end."""
    job, (lost, done), canary = lives.jobs[job_id], lives.attempts[job_id], fleet.canary
    first, second = fleet.journal.starts(job_id)
    assert (lost.outcome, done.outcome) == ("Lost", "Completed")
    assert msgspec.json.decode(job.result) == {"attempt": 2, "pid": second.pid}
    assert second.pid == other.pid or kind == "held_process"
    since, taken = fleet.stopped[stopped.pid], wall_to_monotonic(done.started_ms)
    assert taken - since <= CALM_LEASE_SECONDS + GRACE_SECONDS + canary.late_seconds(since, taken)

    after_loss = [event for event in lives.events[job_id] if event.at_ms >= lost.ended_ms]
    said = [event.log.message for event in after_loss if event.log is not None]
    assert said == (["attempt 2 is done"] if kind == "held" else []), "a late write was taken"
    assert all(event.type != "progress" for event in after_loss), "a late write was taken"

    # It is told at once by its own clock, or by the store's first word.
    late = GRACE_SECONDS + canary.late_seconds(resumed, resumed + CALM_LEASE_SECONDS)
    of_first = [line for line in fleet.journal.lines(job=job_id) if line.pid == first.pid]
    if kind == "held_process":
        assert of_first[-1].at <= resumed + late, "its process ran on"
    else:
        (told,) = [line for line in of_first if line.what == "told"]
        assert resumed <= told.at <= resumed + late
    assert f"job {job_id}: the lease was lost, the attempt's outcome is dropped" in stopped.output()


async def test_a_worker_that_is_cut_off_stops_its_attempts_by_its_own_clock(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """Nobody can tell it that its leases are over, so it goes by the time of the last extension; not before it has to."""
    web, worker = await fleet.start_web(max_retries=0), await fleet.start_worker(max_retries=0)
    async with web.http() as http:
        jobs = [(await post(http, kind, cleanup=0.2))["id"] for kind in ("held", "held_thread")]
        await until(lambda: all(map(fleet.journal.starts, jobs)), "both run")
        await trio.sleep(random.uniform(LEASE_SECONDS / 3, LEASE_SECONDS))
        cut_off = time.monotonic()
        redis_server.pause()
        await until(lambda: len(fleet.journal.lines("cleaned up")) == len(jobs), "both have cleaned up")
        assert len(fleet.journal.starts()) == len(jobs)
        redis_server.resume()
        held, of_thread = [await until_ended(http, job_id) for job_id in jobs]
        assert (held["status"], held["result"]) == ("Completed", {"attempt": 2, "pid": worker.pid})
        # It returned a value, which is taken where nobody else took the job meanwhile.
        assert (of_thread["status"], of_thread["result"]["attempt"]) == ("Completed", of_thread["attempt"])
    canary = fleet.canary
    for told in fleet.journal.lines("told"):
        late = canary.late_seconds(cut_off - LEASE_SECONDS, told.at)
        assert told.at - cut_off <= LEASE_SECONDS + 0.25 + late, "it ran on without a lease"
        assert told.at - cut_off >= LEASE_SECONDS * 2 / 3 - 0.25 - late, "it gave up although the lease held"
    lives = await fleet.lives()
    lives.check_whole()
    assert [one.outcome for one in lives.attempts[jobs[0]]] == ["Lost", "Completed"]
    fleet.journal.check_no_overlap({})


LONG_LEASE_SECONDS: Final = 1.5
TRIES: Final = 3
"""Where the machine stood still for too long, nothing can be said."""


async def test_a_healthy_job_ten_times_longer_than_the_lease_runs_once(fleet: Fleet) -> None:
    """Also while its process's event loop is busy, in a thread that computes, and in a worker process; another worker waits for work."""
    config: dict[str, Any] = {
        "lease_seconds": LONG_LEASE_SECONDS,
        "max_lost_leases": 1000,
        "max_retries": 0,
        "timeout_seconds": None,
    }
    web = await fleet.start_web(**config)
    for _ in range(TRIES):
        worker = await fleet.start_worker(**config)
        async with web.http() as http:
            seconds = 10 * LONG_LEASE_SECONDS
            jobs = [
                (await post(http, kind, seconds=seconds, hold=0.15))["id"] for kind in ("long", "thread", "process")
            ]
            jobs.append((await post(http, "busy", seconds=seconds, hold=0.15))["id"])
            await until(lambda jobs=jobs: all(map(fleet.journal.starts, jobs)), "all run")  # type: ignore[misc]
            began = time.monotonic()
            rival = await fleet.start_worker(**config)
            ended = [await until_ended(http, job_id, seconds=60) for job_id in jobs]
        standstill = fleet.canary.worst_seconds(began, time.monotonic())
        if all(job["attempt"] == 1 for job in ended) or standstill < LONG_LEASE_SECONDS / 5:
            break
        fleet.kill(worker)
        fleet.kill(rival)
    for job in ended:
        assert (job["status"], job["attempt"]) == ("Completed", 1), (job, standstill)
        assert len(fleet.journal.starts(job["id"])) == 1
    (await fleet.lives()).check_whole()
    fleet.check_output()


# Races for one job


@asynccontextmanager
async def raced(fleet: Fleet, racers: int, what: str, limit: int) -> AsyncIterator[tuple[Store, Path]]:
    """A store to feed ``racers`` processes that do ``what``, and the file that they write to."""
    path = fleet.folder / "races"
    command = [sys.executable, str(Path(__file__).with_name("redis_racer.py")), fleet.store_url]
    running = [fleet.run([*command, f"racer {number}", str(path), what, str(limit)]) for number in range(racers)]
    for racer in running:
        await until(lambda racer=racer: "ready" in racer.output(), "it races")  # type: ignore[misc]
    store = open_store(fleet.store_url)
    await store.open(worker="feeder", max_events_per_job=1000, max_attempts_per_job=1000)
    try:
        yield store, path
        for racer in running:
            assert racer.exit_code is None, racer.output()
            fleet.kill(racer)
    finally:
        await store.aclose()


def check_fences(claims: list[Note]) -> None:
    """All different, and growing with the attempts of one job."""
    assert len({claim.fence for claim in claims}) == len(claims)
    by_job: dict[str, list[Note]] = defaultdict(list)
    for claim in claims:
        by_job[claim.job].append(claim)
    for of_one in by_job.values():
        ordered = sorted(of_one, key=lambda claim: claim.fence)
        assert [claim.attempt for claim in ordered] == list(range(1, len(ordered) + 1)), of_one


@pytest.mark.parametrize("rounds", [1000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_two_instances_race_for_one_job(fleet: Fleet, rounds: int) -> None:
    """One job at a time, and two processes that claim without a pause: in each round one of them gets it."""
    async with raced(fleet, 2, "claim", 1) as (store, path):
        for number in range(1, rounds + 1):
            (job,) = await submit(store, number)
            with trio.fail_after(30):
                while (now := await one(store, job.id)) is None or now.status is not Status.COMPLETED:
                    pass
        written = read_notes(path)
        jobs = await store.get([note.job for note in written if note.what == "claim"][:500])
    claims = [note for note in written if note.what == "claim"]
    assert Counter(claim.job for claim in claims) == {str(uuid.UUID(int=number)): 1 for number in range(1, rounds + 1)}
    assert sorted(note.job for note in written if note.what == "end") == sorted(claim.job for claim in claims)
    check_fences(claims)
    for claim, ended in zip(claims, jobs, strict=False):
        assert ended is not None
        assert msgspec.json.decode(ended.result) == [claim.racer, claim.fence]
    wins = Counter(claim.racer for claim in claims)
    assert min(wins.values()) > rounds / 20 and len(wins) == 2, f"no race: {wins}"


@pytest.mark.parametrize("jobs", [1000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_three_instances_race_for_many_jobs(fleet: Fleet, jobs: int) -> None:
    """In batches that overlap."""
    async with raced(fleet, 3, "claim", 7) as (store, path):
        for first in range(1, jobs + 1, 200):
            await submit(store, *range(first, min(first + 200, jobs + 1)))
        ended = 0
        with trio.fail_after(30 + jobs / 50):
            while ended < jobs:
                await trio.sleep(0.1)
                ended = (await store.counts()).get(("default", Status.COMPLETED), 0)
        claims = [note for note in read_notes(path) if note.what == "claim"]
    assert Counter(claim.job for claim in claims) == {str(uuid.UUID(int=number)): 1 for number in range(1, jobs + 1)}
    check_fences(claims)
    assert len(Counter(claim.racer for claim in claims)) == 3


@pytest.mark.parametrize("claims_wanted", [1000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_three_instances_race_for_jobs_whose_lease_is_over(fleet: Fleet, claims_wanted: int) -> None:
    """Each takes a job over once, the attempts of a job follow one another, and only its last owner can end it."""
    submitted, is_wanted = 0, True
    async with raced(fleet, 3, "snatch", 3) as (store, path):

        async def living() -> int:
            counts = await store.counts()
            return sum(number for (_, status), number in counts.items() if not status.is_terminal)

        with trio.fail_after(60 + claims_wanted / 50):
            while (alive := await living()) or is_wanted:
                for _ in range(5 - alive if is_wanted else 0):
                    submitted += 1
                    await submit(store, submitted, max_lost_leases=10**6)
                await trio.sleep(0.02)
                is_wanted = count_claims(path) < claims_wanted
        written = read_notes(path)
        jobs = {}
        for number in range(1, submitted + 1):
            job = await one(store, str(uuid.UUID(int=number)))
            assert job is not None
            jobs[job.id] = job
    claims = [note for note in written if note.what == "claim"]
    check_fences(claims)
    following = {(claim.job, claim.attempt): claim for claim in claims}
    held = [note for note in written if note.what == "held"]
    for note in held:
        claim = following.get((note.job, note.attempt + 1))
        # Milliseconds are whole numbers in the store.
        early = claim is not None and claim.at < note.at + (EXTENDED_MS - 1) / 1000
        assert not early, f"a lease that was extended was taken: {note} {claim}"
    assert len(held) > claims_wanted / 20
    last = {claim.job: claim for claim in sorted(claims, key=lambda claim: claim.fence)}
    ends = [note for note in written if note.what == "end"]
    assert sorted(note.job for note in ends) == sorted(jobs), "each ends once"
    for end in ends:
        claim, job = last[end.job], jobs[end.job]
        assert (end.racer, end.fence, end.attempt) == (claim.racer, claim.fence, claim.attempt)
        assert (job.status, job.attempt, job.lost_leases) == (Status.COMPLETED, claim.attempt, claim.attempt - 1)
        assert msgspec.json.decode(job.result) == [claim.racer, claim.fence]
    assert sum(note.what == "refused" for note in written) > 0, "nobody was late"
    assert len(Counter(claim.racer for claim in claims)) == 3


# Clocks


@pytest.mark.parametrize("wrong_by", [60.0, -60.0])
async def test_a_clock_that_is_a_minute_off_changes_nothing(fleet: Fleet, wrong_by: float) -> None:
    """Web and workers alike are wrong, and one worker's clock leaps to and fro; every time is the store's all the same."""
    config: dict[str, Any] = {**PATIENT, "retention_seconds": 30}
    skew, stepping = Skew(fleet.folder / "skew", wrong_by), Skew(fleet.folder / "stepping", wrong_by)
    began = time.time()
    web, doomed = await fleet.start_web(skew=skew.path, **config), await fleet.start_worker(skew=skew.path, **config)
    async with web.http() as http:
        old = await until_ended(http, (await post(http, "work"))["id"])
        # Whoever begins removes what was kept long enough.
        steady = await fleet.start_worker(skew=stepping.path, **config)
        healthy = await run_on_both(fleet, http, (doomed, steady), "long", seconds=2.5 * LEASE_SECONDS)
        due_ms: dict[tuple[str, int], float] = {}
        for delay in (1, 2, 3, 3.5):
            answer = await http.post("/run/work", json={}, headers={"Job-Delay": str(delay)})
            due_ms[answer.json()["id"], 1] = due_ms_of(answer)
        retried = [(await post(http, "flaky", after=1.5))["id"] for _ in range(3)]
        later = await http.post("/run/work", json={}, headers={"Job-Delay": "40"})
        assert 20 < int(later.headers["retry-after"]) <= 41
        assert (await http.post(later.headers["location"] + "/cancel")).status_code == 200
        for seconds in (-wrong_by, 0, wrong_by):
            await trio.sleep(0.8)
            stepping.step(seconds)
        for job_id in (*(job_id for job_id, _ in due_ms), *retried):
            assert (await until_ended(http, job_id))["status"] == "Completed"
        for job_id in healthy:
            assert (await until_ended(http, job_id))["attempt"] == 1

        left = await run_on_both(fleet, http, (doomed, steady), "held")
        rescued = [job_id for job_id in left if fleet.journal.starts(job_id)[0].pid == doomed.pid]
        fleet.kill(doomed)
        for job_id in rescued:
            assert (await until_ended(http, job_id))["attempt"] == 2
        for job_id in set(left) - set(rescued):
            assert (await http.post(f"/jobs/{job_id}/cancel")).status_code == 202
            assert (await until_ended(http, job_id))["attempt"] == 1
        assert await document(http, old["id"]) == old
        ended = time.time()
        jobs = await all_jobs(http)

    for job in jobs.values():
        for name in ("createdAt", "startedAt", "completedAt", "lastUpdatedAt"):
            assert job[name] is None or began - 0.1 <= datetime.fromisoformat(job[name]).timestamp() <= ended + 0.1, (
                name,
                job,
            )
    lives = await fleet.lives()
    lives.check_whole()
    for job_id, events in lives.events.items():
        assert all(began - 0.1 <= event.at_ms / 1000 <= ended + 0.1 for event in events), job_id
    for job_id in retried:
        due_ms[job_id, 2] = lives.attempts[job_id][0].ended_ms + 1500
    lives.check_due(fleet, due_ms)
    assert lives.check_recoveries(fleet, lease_seconds=LEASE_SECONDS, early=False) == len(rescued)
    fleet.journal.check_no_overlap(fleet.killed)
    offset = time.time() - time.monotonic()
    told = [line.wall - line.at - offset for line in fleet.journal.lines() if line.pid == doomed.pid]
    assert all(abs(one - wrong_by) < 1 for one in told), "the clock was not wrong"
    fleet.check_output()


async def run_on_both(
    fleet: Fleet, http: httpx.AsyncClient, workers: tuple[Server, Server], kind: str, **body: Any
) -> list[str]:
    """Submit jobs until each of the workers runs one of them; all of them run."""
    submitted: list[str] = []
    for _ in range(30):
        submitted.append((await post(http, kind, **body))["id"])
        await until(lambda: bool(fleet.journal.starts(submitted[-1])), "it runs")
        running = {line.pid for line in fleet.journal.starts() if line.job in submitted}
        if running == {worker.pid for worker in workers}:
            return submitted
    raise AssertionError("one of the workers took every job")
