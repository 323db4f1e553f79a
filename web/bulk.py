"""Many jobs over the many-job websocket: a ``submit`` message is carried out as a real request inside the app.

The request goes through the whole app as if it had come over HTTP with the handshake's headers: hooks, decorators, sessions and
callboard's own checks run as always. Only routes of mapped handlers can be reached. Owns the way in and the way back; what becomes
of the lines is ``ndjson``'s.
"""

import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec
import trio
from msgspec import Raw, Struct
from quart import current_app
from quart.wrappers.base import BaseRequestWebsocket

from callboard.web.limits import MAPPED_PREFIX, endpoint_of
from callboard.web.ndjson import NDJSON

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["submit_inside"]

logger: Final = logging.getLogger("callboard.web")

Message = dict[str, Any]
Scope = dict[str, Any]

METHODS: Final = ("POST", "PUT", "PATCH", "DELETE")
MAX_PATH: Final = 4096
"""Characters of a path with its query."""
MAX_REF: Final = 200
MAX_KEY: Final = 255

_OF_THE_HANDSHAKE: Final = frozenset(
    {
        *(
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "http2-settings",
        ),
        *("accept", "accept-encoding", "expect", "idempotency-key", "prefer", "x-async-request-id"),
    }
)
"""Headers that were said of the handshake and not of what comes over the socket. Source of the first row: RFC 9110, section 7.6.1."""
_FAMILIES: Final = ("content-", "if-", "sec-websocket-")


class Refused(Exception):
    """The message was not carried out; ``fields`` tell the client why."""

    def __init__(self, code: str, text: str, **more: Any) -> None:
        super().__init__(text)
        self.fields: Message = {"type": "error", "code": code, "message": text, **more}


class Answer(Struct):
    """What the app answered."""

    status: int = 0
    headers: dict[str, str] = {}
    body: bytes = b""


async def submit_inside(board: "Callboard", websocket: BaseRequestWebsocket, message: Message) -> Message:
    """Carry out ``{"type": "submit", "ref", "path", "jobs", "method"?, "idempotencyKey"?}``; the answer to send back.

    ``{"type": "submitted", "ref", "status", "jobs": [...]}`` with one object for each job, as a line of the answer over HTTP; or an
    ``error`` with ``code``, ``message``, the ``ref`` if it is one, and the ``status`` (and ``retryAfter``, in seconds) of an app
    that refused the request. Must be called in the websocket's own context. Never raises for what a client may send.
    """
    ref = message.get("ref")
    has_ref = isinstance(ref, str) and 1 <= len(ref) <= MAX_REF
    try:
        if not has_ref:
            raise Refused(
                "bad-message", f"ref must be a text of 1 to {MAX_REF} characters: your own name for this message"
            )
        scope, body = _request(board, websocket, message)
        answer = await _call(current_app.asgi_app, scope, body)
        return {"type": "submitted", "ref": ref, "status": answer.status, "jobs": _jobs(answer)}
    except Refused as refused:
        return {**refused.fields, "ref": ref} if has_ref else refused.fields


def _request(board: "Callboard", websocket: BaseRequestWebsocket, message: Message) -> tuple[Scope, bytes]:
    path, method, jobs = message.get("path"), message.get("method", "POST"), message.get("jobs")
    most = board.config.max_bulk_jobs
    if not isinstance(path, str) or not path.startswith("/") or path.startswith("//") or len(path) > MAX_PATH:
        raise Refused(
            "bad-message", f"path must be the path of a route, such as /api/orders, of at most {MAX_PATH} characters"
        )
    if method not in METHODS:
        raise Refused("bad-message", f"method must be one of {', '.join(METHODS)}")
    if not isinstance(jobs, list) or not jobs:
        raise Refused("bad-message", "jobs must be a list with the body of each job")
    if len(jobs) > most:
        raise Refused("too-many-jobs", f"there are more than {most} jobs in the message; nothing was queued")
    try:
        body = b"".join(msgspec.json.encode(job) + b"\n" for job in jobs)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused("bad-message", f"a job has no JSON form: {error}") from None
    scope = _scope(websocket, path, method, _headers(websocket, message, len(body)))
    root = scope["root_path"].rstrip("/")
    if not scope["path"].startswith(f"{root}/"):
        raise Refused("not-found", f"no handler takes {method} at that path")
    endpoint = endpoint_of(current_app._get_current_object(), scope)  # type: ignore[attr-defined]
    if endpoint is None or not endpoint.startswith(MAPPED_PREFIX):
        raise Refused("not-found", f"no handler takes {method} at that path")
    return scope, body


def _headers(websocket: BaseRequestWebsocket, message: Message, length: int) -> list[tuple[bytes, bytes]]:
    kept = [
        (name, value)
        for name, value in websocket.scope["headers"]
        if (text := name.decode("latin1").lower()) not in _OF_THE_HANDSHAKE and not text.startswith(_FAMILIES)
    ]
    kept += [(b"content-type", NDJSON.encode()), (b"content-length", b"%d" % length), (b"accept", NDJSON.encode())]
    key = message.get("idempotencyKey")
    if key is not None:
        if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY or not key.isprintable() or not key.isascii():
            raise Refused("bad-message", f"idempotencyKey must be a text of 1 to {MAX_KEY} printable ASCII characters")
        kept.append((b"idempotency-key", key.encode()))
    return kept


def _scope(websocket: BaseRequestWebsocket, path: str, method: str, headers: list[tuple[bytes, bytes]]) -> Scope:
    socket = websocket.scope
    raw_path, _, query = path.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": socket.get("asgi", {"version": "3.0"}),
        "http_version": socket.get("http_version", "1.1"),
        "method": method,
        "scheme": {"ws": "http", "wss": "https"}.get(socket["scheme"], socket["scheme"]),
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii", "replace"),
        "query_string": query.encode("utf-8", "replace"),
        "root_path": socket.get("root_path", ""),
        "headers": headers,
        "client": socket.get("client"),
        "server": socket.get("server"),
        "extensions": {},
    }
    return {**scope, "state": socket["state"]} if "state" in socket else scope


async def _call(app: Any, scope: Scope, body: bytes) -> Answer:
    answer = Answer()
    chunks: list[bytes] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        # The client of this request does not leave: whoever waits for that is ended with the request.
        await trio.sleep_forever()

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {
                name.decode("latin1").lower(): value.decode("latin1") for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))

    try:
        async with trio.open_nursery() as nursery:
            # In a context of its own, so that nothing in it takes the request for the websocket that it came over.
            contextvars.Context().run(nursery.start_soon, app, scope, receive, send)
    except Exception as error:
        logger.error("a request inside the app failed: %s %s", scope["method"], scope["path"], exc_info=error)
        raise Refused("internal-error", "Something went wrong on the server. It has been logged.") from error
    if not answer.status:
        raise Refused("internal-error", "The app gave no answer.")
    answer.body = b"".join(chunks)
    return answer


def _jobs(answer: Answer) -> list[Raw]:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == NDJSON and answer.status in (202, 207):
        return [Raw(line) for line in answer.body.splitlines()]
    more: dict[str, Any] = {"status": answer.status}
    if answer.headers.get("retry-after", "").isdecimal():
        more["retryAfter"] = int(answer.headers["retry-after"])
    code, text = "refused", f"The app answered {answer.status}."
    if kind == "application/problem+json":
        problem = msgspec.json.decode(answer.body)
        code = str(problem.get("type", "")).rpartition(":")[2] or code
        text = str(problem.get("detail", text))
    raise Refused(code, text, **more)
