"""The three lanes of a Redis store, on real servers: no reply is another's, and nothing stays behind."""

import hashlib
import itertools
import logging
import math
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from redis.exceptions import RedisError, ResponseError
from tests.redis_servers import RedisServer, RedisServers

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.stores import redis_link
from callboard.stores.redis_link import Caller, Ear, Link
from callboard.stores.redis_scripts import Script
from callboard.stores.redis_url import RedisSettings

CHANNEL = "callboard:news"
ECHO_COUNT = itertools.count()


def script(text: str, flags: str = "") -> Script:
    text = f"#!lua {f'flags={flags}' if flags else ''}\n{text}"
    return Script("test", text, hashlib.sha1(text.encode()).hexdigest())


ECHO = script("return ARGV[1]", "no-writes")
INCREMENT = script("return redis.call('INCR', KEYS[1])")
TELL = script("return redis.call('PUBLISH', ARGV[1], ARGV[2])")
BUSY = script(
    """local function now() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end
    local stop = now() + ARGV[1] * 1000
    while now() < stop do end
    return ARGV[2]"""
)


def echo(text: str) -> Callable[[Caller], Any]:
    return lambda caller: caller.run(ECHO, ["k"], [text])


def busy(milliseconds: int) -> Callable[[Caller], Any]:
    return lambda caller: caller.run(BUSY, ["k"], [milliseconds, "late"])


def tell(caller: Caller, text: str) -> Any:
    return caller.run(TELL, ["k"], [CHANNEL, text])


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[Link]:
    link = Link(RedisSettings.of_url(url), channel=CHANNEL)
    await link.open()
    try:
        yield link
    finally:
        await link.aclose()


def ours(server: RedisServer) -> list[dict[str, str]]:
    """The server's connections that bear the store's name."""
    return [one for one in server.client().client_list() if one["name"] == "callboard"]


async def until(condition: Callable[[], Any], what: str) -> Any:
    with trio.move_on_after(60):
        while True:
            if found := condition():
                return found
            await trio.sleep(0.02)
    raise AssertionError(f"not within a minute: {what}")


async def recovers(call: Callable[[], Any], *, tries: int = 2000) -> int:
    """Call until it works again, as the runtime does; how many tries failed with StoreUnavailable."""
    for failures in range(tries):
        try:
            await call()
        except StoreUnavailable:
            continue
        return failures
    raise AssertionError("it never worked again")


@pytest.mark.parametrize("form", ["{0.url}", "{0.url}/3", "{0.unix_url}", "{0.unix_url}?db=2"])
async def test_scripts_run_in_every_lane(redis_server: RedisServer, form: str) -> None:
    async with linked(form.format(redis_server)) as link:
        assert await link.write(lambda caller: caller.run(INCREMENT, ["k"], [])) == 1
        assert await link.read(lambda caller: [caller.run(ECHO, ["k"], [text]) for text in ("a", b"\xff", 7)]) == [
            b"a",
            b"\xff",
            b"7",
        ]
        assert await link.news(lambda caller, ear: caller.run(INCREMENT, ["k"], [])) == 2
        dbs = {one["db"] for one in ours(redis_server)}
        assert dbs == {form.rpartition("/")[2] if "/3" in form else "2" if "db=2" in form else "0"}
        assert len(ours(redis_server)) == 3


async def test_the_ear_hears_what_came_before_during_and_after(redis_server: RedisServer) -> None:
    client = redis_server.client()
    async with linked(redis_server.url) as link:
        client.publish(CHANNEL, "before")
        client.publish("callboard:other", "of others")

        def during(caller: Caller, ear: Ear) -> list[list[bytes]]:
            heard = [ear.listen(30)]
            # Its message and its reply come on one connection; neither is taken for the other.
            assert tell(caller, "during") == 1
            assert caller.run(ECHO, ["k"], ["reply"]) == b"reply"
            heard.append(ear.listen(30))
            heard.append(ear.listen(0.01))
            client.publish(CHANNEL, "one")
            client.publish(CHANNEL, "two")
            heard.append(ear.listen(30) + ear.listen(0.2))
            return heard

        assert await link.news(during) == [[b"before"], [b"during"], [], [b"one", b"two"]]
        assert await link.news(lambda caller, ear: ear.generation) == 1


async def test_the_ear_says_when_it_may_have_missed_something(redis_server: RedisServer) -> None:
    client = redis_server.client()
    async with linked(redis_server.url) as link:
        assert await link.news(lambda caller, ear: ear.generation) == 1
        client.client_kill_filter(_type="pubsub")
        client.publish(CHANNEL, "missed")
        assert await link.news(lambda caller, ear: (ear.generation, ear.listen(0.05))) == (2, [])
        client.publish(CHANNEL, "heard")
        assert await link.news(lambda caller, ear: (ear.generation, ear.listen(30))) == (2, [b"heard"])

        # While it listens, too.
        def listen(caller: Caller, ear: Ear) -> None:
            # Now the connection has been looked at.
            client.client_kill_filter(_type="pubsub")
            ear.listen(60)

        with pytest.raises(StoreUnavailable, match="connection"):
            await link.news(listen)
        assert await link.news(lambda caller, ear: ear.generation) == 3


async def test_a_reading_thread_holds_up_no_writer(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.news, lambda caller, ear: ear.listen(3600))
            for number in range(20):
                assert await link.write(echo(str(number))) == str(number).encode()
            nursery.cancel_scope.cancel()


async def test_a_cancelled_call_returns_at_once_and_the_next_one_gets_its_own_reply(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        await link.write(echo("first"))
        entered = threading.Event()
        released = threading.Event()

        def stuck(caller: Caller) -> None:
            entered.set()
            # The thread itself does not look at its connection.
            released.wait(60)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write, stuck)
            await until(entered.is_set, "the thread runs")
            nursery.cancel_scope.cancel()
        # The next call waits for the old thread, so that there are never two.
        with trio.move_on_after(0.1) as scope:
            await link.write(echo("waits"))
        assert scope.cancelled_caught
        released.set()
        assert await link.write(echo("mine")) == b"mine"


async def test_a_cancelled_wait_for_a_reply_ends_its_thread_although_the_server_is_silent(
    redis_servers: RedisServers,
) -> None:
    server = redis_servers.server()
    async with linked(f"{server.url}?timeout_seconds=300") as link:
        await link.write(echo("first"))
        server.pause()
        with trio.fail_after(30):
            for lane in (link.write, link.read):
                with trio.move_on_after(0.1) as scope:
                    await lane(echo("never"))
                assert scope.cancelled_caught
            # No thread waits out its 300 seconds.
            for ended in (link._write._thread, link._read._thread):
                async with ended:
                    pass
            await link.aclose()
        server.resume()


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_cancels_brings_no_wrong_reply(redis_server: RedisServer, seed: int) -> None:
    """Source of the numbers: the probes that found 24,664 wrong replies in a client without this care."""
    chance = random.Random(seed)
    replies = cancelled = 0

    async def caller(lane: Callable[[Callable[[Caller], Any]], Any]) -> None:
        nonlocal replies, cancelled
        for number in range(60):
            text = f"{next(ECHO_COUNT)}" * chance.choice([1, 1, 1, 20_000])
            # One of three waits for its reply: it would be given those of the two before.
            with trio.move_on_after(math.inf if number % 3 == 2 else chance.uniform(0.0001, 0.01)) as scope:
                assert await lane(echo(text)) == text.encode()
                replies += 1
            cancelled += scope.cancelled_caught

    async with linked(redis_server.url) as link:
        async with trio.open_nursery() as nursery:
            for lane in (link.write, link.read, lambda work: link.news(lambda caller, _: work(caller))):
                for _ in range(4):
                    nursery.start_soon(caller, lane)
        assert await link.write(echo("end")) == b"end"
    assert cancelled > 50 and replies >= 240, (replies, cancelled)
    await until(lambda: not ours(redis_server), "every connection is closed")


async def test_a_connection_that_was_killed_while_idle_is_made_again_unnoticed(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        await link.read(echo("x"))
        for _ in range(5):
            assert redis_server.client().client_kill_filter(_type="normal", skipme=True)
            redis_server.client().client_kill_filter(_type="pubsub")
            assert await link.write(echo("a")) == b"a"
            assert await link.read(echo("b")) == b"b"
            assert await link.news(lambda caller, ear: caller.run(ECHO, ["k"], ["c"])) == b"c"
        assert len(ours(redis_server)) == 3


async def test_a_connection_that_is_killed_in_use_fails_once(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        (first,) = [one["id"] for one in ours(redis_server) if one["sub"] == "0"]

        def killed(caller: Caller) -> None:
            redis_server.client().client_kill_filter(_id=first)
            caller.run(ECHO, ["k"], ["x"])

        with pytest.raises(StoreUnavailable, match="connection"):
            await link.write(killed)
        assert await link.write(echo("again")) == b"again"


async def test_what_the_server_does_not_answer_in_time_is_unavailable_and_its_late_reply_nobodys(
    redis_server: RedisServer,
) -> None:
    async with linked(f"{redis_server.url}?timeout_seconds=0.2") as link:
        with pytest.raises(StoreUnavailable, match="in time"):
            await link.write(busy(600))
        await recovers(lambda: link.write(lambda caller: _same(caller.run(ECHO, ["k"], ["mine"]), b"mine")))
        # DEBUG SLEEP stops the whole server.
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, lambda: redis_server.run("DEBUG", "SLEEP", "0.8"))
                await trio.sleep(0.1)
                with pytest.raises(StoreUnavailable, match="in time"):
                    await link.write(echo("late"))
        await recovers(lambda: link.write(lambda caller: _same(caller.run(ECHO, ["k"], ["mine"]), b"mine")))


def _same(reply: Any, expected: bytes) -> None:
    assert reply == expected


async def test_a_command_is_sent_once_however_slow_the_server(redis_server: RedisServer) -> None:
    """redis-py's own default repeats it: the server then runs it twice."""
    slow_increment = script(
        BUSY.text.partition("\n")[2].replace("return ARGV[2]", "return redis.call('INCR', KEYS[1])")
    )
    async with linked(f"{redis_server.url}?timeout_seconds=0.2") as link:
        with pytest.raises(StoreUnavailable):
            await link.write(lambda caller: caller.run(slow_increment, ["counted"], [500]))
        client = redis_server.client()
        await until(lambda: client.get("counted"), "the script has ended")
        await trio.sleep(0.7)
        assert client.get("counted") == b"1"


async def test_a_server_that_is_gone_and_comes_back(
    redis_servers: RedisServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_servers.server(fsync="always")
    async with linked(server.url) as link:
        await link.read(echo("x"))
        server.kill()
        for lane in (link.write, link.read):
            with pytest.raises(StoreUnavailable, match="connection"):
                await lane(echo("x"))
        with pytest.raises(StoreUnavailable):
            await link.news(lambda caller, ear: ear.listen(60))
        # The next one tries at once, and those after it have to wait: a server that is down is not hammered.
        started = trio.current_time()
        for _ in range(4):
            with pytest.raises(StoreUnavailable):
                await link.write(echo("x"))
        assert trio.current_time() - started >= 2.9 * redis_link.PAUSE_SECONDS
        server.start()
        assert await link.write(echo("back")) == b"back"
        assert await link.read(echo("back")) == b"back"
        assert await link.news(lambda caller, ear: ear.generation) == 2
        started = trio.current_time()
        monkeypatch.setattr(redis_link, "PAUSE_SECONDS", 3600)
        server.restart()
        assert await link.write(echo("at once")) == b"at once"


async def test_a_script_that_the_server_has_forgotten_is_loaded_again(redis_server: RedisServer) -> None:
    async with linked(redis_server.url) as link:
        for number in (1, 2, 3):
            assert await link.write(lambda caller: caller.run(INCREMENT, ["k"], [])) == number
            redis_server.run("SCRIPT", "FLUSH")
            assert await link.news(lambda caller, ear: (tell(caller, "x"), ear.listen(30))) == (1, [b"x"])
            redis_server.run("SCRIPT", "FLUSH")


async def test_a_server_that_loads_its_data_is_unavailable(redis_servers: RedisServers) -> None:
    server = redis_servers.server(fsync="everysec")
    with server.fresh_client() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(20_000):
            pipeline.set(f"{number}", "x")
        pipeline.execute()
    async with linked(server.url) as link:
        server.restart(wait=False, key_load_delay="300")
        said = []

        async def call() -> None:
            try:
                await link.write(lambda caller: caller.run(INCREMENT, ["k"], []))
            except StoreUnavailable as error:
                said.append(str(error))
                raise

        another = Link(RedisSettings.of_url(server.url), channel=CHANNEL)
        await until(lambda: _loads(server), "it loads")
        with pytest.raises(StoreUnavailable, match="loading"):
            await another.open()
        with pytest.raises(StoreUnavailable, match="loading"):
            await call()
        server.run("CONFIG", "SET", "key-load-delay", "0")
        server.wait_ready()
        await recovers(call)


def _loads(server: RedisServer) -> bool:
    try:
        return bool(server.client().info("persistence")["loading"])
    except RedisError:
        # It is not up yet.
        return False


async def test_a_script_that_someone_kills_is_unavailable_and_nothing_breaks(redis_servers: RedisServers) -> None:
    server = redis_servers.server()
    server.run("CONFIG", "SET", "busy-reply-threshold", "50")
    async with linked(server.url) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_the_script, server)
            with pytest.raises(StoreUnavailable, match="stop a script"):
                await link.write(busy(4000))
            nursery.cancel_scope.cancel()
        assert await link.write(echo("after")) == b"after"


async def kill_the_script(server: RedisServer) -> None:
    while True:
        try:
            await trio.to_thread.run_sync(lambda: server.run("SCRIPT", "KILL"))
        except ResponseError:
            await trio.sleep(0.05)
        else:
            await trio.sleep_forever()


async def test_a_full_server_a_replica_and_a_busy_one_are_unavailable_and_nothing_breaks(
    redis_servers: RedisServers,
) -> None:
    server = redis_servers.server()
    other = redis_servers.server()
    async with linked(server.url) as link:
        before = {one["id"] for one in ours(server)}
        server.run("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await link.write(lambda caller: caller.run(INCREMENT, ["k"], []))
        server.run("CONFIG", "SET", "maxmemory", "0")
        assert await link.write(lambda caller: caller.run(INCREMENT, ["k"], [])) == 1
        # An error reply is a whole reply: the connection is as good as before.
        assert {one["id"] for one in ours(server)} == before

        server.run("CONFIG", "SET", "busy-reply-threshold", "50")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write, busy(1500))
            await trio.sleep(0.5)
            with pytest.raises(StoreUnavailable, match="busy"):
                await link.read(echo("x"))
        assert await link.read(echo("x")) == b"x"

        server.run("REPLICAOF", "127.0.0.1", str(other.port))
        with pytest.raises(StoreUnavailable, match="replica"):
            await link.write(lambda caller: caller.run(INCREMENT, ["k"], []))
        # Readers leave the old master too, although it would still answer them.
        with pytest.raises(StoreUnavailable, match="replica"):
            await link.read(echo("stale"))
        server.run("REPLICAOF", "NO", "ONE")
        await recovers(lambda: link.write(lambda caller: caller.run(INCREMENT, ["k"], [])))
        await recovers(lambda: link.read(echo("x")))


async def test_a_bug_passes_as_it_is_and_the_lane_goes_on(redis_server: RedisServer) -> None:
    def bug(caller: Caller) -> None:
        caller.run(ECHO, ["k"], ["x"])
        raise ZeroDivisionError("a bug")

    async with linked(redis_server.url) as link:
        before = {one["id"] for one in ours(redis_server)}
        with pytest.raises(ZeroDivisionError):
            await link.write(bug)
        with pytest.raises(ResponseError, match="Unknown Redis command"):
            await link.write(lambda caller: caller.run(script("return redis.call('NOSUCH')"), ["k"], []))
        assert await link.write(echo("x")) == b"x"
        assert {one["id"] for one in ours(redis_server)} == before


async def test_closing_cuts_off_what_runs_and_leaves_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    link = Link(RedisSettings.of_url(redis_server.url), channel=CHANNEL)
    await link.aclose()
    link = Link(RedisSettings.of_url(redis_server.url), channel=CHANNEL)
    await link.open()
    said: list[str] = []

    async def listen() -> None:
        with pytest.raises(StoreUnavailable) as caught:
            await link.news(lambda caller, ear: ear.listen(3600))
        said.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.sleep(0.1)
        with trio.fail_after(30):
            await link.aclose()
    assert said
    await link.aclose()
    for call in (link.write(echo("x")), link.read(echo("x")), link.news(lambda caller, ear: None)):
        with pytest.raises(StoreUnavailable, match="not open"):
            await call
    await until(lambda: not ours(redis_server), "every connection is closed")


async def test_an_open_that_fails_or_is_cancelled_leaves_nothing_and_may_be_repeated(
    redis_servers: RedisServers,
) -> None:
    server = redis_servers.server()
    link = Link(RedisSettings.of_url(server.url), channel=CHANNEL)
    server.run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreRefused, match="allkeys-lru"):
        await link.open()
    assert ours(server) == []
    server.run("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.pause()
    with trio.move_on_after(0.2) as scope:
        await link.open()
    assert scope.cancelled_caught
    server.resume()
    await link.open()
    assert await link.write(echo("x")) == b"x"
    await link.aclose()


async def test_nothing_of_redis_py_is_logged(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with linked(redis_server.url) as link:
        await link.write(echo("x"))
    assert {record.name for record in caplog.records} <= {"callboard.store"}
