"""A newer app that declares another type than a job was stored with: the job fails, and stays there to be tried again."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pydantic
import pytest
import trio
from quart_trio import QuartTrio
from tests.web.workshop import CONFIG, Gates, Site, frames, run_site

from callboard.runtime import JobContext, ProcessJobContext
from callboard.web import Callboard

BODY = {"article": "tea", "pieces": "rather-many", "colour": "secret-red", "note": None}


class First(msgspec.Struct):
    article: str
    pieces: str
    colour: str
    note: str | None


class Strict(msgspec.Struct):
    article: str
    pieces: int
    colour: str


class Coloured(msgspec.Struct):
    colour: Literal["blue", "green"]


class Demanding(msgspec.Struct):
    article: str
    address: str


class Model(pydantic.BaseModel):
    article: str
    pieces: int
    colour: Literal["blue", "green"]
    address: str


class Clumsy(msgspec.Struct):
    article: str

    def __post_init__(self) -> None:
        raise KeyError(self.article)


async def first(job: JobContext, body: First) -> None: ...
async def strict(job: JobContext, body: Strict) -> None: ...
async def coloured(job: JobContext, body: Coloured) -> None: ...
async def demanding(job: JobContext, body: Demanding) -> None: ...
async def model(job: JobContext, body: Model) -> None: ...
async def clumsy(job: JobContext, body: Clumsy) -> None: ...
async def listed(job: JobContext, body: list[int]) -> None: ...
def in_process(job: ProcessJobContext, body: Strict) -> None: ...
async def fitting(job: JobContext, body: dict[str, Any]) -> dict[str, Any]:
    return body


def generation(handler: Callable[..., Any]) -> Callable[[Callboard, Gates], QuartTrio]:
    """An app whose handler of that name is this one."""

    def make(board: Callboard, _: Gates) -> QuartTrio:
        app = QuartTrio("shop")
        board.init_app(app)
        board.post("/api/orders", name="Order", process=handler is in_process)(handler)
        return app

    return make


class Shop:
    """One SQLite file, and one generation of the app after another on it."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self._url = f"sqlite:///{folder}/jobs.db"
        self._nursery = nursery
        self._site: Site | None = None

    async def deploy(self, handler: Callable[..., Any], *, works: bool = True) -> Site:
        await self.close()
        config = msgspec.structs.replace(CONFIG, max_concurrent_jobs=5 if works else 0)
        site: Site = await self._nursery.start(run_site, Callboard(store=self._url, config=config), generation(handler))
        self._site = site
        return site

    async def close(self) -> None:
        if self._site is not None:
            life = self._site.board._life
            assert life is not None
            self._site.stop.set()
            await life.finished.wait()
            await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("misfit", "told", "untold"),
    [
        (strict, ["/pieces: Expected `int`, got `str`"], []),
        (coloured, ["/colour"], []),
        (demanding, ["the whole body: Object missing required field `address`"], []),
        (model, ["/pieces", "/colour", "/address: Field required"], []),
        (clumsy, ["KeyError"], ["tea"]),
        (listed, ["the whole body: Expected `array`, got `object`"], []),
        (in_process, ["/pieces: Expected `int`, got `str`"], []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_job_outlives_an_app_that_it_does_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, misfit: Any, told: list[str], untold: list[str]
) -> None:
    async with trio.open_nursery() as nursery:
        shop = Shop(tmp_path, nursery)
        site = await shop.deploy(first, works=False)
        job_id = (await site.submit(body=BODY))["id"]

        site = await shop.deploy(misfit)
        job = await site.ended(job_id)
        assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("Failed", "PAYLOAD_MISMATCH", False)
        assert (job["attempt"], job["retryCount"], job["result"]) == (1, 0, None)
        assert "rather" not in str(job) and "secret" not in str(job)
        (listed,) = (await site.http.get("/jobs?status=Failed")).json()["jobs"]
        assert listed == job
        async with site.socket(f"/jobs/{job_id}/stream") as socket:
            (snapshot,) = await frames(socket)
        assert (snapshot["type"], snapshot["job"]["error"]) == ("snapshot", job["error"])

        assert (await site.http.post(f"/jobs/{job_id}/retry")).status_code == 202
        again = await site.ended(job_id)
        assert (again["status"], again["error"], again["attempt"]) == ("Failed", job["error"], 2)

        text = "\n".join(
            logging.Formatter().format(record) for record in caplog.records if record.name == "callboard.jobs"
        )
        assert all(part in text for part in told), text
        assert not any(value in text for value in ("rather-many", "secret-red", *untold)), text

        site = await shop.deploy(fitting)
        assert (await site.http.get(f"/jobs/{job_id}")).json() == again
        assert (await site.http.post(f"/jobs/{job_id}/retry")).status_code == 202
        done = await site.ended(job_id)
        assert (done["status"], done["result"], done["error"], done["attempt"]) == ("Completed", BODY, None, 3)
        await shop.close()
