"""Cursors as clients see them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.web.cursors import seal, unseal

NUMBERS = st.integers(1, 2**63 - 1)


@given(NUMBERS | st.just(1))
def test_a_sealed_cursor_comes_back_whole_and_tells_nothing_plainly(number: int) -> None:
    sealed = seal(f"b{number}")
    assert unseal(sealed) == f"b{number}"
    assert len(sealed) == len(seal("b1"))


def test_it_is_the_same_in_every_process_and_neighbours_look_nothing_alike() -> None:
    assert seal("b3") == "2cYIiTgyRPg9jhXdIk0NRJ6bNNDn2WYdMzpyLl89-BQ"
    assert sum(one == other for one, other in zip(seal("b3"), seal("b4"), strict=True)) < 10


def test_a_stores_cursor_may_be_any_short_text() -> None:
    for cursor in ("", "n0", "2026-11-21 ä/5", "x" * 64):
        assert unseal(seal(cursor)) == cursor


@given(st.text(max_size=120) | NUMBERS.map(lambda number: f"b{number}"))
def test_a_made_up_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        unseal(text)


@given(NUMBERS, st.integers(0, 43), st.integers(0, 1), st.sampled_from("AZaz09_-=! "))
def test_a_changed_cursor_is_refused(number: int, place: int, cut: int, letter: str) -> None:
    sealed = seal(f"b{number}")
    changed = sealed[:place] + letter + sealed[place + cut :]
    if changed != sealed:
        with pytest.raises(ValueError, match="not a cursor"):
            unseal(changed)
