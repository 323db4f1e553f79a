"""The operation of a mapped route for the OpenAPI document: what the handler's types, docstring and options say. Pure."""

import functools
import inspect
import re
from typing import Any, Final

from callboard.runtime.core.job import Status
from callboard.web.mapping import Mapping
from callboard.web.ndjson import NDJSON
from callboard.web.openapi_parts import (
    JOB,
    OWN_FORM,
    component_parameters,
    example_job,
    headers,
    job_example,
    links,
    parameters,
)
from callboard.web.openapi_refusals import refusals
from callboard.web.openapi_routes import ACTIONS, Facts
from callboard.web.openapi_schemas import Components, Schema, ref

__all__ = ["identifier", "mapped_operation", "merged"]

_LINES: Final[Schema] = {
    "schema": {
        "type": "string",
        "pattern": "[^ \\t\\r\\n]",
        "description": "Many jobs: one body a line. Each is accepted or refused by itself, all in one commit.",
    }
}
_ANSWERED: Final[Schema] = {
    "schema": {"type": "string", "description": "A line for each: `status`, and `job` or `problem`."},
    "example": '{"status":422,"problem":{"type":"urn:callboard:problem:invalid-payload","title":"The body does not fit",'
    '"status":422,"detail":"/pieces: Expected `int`, got `str`","instance":"/api/orders"}}\n',
}
_ELSEWHERE: Final[dict[str, Schema]] = {
    "404": {"description": "The path does not fit the route; this is the app's own answer."},
    "405": {"description": "The path fits only a route of another method; this is the app's own answer."},
}


def mapped_operation(mapping: Mapping, route_parameters: tuple[Schema, ...], facts: Facts, known: Components) -> Schema:
    """The operation, without an id; its types are added to ``known``."""
    handler = mapping.handler
    text = _docstring(handler.function)
    refused = ("BadRequest", "Timeout", "IdTaken", "TooLarge", "QueueFull", "ServerError", "Unavailable")
    body = ("WrongMediaType", "DoesNotFit" if handler.takes_body else "KeyReused")
    own_form = mapping.responses is not None and mapping.responses.error is not None
    operation: Schema = {
        "tags": ["Submitting"],
        "summary": text.partition("\n")[0] or f"Submit a {handler.name} job",
        "description": _description(mapping, text),
        "parameters": [*route_parameters, *_parameters(mapping, facts)],
        "responses": {
            **_accepted(mapping, facts, known),
            **refusals(*facts.forbidden(*refused, *body), own_form=own_form),
        },
    }
    if route_parameters:
        operation["responses"].update(_ELSEWHERE)
    operation["responses"] = dict(sorted(operation["responses"].items()))
    if handler.takes_body:
        schema = known.add(handler.request_type, "validation")
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}, NDJSON: _LINES},
        }
    return operation


def merged(first: Schema, second: Schema) -> Schema:
    """One operation for two handlers whose routes differ only in what their variables take: OpenAPI has no second one for a path."""
    listed = {(_name(parameter), parameter.get("in")): parameter for parameter in second["parameters"]}
    both: list[Schema] = []
    for parameter in first["parameters"]:
        other = listed.pop((_name(parameter), parameter.get("in")), None)
        if other is not None and parameter.get("in") == "path":
            parameter = {**parameter, "schema": _either(parameter["schema"], other["schema"])}
        both.append(parameter)
    responses = {**second["responses"], **first["responses"]}
    for status in ("200", "202"):
        one, other = first["responses"][status], second["responses"][status]
        responses[status] = {name: value for name, value in one.items() if name != "content"}
        if "content" in one and "content" in other:
            responses[status]["content"] = _content(one, other)
    merged: Schema = {
        **first,
        "description": f"{first['description']}\n\nOr, by the path: {second['summary']}\n\n{second['description']}",
        "parameters": [*both, *listed.values()],
        "responses": dict(sorted(responses.items())),
    }
    bodies = [operation["requestBody"] for operation in (first, second) if "requestBody" in operation]
    if len(bodies) == 2:
        merged["requestBody"] = {"required": True, "content": _content(*bodies)}
    elif bodies:
        merged["requestBody"] = {**bodies[0], "required": False}
    return merged


def _name(parameter: Schema) -> str:
    return str(parameter.get("name") or parameter["$ref"])


def _content(first: Schema, second: Schema) -> Schema:
    json, one, other = "application/json", first["content"], second["content"]
    return {**other, **one, json: {**one[json], "schema": _either(one[json]["schema"], other[json]["schema"])}}


def _either(one: Schema, other: Schema) -> Schema:
    return one if one == other else {"anyOf": [one, other]}


def _docstring(function: Any) -> str:
    # Of an object that can be called, its class says what it does; of a partial, nobody does.
    told = function if inspect.isroutine(function) else type(function)
    return "" if told is functools.partial else inspect.getdoc(told) or ""


def _description(mapping: Mapping, text: str) -> str:
    lines = [text] if text else []
    if mapping.validate is not None:
        lines.append("The app looks at the request before anything is queued, and may answer it otherwise.")
    if mapping.redirect:
        lines.append("Reading the Completed job answers 303 to what it made; `redirect=false` gives the document.")
    kind = "a task" if mapping.handler.runs_in == "task" else f"a {mapping.handler.runs_in}"
    lines.append(
        f"Accepted as a job of `{mapping.handler.name}` in queue `{mapping.handler.queue}`, which runs as {kind}."
    )
    return "\n\n".join(lines)


def _parameters(mapping: Mapping, facts: Facts) -> list[Schema]:
    names = ["IdempotencyKey", "RequestId", "Prefer"]
    if mapping.allow_delay:
        names += ["JobDelay", "JobRunAt"]
    if mapping.allow_timeout:
        names.append("JobTimeout")
    if mapping.allow_priority:
        names.append("JobPriority")
    listed = parameters(*names)
    most = facts.timeout_seconds if mapping.handler.timeout_seconds is None else mapping.handler.timeout_seconds
    if mapping.allow_timeout and most is not None:
        shared = component_parameters()["JobTimeout"]
        listed[names.index("JobTimeout")] = {**shared, "schema": {**shared["schema"], "maximum": most}}
    return listed


def _accepted(mapping: Mapping, facts: Facts, known: Components) -> dict[str, Schema]:
    result = known.add(mapping.handler.result_type, "serialization")
    schema = ref(JOB)
    if result:
        # Null until the job is Completed.
        either = result if result.get("type") == "null" else {"anyOf": [result, {"type": "null"}]}
        schema = {"allOf": [ref(JOB), {"type": "object", "properties": {"result": either}}]}

    own_form = facts.responses if mapping.responses is None else mapping.responses.over(facts.responses)

    def answer(description: str, statuses: tuple[Status, ...], sent: Schema) -> Schema:
        if own_form.submitted is not None:
            return {"description": f"{description} {OWN_FORM}", "headers": sent}
        examples = {status.value: {"value": _example(mapping, status, facts)} for status in statuses}
        return {
            "description": description,
            "headers": sent,
            "content": {"application/json": {"schema": schema, "examples": examples}},
            "links": links(*(("ReadResult",) if Status.FAILED in statuses else ()), *ACTIONS),
        }

    ended = (Status.FAILED, Status.CANCELED) if result else (Status.COMPLETED, Status.FAILED, Status.CANCELED)
    living = (Status.QUEUED, Status.SCHEDULED) if mapping.allow_delay else (Status.QUEUED,)
    always = ("Async-Job-Id", "Cache-Control")
    answers = {
        "200": answer(
            "The job has ended: it was waited for, or the request is a repeat.",
            ended,
            headers(*always, "Content-Location", maybe=("Idempotency-Replayed", "Preference-Applied")),
        ),
        "202": answer(
            "The job is accepted and stored.",
            living,
            headers(*always, "Location", "Retry-After", maybe=("Idempotency-Replayed",)),
        ),
    }
    return _with_lines(answers) if mapping.handler.takes_body else answers


def _with_lines(answers: dict[str, Schema]) -> dict[str, Schema]:
    """The answers to many jobs too, one a line: without what is one job's."""
    sent = headers("Cache-Control", maybe=("Idempotency-Replayed", "Retry-After"))
    accepted = answers["202"]
    if "content" in accepted:
        accepted = {**accepted, "content": {**accepted["content"], NDJSON: _ANSWERED}}
    one = headers("Cache-Control", maybe=("Location", "Retry-After", "Async-Job-Id", "Idempotency-Replayed"))
    some = {
        "description": "Of many jobs, not all were accepted: each line says what became of its own.",
        "headers": sent,
        "content": {NDJSON: _ANSWERED},
    }
    return {**answers, "202": {**accepted, "headers": one}, "207": some}


def _example(mapping: Mapping, status: Status, facts: Facts) -> Schema:
    handler = mapping.handler
    job = example_job(status, handler.name, handler.queue)
    return job_example(job, facts.place)


def identifier(name: str, taken: set[str]) -> str:
    """An operationId for a handler of that name, which none has; it is added to ``taken``."""
    base = re.sub(r"[^A-Za-z0-9_.-]", "_", f"submit_{name}")
    unique, number = base, 2
    while unique in taken:
        unique, number = f"{base}_{number}", number + 1
    taken.add(unique)
    return unique
