"""Wary looks at the app's own exceptions, and wary calls of its listeners: both are its code and may raise anything, which must
harm nobody.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard, TypeVar

from callboard.runtime.payload import storable

__all__ = ["Guard", "is_a", "leaves", "own", "plain", "told", "type_name"]

logger = logging.getLogger("callboard.runtime")

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def told(look: Callable[[], T], otherwise: T) -> T:
    """What ``look`` returns, or ``otherwise`` where it raises. Only KeyboardInterrupt passes."""
    try:
        return look()
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 -- the app's own code, asked about itself: what it raises says nothing new
        return otherwise


def is_a(error: object, kind: type[E]) -> TypeGuard[E]:
    """``isinstance`` by the object's class alone, without a look at what it says of itself."""
    return issubclass(type(error), kind)


def own(kind: type, name: str, value: object) -> Any:
    """An attribute of ``kind`` as Python itself set it, whatever a subclass has put in its place."""
    return kind.__dict__[name].__get__(value)


def plain(value: object, limit: int) -> str:
    """The text of ``value``, storable, at most ``limit`` characters. Raises what its ``__str__`` raises."""
    # Not a subclass of str, whose methods would be the app's own code again.
    return storable(str.__str__(str(value))[:limit])


def type_name(error: BaseException) -> str:
    """The name of its class, without the module."""
    name: str = own(type, "__name__", type(error))
    return storable(name)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group and of the groups in it; of any other exception itself."""
    waiting = [error]
    while waiting:
        found = waiting.pop()
        if is_a(found, BaseExceptionGroup):
            waiting += reversed(own(BaseExceptionGroup, "exceptions", found))
        else:
            yield found


class Guard:
    """Calls code of the app that only listens. What it raises is logged, once for each ``what``, and goes no further."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def call(self, what: str, act: Callable[[], T], otherwise: T) -> T:
        """What ``act`` returns, or ``otherwise`` where it raises. Only KeyboardInterrupt passes."""
        try:
            return act()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 -- a listener's failure is nobody else's, SystemExit included
            if what not in self._said:
                self._said.add(what)
                shown, text = error, "%s raised; the next time it is not logged again"
                told(lambda: logger.error(text, what, exc_info=shown), None)
            return otherwise
