"""Heavy computing in a worker process: which files of a package of the standard library are most alike?

    callboard serve examples/similar_files.py:app --bind 127.0.0.1:8000

    curl -i localhost:8000/api/similar -H 'Prefer: wait=20' -H 'Content-Type: application/json' -d '{"package": "json"}'
    curl -i localhost:8000/api/similar -H 'Content-Type: application/json' -d '{"package": "encodings"}'
    curl localhost:8000/jobs/<id>
    curl -i -X POST localhost:8000/jobs/<id>/cancel -H 'Prefer: wait=5'

Comparing two texts line by line is pure Python and holds the interpreter's lock; in a thread it would slow every request.
With ``process=True`` it runs beside the server, reports its progress, and a cancel ends it in the middle of a comparison. The function
is plain and at module level, because the worker process finds it by its name.
"""

import sysconfig
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import msgspec
from quart_trio import QuartTrio

from callboard.runtime import JobFailed, ProcessJobContext
from callboard.web import Callboard

__all__ = ["Pair", "SimilarRequest", "app", "board", "similar_files"]

LIBRARY = Path(sysconfig.get_path("stdlib"))

app = QuartTrio(__name__)
board = Callboard(app)


class SimilarRequest(msgspec.Struct):
    """A package of the standard library, and how many pairs to give back."""

    package: str
    most: int = 5


class Pair(msgspec.Struct):
    """Two files; ``ratio`` is 1 for equal ones."""

    ratio: float
    first: str
    second: str


@board.post("/api/similar", name="SimilarFiles", process=True, max_retries=1, timeout_seconds=600)
def similar_files(job: ProcessJobContext, request: SimilarRequest) -> list[Pair]:
    """Compare each file of the package with each other one."""
    files = sorted(LIBRARY.glob(f"{request.package}/*.py")) if request.package.isidentifier() else []
    if len(files) < 2:
        raise JobFailed("NOTHING_TO_COMPARE", f"the standard library has no two files in {request.package!r}")
    texts = {path.name: path.read_text(errors="replace").splitlines() for path in files}
    number = len(texts) * (len(texts) - 1) // 2
    pairs = []
    for done, (first, second) in enumerate(combinations(texts, 2)):
        job.progress(100 * done / number, f"{first} and {second}", {"pairs": done, "of": number})
        matcher = SequenceMatcher(None, texts[first], texts[second], autojunk=False)
        pairs.append(Pair(round(matcher.ratio(), 3), first, second))
    job.progress(100, f"{number} pairs")
    return sorted(pairs, key=lambda pair: -pair.ratio)[: request.most]
