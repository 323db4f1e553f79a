"""What schemathesis cannot know from a schema, told to it by name: refusals of well-formed requests that are right all the same.

It is loaded by schemathesis in a process of its own, never by pytest. A failure that is not listed here stays one.
"""

import itertools
import os
import uuid
from typing import Any

import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

__all__ = ["after_call", "before_call", "before_load_schema", "filter_failure"]

RIGHT = {
    "/invalid-request: more than a year from now": "a time that no schema can bound: it moves",
    "/invalid-request: cursor is none": "a cursor that no list gave",
    "/invalid-payload: Expected `int`, got `float`": "6.0 is a whole number to JSON Schema, and none to msgspec",
    "/invalid-payload: Input should be a valid integer": "nor to pydantic in its strict mode",
    "/job-failed": "the result of a job that failed",
    "/job-canceled": "the result of a job that was canceled",
}
"""The kind of problem, and words of its detail where it has several reasons -> what no schema can say."""

PURGED: set[str] = set()
"""Ids of jobs that are gone."""

USED: set[str] = set()
"""Keys and ids of jobs that a request came with."""

EXCLUDING = (("X-Async-Request-Id", "Idempotency-Key"), ("Job-Delay", "Job-Run-At"))
TURNS = itertools.count()
FRESH = itertools.count(1)


@schemathesis.hook
def before_call(context: Any, case: Any, *_: Any) -> None:
    """A well-formed request is one of its own: it has a key or an id that nobody had, and of two headers that exclude each other one.

    Otherwise most would be refused or repeats of another request, and whether their bodies are right would never be looked at.
    """
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or not case.headers:
        return
    for pair in EXCLUDING:
        if all(name in case.headers for name in pair):
            del case.headers[pair[next(TURNS) % 2]]
    for name in ("X-Async-Request-Id", "Idempotency-Key"):
        if name not in case.headers:
            continue
        if case.headers[name] in USED:
            case.headers[name] = str(uuid.UUID(int=next(FRESH)))
        USED.add(case.headers[name])


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Remember what a DELETE has removed."""
    if case.method == "DELETE" and response.status_code == 204:
        PURGED.add(case.path_parameters["job_id"])


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether it counts as a failure."""
    if isinstance(failure, RejectedPositiveData):
        return not _is_right(response.json())
    if isinstance(failure, UseAfterFree):
        # A DELETE without purge=true is a cancel: what it leaves may be read.
        return any(f"/{job_id}" in failure.message for job_id in PURGED)
    if isinstance(failure, AcceptedNegativeData):
        # Everybody takes headers that nobody knows; schemathesis means to leave them out, and misses some.
        return "in header - object with unexpected properties" not in failure.message
    return True


def _is_right(problem: dict[str, Any]) -> bool:
    for known in RIGHT:
        kind, _, words = known[1:].partition(": ")
        if problem["type"].endswith(f":{kind}") and words in problem["detail"]:
            return True
    return False


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Where only links are followed, a job's id is what an answer gave.

    A header that ends in ``Id`` is to schemathesis the id of something that has to be made first, and nothing here makes one: it
    would begin with no submission at all.
    """
    if os.environ.get("SCHEMATHESIS_LINKS_ONLY") == "yes":
        chosen = {"$ref": "#/components/parameters/RequestId"}
        for operations in raw_schema["paths"].values():
            for operation in operations.values():
                operation["parameters"] = [one for one in operation["parameters"] if one != chosen]
