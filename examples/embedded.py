"""The runtime without the web: jobs in a script, a worker, a desktop program.

    python examples/embedded.py

One handler is a trio task, the other a plain function that callboard runs in a thread. Each job's events are printed as
they happen. Nothing but the store's URL says where the jobs live: with ``sqlite:///jobs.db`` they outlive the process.
"""

import time

import msgspec
import trio

from callboard.runtime import Config, Handlers, JobContext, Runtime, Snapshot, ThreadJobContext, open_runtime
from callboard.stores import open_store

__all__ = ["Primes", "count_primes", "handlers", "main", "nap"]

handlers = Handlers()


class Primes(msgspec.Struct):
    """Numbers below this."""

    below: int


@handlers.handler("Nap")
async def nap(job: JobContext) -> str:
    """Sleep in three steps."""
    for step in range(3):
        await job.progress(100 * step / 3, f"nap {step + 1} of 3")
        await trio.sleep(0.2)
    return "rested"


@handlers.handler("CountPrimes", timeout_seconds=30)
def count_primes(job: ThreadJobContext, request: Primes) -> int:
    """Count the primes below a number, in a thread."""
    found = 0
    said = time.monotonic()
    for number in range(2, request.below):
        found += all(number % divisor for divisor in range(2, int(number**0.5) + 1))
        if time.monotonic() - said > 0.1:
            said = time.monotonic()
            job.progress(100 * number / request.below, f"{found} primes so far")  # also the way out when canceled
    job.log("info", f"tried every number below {request.below}")
    return found


async def follow(runtime: Runtime, job_id: str) -> None:
    """Print a job's events until it has ended."""
    async with runtime.watch(job_id) as events:
        async for event in events:
            if isinstance(event, Snapshot):
                print(f"{event.job.name:12} {event.job.status}")
            elif event.type == "log" and event.log is not None:
                print(f"{event.name:12} {event.log.level}: {event.log.message}")
            elif event.type == "progress":
                print(f"{event.name:12} {msgspec.json.decode(event.changes['progress'])['message']}")
            else:
                print(f"{event.name:12} {event.status}")


async def main() -> None:
    """Submit two jobs, watch both, and print what they returned."""
    async with open_runtime(open_store("memory://"), handlers, Config(max_concurrent_jobs=4)) as runtime:
        jobs = [await runtime.submit("Nap"), await runtime.submit("CountPrimes", Primes(below=200_000))]
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(follow, runtime, job.id)
        for job in jobs:
            ended = await runtime.get(job.id)
            print(f"{ended.name:12} returned {msgspec.json.decode(ended.result)!r}")


if __name__ == "__main__":
    trio.run(main)
