"""Says once in the log that jobs wait which nobody takes here: of a name, or in a queue, that no handler of this runtime has.

They are others' to run: of another app on the same store, of a newer version of this one. But there may be no other. A job like that
waits for as long as it takes; nothing here changes it.
"""

import logging
from typing import Final

import trio

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.runtime.directory import Directory

__all__ = ["COUNT_UP_TO", "Backlog"]

logger = logging.getLogger("callboard.backlog")

LOOK_POLLS: Final = 60
"""How often to look, in ``poll_seconds``: once a minute."""
COUNT_UP_TO: Final = 10_000
"""More jobs of one name in one queue are not counted one by one."""


class Backlog:
    """One task."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._seen: set[tuple[str, str]] = set()
        self._told: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._look()
            except (StoreUnavailable, StoreRefused):
                pass  # told by those who need it more
            await trio.sleep(LOOK_POLLS * self._directory.config.poll_seconds)

    async def _look(self) -> None:
        """Tell of each name and queue when it is there for the second time, and anew when it was gone meanwhile."""
        handlers, wanted = self._directory.handlers, self._directory.config.queues
        ready = await self._directory.store.ready(COUNT_UP_TO)
        strange = {
            (queue, name): count
            for (queue, name), count in ready.items()
            if count and not handlers.take(queue, name) and (wanted is None or queue in wanted)
        }
        self._told &= strange.keys()
        for queue, name in sorted(strange.keys() & self._seen - self._told):
            count = strange[queue, name]
            logger.warning(
                "jobs named %r wait in queue %r, and no handler here takes them: they wait until a process has one (%s%d now)",
                *(name, queue, "at least " if count >= COUNT_UP_TO else "", count),
            )
            self._told.add((queue, name))
        self._seen = set(strange)
