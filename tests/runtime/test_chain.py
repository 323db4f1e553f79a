"""A handler's exception as text: all that hangs on it, nothing above the handler, bounded, whatever the exceptions do."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import pytest
import trio

from callboard.runtime.chain import MAX_BYTES, MAX_LINKS, chain_of
from callboard.runtime.core.history import ExceptionInfo


class AppError(Exception):
    """An app's own."""


def raised(work: Callable[[], object]) -> BaseException:
    """What ``work`` raises."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001 -- of whatever kind
        return error
    raise AssertionError("it raised nothing")


def shape(chain: tuple[ExceptionInfo, ...]) -> list[tuple[str, int | None, str, str]]:
    return [(link.relation, link.of, link.type.rpartition(".")[2], link.message) for link in chain]


def missing() -> NoReturn:
    raise KeyError("x")


def with_cause() -> NoReturn:
    try:
        try:
            missing()
        except KeyError as error:
            raise ValueError("bad value") from error
    except ValueError as error:
        raise AppError("outer") from error


def test_a_cause_and_its_cause() -> None:
    chain = chain_of(raised(with_cause))
    assert shape(chain) == [
        ("raised", None, "AppError", "outer"),
        ("cause", 0, "ValueError", "bad value"),
        ("cause", 1, "KeyError", "'x'"),
    ]
    assert chain[0].type == f"{__name__}.AppError"
    assert chain[1].type == "ValueError"


def test_each_link_has_its_own_frames_with_their_source_lines() -> None:
    outer, middle, inner = (link.traceback for link in chain_of(raised(with_cause)))
    assert "in with_cause\n" in outer
    assert 'raise AppError("outer") from error' in outer
    assert 'raise ValueError("bad value") from error' in middle
    assert 'raise KeyError("x")' in inner
    assert "bad value" not in outer
    assert "Traceback" not in outer


def test_a_context_unless_it_was_raised_from_none() -> None:
    def handling(silent: bool) -> None:
        try:
            missing()
        except KeyError:
            if silent:
                raise AppError("alone") from None
            raise AppError("with it")  # noqa: B904 -- a context is what is tested

    assert shape(chain_of(raised(lambda: handling(False)))) == [
        ("raised", None, "AppError", "with it"),
        ("context", 0, "KeyError", "'x'"),
    ]
    assert shape(chain_of(raised(lambda: handling(True)))) == [("raised", None, "AppError", "alone")]


def test_members_of_groups_before_what_the_group_hangs_on() -> None:
    def grouped() -> NoReturn:
        inner = BaseExceptionGroup("inner", [ValueError("2"), raised(with_cause)])
        raise BaseExceptionGroup("outer", [ValueError("1"), inner]) from OSError("because")

    assert shape(chain_of(raised(grouped))) == [
        ("raised", None, "ExceptionGroup", "outer (2 sub-exceptions)"),
        ("member", 0, "ValueError", "1"),
        ("member", 0, "ExceptionGroup", "inner (2 sub-exceptions)"),
        ("cause", 0, "OSError", "because"),
        ("member", 2, "ValueError", "2"),
        ("member", 2, "AppError", "outer"),
        ("cause", 5, "ValueError", "bad value"),
        ("cause", 6, "KeyError", "'x'"),
    ]


def test_notes() -> None:
    error = ValueError("v")
    for number in range(30):
        error.add_note(f"note {number}")
    (link,) = chain_of(error)
    assert link.notes == tuple(f"note {number}" for number in range(10))


def test_a_ring_ends() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert shape(chain_of(first)) == [("raised", None, "ValueError", "1"), ("cause", 0, "ValueError", "2")]
    first.__cause__ = first
    assert len(chain_of(first)) == 1


def test_nothing_is_nothing() -> None:
    assert chain_of(None) == ()


def size(chain: tuple[ExceptionInfo, ...]) -> int:
    return len(msgspec.json.encode(chain))


def test_a_long_chain_keeps_the_nearest_and_says_how_many_are_missing() -> None:
    error = newest = ValueError("0")
    for number in range(1, 200):
        newest.__cause__ = newest = ValueError(str(number))
    chain = chain_of(error)
    assert [link.message for link in chain] == [str(number) for number in range(MAX_LINKS)]
    assert "1 more" in chain[-1].notes[-1]
    wide = chain_of(ExceptionGroup("wide", [ValueError(str(number)) for number in range(1000)]))
    assert [link.message for link in wide[1:]] == [str(number) for number in range(15)]
    assert "985 more" in wide[0].notes[-1]


def test_all_of_it_is_bounded_and_what_is_short_is_whole() -> None:
    long, short = ValueError("€" * 10**6), ValueError("short")
    long.__cause__, short.__cause__ = short, KeyError("b" + "x" * 10**6 + "e")
    long.add_note("n" * 10**6)
    chain = chain_of(long)
    assert MAX_BYTES * 0.9 < size(chain) < MAX_BYTES * 1.2 < 40_000
    assert chain[1].message == "short"
    assert chain[2].message.startswith("'bxxx")
    assert min(len(chain[0].message.encode()), len(chain[0].notes[0]), len(chain[2].message)) > MAX_BYTES / 4
    many = ExceptionGroup("many", [ValueError("\0" * 10**5) for _ in range(15)])
    for link in many.exceptions:
        for _ in range(10):
            link.add_note("ä" * 10**5)
    assert sum(len(link.message.encode()) + sum(len(n.encode()) for n in link.notes) for link in chain_of(many)) <= (
        MAX_BYTES
    )


def test_a_deep_recursion_keeps_both_ends() -> None:
    def down(depth: int) -> int:
        return up(depth + 1)

    def up(depth: int) -> int:
        return down(depth + 1)

    def entry() -> int:
        return down(0)

    limit = sys.getrecursionlimit()
    link = chain_of(raised(entry))[0]
    assert link.type == "RecursionError"
    assert "in entry" in link.traceback
    assert "frames are left out" in link.traceback
    assert link.traceback.count("in up") + link.traceback.count("in down") < 60
    assert limit == sys.getrecursionlimit()


def test_half_a_surrogate_pair_is_storable() -> None:
    error = OSError("no file \udcff")
    error.add_note("\ud800")
    chain = chain_of(error)
    assert chain[0].message == "no file ?"
    assert msgspec.json.decode(msgspec.json.encode(chain), type=tuple[ExceptionInfo, ...]) == chain


class Loud(Exception):
    """Raises whatever it is asked."""

    def __str__(self) -> str:
        raise SystemExit("str")

    def __repr__(self) -> str:
        raise SystemExit("repr")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Hidden(Exception):
    """Hides what Python keeps of it behind properties."""

    __module__ = 5  # type: ignore[assignment]

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


class Text(str):
    """A text that is none when it is used as one."""

    def encode(self, *_: Any) -> bytes:
        raise RuntimeError

    def __getitem__(self, _: Any) -> str:
        raise RuntimeError


class Says(Exception):
    """Its text is what it was made with."""

    def __str__(self) -> str:
        text: str = self.args[0]
        return text


class Group(ExceptionGroup[Exception]):
    """Has other members than it was made with."""

    exceptions = property(lambda self: 1 / 0)


def a_throw(error: BaseException, cause: BaseException | None = None) -> Callable[[], NoReturn]:
    def throw() -> NoReturn:
        raise error from cause

    return throw


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Loud(), "(its text cannot be told: __str__ raises)"),
        (Hidden("h"), "h"),
        (Says(Text("text")), "text"),
        (Says(5), "(its text cannot be told: __str__ raises)"),
        (Group("g", [ValueError("v")]), "g (1 sub-exception)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_that_raises_when_it_is_looked_at(error: BaseException, message: str) -> None:
    found = raised(a_throw(error, KeyError("cause")))
    first, *others = chain_of(found)
    assert first.message == message
    assert "in throw" in first.traceback
    assert first.type.rpartition(".")[2] == type(error).__qualname__
    assert shape((first, *others))[-1] == ("cause", 0, "KeyError", "'cause'")
    msgspec.json.encode((first, *others))


def test_notes_that_are_none() -> None:
    for notes in (5, [Loud(), "b"], {"a": 1}, None):
        error = ValueError("v")
        error.__notes__ = notes  # type: ignore[assignment]
        (link,) = chain_of(error)
        assert link.message == "v"


def test_a_ctrl_c_meanwhile_passes() -> None:
    class Pressed(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chain_of(Pressed())


async def test_frames_of_a_nursery_are_kept_where_they_are_the_handlers() -> None:
    async def child() -> None:
        raise ValueError("in the child")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
    except ExceptionGroup as group:
        chain = chain_of(group)
    assert [link.relation for link in chain] == ["raised", "member"]
    assert "trio.open_nursery" in chain[0].traceback
    assert "in child" in chain[1].traceback


async def test_an_exception_of_trio_alone_keeps_its_frames() -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, -1)
    except ExceptionGroup as group:
        chain = chain_of(group)
    assert "in sleep" in chain[1].traceback
