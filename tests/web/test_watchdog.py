"""The thread that ends the process: at its deadline, at the last one that it was given, or not at all."""

import threading
from collections.abc import Iterator

import pytest

from callboard.web import watchdog
from callboard.web.watchdog import Watchdog


class Ends:
    """Stands for the end of the process."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.come = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.come.set()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    made = Ends()
    monkeypatch.setattr(watchdog, "end_process", made)
    return made


@pytest.fixture
def dog(ends: Ends) -> Iterator[Watchdog]:
    made = Watchdog()
    yield made
    made.disarm()
    for thread in threading.enumerate():
        if thread.name == "callboard watchdog":
            thread.join(30)


def test_at_its_deadline_it_ends_the_process(dog: Watchdog, ends: Ends) -> None:
    dog.arm(0.05, 3)
    assert ends.come.wait(30)
    assert ends.codes == [3]


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.5), (0.2, 0.1)], ids=["later", "sooner"])
def test_another_deadline_takes_the_place_of_the_first(dog: Watchdog, ends: Ends, first: float, second: float) -> None:
    dog.arm(first, 0)
    dog.arm(second, 1)
    assert ends.come.wait(30)
    ends.come.clear()
    assert not ends.come.wait(0.3)
    assert ends.codes == [1]


def test_who_has_ended_by_himself_is_left_alone(dog: Watchdog, ends: Ends) -> None:
    dog.arm(0.2, 0)
    dog.disarm()
    assert not ends.come.wait(0.4)
