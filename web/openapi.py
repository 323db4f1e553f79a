"""The OpenAPI 3.1 document of an app's mapped routes and of the job routes. Pure: mappings in, a plain dict out."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from msgspec import Struct

from callboard.web.mapping import Mapping
from callboard.web.openapi_mapped import identifier, mapped_operation, merged
from callboard.web.openapi_operating import operating_operations
from callboard.web.openapi_parts import (
    EXAMPLE_ID,
    component_headers,
    component_links,
    component_parameters,
    component_schemas,
)
from callboard.web.openapi_paths import Template, template
from callboard.web.openapi_refusals import component_responses
from callboard.web.openapi_routes import Facts, job_operations
from callboard.web.openapi_schemas import Components, Schema
from callboard.web.render import Place
from callboard.web.responses import Responses

__all__ = ["App", "openapi_document"]

_TAGS: Final = [
    {"name": "Submitting", "description": "The app's own endpoints: each accepted request becomes a job."},
    {
        "name": "Jobs",
        "description": "What becomes of a job. Other methods on these paths are answered with 405 and `Allow`; `OPTIONS` tells"
        " which there are, and `HEAD` is `GET` without a body.",
    },
    {"name": "Operating", "description": "For those who run the app."},
]


class App(Struct, frozen=True, kw_only=True):
    """What the document is about. ``root_path`` is where a proxy has put the app."""

    title: str
    prefix: str
    root_path: str = ""
    mappings: Sequence[Mapping] = ()
    authorizes: bool = False
    """There is an ``authorize`` hook."""
    identifies: bool = False
    """There is an ``identify`` hook."""
    responses: Responses = Responses()
    """The forms of the board's answers."""
    timeout_seconds: float | None = None
    """Bound of an attempt where a handler has none of its own."""


def openapi_document(app: App) -> Schema:
    """The whole document."""
    place = Place(quote(app.root_path.rstrip("/"), errors="replace"), quote(app.prefix))
    facts = Facts(
        place,
        authorizes=app.authorizes,
        identifies=app.identifies,
        timeout_seconds=app.timeout_seconds,
        responses=app.responses,
        shows_own_form=any(
            one.status for one in (app.responses, *(mapping.responses for mapping in app.mappings)) if one
        ),
    )
    components = Components(component_schemas())
    own = {**job_operations(facts), **operating_operations(facts)}
    jobs = [(method, template(app.prefix + path), found) for (method, path), found in own.items()]
    paths = _mapped_paths(app.mappings, facts, components, {here.shape: here for _, here, _ in jobs})
    for method, here, operation in jobs:
        paths.setdefault(here.path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "version": "1"},
        "servers": [{"url": place.root_path or "/"}],
        "tags": _TAGS,
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "responses": component_responses(place.job(EXAMPLE_ID), own_form=app.responses.error is not None),
            "parameters": component_parameters(),
            "headers": component_headers(),
            "links": component_links(),
        },
    }


def _mapped_paths(
    mappings: Sequence[Mapping], facts: Facts, components: Components, others: dict[str, Template]
) -> dict[str, Schema]:
    paths: dict[str, Schema] = {}
    of_shape = dict(others)
    identifiers: set[str] = set()
    for mapping in mappings:
        here = template(mapping.route)
        # OpenAPI takes paths that differ in the names of their variables only for one, so they go by the names of the first.
        first = of_shape.setdefault(here.shape, here)
        operation = mapped_operation(mapping, here.renamed(first.names), facts, components)
        operation = {"operationId": identifier(mapping.handler.name, identifiers), **operation}
        operations = paths.setdefault(first.path, {})
        known = operations.get(mapping.method.lower())
        operations[mapping.method.lower()] = operation if known is None else merged(known, operation)
    return paths
