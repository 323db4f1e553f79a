"""Registration: what a handler may look like, and every refusal with what to change."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, TypeVar

import msgspec
import pydantic
import pytest

from callboard.runtime import ConfigError, HandlerError, Handlers, JobContext, ThreadJobContext
from callboard.runtime.handlers import NO_BODY, make_handler


class Body(msgspec.Struct):
    a: int


class Other(msgspec.Struct):
    b: int


class Model(pydantic.BaseModel):
    a: int


async def bare(job: JobContext) -> None: ...


async def with_body(job: JobContext, body: Body) -> int:
    return body.a


def plain(job: Any, body: dict[str, int]) -> str:
    return ""


class Callable:
    async def __call__(self, job: JobContext, body: Body) -> None: ...

    async def method(self, job: JobContext, body: Model) -> None: ...


@pytest.mark.parametrize(
    ("function", "runs_in", "request_type", "result_type"),
    [
        (bare, "task", NO_BODY, type(None)),
        (with_body, "task", Body, int),
        (plain, "thread", dict[str, int], str),
        (Callable(), "task", Body, type(None)),
        (Callable().method, "task", Model, type(None)),
        (lambda job: 5, "thread", NO_BODY, Any),
    ],
    ids=["bare", "body", "plain", "callable object", "method", "lambda"],
)
def test_what_the_signature_says(function: Any, runs_in: str, request_type: Any, result_type: Any) -> None:
    made = make_handler("x", function)
    assert (made.runs_in, made.request_type, made.result_type) == (runs_in, request_type, result_type)
    assert made.takes_body is (request_type is not NO_BODY)


def no_parameters() -> None: ...
def three(job: Any, body: Body, more: int) -> None: ...
def keyword(job: Any, *, body: Body) -> None: ...
def untyped(job: Any, body) -> None: ...  # type: ignore[no-untyped-def]
def strange(job: Any, body: Body | Other) -> None: ...
def unknown(job: Any, body: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def generator(job: Any) -> Any:
    yield


async def async_generator(job: Any) -> Any:
    yield


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_parameters, r"must take \(job\) or \(job, request\), not \(\) -> None"),
        (three, r"must take \(job\) or \(job, request\)"),
        (keyword, r"must take \(job\) or \(job, request\)"),
        (untyped, "annotate 'body' with the type of the body"),
        (functools.partial(with_body), "annotate 'body'"),
        (strange, "a body cannot be of type"),
        (unknown, "an annotation cannot be read: name 'Nowhere' is not defined; define the type at module level"),
        (generator, "is a generator: return the result instead of yielding"),
        (async_generator, "is a generator"),
        (5, "is no function"),
        (dict, "has no signature that can be read"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:20],
)
def test_signature_that_does_not_fit(function: Any, message: str) -> None:
    with pytest.raises(HandlerError, match=message) as caught:
        make_handler("x", function)
    assert isinstance(caught.value, ConfigError)
    assert "'x'" in str(caught.value)


class Money:
    """No type that JSON can be decoded to."""


class Tree(msgspec.Struct):
    children: list["Tree"]
    default: int = 1


class Priced(msgspec.Struct):
    prices: dict[str, tuple[int, Money]]


class Torn(msgspec.Struct):
    part: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


@dataclass
class Wrapped:
    model: Model | None


class Typed(TypedDict):
    models: list[Model]


class Reporter(Protocol):
    def log(self, level: Any, message: str) -> None: ...


J = TypeVar("J", bound=JobContext)


@pytest.mark.parametrize("kind", [Any, object, JobContext, JobContext | ThreadJobContext, Reporter, J, "JobContext"])
def test_a_first_parameter_that_may_be_the_job(kind: Any) -> None:
    async def handler(job: Any, body: Tree) -> None: ...

    handler.__annotations__["job"] = kind
    assert make_handler("x", handler).request_type is Tree


@pytest.mark.parametrize("kind", [Body, dict[str, int], int, Body | Other, None])
@pytest.mark.parametrize("takes_body", [True, False])
def test_a_first_parameter_that_cannot_be_the_job(kind: Any, takes_body: bool) -> None:
    async def with_one(job: Any) -> None: ...

    async def with_two(job: Any, body: Body) -> None: ...

    function = with_two if takes_body else with_one
    function.__annotations__["job"] = kind
    with pytest.raises(HandlerError, match=r"'job' is the job and cannot be .*: take \(job: JobContext\) or"):
        make_handler("x", function)


@pytest.mark.parametrize("kind", [JobContext, ThreadJobContext])
def test_a_body_and_a_job_that_are_swapped(kind: Any) -> None:
    def handler(body: Any, job: Any) -> None: ...

    handler.__annotations__["job"] = kind
    with pytest.raises(HandlerError, match="the job is the first parameter and the body the second"):
        make_handler("x", handler)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Money, "cannot hold .*Money.*: make it a msgspec.Struct"),
        (Priced, "cannot hold .*Money"),
        (list[Money | None], "cannot hold .*Money"),
        (list[Model], "cannot hold .*Model.*: a pydantic model can be the whole body only"),
        (Model | None, "a pydantic model can be the whole body only"),
        (Wrapped, "a pydantic model can be the whole body only"),
        (Typed, "a pydantic model can be the whole body only"),
        (Torn, "a body cannot be of type .*Torn.*: .*Nowhere"),
        ("1 / 0", "an annotation cannot be read: division by zero"),
        ("list[", "an annotation cannot be read"),
    ],
    ids=str,
)
def test_a_body_that_json_cannot_be_decoded_to(kind: Any, message: str) -> None:
    async def handler(job: JobContext, body: Any) -> None: ...

    handler.__annotations__["body"] = kind
    with pytest.raises(HandlerError, match=message):
        make_handler("x", handler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": -1}, "max_retries is -1: give a whole number, 0 or more"),
        ({"max_retries": 1.5}, "max_retries is 1.5"),
        ({"max_retries": True}, "max_retries is True"),
        ({"max_lost_leases": -1}, "max_lost_leases is -1"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0: give seconds, more than 0 and at most 1e"),
        ({"timeout_seconds": "5"}, "timeout_seconds is '5'"),
        ({"timeout_seconds": True}, "timeout_seconds is True"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds is nan"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds is inf"),
        ({"priority": 1001}, "the priority is 1001: give a whole number from -1000 to 1000"),
        ({"priority": 0.5}, "the priority is 0.5"),
        ({"queue": ""}, "queue is '': give a text of 1 to 200 characters"),
        ({"queue": 5}, "queue is 5"),
        ({"queue": "x" * 201}, "queue is 'xxx"),
        ({"retry_on": ValueError}, "retry_on is <class 'ValueError'>: give a tuple of exception classes"),
        ({"retry_on": (5,)}, "retry_on is"),
        ({"no_retry_on": [ValueError]}, "no_retry_on is"),
        ({"no_retry_on": (int,)}, "no_retry_on is"),
        ({"location": "/things"}, r"location is '/things': give a function of \(job, result\)"),
        ({"nonsense": 1}, "nonsense"),
    ],
    ids=str,
)
def test_option_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HandlerError, match=message):
        make_handler("x", bare, **options)


@pytest.mark.parametrize("name", ["", "x" * 201, 5, None])
def test_name_that_cannot_be_meant(name: Any) -> None:
    with pytest.raises(HandlerError, match="give a text of 1 to 200 characters"):
        make_handler(name, bare)


def test_registry() -> None:
    handlers = Handlers()

    @handlers.handler("one", queue="a")
    async def one(job: JobContext) -> None: ...

    @handlers.handler("two", queue="b")
    async def two(job: JobContext) -> None: ...

    handlers.handler("three", queue="a")(two)
    assert handlers.names == ("one", "two", "three")
    assert handlers.queues == ("a", "b")
    assert len(handlers) == len(list(handlers)) == 3
    found = handlers.get("one")
    assert found is not None
    assert found.function is one
    assert handlers.get("four") is None
    assert Handlers(handlers).names == handlers.names


def test_name_that_is_taken() -> None:
    handlers = Handlers([make_handler("x", bare)])
    with pytest.raises(HandlerError, match="a handler named 'x' is registered already: give each its own name"):
        handlers.handler("x")(with_body)
    found = handlers.get("x")
    assert found is not None
    assert found.function is bare
