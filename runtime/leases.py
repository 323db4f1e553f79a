"""The runtime's heartbeat: extends the leases of all attempts that run here, and takes jobs from holders that are gone.

Liveness is the runtime's business: a handler never has to do anything for it, and however long it runs it is run once. A
runtime always extends its own leases before it reaps anyone's: after a pause (a laptop that slept) its own would look lapsed.
"""

import logging

import trio

from callboard.runtime.core.errors import StoreUnavailable
from callboard.runtime.directory import Directory
from callboard.runtime.joblog import job_fields

__all__ = ["Leases"]

logger = logging.getLogger("callboard.leases")

MAX_LAPSED = 200
"""Jobs taken back in one write."""


class Leases:
    """One task; ``reap`` is called by the timers."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._lease_seconds = directory.config.lease_seconds
        self._sent = trio.current_time()
        self._quiet_until = -float("inf")

    async def run(self) -> None:
        """Extend every third of a lease, until cancelled; sooner again when the store could not be reached."""
        while True:
            extended = await self.extend()
            await trio.sleep(self._lease_seconds / 3 if extended else min(1.0, self._lease_seconds / 10))

    async def extend(self) -> bool:
        """Extend all leases held here; whether the store could be reached."""
        sent = trio.current_time()
        held = [(supervisor, lease) for supervisor in self._directory.attempts() for lease in supervisor.leases()]
        if held:
            try:
                answers = await self._directory.store.extend(
                    [lease for _, lease in held], round(self._lease_seconds * 1000)
                )
            except StoreUnavailable:
                return False
            for (supervisor, lease), answer in zip(held, answers, strict=True):
                supervisor.extended(lease.fence, answer, sent + self._lease_seconds)
        self._sent = sent
        return True

    async def reap(self) -> None:
        """Take back the jobs of holders whose lease has ended or that are dead. Raises StoreUnavailable."""
        await self._follow_clock()
        if trio.current_time() - self._sent > self._lease_seconds / 2 and not await self.extend():
            return
        if trio.current_time() < self._quiet_until:
            return
        lapsed = await self._directory.store.lapse(MAX_LAPSED)
        for one in lapsed:
            words = (one.job.id, one.job.name, one.job.status.value)
            logger.warning("job %s (%s) lost its worker, now %s", *words, extra=job_fields(one.job))

    async def _follow_clock(self) -> None:
        asked = trio.current_time()
        drift_ms = self._directory.clock.set(await self._directory.store.now_ms(), asked=asked)
        if drift_ms > self._lease_seconds * 1000 / 3:
            # The time of day leapt (a laptop that slept): every lease looks older than it is. Ours are extended at once,
            # the others get the time to do the same.
            self._sent = -float("inf")
            self._quiet_until = trio.current_time() + self._lease_seconds / 2
