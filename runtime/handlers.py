"""What can be run: named handlers with their types and options, checked when they are registered."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from callboard.runtime.config import MAX_SECONDS
from callboard.runtime.context import JobContext, ProcessJobContext, ThreadJobContext
from callboard.runtime.core.errors import ConfigError, HandlerError
from callboard.runtime.core.job import MAX_PRIORITY, Job
from callboard.runtime.faults import RaisedElsewhere, kind_name
from callboard.runtime.payload import is_pydantic, undecodable
from callboard.runtime.references import reference_of

__all__ = ["NO_BODY", "Handler", "Handlers", "make_handler"]

F = TypeVar("F", bound=Callable[..., Any])

_CONTEXTS: Final = (JobContext, ThreadJobContext, ProcessJobContext)

NO_BODY: Any = None
"""``Handler.request_type`` of a handler that takes no body."""


class Handler(Struct, frozen=True, kw_only=True):
    """One registered function with its options; None means the runtime's own setting."""

    name: str
    function: Callable[..., Any]
    runs_in: Literal["task", "thread", "process"]
    request_type: Any = NO_BODY
    """Type of the body, or NO_BODY."""
    result_type: Any = Any
    queue: str = "default"
    old_queues: tuple[str, ...] = ()
    """Where earlier versions of the app put its jobs: they are taken from there, too."""
    max_retries: int | None = None
    timeout_seconds: float | None = None
    max_lost_leases: int | None = None
    priority: int | Callable[..., int] = 0
    """A number, or a function of the decoded body (of nothing, without one) that returns it."""
    retry_on: tuple[type[BaseException], ...] | None = None
    """If given, only these exceptions are retried."""
    no_retry_on: tuple[type[BaseException], ...] = ()
    location: Callable[[Job, Any], str | None] | None = None
    """``location(job, result)`` names the created resource once the job is Completed."""

    @property
    def takes_body(self) -> bool:
        return self.request_type is not NO_BODY

    def may_retry(self, error: BaseException) -> bool:
        """Whether an exception of the handler is worth another attempt."""
        if _is_one_of(error, self.no_retry_on):
            return False
        return self.retry_on is None or _is_one_of(error, self.retry_on)

    def priority_of(self, body: Any) -> int:
        """The priority of a job with that decoded body. Raises ConfigError where the app's function fails or gives none."""
        value = self.priority
        if not callable(value):
            return _checked_priority(value)
        try:
            return _checked_priority(value(body) if self.takes_body else value())
        except Exception as error:  # the app's own code: the caller has done nothing wrong
            raise ConfigError(f"the priority function of handler {self.name!r} gave no priority: {error}") from error


class Handlers:
    """The registry of one app. Names are unique."""

    def __init__(self, handlers: Iterable[Handler] = ()) -> None:
        self._by_name: dict[str, Handler] = {}
        for handler in handlers:
            self.add(handler)

    def require_free(self, name: str) -> None:
        """Raises HandlerError if the name is taken."""
        if name in self._by_name:
            raise HandlerError(f"a handler named {name!r} is registered already: give each its own name")

    def add(self, handler: Handler) -> Handler:
        """Register. Raises HandlerError if the name is taken."""
        self.require_free(handler.name)
        self._by_name[handler.name] = handler
        return handler

    def handler(self, name: str, **options: Any) -> Callable[[F], F]:
        """Decorator: register a function under ``name``, with the options of ``Handler``."""

        def register(function: F) -> F:
            self.add(make_handler(name, function, **options))
            return function

        return register

    def require_queues(self, queues: Iterable[str]) -> None:
        """Raises ConfigError for a queue that no handler works on."""
        for queue in queues:
            if queue not in self.queues:
                known = f"give one of {', '.join(self.queues)}" if self.queues else "there are no handlers"
                raise ConfigError(f"no handler works on queue {queue!r}: {known}")

    def get(self, name: str) -> Handler | None:
        """The handler of that name."""
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def queues(self) -> tuple[str, ...]:
        """Those that jobs are taken from: the handlers' own, and after them their old ones."""
        old = (queue for handler in self for queue in handler.old_queues)
        return tuple(dict.fromkeys([*(handler.queue for handler in self), *old]))

    def take(self, queue: str, name: str) -> bool:
        """Whether jobs of that name in that queue can be run with these handlers."""
        return name in self._by_name and queue in self.queues


def make_handler(name: str, function: Callable[..., Any], *, process: bool = False, **options: Any) -> Handler:
    """Check ``function``'s signature and the options. Raises HandlerError with what to change.

    ``async def`` runs as a trio task, a plain function in a thread, or in a worker process with ``process``. It takes ``job``,
    and as second parameter the body if there is one; the parameter's annotation is the body's type.
    """
    if not isinstance(name, str) or not name or len(name) > 200:
        raise HandlerError(f"a handler's name is {name!r}: give a text of 1 to 200 characters")
    where = f"handler {name!r} ({getattr(function, '__qualname__', function)!s})"
    if not callable(function):
        raise HandlerError(f"{where} is no function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise HandlerError(f"{where} is a generator: return the result instead of yielding")
    try:
        handler = Handler(
            name=name,
            function=function,
            runs_in=_runs_in(function, process, where),
            request_type=_request_type(function, where),
            result_type=_hints(function, where).get("return", Any),
            **options,
        )
    except TypeError as error:
        raise HandlerError(f"{where}: {error}") from error
    _check_options(handler, where)
    return handler


def _runs_in(function: Callable[..., Any], process: bool, where: str) -> Literal["task", "thread", "process"]:
    if not isinstance(process, bool):
        raise HandlerError(f"{where}: process is {process!r}: give True or False")
    if process:
        reference_of(function, where)
        return "process"
    return "task" if _is_async(function) else "thread"


def _is_one_of(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, RaisedElsewhere):
        # Its class was left behind in the worker process; the names of the class and its bases came along.
        return any(kind_name(kind) in error.kinds for kind in kinds)
    return isinstance(error, kinds)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target)
    except Exception as error:  # reading an annotation that is text runs it
        raise HandlerError(
            f"{where}: an annotation cannot be read: {error}; define the type at module level"
        ) from error


def _request_type(function: Callable[..., Any], where: str) -> Any:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError as error:
        raise HandlerError(
            f"{where} has no signature that can be read: wrap it in a function of (job, request)"
        ) from error
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not positional or len(positional) > 2 or any(p not in positional for p in required):
        raise HandlerError(f"{where} must take (job) or (job, request), not {inspect.signature(function)}")
    hints = _hints(function, where)
    first = hints.get(positional[0].name, Any)
    if not _may_be_context(first):
        raise HandlerError(
            f"{where}: {positional[0].name!r} is the job and cannot be {first}: take (job: JobContext) or (job: JobContext, request),"
            " a plain function (job: ThreadJobContext), one of process=True (job: ProcessJobContext)"
        )
    if len(positional) == 1:
        return NO_BODY
    kind = hints.get(positional[1].name)
    if kind is None:
        raise HandlerError(f"{where}: annotate {positional[1].name!r} with the type of the body")
    _check_body_type(kind, where)
    return kind


def _may_be_context(kind: Any) -> bool:
    """Whether a first parameter of that annotation may take the job."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_may_be_context(one) for one in typing.get_args(kind))
    if kind is Any or isinstance(kind, typing.TypeVar):
        return True
    if getattr(kind, "_is_protocol", False):
        return True
    return isinstance(kind, type) and any(issubclass(context, kind) for context in _CONTEXTS)


def _check_body_type(kind: Any, where: str) -> None:
    if kind in _CONTEXTS:
        raise HandlerError(
            f"{where}: the job is the first parameter and the body the second: take (job: JobContext, request)"
        )
    if is_pydantic(kind):
        return
    try:
        msgspec.json.Decoder(kind)
        unknown = undecodable(kind)
    except Exception as error:  # msgspec reads the annotations of every field, and text among them is run
        raise HandlerError(f"{where}: a body cannot be of type {kind}: {error}") from error
    if unknown is not None:
        hint = (
            "a pydantic model can be the whole body only: give it as the parameter's type"
            if is_pydantic(unknown)
            else "make it a msgspec.Struct, a dataclass, a TypedDict or a plain JSON type"
        )
        raise HandlerError(f"{where}: a body cannot hold {unknown}, which JSON cannot be decoded to: {hint}")


def _checked_priority(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        raise ValueError(f"the priority is {value!r}: give a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}")
    return value


def _is_queue(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 200


def _check_options(handler: Handler, where: str) -> None:
    try:
        if not callable(handler.priority):
            _checked_priority(handler.priority)
    except ValueError as error:
        raise HandlerError(f"{where}: {error}") from None
    for option in ("max_retries", "max_lost_leases"):
        value = getattr(handler, option)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise HandlerError(f"{where}: {option} is {value!r}: give a whole number, 0 or more")
    seconds = handler.timeout_seconds
    if seconds is not None and (
        not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= MAX_SECONDS
    ):
        raise HandlerError(
            f"{where}: timeout_seconds is {seconds!r}: give seconds, more than 0 and at most {MAX_SECONDS:g}"
        )
    if not _is_queue(handler.queue):
        raise HandlerError(f"{where}: queue is {handler.queue!r}: give a text of 1 to 200 characters")
    if not isinstance(handler.old_queues, tuple) or not all(map(_is_queue, handler.old_queues)):
        raise HandlerError(f"{where}: old_queues is {handler.old_queues!r}: give a tuple of queues' names")
    for option in ("retry_on", "no_retry_on"):
        kinds = getattr(handler, option)
        if kinds is not None and not (
            isinstance(kinds, tuple)
            and all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
        ):
            raise HandlerError(f"{where}: {option} is {kinds!r}: give a tuple of exception classes")
    if handler.location is not None and not callable(handler.location):
        raise HandlerError(f"{where}: location is {handler.location!r}: give a function of (job, result)")
