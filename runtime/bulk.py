"""Many submissions at once: each has its own answer, in order, and each batch is one commit of the store.

Owns the way through a batch. What a write is and what its outcome means are the client's; nothing here knows the store.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import trio

from callboard.runtime.core.errors import CallboardError, InvalidRequest, ShuttingDown, StoreUnavailable
from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Outcome, Write
from callboard.runtime.handlers import Handler
from callboard.runtime.submission import Submission, with_body

__all__ = ["breathe", "carry_out", "with_bodies"]

T = TypeVar("T")

PIECES: Final = 16
"""Small pieces of work between two looks at the event loop: about a millisecond."""
LARGE_BYTES: Final = 16_384
"""A piece with a body of so many bytes is not small."""


async def breathe(number: int, size_bytes: int) -> None:
    """Let others run before piece ``number`` (from 0), which works on ``size_bytes``, if it is time to."""
    if size_bytes >= LARGE_BYTES or number % PIECES == PIECES - 1:
        await trio.lowlevel.checkpoint()


async def with_bodies(
    handler: Handler, template: Submission, bodies: Iterable[Any], keys: Iterable[str | None] | None
) -> list[Submission | CallboardError]:
    """``template`` with each of ``bodies`` and its key, or what is wrong with that one.

    Raises InvalidRequest unless both are lists, and of the same length.
    """
    if isinstance(bodies, str | bytes | Mapping) or isinstance(keys, str | bytes | Mapping):
        raise InvalidRequest("bodies and keys are lists, with one item for each job")
    listed = list(bodies)
    chosen = [None] * len(listed) if keys is None else list(keys)
    if len(chosen) != len(listed):
        raise InvalidRequest(
            f"there are {len(listed)} bodies and {len(chosen)} keys: give one key for each body, or none"
        )
    submissions: list[Submission | CallboardError] = []
    size_bytes = 0
    for number, (body, key) in enumerate(zip(listed, chosen, strict=True)):
        # How large a body is shows only when it is encoded.
        await breathe(number, size_bytes)
        try:
            submission = with_body(handler, template, body, key=key)
        except CallboardError as error:
            submissions.append(error)
            continue
        size_bytes = memoryview(submission.request.body).nbytes
        submissions.append(submission)
    return submissions


async def carry_out(
    submissions: Sequence[Submission | CallboardError],
    *,
    batch_size: int,
    prepare: Callable[[Submission], Write],
    commit: Callable[[Sequence[Write]], Awaitable[Sequence[Outcome | CallboardError]]],
    conclude: Callable[[Job, Outcome], T],
) -> list[T | CallboardError]:
    """One answer for each submission, in order; an error among them is answered with itself.

    ``prepare`` and ``conclude`` raise the CallboardError of one submission. When ``commit`` raises that the store is away,
    that batch and the ones after it, which are not tried, are answered so: how far the batch came is unknown.
    """
    answers: list[T | CallboardError] = []
    away: CallboardError | None = None
    for start in range(0, len(submissions), batch_size):
        prepared = await _prepared(submissions[start : start + batch_size], prepare)
        writes = [item for item in prepared if isinstance(item, Write)]
        outcomes: Sequence[Outcome | CallboardError] = ()
        if away is None and writes:
            try:
                outcomes = await commit(writes)
            except (StoreUnavailable, ShuttingDown) as error:
                away = error
        if away is not None:
            # Each gets an instance of its own: a shared one would collect the tracebacks of all who raise it.
            outcomes = [type(away)(*away.args) for _ in writes]
        answers += _concluded(prepared, iter(outcomes), conclude)
    return answers


async def _prepared(
    batch: Sequence[Submission | CallboardError], prepare: Callable[[Submission], Write]
) -> list[Write | CallboardError]:
    prepared: list[Write | CallboardError] = []
    for number, item in enumerate(batch):
        if isinstance(item, CallboardError):
            prepared.append(item)
            continue
        await breathe(number, memoryview(item.request.body).nbytes)
        try:
            prepared.append(prepare(item))
        except CallboardError as error:
            prepared.append(error)
    return prepared


def _concluded(
    prepared: Sequence[Write | CallboardError],
    outcomes: Iterator[Outcome | CallboardError],
    conclude: Callable[[Job, Outcome], T],
) -> Iterator[T | CallboardError]:
    for item in prepared:
        if isinstance(item, CallboardError):
            yield item
            continue
        outcome = next(outcomes)
        try:
            yield outcome if isinstance(outcome, CallboardError) else conclude(item.job, outcome)
        except CallboardError as error:
            yield error
