"""A handler's exception as text, for the history of its attempt: with all that hangs on it, and bounded.

Whatever the exceptions do when they are looked at, what can be told of them is told and nothing is raised.
"""

import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from types import FrameType, TracebackType
from typing import Final

from msgspec import Struct

from callboard.runtime.core.history import ExceptionInfo, Relation
from callboard.runtime.payload import storable
from callboard.runtime.wary import is_a, own, plain, told

__all__ = ["MAX_BYTES", "MAX_LINKS", "chain_of"]

MAX_BYTES: Final = 32_768
"""Of all messages, notes and tracebacks of one chain, in UTF-8; the short ones are kept whole, the long ones lose their middle."""
MAX_LINKS: Final = 30
"""Exceptions of one chain, the nearest to the one that was raised."""
MAX_MEMBERS: Final = 15
"""Of one group. Source: as many as Python's own tracebacks show."""
MAX_NOTES: Final = 10
MAX_FRAMES: Final = 40
"""Of one traceback: the outermost quarter and the innermost rest."""
MAX_TYPE: Final = 200
MAX_FRAME_TEXT: Final = 1000
"""Characters of one frame with its source line."""

_MACHINERY: Final = ("callboard.runtime", "callboard.testing", "trio", "outcome")
"""Modules whose frames lead to the handler and say nothing about it."""


class _Link(Struct):
    error: BaseException
    relation: Relation
    of: int | None
    left_out: int = 0
    """Exceptions that hang on it and found no room."""


class _Text(Struct):
    """What is told of one link, before it is made to fit."""

    link: _Link
    message: str
    traceback: str
    notes: list[str]


def chain_of(error: BaseException | None) -> tuple[ExceptionInfo, ...]:
    """The exception, the members of its groups, its cause, or else its context unless it was raised ``from None``, and so on for
    each of these; nearest first, each behind the one it hangs on. Empty for None.
    """
    if error is None:
        return ()
    texts = [_text_of(link) for link in _links(error)]
    fitted = iter(_fitted([piece for text in texts for piece in (text.message, text.traceback, *text.notes)]))
    return tuple(
        ExceptionInfo(
            type=_type_name(text.link.error),
            message=next(fitted),
            traceback=next(fitted),
            relation=text.link.relation,
            of=text.link.of,
            notes=tuple(islice(fitted, len(text.notes))),
        )
        for text in texts
    )


def _links(error: BaseException) -> list[_Link]:
    links: list[_Link] = []
    waiting = deque([_Link(error, "raised", None)])
    seen = {id(error)}
    while waiting:
        link = waiting.popleft()
        if len(links) == MAX_LINKS:
            assert link.of is not None
            links[link.of].left_out += 1
            continue
        links.append(link)
        for hanging in _hanging(link, len(links) - 1):
            # A chain may be a ring.
            if id(hanging.error) not in seen:
                seen.add(id(hanging.error))
                waiting.append(hanging)
    return links


def _hanging(link: _Link, place: int) -> Iterator[_Link]:
    error = link.error
    if is_a(error, BaseExceptionGroup):
        members: tuple[BaseException, ...] = own(BaseExceptionGroup, "exceptions", error)
        link.left_out += max(0, len(members) - MAX_MEMBERS)
        for member in members[:MAX_MEMBERS]:
            yield _Link(member, "member", place)
    cause, context = own(BaseException, "__cause__", error), own(BaseException, "__context__", error)
    if cause is not None:
        yield _Link(cause, "cause", place)
    elif context is not None and not own(BaseException, "__suppress_context__", error):
        yield _Link(context, "context", place)


def _text_of(link: _Link) -> _Text:
    error = link.error
    notes = told(lambda: _notes(error), list[str]())
    if link.left_out:
        notes.append(f"(callboard keeps {link.left_out} more exceptions that hang on this one out of the history)")
    return _Text(
        link,
        message=told(lambda: plain(error, MAX_BYTES), "(its text cannot be told: __str__ raises)"),
        traceback=told(lambda: _traceback(own(BaseException, "__traceback__", error)), ""),
        notes=notes,
    )


def _notes(error: BaseException) -> list[str]:
    return [plain(note, MAX_BYTES) for note in islice(getattr(error, "__notes__", ()), MAX_NOTES)]


def _type_name(error: BaseException) -> str:
    kind = type(error)
    name: str = own(type, "__qualname__", kind)
    module = told(lambda: str.__str__(own(type, "__module__", kind)), "")
    return storable((name if module in ("", "builtins", "__main__") else f"{module}.{name}")[:MAX_TYPE])


def _traceback(begin: TracebackType | None) -> str:
    frames = list(traceback.walk_tb(begin))
    first = next((number for number, (frame, _) in enumerate(frames) if not _is_machinery(frame)), 0)
    frames = frames[first:]
    if len(frames) <= MAX_FRAMES:
        return _formatted(frames)
    outer = MAX_FRAMES // 4
    left_out = f"  ... {len(frames) - MAX_FRAMES} frames are left out ...\n"
    return _formatted(frames[:outer]) + left_out + _formatted(frames[outer - MAX_FRAMES :])


def _is_machinery(frame: FrameType) -> bool:
    name = dict.get(frame.f_globals, "__name__")
    return type(name) is str and any(name == module or name.startswith(f"{module}.") for module in _MACHINERY)


def _formatted(frames: Sequence[tuple[FrameType, int]]) -> str:
    lines = traceback.StackSummary.extract(iter(frames)).format()
    return storable(
        "".join(line if len(line) <= MAX_FRAME_TEXT else f"{line[:MAX_FRAME_TEXT]} ...\n" for line in lines)
    )


def _fitted(texts: Sequence[str]) -> list[str]:
    """The texts within ``MAX_BYTES``: the short ones whole, the long ones of about the same length."""
    sizes = [len(text.encode()) for text in texts]
    fitted, left = list(texts), MAX_BYTES
    for done, place in enumerate(sorted(range(len(texts)), key=sizes.__getitem__)):
        share = left // (len(texts) - done)
        if sizes[place] > share:
            fitted[place] = _without_middle(texts[place], share)
        left -= min(sizes[place], share)
    return fitted


def _without_middle(text: str, size: int) -> str:
    """The first third and the last two thirds of what fits into ``size`` bytes: the end of a traceback says most."""
    data = text.encode("utf-8", "replace")
    mark = f"\n... {len(data)} bytes, cut here ...\n".encode()
    room = max(0, size - len(mark))
    cut = data[: room // 3] + mark + data[len(data) - (room - room // 3) :]
    return cut[:size].decode("utf-8", "ignore")
