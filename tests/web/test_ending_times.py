"""The times of a server's end, without a server: what happens when, in virtual time."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from callboard.web.ending import GRACEFUL_SECONDS, LEAST_SECONDS, MARGIN_SECONDS, Ending
from callboard.web.notify import Notifier

LEAD_SECONDS = 7


@pytest.mark.parametrize(
    ("drain_seconds", "drained_after", "cut_after"),
    [(15, 3, 3 + GRACEFUL_SECONDS), (15, 14.8, 15), (0, 0, min(GRACEFUL_SECONDS, LEAST_SECONDS))],
    ids=["little to drain", "all of the drain time", "no drain time"],
)
async def test_whatever_is_connected_is_cut_off_within_the_drain_time(
    autojump_clock: object, drain_seconds: float, drained_after: float, cut_after: float
) -> None:
    told: dict[str, float] = {}
    armed: list[tuple[float, int]] = []

    def note(what: str) -> None:
        told[what] = trio.current_time() - began

    async def drain() -> None:
        note("drain")
        await trio.sleep(drained_after)

    board: Any = SimpleNamespace(
        config=SimpleNamespace(drain_seconds=drain_seconds),
        announce_end=lambda: note("not ready"),
        drain=drain,
        wait_fatal=trio.sleep_forever,
        runtime=SimpleNamespace(drain_started=trio.Event()),
    )
    watchdog: Any = SimpleNamespace(arm=lambda seconds, code: armed.append((seconds, code)))
    ending = Ending(board, watchdog, Notifier(), LEAD_SECONDS, lambda: note("cut"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ending.run)
        began = trio.current_time()
        ending.ask("a test")
        await ending.stop.wait()
        note("stop")
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert told == {
        "not ready": 0,
        "drain": pytest.approx(LEAD_SECONDS),
        "stop": pytest.approx(LEAD_SECONDS + drained_after),
        "cut": pytest.approx(LEAD_SECONDS + cut_after),
    }
    ((seconds, code),) = armed
    assert seconds == pytest.approx(LEAD_SECONDS + max(drain_seconds, LEAST_SECONDS) + MARGIN_SECONDS)
    assert code == 0
