"""Several works that use a caller, such as one verb on several spaces, in as many round trips as the longest needs.

A work is run until its first call, again from its beginning with the answer to that until its second, and so on; the calls of a round go
out together. So a work must do nothing but call, and make the same calls of the same answers.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from redis.exceptions import RedisError

from callboard.stores.redis_link import Caller
from callboard.stores.redis_scripts import Script

__all__ = ["ManyCaller", "apart", "reachable", "together"]

T = TypeVar("T")


class ManyCaller(Caller, Protocol):
    """A caller that can make several calls at once."""

    def run_all(self, calls: Sequence[tuple[Script, Sequence[str], Sequence[str | bytes | int]]]) -> list[Any]:
        """One answer each, or the exception that it raised."""
        ...


def together(caller: ManyCaller, works: Sequence[Callable[[Caller], T]]) -> list[T]:
    """What each work returns. Raises what one of them raised, when all are over."""
    results = apart(caller, works)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results  # type: ignore[return-value]


def reachable(caller: ManyCaller, works: Sequence[Callable[[Caller], T]]) -> list[T | None]:
    """The same, with None for a work whose server cannot be used now. Raises only when that is so of all, or for anything else."""
    results = apart(caller, works)
    errors = [result for result in results if isinstance(result, Exception)]
    for error in errors:
        if len(errors) == len(results) or not isinstance(error, RedisError):
            raise error
    return [None if isinstance(result, Exception) else result for result in results]


def apart(caller: ManyCaller, works: Sequence[Callable[[Caller], T]]) -> list[T | Exception]:
    """The same, with what a work raised in its place."""
    if len(works) == 1:
        return [_alone(caller, works[0])]
    recorders = [_Recorder() for _ in works]
    results: list[T | Exception | None] = [None] * len(works)
    waiting = list(range(len(works)))
    while waiting:
        calls, still = [], []
        for index in waiting:
            recorder = recorders[index]
            recorder.rewind()
            try:
                results[index] = works[index](recorder)
            except _Wanting as wanting:
                calls.append(wanting.call)
                still.append(index)
            except Exception as error:  # noqa: BLE001  whatever it is, it is the result of that work and raised by `together`
                results[index] = error
        waiting = still
        if calls:
            for index, answer in zip(waiting, caller.run_all(calls), strict=True):
                recorders[index].answers.append(answer)
    return results  # type: ignore[return-value]


def _alone(caller: Caller, work: Callable[[Caller], T]) -> T | Exception:
    try:
        return work(caller)
    except Exception as error:  # noqa: BLE001  as above
        return error


class _Wanting(BaseException):
    """Not an error: a work cannot go on without the answer to this call."""

    def __init__(self, call: tuple[Script, Sequence[str], Sequence[str | bytes | int]]) -> None:
        super().__init__()
        self.call = call


class _Recorder:
    """A caller that has the answers to the first calls, and raises the next one."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self._at = 0

    def rewind(self) -> None:
        self._at = 0

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        if self._at == len(self.answers):
            raise _Wanting((script, keys, args))
        answer = self.answers[self._at]
        self._at += 1
        if isinstance(answer, Exception):
            raise answer
        return answer
