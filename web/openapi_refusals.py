"""How an operation may be refused, as shared responses of the OpenAPI document. Pure.

The examples are made by ``problems``, which makes the answers too.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from callboard.runtime.core.errors import (
    CallboardError,
    FieldError,
    IllegalTransition,
    InvalidPayload,
    InvalidRequest,
    JobExists,
    JobNotFound,
    KeyReused,
    QueueFull,
    QueueNotFound,
    ShuttingDown,
    StoreUnavailable,
)
from callboard.runtime.core.job import Failure
from callboard.web.openapi_parts import OWN_FORM, PROBLEM, headers
from callboard.web.openapi_schemas import Schema, ref
from callboard.web.problems import Refusal, describe

__all__ = ["KINDS", "Kind", "component_responses", "refusals"]


class Kind(Struct, frozen=True):
    """One way to be refused, as clients see it: for which status, and by which errors."""

    status: int
    description: str
    errors: tuple[CallboardError, ...]
    required: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()


_FAILED: Final = Failure(code="NO_STOCK", message="Nothing is left.", type="JobFailed", retryable=False)

KINDS: Final[dict[str, Kind]] = {
    "BadRequest": Kind(
        400,
        "A parameter, a header or the body cannot be meant.",
        (
            InvalidRequest("limit is '0': give a whole number from 1 to 200"),
            InvalidRequest("the body is missing: send JSON"),
        ),
    ),
    "Forbidden": Kind(
        403,
        "The caller, or a page of that origin, may not do this.",
        (Refusal(403, "forbidden", "You may not do that."),),
    ),
    "NotFound": Kind(404, "There is no such job, or none that the caller may see.", (JobNotFound(),)),
    "NoQueue": Kind(404, "There is no such queue.", (QueueNotFound("there is no queue 'orders'"),)),
    "Timeout": Kind(
        408,
        "The body did not come in time. The connection is closed; repeating the request is safe.",
        (Refusal(408, "request-timeout", "The body did not come in time. Repeating the request is safe."),),
    ),
    "WrongState": Kind(409, "The job's state does not allow it.", (IllegalTransition("the job is Completed"),)),
    "IdTaken": Kind(409, "That `X-Async-Request-Id` is taken.", (JobExists(),)),
    "NotEnded": Kind(
        409,
        "The job has not ended.",
        (Refusal(409, "job-not-ended", "The job is InProgress and has no result yet.", title="The job has not ended"),),
        required=("Retry-After",),
    ),
    "Canceled": Kind(
        410,
        "The job was canceled.",
        (Refusal(410, "job-canceled", "The job was canceled and has no result.", title="The job was canceled"),),
    ),
    "TooLarge": Kind(
        413,
        "The body is too large.",
        (Refusal(413, "content-too-large", "The body is larger than 1048576 bytes.", title="Content Too Large"),),
    ),
    "WrongMediaType": Kind(
        415,
        "The body is not sent as JSON.",
        (Refusal(415, "unsupported-media-type", "Send the body as application/json."),),
        maybe=("Accept",),
    ),
    "DoesNotFit": Kind(
        422,
        "The body does not fit, or the `Idempotency-Key` came with another request.",
        (InvalidPayload((FieldError("/pieces", "Expected `int`, got `str`"),)), KeyReused()),
    ),
    "KeyReused": Kind(422, "The `Idempotency-Key` came with another request.", (KeyReused(),)),
    "JobFailed": Kind(
        422,
        "The job failed.",
        (
            Refusal(
                422, "job-failed", "The job failed; error says why.", title="The job failed", members={"error": _FAILED}
            ),
        ),
    ),
    "QueueFull": Kind(
        429, "The queue is full; nothing was accepted.", (QueueFull("the queue is full"),), required=("Retry-After",)
    ),
    "ServerError": Kind(500, "A bug; the server's log has more.", (CallboardError(),)),
    "Unavailable": Kind(
        503,
        "The store cannot be reached, or the server shuts down. Repeat the request later; a submission without a key or an id may"
        " then be accepted twice.",
        (StoreUnavailable(), ShuttingDown()),
        required=("Retry-After",),
    ),
}
"""The shared responses; each operation names those that it can answer."""


class Asked(Struct, frozen=True):
    """As much of a request as a problem tells of it."""

    path: str
    root_path: str = ""


def component_responses(instance: str, *, own_form: bool) -> dict[str, Schema]:
    """Every refusal, with examples for a request for ``instance``; without, where the app gives errors a form of its own."""
    return {name: _in_own_form(kind) if own_form else _refusal(kind, instance) for name, kind in KINDS.items()}


def refusals(*names: str, own_form: bool = False) -> dict[str, Schema]:
    """The responses of those names by status: shared ones, or some that the app gives a form of its own."""
    if own_form:
        return {str(KINDS[name].status): _in_own_form(KINDS[name]) for name in names}
    return {str(KINDS[name].status): {"$ref": f"#/components/responses/{name}"} for name in names}


def _in_own_form(kind: Kind) -> Schema:
    sent = headers("Cache-Control", *kind.required, maybe=kind.maybe)
    return {"description": f"{kind.description} {OWN_FORM}", "headers": sent}


def _refusal(kind: Kind, instance: str) -> Schema:
    examples: Schema = {}
    request: Any = Asked(instance)
    for error in kind.errors:
        document = msgspec.json.decode(msgspec.json.encode(describe(error, request).body))
        name = document["type"].rpartition(":")[2]
        examples[name if name not in examples else f"{name}-{len(examples) + 1}"] = {"value": document}
    schema = {"allOf": [ref(PROBLEM), {"properties": {"status": {"const": kind.status}}}]}
    return {
        "description": kind.description,
        "headers": headers("Cache-Control", *kind.required, maybe=kind.maybe),
        "content": {"application/problem+json": {"schema": schema, "examples": examples}},
    }
