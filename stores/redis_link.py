"""The connections of a Redis store: three lanes, each with one connection and at most one thread.

A connection belongs to the thread that uses it. Whatever may have left something of a reply in it (a timeout, an error in
mid-reply, a cancelled call) ends it, so no reply is ever taken for another's; the next call makes a new one. Nothing is sent
twice: the one exception is a script that the server did not know, and so did not run.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import trio
from hiredis import PushNotification
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from callboard.runtime.core.errors import CallboardError, StoreUnavailable
from callboard.stores.redis_check import check_server, refusal
from callboard.stores.redis_dial import Connection, Dial, hang_up
from callboard.stores.redis_errors import code_of, unavailable
from callboard.stores.redis_scripts import Script
from callboard.stores.redis_url import RedisSettings

__all__ = ["NET_SECONDS", "Caller", "Ear", "Explain", "Line", "Link"]

PAUSE_SECONDS: Final = 0.1
"""From one failure to the next try when the one before failed too: a server that is down is not hammered, whoever asks how often."""

_LEAVE_AFTER: Final = frozenset({"READONLY", "MASTERDOWN", "NOAUTH", "NOPERM"})
"""Error replies of a server that is no master any more, or will not have us: the next call begins with a new greeting."""

NET_SECONDS: Final = 1.0
"""Messages get lost, so whoever listens looks at the news so often without one."""

T = TypeVar("T")

Explain = Callable[[RedisError], CallboardError | None]
"""What to say of an error; None for a bug of ours."""


class Caller(Protocol):
    """One connection (or one cluster client), used from one thread at a time."""

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """What the script returns: bytes, ints and lists of them. ``keys[0]`` tells the slot.

        What it raises goes through ``work``: the lane makes StoreUnavailable of it.
        """
        ...


class Ear(Protocol):
    """The subscription of the news lane."""

    @property
    def generation(self) -> int:
        """How many subscriptions there were; it changes when messages may have been missed."""
        ...

    def listen(self, seconds: float) -> list[bytes]:
        """The payloads that came; waits up to ``seconds`` for the first."""
        ...


class Line(Caller, Ear, Protocol):
    """What a lane has: one connection, or those to the nodes of a cluster. They are made at the first use, and again when lost."""

    def use(self, work: "Callable[[Any], T]", explain: Explain) -> T:
        """In a thread: what ``work`` returns, given this line. Raises what ``explain`` makes of an error of redis-py."""
        ...

    def drop(self) -> None:
        """End it for good, from any thread. A thread that waits for an answer gets an error at once."""
        ...

    def check(self, check: "Callable[[Callable[..., Any]], None]") -> None:
        """Apply ``check`` to whatever sends a command to a server that is written to; to each such server."""
        ...


MakeLine = Callable[[Dial, str | None, Callable[[], int]], Line]
"""Of the dial, the channel to listen to (None: of a lane that does not), and what counts subscriptions."""


class Link:
    """Connections of one store: three lanes. Made by a cheap constructor that does no I/O."""

    def __init__(
        self, settings: RedisSettings, *, channel: str, dial: Dial | None = None, line: MakeLine | None = None
    ) -> None:
        self._settings = settings
        self._dial = Dial(settings) if dial is None else dial
        self._channel = channel
        make: MakeLine = _Line if line is None else line
        self._write = _Lane(self._dial, make)
        self._read = _Lane(self._dial, make)
        self._news = _Lane(self._dial, make, channel)

    async def open(self) -> None:
        """Connect, and see whether the server will do. Raises StoreRefused, StoreUnavailable; nothing is connected then."""
        explain = partial(refusal, self._dial, channel=self._channel)
        check = partial(check_server, settings=self._settings, channel=self._channel)
        try:
            await self._write.call(lambda line: line.check(check), explain)
            await self._news.call(lambda line: None, explain)
        except BaseException:
            await self._close(for_good=False)
            raise

    async def aclose(self) -> None:
        """Close all connections and wait for the threads to end; again is harmless. What still runs is cut off."""
        await self._close(for_good=True)

    async def write(self, work: Callable[[Caller], T]) -> T:
        """What ``work`` returns, run in the write lane's thread. Raises StoreUnavailable, and whatever ``work`` raises."""
        return await self._write.call(work)

    async def read(self, work: Callable[[Caller], T]) -> T:
        """The same in the read lane."""
        return await self._read.call(work)

    async def news(self, work: Callable[[Caller, Ear], T]) -> T:
        """The same in the news lane, whose connection has the subscription too."""
        return await self._news.call(lambda line: work(line, line))

    async def _close(self, *, for_good: bool) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for lane in (self._write, self._read, self._news):
                    nursery.start_soon(partial(lane.close, for_good=for_good))


class _Lane:
    """One connection at a time, and a thread only while a call runs."""

    def __init__(self, dial: Dial, make: MakeLine, channel: str | None = None) -> None:
        self._dial = dial
        self._make = make
        self._channel = channel
        self._turn = trio.Lock()
        # A thread keeps its token until it ends, also when its caller has left: so there is never a second.
        self._thread = trio.CapacityLimiter(1)
        self._line: Line | None = None
        self._is_closed = False
        self._subscriptions = 0
        self._failures = 0
        self._failed_at = 0.0

    async def call(self, work: Callable[[Line], T], explain: Explain = unavailable) -> T:
        async with self._turn:
            if self._failures > 1:
                await trio.sleep_until(self._failed_at + PAUSE_SECONDS)
            if self._is_closed:
                raise StoreUnavailable("the store is not open")
            if self._line is None:
                self._line = self._make(self._dial, self._channel, self._count_subscription)
            line = self._line
            try:
                result = await trio.to_thread.run_sync(
                    partial(line.use, work, explain), abandon_on_cancel=True, limiter=self._thread
                )
            except trio.Cancelled:
                self._line = None
                line.drop()
                raise
            except StoreUnavailable:
                self._failures += 1
                self._failed_at = trio.current_time()
                raise
            self._failures = 0
            return result

    async def close(self, *, for_good: bool) -> None:
        """Cut off what runs, and wait until its thread has ended."""
        self._is_closed = self._is_closed or for_good
        line, self._line = self._line, None
        if line is not None:
            line.drop()
        async with self._thread:
            pass

    def _count_subscription(self) -> int:
        self._subscriptions += 1
        return self._subscriptions


class _Line:
    """A connection that is made at its first use, and again after it was lost. ``drop`` ends it for good, from any thread."""

    def __init__(self, dial: Dial, channel: str | None, count_subscription: Callable[[], int]) -> None:
        self._dial = dial
        self._channel = channel
        self._count_subscription = count_subscription
        self._connection: Connection | None = None
        self._era = 0
        self._heard: list[bytes] = []
        self.generation = 0
        self._lock = threading.Lock()
        self._is_used = False
        self._is_dropped = False

    def use(self, work: "Callable[[Any], T]", explain: Explain) -> T:
        """In a thread: what ``work`` returns, with a connection that is alive as far as one can see."""
        with self._lock:
            if self._is_dropped:
                raise StoreUnavailable("the store is not open")
            self._is_used = True
        told: CallboardError | None
        is_connected = False
        try:
            self._ensure_connected()
            is_connected = True
            return work(self)
        except RedisError as error:
            self._doubt(error)
            told = explain(error)
            if told is None and is_connected:
                raise
        finally:
            with self._lock:
                self._is_used = False
                if self._is_dropped:
                    self._hang_up()
        # Raised outside of the except block: the original, with its text, is then in no chain.
        raise told or StoreUnavailable("the Redis server refuses the connection")

    def drop(self) -> None:
        """End it. A thread that waits for an answer gets an error at once, and closes it."""
        with self._lock:
            self._is_dropped = True
            if self._is_used:
                self._dial.cut(self._connection)
            else:
                self._hang_up()

    def check(self, check: Callable[[Callable[..., Any]], None]) -> None:
        check(self.command)

    def command(self, *words: str | bytes | int) -> Any:
        """The reply to one command."""
        assert self._connection is not None
        self._connection.send_command(*words)
        return self._reply(self._connection)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        call = (len(keys), *keys, *args)
        try:
            return self.command("EVALSHA", script.sha, *call)
        except NoScriptError:
            # Not SCRIPT LOAD and the same again: another flush may come between the two.
            return self.command("EVAL", script.text, *call)

    def listen(self, seconds: float) -> list[bytes]:
        assert self._connection is not None
        deadline = time.monotonic() + seconds
        while not self._heard:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._hear(left)
        while self._connection.can_read(0) and self._hear(0.001):
            pass
        heard, self._heard = self._heard, []
        return heard

    def _ensure_connected(self) -> None:
        """Nothing was sent yet: a connection that the server has closed meanwhile is simply made again."""
        if self._connection is not None and not self._is_good(self._connection):
            self._hang_up()
        if self._connection is None:
            self._heard = []
            connection = self._dial.connect(self._show)
            self._era = self._dial.era
            if self._channel is not None:
                connection.send_command("SUBSCRIBE", self._channel)
                self._reply(connection)
                self.generation = self._count_subscription()

    def _show(self, connection: Connection) -> None:
        self._connection = connection
        if self._is_dropped:
            raise RedisConnectionError("dropped")

    def _is_good(self, connection: Connection) -> bool:
        try:
            # Only a subscription is told something that it did not ask for.
            is_quiet = connection.is_connected and (not connection.can_read(0) or self._channel is not None)
        except (RedisError, OSError):
            return False
        return is_quiet and self._era == self._dial.era

    def _reply(self, connection: Connection) -> Any:
        while True:
            reply = connection.read_response(push_request=self._channel is not None)
            if not isinstance(reply, PushNotification):
                return reply
            if self._note(reply) == b"subscribe":
                # It is the answer to SUBSCRIBE, which is sent once and before everything else.
                return None

    def _hear(self, seconds: float) -> bool:
        assert self._connection is not None
        try:
            self._note(self._connection.read_response(push_request=True, timeout=seconds, disconnect_on_error=False))
        except RedisTimeoutError:
            return False
        return True

    def _note(self, push: Any) -> bytes:
        kind = bytes(push[0])
        if kind == b"message":
            self._heard.append(push[2])
        return kind

    def _doubt(self, error: RedisError) -> None:
        """An error reply is a whole reply, and the connection is as good as before; after anything else it has to be a new one."""
        code = code_of(error)
        if code == "READONLY":
            self._dial.doubt_master()
        if not isinstance(error, ResponseError) or code in _LEAVE_AFTER:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            hang_up(self._connection)
            self._connection = None
