"""The options of a handler and of a mapped route, as types, so that editors and type checkers know them."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from callboard.runtime.core.job import Job
from callboard.web.mapping import View
from callboard.web.responses import Responses

__all__ = ["HandlerOptions", "MappingOptions"]


class HandlerOptions(TypedDict, total=False):
    """Options of a handler, with or without a route; left out, the runtime's own setting holds."""

    process: bool
    queue: str
    old_queues: tuple[str, ...]
    max_retries: int | None
    timeout_seconds: float | None
    max_lost_leases: int | None
    priority: int | Callable[..., int]
    retry_on: tuple[type[BaseException], ...] | None
    no_retry_on: tuple[type[BaseException], ...]
    location: Callable[[Job, Any], str | None] | None


class MappingOptions(HandlerOptions, total=False):
    """Options of a handler on a route."""

    validate: Callable[..., Any] | None
    redirect: bool
    allow_delay: bool
    allow_timeout: bool
    allow_priority: bool
    decorators: Sequence[Callable[[View], View]]
    responses: Responses | None
