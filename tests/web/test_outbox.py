"""What waits for one slow websocket client: bounded, in order, progress merged."""

from typing import Any

import pytest
import trio
import trio.testing
from msgspec import Raw

from callboard.runtime.core.events import Event, EventType
from callboard.web.websocket import MAX_WAITING, Close, Outbox


def event(seq: int, kind: EventType = "progress", **changes: Raw) -> Event:
    return Event(
        job_id="j",
        seq=seq,
        since=seq - 1,
        type=kind,
        at_ms=0,
        status="InProgress",
        name="n",
        queue="q",
        changes=changes,
    )


async def drained(outbox: Outbox) -> list[Any]:
    items: list[Any] = []
    while not items or not isinstance(items[-1], Close):
        items.append(await outbox.take())
    return items


async def test_progress_that_waits_is_merged_and_nothing_else_is() -> None:
    outbox = Outbox()
    await outbox.put(event(1, "status", a=Raw(b"1")))
    for seq in range(2, 200):
        await outbox.put(event(seq, b=Raw(str(seq).encode())))
    await outbox.put(event(200, "log"))
    await outbox.put(event(201))
    outbox.close(Close(1000))
    items = await drained(outbox)
    assert [(item.since, item.seq) for item in items[:-1]] == [(0, 1), (1, 199), (199, 200), (200, 201)]
    assert items[1].changes == {"b": Raw(b"199")}
    assert items[-1] == Close(1000)


async def test_a_full_outbox_makes_the_pump_wait(autojump_clock: trio.testing.MockClock) -> None:
    outbox = Outbox()
    for seq in range(MAX_WAITING):
        await outbox.put(event(seq, "log"))
    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
        await outbox.put(event(MAX_WAITING, "log"))
    assert isinstance(await outbox.take(), Event)
    with trio.fail_after(1):
        await outbox.put(event(MAX_WAITING, "log"))


async def test_closing_at_once_drops_what_waits_and_the_first_close_counts() -> None:
    outbox = Outbox()
    await outbox.put(event(1, "log"))
    outbox.close(Close(1001), at_once=True)
    outbox.close(Close(1000))
    assert await drained(outbox) == [Close(1001)]


async def test_a_pump_that_waits_for_room_is_let_go_by_a_close() -> None:
    outbox = Outbox()
    for seq in range(MAX_WAITING):
        await outbox.put(event(seq, "log"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.put, event(99, "log"))
        await trio.testing.wait_all_tasks_blocked()
        outbox.close(Close(1008), at_once=True)
    assert isinstance((await drained(outbox))[-1], Close)
