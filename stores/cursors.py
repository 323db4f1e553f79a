"""Cursors as text: of pages (``b`` and a serial) and of news (``n`` and a position). Opaque to whoever holds one."""

import re
from typing import Final

__all__ = ["news_cursor", "page_cursor", "read_news_cursor", "read_page_cursor"]

_PAGE: Final = re.compile(r"b([1-9][0-9]{0,18})")
_NEWS: Final = re.compile(r"n(0|[1-9][0-9]{0,18})")
_MAX_INTEGER: Final = 2**63 - 1
"""What SQLite and Redis hold."""


def page_cursor(serial: int) -> str:
    """The cursor of the page that begins below ``serial``."""
    return f"b{serial}"


def read_page_cursor(cursor: str | None) -> int:
    """The serial below which the page begins; for None above all. Raises ValueError for anything else."""
    return _MAX_INTEGER if cursor is None else _number(_PAGE, cursor)


def news_cursor(position: int) -> str:
    """The cursor of someone who has seen everything up to ``position``."""
    return f"n{position}"


def read_news_cursor(cursor: str) -> int:
    """The position of ``news_cursor``. Raises ValueError for anything else."""
    return _number(_NEWS, cursor)


def _number(pattern: re.Pattern[str], cursor: str) -> int:
    found = pattern.fullmatch(cursor)
    if found is None or int(found[1]) > _MAX_INTEGER:
        raise ValueError("not a cursor of this store: leave it out to begin at the start")
    return int(found[1])
