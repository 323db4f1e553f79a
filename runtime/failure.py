"""What a handler's exception means: found through exception groups, in a fixed order of precedence."""

from collections.abc import Iterator

from msgspec import Struct

from callboard.runtime.core.job import Failure
from callboard.runtime.handlers import Handler
from callboard.runtime.payload import storable

__all__ = ["JobFailed", "Retry", "Verdict", "judge", "timeout_failure"]

HIDDEN_MESSAGE = "The job's handler raised an exception; the server's log has the details."


MAX_CODE = 200
MAX_MESSAGE = 10_000
"""Characters of a failure that are kept."""


class JobFailed(Exception):
    """Raised by a handler to fail its job with a code and a message that the client may see.

    ``code`` is the app's own, in the style of ``CARD_DECLINED``; with ``retryable`` the job is tried again while it
    has retries left.
    """

    # For subclasses that do not call this class's __init__.
    code: str = "HANDLER_ERROR"
    message: str = ""
    retryable: bool = False

    def __init__(self, code: str, message: str, retryable: bool = False) -> None:
        if not isinstance(code, str) or not code:
            raise TypeError(f"JobFailed needs a code such as 'CARD_DECLINED', not {code!r}")
        super().__init__(code, message)
        self.code = code
        self.message = str(message)
        self.retryable = bool(retryable)


class Retry(Exception):
    """Raised by a handler to be run again, ``after_seconds`` from now or after the usual backoff; counts as a retry."""

    after_seconds: float | None = None

    def __init__(self, after_seconds: float | None = None) -> None:
        if after_seconds is not None and not 0 <= after_seconds < float("inf"):
            raise ValueError(f"after_seconds is {after_seconds!r}: give seconds, 0 or more")
        super().__init__(after_seconds)
        self.after_seconds = after_seconds


class Verdict(Struct, frozen=True):
    """The failure to store and, if the handler asked for it, the delay before the retry."""

    failure: Failure
    after_seconds: float | None = None


def judge(error: BaseException, handler: Handler, *, expose: bool) -> Verdict:
    """What to make of ``error``: JobFailed anywhere in it wins over Retry, Retry over any other exception."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, JobFailed):
            return Verdict(
                Failure(
                    code=storable(str(leaf.code)[:MAX_CODE]),
                    message=storable(str(leaf.message)[:MAX_MESSAGE]),
                    type=type(leaf).__name__,
                    retryable=bool(leaf.retryable),
                )
            )
    for leaf in leaves:
        if isinstance(leaf, Retry):
            message = "The handler asked to be run again."
            failure = Failure(code="HANDLER_ERROR", message=message, type=type(leaf).__name__, retryable=True)
            return Verdict(failure, leaf.after_seconds)
    leaf = leaves[0]
    return Verdict(
        Failure(
            code="HANDLER_ERROR",
            message=_text(leaf) if expose else HIDDEN_MESSAGE,
            type=type(leaf).__name__,
            retryable=all(handler.may_retry(one) for one in leaves),
        )
    )


def timeout_failure(timeout_seconds: float) -> Failure:
    """The attempt's time was over."""
    message = f"The attempt did not end within {timeout_seconds:g} s."
    return Failure(code="TIMEOUT", message=message, type="TimeoutError", retryable=True)


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 -- the app's own code: an exception that has no text is one that says nothing
        text = ""
    return storable(text[:MAX_MESSAGE]) or type(error).__name__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
