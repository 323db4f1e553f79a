"""The app of ``app.py`` in two versions, as a deploy would bring them; ``E2E_VERSION`` says which: A, or B that follows it.

Version B has a new handler, lacks an old one, and has changed the queue, the options and the body's type of others.
"""

import os

import trio
from app import app, board, noted  # type: ignore[import-not-found]
from msgspec import Struct

from callboard.runtime import JobContext

__all__ = ["app"]

IS_B = os.environ["E2E_VERSION"] == "B"


class Small(Struct):
    """What version A knows of a body."""

    seconds: float = 0


class Grown(Small):
    """Version B's: what is new has a default."""

    times: int = 1


def add(name: str, body: type[Small] = Small, **options: object) -> None:
    """A handler that says which version ran it."""

    async def run(job: JobContext, body: body) -> dict[str, object]:  # type: ignore[valid-type]
        async with noted(job):
            await trio.sleep(body.seconds * getattr(body, "times", 1))  # type: ignore[attr-defined]
            return {"version": os.environ["E2E_VERSION"]}

    run.__annotations__["body"] = body
    board.post(f"/run/{name}", name=name, **options)(run)


if IS_B:
    add("new")
    add("moved", queue="mail", old_queues=("old",))
    add("grown", Grown, max_retries=7, timeout_seconds=20)
else:
    add("gone")
    add("moved", queue="old")
    add("grown")
