"""Exceptions that cross from a worker process: described as data there, shown again as exceptions here.

Nothing of the app's own runs in the parent for it: an exception is never pickled, so one that cannot be, or whose class cannot be made
again from its arguments, comes through like any other. What comes out is a ``RaisedElsewhere`` of a class with the same name, with the same
text, notes, traceback, cause, context and members. ``JobFailed``, ``Retry`` and exception groups are of those classes too.
"""

from types import TracebackType
from typing import Any, Final

from msgspec import Struct
from tblib import Traceback  # type: ignore[import-untyped]

from callboard.runtime.failure import MAX_CODE, MAX_MESSAGE, JobFailed, Retry
from callboard.runtime.payload import storable

__all__ = ["Fault", "RaisedElsewhere", "describe", "kind_name", "rebuild"]

MAX_FAULTS: Final = 32
"""Exceptions of one chain, its groups' members included."""
MAX_FRAMES: Final = 60
"""Frames of one traceback: the outermost and the innermost half of a longer one."""
MAX_NAME: Final = 300
MAX_KINDS: Final = 30
MAX_NOTES: Final = 10


class Frame(Struct, frozen=True):
    """One line of a traceback."""

    file: str
    function: str
    line: int


class Fault(Struct, frozen=True, kw_only=True):
    """One exception as data; every text is bounded and can be stored."""

    kinds: tuple[str, ...]
    """Its class and that class's bases, as ``module.qualified_name``."""
    module: str
    name: str
    text: str
    notes: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()
    cause: "Fault | None" = None
    context: "Fault | None" = None
    suppress_context: bool = False
    members: "tuple[Fault, ...] | None" = None
    """Of an exception group."""
    failed: tuple[str, str, bool] | None = None
    """Of a JobFailed: code, message, retryable."""
    again: tuple[float | None] | None = None
    """Of a Retry: after how many seconds."""


class RaisedElsewhere(Exception):
    """An exception of a handler that ran in a worker process, as the parent shows it."""

    kinds: tuple[str, ...] = ()
    text: str = ""

    def __str__(self) -> str:
        return super().__str__() if isinstance(self, BaseExceptionGroup) else self.text


def kind_name(kind: type) -> str:
    """A class's name, the same in parent and child: what the child runs as ``__mp_main__`` is the parent's ``__main__``."""
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return _clip(f"{module}.{kind.__qualname__}", MAX_NAME)


# In the child


def describe(error: BaseException, *, skip_frames: int = 0) -> Fault:
    """``error`` with everything that hangs on it. ``skip_frames``: the outermost lines of its traceback that say nothing."""
    return _Describer().describe(error, skip_frames)


class _Describer:
    def __init__(self) -> None:
        self._left = MAX_FAULTS
        self._seen: set[int] = set()

    def describe(self, error: BaseException, skip_frames: int) -> Fault:
        self._left -= 1
        self._seen.add(id(error))
        kind = type(error)
        found = dict[str, Any](
            kinds=tuple(kind_name(base) for base in kind.__mro__[:MAX_KINDS] if base is not object),
            module=kind_name(kind)[: -len(kind.__qualname__) - 1],
            name=_clip(kind.__qualname__, MAX_NAME),
            text=_text(error),
            notes=_notes(error),
            frames=_frames(error.__traceback__, skip_frames),
            suppress_context=bool(error.__suppress_context__),
            cause=self._linked(error.__cause__),
            context=self._linked(error.__context__),
        )
        if isinstance(error, BaseExceptionGroup):
            members = (self._linked(member) for member in error.exceptions)
            found["members"] = tuple(member for member in members if member is not None)
        if isinstance(error, JobFailed):
            found["failed"] = (
                _clip(str(error.code), MAX_CODE),
                _clip(str(error.message), MAX_MESSAGE),
                bool(error.retryable),
            )
        if isinstance(error, Retry):
            seconds = error.after_seconds
            found["again"] = (None if seconds is None else float(seconds),)
        return Fault(**found)

    def _linked(self, error: BaseException | None) -> Fault | None:
        if error is None or self._left <= 0 or id(error) in self._seen:
            return None
        return self.describe(error, 0)


def _text(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, BaseExceptionGroup) else str(error)
    except Exception:  # noqa: BLE001 -- the app's own code: an exception that has no text is one that says nothing
        return ""
    return _clip(text, MAX_MESSAGE)


def _notes(error: BaseException) -> tuple[str, ...]:
    notes = getattr(error, "__notes__", ())
    if not isinstance(notes, list | tuple):
        return ()
    return tuple(_clip(note, 1000) for note in notes[:MAX_NOTES] if isinstance(note, str))


def _frames(trace: TracebackType | None, skip: int) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(Frame(_clip(code.co_filename, MAX_NAME), _clip(code.co_name, MAX_NAME), trace.tb_lineno))
        trace = trace.tb_next
    frames = frames[skip:]
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    return tuple(frames)


def _clip(text: str, most: int) -> str:
    return storable(text[:most])


# In the parent


def rebuild(fault: Fault) -> RaisedElsewhere:
    """The exception that ``fault`` tells of."""
    members = [rebuild(member) for member in fault.members or ()]
    base: type[Exception] = Exception
    arguments: tuple[Any, ...] = (fault.text,)
    if fault.failed is not None:
        base, arguments = JobFailed, (fault.failed[0] or "HANDLER_ERROR", fault.failed[1], fault.failed[2])
    elif fault.again is not None:
        base, arguments = Retry, ()
    elif members:
        base, arguments = ExceptionGroup, (fault.text, members)
    body = {"__module__": fault.module, "__qualname__": fault.name, "kinds": fault.kinds, "text": fault.text}
    kind = type(fault.name.rpartition(".")[2].replace("\0", "?"), (RaisedElsewhere, base), body)
    error: RaisedElsewhere = kind(*arguments)
    if fault.again is not None:
        error.after_seconds = fault.again[0]  # type: ignore[attr-defined]
    for note in fault.notes:
        error.add_note(note)
    error.__cause__ = None if fault.cause is None else rebuild(fault.cause)
    error.__context__ = None if fault.context is None else rebuild(fault.context)
    error.__suppress_context__ = fault.suppress_context
    return error.with_traceback(_traceback(fault.frames))


def _traceback(frames: tuple[Frame, ...]) -> TracebackType | None:
    trace: dict[str, Any] | None = None
    for frame in reversed(frames):
        code = {"co_filename": frame.file, "co_name": frame.function}
        scope = {"__file__": frame.file, "__name__": "?"}
        shown = {"f_globals": scope, "f_locals": {}, "f_code": code, "f_lineno": frame.line}
        trace = {"tb_frame": shown, "tb_lineno": frame.line, "tb_next": trace}
    found: TracebackType | None = None if trace is None else Traceback.from_dict(trace).as_traceback()
    return found
