"""The job routes under the prefix: read, wait, list, steer, health. ``mounting`` knows those that lie elsewhere.

Each view is one request: right, parameters, one call of the runtime, answer.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from quart import Response, request
from werkzeug.datastructures import ETags
from werkzeug.http import parse_etags

from callboard.runtime.core.errors import InvalidRequest
from callboard.runtime.core.job import Job, Status
from callboard.runtime.core.store import JobFilter
from callboard.web import parsing
from callboard.web.access import Action
from callboard.web.answers import bare_answer, job_answer, json_answer, json_bytes, place_of, poll_after_seconds
from callboard.web.cursors import seal, unseal
from callboard.web.lookup import permitted_job
from callboard.web.pages import full_page
from callboard.web.problems import Refusal
from callboard.web.render import Place, entity_tag, expires, job_document, job_fields, job_location
from callboard.web.responses import StatusResponse, shaped

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["JobRoutes", "Route"]

CACHE: Final = "private, no-cache"


class Route(Struct, frozen=True):
    """One job route; ``path`` is what follows the prefix."""

    method: str
    path: str
    view: Callable[..., Awaitable[Any]]


class JobRoutes:
    """The views of one board."""

    def __init__(self, board: "Callboard") -> None:
        self._board = board

    def routes(self) -> list[Route]:
        """The routes of these views."""
        return [
            Route("GET", "", self.list),
            Route("GET", "/<job_id>", self.read),
            Route("DELETE", "/<job_id>", self.delete),
            Route("GET", "/<job_id>/result", self.result),
            Route("POST", "/<job_id>/cancel", self.cancel),
            Route("POST", "/<job_id>/retry", self.retry),
            Route("GET", "/health/live", self.live),
            Route("GET", "/health/ready", self.ready),
        ]

    async def read(self, job_id: str) -> Response:
        """The document; held by ``wait``, 304 by ``If-None-Match``, 303 by ``redirect``."""
        redirect = parsing.flag(_parameter("redirect"), "redirect")
        wait = self._wait_seconds()
        job = await self._job(job_id, "read")
        if wait is not None:
            job = await self._held(job, wait)
        if redirect is None:
            redirect = self._board.redirects(job.name)
        place = place_of(request, self._board.prefix)
        location = job_location(job, place)
        if redirect and location is not None and job.status is Status.COMPLETED:
            return self._see_other(location)
        return await self._shown(job, self._document(job, place, waited=wait is not None))

    async def result(self, job_id: str) -> Response:
        """The bare result of a completed job."""
        job = await self._job(job_id, "read")
        match job.status:
            case Status.COMPLETED:
                return json_answer(bytes(job.result), headers={"Cache-Control": CACHE})
            case Status.FAILED:
                detail = "The job failed; error says why."
                raise Refusal(422, "job-failed", detail, title="The job failed", members={"error": job.error})
            case Status.CANCELED:
                raise Refusal(
                    410, "job-canceled", "The job was canceled and has no result.", title="The job was canceled"
                )
            case _:
                later = {"Retry-After": str(poll_after_seconds(job))}
                detail = f"The job is {job.status.value} and has no result yet."
                raise Refusal(409, "job-not-ended", detail, title="The job has not ended", headers=later)

    async def list(self) -> Response:
        """A page of the jobs that the caller may see, newest first."""
        await self._board.access.require(request, "list")
        where = JobFilter(
            statuses=parsing.statuses(request.args.getlist("status")),
            name=_parameter("name"),
            queue=_parameter("queue"),
            owner=await self._board.access.owner(request),
        )
        text = _parameter("limit")
        limit = parsing.DEFAULT_LIMIT if text is None else parsing.limit(text)
        sealed = _parameter("cursor")
        try:
            page = await full_page(
                lambda cursor, count: self._board.runtime.list(where, cursor=cursor, limit=count),
                lambda job: self._board.access.allows(request, "read", job),
                cursor=None if sealed is None else unseal(sealed),
                limit=limit,
            )
        except ValueError:
            raise InvalidRequest("cursor is none that this list gave: begin again without it") from None
        place = place_of(request, self._board.prefix)
        body = {
            "jobs": [job_fields(job, place) for job in page.jobs],
            "next": None if page.next is None else seal(page.next),
        }
        return json_answer(json_bytes(body), headers={"Cache-Control": CACHE})

    async def delete(self, job_id: str) -> Response:
        """Cancel, or with ``purge=true`` remove an ended job."""
        if not parsing.flag(_parameter("purge"), "purge"):
            return await self.cancel(job_id)
        job = await self._job(job_id, "purge")
        await self._board.runtime.purge(job.id)
        return bare_answer(204)

    async def cancel(self, job_id: str) -> Response:
        """Ask for the end of a job; ``Prefer: wait`` waits for it."""
        job = await self._job(job_id, "cancel")
        job = await self._board.runtime.cancel(job.id)
        wait = self._preferred_wait()
        headers = {}
        if not job.status.is_terminal and wait is not None:
            job = await self._board.runtime.wait(job.id, timeout_seconds=wait)
            if job.status.is_terminal:
                headers["Preference-Applied"] = "wait"
        status = 200 if job.status.is_terminal else 202
        return await self._shown(job, job_answer(job, place_of(request, self._board.prefix), status, headers))

    async def retry(self, job_id: str) -> Response:
        """Run an ended job again."""
        job = await self._job(job_id, "retry")
        queued = await self._board.runtime.retry(job.id)
        place = place_of(request, self._board.prefix)
        return await self._shown(queued, job_answer(queued, place, 202, {"Location": place.job(job.id)}))

    async def live(self) -> Response:
        """Whether the process is worth keeping: false once the runtime has died."""
        self._board.check_alive()
        return self._healthy("live")

    async def ready(self) -> Response:
        """Whether work can be sent here now."""
        self._board.check_staying()
        await self._board.runtime.check()
        return self._healthy("ready")

    def _healthy(self, status: str) -> Response:
        return json_answer(json_bytes({"status": status, "role": self._board.role}))

    async def _job(self, job_id: str, action: Action) -> Job:
        return await permitted_job(self._board, request, job_id, action)

    async def _held(self, job: Job, wait_seconds: float) -> Job:
        tags = _tags()
        since = None
        if tags:
            if not tags.contains_weak(entity_tag(job)):
                return job
            since = job.seq
        held = await self._board.runtime.wait(job.id, timeout_seconds=wait_seconds, changed_since=since)
        if held.serial != job.serial:
            # Another job took the id meanwhile.
            await self._board.access.require(request, "read", held)
        return held

    def _wait_seconds(self) -> float | None:
        text = _parameter("wait")
        return self._preferred_wait() if text is None else self._capped(parsing.seconds(text, "wait"))

    def _preferred_wait(self) -> float | None:
        wait = parsing.preferred_wait(request.headers.getlist("Prefer"))
        return None if wait is None else self._capped(wait)

    def _capped(self, seconds: float) -> float:
        return min(seconds, self._board.runtime.config.max_wait_seconds)

    def _document(self, job: Job, place: Place, *, waited: bool) -> Response:
        tag = entity_tag(job)
        if _tags().contains_weak(tag):
            response = bare_answer(304)
            if not job.status.is_terminal:
                response.headers["Retry-After"] = str(poll_after_seconds(job))
        else:
            response = job_answer(job, place)
        if waited and "Prefer" in request.headers and "wait" not in request.args:
            response.headers["Preference-Applied"] = "wait"
        response.headers["ETag"] = f'"{tag}"'
        response.headers["Cache-Control"] = CACHE
        gone = expires(job, self._board.runtime.config.retention_seconds)
        if gone is not None:
            response.headers["Expires"] = gone
        return response

    async def _shown(self, job: Job, answer: Response) -> Response:
        """The answer with a job's document, in the form of the app's own where it has one."""
        form = self._board.status_form(job.name)
        if form is None or answer.status_code == 304:
            return answer
        record = StatusResponse(
            job=job,
            document=job_document(job, place_of(request, self._board.prefix)),
            status=answer.status_code,
            headers=dict(answer.headers),
            request=request._get_current_object(),  # type: ignore[attr-defined]
        )
        return await shaped(form, record, answer)

    def _see_other(self, location: str) -> Response:
        return bare_answer(303, {"Location": location, "Cache-Control": CACHE})


def _parameter(name: str) -> str | None:
    return parsing.single(request.args.getlist(name), name)


def _tags() -> ETags:
    # Several lines of a header are one list. Source: RFC 9110, section 5.3.
    return parse_etags(", ".join(request.headers.getlist("If-None-Match")))
