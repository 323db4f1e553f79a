"""``.ci/run`` with a ``make`` of its own and a few tests that fail: what it runs once more, and what it lets nobody off."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON = f"""#!/bin/sh
exec {sys.executable} "$@"
"""

MAKE = """#!/bin/sh
for word; do case $word in VENV=*) VENV=${word#VENV=};; esac; done
: "${VENV:=.venv}"
mkdir -p "$VENV/bin" && ln -sf ../../bin/python3 "$VENV/bin/python"
case $1 in
test) "$VENV/bin/python" -m pytest -q tests && exec make coverage;;
coverage) echo covered >>coverage; test "$TROUBLE" != coverage;;
esac
"""

TESTS = """
import os, pathlib, pytest

trouble = os.environ["TROUBLE"]

def is_first(name):
    mark = pathlib.Path(name)
    there = mark.exists()
    mark.touch()
    return not there

@pytest.mark.parametrize("word", ["a b", "c[d]", "$e"])
def test_passes_alone(word):
    assert trouble not in ("once", "again", "coverage", "stop") or not is_first("first " + word)

def test_fails_again():
    assert trouble != "again"

@pytest.mark.parametrize("number", range(11))
def test_many(number):
    assert trouble != "many" or not is_first(f"many {number}")

def test_stops():
    if trouble == "stop" and is_first("stop"):
        pytest.exit("what comes after this is not run", 3)
"""


@pytest.mark.parametrize(
    ("trouble", "passes", "end"),
    [
        ("none", True, "all passed"),
        ("once", True, "PASSED ONLY ALONE, to be mended: tests/test_x.py::test_passes_alone[a b], "),
        ("again", False, "FAILED in: once more, alone: "),
        ("many", False, "FAILED in: make test"),
        ("stop", False, "FAILED in: make test"),
        ("coverage", False, "FAILED in: "),
    ],
)
def test_what_fails_runs_once_more_alone(tmp_path: Path, trouble: str, passes: bool, end: str) -> None:
    for folder in (".ci", "bin", "tests"):
        (tmp_path / folder).mkdir()
    for name in ("run", "failed.py"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci")
    for name, text in (("python3", PYTHON), ("make", MAKE)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests" / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "tests" / "test_x.py").write_text(TESTS)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "PYENV_ROOT": str(tmp_path),
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TROUBLE": trouble,
    }
    ran = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (ran.returncode == 0) is passes, ran.stdout + ran.stderr
    assert end in ran.stdout.splitlines()[-1], ran.stdout
    has_looked = (tmp_path / "coverage").exists()
    assert has_looked is (trouble in ("none", "once", "coverage")), "coverage is looked at whenever the tests pass"
