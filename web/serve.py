"""The launcher: an app on Hypercorn's trio worker, or a worker that runs its jobs only, in one process, with an orderly end.

SIGTERM and SIGINT, and SIGHUP where there is no certificate to reread: the server leaves in the steps of ``ending``, and the process
exits with 0. A second SIGTERM or SIGINT stops at once, with 128 and its number. (A SIGHUP never counts as the second: who closes a
terminal sends several, and session managers send one right after SIGTERM.) With TLS, SIGHUP rereads certificate and key.

Exit codes: 0 after an orderly end; 1 if the server could not start, in one line that says why, or if the runtime or Hypercorn's
server died.
"""

import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import trio
from hypercorn.trio import serve as hypercorn_serve
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError
from quart_trio import QuartTrio

from callboard.runtime.core.errors import CallboardError, ConfigError
from callboard.runtime.core.store import Store
from callboard.web.access_log import AccessLog, probes
from callboard.web.asgi import ASGIApp
from callboard.web.binds import Listening, listening
from callboard.web.board import Callboard
from callboard.web.ending import GRACEFUL_SECONDS, Ending
from callboard.web.header_limit import HeaderLimit
from callboard.web.hypercorn_fixes import ServeConfig, fix, live
from callboard.web.logs import configure_logging
from callboard.web.multistream import largest_message
from callboard.web.rootpath import RootPath
from callboard.web.server_options import ServerOptions, told
from callboard.web.surroundings import Surroundings
from callboard.web.tls import Certificate
from callboard.web.watchdog import Watchdog, end_process
from callboard.web.worker import ProbesOnly

__all__ = ["board_of", "run", "serve"]

logger: Final = logging.getLogger("callboard.serve")

ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
OTHER_DESCRIPTORS: Final = 200
"""Open files besides connections: the store's, the pipes of worker processes, logs, what handlers open."""

_NO_SURROUNDINGS: Final = Surroundings()
_REFUSALS: Final = (CallboardError, LifespanFailureError, LifespanTimeoutError, OSError)
"""What keeps a server from starting and is told in one line."""


def board_of(app: Any) -> Callboard:
    """The board of an app. Raises ConfigError if it has none."""
    board = getattr(app, "extensions", {}).get("callboard")
    if not isinstance(board, Callboard):
        raise ConfigError("that app has no board: give it one with Callboard(app)")
    return board


def run(
    app: QuartTrio,
    options: ServerOptions | None = None,
    *,
    store: str | Store | None = None,
    jobs: int | None = None,
    queues: Sequence[str] = (),
    surroundings: Surroundings | None = None,
) -> int:
    """Serve ``app``, or run its jobs, until a signal. Returns the process's exit code.

    For the main thread; it starts trio itself. ``store`` replaces the board's own, ``jobs`` and ``queues`` what its settings say.
    ``surroundings`` are those of the environment, unless it was read before. Raises ConfigError for an app without a board, and for
    queues that no handler works on.
    """
    options = options or ServerOptions()
    board = board_of(app)
    if store is not None:
        board.use_store(store)
    board.use_jobs(jobs, queues)
    configure_logging(options.log_level, access=options.access_log)
    allow_descriptors(options.max_connections + OTHER_DESCRIPTORS)
    return trio.run(_run, app, board, options, surroundings or Surroundings.of(os.environ))


async def _run(app: QuartTrio, board: Callboard, options: ServerOptions, surroundings: Surroundings) -> int:
    with trio.open_signal_receiver(*ENDING_SIGNALS, signal.SIGHUP) as signals:
        return await serve(app, board, options=options, signals=signals, surroundings=surroundings)


async def serve(
    app: QuartTrio,
    board: Callboard,
    *,
    options: ServerOptions,
    signals: AsyncIterator[int],
    surroundings: Surroundings = _NO_SURROUNDINGS,
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Serve until ``signals`` yields or the runtime dies; ``task_status`` gets the bound URLs. Returns the exit code."""
    fix()
    watchdog = Watchdog()
    server = _Server(app, board, options, surroundings, watchdog)
    board.has_launcher, board.is_worker = True, options.worker
    has_failed = False
    try:
        await server.serve(signals, task_status)
    except* _REFUSALS as group:
        has_failed = True
        if server.has_started:
            logger.critical("the server has died", exc_info=group)
        else:
            doing = "run jobs" if options.worker else "serve"
            logger.error("callboard cannot %s: %s", doing, board.refused or _first(group))
    except* Exception as group:
        has_failed = True
        logger.critical("the server has died", exc_info=group)
    finally:
        watchdog.disarm()
        board.has_launcher = board.is_worker = False
    return 1 if has_failed or board.has_died else 0


class _Server:
    """One app on its sockets, from start to end."""

    def __init__(
        self, app: QuartTrio, board: Callboard, options: ServerOptions, surroundings: Surroundings, watchdog: Watchdog
    ) -> None:
        self._app = app
        self._board = board
        self._options = options
        self._surroundings = surroundings
        self._notifier = surroundings.notifier
        self._watchdog = watchdog
        self._certificate: Certificate | None = None
        self.has_started = False

    async def serve(self, signals: AsyncIterator[int], task_status: trio.TaskStatus[Sequence[str]]) -> None:
        """Return after an orderly end, or when the runtime has died. Raises what else ended it."""
        if self._board.role == "worker":
            self._board.require_jobs()
        if self._surroundings.workers > 1 or self._board.role != "both":
            self._board.require_shared_store()
        if self._surroundings.drain_seconds is not None:
            self._board.limit_drain(self._surroundings.drain_seconds)
        self._certificate = _certificate(self._options, self._surroundings.key_password)
        with listening(self._options.bind) as listeners:
            self._warn_if_open(listeners)
            urls = [one.url("http" if self._certificate is None else "https") for one in listeners]
            config = self._config(listeners)
            ending = Ending(
                self._board, self._watchdog, self._notifier, self._options.lead_seconds, config.abort_connections
            )
            app = _outermost(self._app, self._board, self._options)
            serving: Callable[..., Awaitable[None]] = hypercorn_serve if listeners else live
            start = partial(serving, app, config, shutdown_trigger=ending.stop.wait)
            async with trio.open_nursery() as nursery:
                # From the first: a start may take long, or not end at all.
                nursery.start_soon(self._obey, signals, ending)
                await nursery.start(_until_served, start, ending, nursery.cancel_scope)
                await self._board.wait_started()
                self.has_started = True
                if not ending.has_begun:
                    self._tell_started(urls)
                task_status.started(urls)
                nursery.start_soon(ending.run)
                nursery.start_soon(self._notifier.beat)
                if self._surroundings.parent_fd is not None:
                    nursery.start_soon(_stay_with_parent, self._surroundings.parent_fd, ending)

    def _config(self, listeners: Sequence[Listening]) -> ServeConfig:
        """Hypercorn's settings. It takes the sockets over, by their numbers."""
        needed = largest_message(self._board.config)
        wanted = self._options.max_message_bytes
        if wanted is not None and wanted < needed:
            raise ConfigError(
                f"max_message_bytes: {wanted} is less than the {needed} that the many-job socket takes;"
                " give more, or less to max_bulk_body_bytes"
            )
        numbers = tuple(f"fd://{one.socket.detach()}" for one in listeners)
        options = replace(self._options, bind=numbers, max_message_bytes=wanted or needed)
        config = ServeConfig.of(options, None if self._certificate is None else self._certificate.context)
        config.graceful_timeout = GRACEFUL_SECONDS
        return config

    def _warn_if_open(self, listeners: Sequence[Listening]) -> None:
        if self._board.access.authorize is not None or self._options.ca_certs is not None or self._options.worker:
            return
        for one in listeners:
            if not one.is_local:
                logger.warning(
                    "ANYONE WHO CAN REACH %s MAY SUBMIT, READ AND CANCEL JOBS:"
                    " give Callboard an authorize hook, or bind to 127.0.0.1",
                    one.address,
                )

    def _tell_started(self, urls: Sequence[str]) -> None:
        # Among several workers it is the parent that says so, once, when all are ready.
        lines = told(urls, worker=self._options.worker)
        for line in lines if self._surroundings.parent_fd is None else ():
            print(f"callboard: {line}", flush=True)
        self._notifier.ready(", ".join(lines))

    async def _obey(self, signals: AsyncIterator[int], ending: Ending) -> None:
        has_heard = False
        async for number in signals:
            if number == signal.SIGHUP and self._certificate is not None:
                self._reload(self._certificate)
                continue
            if has_heard and number == signal.SIGTERM and self._surroundings.parent_fd is not None:
                # A service manager signals every process of the service, and the parent passes on what it got itself.
                continue
            if has_heard and number in ENDING_SIGNALS:
                logger.critical("second signal: stopping at once")
                end_process(128 + number)
            has_heard = has_heard or number in ENDING_SIGNALS
            ending.ask(signal.Signals(number).name)

    def _reload(self, certificate: Certificate) -> None:
        self._notifier.reloading()
        try:
            certificate.reload()
        except ConfigError as error:
            logger.error("the old certificate stays: %s", error)
            self._notifier.ready(f"the old certificate stays: {error}")
        else:
            logger.warning("new connections get the certificate as it is now")
            self._notifier.ready("serving with the certificate reread")


def _certificate(options: ServerOptions, password: str) -> Certificate | None:
    if options.certfile is None or options.keyfile is None:
        return None
    return Certificate(options.certfile, options.keyfile, ca_certs=options.ca_certs, password=password)


def _outermost(app: ASGIApp, board: Callboard, options: ServerOptions) -> ASGIApp:
    """The app in what is the launcher's own, the innermost first. Paths are logged as clients see them."""
    if options.worker:
        app = ProbesOnly(app, board.prefix)
    app = HeaderLimit(app, max_bytes=options.max_header_bytes)
    if options.access_log:
        app = AccessLog(app, probes(board.prefix))
    if options.root_path:
        app = RootPath(app, options.root_path)
    return app


async def _until_served(
    start: Callable[..., Awaitable[None]],
    ending: Ending,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[Sequence[str]],
) -> None:
    await start(task_status=task_status)
    if not ending.stop.is_set():
        raise RuntimeError("Hypercorn's server has ended by itself")
    scope.cancel()


async def _stay_with_parent(fd: int, ending: Ending) -> None:
    from callboard.web.workers import stay_with_parent

    await stay_with_parent(fd, partial(ending.ask, "the parent process has gone"))


def allow_descriptors(needed: int) -> None:
    """Let this process open so many files, as far as the system allows; a warning says how far that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        # Some systems have a lower bound that they do not tell.
        allowed = soft
    if allowed < needed:
        logger.warning(
            "the system allows %d open files, and max_connections may need %d: raise `ulimit -n`", allowed, needed
        )


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
