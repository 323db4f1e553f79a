"""Cursors as text: of pages (``b`` and a serial) and of news (``n``, a position among the events and one among the changes of queues).

Opaque to whoever holds one.
"""

import re
from typing import Final

__all__ = ["news_cursor", "page_cursor", "read_news_cursor", "read_page_cursor"]

_PAGE: Final = re.compile(r"b([1-9][0-9]{0,18})")
_NEWS: Final = re.compile(r"n(0|[1-9][0-9]{0,18})\.(0|[1-9][0-9]{0,18})")
_MAX_INTEGER: Final = 2**63 - 1
"""What SQLite and Redis hold."""


def page_cursor(serial: int) -> str:
    """The cursor of the page that begins below ``serial``."""
    return f"b{serial}"


def read_page_cursor(cursor: str | None) -> int:
    """The serial below which the page begins; for None above all. Raises ValueError for anything else."""
    return _MAX_INTEGER if cursor is None else _numbers(_PAGE, cursor)[0]


def news_cursor(position: int, queues: int) -> str:
    """The cursor of someone who has seen the events up to ``position`` and the changes of queues up to ``queues``."""
    return f"n{position}.{queues}"


def read_news_cursor(cursor: str) -> tuple[int, int]:
    """The positions of ``news_cursor``. Raises ValueError for anything else."""
    position, queues = _numbers(_NEWS, cursor)
    return position, queues


def _numbers(pattern: re.Pattern[str], cursor: str) -> list[int]:
    found = pattern.fullmatch(cursor)
    if found is None or any(int(number) > _MAX_INTEGER for number in found.groups()):
        raise ValueError("not a cursor of this store: leave it out to begin at the start")
    return [int(number) for number in found.groups()]
