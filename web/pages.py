"""Pages of a list for callers who may not read every job of it. Reads on until a page is full; owns no route and no right.

A store's cursor says where the store stopped to read. So a page always ends there: what was looked at and not given is nothing
but what the caller may not read, and pages neither skip nor repeat, whatever is stored or purged meanwhile.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from callboard.runtime.core.job import Job
from callboard.runtime.core.store import Page

__all__ = ["MAX_LOOKED_AT", "full_page"]

MAX_LOOKED_AT: Final = 1000
"""Jobs looked at for one page: past it the page is given as it is, with where to go on."""


async def full_page(
    read: Callable[[str | None, int], Awaitable[Page]],
    may_read: Callable[[Job], Awaitable[bool]],
    *,
    cursor: str | None,
    limit: int,
) -> Page:
    """Up to ``limit`` jobs that ``may_read`` lets pass; ``read(cursor, limit)`` gives the store's pages. Raises what they raise."""
    seen: list[Job] = []
    count, looked_at = limit, 0
    while True:
        page = await read(cursor, count)
        allowed = [job for job in page.jobs if await may_read(job)]
        looked_at += len(page.jobs)
        missing = limit - len(seen)
        if len(allowed) > missing:
            # Read again, up to the job that fills the page and no further.
            count = page.jobs.index(allowed[missing - 1]) + 1
            continue
        seen += allowed
        cursor, count = page.next, limit
        if cursor is None or len(seen) == limit or looked_at >= MAX_LOOKED_AT:
            return Page(tuple(seen), cursor)
