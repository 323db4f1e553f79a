"""The OpenAPI 3.1 document of the app's mapped routes and of the job routes. Pure: mappings in, a plain dict out."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from callboard.runtime.core.job import Status
from callboard.runtime.payload import is_pydantic
from callboard.web.mapping import Mapping

__all__ = ["openapi_document"]

REF: Final = "#/components/schemas/{name}"
JOB: Final = "CallboardJob"
PROBLEM: Final = "CallboardProblem"
"""Names that an app's own types will hardly have."""
_PARAMETER: Final = re.compile(
    r"<(?:(?P<converter>[a-zA-Z_][a-zA-Z0-9_]*)(?:\([^)]*\))?:)?(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)>"
)
_CONVERTERS: Final[dict[str, dict[str, Any]]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "uuid": {"type": "string", "format": "uuid"},
}

Schema = dict[str, Any]


def openapi_document(title: str, prefix: str, mappings: Sequence[Mapping], root_path: str) -> Schema:
    """The whole document. ``root_path`` is where a proxy has put the app."""
    kinds = [mapping.handler.request_type for mapping in mappings if mapping.handler.takes_body]
    bodies, components = _schemas(kinds)
    of_kind = iter(bodies)
    paths: dict[str, Schema] = {}
    for mapping in mappings:
        body = next(of_kind) if mapping.handler.takes_body else None
        paths.setdefault(_path(mapping.route), {})[mapping.method.lower()] = _submit(mapping, body)
    for path, operations in _job_paths().items():
        paths.setdefault(prefix + path, {}).update(operations)
    components.update({JOB: _job_schema(), PROBLEM: _problem_schema()})
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _schemas(kinds: Sequence[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """A schema for each type, in order, and the components that they refer to."""
    plain = [kind for kind in kinds if not is_pydantic(kind) and _has_schema(kind)]
    schemas, components = msgspec.json.schema_components(plain, ref_template=REF)
    of_plain = iter(schemas)
    listed: list[Schema] = []
    for kind in kinds:
        if is_pydantic(kind):
            listed.append(_pydantic(kind, components))
        else:
            listed.append(next(of_plain) if _has_schema(kind) else {})
    return listed, components


def _has_schema(kind: Any) -> bool:
    # Some types can be decoded but have no JSON Schema; for those the document says nothing.
    try:
        msgspec.json.schema(kind)
    except TypeError:
        return False
    return True


def _pydantic(kind: Any, components: dict[str, Schema]) -> Schema:
    # Definitions stay inside: another model's, of the same name, would take their place among the components.
    name = kind.__name__ if kind.__name__ not in components else f"{kind.__module__}.{kind.__qualname__}"
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    schema: Schema = kind.model_json_schema(ref_template=f"{REF.format(name=name)}/$defs/{{model}}")
    components[name] = schema
    return {"$ref": REF.format(name=name)}


def _path(route: str) -> str:
    return _PARAMETER.sub(lambda match: "{" + match["name"] + "}", route)


def _submit(mapping: Mapping, body: Schema | None) -> Schema:
    operation: Schema = {
        "operationId": _identifier(mapping),
        "summary": f"Submit a {mapping.handler.name} job",
        "parameters": [*_route_parameters(mapping.route), *_headers(mapping)],
        "responses": {
            "202": {**_answer("The job is accepted and stored.", JOB), "headers": _accepted_headers()},
            "200": _answer("The job has ended: it was waited for, or the request is a repeat.", JOB),
            "default": _answer("Refused; nothing is queued.", PROBLEM, "application/problem+json"),
        },
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _identifier(mapping: Mapping) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"submit_{mapping.handler.name}")


def _route_parameters(route: str) -> list[Schema]:
    return [
        {
            "name": match["name"],
            "in": "path",
            "required": True,
            "schema": _CONVERTERS.get(match["converter"] or "", {"type": "string"}),
        }
        for match in _PARAMETER.finditer(route)
    ]


def _headers(mapping: Mapping) -> list[Schema]:
    names = [
        _header("Idempotency-Key", {"type": "string", "maxLength": 255}),
        _header("X-Async-Request-Id", {"type": "string", "format": "uuid"}),
        _header("Prefer", {"type": "string", "examples": ["wait=5"]}),
    ]
    if mapping.allow_delay:
        names.append(_header("Job-Delay", {"type": "number", "minimum": 0}))
        names.append(_header("Job-Run-At", {"type": "string", "format": "date-time"}))
    if mapping.allow_timeout:
        names.append(_header("Job-Timeout", {"type": "number", "exclusiveMinimum": 0}))
    if mapping.allow_priority:
        names.append(_header("Job-Priority", {"type": "integer", "minimum": -1000, "maximum": 1000}))
    return names


def _header(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _accepted_headers() -> Schema:
    return {
        "Location": {"schema": {"type": "string", "format": "uri-reference"}},
        "Retry-After": {"schema": {"type": "integer"}},
        "Async-Job-Id": {"schema": {"type": "string", "format": "uuid"}},
    }


def _answer(description: str, component: str | None = None, media_type: str = "application/json") -> Schema:
    if component is None:
        return {"description": description}
    schema = {"$ref": REF.format(name=component)}
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _operation(
    identifier: str, summary: str, responses: dict[str, Schema], parameters: Sequence[Schema] = ()
) -> Schema:
    refused = _answer("Refused.", PROBLEM, "application/problem+json")
    return {
        "operationId": identifier,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {**responses, "default": refused},
    }


def _job_paths() -> dict[str, Schema]:
    job_id = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    wait = _query("wait", {"type": "number", "minimum": 0})
    flag: Schema = {"type": "boolean"}
    document = _answer("The job's document.", JOB)
    page = {
        "description": "Jobs, newest first.",
        "content": {"application/json": {"schema": _page_schema()}},
    }
    listed = [
        _query("status", {"type": "array", "items": {"enum": [status.value for status in Status]}}),
        _query("name", {"type": "string"}),
        _query("queue", {"type": "string"}),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
        _query("cursor", {"type": "string"}),
    ]
    return {
        "": {"get": _operation("listJobs", "List jobs", {"200": page}, listed)},
        "/{job_id}": {
            "get": _operation(
                "getJob",
                "Read a job, or wait for it",
                {"200": document, "303": _answer("See the created resource."), "304": _answer("Not modified.")},
                [job_id, wait, _query("redirect", flag)],
            ),
            "delete": _operation(
                "deleteJob",
                "Cancel a job, or purge an ended one",
                {"200": document, "202": document, "204": _answer("Purged.")},
                [job_id, _query("purge", flag)],
            ),
        },
        "/{job_id}/result": {
            "get": _operation("getResult", "Read a job's result", {"200": _json("The bare result.")}, [job_id])
        },
        "/{job_id}/cancel": {
            "post": _operation("cancelJob", "Cancel a job", {"200": document, "202": document}, [job_id])
        },
        "/{job_id}/retry": {"post": _operation("retryJob", "Run an ended job again", {"202": document}, [job_id])},
        "/health/live": {"get": _operation("live", "Whether the process lives", {"200": _json("It does.")})},
        "/health/ready": {"get": _operation("ready", "Whether work can be sent", {"200": _json("It can.")})},
    }


def _json(description: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": {}}}}


def _page_schema() -> Schema:
    return {
        "type": "object",
        "properties": {
            "jobs": {"type": "array", "items": {"$ref": REF.format(name=JOB)}},
            "next": {"type": ["string", "null"]},
        },
        "required": ["jobs", "next"],
    }


def _job_schema() -> Schema:
    time: Schema = {"type": "string", "format": "date-time"}
    maybe_time: Schema = {"type": ["string", "null"], "format": "date-time"}
    whole: Schema = {"type": "integer", "minimum": 0}
    properties: Schema = {
        "id": {"type": "string", "format": "uuid"},
        "name": {"type": "string"},
        "queue": {"type": "string"},
        "status": {"enum": [status.value for status in Status]},
        "retryCount": whole,
        "maxRetries": whole,
        "attempt": whole,
        "createdAt": time,
        "startedAt": maybe_time,
        "completedAt": maybe_time,
        "lastUpdatedAt": time,
        "result": {},
        "error": _error_schema(),
        "seq": whole,
        "progress": _progress_schema(),
        "scheduledFor": maybe_time,
        "cancelRequested": {"type": "boolean"},
        "priority": {"type": "integer", "minimum": -1000, "maximum": 1000},
        "links": {"type": "object", "additionalProperties": {"type": "string", "format": "uri-reference"}},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _error_schema() -> Schema:
    properties: Schema = {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "type": {"type": "string"},
        "retryable": {"type": "boolean"},
    }
    return {"type": ["object", "null"], "properties": properties, "required": list(properties)}


def _progress_schema() -> Schema:
    properties: Schema = {
        "percent": {"type": ["number", "null"], "minimum": 0, "maximum": 100},
        "message": {"type": ["string", "null"]},
        "data": {},
    }
    return {"type": ["object", "null"], "properties": properties, "required": list(properties)}


def _problem_schema() -> Schema:
    properties: Schema = {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
    }
    pointed = {"type": "object", "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}}}
    extra = {"errors": {"type": "array", "items": pointed}}
    return {"type": "object", "properties": {**properties, **extra}, "required": list(properties)}
