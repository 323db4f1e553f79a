"""The answer to one message: set once by the actor, awaited by the asker. An asker that is cancelled gives up the answer only."""

from typing import Generic, TypeVar

import trio

__all__ = ["Reply"]

T = TypeVar("T")


class Reply(Generic[T]):
    """One-shot. ``get`` returns the value or raises the error that was set; a second ``set`` or ``fail`` is ignored."""

    __slots__ = ("_error", "_event", "_value")

    _value: T

    def __init__(self) -> None:
        self._event = trio.Event()
        self._error: Exception | None = None

    def set(self, value: T) -> None:
        if not self._event.is_set():
            self._value = value
            self._event.set()

    def fail(self, error: Exception) -> None:
        if not self._event.is_set():
            self._error = error
            self._event.set()

    async def get(self) -> T:
        await self._event.wait()
        if self._error is not None:
            raise self._error
        return self._value
