"""From URLs to stores."""

import os
from pathlib import Path

import pytest

from callboard.runtime.core.errors import ConfigError
from callboard.runtime.core.job import Status
from callboard.stores.memory import MemoryStore
from callboard.stores.opening import open_store
from callboard.stores.sqlite import SqliteStore


@pytest.mark.parametrize("url", ["memory://", "memory:"])
async def test_memory(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, MemoryStore)
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=100)
    assert await store.counts() == {}
    await store.aclose()


@pytest.mark.parametrize("query", ["", "?synchronous=normal", "?synchronous=FULL"])
async def test_absolute_sqlite(tmp_path: Path, query: str) -> None:
    store = open_store(f"sqlite:///{tmp_path}/my%20jobs.db{query}")
    assert isinstance(store, SqliteStore)
    assert os.listdir(tmp_path) == []
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=100)
    assert (tmp_path / "my jobs.db").exists()
    level = await store._connected().engine.write(lambda c: c.execute("PRAGMA synchronous").fetchone()[0])
    assert level == (1 if "normal" in query else 2)
    await store.aclose()


async def test_relative_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("sub")
    store = open_store("sqlite:///sub/jobs.db")
    await store.open(worker="w", max_events_per_job=10, max_attempts_per_job=100)
    # It is the place at the time of opening that counts.
    monkeypatch.chdir("/")
    assert await store.lapse(limit=1) == []
    assert (tmp_path / "sub" / "jobs.db").exists()
    assert ("default", Status.QUEUED) not in await store.counts()
    await store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jobs.db",
        "memory://host",
        "memory://?x=1",
        "sqlite://",
        "sqlite:///",
        "sqlite://jobs.db",
        "sqlite://user:hunter2@host/jobs.db",
        "sqlite:///jobs.db#hunter2",
        "sqlite:///jobs.db?synchronous=off",
        "sqlite:///jobs.db?synchronous=",
        "sqlite:///jobs.db?hunter2=full",
        "sqlite:///jobs.db?synchronous=full&synchronous=normal",
        "sqlite:///jobs.db?synchronous=full&other=1",
        "postgresql://user:hunter2@host/db",
        "http://[hunter2",
    ],
)
def test_anything_else_is_refused_without_telling_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    text = str(caught.value)
    assert all(form in text for form in ("memory://", "sqlite:///relative.db", "sqlite:////absolute.db"))
    assert "hunter2" not in text and "host" not in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
