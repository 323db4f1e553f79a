"""Whose time it is: which of the store's answers are believed, and what counts as a leap."""

import pytest
import trio
from tests.runtime.kit import FaultyStore, opened
from trio.testing import MockClock

from callboard.runtime.clock import RuntimeClock
from callboard.testing import virtual_now_ms


class Asked:
    """A clock that asks a store whose answers take as long as told, and were right at their end."""

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        self.store_ms = 1_000_000
        """How far the store's clock is ahead of trio's."""
        self.runtime = RuntimeClock()

    def ask(self, seconds: float) -> int:
        asked = self._clock.current_time()
        self._clock.jump(seconds)
        return self.runtime.set(self.true_ms(), asked=asked)

    def true_ms(self) -> int:
        return round(self._clock.current_time() * 1000) + self.store_ms

    def wrong_by_ms(self) -> int:
        return self.runtime.now_ms() - self.true_ms()


async def test_the_first_answer_is_believed_and_a_better_one_corrects_it(mock_clock: MockClock) -> None:
    one = Asked(mock_clock)
    one.ask(6)
    assert one.wrong_by_ms() == 3000, "it cannot be known better"
    assert one.ask(0.2) == 0, "our own mistake is no leap of the store's clock"
    assert one.wrong_by_ms() == 100


@pytest.mark.parametrize("seconds", [0.05, 0.9, 4])
async def test_a_worse_answer_that_fits_what_is_known_is_not_believed(mock_clock: MockClock, seconds: float) -> None:
    one = Asked(mock_clock)
    one.ask(0.002)
    assert one.ask(seconds) == 0
    assert one.wrong_by_ms() == 1


@pytest.mark.parametrize("seconds", [0, 0.05, 0.9, 4])
@pytest.mark.parametrize("leap_ms", [3_600_000, 5000, -5000])
async def test_a_leap_is_noticed_however_long_the_answer_took(
    mock_clock: MockClock, seconds: float, leap_ms: int
) -> None:
    one = Asked(mock_clock)
    one.ask(0.002)
    one.store_ms += leap_ms
    assert abs(one.ask(seconds) - leap_ms) <= seconds * 500 + 1
    assert abs(one.wrong_by_ms()) <= seconds * 500 + 1


@pytest.mark.parametrize("step_ms", [-390, -90])
async def test_a_step_that_is_too_small_to_be_seen_is_followed_in_the_end(mock_clock: MockClock, step_ms: int) -> None:
    one = Asked(mock_clock)
    one.ask(0.002)
    one.store_ms += step_ms
    assert one.ask(0.4) == 0
    assert one.wrong_by_ms() == 1 - step_ms
    for _ in range(1200):
        mock_clock.jump(1)
        one.ask(0.4)
    assert abs(one.wrong_by_ms()) <= 200
    one.ask(0.002)
    assert abs(one.wrong_by_ms()) <= 1


class SlowToBegin(FaultyStore):
    """Its first answer takes three seconds, as where a driver has to connect, and was right at their end."""

    async def now_ms(self) -> int:
        if not self.count("now_ms"):
            await trio.sleep(3)
        return await super().now_ms()


async def test_a_runtime_begins_with_the_right_time_although_the_first_answer_was_slow(
    autojump_clock: MockClock,
) -> None:
    async with opened(SlowToBegin()) as runtime:
        assert abs(runtime.now_ms() - virtual_now_ms()) <= 1
