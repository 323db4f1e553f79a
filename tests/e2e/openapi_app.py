"""The app that schemathesis asks: handlers of every kind of type, of every method, that succeed, fail, wait and make things.

``OPENAPI_HOOKS=on`` in the environment gives it callers and rights, ``OPENAPI_QUEUE`` and ``OPENAPI_SLOTS`` bound what waits and runs. The
pydantic model is strict: in its lax mode it takes more than its schema says.
"""

import dataclasses
import datetime
import decimal
import enum
import os
import uuid
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import trio
from quart_trio import QuartTrio

from callboard.runtime import Config, Job, JobContext, JobFailed, Retry, ThreadJobContext
from callboard.web import Callboard

__all__ = ["app", "board"]

HOOKS = os.environ.get("OPENAPI_HOOKS") == "on"


def identify(request: Any) -> str | None:
    name: str | None = request.headers.get("X-Caller")
    return name


def authorize(request: Any, action: str, job: Job | None) -> bool:
    if request.headers.get("X-Caller") == "guest":
        return action in ("read", "list")
    return job is None or job.owner == request.headers.get("X-Caller")


app = QuartTrio(__name__)
board = Callboard(
    app,
    config=Config(
        max_concurrent_jobs=int(os.environ.get("OPENAPI_SLOTS", "100")),
        max_queue_size=int(os.environ.get("OPENAPI_QUEUE", "10000")),
        retry_base_seconds=0.01,
        max_body_bytes=20_000,
        max_wait_seconds=0.2,
        drain_seconds=1,
    ),
    identify=identify if HOOKS else None,
    authorize=authorize if HOOKS else None,
)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Part(msgspec.Struct, rename="camel"):
    part_name: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    how_many: Annotated[int, msgspec.Meta(ge=1, le=99)] = 1
    size: Size = Size.SMALL
    inner: "list[Part]" = []


class Cat(msgspec.Struct, tag_field="kind", tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag_field="kind", tag="dog"):
    name: str


@dataclasses.dataclass
class Point:
    x: int
    y: float
    label: str | None = None


class Address(TypedDict):
    street: str
    number: int


class Wall(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    colour: Literal["red", "green"]
    coats: int = pydantic.Field(default=1, ge=1, le=5)
    notes: list[str] = []


@board.post("/api/parts", name="Part", allow_delay=True, allow_timeout=True, allow_priority=True, timeout_seconds=60)
async def part(job: JobContext, body: Part) -> Part:
    """Make a part.

    The part is given back as it came.
    """
    await job.progress(50, "half", {"of": body.part_name})
    job.log("info", "made")
    return body


@board.put("/api/points/<int:number>/<word>", name="Point", queue="points")
async def point(job: JobContext, body: Point) -> float:
    """Measure a point."""
    return body.x + body.y


@board.patch("/api/points/<int(max=99):number>/<string(maxlength=5):term>", name="Move", max_retries=1)
async def move(job: JobContext, body: Address) -> dict[str, int]:
    raise JobFailed("NO_WAY", "There is no way.", retryable=job.attempt == 1)


@board.delete("/api/points/<uuid:which>", name="Remove", max_retries=0)
async def remove(job: JobContext) -> None:
    """Remove a point."""


@board.post("/api/walls/<any(north, south):side>", name="Wall.paint")
def wall(job: ThreadJobContext, body: Wall) -> Wall:
    """Paint a wall in a thread."""
    return body


@board.post("/api/pets", name="Pets", location=lambda job, result: f"/pets/{len(result)}", redirect=True)
async def pets(job: JobContext, body: list[Cat | Dog]) -> list[Cat | Dog]:
    return body


@board.post("/api/odd/<path:rest>", name="odd name / with ümlaut")
async def odd(job: JobContext, body: dict[str, int | str | None]) -> Any:
    return body


@board.post("/api/scale/<float:ratio>/<string(length=2):code>", name="Scale")
async def scale(job: JobContext, body: tuple[int, bool]) -> float:
    return float(job.route_params["ratio"])


@board.put("/api/crash", name="Crash", max_retries=1)
async def crash(job: JobContext, body: Any) -> int:
    raise ValueError("the password is tiger")


@board.post("/api/later", name="Later", max_retries=1)
async def later(job: JobContext) -> str:
    """Take a while, and a second attempt."""
    if job.attempt == 1:
        raise Retry(after_seconds=0.05)
    await trio.sleep(0.05)
    return "late"


@board.post("/api/endless", name="Endless", allow_timeout=True)
async def endless(job: JobContext) -> None:
    """Run until it is canceled."""
    await trio.sleep_forever()


@board.patch("/api/stamps", name="Stamps")
async def stamps(job: JobContext, body: dict[str, uuid.UUID | bool]) -> dict[str, datetime.datetime | decimal.Decimal]:
    return {"at": datetime.datetime.now(datetime.UTC)}


@board.delete("/api/numbers/<int(signed=True):number>/<int(fixed_digits=3):code>", name="Numbers")
async def numbers(job: JobContext) -> int:
    number: int = job.route_params["number"]
    return number
