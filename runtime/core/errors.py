"""One tree of errors, named by whose fault it is. Each has the HTTP status that a client gets and says whether asking again helps.

CallboardError
├── InvalidRequest (400)              the caller: something in the request cannot be meant
│   └── InvalidPayload (422)          the body does not fit the handler's type
├── JobNotFound (404)                 the caller: no such job
├── QueueNotFound (404)               the caller: no such queue
├── IllegalTransition (409)           the caller: the job's state does not allow that
├── JobExists (409)                   the caller: that id is taken by another request
├── KeyReused (422)                   the caller: that idempotency key was used for another request
├── QueueFull (429, again)            the world: the queue holds as much as it may
├── StoreUnavailable (503, again)     the world: the store cannot be reached now
├── ShuttingDown (503, again)         the world: this runtime takes no new work
├── ConfigError                       the app's author, at start
│   └── HandlerError                  ... a handler's registration or signature
└── StoreRefused                      the operator, at start: that store cannot be used
"""

from msgspec import Struct

__all__ = [
    "CallboardError",
    "ConfigError",
    "FieldError",
    "HandlerError",
    "IllegalTransition",
    "InvalidPayload",
    "InvalidRequest",
    "JobExists",
    "JobNotFound",
    "KeyReused",
    "QueueFull",
    "QueueNotFound",
    "ShuttingDown",
    "StoreRefused",
    "StoreUnavailable",
]


class CallboardError(Exception):
    """Root of the tree."""

    http_status: int = 500
    retry_helps: bool = False
    title: str = "Internal error"


class InvalidRequest(CallboardError):
    """Something in the request cannot be meant; the message says what and what would do."""

    http_status = 400
    title = "Bad request"


class FieldError(Struct, frozen=True):
    """One thing wrong with a body: ``pointer`` is a JSON Pointer in wire names (RFC 6901), ``""`` for the whole."""

    pointer: str
    detail: str


class InvalidPayload(InvalidRequest):
    """The body does not fit the handler's type."""

    http_status = 422
    title = "The body does not fit"

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        super().__init__("; ".join(f"{error.pointer or 'body'}: {error.detail}" for error in errors))
        self.errors = errors


class JobNotFound(CallboardError):
    """There is no such job, or none that the caller may see."""

    http_status = 404
    title = "Job not found"


class QueueNotFound(CallboardError):
    """No handler works on that queue and it holds no job."""

    http_status = 404
    title = "Queue not found"


class IllegalTransition(CallboardError):
    """The job's state does not allow what was asked."""

    http_status = 409
    title = "Not possible in the job's state"


class JobExists(CallboardError):
    """That id is taken; says no more, since the job may be another caller's."""

    http_status = 409
    title = "The id is taken"


class KeyReused(CallboardError):
    """The idempotency key came with a different request before."""

    http_status = 422
    title = "The idempotency key was used for another request"


class QueueFull(CallboardError):
    """The queue holds ``max_queue_size`` jobs; nothing was accepted. ``queue`` says which, where that is known."""

    http_status = 429
    retry_helps = True
    title = "The queue is full"

    def __init__(self, message: str, queue: str | None = None) -> None:
        super().__init__(message)
        self.queue = queue


class StoreUnavailable(CallboardError):
    """The store cannot be reached now; whether the last call took effect is unknown. A submission with a key or an id may be repeated."""

    http_status = 503
    retry_helps = True
    title = "The store cannot be reached"


class ShuttingDown(CallboardError):
    """This runtime drains and takes no new work."""

    http_status = 503
    retry_helps = True
    title = "Shutting down"


class ConfigError(CallboardError):
    """The app's author has to change something; the message says what."""


class HandlerError(ConfigError):
    """A handler cannot be registered: its name is taken or its signature does not fit."""


class StoreRefused(CallboardError):
    """The store exists but cannot be used: foreign, unreadable, of a newer schema, on a network filesystem."""
