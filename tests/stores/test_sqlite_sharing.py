"""Who shares an SQLite store: processes that take turns, tell each other news, and die."""

import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from tests.stores.kit import CHILD, line_of, opened, run_sql, scalar, start_child, start_python

from callboard.runtime.core.job import Status
from callboard.stores.conformance_bench import job, submit
from callboard.stores.filelock import FairLock, LifeLock, is_dead, life_lock_path, remove_dead


async def test_the_jobs_of_a_killed_process_come_back_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "parent") as store:
        await submit(store, 1, 2, 3)
        (mine,) = await store.claim(queues=["default"], names=["send"], limit=1, lease_ms=3_600_000)
        with start_child(f"hold(Path({str(path)!r}))") as child:
            try:
                assert await line_of(child) == "2"
                cursor = (await store.wait_news(None)).cursor
                # As long as it lives nothing is taken from it.
                assert await store.lapse(limit=10) == []
                with trio.move_on_after(0.6) as patience:
                    await store.wait_news(cursor)
                assert patience.cancelled_caught
                assert life_lock_path(path, "child").exists()
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait()
        with trio.fail_after(2):
            assert (await store.wait_news(cursor)).holder_died
        first = await store.lapse(limit=1)
        second = await store.lapse(limit=10)
        assert [item.job.status for item in (*first, *second)] == [Status.QUEUED, Status.QUEUED]
        assert {item.job.id for item in (*first, *second)} == {job(2).id, job(3).id}
        assert await store.lapse(limit=10) == []
        assert not life_lock_path(path, "child").exists()
        assert (await store.get([mine.job.id]))[0] == mine.job
        with trio.move_on_after(0.6) as patience:
            await store.wait_news(cursor)
        assert patience.cancelled_caught


async def test_a_restart_after_a_kill_takes_the_jobs_back_even_under_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "parent") as store:
        await submit(store, 1, 2)
    with start_child(f"hold(Path({str(path)!r}))") as child:
        assert await line_of(child) == "2"
        child.send_signal(signal.SIGKILL)
        child.wait()
    async with opened(path, "child") as store:
        assert len(await store.lapse(limit=10)) == 2


async def test_a_store_that_closes_while_it_holds_jobs_gives_them_up(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "here") as store:
        async with opened(path, "there/with: odd name" + "x" * 300) as other:
            await submit(store, 1)
            (claimed,) = await other.claim(queues=["default"], names=["send"], limit=1, lease_ms=10_000_000)
            assert await store.lapse(limit=1) == []
            assert (await other.lapse(limit=1)) == []
        (lapsed,) = await store.lapse(limit=1)
        assert (lapsed.job.id, lapsed.job.fence) == (claimed.job.id, 0)
        assert await store._connected().engine.read(lambda c: c.execute("SELECT name FROM worker").fetchall()) == [
            ("here",)
        ]


async def test_who_lets_go_and_asks_again_stands_behind_who_waits(tmp_path: Path) -> None:
    files = tmp_path / "turnstile", tmp_path / "lock"
    busy, waiting, order = FairLock(*files), FairLock(*files), list[str]()

    async def wait() -> None:
        await waiting.acquire(5)
        order.append("waiting")
        waiting.release()

    try:
        async with trio.open_nursery() as nursery:
            await busy.acquire(5)
            nursery.start_soon(wait)
            await trio.sleep(0.02)
            busy.release()
            await busy.acquire(5)
            order.append("busy")
            busy.release()
        assert order == ["waiting", "busy"]
    finally:
        busy.close()
        waiting.close()


async def test_two_busy_processes_get_about_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path):
        pass
    with (
        start_child(f"toil(Path({str(path)!r}), 1, 1.5)") as one,
        start_child(f"toil(Path({str(path)!r}), 2, 1.5)") as two,
    ):
        for child in (one, two):
            assert await line_of(child) == "ready"
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        shares = [(await line_of(child)).split() for child in (one, two)]
    done = [int(share[0]) for share in shares]
    assert sum(done) > 40
    assert min(done) * 4 > max(done), shares
    assert max(float(share[1]) for share in shares) < 1.0, shares
    assert scalar(path, "SELECT count(*) FROM job") == sum(done)


async def test_news_cross_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "parent") as store:
        cursor = (await store.wait_news(None)).cursor
        await submit(store, 1, 2)
        with start_child(f"hold(Path({str(path)!r}))") as child:
            with trio.fail_after(20):
                news = await store.wait_news(cursor)
            child.kill()
        assert [(event.job_id, event.seq) for event in news.events] == [(job(1).id, 2), (job(2).id, 2)]


async def test_more_news_than_fit_into_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "here") as here, opened(path, "there") as there:
        cursor, seen = (await here.wait_news(None)).cursor, list[str]()
        await submit(there, *range(2500))
        for size in (1000, 1000, 500):
            news = await here.wait_news(cursor)
            assert (len(news.events), news.complete) == (size, True)
            cursor, seen = news.cursor, seen + [event.job_id for event in news.events]
        assert seen == [job(number).id for number in range(2500)]


async def test_a_news_cursor_from_the_future_is_not_complete(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db") as store:
        news = await store.wait_news("n999.0")
        assert (news.complete, news.cursor) == (False, "n0.0")
        with pytest.raises(ValueError, match="cursor"):
            await store.wait_news("b1")


async def test_a_life_lock_that_is_held_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "x-worker-w.lock"
    assert is_dead(path)
    remove_dead(path)
    assert not path.exists()
    lock = LifeLock(path)
    try:
        remove_dead(path)
        assert path.exists()
        assert not is_dead(path)
        with pytest.raises(BlockingIOError):
            LifeLock(path)
    finally:
        lock.close()
    assert not path.exists()
    path.touch()
    assert is_dead(path)
    remove_dead(path)
    assert not path.exists()


async def test_the_lock_of_one_who_died_before_he_registered_goes_at_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "x[1].db"
    neighbours = [tmp_path / f"x[1].db-worker-a-{kind}.lock" for kind in ("writer", "turnstile")]
    for neighbour in neighbours:
        neighbour.touch()
    with start_python(f"{CHILD}\nlive(Path({str(path)!r}))") as child:
        try:
            assert await line_of(child) == "alive"
            async with opened(path):
                assert life_lock_path(path, "w").exists()
                assert life_lock_path(path, "child").exists(), "it lives, and may register any moment"
        finally:
            child.send_signal(signal.SIGKILL)
    assert life_lock_path(path, "child").exists()
    async with opened(path):
        assert not life_lock_path(path, "child").exists()
        assert life_lock_path(path, "w").exists()
    assert all(neighbour.exists() for neighbour in neighbours)


async def test_the_locks_of_workers_that_are_known_are_left_to_who_takes_their_jobs(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, "here"):
        run_sql(path, "INSERT INTO worker (name) VALUES ('dead')")
        life_lock_path(path, "dead").touch()
        async with opened(path, "there") as there:
            assert life_lock_path(path, "here").exists()
            assert life_lock_path(path, "dead").exists()
            await there.lapse(limit=1)
            assert not life_lock_path(path, "dead").exists()


def test_many_may_hold_and_remove_one_lock_at_once(tmp_path: Path) -> None:
    path, holders, errors = tmp_path / "x-worker-w.lock", list[int](), list[object]()

    def take_turns(number: int) -> None:
        try:
            for _ in range(300):
                remove_dead(path)
                with suppress(BlockingIOError):
                    lock = LifeLock(path)
                    holders.append(number)
                    if len(holders) > 1 or is_dead(path):
                        errors.append([*holders])
                    holders.remove(number)
                    lock.close()
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=take_turns, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    remove_dead(path)
    assert not path.exists()
