"""The Quart extension: handlers on routes, the job routes under a prefix, and a runtime that lives as long as the app serves.

It brings store and runtime together (beside the command line the only module here that may open a store) and owns the runtime's start
and end. What a request is answered lies behind the routes that ``mounting`` makes.

The runtime is held by one task in ``app.nursery``. Nothing but ``trio.Cancelled`` may leave that task: an exception there would end
the lifespan and leave a server that answers without a runtime. (Measured; the one exception is ``LifespanFailureError``, which
Hypercorn takes as the wish to stop, and which is how the process ends when the runtime has died and no launcher watches.)
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeVar, Unpack

import trio
from hypercorn.utils import LifespanFailureError
from msgspec.structs import replace
from opentelemetry.trace import TracerProvider
from quart_trio import QuartTrio

from callboard.runtime import Config, Handlers, Runtime, ShuttingDown, open_runtime
from callboard.runtime.core.errors import CallboardError, ConfigError
from callboard.runtime.core.store import Store
from callboard.runtime.handlers import make_handler
from callboard.stores.opening import open_store, require_shared
from callboard.web.access import Access, Authorize, Identify
from callboard.web.asgi import is_cancellation
from callboard.web.checks import check_mapping, check_route, checked_origins, checked_responses, require_hook
from callboard.web.compat import pass_departures
from callboard.web.host_check import HostCheck
from callboard.web.lifespan import Lifespan
from callboard.web.limits import BodyLimit
from callboard.web.mapping import Mapping, View
from callboard.web.metrics import Metrics
from callboard.web.mounting import mount_jobs, mount_mapping
from callboard.web.options import HandlerOptions, MappingOptions
from callboard.web.responses import Responses, Status
from callboard.web.socket_limit import SocketLimit

__all__ = ["DEFAULT_STORE", "JOBS_VARIABLE", "STORE_VARIABLE", "Callboard", "Role"]

logger: Final = logging.getLogger("callboard.web")

F = TypeVar("F", bound=Callable[..., Any])

Role = Literal["both", "api", "worker"]
"""What a process does: HTTP and jobs, HTTP only, jobs only."""

STORE_VARIABLE: Final = "CALLBOARD_STORE"
JOBS_VARIABLE: Final = "CALLBOARD_JOBS"
DEFAULT_STORE: Final = "sqlite:///callboard.db"
SHUTDOWN_MARGIN_SECONDS: Final = 5.0
"""What ``after_serving`` may take beyond the drain."""


class _Life:
    """One start of the app: its runtime from opening to closing."""

    def __init__(self) -> None:
        self.runtime: Runtime | None = None
        self.refused: CallboardError | None = None
        self.fatal = trio.Event()
        self.closing = trio.Event()
        self.finished = trio.Event()
        self.is_leaving = False


class Callboard:
    """Asynchronous endpoints for a Quart-Trio app.

    ``store`` is a URL (``memory://``, ``sqlite:///relative.db``, ``sqlite:////absolute.db``) or a store object; without it the variable
    CALLBOARD_STORE, read at start, else ``sqlite:///callboard.db``. ``prefix`` is where the job routes are. ``identify(request)``
    names the caller, ``authorize(request, action, job)`` says what is allowed; either may be async. An app that identifies
    callers and does not authorize shows everyone their own jobs only. ``allowed_origins`` are further sites whose pages may use the
    websockets and the unsafe methods; ``"*"`` is any. ``responses`` gives
    answers the app's own form. ``openapi(document)`` gets the OpenAPI document and returns what is served: a title,
    security schemes. Spans go to ``tracer_provider``, by default OpenTelemetry's global one. Nothing is opened before the app starts.
    """

    def __init__(
        self,
        app: QuartTrio | None = None,
        *,
        store: str | Store | None = None,
        config: Config | None = None,
        prefix: str = "/jobs",
        authorize: Authorize | None = None,
        identify: Identify | None = None,
        allowed_origins: Iterable[str] = (),
        responses: Responses | None = None,
        tracer_provider: TracerProvider | None = None,
        openapi: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.config = config or Config()
        self.prefix = _checked_prefix(prefix)
        self.handlers = Handlers()
        require_hook("authorize", authorize)
        require_hook("identify", identify)
        require_hook("openapi", openapi)
        self.openapi = openapi
        self.access = Access(authorize, identify, checked_origins(allowed_origins))
        self.responses = checked_responses("responses", responses)
        self.metrics = Metrics()
        self.mappings: list[Mapping] = []
        self.has_launcher = False
        """Set by ``serve``: someone watches ``wait_started`` and ``wait_fatal`` and stops the server."""
        self.is_worker = False
        """Set by ``serve``: the app is not served, its jobs are run."""
        self._tracer_provider = tracer_provider
        self._store = store
        self._jobs: int | None = None
        self._queues: tuple[str, ...] | None = None
        self._app: QuartTrio | None = None
        self._life: _Life | None = None
        self._settled = trio.Event()
        self._sees_lifespan = False
        if app is not None:
            self.init_app(app)

    def init_app(self, app: QuartTrio) -> None:
        """Mount everything on ``app``. Raises ConfigError if that cannot work."""
        if not isinstance(app, QuartTrio):
            raise ConfigError(f"callboard runs on trio: give a quart_trio.QuartTrio app, not {type(app).__name__}")
        if self._app is not None or "callboard" in app.extensions:
            raise ConfigError("one Callboard is for one app, and an app has one: make another of each")
        for mapping in self.mappings:
            check_route(mapping, app.url_map.converters)
        self._app = app
        app.extensions["callboard"] = self
        inner = Lifespan(app.asgi_app, within=self._lifespan, started=self._started, ending=self._stop)
        bodies = BodyLimit(
            app,
            inner,
            max_body_bytes=self.config.max_body_bytes,
            max_bulk_body_bytes=self.config.max_bulk_body_bytes,
            body_seconds=self.config.body_seconds,
        )
        # HostCheck is the outermost: BodyLimit looks up routes, and would trip as Quart does. The order of the others does not matter.
        app.asgi_app = HostCheck(SocketLimit(app, bodies))  # type: ignore[method-assign]
        pass_departures(app)
        mount_jobs(app, self)
        for mapping in self.mappings:
            mount_mapping(app, self, mapping)
        app.before_serving(self._start)
        # For an app that is started without the lifespan protocol; with it, this finds the runtime closed.
        app.after_serving(self._stop)

    def use_store(self, store: str | Store) -> None:
        """Take this store from the next start on."""
        self._store = store

    def use_jobs(self, jobs: int | None, queues: Sequence[str] = ()) -> None:
        """Run so many jobs at a time and, if any are named, of these queues only, from the next start on; None leaves it as it is set.

        Raises ConfigError for a queue that no handler works on.
        """
        self.handlers.require_queues(queues)
        self._jobs, self._queues = jobs, tuple(queues) or self._queues

    @property
    def app(self) -> QuartTrio | None:
        """The app that it is mounted on."""
        return self._app

    @property
    def role(self) -> Role:
        """What this process does with the app. Raises ConfigError for settings that cannot be."""
        if self.is_worker:
            return "worker"
        runtime = None if self._life is None else self._life.runtime
        config = self._chosen_config() if runtime is None else runtime.config
        return "both" if config.max_concurrent_jobs else "api"

    def require_jobs(self) -> None:
        """Raises ConfigError if no job would ever be run."""
        if not self.handlers.names:
            raise ConfigError("there is no handler, so there is nothing to run")
        if not self._chosen_config().max_concurrent_jobs:
            raise ConfigError("it may run no jobs: give --jobs, or max_concurrent_jobs in the app's Config")

    def limit_drain(self, seconds: float) -> None:
        """Drain no longer than that, from the next start on."""
        self.config = replace(self.config, drain_seconds=min(seconds, self.config.drain_seconds))

    # Registering

    def post(self, route: str, *, name: str, **options: Unpack[MappingOptions]) -> Callable[[F], F]:
        """Map a handler to POST ``route``; see ``map`` for the options."""
        return self.map("POST", route, name=name, **options)

    def put(self, route: str, *, name: str, **options: Unpack[MappingOptions]) -> Callable[[F], F]:
        """Map a handler to PUT ``route``; see ``map`` for the options."""
        return self.map("PUT", route, name=name, **options)

    def patch(self, route: str, *, name: str, **options: Unpack[MappingOptions]) -> Callable[[F], F]:
        """Map a handler to PATCH ``route``; see ``map`` for the options."""
        return self.map("PATCH", route, name=name, **options)

    def delete(self, route: str, *, name: str, **options: Unpack[MappingOptions]) -> Callable[[F], F]:
        """Map a handler to DELETE ``route``; see ``map`` for the options."""
        return self.map("DELETE", route, name=name, **options)

    def map(
        self,
        method: Literal["POST", "PUT", "PATCH", "DELETE"],
        route: str,
        *,
        name: str,
        validate: Callable[..., Any] | None = None,
        redirect: bool = False,
        allow_delay: bool = False,
        allow_timeout: bool = False,
        allow_priority: bool = False,
        decorators: Sequence[Callable[[View], View]] = (),
        responses: Responses | None = None,
        **options: Unpack[HandlerOptions],
    ) -> Callable[[F], F]:
        """Map a handler to ``route``, in the app's own route syntax. Returns a decorator that gives the function back.

        ``validate(body)`` (``validate()`` where there is no body) runs before anything is queued and may be async: None goes on,
        anything else is the answer, as from a Quart view. ``redirect``: reading the ended job answers 303 to ``location``.
        ``allow_*`` let clients send Job-Delay and Job-Run-At, Job-Timeout, Job-Priority. ``decorators`` go round the view,
        the first outermost. ``responses``: answers of its own form, each instead of the board's. The other options are
        those of ``handler``. Raises HandlerError and ConfigError with what to change.
        """

        def register(function: F) -> F:
            handler = make_handler(name, function, **options)
            self.handlers.require_free(name)
            mapping = Mapping(
                method=method,
                route=route,
                handler=handler,
                validate=validate,
                redirect=redirect,
                allow_delay=allow_delay,
                allow_timeout=allow_timeout,
                allow_priority=allow_priority,
                decorators=decorators,
                responses=responses,
            )
            check_mapping(mapping, self.mappings, None if self._app is None else self._app.url_map.converters)
            if self._app is not None:
                mount_mapping(self._app, self, mapping)
            # Last, so that what was refused leaves nothing behind.
            self.handlers.add(handler)
            self.mappings.append(mapping)
            return function

        return register

    def handler(self, name: str, **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
        """Register a handler without a route. Options: ``process, queue, max_retries, timeout_seconds, max_lost_leases, priority, retry_on,
        no_retry_on, location``. Raises HandlerError, at once, for a name that is taken or a signature that does not fit.
        """
        return self.handlers.handler(name, **options)

    def redirects(self, name: str) -> bool:
        """Whether reading an ended job of that handler answers 303 without being asked."""
        return any(mapping.redirect for mapping in self.mappings if mapping.handler.name == name)

    def responses_of(self, mapping: Mapping | None) -> Responses:
        """The forms of a mapping's answers: its own, and the board's where it has none."""
        if mapping is None or mapping.responses is None:
            return self.responses
        return mapping.responses.over(self.responses)

    def status_form(self, name: str) -> Status | None:
        """The form of a document of that handler's jobs."""
        mapping = next((mapping for mapping in self.mappings if mapping.handler.name == name), None)
        return self.responses_of(mapping).status

    # Living

    @property
    def runtime(self) -> Runtime:
        """The runtime of the app as it runs. Raises ConfigError when the app is not running, ShuttingDown when its runtime died."""
        life = self._life
        if life is None or life.runtime is None:
            raise ConfigError("callboard is not running: it starts with the app (before_serving) and ends with it")
        if life.finished.is_set():
            raise ShuttingDown("the runtime has ended")
        return life.runtime

    def check_alive(self) -> None:
        """Raises ShuttingDown when the runtime has died."""
        if self.has_died:
            raise ShuttingDown("the runtime has died")

    @property
    def has_died(self) -> bool:
        """Whether the runtime ended by a bug of its own."""
        return self._life is not None and self._life.fatal.is_set()

    def announce_end(self) -> None:
        """Say that the drain is near: readiness is red from now on, and everything else goes on."""
        if self._life is not None:
            self._life.is_leaving = True

    def check_staying(self) -> None:
        """Raises ShuttingDown when the end was announced."""
        if self._life is not None and self._life.is_leaving:
            raise ShuttingDown("the server is about to shut down")

    def require_shared_store(self) -> None:
        """Raises ConfigError for a store that other processes cannot see."""
        require_shared(self._chosen_store())

    @property
    def refused(self) -> CallboardError | None:
        """What kept the runtime from starting, under a launcher."""
        return None if self._life is None else self._life.refused

    async def wait_started(self) -> None:
        """Return when the app's runtime runs. Raises what refused it: StoreRefused, StoreUnavailable, ConfigError."""
        await self._settled.wait()
        if self.refused is not None:
            raise self.refused

    async def wait_fatal(self) -> None:
        """Return when the runtime has died. Only while the app runs."""
        if self._life is None:
            raise ConfigError("callboard is not running: nothing to wait for")
        await self._life.fatal.wait()

    async def drain(self) -> None:
        """Take no new work, end streams and waits, let attempts end; HTTP goes on. Returns when all have stopped or it is time."""
        life = self._life
        if life is not None and life.runtime is not None and not life.finished.is_set():
            await life.runtime.drain()

    @contextmanager
    def _lifespan(self) -> Iterator[None]:
        self._sees_lifespan = True
        try:
            yield
        finally:
            # The next start may come without one.
            self._sees_lifespan = False

    async def _start(self) -> None:
        """The store is opened while the app starts, so that one that cannot be used ends the start; jobs wait for its whole start."""
        app = self._app
        assert app is not None
        self._allow_time_to_drain(app)
        life = self._life = _Life()
        await app.nursery.start(self._supervise, app, life)
        self._settled.set()
        if not self._sees_lifespan:
            self._started()

    def _started(self) -> None:
        """Every resource of the app is open."""
        if self._life is not None and self._life.runtime is not None:
            self._life.runtime.begin_claiming()

    async def _stop(self) -> None:
        """Drain and close, while every resource of the app is still open. Idempotent."""
        self._settled = trio.Event()
        if self._life is not None:
            self._life.closing.set()
            await self._life.finished.wait()
            if not self._life.fatal.is_set() and self._life.refused is None:
                self._life = None

    async def _supervise(self, app: QuartTrio, life: _Life, *, task_status: trio.TaskStatus[None]) -> None:
        around: Any = app.app_context
        try:
            async with open_runtime(
                self._opened(),
                self.handlers,
                self._chosen_config(),
                around=around,
                claims=False,
                telemetry=self.metrics,
                tracer_provider=self._tracer_provider,
            ) as runtime:
                life.runtime = runtime
                task_status.started()
                await life.closing.wait()
        except BaseException as error:
            if isinstance(error, GeneratorExit) or is_cancellation(error):
                # The app's nursery ended, because a task there has raised. Hypercorn would go on without lifespan and runtime.
                life.fatal.set()
                raise
            if life.runtime is None:
                if not self.has_launcher or not isinstance(error, CallboardError):
                    raise
                # The launcher says it in one line and ends; raised from here, Quart would add a traceback.
                life.refused = error
                task_status.started()
                return
            logger.critical("callboard's runtime has died: the server stops", exc_info=error)
            life.fatal.set()
        finally:
            life.finished.set()
        if life.fatal.is_set() and not self.has_launcher and not life.closing.is_set():
            raise LifespanFailureError("callboard", "the runtime has died")

    def _chosen_store(self) -> str | Store:
        if self._store is None:
            return os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
        return self._store

    def _chosen_config(self) -> Config:
        jobs = self._jobs
        if jobs is None and (text := os.environ.get(JOBS_VARIABLE)):
            if not (text.isascii() and text.isdigit()):
                raise ConfigError(f"{JOBS_VARIABLE} is {text!r}: give a whole number, 0 or more")
            jobs = int(text)
        config = self.config if jobs is None else replace(self.config, max_concurrent_jobs=jobs)
        return config if self._queues is None else replace(config, queues=self._queues)

    def _opened(self) -> Store:
        store = self._chosen_store()
        return open_store(store) if isinstance(store, str) else store

    def _allow_time_to_drain(self, app: QuartTrio) -> None:
        needed = self.config.drain_seconds + self.config.store_timeout_seconds + SHUTDOWN_MARGIN_SECONDS
        # None and 0 do not mean "no limit" to Quart-Trio: the first await after serving would be cancelled.
        app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = max(
            needed, app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] or 0
        )


def _checked_prefix(prefix: str) -> str:
    trimmed = prefix.rstrip("/")
    parts = trimmed.split("/")
    if (
        parts[0]
        or not trimmed
        or not all(parts[1:])
        or {".", ".."} & {*parts}
        or any(sign in trimmed for sign in "<>?#%\\")
    ):
        raise ConfigError(f"prefix is {prefix!r}: give a path of its own, such as '/jobs'")
    return trimmed
