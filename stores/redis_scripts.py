"""The Lua scripts of a space: ``lua/<name>.lua`` behind the common ``lua/space.lua``, with what Redis has to know of each.

Flags, source: Redis, "Lua API reference", script flags. ``allow-oom``: what runs may go on and end, and what is kept may be removed, when
the server's memory is full; only new jobs are refused. ``no-writes``: it reads.
"""

import hashlib
from pathlib import Path
from typing import Final

from msgspec import Struct

__all__ = [
    "ATTEMPTS",
    "BAR",
    "CLAIM",
    "COMMIT",
    "COMMIT_BIRTHS",
    "DOUBTS",
    "EVENTS",
    "EXTEND",
    "FIND",
    "GET",
    "LIST",
    "NEWS",
    "OPEN",
    "OVERDUE",
    "PAUSE",
    "PEEK",
    "PRUNE",
    "READY",
    "REGISTER",
    "REGISTER_BIRTHS",
    "SCRIPTS",
    "STATE",
    "STROLL",
    "WHEREABOUTS",
    "Script",
]

_FOLDER: Final = Path(__file__).parent / "lua"


class Script(Struct, frozen=True):
    """``sha`` is what EVALSHA calls it by."""

    name: str
    text: str
    sha: str


def script(name: str, flags: str, *, file: str | None = None, after: tuple[str, ...] = ()) -> Script:
    """The script of that file, by default ``<name>.lua``, after the parts that it stands on."""
    parts = [(_FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in ("space", *after, file or name)]
    text = "\n".join([f"#!lua flags={flags}" if flags else "#!lua", *parts])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


COMMIT: Final = script("commit", "allow-oom")
COMMIT_BIRTHS: Final = script("commit_births", "", file="commit")
"""The same, for a batch with new jobs: refused as a whole when the server's memory is full."""
CLAIM: Final = script("claim", "allow-oom", after=("line",))
PEEK: Final = script("peek", "allow-oom", after=("line",))
EXTEND: Final = script("extend", "allow-oom")
OVERDUE: Final = script("overdue", "allow-oom")
PRUNE: Final = script("prune", "allow-oom")
PAUSE: Final = script("pause", "allow-oom")
GET: Final = script("get", "no-writes")
LIST: Final = script("list", "no-writes")
EVENTS: Final = script("events", "no-writes")
ATTEMPTS: Final = script("attempts", "no-writes")
READY: Final = script("ready", "no-writes")
STATE: Final = script("state", "no-writes")
NEWS: Final = script("news", "no-writes")
OPEN: Final = script("open", "allow-oom")

# For a store of several spaces.
FIND: Final = script("find", "no-writes")
BAR: Final = script("bar", "allow-oom")
REGISTER: Final = script("register", "allow-oom")
REGISTER_BIRTHS: Final = script("register_births", "", file="register")
WHEREABOUTS: Final = script("whereabouts", "no-writes")
DOUBTS: Final = script("doubts", "no-writes")
STROLL: Final = script("stroll", "no-writes")

SCRIPTS: Final = (
    COMMIT,
    COMMIT_BIRTHS,
    CLAIM,
    EXTEND,
    OVERDUE,
    PRUNE,
    PAUSE,
    GET,
    LIST,
    EVENTS,
    ATTEMPTS,
    READY,
    STATE,
    NEWS,
    OPEN,
    PEEK,
    FIND,
    BAR,
    REGISTER,
    REGISTER_BIRTHS,
    WHEREABOUTS,
    DOUBTS,
    STROLL,
)
