"""The body of a submission: read within its bound, decoded by the handler's type."""

from typing import Any

from msgspec import Raw
from quart import request

from callboard.runtime.handlers import Handler
from callboard.runtime.payload import decode
from callboard.web import parsing
from callboard.web.limits import is_too_large, is_too_late
from callboard.web.problems import Refusal

__all__ = ["decoded", "read_body", "too_large"]


async def read_body(max_bytes: int) -> bytes:
    """The body of the current request. Raises Refusal: 413 for a larger one, 408 for one that is too late, 415 for one that is
    coded, as by gzip.
    """
    if (request.content_length or 0) > max_bytes:
        raise too_large("body", max_bytes)
    # The time is bounded where the body is received, from the head of the request on.
    request.body_timeout = None
    text: bytes = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    if is_too_late(request):
        raise _too_late()
    if is_too_large(request) or len(text) > max_bytes:
        raise too_large("body", max_bytes)
    if text and parsing.is_coded(request.headers.getlist("Content-Encoding")):
        detail = "Send the body as it is, without a Content-Encoding."
        raise Refusal(415, "unsupported-content-coding", detail, headers={"Accept-Encoding": "identity"})
    return text


def decoded(handler: Handler, text: bytes) -> tuple[Raw, Any]:
    """JSON text and its value by the handler's type. Raises InvalidRequest for what is no JSON, InvalidPayload for what does not fit."""
    # The whole of it: what the type does not name would be passed over unread.
    decode(Any, text)
    return Raw(text), decode(handler.request_type, text)


def too_large(what: str, max_bytes: int) -> Refusal:
    """The refusal (413) of ``what``, a body or one line of it."""
    return Refusal(413, "content-too-large", f"The {what} is larger than {max_bytes} bytes.", title="Content Too Large")


def _too_late() -> Refusal:
    headers = {"Connection": "close"} if request.http_version.startswith("1") else {}
    return Refusal(
        408, "request-timeout", "The body did not come in time. Repeating the request is safe.", headers=headers
    )
