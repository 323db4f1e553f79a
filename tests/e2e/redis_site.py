"""Web and worker processes on one store that they share, kills and stops of them, and what the store has to say of every life in the end.

``Fleet`` starts, kills, stops and continues processes; ``Lives`` is all that the store knows, and its checks hold it against the journal,
which the attempts wrote past the store. Bounds of time are what callboard promises plus what the canary measured that the machine took.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.e2e.harness import START_SECONDS, Server, Site, until
from tests.e2e.redis_canary import Canary

from callboard.runtime import Job
from callboard.runtime.core.events import Event
from callboard.runtime.core.history import AttemptOutcome, AttemptRecord
from callboard.runtime.core.job import Status
from callboard.runtime.core.store import JobFilter, Store
from callboard.stores.opening import open_store

__all__ = ["GRACE_SECONDS", "LEASE_SECONDS", "Fleet", "Lives", "wall_to_monotonic"]

FOLDER: Final = Path(__file__).parent

LEASE_SECONDS: Final = 2.0

GRACE_SECONDS: Final = 1.0
"""What the promise allows beside the lease: a job of a killed worker runs again within the lease plus this."""


def wall_to_monotonic(ms: float) -> float:
    """A time of day (milliseconds) on the monotonic clock of the journal (seconds)."""
    return ms / 1000 - (time.time() - time.monotonic())


class Fleet(Site):
    """Processes of the faults' app on the store ``url``. A canary measures the machine as long as the block lasts."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.store_url = url
        self.stopped: dict[int, float] = {}
        """pid -> when SIGSTOP was sent."""
        self._beats = folder / "canary"

    def __enter__(self) -> Self:
        super().__enter__()
        self._canary = subprocess.Popen([sys.executable, str(FOLDER / "redis_canary.py"), str(self._beats)])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(kind, error, at)
        self._canary.kill()
        self._canary.wait(30)

    @property
    def canary(self) -> Canary:
        """What it has measured so far."""
        return Canary.of(self._beats)

    # Processes

    async def start_web(self, *, skew: Path | None = None, **config: Any) -> Server:
        """One that accepts, answers and streams, and runs nothing."""
        server = self._launch("serve", "--bind", "127.0.0.1:0", "--jobs", "0", skew=skew, **config)
        await server.listening()
        return server

    async def start_worker(self, *, skew: Path | None = None, **config: Any) -> Server:
        """One that runs jobs and does nothing else."""
        worker = self.launch_worker(skew=skew, **config)
        await self.at_work(worker)
        return worker

    def launch_worker(self, *, skew: Path | None = None, **config: Any) -> Server:
        """Start it and do not wait; ``skew`` says how wrong its clock is."""
        return self._launch("worker", skew=skew, **config)

    async def at_work(self, worker: Server) -> None:
        """Wait until it takes jobs."""

        def told() -> bool:
            assert worker.exit_code is None, f"the worker ended with {worker.exit_code}:\n{worker.output()}"
            return "callboard: running jobs" in worker.output()

        await until(told, "the worker is at work", seconds=START_SECONDS)

    def _launch(self, role: str, *options: str, skew: Path | None, **config: Any) -> Server:
        start = ["-m", "callboard.web.cli"] if skew is None else [str(FOLDER / "redis_clock.py"), str(skew)]
        arguments = [f"{FOLDER / 'redis_app.py'}:app", "--store", self.store_url, *options]
        return self.run([sys.executable, *start, role, *arguments], **{"lease_seconds": LEASE_SECONDS, **config})

    async def stop(self, server: Server) -> None:
        """SIGSTOP for it and for the processes that it started, as when a machine stands still; returns when all have stopped."""
        self.stopped[server.pid] = time.monotonic()
        pids = [server.pid, *_descendants(server.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await until(lambda: all(_state(pid) == "T" for pid in pids), "all are stopped")

    def go_on(self, server: Server) -> None:
        """SIGCONT."""
        for pid in (server.pid, *_descendants(server.pid)):
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # one that goes on may end the others at once

    async def lives(self) -> "Lives":
        """All that the store knows."""
        store = open_store(self.store_url)
        await store.open(worker="onlooker", max_events_per_job=1000, max_attempts_per_job=100)
        try:
            return await Lives.read(store)
        finally:
            await store.aclose()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "T"  # it has ended meanwhile


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


class Lives:
    """Records, events and histories of all jobs, as the store has them."""

    def __init__(
        self,
        jobs: Mapping[str, Job],
        events: Mapping[str, list[Event]],
        attempts: Mapping[str, list[AttemptRecord]],
    ) -> None:
        self.jobs = jobs
        self.events = events
        self.attempts = attempts

    @classmethod
    async def read(cls, store: Store) -> Self:
        """Only while nothing changes: it takes many calls."""
        jobs: dict[str, Job] = {}
        cursor: str | None = None
        while True:
            page = await store.list(JobFilter(), cursor=cursor, limit=200)
            jobs |= {job.id: job for job in page.jobs}
            cursor = page.next
            if cursor is None:
                break
        events = {job_id: list(await store.events(job_id, after=0, limit=10_000)) for job_id in jobs}
        return cls(jobs, events, {job_id: list(await store.attempts(job_id)) for job_id in jobs})

    def check_whole(self) -> None:
        """Every job has ended, its events have no gap and end in its record, and its history is complete and in order."""
        for job in self.jobs.values():
            assert job.status.is_terminal, f"stuck: {job}"
            assert (job.fence, job.worker) == (0, None), job
            events = self.events[job.id]
            assert [event.seq for event in events] == list(range(1, job.seq + 1)), f"a gap in the events of {job}"
            assert events[-1].status == job.status
            assert sum(Status(event.status).is_terminal for event in events) == 1, f"it ended more than once: {events}"
            attempts = self.attempts[job.id]
            assert [one.attempt for one in attempts] == list(range(1, job.attempt + 1)), (job, attempts)
            lost = sum(one.outcome is AttemptOutcome.LOST for one in attempts)
            assert job.lost_leases == lost, f"{job.lost_leases} lost leases, {lost} lost attempts: {job}"
            for one in attempts:
                assert job.created_ms <= one.started_ms <= one.ended_ms <= job.updated_ms, (job, one)
            for earlier, later in pairwise(attempts):
                assert earlier.ended_ms <= later.started_ms, attempts
                assert earlier.outcome not in (AttemptOutcome.COMPLETED, AttemptOutcome.CANCELED), attempts
            if job.status is Status.COMPLETED:
                assert attempts[-1].outcome is AttemptOutcome.COMPLETED, attempts
            retries = sum(one.outcome is AttemptOutcome.FAILED for one in attempts) - (job.status is Status.FAILED)
            assert job.retry_count == max(0, retries), (job, attempts)

    def lost_with(self, fleet: Fleet) -> list[tuple[AttemptRecord, float, float | None]]:
        """The lost attempts: each with when its worker was killed (monotonic), and when the next one was claimed; None: there was none.

        Checks that no other attempt was lost, and that what the journal and the history say of who ran what fits together.
        """
        starts = {(line.job, line.attempt): line for line in fleet.journal.starts()}
        pids: dict[str, int] = {}
        for job_id, attempts in self.attempts.items():
            for one in attempts:
                assert one.worker is not None
                line = starts.pop((job_id, one.attempt), None)
                if line is not None:
                    assert pids.setdefault(one.worker, line.pid) == line.pid, f"{one.worker} is two processes: {line}"
        assert not starts, f"the journal has attempts that the history has not: {list(starts.values())[:3]}"
        assert len(set(pids.values())) == len(pids), f"one process has two names: {Counter(pids.values())}"
        lost = []
        for job_id, attempts in self.attempts.items():
            for one, following in zip(attempts, [*attempts[1:], None], strict=False):
                if one.outcome is not AttemptOutcome.LOST:
                    continue
                pid = pids.get(one.worker or "")
                if pid is None:
                    continue  # killed before it began anything
                assert pid in fleet.killed, f"{job_id} was lost by a healthy worker: {one}"
                again = None if following is None else wall_to_monotonic(following.started_ms)
                lost.append((one, fleet.killed[pid], again))
        return lost

    def check_recoveries(self, fleet: Fleet, *, lease_seconds: float, early: bool = True) -> int:
        """Each lost attempt was noticed, and its job claimed again, within the lease and a second of the kill; how many there were.

        Nor, unless ``early`` is allowed, was one noticed before its lease can have ended.
        """
        canary = fleet.canary
        lost = self.lost_with(fleet)
        for one, killed, again in lost:
            noticed = wall_to_monotonic(one.ended_ms)
            for what, at in (("noticed", noticed), ("claimed again", again)):
                if at is not None:
                    promised = lease_seconds + GRACE_SECONDS + canary.late_seconds(killed, at)
                    assert at - killed <= promised, f"{what} after {at - killed:.2f} s, not {promised:.2f}: {one}"
            # It was claimed or extended last not more than a third of the lease, and what the machine took, before the kill.
            least = lease_seconds * 2 / 3 - GRACE_SECONDS / 5 - canary.late_seconds(killed - lease_seconds, killed)
            assert early or noticed - killed >= least, (
                f"noticed after {noticed - killed:.2f} s, before {least:.2f}: {one}"
            )
        return len(lost)

    def check_due(self, fleet: Fleet, due_ms: Mapping[tuple[str, int], float]) -> None:
        """No attempt (job, number) began before its time by the store's clock, nor over a second after it."""
        canary = fleet.canary
        for (job_id, number), due in due_ms.items():
            if not self.attempts[job_id]:
                assert self.jobs[job_id].status is Status.CANCELED, self.jobs[job_id]  # before it could begin
                continue
            begun = self.attempts[job_id][number - 1].started_ms
            assert begun >= due, f"{job_id} began {due - begun} ms early"
            allowed = GRACE_SECONDS + canary.late_seconds(wall_to_monotonic(due), wall_to_monotonic(begun))
            assert begun - due <= allowed * 1000, f"{job_id} began {begun - due} ms late"
