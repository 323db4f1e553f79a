"""What the tests of ``--workers`` and ``--reload`` share: a parent with its workers, all of which are gone after the test."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import wait_until

__all__ = ["SECONDS", "Family", "Parents", "ask", "until"]

SECONDS = 120
"""Longer than anything here takes on a busy machine."""

_MARK = "CALLBOARD_TEST_FAMILY"


until = partial(wait_until, seconds=SECONDS)


class Family:
    """A parent process and all that it and its workers have started."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        log: Path,
        environment: Mapping[str, str],
        stdin: int,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment, _MARK: self._mark},
                stdin=stdin,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        """All that they wrote so far."""
        return self._log.read_text(errors="replace")

    def url(self) -> str:
        """Where they serve, as soon as they do."""
        self.until_said("callboard: serving on http")
        return self.output().split("callboard: serving on ")[1].split()[0]

    def until_said(self, text: str, times: int = 1) -> None:
        """Wait until the output holds ``text``."""

        def said() -> bool:
            assert self.output().count(text) >= times or self.process.poll() is None, self.output()
            return self.output().count(text) >= times

        try:
            until(said, text)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None

    def workers(self) -> list[int]:
        """The parent's children, oldest first."""
        # A child belongs to the thread that started it.
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        try:
            return sorted(int(pid) for one in threads for pid in one.read_text().split())
        except FileNotFoundError:
            return self.workers() if self.process.poll() is None else []  # a thread has ended

    def living(self) -> list[int]:
        """Every process of the family that has not ended."""
        return [pid for pid in (int(one) for one in os.listdir("/proc") if one.isdecimal()) if self._is_ours(pid)]

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Send the parent a signal and wait for its end; the exit code."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        """Wait for the parent's end; the exit code."""
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.output()}") from None

    def clear(self) -> None:
        """Kill what is left."""
        deadline = time.monotonic() + SECONDS
        while (left := self.living()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.poll()
            time.sleep(0.02)
        self.process.wait(SECONDS)

    def _is_ours(self, pid: int) -> bool:
        try:
            if f"{_MARK}={self._mark}".encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                return False
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False  # it has gone, or is not ours


class Parents:
    """Starts families in one folder, and kills them at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._families: list[Family] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for family in self._families:
            family.clear()

    def serve(
        self,
        target: str,
        *options: str,
        bind: str = "127.0.0.1:0",
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Family:
        """``callboard serve``."""
        command = [sys.executable, "-m", "callboard.web.cli", "serve", target, "--bind", bind, *options]
        return self.run(command, environment=environment, stdin=stdin)

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Family:
        """Any command."""
        log = self.folder / f"family-{len(self._families)}.log"
        family = Family(command, self.folder, log, environment or {}, stdin)
        self._families.append(family)
        return family


def ask(url: str, path: str, *, seconds: float = SECONDS) -> str:
    """GET on a connection of its own; the body of a 200. Raises OSError when there is no whole answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as one:
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while received := one.recv(65536):
            answer += received
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    if not end or (length is not None and len(body) < int(length[1])):
        raise ConnectionError(f"no whole answer: {answer!r}")
    if b" 200 " not in head.splitlines()[0]:
        raise ConnectionError(f"answered {head.splitlines()[0]!r}")
    return body.decode()
