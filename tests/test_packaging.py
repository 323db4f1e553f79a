"""Both generations of Quart can be installed, each where it runs, and no mix of them; where there is one, it is told plainly."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from callboard.web.generations import GENERATIONS, misfit

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
QUARTS = ("0.20.0", "0.22.0", "0.22.1", "0.23.0", "0.23.1", "0.24.0", "1.0.0")
QUART_TRIOS = ("0.11.0", "0.12.0", "0.12.1", "0.13.0", "0.14.0", "1.0.0")
OLD = set(product(("0.22.0", "0.22.1"), ("0.12.0", "0.12.1")))
NEW = set(product(("0.23.0", "0.23.1"), ("0.13.0",)))


def allowed(python: str) -> set[tuple[str, str]]:
    """The pairs of Quart and Quart-Trio that the package's metadata lets in on this Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    wanted: dict[str, list[Requirement]] = {"quart": [], "quart-trio": []}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        if requirement.name in wanted and (requirement.marker is None or requirement.marker.evaluate(environment)):
            wanted[requirement.name].append(requirement)
    assert [len(found) for found in wanted.values()] == [1, 1], f"one requirement of each on Python {python}"
    (quart,), (quart_trio,) = wanted.values()
    return {
        (one, other)
        for one, other in product(QUARTS, QUART_TRIOS)
        if quart.specifier.contains(one) and quart_trio.specifier.contains(other)
    }


@pytest.mark.parametrize(
    ("python", "pairs"), [("3.11", OLD), ("3.12", OLD), ("3.13", NEW), ("3.14", NEW), ("3.15", NEW)]
)
def test_each_python_gets_one_generation_and_none_a_mix(python: str, pairs: set[tuple[str, str]]) -> None:
    assert allowed(python) == pairs
    number = tuple(map(int, python.split(".")))
    newest = [one for one in GENERATIONS if one.python <= number][-1]
    assert {(quart.rpartition(".")[0], trio.rpartition(".")[0]) for quart, trio in pairs} == {newest[:2]}


def test_what_is_installed_here_is_the_pair_of_this_python() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert misfit() is None
    newest = [one for one in GENERATIONS if one.python <= sys.version_info][-1]
    assert version("quart").startswith(f"{newest.quart}.") and version("quart-trio").startswith(f"{newest.quart_trio}.")


def imported(folder: Path, **versions: str) -> str:
    """The last line of what is said to an import, where these versions are installed and Quart-Trio cannot be imported."""
    (folder / "quart_trio").mkdir()
    (folder / "quart_trio" / "__init__.py").write_text("from quart.ctx import Gone")
    for name, number in versions.items():
        (folder / f"{name}-{number}.dist-info").mkdir()
        (folder / f"{name}-{number}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {number}\n")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", "from callboard.web import Callboard"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("quart", "quart_trio"), [("0.23.1", "0.12.0"), ("0.22.0", "0.13.0"), ("0.24.0", "0.14.0")])
def test_a_mix_that_is_there_nevertheless_is_told_with_its_remedy(tmp_path: Path, quart: str, quart_trio: str) -> None:
    said = imported(tmp_path, quart=quart, quart_trio=quart_trio)
    pair = ("0.22", "0.12") if sys.version_info < (3, 13) else ("0.23", "0.13")
    assert said == (
        f"ImportError: Quart {quart} and Quart-Trio {quart_trio} do not work together: "
        f'pip install "quart=={pair[0]}.*" "quart-trio=={pair[1]}.*"'
    )


def test_a_part_that_is_not_there_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        if name == "quart-trio":
            raise PackageNotFoundError(name)
        return "0.23.1"

    monkeypatch.setattr("importlib.metadata.version", missing)
    for python, remedy in [
        ((3, 10), 'pip install "quart==0.22.*" "quart-trio==0.12.*"'),
        ((3, 12), 'pip install "quart==0.22.*" "quart-trio==0.12.*"'),
        ((3, 13), 'pip install "quart==0.23.*" "quart-trio==0.13.*"'),
        ((3, 14), 'pip install "quart==0.23.*" "quart-trio==0.13.*"'),
    ]:
        monkeypatch.setattr(sys, "version_info", (*python, 1))
        assert misfit() == f"quart-trio is not installed: {remedy}"


def test_an_import_that_fails_for_another_reason_is_left_as_it_is(tmp_path: Path) -> None:
    assert "cannot import name 'Gone'" in imported(tmp_path, quart="0.23.1", quart_trio="0.13.0")
