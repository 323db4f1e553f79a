"""Which versions of Quart and Quart-Trio work together, and what to say where others are installed. Imports neither.

The package's metadata keeps other pairs out; whoever installs around it gets an ImportError from deep inside one of the two.
"""

import sys
from typing import Final, NamedTuple

__all__ = ["GENERATIONS", "Generation", "misfit"]


class Generation(NamedTuple):
    """A pair of versions, without the last number, and the first Python that it is for."""

    quart: str
    quart_trio: str
    python: tuple[int, int]


GENERATIONS: Final = (Generation("0.22", "0.12", (3, 11)), Generation("0.23", "0.13", (3, 13)))
"""As in pyproject.toml; ``tests/test_packaging.py`` holds the two together."""


def misfit() -> str | None:
    """What is wrong with the versions that are installed, and how to mend it; None if they are a pair."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        quart, quart_trio = version("quart"), version("quart-trio")
    except PackageNotFoundError as error:
        return f"{error.name} is not installed: {_remedy()}"
    if any((_minor(quart), _minor(quart_trio)) == (one.quart, one.quart_trio) for one in GENERATIONS):
        return None
    return f"Quart {quart} and Quart-Trio {quart_trio} do not work together: {_remedy()}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _remedy() -> str:
    fitting = [one for one in GENERATIONS if one.python <= sys.version_info[:2]]
    newest = fitting[-1] if fitting else GENERATIONS[0]
    return f'pip install "quart=={newest.quart}.*" "quart-trio=={newest.quart_trio}.*"'
