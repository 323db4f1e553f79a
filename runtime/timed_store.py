"""A driver whose every call is timed and told: to telemetry always, to traces where a span asked for it. Changes nothing of the call."""

from typing import Any, cast

import trio

from callboard.runtime.core.store import Store
from callboard.runtime.telemetry import Telemetry
from callboard.runtime.tracing import Tracing

__all__ = ["timed"]

GIVEN = frozenset({"commit", "extend", "get"})
"""Verbs whose first argument is the batch."""
BROUGHT = frozenset({"claim", "lapse"})
"""Verbs whose answer is the batch."""


def timed(store: Store, telemetry: Telemetry, tracing: Tracing) -> Store:
    """The same store, watched."""
    return cast(Store, _TimedStore(store, telemetry, tracing))


class _TimedStore:
    """Every verb by its name, so that one that the protocol gets tomorrow is watched too."""

    def __init__(self, store: Store, telemetry: Telemetry, tracing: Tracing) -> None:
        self._store = store
        self._telemetry = telemetry
        self._tracing = tracing

    def __getattr__(self, verb: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            began, began_ns = trio.current_time(), self._tracing.now_ns()
            try:
                answer = await getattr(self._store, verb)(*arguments, **options)
            except Exception as error:
                # A cursor that is not the store's own is the caller's fault.
                failed = None if verb == "list" and isinstance(error, ValueError) else error
                self._tell(verb, began, began_ns, arguments, (), failed)
                raise
            self._tell(verb, began, began_ns, arguments, answer, None)
            return answer

        # Found at once from now on.
        setattr(self, verb, call)
        return call

    def _tell(
        self,
        verb: str,
        began: float,
        began_ns: int,
        arguments: tuple[Any, ...],
        answer: Any,
        error: Exception | None,
    ) -> None:
        size = len(arguments[0]) if verb in GIVEN else len(answer) if verb in BROUGHT else 1
        if verb != "wait_news":
            self._telemetry.store_called(verb, trio.current_time() - began, size, error)
        elif error is not None:
            self._telemetry.store_called(verb, 0.0, size, error)
        if self._tracing.is_on:
            claimed = [one.request for one in answer] if verb == "claim" else ()
            self._tracing.store_called(verb, began_ns, size, error, claimed)
