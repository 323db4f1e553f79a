"""The launcher: an app on Hypercorn's trio worker, with an orderly end.

SIGTERM or SIGINT: the board drains while HTTP still answers (readiness 503, streams closed with 1001, waits answered), then
Hypercorn shuts down, and the process exits with 0 within the drain time. A second signal stops at once. If the runtime died, the
server stops and the exit code is 1. What will not stop (a thread, a client that pins a socket) does not keep the process: a
watchdog thread ends it.
"""

import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Final, NoReturn

import trio
from hypercorn.trio import serve as hypercorn_serve
from hypercorn.utils import LifespanFailureError
from quart_trio import QuartTrio

from callboard.runtime.core.errors import CallboardError, ConfigError
from callboard.runtime.core.store import Store
from callboard.web.board import Callboard
from callboard.web.hypercorn_fixes import SILENT_SECONDS, ServeConfig, fix
from callboard.web.rootpath import RootPath

__all__ = ["board_of", "run", "serve"]

logger: Final = logging.getLogger("callboard.serve")

GRACEFUL_SECONDS: Final = 1.0
"""What requests that still run get once the drain is over."""
MARGIN_SECONDS: Final = 1.0
"""How long after requests should have ended the watchdog ends the process."""
LEAST_SECONDS: Final = 2.0
"""A shorter drain time than this is for the jobs only: the server itself still gets so long to stop."""
KEEP_ALIVE_SECONDS: Final = 75.0
"""How long a connection stays open with no request on it: longer than proxies keep theirs, 60 s as a rule, so that none is closed
under a request."""
PING_SECONDS: Final = 20.0
"""Interval of websocket pings. Source: the wire contract."""


def board_of(app: Any) -> Callboard:
    """The board of an app. Raises ConfigError if it has none."""
    board = getattr(app, "extensions", {}).get("callboard")
    if not isinstance(board, Callboard):
        raise ConfigError("that app has no board: give it one with Callboard(app)")
    return board


def run(app: QuartTrio, *, bind: str = "127.0.0.1:8000", store: str | Store | None = None, root_path: str = "") -> int:
    """Serve ``app`` on ``bind`` (``host:port``; port 0 takes a free one) until a signal. Returns the process's exit code.

    For the main thread; it starts trio itself. ``store`` replaces the board's own; ``root_path`` is where a proxy shows the app.
    Raises ConfigError for an app without a board.
    """
    board = board_of(app)
    if store is not None:
        board.use_store(store)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return trio.run(_run, app, board, bind, root_path)


async def _run(app: QuartTrio, board: Callboard, bind: str, root_path: str) -> int:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        return await serve(app, board, bind=bind, signals=signals, root_path=root_path)


async def serve(
    app: QuartTrio,
    board: Callboard,
    *,
    bind: str,
    signals: AsyncIterator[int],
    root_path: str = "",
    ping_seconds: float = PING_SECONDS,
    silent_seconds: float = SILENT_SECONDS,
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Serve until ``signals`` yields or the runtime dies; ``task_status`` gets the bound URLs. Returns the exit code.

    Websockets are pinged every ``ping_seconds``; a peer that says nothing for ``silent_seconds`` is dropped.
    """
    fix()
    board.has_launcher = True
    _warn_if_open(board, bind)
    watchdog = Watchdog()
    failed = False
    try:
        async with trio.open_nursery() as nursery:
            stop = trio.Event()
            seen = RootPath(app, root_path) if root_path else app
            config = _hypercorn_config(bind, ping_seconds, silent_seconds)
            start = partial(hypercorn_serve, seen, config, shutdown_trigger=stop.wait)
            urls = await nursery.start(_until_served, start, nursery.cancel_scope)
            await board.wait_started()
            for url in urls:
                print(f"callboard: serving on {url}", flush=True)
            task_status.started(urls)
            nursery.start_soon(_stop_on_signal, signals, board, stop, watchdog)
            nursery.start_soon(_stop_on_death, board, stop, watchdog)
    except* (CallboardError, LifespanFailureError, OSError) as group:
        logger.error("callboard cannot serve: %s", board.refused or _first(group))
        failed = True
    finally:
        watchdog.disarm()
        board.has_launcher = False
    return 1 if failed or board.has_died else 0


class Watchdog:
    """A thread that ends the process at a deadline, whatever the event loop does."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._generation = 0
        self._lock = threading.Lock()

    def arm(self, seconds: float, exit_code: int) -> None:
        """End the process with ``exit_code`` in ``seconds``; replaces an earlier deadline."""
        with self._lock:
            self._generation += 1
            generation = self._generation
        threading.Thread(
            target=self._watch, args=(seconds, exit_code, generation), name="callboard watchdog", daemon=True
        ).start()

    def disarm(self) -> None:
        """The process ends by itself."""
        self._stopped.set()

    def _watch(self, seconds: float, exit_code: int, generation: int) -> None:
        if self._stopped.wait(seconds):
            return
        with self._lock:
            if generation != self._generation:
                return
        logger.critical(
            "something did not stop in time: the process ends now; what it held is handed on when its lease lapses"
        )
        _exit(exit_code)


async def _until_served(start: Any, scope: trio.CancelScope, *, task_status: trio.TaskStatus[Sequence[str]]) -> None:
    await start(task_status=task_status)
    scope.cancel()


async def _stop_on_signal(signals: AsyncIterator[int], board: Callboard, stop: trio.Event, watchdog: Watchdog) -> None:
    async with trio.open_nursery() as nursery:
        async for number in signals:
            if nursery.child_tasks:
                logger.critical("second signal: stopping at once")
                _exit(128 + number)
            logger.warning("signal %s: draining for up to %g s", number, board.config.drain_seconds)
            ends = trio.current_time() + max(board.config.drain_seconds, LEAST_SECONDS)
            watchdog.arm(ends - trio.current_time(), 0)
            nursery.start_soon(_drain, board, stop, watchdog, ends)


async def _drain(board: Callboard, stop: trio.Event, watchdog: Watchdog, ends: float) -> None:
    await board.drain()
    stop.set()
    watchdog.arm(min(GRACEFUL_SECONDS + MARGIN_SECONDS, ends - trio.current_time()), 0)
    await trio.sleep_forever()


async def _stop_on_death(board: Callboard, stop: trio.Event, watchdog: Watchdog) -> None:
    await board.wait_fatal()
    watchdog.arm(GRACEFUL_SECONDS + MARGIN_SECONDS, 1)
    stop.set()


def _hypercorn_config(bind: str, ping_seconds: float, silent_seconds: float) -> ServeConfig:
    config = ServeConfig()
    config.bind = [bind]
    config.graceful_timeout = GRACEFUL_SECONDS
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.websocket_ping_interval = ping_seconds
    config.silent_seconds = silent_seconds
    config.alpn_protocols = ["http/1.1"]
    config.loglevel = "WARNING"
    return config


def _warn_if_open(board: Callboard, bind: str) -> None:
    host = bind.rpartition(":")[0].strip("[]")
    if board.access.authorize is None and not _is_loopback(host):
        logger.warning(
            "ANYONE WHO CAN REACH %s MAY SUBMIT, READ AND CANCEL JOBS: give Callboard an authorize hook, or bind to 127.0.0.1",
            bind,
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _exit(code: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
