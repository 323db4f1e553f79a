"""The OpenAPI document: valid for every kind of app, true in its examples, complete in its paths and in what each may answer."""

import dataclasses
import datetime
import decimal
import functools
import typing
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import msgspec
import pydantic
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from quart_trio import QuartTrio
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from tests.web.conftest import OpenSite
from tests.web.workshop import Gates, Site, make_site_app
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from callboard.runtime import JobContext
from callboard.web import Callboard
from callboard.web.limits import ENDPOINT_PREFIX
from callboard.web.openapi import App, openapi_document
from callboard.web.openapi_paths import template
from callboard.web.openapi_schemas import Components
from callboard.web.responses import Responses

Document = dict[str, Any]


def follow(document: Document, node: Any) -> Any:
    """``node``, or what it refers to."""
    while isinstance(node, dict) and "$ref" in node:
        found: Any = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        node = found
    return node


def misfits(document: Document, schema: Any, value: Any) -> list[str]:
    """What is wrong with a value by a schema of the document."""
    registry: Registry[Any] = Registry().with_resource("urn:doc", DRAFT202012.create_resource(document))
    absolute = msgspec.json.decode(msgspec.json.encode(schema).replace(b'"#/', b'"urn:doc#/'))
    checker = Draft202012Validator.FORMAT_CHECKER
    return [
        error.message
        for error in Draft202012Validator(absolute, registry=registry, format_checker=checker).iter_errors(value)
    ]


def operations(document: Document) -> Iterator[tuple[str, str, Any]]:
    for path, found in document["paths"].items():
        for method, operation in found.items():
            yield method, path, operation


def check(document: Document) -> None:
    """The document is valid, and so are its examples; nothing lets everything through, and every link leads somewhere."""
    validate(document, cls=OpenAPIV31SpecValidator)
    identifiers = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(identifiers)) == len(identifiers)
    examples = 0
    for _, path, operation in operations(document):
        assert operation["tags"][0] in {tag["name"] for tag in document["tags"]}
        named = {
            follow(document, one)["name"] for one in operation["parameters"] if follow(document, one)["in"] == "path"
        }
        assert named == {part.partition("}")[0] for part in path.split("{")[1:]}
        for status, response in operation["responses"].items():
            assert status.isdecimal()
            answer = follow(document, response)
            for media in answer.get("content", {}).values():
                listed = [one["value"] for one in media.get("examples", {}).values()]
                for example in [*listed, *([media["example"]] if "example" in media else [])]:
                    assert misfits(document, media["schema"], example) == [], (path, status)
                    examples += 1
            for header in map(functools.partial(follow, document), answer.get("headers", {}).values()):
                assert misfits(document, header["schema"], header["example"]) == []
            for link in map(functools.partial(follow, document), answer.get("links", {}).values()):
                assert link["operationId"] in identifiers
    assert examples > 20
    for parameter in document["components"]["parameters"].values():
        assert "example" not in parameter or misfits(document, parameter["schema"], parameter["example"]) == []


# Types


class Tree(msgspec.Struct):
    """Holds itself."""

    leaf: int
    below: "list[Tree]" = []


class Item(msgspec.Struct, tag=True):
    pieces: int


class Box(msgspec.Struct, tag=True, rename="camel"):
    many_items: list[Item]


@dataclasses.dataclass
class Part:
    number: int
    made: datetime.date | None = None


class Place(typing.TypedDict, total=False):
    street: typing.Required[str]
    number: int


class Pair(typing.NamedTuple):
    left: int
    right: str


class Inner(pydantic.BaseModel):
    depth: int = 1


class Model(pydantic.BaseModel):
    inner: Inner
    nested: "Model | None" = None
    name: str = pydantic.Field(alias="theName")


class Shapeless(pydantic.BaseModel):
    """Can be read, and has no JSON Schema."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    call: Callable[[], int] | None = None


class Opaque:
    """Msgspec cannot encode this."""


KINDS: list[Any] = [
    *(
        int,
        float,
        str,
        bool,
        bytes,
        dict,
        list,
        Any,
        dict[str, int],
        list[str | None],
        int | None,
        tuple[int, str],
        set[int],
    ),
    *(datetime.datetime, datetime.timedelta, decimal.Decimal, uuid.UUID, typing.Literal["a", 1], msgspec.Raw),
    *(
        Tree,
        Item | Box,
        list[Box],
        Part,
        Place,
        Pair,
        Model,
        Inner,
        typing.Annotated[int, msgspec.Meta(ge=1, title="n")],
    ),
]


def app_of(kinds: list[Any], results: list[Any] | None = None) -> App:
    """An app with a handler for each type; the types are also its results, unless others are given."""
    board = Callboard()
    for number, (kind, result) in enumerate(zip(kinds, results or kinds, strict=True)):

        async def handle(job: JobContext, body: Any) -> Any: ...

        handle.__annotations__ = {"job": JobContext, "body": kind, "return": result}
        board.post(f"/api/{number}", name=f"Kind {number}")(handle)
    return App(title="kinds", prefix="/jobs", mappings=board.mappings)


def test_every_kind_of_type_gives_a_valid_document() -> None:
    document = openapi_document(app_of(KINDS))
    check(document)
    schemas = document["components"]["schemas"]
    assert {"Tree", "Item", "Box", "Part", "Place", "Model", "Inner"} <= set(schemas)
    assert schemas["Tree"]["properties"]["below"]["items"] == {"$ref": "#/components/schemas/Tree"}
    assert schemas["Model"]["properties"]["inner"] == {"$ref": "#/components/schemas/Inner"}
    assert set(schemas["Model"]["properties"]) == {"inner", "nested", "theName"}
    assert schemas["Box"]["required"] == ["type", "manyItems"]
    answered = document["paths"]["/api/0"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answered["allOf"][1]["properties"]["result"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}


def test_a_type_without_a_schema_promises_nothing() -> None:
    document = openapi_document(app_of([Shapeless, Item, Item], [Opaque, list[Opaque], None]))
    check(document)
    first, second, third = (document["paths"][f"/api/{number}"]["post"] for number in range(3))
    assert first["requestBody"]["content"]["application/json"]["schema"] == {}
    for operation in (first, second):
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/CallboardJob"}
    ended = third["responses"]["200"]["content"]["application/json"]["schema"]
    assert ended["allOf"][1]["properties"] == {"result": {"type": "null"}}


def test_an_app_without_handlers_has_a_valid_document() -> None:
    check(openapi_document(App(title="nothing", prefix="/jobs")))


def named(name: str, field: str) -> Any:
    return msgspec.defstruct(name, [(field, int)], module="elsewhere")


def modelled(field: str) -> Any:
    return pydantic.create_model("Same", **{field: (int, ...)})  # type: ignore[call-overload]


def test_types_of_one_name_stay_apart() -> None:
    ours = named("CallboardJob", "mine")
    holder = msgspec.defstruct("Holder", [("held", named("Same", "c"))])
    kinds = [named("Same", "a"), named("Same", "b"), modelled("d"), modelled("e"), ours, holder, named("Same", "a")]
    document = openapi_document(app_of(kinds))
    check(document)
    fields: list[set[str]] = []
    for number in range(len(kinds)):
        body = document["paths"][f"/api/{number}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        fields.append(set(follow(document, body)["properties"]))
    assert fields == [{"a"}, {"b"}, {"d"}, {"e"}, {"mine"}, {"held"}, {"a"}]
    held = follow(document, document["components"]["schemas"]["Holder"]["properties"]["held"])
    assert set(held["properties"]) == {"c"}
    assert "seq" in document["components"]["schemas"]["CallboardJob"]["properties"]
    assert sum(name.startswith("Same") for name in document["components"]["schemas"]) == 5, (
        "the first is not there twice"
    )


def test_a_model_may_be_sent_in_another_form_than_it_is_taken() -> None:
    class Thing(pydantic.BaseModel):
        amount: decimal.Decimal = decimal.Decimal(1)

    known = Components({})
    taken, sent = known.add(Thing, "validation"), known.add(Thing, "serialization")
    assert taken != sent
    assert set(known.schemas) == {"Thing", "Thing_2"}


# Routes


ROUTES = {
    "/a/<x>": ["/a/b", "/a/ü", "/a/b c"],
    "/a/<string(length=2):x>": ["/a/bb", "/a/b", "/a/bbb"],
    "/a/<string(minlength=2, maxlength=3):x>": ["/a/b", "/a/bb", "/a/bbbb"],
    "/a/<any(north, 'so uth'):x>": ["/a/north", "/a/so uth", "/a/east"],
    "/a/<int:x>": ["/a/0", "/a/007", "/a/-1", "/a/1.0", "/a/x"],
    "/a/<int(min=2, max=5):x>": ["/a/1", "/a/2", "/a/5", "/a/6"],
    "/a/<int(signed=True):x>": ["/a/-1", "/a/1"],
    "/a/<int(signed=True, max=3):x>": ["/a/-3", "/a/4"],
    "/a/<int(3):x>": ["/a/001", "/a/1", "/a/1000"],
    "/a/<float:x>": ["/a/2.5", "/a/2", "/a/-2.5"],
    "/a/<float(signed=True):x>": ["/a/-2.5", "/a/.5"],
    "/a/<uuid:x>": ["/a/01977f3e-8a4c-7d21-b0f5-3c9d6e2a4b10", "/a/01977f3e8a4c7d21b0f53c9d6e2a4b10"],
    "/a/<path:x>": ["/a/b/c", "/a/b"],
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_parameter_is_described_as_the_router_takes_it(route: str) -> None:
    adapter = Map([Rule(route, endpoint="x")]).bind("")
    (parameter,) = template(route).parameters
    schema, verdicts = parameter["schema"], set()
    for path in ROUTES[route]:
        try:
            adapter.match(path)
            found = True
        except HTTPException:
            found = False
        text = path.removeprefix("/a/")
        is_number = schema["type"] == "integer" and text.removeprefix("-").isdecimal()
        assert (misfits({}, schema, int(text) if is_number else text) == []) == found, path
        verdicts.add(found)
    assert True in verdicts


def test_paths_are_written_as_they_are_on_the_wire() -> None:
    assert template("/größe/{x}/<a>-<int:b>/").path == "/gr%C3%B6%C3%9Fe/%7Bx%7D/{a}-{b}/"
    assert template("/<special(1, 'x'):a>").parameters[0]["schema"] == {"type": "string", "minLength": 1}


def odd_board() -> Callboard:
    board = Callboard()

    def register(method: Any, route: str, name: str, kind: Any, **options: Any) -> None:
        async def handle(job: JobContext, body: Any) -> None:
            """Handle it.

            With care.
            """

        async def bodiless(job: JobContext) -> None: ...

        handle.__annotations__["body"] = kind
        board.map(method, route, name=name, **options)(bodiless if kind is None else handle)

    register("POST", "/x/<int:a>", "a b", int)
    register("PUT", "/x/<uuid:b>", "a_b", str)
    register("PATCH", "/x/<word>", "a/b", None)
    register("POST", "/x/<uuid:other>", "ü ✓", str, allow_delay=True)
    register("POST", "/x/<word>/{odd}", "x" * 200, None, allow_timeout=True, timeout_seconds=5)
    register("PUT", "/jobs/<thing>", "beside a job", int)
    return board


def test_odd_names_and_two_handlers_on_one_path() -> None:
    document = openapi_document(App(title="odd", prefix="/jobs", mappings=odd_board().mappings))
    check(document)
    assert set(document["paths"]["/x/{a}"]) == {"post", "put", "patch"}
    assert set(document["paths"]["/jobs/{job_id}"]) == {"get", "delete", "put"}
    both = document["paths"]["/x/{a}"]["post"]
    assert both["parameters"][0]["schema"] == {
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "format": "uuid"}]
    }
    assert both["requestBody"]["content"]["application/json"]["schema"] == {
        "anyOf": [{"type": "integer"}, {"type": "string"}]
    }
    assert {"$ref": "#/components/parameters/JobDelay"} in both["parameters"]
    assert both["summary"] == "Handle it."
    assert "With care." in both["description"]
    patch = document["paths"]["/x/{a}"]["patch"]
    assert patch["summary"] == "Submit a a/b job"
    assert "requestBody" not in patch
    (timeout,) = (
        one
        for one in document["paths"]["/x/{word}/%7Bodd%7D"]["post"]["parameters"]
        if one.get("name") == "Job-Timeout"
    )
    assert timeout["schema"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 5}


@pytest.mark.parametrize("prefix", ["/jobs", "/a/b", "/ümlaut", "/a{b}"])
@pytest.mark.parametrize("root_path", ["", "/shop", "/shop/", "/größe"])
def test_every_prefix_and_root_path(prefix: str, root_path: str) -> None:
    app = App(title="x", prefix=prefix, root_path=root_path, mappings=odd_board().mappings)
    document = openapi_document(app)
    check(document)
    (server,) = document["servers"]
    assert server["url"] in ("/", "/shop", "/gr%C3%B6%C3%9Fe")
    accepted = document["paths"]["/x/{a}"]["put"]["responses"]["202"]["content"]["application/json"]["examples"][
        "Queued"
    ]["value"]
    assert accepted["links"]["self"].startswith(quote(root_path.rstrip("/") + prefix))


# Against a server


async def test_every_mounted_route_is_in_the_document_and_nothing_else(open_site: OpenSite) -> None:
    site = await open_site(prefix="/tasks/here")
    document = (await site.http.get("/tasks/here/openapi.json")).json()
    check(document)
    mounted = {
        (method.lower(), template(rule.rule).shape)
        for rule in site.app.url_map.iter_rules()
        if rule.endpoint.startswith(ENDPOINT_PREFIX) and not rule.websocket
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(method, rebuilt(path)) for method, path, _ in operations(document)}
    assert described == mounted


def rebuilt(path: str) -> str:
    head, *rest = path.split("{")
    return head + "".join("{}" + part.partition("}")[2] for part in rest)


async def test_the_example_of_a_job_is_what_a_server_answers(site: Site) -> None:
    document = (await site.http.get("/jobs/openapi.json")).json()
    accepted = document["paths"]["/api/orders"]["post"]["responses"]["202"]
    example = accepted["content"]["application/json"]["examples"]["Queued"]["value"]
    job = await site.submit()
    assert list(example) == list(job)
    assert list(example["links"]) == list(job["links"])
    assert {**example, **dict.fromkeys(VARYING)} == {**job, **dict.fromkeys(VARYING)} | {
        "maxRetries": example["maxRetries"]
    }
    ended = (await site.http.get(f"/jobs/{job['id']}?wait=5")).json()
    read = document["paths"]["/jobs/{job_id}"]["get"]["responses"]["200"]["content"]["application/json"]
    completed = read["examples"]["Completed"]["value"]
    assert list(completed["links"]) == list(ended["links"])
    assert {name for name, value in completed.items() if value is None} - {"result"} == {
        name for name, value in ended.items() if value is None
    } - {"progress"}
    # What the server answers fits, and what it would never answer does not.
    assert misfits(document, read["schema"], ended) == []
    for wrong in (
        {**ended, "status": "Done"},
        {**ended, "surplus": 1},
        {name: ended[name] for name in list(ended)[1:]},
    ):
        assert misfits(document, read["schema"], wrong) != []


VARYING = ("id", "createdAt", "lastUpdatedAt", "links", "name")


async def test_the_document_is_made_once_for_each_mapping(open_site: OpenSite) -> None:
    made: list[Document] = []

    def changed(document: Document) -> Document:
        made.append(document)
        return {**document, "info": {"title": "Shop", "version": "7"}, "security": [{"key": []}]}

    site = await open_site(openapi=changed)
    first, second = [await site.http.get("/jobs/openapi.json") for _ in range(2)]
    assert first.json()["info"] == {"title": "Shop", "version": "7"}
    assert first.content == second.content
    assert len(made) == 1

    async def late(job: JobContext) -> None: ...

    # Quart takes no route once it has answered; a mapping is known all the same.
    mapping = msgspec.structs.replace(site.board.mappings[0], route="/api/late")
    site.board.mappings.append(mapping)
    assert "/api/late" in (await site.http.get("/jobs/openapi.json")).json()["paths"]
    assert len(made) == 2


def bare_app(board: Callboard, gates: Gates) -> QuartTrio:
    app = QuartTrio("bare")
    board.init_app(app)
    return app


async def test_rights_that_are_never_refused_are_not_in_the_document(open_site: OpenSite) -> None:
    for options, refusals in (({}, False), ({"authorize": lambda *_: True}, True)):
        site = await open_site(make_app=make_site_app, **options)
        document = (await site.http.get("/jobs/openapi.json")).json()
        assert ("403" in document["paths"]["/jobs"]["get"]["responses"]) == refusals
        assert ("403" in document["paths"]["/api/orders"]["post"]["responses"]) == refusals
        assert "403" in document["paths"]["/jobs/{job_id}/cancel"]["post"]["responses"], "a page of another origin"
    empty = await open_site(make_app=bare_app)
    check((await empty.http.get("/jobs/openapi.json")).json())


def test_answers_in_the_apps_own_form_are_not_described_as_ours() -> None:
    def own(record: Any) -> Any: ...

    mappings = odd_board().mappings
    shared = Responses(submitted=own, status=own, error=own)
    document = openapi_document(App(title="own", prefix="/jobs", mappings=mappings, responses=shared))
    validate(document, cls=OpenAPIV31SpecValidator)
    accepted = document["paths"]["/x/{a}"]["put"]["responses"]
    assert "content" not in accepted["200"]
    assert "content" not in document["components"]["responses"]["NotFound"]
    assert "content" not in document["paths"]["/jobs/{job_id}"]["get"]["responses"]["200"]
    one = [msgspec.structs.replace(mappings[1], responses=Responses(error=own)), mappings[2]]
    document = openapi_document(App(title="one", prefix="/jobs", mappings=one))
    check(document)
    assert "content" not in document["paths"]["/x/{b}"]["put"]["responses"]["413"]
    assert document["paths"]["/x/{b}"]["patch"]["responses"]["413"] == {"$ref": "#/components/responses/TooLarge"}
    assert "content" in document["paths"]["/x/{b}"]["put"]["responses"]["202"]


def test_many_jobs_in_one_request_are_in_the_document_where_there_is_a_body() -> None:
    document = openapi_document(App(title="lines", prefix="/jobs", mappings=odd_board().mappings))
    put, patch = (document["paths"]["/x/{a}"][method] for method in ("put", "patch"))
    assert set(put["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    assert set(put["responses"]["207"]["content"]) == {"application/x-ndjson"}
    assert set(put["responses"]["202"]["content"]) == {"application/json", "application/x-ndjson"}
    assert "207" not in patch["responses"]
    assert misfits(document, put["requestBody"]["content"]["application/x-ndjson"]["schema"], " \n") != []
