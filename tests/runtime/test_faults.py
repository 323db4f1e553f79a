"""What crosses between runtime and worker process: exceptions as data, references to functions, frames."""

import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callboard.runtime import JobFailed, Retry
from callboard.runtime.faults import MAX_FAULTS, Fault, RaisedElsewhere, describe, rebuild
from callboard.runtime.references import Reference, resolve
from callboard.runtime.wire import (
    Frames,
    Hello,
    Line,
    Raised,
    WireError,
    frame,
    max_ending_bytes,
    read_hello,
    read_said,
)


def caught(raise_it: Any) -> BaseException:
    try:
        raise_it()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def over(error: BaseException) -> RaisedElsewhere:
    """As it arrives."""
    said = read_said(frame(Raised(describe(error)))[4:])
    assert isinstance(said, Raised)
    return rebuild(said.fault)


def test_a_chain_arrives_with_its_words_and_lines() -> None:
    def raise_it() -> None:
        try:
            int("x")
        except ValueError:
            raise LookupError("no such thing")  # noqa: B904 - the context is the test

    error = caught(raise_it)
    error.add_note("a note")
    there, here = ("".join(traceback.format_exception(one)).splitlines() for one in (error, over(error)))
    assert [line for line in here if not set(line) <= {" ", "^", "~"}] == [
        line for line in there if not set(line) <= {" ", "^", "~"}
    ]


def test_a_suppressed_context_stays_suppressed() -> None:
    def raise_it() -> None:
        try:
            int("x")
        except ValueError:
            raise LookupError("no such thing") from None

    error = over(caught(raise_it))
    assert error.__suppress_context__
    assert "invalid literal" not in "".join(traceback.format_exception(error))


def test_attributes_of_our_own_exceptions_arrive() -> None:
    class Own(JobFailed):
        def __init__(self) -> None:
            """Without its parent's."""

    failed = over(JobFailed("CODE", "words", retryable=True))
    assert isinstance(failed, JobFailed)
    assert (failed.code, failed.message, failed.retryable) == ("CODE", "words", True)
    assert isinstance(over(Own()), JobFailed)
    again = over(Retry(2.5))
    assert isinstance(again, Retry)
    assert (again.after_seconds, type(again).__name__) == (2.5, "Retry")
    assert over(Retry()).after_seconds is None  # type: ignore[attr-defined]


def test_rings_and_crowds_and_long_texts_are_bounded() -> None:
    ring = ValueError("ring")
    ring.__cause__ = other = KeyError("other")
    other.__context__ = ring
    assert over(ring).__cause__ is not None
    crowd = over(ExceptionGroup("crowd", [ValueError(number) for number in range(1000)]))
    assert isinstance(crowd, ExceptionGroup)
    assert len(crowd.exceptions) == MAX_FAULTS - 1
    worst = ExceptionGroup("\0" * 100_000, [ValueError("\0" * 100_000) for _ in range(1000)])
    assert len(frame(Raised(describe(worst)))) < max_ending_bytes(0)


def test_names_and_texts_that_no_store_takes_are_mended() -> None:
    assert str(over(ValueError("half \ud800 a pair"))) == "half ? a pair"
    assert type(rebuild(Fault(kinds=(), module="m", name="Odd\0Name", text=""))).__name__ == "Odd?Name"


def test_frames() -> None:
    frames = Frames(100)
    sent = frame(Hello("t", 1)) + frame(Hello("u", 2))
    found = []
    for byte in sent:
        frames.feed(bytes([byte]))
        while (data := frames.take()) is not None:
            found.append(read_hello(data))
    assert found == [Hello("t", 1), Hello("u", 2)]
    frames.feed((101).to_bytes(4))
    with pytest.raises(WireError, match="101 bytes"):
        frames.take()
    for wrong in (b"", b"{}", b"\xff", b'{"type":"line"}', b"[" * 100_000):
        with pytest.raises(WireError):
            read_said(wrong)
    with pytest.raises(WireError, match="a report of"):
        read_said(msgspec.json.encode(Line("info", "x" * 600_000)))


def test_a_function_is_found_by_name_or_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a_module_of_this_test"
    file = tmp_path / f"{name}.py"
    file.write_text("def work(job): ...\n")
    try:
        by_file = resolve(Reference(name, "work", str(file)))
        assert by_file.__module__ == name
        assert resolve(Reference(name, "work", None)) is by_file
        del sys.modules[name]
        monkeypatch.syspath_prepend(tmp_path)
        assert resolve(Reference(name, "work", str(file))).__code__.co_filename == str(file)
        with pytest.raises(AttributeError):
            resolve(Reference(name, "rest", str(file)))
        del sys.modules[name]
        # Another module of that name comes first: the file that the server has loaded is meant.
        (tmp_path / "other").mkdir()
        other = tmp_path / "other" / f"{name}.py"
        other.write_text("def work(job): ...\n")
        assert resolve(Reference(name, "work", str(other))).__code__.co_filename == str(other)
    finally:
        sys.modules.pop(name, None)


def test_a_module_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "failing_module_of_this_test.py"
    file.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        resolve(Reference(file.stem, "work", str(file)))
    assert file.stem not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        resolve(Reference("no_such_module_of_this_test", "work", None))
