"""Fixtures: a database of each kind; of the web tests, a served app on each store; of the end-to-end tests, a folder of servers."""

from pathlib import Path

import pytest
from tests.e2e.conftest import site as servers
from tests.heritage.kit import Depot
from tests.web.conftest import open_site, site, store_url

__all__ = ["depot", "open_site", "servers", "site", "store_url"]


@pytest.fixture(params=["memory", "sqlite"])
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> Depot:
    """A fresh database."""
    return Depot(request.param, tmp_path)
