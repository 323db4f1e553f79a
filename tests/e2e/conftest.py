"""The folder, servers and journal of one test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import Site

__all__ = ["site"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A folder of servers; what is left of them is killed in the end."""
    with Site(tmp_path) as site:
        yield site
