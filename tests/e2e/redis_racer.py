"""One of several processes that take jobs from one store as fast as they can; each writes down what it got, past the store.

Arguments: the store's URL, this racer's name, the file to write to, and what to do: ``claim`` takes jobs and ends them; ``snatch`` gives
them a lease of a millisecond or two, takes those of others whose lease is over, extends some of its own and tries to end a few.
"""

import os
import random
import sys
import time

import msgspec
import trio

from callboard.runtime.core.commands import Succeed
from callboard.runtime.core.store import Claimed, Committed, Held, Store
from callboard.stores.conformance_bench import after
from callboard.stores.opening import open_store

__all__ = ["EXTENDED_MS", "Note", "count_claims", "read_notes"]

QUEUE, NAME = "default", "send"

EXTENDED_MS = 40
"""A lease that was extended holds for so long from when that was asked for."""


class Note(msgspec.Struct, frozen=True):
    """One claim, one extension that the store granted (``at`` is when it was asked for), or one end that it took or refused."""

    racer: str
    what: str
    job: str
    attempt: int
    fence: int
    at: float


def read_notes(path: str | os.PathLike[str]) -> list[Note]:
    """What all racers wrote, in order."""
    with open(path, "rb") as file:
        return [msgspec.json.decode(line, type=Note) for line in file if line.endswith(b"\n")]


def count_claims(path: str | os.PathLike[str]) -> int:
    """How many there are by now; quick, however long the file is."""
    with open(path, "rb") as file:
        return file.read().count(b'"what":"claim"')


class Racer:
    """Runs until it is killed."""

    def __init__(self, store: Store, name: str, journal: int) -> None:
        self._store = store
        self._name = name
        self._journal = journal
        self._random = random.Random(name)

    async def claim(self, limit: int) -> None:
        """Take what there is and end it."""
        while True:
            for claimed in await self._take(self._random.randint(1, limit), 60_000):
                await self._end(claimed)

    async def snatch(self, limit: int) -> None:
        """Take what there is and what others took too long ago."""
        while True:
            await self._store.lapse(limit=self._random.randint(1, limit))
            for claimed in await self._take(self._random.randint(1, limit), self._random.choice([1, 2])):
                chance = self._random.random()
                if chance < 0.3:
                    await self._extend(claimed)
                if chance < 0.1:
                    await trio.sleep(self._random.choice([0, 0.002]))
                    await self._end(claimed)

    async def _take(self, limit: int, lease_ms: int) -> list[Claimed]:
        taken = list(await self._store.claim(queues=[QUEUE], names=[NAME], limit=limit, lease_ms=lease_ms))
        for claimed in taken:
            self._note("claim", claimed)
        return taken

    async def _extend(self, claimed: Claimed) -> None:
        asked = time.monotonic()
        (answer,) = await self._store.extend([Held(claimed.job.id, claimed.job.fence)], lease_ms=EXTENDED_MS)
        if answer.held:
            self._note("held", claimed, asked)

    async def _end(self, claimed: Claimed) -> None:
        now_ms = await self._store.now_ms()
        text = msgspec.Raw(msgspec.json.encode([self._name, claimed.job.fence]))
        (outcome,) = await self._store.commit([after(claimed.job, Succeed(now_ms=now_ms, result=text))])
        self._note("end" if isinstance(outcome, Committed) else "refused", claimed)

    def _note(self, what: str, claimed: Claimed, at: float | None = None) -> None:
        job = claimed.job
        note = Note(self._name, what, job.id, job.attempt, job.fence, time.monotonic() if at is None else at)
        os.write(self._journal, msgspec.json.encode(note) + b"\n")


async def race(url: str, name: str, path: str, what: str, limit: str) -> None:
    """Open the store, say so, and begin."""
    store = open_store(url)
    await store.open(worker=name, max_events_per_job=1000, max_attempts_per_job=1000)
    racer = Racer(store, name, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    print("ready", flush=True)
    await (racer.claim if what == "claim" else racer.snatch)(int(limit))


if __name__ == "__main__":
    trio.run(lambda: race(*sys.argv[1:]))
