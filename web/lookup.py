"""The job that a request or a message names, for a caller who may: the one way from an id to a job on every route and socket."""

from typing import TYPE_CHECKING

from quart.wrappers.base import BaseRequestWebsocket

from callboard.runtime.core.job import Job
from callboard.web.access import Action

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["permitted_job"]


async def permitted_job(board: "Callboard", source: BaseRequestWebsocket, job_id: str, action: Action) -> Job:
    """The job of that id, which may be any text. Raises JobNotFound where there is none or the caller may not read it, Refusal (403)
    where he may read it and not do ``action``.
    """
    job = await board.runtime.get(job_id)
    await board.access.require(source, action, job)
    return job
