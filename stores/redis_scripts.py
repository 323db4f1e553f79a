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
    "CLAIM",
    "COMMIT",
    "COMMIT_BIRTHS",
    "EVENTS",
    "EXTEND",
    "GET",
    "LIST",
    "NEWS",
    "OPEN",
    "OVERDUE",
    "PAUSE",
    "PRUNE",
    "READY",
    "SCRIPTS",
    "STATE",
    "Script",
]

_FOLDER: Final = Path(__file__).parent / "lua"


class Script(Struct, frozen=True):
    """``sha`` is what EVALSHA calls it by."""

    name: str
    text: str
    sha: str


def script(name: str, flags: str, *, file: str | None = None) -> Script:
    """The script of that file, by default ``<name>.lua``."""
    parts = [(_FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in ("space", file or name)]
    text = "\n".join([f"#!lua flags={flags}" if flags else "#!lua", *parts])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


COMMIT: Final = script("commit", "allow-oom")
COMMIT_BIRTHS: Final = script("commit_births", "", file="commit")
"""The same, for a batch with new jobs: refused as a whole when the server's memory is full."""
CLAIM: Final = script("claim", "allow-oom")
EXTEND: Final = script("extend", "allow-oom")
OVERDUE: Final = script("overdue", "no-writes")
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
)
