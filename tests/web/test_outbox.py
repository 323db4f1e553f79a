"""What waits for one slow websocket client: bounded, in order, fair, progress merged, answers never lost."""

import itertools
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import Raw

from callboard.runtime import Job, Snapshot, Status
from callboard.runtime.core.events import Event, EventType
from callboard.web.outbox import MAX_ANSWERS, MAX_TOTAL, MAX_WAITING, Close, Lane, Outbox, frame_of
from callboard.web.render import Place


def event(seq: int, kind: EventType = "progress", job_id: str = "j", **changes: Raw) -> Event:
    return Event(
        job_id=job_id,
        seq=seq,
        since=seq - 1,
        type=kind,
        at_ms=0,
        status="InProgress",
        name="n",
        queue="q",
        changes=changes,
    )


class Told:
    """Items as they are taken: the encoder notes what it was given."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.items: list[Any] = []

    def lane(self) -> Lane:
        return self.outbox.open_lane(lambda item: self.items.append(item) or frame_of(item, Place("", "/jobs")))  # type: ignore[func-returns-value]

    async def drained(self) -> list[Any]:
        """Everything up to the close."""
        while not isinstance(await self.outbox.take(), Close):
            pass
        return self.items


async def test_progress_that_waits_is_merged_and_nothing_else_is() -> None:
    told = Told(outbox := Outbox())
    lane = told.lane()
    await outbox.put(lane, event(1, "status", a=Raw(b"1")))
    for seq in range(2, 200):
        await outbox.put(lane, event(seq, b=Raw(str(seq).encode())))
    await outbox.put(lane, event(200, "log"))
    await outbox.put(lane, event(201))
    outbox.close(Close(1000))
    items = await told.drained()
    assert [(item.since, item.seq) for item in items] == [(0, 1), (1, 199), (199, 200), (200, 201)]
    assert items[1].changes == {"b": Raw(b"199")}
    assert await outbox.take() == Close(1000)


async def test_progress_is_merged_per_job_where_many_share_a_lane(autojump_clock: trio.testing.MockClock) -> None:
    told = Told(outbox := Outbox())
    lane = told.lane()
    with trio.fail_after(1):
        for seq in range(1, 100):
            for job_id in ("a", "b", "c"):
                await outbox.put(lane, event(seq, job_id=job_id))
        await outbox.put(lane, event(100, "log", "b"))
        for seq in range(100, 200):
            await outbox.put(lane, event(seq + (seq >= 100), job_id="b"))
            await outbox.put(lane, event(seq, job_id="c"))
    outbox.close(Close(1000))
    spans = [(item.job_id, item.since, item.seq) for item in await told.drained()]
    assert spans == [("a", 0, 99), ("b", 0, 99), ("c", 0, 199), ("b", 99, 100), ("b", 100, 200)]


async def test_progress_is_not_merged_into_a_snapshot_or_over_a_hole() -> None:
    told = Told(outbox := Outbox())
    lane = told.lane()
    job = Job(id="j", name="n", status=Status.IN_PROGRESS, seq=4, created_ms=0, updated_ms=0)
    await outbox.put(lane, Snapshot(job))
    await outbox.put(lane, event(5))
    await outbox.put(lane, event(7))
    outbox.close(Close(1000))
    assert [item.seq for item in await told.drained()] == [4, 5, 7]


async def test_a_full_lane_makes_its_pump_wait(autojump_clock: trio.testing.MockClock) -> None:
    told = Told(outbox := Outbox())
    lane = told.lane()
    for seq in range(MAX_WAITING):
        await outbox.put(lane, event(seq, "log"))
    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
        await outbox.put(lane, event(MAX_WAITING, "log"))
    assert isinstance(await outbox.take(), bytes)
    with trio.fail_after(1):
        await outbox.put(lane, event(MAX_WAITING, "log"))


async def test_the_lanes_take_turns_and_a_busy_one_starves_nobody(autojump_clock: trio.testing.MockClock) -> None:
    told = Told(outbox := Outbox())
    busy, quiet = told.lane(), told.lane()

    async def flood() -> None:
        for seq in itertools.count(1):
            await outbox.put(busy, event(seq, "log", "busy"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            for seq in range(1, 4):
                await outbox.put(quiet, event(seq, "log", "quiet"))
        for _ in range(8):
            await outbox.take()
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [item.job_id for item in told.items][:6].count("quiet") == 3
    assert [item.seq for item in told.items if item.job_id == "busy"] == [1, 2, 3, 4, 5]


async def test_all_lanes_together_are_bounded_but_each_gets_something_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outbox = Outbox()
    lanes = [Told(outbox).lane() for _ in range(100)]

    async def flood(lane: Lane) -> None:
        for seq in itertools.count(1):
            await outbox.put(lane, event(seq, "log"))

    async with trio.open_nursery() as nursery:
        for lane in lanes:
            nursery.start_soon(flood, lane)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    waiting = [len(lane.waiting) for lane in lanes]
    assert min(waiting) >= 1
    assert max(waiting) <= MAX_WAITING
    assert sum(waiting) <= MAX_TOTAL + len(lanes)


async def test_answers_go_first_and_are_bounded_by_waiting(autojump_clock: trio.testing.MockClock) -> None:
    told = Told(outbox := Outbox())
    lane = told.lane()
    await outbox.put(lane, event(1, "log"))
    for number in range(MAX_ANSWERS):
        await outbox.answer(b"%d" % number)
    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
        await outbox.answer(b"one too many")
    assert [await outbox.take() for _ in range(MAX_ANSWERS)] == [b"%d" % number for number in range(MAX_ANSWERS)]
    assert told.items == []
    await outbox.take()
    assert len(told.items) == 1


async def test_an_ended_lane_is_emptied_first_and_a_dropped_one_is_not() -> None:
    told = Told(outbox := Outbox())
    ending, dropped, empty = told.lane(), told.lane(), told.lane()
    await outbox.put(ending, event(1, "log", "ending"))
    await outbox.put(dropped, event(1, "log", "dropped"))
    outbox.end_lane(ending, b"over")
    outbox.end_lane(empty)
    outbox.drop_lane(dropped)
    await outbox.put(dropped, event(2, "log", "dropped"))
    assert ending.is_open and not empty.is_open
    await outbox.take()
    assert ending.is_open
    assert await outbox.take() == b"over"
    assert not ending.is_open
    outbox.close(Close(1000))
    assert await outbox.take() == Close(1000)
    assert [item.job_id for item in told.items] == ["ending"]


async def test_closing_at_once_drops_what_waits_and_the_first_close_counts() -> None:
    told = Told(outbox := Outbox())
    await outbox.put(told.lane(), event(1, "log"))
    outbox.close(Close(1001), at_once=True)
    outbox.close(Close(1000))
    assert await outbox.take() == Close(1001)
    assert told.items == []


async def test_a_pump_that_waits_for_room_is_let_go_by_a_close() -> None:
    told = Told(outbox := Outbox())
    lane = told.lane()
    for seq in range(MAX_WAITING):
        await outbox.put(lane, event(seq, "log"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.put, lane, event(99, "log"))
        await trio.testing.wait_all_tasks_blocked()
        outbox.close(Close(1008), at_once=True)
    assert await outbox.take() == Close(1008)
