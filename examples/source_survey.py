"""A job of real work: a survey of every Python file of this interpreter's own standard library, 10 to 40 seconds.

    make demo                                  # runs it and shows it live; or by hand:

    callboard serve examples/source_survey.py:app --bind 127.0.0.1:8000

    curl -i localhost:8000/api/survey -H 'Content-Type: application/json' -d '{}'
    curl -i localhost:8000/api/survey -H 'Prefer: wait=20' -H 'Content-Type: application/json' -d '{"package": "json"}'
    curl localhost:8000/jobs/<id>
    curl -i -X POST localhost:8000/jobs/<id>/cancel -H 'Prefer: wait=5'

The counting is done by a child process (``count_source.py``), so that the event loop stays free for everybody else: threads
share one interpreter lock, and parsing a large file holds it for 0.2 s. trio owns the child: a cancel, a time-out or a
shutdown ends it and waits until it is gone, and only then is the job ``Canceled``. If this server is killed, the child's next
line finds no reader and it ends too.
"""

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import trio
from quart_trio import QuartTrio

from callboard.runtime import JobContext, JobFailed
from callboard.web import Callboard

__all__ = ["LongestFunction", "PackageFacts", "SurveyRequest", "SurveyResult", "app", "board", "source_survey"]

COUNT_SOURCE = Path(__file__).with_name("count_source.py")

app = QuartTrio(__name__)
board = Callboard(app)


class SurveyRequest(msgspec.Struct, rename="camel"):
    """What to survey: everything, or one package, or the first ``limit`` files."""

    package: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None


class LongestFunction(msgspec.Struct, rename="camel"):
    """Where the longest function is."""

    name: str
    file: str
    line: int
    lines: int


class PackageFacts(msgspec.Struct, rename="camel"):
    """The sums over some files; ``unparsed`` files count as files and lines, but have no tokens and no functions."""

    package: str
    files: int = 0
    unparsed: int = 0
    lines: int = 0
    tokens: int = 0
    longest_function: LongestFunction | None = None

    def add(self, facts: "FileFacts") -> None:
        """Count one more file."""
        self.files += 1
        self.unparsed += facts.problem is not None
        self.lines += facts.lines
        self.tokens += facts.tokens
        longest, known = facts.longest, self.longest_function
        if longest is not None and (known is None or longest.lines > known.lines):
            self.longest_function = LongestFunction(longest.name, facts.file, longest.line, longest.lines)


class SurveyResult(msgspec.Struct, rename="camel"):
    """The whole and its packages, the largest first."""

    python: str
    total: PackageFacts
    packages: list[PackageFacts]


class FunctionFacts(msgspec.Struct):
    """A function, as ``count_source.py`` prints it."""

    name: str
    line: int
    lines: int


class FileFacts(msgspec.Struct):
    """A file, as ``count_source.py`` prints it."""

    number: int
    of: int
    file: str
    package: str
    lines: int
    tokens: int
    longest: FunctionFacts | None
    problem: str | None


@board.post("/api/survey", name="SourceSurvey", max_retries=1, timeout_seconds=600)
async def source_survey(job: JobContext, request: SurveyRequest) -> SurveyResult:
    """Survey the standard library, with progress for each file."""
    total = PackageFacts("all")
    packages: dict[str, PackageFacts] = {}
    async with trio.open_nursery() as nursery:
        command = [sys.executable, "-I", str(COUNT_SOURCE), *arguments(request)]
        # If the child fails, run_process raises and the job is tried again; if this task is cancelled, the child is ended.
        child: trio.Process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE))
        assert child.stdout is not None
        async with aclosing(lines_of(child.stdout)) as lines:
            async for line in lines:
                facts = msgspec.json.decode(line, type=FileFacts)
                total.add(facts)
                packages.setdefault(facts.package, PackageFacts(facts.package)).add(facts)
                counted = {"files": facts.number, "of": facts.of, "lines": total.lines, "tokens": total.tokens}
                await job.progress(100 * facts.number / facts.of, facts.file, counted)
                if facts.problem is not None:
                    job.log("warning", f"{facts.file} cannot be parsed: {facts.problem}")
    if not packages:
        raise JobFailed("NOTHING_TO_SURVEY", f"the standard library has no package {request.package!r}")
    by_size = sorted(packages.values(), key=lambda package: -package.tokens)
    return SurveyResult(python=sys.version.split()[0], total=total, packages=by_size)


def arguments(request: SurveyRequest) -> list[str]:
    """The request as options of ``count_source.py``."""
    package = [] if request.package is None else [f"--package={request.package}"]
    return package + ([] if request.limit is None else [f"--limit={request.limit}"])


async def lines_of(stream: trio.abc.ReceiveStream) -> AsyncGenerator[bytes, None]:
    """The lines of a byte stream, which end with it."""
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
