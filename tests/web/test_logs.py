"""The launcher's logs: what goes where, and a reader who stops reading keeps nobody."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from callboard.web import logs
from callboard.web.logs import LineWriter

PROGRAM = """
import logging
from callboard.web.logs import configure_logging
{before}
configure_logging({arguments})
configure_logging({arguments})
access = logging.getLogger("callboard.access")
access.info("a line")
access.debug("a probe")
logging.getLogger("callboard.serve").info("another")
print("printed")
"""


def outputs(arguments: str = "", before: str = "") -> tuple[list[str], list[str]]:
    """The lines on standard output and on standard error."""
    program = PROGRAM.format(arguments=arguments, before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_access_lines_go_to_standard_output_as_they_are_and_all_else_to_standard_error() -> None:
    out, err = outputs()
    assert sorted(out) == ["a line", "printed"]
    assert len(err) == 1 and err[0].endswith(" INFO callboard.serve: another")


@pytest.mark.parametrize(
    ("arguments", "out", "err"),
    [
        ("'debug'", ["a line", "a probe"], ["another"]),
        ("'warning'", ["a line"], []),
        ("access=False", [], ["another"]),
    ],
)
def test_the_level_and_whether_there_is_an_access_log(arguments: str, out: list[str], err: list[str]) -> None:
    found, others = outputs(arguments)
    assert sorted({*found} - {"printed"}) == out
    assert [line.rpartition(": ")[2] for line in others] == err


def test_an_app_that_has_configured_logging_is_left_alone() -> None:
    mine = "logging.basicConfig(level=logging.INFO, format='mine %(name)s %(message)s')"
    assert outputs(before=mine) == (["printed"], ["mine callboard.access a line", "mine callboard.serve another"])
    assert outputs("access=False", mine) == (["printed"], ["mine callboard.serve another"])
    only_access = """
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("mine %(message)s"))
logging.getLogger("callboard.access").addHandler(handler)
logging.getLogger("callboard.access").setLevel(logging.DEBUG)
logging.getLogger("callboard.access").propagate = False
"""
    out, err = outputs(before=only_access)
    assert out == ["printed"] and err[:2] == ["mine a line", "mine a probe"] and len(err) == 3


Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """To read from and to write to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError as error:
            assert error.errno == errno.EBADF


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("callboard.access", logging.INFO, "", 0, text, (), None)


def test_lines_come_at_once_and_whole(pipe: Pipe) -> None:
    writer = LineWriter(pipe[1])
    writer.handle(record("one"))
    assert os.read(pipe[0], 100) == b"one\n"
    writer.handle(record("twö \udcff"))
    assert os.read(pipe[0], 100) == "twö \\udcff\n".encode()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_who_stops_reading_keeps_nobody_and_misses_what_is_too_much(
    pipe: Pipe, blocking: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.05)
    os.set_blocking(pipe[1], blocking)
    writer = LineWriter(pipe[1], max_lines=100)
    lines = [f"{number} ".ljust(999, "x") for number in range(400)]
    for line in lines:
        writer.handle(record(line))
    writer.flush()
    assert "dropped" not in caplog.text, "as long as it is full there is no telling how many"
    data = b""
    os.set_blocking(pipe[0], False)
    for _ in range(3):
        try:
            while piece := os.read(pipe[0], 65536):
                data += piece
        except BlockingIOError:
            writer.flush()
    seen = data.decode().splitlines()
    assert seen == lines[: len(seen)] and 100 < len(seen) < 300
    assert f"{len(lines) - len(seen)} lines of the access log were dropped" in caplog.text
    writer.handle(record("and on"))
    assert os.read(pipe[0], 100) == b"and on\n"


def test_a_line_that_the_file_takes_in_parts_stays_whole(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is longer than what a pipe takes at once, which those of the access log are not."""
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.05)
    os.set_blocking(pipe[1], False)
    os.set_blocking(pipe[0], False)
    writer = LineWriter(pipe[1])
    lines = [letter * 300_000 for letter in "abc"]
    for line in lines:
        writer.handle(record(line))
    data = b""
    for _ in range(100):
        writer.flush()
        try:
            data += os.read(pipe[0], 2**20)
        except BlockingIOError:
            break
    assert data.decode().splitlines() == lines


def test_what_was_dropped_is_told_once_when_all_that_waited_is_written(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1], max_lines=2)
    line = "x".ljust(4000, "x")
    while not writer._dropped:
        writer.handle(record(line))
    writer.handle(record(line))
    for _ in range(2):
        os.read(pipe[0], 2**20)
        writer.flush()
    assert [entry.getMessage().split()[:2] for entry in caplog.records] == [["2", "lines"]]
    assert caplog.records[0].name != "callboard.access", "it would be a line of that log"


def test_a_reader_who_has_gone_is_none(pipe: Pipe, capfd: pytest.CaptureFixture[str]) -> None:
    writer = LineWriter(pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        writer.handle(record("one"))
    writer.flush()
    writer.close()
    assert capfd.readouterr().err == ""


def test_what_waits_is_written_at_the_end_of_the_process() -> None:
    """The reader falls behind and catches up while the process ends."""
    program = """
import logging, os
from callboard.web import logs
logs.FLUSH_SECONDS = 30
logs.configure_logging()
os.set_blocking(1, True)
for number in range(1000):
    logging.getLogger("callboard.access").info(f"{number} ".ljust(999, "x"))
os.write(2, b"written")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.read(7) == b"written", "nobody has read a line yet"
        lines = process.stdout.read().splitlines()
        assert process.wait(30) == 0
    assert [int(line.split()[0]) for line in lines] == [*range(1000)]
