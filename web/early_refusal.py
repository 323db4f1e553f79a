"""The answer to a request or handshake that must not reach Quart, as raw ASGI messages. The connection ends with it."""

from typing import Final
from urllib.parse import quote

import msgspec
import trio

from callboard.web.asgi import Receive, Scope, Send
from callboard.web.render import PATH_SIGNS

__all__ = ["LINGER_SECONDS", "refuse"]

LINGER_SECONDS: Final = 1.0
"""What a client that still sends gets to read the answer before its connection is closed."""
MAX_INSTANCE: Final = 1000
"""Characters of the path that are told again."""


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, *, kind: str, title: str, detail: str
) -> None:
    """Answer with a problem document; a handshake is closed where the server has no way to answer it."""
    if scope["type"] == "http":
        prefix = "http.response"
    elif "websocket.http.response" in (scope.get("extensions") or {}):
        prefix = "websocket.http.response"
    else:
        await send({"type": "websocket.close", "code": 1008})
        return
    problem = {
        "type": f"urn:callboard:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": quote(scope["path"][:MAX_INSTANCE], safe=PATH_SIGNS, errors="replace"),
    }
    body = msgspec.json.encode(problem)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if scope.get("http_version", "1.1").startswith("1"):
        headers.append((b"connection", b"close"))
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body, "more_body": True})
    if scope["type"] == "http":
        with trio.move_on_after(LINGER_SECONDS):
            await _end_of_body(receive)
    await send({"type": f"{prefix}.body", "body": b"", "more_body": False})


async def _end_of_body(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
