"""The command line: ``callboard serve``, ``worker`` and ``demo``. Finds the app, says clearly what is wrong, and leaves the rest to others.

What is heavy (trio, Quart, Hypercorn) is imported inside the commands, so that ``--help`` and ``--version`` answer at once.

Exit codes: 0 after an orderly end, 1 if the server failed, 2 for a command line that cannot be meant, 128 and its number after a second
signal.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

import callboard
from callboard.web.binds import inherited_binds
from callboard.web.server_options import LOG_LEVELS, ServerOptions

__all__ = ["load_app", "load_worker", "main"]

THREADS_SECONDS: Final = 5.0
"""What non-daemon threads and exit functions of the app get after the server's orderly end."""
_DEFAULTS: Final = ServerOptions()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(callboard.__version__, prog_name="callboard")
def main() -> None:
    """Asynchronous HTTP endpoints for Quart, run by actors."""


_store = click.option(
    "--store", metavar="URL", help="Where the jobs live: memory://, sqlite:///relative.db, sqlite:////absolute.db."
)
_jobs = click.option(
    "--jobs",
    type=click.IntRange(0),
    metavar="N",
    help="Jobs that run at a time in each process, instead of the app's max_concurrent_jobs. With 0 it serves and runs none.",
)
_reload = click.option("--reload", is_flag=True, help="For development: start anew whenever a file of the app changes.")
_log_level = click.option("--log-level", default=_DEFAULTS.log_level, show_default=True, type=click.Choice(LOG_LEVELS))


@main.command()
@click.argument("target", metavar="MODULE:APP")
@click.option(
    "--bind",
    multiple=True,
    metavar="ADDRESS",
    help="Where to listen; may be given several times: host:port (port 0: any free one), [::1]:port, unix:path, or fd://number"
    " for an inherited socket. Without it what systemd hands over, else 127.0.0.1:8000.",
)
@_store
@_jobs
@click.option("--root-path", default="", metavar="PATH", help="Where a proxy shows the app, such as /shop.")
@click.option("--workers", default=1, show_default=True, metavar="N", help="Processes that share the sockets.")
@_reload
@click.option(
    "--lead-seconds",
    default=_DEFAULTS.lead_seconds,
    show_default=True,
    metavar="SECONDS",
    help="After a signal, how long readiness is red and all else goes on before the drain: so that load balancers look elsewhere first.",
)
@click.option("--certfile", metavar="FILE", help="TLS certificate with its chain, PEM. SIGHUP rereads it and its key.")
@click.option("--keyfile", metavar="FILE", help="Its key; a password goes into CALLBOARD_KEYFILE_PASSWORD.")
@click.option("--ca-certs", metavar="FILE", help="Clients must show a certificate that one of these has signed.")
@click.option(
    "--access-log/--no-access-log",
    default=_DEFAULTS.access_log,
    show_default=True,
    help="One line of JSON for each request, on standard output.",
)
@_log_level
@click.option(
    "--max-connections",
    default=_DEFAULTS.max_connections,
    show_default=True,
    metavar="N",
    help="Connections of this process at a time; more are answered 503.",
)
@click.option(
    "--max-header-bytes",
    default=_DEFAULTS.max_header_bytes,
    show_default=True,
    metavar="BYTES",
    help="Request line and headers together; more is answered 431.",
)
@click.option(
    "--max-message-bytes",
    type=int,
    metavar="BYTES",
    help="One websocket message; more is closed with 1009. Without it, what a bulk request over a websocket needs.",
)
@click.option(
    "--keep-alive-seconds",
    default=_DEFAULTS.keep_alive_seconds,
    show_default=True,
    metavar="SECONDS",
    help="How long a connection stays open with no request on it: longer than a proxy in front keeps it.",
)
@click.pass_context
def serve(
    context: click.Context,
    /,
    target: str,
    bind: tuple[str, ...],
    store: str | None,
    jobs: int | None,
    workers: int,
    reload: bool,
    **settings: Any,
) -> None:
    """Serve a Quart-Trio app with its jobs.

    MODULE:APP is a module as seen from here, or a file, and the app's name in it: shop.main:app, examples/todo_api.py:app.

    SIGTERM and SIGINT let it drain: running jobs get the board's drain_seconds, and the process ends with 0. A second one stops it at
    once. SIGHUP rereads the certificate; without one it drains too. The exit code is 1 if the server cannot start or has died, 2 for a
    command line that cannot be meant, 128 and the signal's number after a second signal.
    """
    settings["root_path"] = settings["root_path"].rstrip("/")
    inherited = inherited_binds(os.environ)  # taken out of there, whether or not they are used
    options = _options(bind=bind or inherited or _DEFAULTS.bind, **settings)
    _start(context, target, options, store=store, jobs=jobs, queues=(), workers=workers, reload=reload)


@main.command()
@click.argument("target", metavar="MODULE:APP")
@_store
@click.option(
    "--queue", "queues", multiple=True, metavar="NAME", help="Run jobs of this queue only; may be given several times."
)
@_jobs
@click.option("--workers", default=1, show_default=True, metavar="N", help="Processes.")
@_reload
@click.option(
    "--bind",
    multiple=True,
    metavar="ADDRESS",
    help="Where to answer for health and metrics, and nothing else, as for serve. Without it nobody listens.",
)
@_log_level
@click.pass_context
def worker(
    context: click.Context,
    /,
    target: str,
    store: str | None,
    queues: tuple[str, ...],
    jobs: int | None,
    workers: int,
    reload: bool,
    bind: tuple[str, ...],
    log_level: str,
) -> None:
    """Run an app's jobs without serving it.

    MODULE:APP is found as by serve; it may also be a Callboard that is on no app, or Handlers. The app starts and ends as when it is
    served, and its handlers run in its context. Others submit to the same store.

    Signals and exit codes are those of serve.
    """
    options = _options(bind=bind, worker=True, log_level=log_level, access_log=False)
    _start(context, target, options, store=store, jobs=jobs, queues=queues, workers=workers, reload=reload)


def _start(
    context: click.Context,
    target: str,
    options: ServerOptions,
    *,
    store: str | None,
    jobs: int | None,
    queues: tuple[str, ...],
    workers: int,
    reload: bool,
) -> NoReturn:
    """Become the parent of several processes, or the one. Raises BadParameter for what cannot be meant."""
    if options.worker and jobs == 0:
        raise click.BadParameter("a worker is there to run jobs: give 1 or more", param_hint="--jobs")
    if store is not None:
        check_store(store, is_shared=workers > 1 or options.worker or jobs == 0)
    if workers < 1:
        raise click.BadParameter(f"{workers} is less than 1", param_hint="--workers")
    if workers > 1 and reload:
        raise click.BadParameter("it is for one worker", param_hint="--reload")
    if workers > 1 or reload:
        from callboard.web.workers import run_workers

        sys.exit(run_workers(_arguments_for_workers(context), options, workers=workers, reload=reload))
    from callboard.runtime.core.errors import ConfigError
    from callboard.web import serve as server
    from callboard.web.surroundings import Surroundings

    # Before the app is imported: no process that it starts may take itself for this one.
    surroundings = Surroundings.of(os.environ)
    app = load_worker(target) if options.worker else load_app(target)
    try:
        board = server.board_of(app)
    except ConfigError as error:
        raise _bad_target(str(error)) from error
    try:
        board.handlers.require_queues(queues)
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="--queue") from error
    try:
        code = server.run(app, options, store=store, jobs=jobs, queues=queues, surroundings=surroundings)
    except ConfigError as error:
        # What the environment says of the settings: the command line has been looked at.
        raise click.UsageError(str(error)) from error
    if code and surroundings.parent_fd is None:
        what = "worker" if options.worker else f"server for {', '.join(options.bind)}"
        click.echo(f"callboard: the {what} ended with code {code}", err=True)
    _end(code)


def _options(**settings: Any) -> ServerOptions:
    """Raises BadParameter for what cannot be meant."""
    from callboard.runtime.core.errors import ConfigError

    try:
        return ServerOptions(**settings)
    except ConfigError as error:
        field, _, complaint = str(error).partition(": ")
        raise click.BadParameter(complaint, param_hint=f"--{field.replace('_', '-')}") from error


def _arguments_for_workers(context: click.Context) -> list[str]:
    """What was on the command line, without what is the parent's own."""
    arguments = [context.params["target"]]
    for option in context.command.params:
        name = option.name or ""
        if name in ("target", "bind", "workers", "reload"):
            continue
        if context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(value, bool):
            arguments.append((option.opts if value else option.secondary_opts)[0])
        else:
            for one in value if isinstance(value, tuple) else (value,):
                arguments += [option.opts[0], str(one)]
    return arguments


def _end(code: int) -> NoReturn:
    """Leave; a thread of the app's own that does not end has a while, and then the process ends without it."""
    from callboard.web.watchdog import Watchdog

    Watchdog().arm(THREADS_SECONDS, code)
    sys.exit(code)


@main.command()
@click.option("--once", is_flag=True, help="End when the job has ended, instead of leaving the server up.")
@click.option(
    "--store", metavar="URL", help="Where the jobs live; without it a fresh SQLite file that is removed at the end."
)
@click.option("--package", metavar="NAME", help="Survey one package of the standard library instead of all.")
def demo(once: bool, store: str | None, package: str | None) -> None:
    """Start a server, run a real job over HTTP and follow it live. Needs a checkout: it runs examples/source_survey.py."""
    if store is not None:
        check_store(store)
    from callboard.web import demo as show

    sys.exit(show.run(once=once, store=store, package=package))


def check_store(url: str, *, is_shared: bool = False) -> None:
    """Raises BadParameter if no store can be made of ``url``, or none that several processes can share. Opens nothing."""
    from callboard.runtime.core.errors import CallboardError
    from callboard.stores.opening import open_store, require_shared

    try:
        require_shared(url) if is_shared else open_store(url)
    except (CallboardError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--store") from error


def load_app(target: str) -> Any:
    """The Quart-Trio app that ``module:attribute`` or ``path/to/file.py:attribute`` names; the attribute is ``app`` if left out.

    Raises click.BadParameter with what to change. An error inside the app's own module passes as it is.
    """
    where, attribute, module, found = _load(target)
    from quart_trio import QuartTrio

    if not isinstance(found, QuartTrio):
        raise _bad_target(
            f"{attribute!r} in {where!r} is a {type(found).__name__}, not a QuartTrio app{_apps_in(module)}"
        )
    return found


def load_worker(target: str) -> Any:
    """The same for a worker: an app that has the jobs of what ``target`` names, which may be a board or handlers, too."""
    where, attribute, module, found = _load(target)
    from callboard.runtime.core.errors import ConfigError
    from callboard.web.worker import app_of

    try:
        return app_of(found)
    except ConfigError as error:
        raise _bad_target(f"{attribute!r} in {where!r}: {error}{_apps_in(module)}") from error


def _load(target: str) -> tuple[str, str, ModuleType, Any]:
    """The place, the attribute, the module, and what is there."""
    where, _, attribute = target.rpartition(":") if ":" in target else (target, "", "app")
    if not where or not attribute:
        raise _bad_target(f"{target!r} is no module:app; an example is examples/todo_api.py:app")
    module = _load_file(Path(where)) if where.endswith(".py") or "/" in where else _load_module(where)
    try:
        return where, attribute, module, getattr(module, attribute)
    except AttributeError:
        raise _bad_target(f"{where!r} has no {attribute!r}{_apps_in(module)}") from None


def _load_module(name: str) -> ModuleType:
    # As `python -m` does: what lies in the current folder can be imported.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise _bad_target(f"there is no module {error.name!r} here or among what is installed") from None


def _load_file(path: Path) -> ModuleType:
    path = path if path.suffix == ".py" else path.with_name(path.name + ".py")
    if not path.is_file():
        raise _bad_target(f"there is no file {str(path)!r}")
    # As `python file.py` does: what lies beside the file can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    name = path.stem if path.stem not in sys.modules else f"callboard_app_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(
        spec
    )  # types are looked up there by their module's name
    spec.loader.exec_module(module)
    return module


def _apps_in(module: ModuleType) -> str:
    from quart_trio import QuartTrio

    names = [name for name, value in vars(module).items() if isinstance(value, QuartTrio)]
    return f"; it has {', '.join(sorted(names))}" if names else ""


def _bad_target(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="MODULE:APP")


if __name__ == "__main__":
    main()
