"""Who may do what: the app's ``identify`` and ``authorize`` hooks and the check of ``Origin``. Owns no policy of its own but one:

an app that identifies its callers and brings no ``authorize`` gets the obvious rule, everyone sees their own jobs, and nobody is an
operator: to be named is not enough to inspect tracebacks or to pause a queue.

A hook that fails, or answers what it may not, allows nothing: the client gets a bare 500 and the log says why.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Literal

from quart.wrappers.base import BaseRequestWebsocket

from callboard.runtime.core.errors import ConfigError, JobNotFound
from callboard.runtime.core.job import Job
from callboard.web.problems import Refusal

__all__ = ["Access", "Action", "Authorize", "Identify"]

Action = Literal["submit", "read", "list", "cancel", "retry", "purge", "stream", "inspect", "pause", "metrics", "ui"]

OPERATORS: Final[frozenset[Action]] = frozenset({"inspect", "pause"})
"""What only an operator may do."""

Identify = Callable[[Any], str | Awaitable[str | None] | None]
"""``identify(request)`` names the caller, or None; the request is Quart's request or websocket. It may be async."""

Authorize = Callable[[Any, str, Job | None], bool | Awaitable[bool]]
"""``authorize(request, action, job)`` says whether the caller may; ``job`` is None where no job is meant. It may be async."""


NAMELESS: Final = ""
"""Owner of the jobs of callers whom ``identify`` does not name."""

_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s]+)", re.ASCII)
"""What a page of a website sends. Source: RFC 6454, section 7; browsers send ``null`` for a page that has none to tell."""
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class Access:
    """The hooks of one app. A plain hook is called in the event loop: it must not block."""

    def __init__(
        self, authorize: Authorize | None, identify: Identify | None, allowed_origins: Iterable[str] = ()
    ) -> None:
        self.authorize = authorize
        self.identify = identify
        self.allowed_origins = frozenset(_origin(origin) for origin in allowed_origins)

    async def caller(self, request: BaseRequestWebsocket) -> str | None:
        """The caller's name by ``identify``; None without the hook. Raises ConfigError for what is no name.

        Asked once a request. A websocket lives long: there it is asked anew each time, since a name may lose its worth meanwhile.
        """
        if self.identify is None:
            return None
        scope: Any = request.scope
        known = f"callboard.caller {id(self)}"
        if known not in scope:
            name = await _result(self.identify(request))
            if name is not None and not isinstance(name, str):
                raise ConfigError(f"identify gave a {type(name).__name__}: give the caller's name as a text, or None")
            if scope["type"] != "http":
                return name
            scope[known] = name
        found: str | None = scope[known]
        return found

    async def owner(self, request: BaseRequestWebsocket) -> str | None:
        """As whose the caller's jobs are stored and listed; None where a list is not bound to an owner.

        Where names alone decide, the nameless ones share a name, so that the store can list their jobs and nobody else's.
        """
        name = await self.caller(request)
        if not name and self.identify is not None and self.authorize is None:
            return NAMELESS
        return name

    async def allows(self, request: BaseRequestWebsocket, action: Action, job: Job | None = None) -> bool:
        """Whether the caller may do ``action``, with ``job`` where one is meant."""
        if self.authorize is not None:
            answer = await _result(self.authorize(request, action, job))
            if answer is not None and not isinstance(answer, bool):
                # A refusal that the hook wrote as a text or a response would be true.
                raise ConfigError(f"authorize gave a {type(answer).__name__} for {action!r}: give True or False")
            return bool(answer)
        if self.identify is None:
            return True
        if action in OPERATORS:
            return False
        if job is None:
            return True
        return (job.owner or NAMELESS) == (await self.caller(request) or NAMELESS)

    async def require(self, request: BaseRequestWebsocket, action: Action, job: Job | None = None) -> None:
        """Raises JobNotFound without a right to ``job``, Refusal (403) without a right to ``action``."""
        if job is not None and not await self.allows(request, "read", job):
            raise JobNotFound(f"there is no job {job.id}")
        if action != "read" and not await self.allows(request, action, job):
            raise Refusal(403, "forbidden", "You may not do that.")

    def check_origin(self, request: BaseRequestWebsocket) -> None:
        """Raises Refusal (403) for a page of another site that is not among ``allowed_origins``.

        A request without ``Origin`` comes from no page. The app's own origin is known by the Host header, whatever the scheme:
        a proxy that ends TLS hides it. What a proxy says in headers of its own does not count: anyone could send them.
        """
        if "*" in self.allowed_origins:
            return
        host = request.headers.get("Host", "").lower()
        for text in request.headers.getlist("Origin"):
            origin = _origin(text)
            if origin not in self.allowed_origins and not _is_of_host(origin, host):
                raise Refusal(403, "foreign-origin", "Pages of that origin may not do this; see allowed_origins.")


def _origin(text: str) -> str:
    """An origin as browsers send it: in small letters, without a slash at the end and without its scheme's own port."""
    origin = text.strip().rstrip("/").lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "/"))


def _is_of_host(origin: str, host: str) -> bool:
    found = _ORIGIN.fullmatch(origin)
    return found is not None and found[2] == host.removesuffix(_DEFAULT_PORTS[found[1]])


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
