"""Fixtures of the web tests: every test runs on each store."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.redis_servers import RedisServer
from tests.web.workshop import CONFIG, Site, make_site_app, run_site

from callboard.runtime import Config
from callboard.web import Callboard

__all__ = ["OpenSite"]

OpenSite = Callable[..., Awaitable[Site]]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh store."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return server.url
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db?synchronous=normal"


@pytest.fixture
async def open_site(store_url: str) -> AsyncIterator[OpenSite]:
    """``await open_site(...)`` serves the workshop's app (or ``make_app``'s) on a real socket until the test ends."""
    sites: list[Site] = []
    async with trio.open_nursery() as nursery:

        async def start(
            *, make_app: Any = make_site_app, root_path: str = "", config: Config = CONFIG, **options: Any
        ) -> Site:
            board = Callboard(**{"store": store_url, "config": config, **options})
            site: Site = await nursery.start(partial(run_site, board, make_app, root_path=root_path))
            sites.append(site)
            return site

        yield start
        for site in sites:
            site.stop.set()


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    """The workshop with default settings."""
    return await open_site()
