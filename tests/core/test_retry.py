"""The backoff: its bounds, its cap and its jitter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.core.retry import JITTER, backoff_ms

seconds = st.floats(0, 1e6, allow_subnormal=False)
chances = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("retry", "plain_ms"), [(1, 2_000), (2, 4_000), (3, 8_000), (8, 256_000), (9, 300_000), (99, 300_000)]
)
def test_the_delay_doubles_up_to_the_cap(retry: int, plain_ms: int) -> None:
    def delay(random: float) -> int:
        return backoff_ms(retry, base_seconds=2, max_seconds=300, random=random)

    assert JITTER == 0.2
    assert delay(0.5) == plain_ms
    assert delay(0.0) == round(0.8 * plain_ms)
    assert delay(1 - 2**-53) == round(1.2 * plain_ms)


@given(retry=st.integers(1, 10**9), base=seconds, cap=seconds, random=chances)
def test_the_delay_is_never_out_of_bounds(retry: int, base: float, cap: float, random: float) -> None:
    plain_ms = min(base * 2.0 ** min(retry - 1, 1000), cap) * 1000
    delay = backoff_ms(retry, base_seconds=base, max_seconds=cap, random=random)
    assert plain_ms * 0.8 - 1 <= delay <= plain_ms * 1.2 + 1


@given(retry=st.integers(1, 10**6), base=seconds, cap=seconds, random=chances)
def test_a_later_retry_never_waits_less_by_the_same_chance(retry: int, base: float, cap: float, random: float) -> None:
    earlier, later = (backoff_ms(n, base_seconds=base, max_seconds=cap, random=random) for n in (retry, retry + 1))
    assert earlier <= later


def test_retries_count_from_one() -> None:
    with pytest.raises(ValueError, match="count from 1"):
        backoff_ms(0, base_seconds=2, max_seconds=300, random=0.5)
