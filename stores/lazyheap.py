"""A heap of serials whose members can be moved and removed in constant time; what is out of date is dropped when it surfaces."""

import heapq
from typing import Final

__all__ = ["LazyHeap"]

_SLACK: Final = 64
"""So many stale entries, and as many as there are live ones, are kept before the heap is built anew."""


class LazyHeap:
    """Serials ordered by (key, serial), each in it at most once."""

    def __init__(self) -> None:
        self._keys: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, serial: int, key: int) -> None:
        """Add ``serial``, or move it to ``key``."""
        if self._keys.get(serial) == key:
            return
        self._keys[serial] = key
        heapq.heappush(self._heap, (key, serial))
        if len(self._heap) > 2 * len(self._keys) + _SLACK:
            self._heap = [(key, serial) for serial, key in self._keys.items()]
            heapq.heapify(self._heap)

    def discard(self, serial: int) -> None:
        """Take ``serial`` out, if it is in."""
        self._keys.pop(serial, None)

    def first(self) -> tuple[int, int] | None:
        """The least (key, serial), or None."""
        while self._heap:
            key, serial = self._heap[0]
            if self._keys.get(serial) == key:
                return key, serial
            heapq.heappop(self._heap)
        return None

    def pop_until(self, key: int) -> list[int]:
        """Take out every serial with a key of at most ``key``, in order."""
        taken = []
        while (first := self.first()) is not None and first[0] <= key:
            taken.append(first[1])
            self.discard(first[1])
        return taken
