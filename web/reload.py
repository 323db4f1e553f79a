"""Which Python files an app consists of, and that one of them has changed. Looks, and leaves the rest to the parent of the workers.

By asking the file system every half second: that needs no library, and works on every system, in containers and on network drives.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

import trio

__all__ = ["POLL_SECONDS", "folders_of", "snapshot", "summary", "watch"]

POLL_SECONDS: Final = 0.5
SHARE: Final = 0.1
"""At most so much of the time is spent with looking: a huge tree is looked at less often."""
SETTLE_SECONDS: Final = 0.05
"""Editors and version control write several files: wait until nothing changes for so long."""
MAX_SETTLE_ROUNDS: Final = 40
SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
NAMED: Final = 3
"""How many files are told by name."""

Stamp = tuple[int, int, int]
"""Time of the last change in nanoseconds, size in bytes, inode."""


def folders_of(target: str, here: Path) -> list[Path]:
    """What to watch for MODULE:APP: the current folder, and the folder of the module or file where that lies elsewhere.

    Imports nothing.
    """
    where = target.rpartition(":")[0] or target
    if where.endswith(".py") or "/" in where:
        home: Path | None = (here / where).parent
    else:
        home = _home_of(where.partition(".")[0], here)
    here = here.resolve()
    if home is None or not home.is_dir() or home.resolve().is_relative_to(here):
        return [here]
    home = home.resolve()
    return [home] if here.is_relative_to(home) else [here, home]


def _home_of(package: str, here: Path) -> Path | None:
    spec = PathFinder.find_spec(package, [str(here), *sys.path])
    if spec is None:
        return None
    found = next(iter(spec.submodule_search_locations or ()), None) or (spec.origin and os.path.dirname(spec.origin))
    # What is installed is not being worked on.
    return Path(found) if found and SKIPPED.isdisjoint(Path(found).parts) else None


def snapshot(folders: Sequence[Path]) -> dict[str, Stamp]:
    """Every Python file below the folders, without what is hidden or installed and virtual environments. Follows no link to a folder."""
    found: dict[str, Stamp] = {}
    left = [(str(folder), True) for folder in folders]
    while left:
        folder, is_top = left.pop()
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError:
            continue  # gone, or not ours to read
        if not is_top and any(entry.name == "pyvenv.cfg" for entry in inside):
            continue
        for entry in inside:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    left.append((entry.path, False))
                elif entry.name.endswith(".py"):
                    stat = entry.stat()
                    found[entry.path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            except OSError:
                continue  # gone meanwhile
    return found


async def watch(
    folders: Sequence[Path],
    tell: Callable[[Sequence[Path]], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``tell`` with the files that were changed, added or removed, each time; what counts is what was there at the start."""
    before, cost = await _look(folders)
    task_status.started()
    while True:
        await trio.sleep(max(POLL_SECONDS, cost / SHARE))
        now, cost = await _look(folders)
        if now == before:
            continue
        for _ in range(MAX_SETTLE_ROUNDS):
            await trio.sleep(SETTLE_SECONDS)
            last, (now, _) = now, await _look(folders)
            if now == last:
                break
        changed = _differing(before, now)
        before = now
        if changed:
            tell(changed)


def summary(paths: Sequence[Path], here: Path) -> str:
    """Which files changed, in a few words."""
    names = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths[:NAMED]]
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{', '.join(names)}{more} changed"


async def _look(folders: Sequence[Path]) -> tuple[dict[str, Stamp], float]:
    began = time.perf_counter()
    found = await trio.to_thread.run_sync(snapshot, folders, abandon_on_cancel=True)
    return found, time.perf_counter() - began


def _differing(before: Mapping[str, Stamp], now: Mapping[str, Stamp]) -> list[Path]:
    return sorted(Path(name) for name in before.keys() | now.keys() if before.get(name) != now.get(name))
