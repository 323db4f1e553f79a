"""Counts the Python source of the interpreter that runs it, one JSON line per file. Needs nothing but Python.

    python examples/count_source.py [--package json] [--limit 10]

Each line describes a file: ``number``, ``of`` (how many there are), ``file``, ``package``, ``lines``, ``tokens``, ``longest`` (the
longest function: ``name``, ``line``, ``lines``; null without one) and ``problem`` (why the file could not be parsed, null if
it could: the standard library holds broken files on purpose, as data of its own tests).

``source_survey.py`` runs this as a child process: a child leaves the server's event loop alone, which a thread that parses
would not (one large file holds the interpreter lock for 0.2 s), and it can be stopped at any instant.
"""

import argparse
import ast
import io
import json
import os
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["describe", "main", "source_files"]

NOT_LIBRARY = {"site-packages", "dist-packages"}
TOP_LEVEL = "(top level)"


def source_files(library: Path, package: str | None, limit: int | None) -> list[Path]:
    """The library's Python files in order, all or those of one package, at most ``limit``."""
    paths = (path.relative_to(library) for path in library.rglob("*.py"))
    chosen = [path for path in paths if not NOT_LIBRARY.intersection(path.parts)]
    return sorted(path for path in chosen if package in (None, package_of(path)))[:limit]


def package_of(path: Path) -> str:
    """The outermost folder of a file of the library."""
    return path.parts[0] if len(path.parts) > 1 else TOP_LEVEL


def describe(library: Path, path: Path) -> dict[str, Any]:
    """The facts of one file; see the module's docstring."""
    source = (library / path).read_bytes()
    facts: dict[str, Any] = {
        "file": path.as_posix(),
        "package": package_of(path),
        "lines": len(source.splitlines()),
        "tokens": 0,
        "longest": None,
        "problem": None,
    }
    try:
        tree = ast.parse(source)
        facts["tokens"] = sum(1 for _ in tokenize.tokenize(io.BytesIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError) as error:
        facts["problem"] = f"{type(error).__name__}: {error}"
    else:
        facts["longest"] = max(functions(tree), key=lambda function: function["lines"], default=None)
    return facts


def functions(tree: ast.AST) -> Iterator[dict[str, Any]]:
    """Name, first line and number of lines of every function in the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield {"name": node.name, "line": node.lineno, "lines": node.end_lineno - node.lineno + 1}


def main() -> None:
    """Print one JSON line per file."""
    parser = argparse.ArgumentParser(description="Count the source of this interpreter's standard library.")
    parser.add_argument("--package")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # old code in the library's own tests
    library = Path(sysconfig.get_path("stdlib"))
    paths = source_files(library, options.package, options.limit)
    try:
        for number, path in enumerate(paths, start=1):
            print(json.dumps({"number": number, "of": len(paths), **describe(library, path)}), flush=True)
    except BrokenPipeError:
        # Nobody reads any more. What is left in the buffer goes nowhere, so that the interpreter's end stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
