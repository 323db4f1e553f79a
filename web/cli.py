"""The command line: ``callboard serve`` and ``callboard demo``. Finds the app, says clearly what is wrong, and leaves the rest to others.

What is heavy (trio, Quart, Hypercorn) is imported inside the commands, so that ``--help`` and ``--version`` answer at once.

Exit codes: 0 after an orderly end, 1 if the server failed, 2 for a command line that cannot be meant.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click

import callboard

__all__ = ["load_app", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(callboard.__version__, prog_name="callboard")
def main() -> None:
    """Asynchronous HTTP endpoints for Quart, run by actors."""


@main.command()
@click.argument("target", metavar="MODULE:APP")
@click.option("--bind", default="127.0.0.1:8000", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@click.option(
    "--store", metavar="URL", help="Where the jobs live: memory://, sqlite:///relative.db, sqlite:////absolute.db."
)
@click.option("--root-path", default="", metavar="PATH", help="Where a proxy shows the app, such as /shop.")
def serve(target: str, bind: str, store: str | None, root_path: str) -> None:
    """Serve a Quart-Trio app with its jobs; SIGTERM and SIGINT let it drain.

    MODULE:APP is a module as seen from here, or a file, and the app's name in it: shop.main:app, examples/todo_api.py:app.
    """
    check_bind(bind)
    root_path = checked_root_path(root_path)
    if store is not None:
        check_store(store)
    app = load_app(target)
    from callboard.runtime.core.errors import ConfigError
    from callboard.web import serve as server

    try:
        server.board_of(app)
    except ConfigError as error:
        raise _bad_target(str(error)) from error
    code = server.run(app, bind=bind, store=store, root_path=root_path)
    if code:
        click.echo(f"callboard: the server for {bind} ended with code {code}", err=True)
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


def check_bind(bind: str) -> None:
    """Raises BadParameter unless ``bind`` is ``host:port``."""
    host, colon, port = bind.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise click.BadParameter(f"{bind!r} is no host:port; an example is 127.0.0.1:8000", param_hint="--bind")


def checked_root_path(path: str) -> str:
    """``path`` without a slash at its end. Raises BadParameter unless it is empty or a path."""
    trimmed = path.rstrip("/")
    if trimmed and (trimmed[0] != "/" or "//" in trimmed or any(sign in "?#%\\" or sign <= " " for sign in trimmed)):
        raise click.BadParameter(f"{path!r} is no path; an example is /shop", param_hint="--root-path")
    return trimmed


def check_store(url: str) -> None:
    """Raises BadParameter if no store can be made of ``url``. Opens nothing."""
    from callboard.runtime.core.errors import CallboardError
    from callboard.stores.opening import open_store

    try:
        open_store(url)
    except (CallboardError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--store") from error


def load_app(target: str) -> Any:
    """The Quart-Trio app that ``module:attribute`` or ``path/to/file.py:attribute`` names; the attribute is ``app`` if left out.

    Raises click.BadParameter with what to change. An error inside the app's own module passes as it is.
    """
    where, _, attribute = target.rpartition(":") if ":" in target else (target, "", "app")
    if not where or not attribute:
        raise _bad_target(f"{target!r} is no module:app; an example is examples/todo_api.py:app")
    module = _load_file(Path(where)) if where.endswith(".py") or "/" in where else _load_module(where)
    try:
        app = getattr(module, attribute)
    except AttributeError:
        raise _bad_target(f"{where!r} has no {attribute!r}{_apps_in(module)}") from None
    from quart_trio import QuartTrio

    if not isinstance(app, QuartTrio):
        raise _bad_target(
            f"{attribute!r} in {where!r} is a {type(app).__name__}, not a QuartTrio app{_apps_in(module)}"
        )
    return app


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
