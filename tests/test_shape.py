"""The shape of the code, as shared/style.md asks: docstrings, sorted ``__all__``, short files and functions, light imports."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import callboard
from callboard.runtime.core import errors
from callboard.runtime.core.errors import CallboardError, ConfigError, StoreRefused

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ["callboard", *(found.name for found in pkgutil.walk_packages(callboard.__path__, prefix="callboard."))]
)
SOURCES = sorted(
    path
    for folder in ("runtime", "stores", "web", "src", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)
SHIPPED_LIMITS = (500, 60)
LIMITS = {"tests": (800, 100)}
"""folder -> (lines of a file, lines of a function); a test's file may hold a long row of cases, its function a small app."""
AT_START = (ConfigError, StoreRefused)
"""Errors that end the start of an app and therefore never become an answer."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_floor_is_walked() -> None:
    floors = {name.split(".")[1] for name in MODULES if "." in name}
    assert {"runtime", "stores", "web"} <= floors
    files = {path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("runtime", "stores", "web")}
    assert len(files) == len([name for name in MODULES if name.split(".")[1:2] in (["runtime"], ["stores"], ["web"])])


@pytest.mark.parametrize("name", MODULES)
def test_module_has_docstring_and_sorted_all(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    assert module.__doc__, f"{name} opens with no docstring: say what it owns and what it may not do"
    names = getattr(module, "__all__", None)
    assert names is not None, f"{name} has no __all__"
    assert list(names) == sorted(names, key=ruff_order), f"{name}.__all__ is not sorted"
    assert len(set(names)) == len(names), f"{name}.__all__ repeats a name"
    missing = [public for public in names if not hasattr(module, public)]
    assert not missing, f"{name}.__all__ names what is not there: {missing}"


def ruff_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff's RUF022 sorts."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


def test_the_map_of_the_web_names_every_module_once() -> None:
    table = (importlib.import_module("callboard.web").__doc__ or "").split("\n\n")[1]
    named = re.findall(r"\w+", re.sub(r"(?m)^ +[^,\n]+? \.+ ", " ", table))
    assert sorted(named) == sorted(path.stem for path in (ROOT / "web").glob("[!_]*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_file_is_short_and_so_are_its_functions(path: Path) -> None:
    source = path.read_text()
    most_lines, most_function_lines = LIMITS.get(path.relative_to(ROOT).parts[0], SHIPPED_LIMITS)
    assert len(source.splitlines()) <= most_lines, (
        f"{relative(path)} has over {most_lines} lines: cut it by what it owns"
    )
    tree = ast.parse(source)
    assert source == "" or ast.get_docstring(tree), f"{relative(path)} opens with no docstring"
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1})"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= most_function_lines
    ]
    assert not long, f"{relative(path)}: functions over {most_function_lines} lines: {long}"


@pytest.mark.parametrize("statement", ["import callboard", "import callboard.web.cli"])
def test_import_is_light(statement: str) -> None:
    heavy = {"trio", "quart", "quart_trio", "hypercorn", "sqlite3", "httpx", "rich", "msgspec"}
    code = f"{statement}, sys; print(*sorted(set(sys.modules) & {heavy!r}))"
    # Coverage starts itself in child processes and brings sqlite3 along.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=env)
    assert loaded.stdout.split() == []


def test_the_import_contracts_name_every_module_of_the_runtime() -> None:
    """One that is forgotten in pyproject.toml could be imported from anywhere."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = {tuple(one.get("source_modules", ())): set(one.get("forbidden_modules", ())) for one in contracts}
    modules = {f"callboard.runtime.{path.stem}" for path in (ROOT / "runtime").glob("*.py")}
    modules.discard("callboard.runtime.__init__")
    assert modules <= forbidden["callboard.stores",]
    pure_or_declared = {f"callboard.runtime.{name}" for name in ("bulk", "handlers", "ids", "payload")}
    assert modules - forbidden["callboard.web",] == pure_or_declared


def error_classes(root: type[CallboardError] = CallboardError) -> list[type[CallboardError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in error_classes(child))]


def test_every_error_is_in_the_tree_as_it_is() -> None:
    for name in MODULES:
        importlib.import_module(name)
    assert errors.__doc__ is not None
    drawn: dict[str, tuple[str, str]] = {}
    parents: list[str] = []
    for line in errors.__doc__.splitlines():
        bare = line.lstrip("│├└─ ")
        if bare and (line.startswith(("│", "├", "└", " ")) or line == "CallboardError"):
            name, _, rest = bare.partition(" ")
            depth = (len(line) - len(bare)) // 4
            parents[depth:] = [name]
            drawn[name] = (parents[depth - 1] if depth else "Exception", rest)
    known = [error for error in error_classes() if error.__module__.startswith("callboard.")]
    public = [error for error in known if error.__module__ == errors.__name__]
    # What only HTTP knows may be refused by the web alone; everything else belongs into the tree.
    assert all(error.__module__.startswith("callboard.web.") for error in set(known) - set(public))
    assert set(drawn) == {error.__name__ for error in public}
    for error in public:
        parent, rest = drawn[error.__name__]
        assert error.__bases__[0].__name__ == parent, f"{error.__name__} is drawn under {parent}"
        if error is not CallboardError and not issubclass(error, AT_START):
            again = ", again" if error.retry_helps else ""
            assert rest.startswith(f"({error.http_status}{again})"), f"{error.__name__}: the tree says {rest!r}"
            assert 400 <= error.http_status < 600
            assert error.title != CallboardError.title, f"{error.__name__} has no title of its own"


def test_typing_marker_and_links_are_there() -> None:
    package = ROOT / "src" / "callboard"
    assert (package / "py.typed").is_file()
    for floor in ("runtime", "stores", "web"):
        link = package / floor
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / floor


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), (
                f"{relative(page)} links to {link}, which is not there"
            )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout: nobody can say which files are the project's")
def test_nothing_of_one_machine_is_written_down() -> None:
    """No file of the repository holds the path of this checkout or of the home folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    needles = [f"{folder}/" for folder in (ROOT, Path.home()) if len(folder.parts) > 1]
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            text = path.read_text(errors="replace")
            assert not [needle for needle in needles if needle in text], name
