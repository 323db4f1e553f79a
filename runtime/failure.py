"""What a handler's exception means: found through exception groups, in a fixed order of precedence."""

from typing import TYPE_CHECKING

from msgspec import Struct

from callboard.runtime.core.job import Failure
from callboard.runtime.wary import is_a, leaves, plain, told, type_name

if TYPE_CHECKING:
    from callboard.runtime.handlers import Handler

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


def judge(error: BaseException, handler: "Handler", *, expose: bool) -> Verdict:
    """What to make of ``error``: JobFailed anywhere in it wins over Retry, Retry over any other exception.

    One that raises when it is looked at is any other exception.
    """
    failure = Failure(code="HANDLER_ERROR", message=HIDDEN_MESSAGE, type=type_name(error), retryable=True)
    return told(lambda: _judged(error, handler, expose=expose), Verdict(failure))


def _judged(error: BaseException, handler: "Handler", *, expose: bool) -> Verdict:
    found = list(leaves(error))
    for leaf in found:
        if is_a(leaf, JobFailed):
            return Verdict(
                Failure(
                    code=plain(leaf.code, MAX_CODE),
                    message=plain(leaf.message, MAX_MESSAGE),
                    type=type_name(leaf),
                    retryable=bool(leaf.retryable),
                )
            )
    for leaf in found:
        if is_a(leaf, Retry):
            message = "The handler asked to be run again."
            failure = Failure(code="HANDLER_ERROR", message=message, type=type_name(leaf), retryable=True)
            return Verdict(failure, _seconds(leaf.after_seconds))
    leaf = found[0]
    return Verdict(
        Failure(
            code="HANDLER_ERROR",
            message=_text(leaf) if expose else HIDDEN_MESSAGE,
            type=type_name(leaf),
            retryable=all(handler.may_retry(one) for one in found),
        )
    )


def timeout_failure(timeout_seconds: float) -> Failure:
    """The attempt's time was over."""
    message = f"The attempt did not end within {timeout_seconds:g} s."
    return Failure(code="TIMEOUT", message=message, type="TimeoutError", retryable=True)


def _text(error: BaseException) -> str:
    return told(lambda: plain(error, MAX_MESSAGE), "") or type_name(error)


def _seconds(asked: object) -> float | None:
    # A subclass need not go through the check of ``Retry``'s own __init__.
    return float(asked) if isinstance(asked, int | float) and asked >= 0 else None
