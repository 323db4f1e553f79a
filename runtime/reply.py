"""The answer to one message: set once by the actor, awaited by the asker. An asker that is cancelled gives up the answer only."""

from typing import Generic, TypeVar

import outcome
import trio

__all__ = ["Reply"]

T = TypeVar("T")


class Reply(Generic[T]):
    """One-shot. ``get`` returns the value or raises the error that was set; a second ``set`` or ``fail`` is ignored."""

    __slots__ = ("_event", "_result")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._result: outcome.Value[T] | outcome.Error | None = None

    def set(self, value: T) -> None:
        if self._result is None:
            self._result = outcome.Value(value)
            self._event.set()

    def fail(self, error: Exception) -> None:
        if self._result is None:
            self._result = outcome.Error(error)
            self._event.set()

    async def get(self) -> T:
        await self._event.wait()
        assert self._result is not None
        return self._result.unwrap()
