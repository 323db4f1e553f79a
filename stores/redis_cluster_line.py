"""The connections of one lane to the nodes of a Redis Cluster, and who of them serves which slot.

redis-py's connections, and a routing of our own instead of its ``RedisCluster`` (docs/decisions/035). A script is sent again only when the
server said that it has not run it: MOVED, ASK, TRYAGAIN, NOSCRIPT. A connection that is lost with an answer outstanding is told.

Of a slot that is being moved only some of the keys are where a script runs, and Redis finds that out in the middle of it. So each script
names one more key, which never exists: while its slot is being moved the server refuses it at once (ASK or TRYAGAIN) instead, on
both sides. ASK is not followed, for the same reason.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from hiredis import PushNotification
from msgspec.structs import replace
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from callboard.runtime.core.errors import CallboardError, StoreRefused, StoreUnavailable
from callboard.stores.redis_dial import Connection, Dial, hang_up
from callboard.stores.redis_errors import code_of
from callboard.stores.redis_link import Explain
from callboard.stores.redis_scripts import Script
from callboard.stores.redis_url import RedisSettings

__all__ = ["Call", "ClusterDial", "ClusterLine", "channel_of"]

MOVES: Final = 5
"""How often one script is sent somewhere else."""

PATIENCE_SECONDS: Final = 1.0
"""How long a script waits for its slot to have been moved; then the store is unavailable."""

_AGAIN_SECONDS: Final = 0.02

_LEAVE_AFTER: Final = frozenset({"READONLY", "MASTERDOWN", "NOAUTH", "NOPERM", "LOADING", "CLUSTERDOWN"})
"""Error replies of a node that is not what it was, or will not have us."""

Address = tuple[str, int]
Call = tuple[Script, Sequence[str], Sequence[str | bytes | int]]
"""What ``run`` is given."""

T = TypeVar("T")


def channel_of(channel: str, space: int) -> str:
    """The channel on which a space announces its commits."""
    return f"{channel}:{space}"


class ClusterDial(Dial):
    """Makes connections to the nodes, and remembers who serves which slot; for several threads."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self._lock = threading.Lock()
        self._ranges: list[tuple[int, int, Address]] = []
        self._moved: dict[int, Address] = {}
        self._is_stale = True

    def connect_to(self, address: Address, show: Callable[[Connection], None]) -> Connection:
        """A new connection to that node. Raises what redis-py raises, and what ``show`` raises."""
        one = Dial(replace(self.settings, addresses=(address,)))
        try:
            return one.connect(show)
        finally:
            self.tried = one.tried

    def server_of(self, slot: int) -> Address | None:
        """Who serves it; None when that has to be asked again."""
        with self._lock:
            if self._is_stale:
                return None
            if slot in self._moved:
                return self._moved[slot]
            return next((address for first, last, address in self._ranges if first <= slot <= last), None)

    def masters(self) -> list[Address]:
        """Everyone who serves slots, as far as is known."""
        with self._lock:
            return list(dict.fromkeys(address for _, _, address in self._ranges))

    def nodes(self) -> list[Address]:
        """Whom to ask, in no order; all of a cluster is found through any of them."""
        known = list(dict.fromkeys([*self.masters(), *self.settings.addresses]))
        random.shuffle(known)
        return known

    def doubt(self) -> None:
        """Someone is not where he should be."""
        with self._lock:
            self._is_stale = True

    def moved(self, slot: int, address: Address) -> None:
        """A node says who serves it now."""
        with self._lock:
            self._moved[slot] = address

    def learn(self, reply: Any, teller: Address) -> bool:
        """Take in a node's CLUSTER SLOTS; whether it knows of any."""
        ranges = []
        for first, last, master, *_ in reply:
            host, port = master[0], int(master[1])
            # A node that does not know its own address leaves it out: it is the one that was asked.
            ranges.append((int(first), int(last), (host.decode() if host else teller[0], port)))
        with self._lock:
            if ranges:
                self._ranges, self._moved, self._is_stale = ranges, {}, False
        return bool(ranges)


class ClusterLine:
    """Connections to the nodes, each made at its first use and again after it was lost. ``drop`` ends them for good, from any thread."""

    def __init__(self, dial: Dial, channel: str | None, count_subscription: Callable[[], int]) -> None:
        assert isinstance(dial, ClusterDial)
        self._dial = dial
        self._channel = channel
        self._count = count_subscription
        self._connections: dict[Address, Connection] = {}
        self._coming: Connection | None = None
        self._ear: Connection | None = None
        self._heard: list[bytes] = []
        self.generation = 0
        self._lock = threading.Lock()
        self._is_used = False
        self._is_dropped = False

    # The lane

    def use(self, work: "Callable[[ClusterLine], T]", explain: Explain) -> T:
        with self._lock:
            if self._is_dropped:
                raise StoreUnavailable("the store is not open")
            self._is_used = True
        told: CallboardError | None
        try:
            if self._channel is not None:
                self._ensure_ear(self._channel)
            return work(self)
        except RedisError as error:
            told = explain(error)
            if told is None and self._coming is None:
                raise
        finally:
            with self._lock:
                self._is_used = False
                self._coming = None
                if self._is_dropped:
                    self._hang_up_all()
        # Raised outside of the except block: the original, with its text, is then in no chain.
        raise told or StoreUnavailable("the Redis server refuses the connection")

    def drop(self) -> None:
        with self._lock:
            self._is_dropped = True
            if self._is_used:
                for connection in [*list(self._connections.values()), self._coming, self._ear]:
                    self._dial.cut(connection)
            else:
                self._hang_up_all()

    def check(self, check: Callable[[Callable[..., Any]], None]) -> None:
        if self._dial.server_of(0) is None:
            self._ask_around()
        for address in self._dial.masters():
            connection = self._connection(address)

            def command(*words: str | bytes | int, connection: Connection = connection) -> Any:
                connection.send_command(*words)
                return connection.read_response()

            check(command)

    # Scripts

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        slot, words = _slot_of(keys), _words(script, keys, args)
        by_text = ("EVAL", script.text, *words[2:])
        until, moves = time.monotonic() + PATIENCE_SECONDS, 0
        while True:
            address = self._server_of(slot)
            try:
                connection = self._connection(address)
            except RedisError as error:
                # Nothing was sent: who serves it now may be another.
                moves += 1
                if moves > MOVES or self._successor(slot, address, error) is None:
                    raise
                continue
            try:
                try:
                    return self._send(address, connection, words)
                except NoScriptError:
                    # Not SCRIPT LOAD and the same again: another flush may come between the two.
                    return self._send(address, connection, by_text)
            except MovedError as error:
                moves += 1
                self._follow(error, address)
                if moves > MOVES:
                    self._dial.doubt()
                    raise
            except (AskError, TryAgainError):
                if time.monotonic() > until:
                    raise
                time.sleep(_AGAIN_SECONDS)

    def run_all(self, calls: Sequence[Call]) -> list[Any]:
        """The same for scripts that do not wait for each other, in one round trip; what one raised stands in its place."""
        if len(calls) == 1:
            return [_attempt(self, calls[0])]
        results: list[Any] = [None] * len(calls)
        by_node: dict[Address, list[int]] = {}
        for index, (_, keys, _) in enumerate(calls):
            try:
                by_node.setdefault(self._server_of(_slot_of(keys)), []).append(index)
            except RedisError as error:
                results[index] = error
        unsent: dict[int, RedisError] = {}
        try:
            for address, indices in by_node.items():
                unsent |= self._post(address, indices, calls, results)
            for address, indices in by_node.items():
                self._collect(address, [index for index in indices if index not in unsent], results)
        except BaseException:
            # Answers are outstanding that nobody will take.
            for address in by_node:
                self._leave(address)
            raise
        # Only now is nothing outstanding on any connection. What has not run finds its own way.
        servers = {index: address for address, indices in by_node.items() for index in indices}
        for index, result in enumerate(results):
            why = unsent.get(index)
            if why is not None and self._successor(_slot_of(calls[index][1]), servers[index], why) is None:
                results[index] = why
            elif why is not None or isinstance(result, AskError | TryAgainError | NoScriptError):
                results[index] = _attempt(self, calls[index])
        return results

    def _post(
        self, address: Address, indices: list[int], calls: Sequence[Call], results: list[Any]
    ) -> dict[int, RedisError]:
        """Send those calls; which of them were not sent, because the node could not be reached, and why."""
        try:
            connection = self._connection(address)
        except RedisError as error:
            return dict.fromkeys(indices, error)
        try:
            for index in indices:
                connection.send_command(*_words(*calls[index]))
        except RedisError as error:
            self._doubt(address, error)
            for index in indices:
                results[index] = error
        return {}

    def _successor(self, slot: int, address: Address, error: RedisError) -> Address | None:
        """Who serves it instead of a node that could not be reached; None when it is the same still."""
        if self._dial.server_of(slot) == address:
            self._doubt(address, error)
        try:
            found = self._server_of(slot)
        except RedisError:
            return None
        return None if found == address else found

    def _collect(self, address: Address, indices: list[int], results: list[Any]) -> None:
        connection = self._connections.get(address)
        lost: RedisError | None = None
        for index in indices:
            if results[index] is not None:
                continue
            if lost is not None or connection is None:
                results[index] = lost or RedisConnectionError("the connection was lost")
                continue
            try:
                results[index] = connection.read_response()
            except RedisError as error:
                results[index] = error
                if self._doubt(address, error):
                    lost = error

    def _send(self, address: Address, connection: Connection, words: Sequence[str | bytes | int]) -> Any:
        try:
            connection.send_command(*words)
            return connection.read_response()
        except RedisError as error:
            self._doubt(address, error)
            raise

    def _doubt(self, address: Address, error: RedisError) -> bool:
        """Whether the connection is no good any more: an error reply is a whole reply, anything else is not."""
        if isinstance(error, ResponseError) and code_of(error) not in _LEAVE_AFTER:
            return False
        if not isinstance(error, ClusterDownError):
            self._leave(address)
        self._lost(address)
        return not isinstance(error, ClusterDownError)

    def _lost(self, address: Address) -> None:
        self._dial.doubt()
        # Whoever serves it from now on may not have the last of it.
        self._tell_of_gap()

    def _tell_of_gap(self) -> None:
        if self._channel is not None:
            self.generation = self._count()

    # Who serves what

    def _server_of(self, slot: int) -> Address:
        address = self._dial.server_of(slot)
        if address is None:
            self._ask_around()
            address = self._dial.server_of(slot)
        if address is None:
            raise ClusterDownError("CLUSTERDOWN Hash slot not served")
        return address

    def _follow(self, error: MovedError, teller: Address) -> None:
        self._dial.moved(error.slot_id, (error.host or teller[0], error.port))
        self._tell_of_gap()

    def _ask_around(self) -> None:
        """Ask the nodes who serves what until one answers; those first to whom there is a connection."""
        last: RedisError | None = None
        for address in sorted(self._dial.nodes(), key=lambda one: one not in self._connections):
            try:
                connection = self._connection(address)
                connection.send_command("CLUSTER", "SLOTS")
                if self._dial.learn(connection.read_response(), address):
                    return
            except RedisError as error:
                if "cluster support disabled" in str(error):
                    raise StoreRefused("that server is not a node of a Redis Cluster: use redis://host:port") from None
                last = error
                self._leave(address)
        raise last or ClusterDownError("CLUSTERDOWN no node knows of slots")

    # The news

    def listen(self, seconds: float) -> list[bytes]:
        """What came: ``<number of the space> <payload>`` each."""
        assert self._ear is not None
        deadline = time.monotonic() + seconds
        while not self._heard:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._hear(self._ear, left)
        while self._ear.can_read(0) and self._hear(self._ear, 0.001):
            pass
        heard, self._heard = self._heard, []
        return heard

    def _hear(self, ear: Connection, seconds: float) -> bool:
        try:
            push = ear.read_response(push_request=True, timeout=seconds, disconnect_on_error=False)
        except RedisTimeoutError:
            return False
        except RedisError:
            self._leave_ear()
            raise
        if bytes(push[0]) == b"message":
            self._heard.append(push[1].rpartition(b":")[2] + b" " + push[2])
        return True

    def _ensure_ear(self, channel: str) -> None:
        """Messages go to every node, so any will do."""
        try:
            while self._ear is not None and self._ear.can_read(0) and self._hear(self._ear, 0.001):
                pass
        except (RedisError, OSError):
            self._leave_ear()
        if self._ear is not None and self._ear.is_connected:
            return
        self._leave_ear()
        last: RedisError | None = None
        for address in self._dial.nodes():
            try:
                ear = self._dial.connect_to(address, self._show)
                self._ear, self._coming, self._heard = ear, None, []
                channels = [channel_of(channel, space) for space in range(self._dial.settings.spaces)]
                ear.send_command("SUBSCRIBE", *channels)
                for _ in channels:
                    self._confirm(ear)
                self._tell_of_gap()
                return
            except RedisError as error:
                last = error
                self._leave_ear()
        raise last or RedisConnectionError("no node is known")

    def _confirm(self, ear: Connection) -> None:
        while True:
            push = ear.read_response(push_request=True)
            if isinstance(push, PushNotification) and bytes(push[0]) == b"subscribe":
                return

    def _leave_ear(self) -> None:
        if self._ear is not None:
            hang_up(self._ear)
            self._ear = None

    # Connections

    def _connection(self, address: Address) -> Connection:
        """One that is alive as far as one can see: nothing was sent yet, so one that was closed is simply made again."""
        connection = self._connections.get(address)
        if connection is not None and not _is_quiet(connection):
            self._leave(address)
            connection = None
        if connection is None:
            connection = self._dial.connect_to(address, self._show)
            self._connections[address], self._coming = connection, None
        return connection

    def _show(self, connection: Connection) -> None:
        self._coming = connection
        if self._is_dropped:
            raise RedisConnectionError("dropped")

    def _leave(self, address: Address) -> None:
        connection = self._connections.pop(address, None)
        if connection is not None:
            hang_up(connection)

    def _hang_up_all(self) -> None:
        for address in list(self._connections):
            self._leave(address)
        self._leave_ear()


def _is_quiet(connection: Connection) -> bool:
    try:
        return connection.is_connected and not connection.can_read(0)
    except (RedisError, OSError):
        return False


def _slot_of(keys: Sequence[str]) -> int:
    return key_slot(keys[0].encode())


def _words(script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> tuple[str | bytes | int, ...]:
    tag = keys[0][: keys[0].index("}") + 1]
    return ("EVALSHA", script.sha, len(keys) + 1, *keys, f"{tag}:moving", *args)


def _attempt(line: ClusterLine, call: Call) -> Any:
    try:
        return line.run(*call)
    except RedisError as error:
        return error
