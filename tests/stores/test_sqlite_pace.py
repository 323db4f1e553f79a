"""Where an SQLite store runs its commits: on the loop, or in a thread when the disk is slow."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from tests.stores.kit import opened

from callboard.stores import pace
from callboard.stores.conformance_bench import submit


async def test_commits_leave_the_loop_when_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    run_sync = trio.to_thread.run_sync

    async def spy(*args: Any, **options: Any) -> Any:
        threads.append(args)
        return await run_sync(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", spy)
    async with opened(tmp_path / "x.db", inline_commit_below_ms=10_000) as fast:
        for number in range(5):
            await submit(fast, number)
        assert threads == []
    async with opened(tmp_path / "x.db", inline_commit_below_ms=0) as slow:
        for number in range(100, 170):
            await submit(slow, number)
        # The first measures, and one of 64 looks whether the disk has become faster.
        assert 60 < len(threads) < 70


async def test_the_loop_naps_while_a_commit_is_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(pace, "time", SimpleNamespace(sleep=naps.append, perf_counter=time.perf_counter))
    async with opened(tmp_path / "x.db", inline_commit_below_ms=0) as store:
        await submit(store, 0)
        naps.clear()
        await submit(store, 1)
        assert naps and all(0 < nap < 0.001 for nap in naps)
        naps.clear()
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        assert naps == []
