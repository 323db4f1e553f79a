"""What one websocket's client has yet to be sent: in order within each subscription, fair between them, bounded, progress merged.

Owns what waits and nothing else: it neither reads from the runtime nor writes to a socket. Each subscription has a lane. Whoever
fills a lane waits while it is full, so that a client that reads slowly holds up its own subscriptions only, and those one by
one: the lanes take turns. Answers to what the client asked go first; they are never dropped and never merged.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from msgspec import Struct

from callboard.runtime import Snapshot
from callboard.runtime.core.events import Event, merged_progress
from callboard.web.render import Place, event_frame, snapshot_frame

__all__ = ["Close", "Item", "Lane", "Outbox", "frame_of"]

MAX_WAITING: Final = 16
"""Items that wait in one lane before whoever fills it waits too."""
MAX_TOTAL: Final = 256
"""Items that wait in all lanes together; past it, a lane gets one at a time."""
MAX_ANSWERS: Final = 64
"""Answers that wait before the client's next message is looked at."""


class Close(Struct, frozen=True):
    """The last thing in an outbox: how to close. Codes are those of RFC 6455, section 7.4."""

    code: int
    reason: str = ""


Item = Snapshot | Event


def frame_of(item: Item, place: Place) -> bytes:
    """What a client is sent for one item."""
    if isinstance(item, Event):
        return event_frame(item, place)
    return snapshot_frame(item.job, place, gap=item.gap)


class Lane:
    """What waits for one subscription. ``encode`` makes a frame of an item, when its turn has come."""

    def __init__(self, encode: Callable[[Item], bytes]) -> None:
        self.encode = encode
        self.waiting: deque[Item | bytes] = deque()
        self.has_ended = False
        self.is_open = True
        """Something may still be sent from it."""

    def merged(self, item: Item) -> bool:
        """Whether ``item`` could be merged into what waits: progress into the last word on the same job, if that is progress."""
        if not isinstance(item, Event) or item.type != "progress":
            return False
        for index in range(len(self.waiting) - 1, -1, -1):
            last = self.waiting[index]
            if isinstance(last, bytes) or _job_id(last) != item.job_id:
                continue
            merged = merged_progress(last, item) if isinstance(last, Event) else None
            if merged is not None:
                self.waiting[index] = merged
            return merged is not None
        return False


def _job_id(item: Item) -> str:
    return item.job_id if isinstance(item, Event) else item.job.id


class Outbox:
    """The lanes and the answers of one socket."""

    def __init__(self) -> None:
        self._answers: deque[bytes] = deque()
        self._lanes: deque[Lane] = deque()
        """In the order of their turns."""
        self._close: Close | None = None
        self._changed = trio.Event()

    def open_lane(self, encode: Callable[[Item], bytes]) -> Lane:
        """A lane of its own for one more subscription."""
        lane = Lane(encode)
        self._lanes.append(lane)
        return lane

    def drop_lane(self, lane: Lane) -> None:
        """The subscription is over: what waits in its lane is not sent."""
        lane.waiting.clear()
        self._remove(lane)
        self._notify()

    async def put(self, lane: Lane, item: Item | bytes) -> None:
        """Add an item, or a frame in its place, waiting for room; progress after waiting progress of the same job needs none."""
        if not isinstance(item, bytes) and lane.merged(item):
            return
        while not self._has_room(lane) and self._close is None:
            await self._changed.wait()
        if lane.is_open and self._close is None:
            lane.waiting.append(item)
            self._notify()

    def end_lane(self, lane: Lane, last: bytes | None = None) -> None:
        """After what waits, and then ``last``, there is nothing more in this lane; it goes when that is taken."""
        if not lane.is_open:
            return
        lane.has_ended = True
        if last is not None:
            lane.waiting.append(last)
        if not lane.waiting:
            self._remove(lane)
        self._notify()

    async def answer(self, frame: bytes) -> None:
        """Add an answer to something that the client asked, waiting for room."""
        while len(self._answers) >= MAX_ANSWERS and self._close is None:
            await self._changed.wait()
        if self._close is None:
            self._answers.append(frame)
            self._notify()

    def close(self, close: Close, *, at_once: bool = False) -> None:
        """End after what waits, or at once without it. The first close counts."""
        if self._close is None:
            self._close = close
            if at_once:
                self._answers.clear()
                for lane in self._lanes:
                    lane.waiting.clear()
            self._notify()

    async def take(self) -> bytes | Close:
        """The next frame, or how to close after the last."""
        while True:
            if self._answers:
                return self._taken(self._answers.popleft())
            for _ in range(len(self._lanes)):
                lane = self._lanes[0]
                self._lanes.rotate(-1)
                if lane.waiting:
                    item = lane.waiting.popleft()
                    if lane.has_ended and not lane.waiting:
                        self._remove(lane)
                    return self._taken(item if isinstance(item, bytes) else lane.encode(item))
            if self._close is not None:
                return self._close
            await self._changed.wait()

    @property
    def is_closing(self) -> bool:
        return self._close is not None

    def _remove(self, lane: Lane) -> None:
        if lane.is_open:
            lane.is_open = False
            self._lanes.remove(lane)

    def _taken(self, frame: bytes) -> bytes:
        self._notify()
        return frame

    def _has_room(self, lane: Lane) -> bool:
        if len(lane.waiting) >= MAX_WAITING:
            return False
        return not lane.waiting or sum(len(each.waiting) for each in self._lanes) < MAX_TOTAL

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
