"""Whether a Redis server will do for a store, asked at ``open``; what it refuses, it says how to mend.

A server that is away or loads its data is no reason to refuse: that is StoreUnavailable. What is said holds no text of the server.
"""

import logging
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import json
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from callboard.runtime.core.errors import CallboardError, StoreRefused, StoreUnavailable
from callboard.stores.redis_dial import Dial, NoMaster
from callboard.stores.redis_errors import causes_of, code_of, unavailable, without_connection
from callboard.stores.redis_url import Kind, RedisSettings, Tls

__all__ = ["COMMANDS", "MINIMUM", "PROBE", "check_server", "permissions", "read_info", "refusal"]

logger = logging.getLogger("callboard.store")

MINIMUM: Final = (7, 0)
"""The oldest Redis: scripts that say of themselves that they may end jobs when memory is full, and what they need, came with it."""

COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "DEL": ("KEY",),
    "EXISTS": ("KEY",),
    "GET": ("KEY",),
    "HDEL": ("KEY", "f"),
    "HGET": ("KEY", "f"),
    "HGETALL": ("KEY",),
    "HINCRBY": ("KEY", "f", "1"),
    "HMGET": ("KEY", "f"),
    "HSCAN": ("KEY", "0"),
    "HSET": ("KEY", "f", "v"),
    "HSETNX": ("KEY", "f", "v"),
    "LRANGE": ("KEY", "0", "1"),
    "LTRIM": ("KEY", "0", "1"),
    "PUBLISH": ("CHANNEL", "m"),
    "RPUSH": ("KEY", "v"),
    "SADD": ("KEY", "m"),
    "SET": ("KEY", "v"),
    "SISMEMBER": ("KEY", "m"),
    "SMEMBERS": ("KEY",),
    "SREM": ("KEY", "m"),
    "TIME": (),
    "XADD": ("KEY", "*", "f", "v"),
    "XRANGE": ("KEY", "-", "+"),
    "ZADD": ("KEY", "1", "m"),
    "ZCARD": ("KEY",),
    "ZRANGE": ("KEY", "0", "1"),
    "ZRANGEBYSCORE": ("KEY", "0", "1"),
    "ZREM": ("KEY", "m"),
    "ZREVRANGEBYLEX": ("KEY", "+", "-"),
    "ZSCORE": ("KEY", "m"),
}
"""What the store's scripts call, with arguments of the right shape to ask whether the user may."""

PROBE: Final = """#!lua flags=no-writes
local denied = {}
for _, line in ipairs(ARGV) do
  local words = cjson.decode(line)
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if known and not allowed then denied[#denied + 1] = words[1] end
end
return denied"""
"""Returns which of the commands in ARGV, each a JSON array, the user may not run. It runs none of them."""

Command = Callable[..., Any]
"""Sends the words of one command, returns its reply. Raises what redis-py raises."""


def permissions(prefix: str, kind: Kind = "standalone") -> str:
    """The rules of ACL SETUSER that a store's user needs."""
    if kind == "cluster":
        places, more = (
            f"~{{{prefix}:* &{prefix}:* &{{{prefix}:*",
            "+cluster|slots +cluster|shards +cluster|nodes +asking +ssubscribe +spublish",
        )
    else:
        places, more = f"~{{{prefix}}}:* &{prefix}:*", "+select"
    return f"{places} +@read +@write -@dangerous +eval +evalsha +publish +subscribe +time +ping +info {more}"


def check_server(command: Command, *, settings: RedisSettings, channel: str) -> None:
    """Ask one server, which will be written to. Raises StoreRefused, StoreUnavailable, and what ``command`` raises."""
    info = read_info(command("INFO"))
    _check_version(info)
    _check_mode(info, settings.kind)
    if info.get("loading", "0") != "0":
        raise StoreUnavailable("the Redis server is loading its data from disk")
    if info.get("role") not in (None, "master"):
        raise _replica(settings.kind)
    policy = info.get("maxmemory_policy")
    if policy not in (None, "noeviction"):
        raise StoreRefused(
            f"the Redis server has maxmemory-policy {_plain(policy)}: it would throw jobs away when its memory is full."
            " Set maxmemory-policy to noeviction (CONFIG SET and the server's configuration, or the provider's settings),"
            " or give callboard a server of its own"
        )
    _check_reader_of_the_file(command, info)
    denied = _denied(command, settings, channel)
    if denied:
        raise StoreRefused(f"{_needs(settings)}; it may not run {', '.join(denied)} there")
    _warn_of_no_persistence(command, info)


def read_info(reply: bytes | str) -> dict[str, str]:
    """The fields of an answer to INFO."""
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def refusal(dial: Dial, error: RedisError, *, channel: str) -> CallboardError | None:
    """What to say at ``open`` of a connection that was not made, or of a check that failed. May look at the server; None for a bug."""
    settings = dial.settings
    if isinstance(error, NoMaster):
        return _of_sentinels(dial, error)
    code = code_of(error)
    if code == "NOAUTH":
        return StoreRefused(
            "the Redis server wants a password: give it in the store's URL, as in redis://:password@host"
        )
    if code == "WRONGPASS":
        return StoreRefused(
            "the Redis server does not take that user and password: check both in the store's URL (percent-encode them), and the"
            " user with ACL LIST on the server"
        )
    if code == "NOPERM":
        return StoreRefused(f"{_needs(settings)}, and subscribe to the channel {channel}")
    if code == "READONLY":
        return _replica(settings.kind)
    if code is not None:
        return unavailable(error)
    if isinstance(error, ResponseError):
        return _of_reply(str(error))
    return _of_tls(error, *dial.tried) or unavailable(error)


def _check_version(info: Mapping[str, str]) -> None:
    # Valkey began at 7.2 and calls that its Redis version for ever.
    if "valkey_version" in info or info.get("server_name") == "valkey":
        return
    version = info.get("redis_version", "")
    numbers = tuple(int(number) for number in re.findall(r"[0-9]+", version)[:2])
    if numbers < MINIMUM:
        least = ".".join(map(str, MINIMUM))
        raise StoreRefused(
            f"the Redis server is of version {_plain(version)}, too old: use Redis {least} or newer, or Valkey"
        )


def _check_mode(info: Mapping[str, str], kind: Kind) -> None:
    mode = info.get("redis_mode")
    if mode == "sentinel":
        raise StoreRefused("that is a Sentinel, no data server: use redis+sentinel://host:port/service")
    if mode == "cluster" and kind != "cluster":
        raise StoreRefused("that server is a node of a Redis Cluster: use redis+cluster://host:port")
    if mode == "standalone" and kind == "cluster":
        raise StoreRefused("that server is not a node of a Redis Cluster: use redis://host:port")


def _replica(kind: Kind) -> CallboardError:
    if kind == "standalone":
        return StoreRefused(
            "the Redis server is a replica and takes no writes: give its master's address, or the sentinels', as in"
            " redis+sentinel://host:port/service"
        )
    return StoreUnavailable("the Redis server that should be the master is a replica now")


def _needs(settings: RedisSettings) -> str:
    return (
        "the Redis user may not do what the store needs: give it"
        f" 'ACL SETUSER <user> {permissions(settings.prefix, settings.kind)}'"
    )


def _denied(command: Command, settings: RedisSettings, channel: str) -> list[str]:
    space = f"{settings.prefix}:0" if settings.kind == "cluster" else settings.prefix
    places = {"KEY": f"{{{space}}}:probe", "CHANNEL": channel}
    lines = [json.encode([name, *(places.get(word, word) for word in words)]) for name, words in COMMANDS.items()]
    try:
        command("EVALSHA", "0" * 40, 0)
    except NoScriptError:
        # Of course; but it may be asked for.
        pass
    return [name.decode() for name in command("EVAL", PROBE, 0, *lines)]


def _check_reader_of_the_file(command: Command, info: Mapping[str, str]) -> None:
    """At its start the server reads its append-only file as the user ``default``, and drops the writes of scripts that this one may not do.

    Source: redis/redis#14541.
    """
    if info.get("aof_enabled") != "1":
        return
    try:
        reply = command("ACL", "GETUSER", "default")
    except ResponseError:
        # Not allowed, as to the user that is documented: docs/durability.md says what to do.
        return
    user = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    if user and (user[b"commands"].strip() != b"+@all" or b"~*" not in user[b"keys"].split()):
        raise StoreRefused(
            "the Redis server would lose the jobs at its next start: it reads its append-only file as the user default, which may not do"
            " everything. Give it 'ACL SETUSER default off ~* &* +@all': nobody can log in as a user that is off"
        )


def _warn_of_no_persistence(command: Command, info: Mapping[str, str]) -> None:
    if info.get("aof_enabled") != "0":
        return
    try:
        reply = command("CONFIG", "GET", "save")
    except ResponseError:
        # Not allowed, as with many providers: then they know what they promise.
        return
    save = reply.get(b"save") if isinstance(reply, dict) else None
    if save == b"":
        logger.warning(
            "the Redis server keeps its data in memory only (neither appendonly nor save is set): all jobs are lost when it"
            " restarts; set appendonly to yes"
        )


def _of_reply(text: str) -> CallboardError:
    """What an error reply says that has no code of its own."""
    lower = text.lower()
    if "unknown command" in lower and ("hello" in lower or "acl" in lower):
        least = ".".join(map(str, MINIMUM))
        return StoreRefused(f"the Redis server is too old: use Redis {least} or newer, or Valkey")
    if text.startswith("DENIED"):
        return StoreRefused(
            "the Redis server is in protected mode and takes connections from its own machine only: give it a password"
        )
    if "db index" in lower or "cluster mode" in lower:
        return StoreRefused("the Redis server does not have the db of the store's URL")
    return StoreRefused(
        "the Redis server refuses a command that the store begins with: is it Redis or Valkey, and no proxy?"
    )


def _of_sentinels(dial: Dial, error: NoMaster) -> CallboardError:
    if error.last is None:
        return StoreRefused(
            "the sentinels know no service of that name: it is the one of `sentinel monitor` in their configuration"
        )
    code = code_of(error.last)
    if code in ("NOAUTH", "WRONGPASS"):
        return StoreRefused(
            "the sentinels do not take our user and password: they have their own, sentinel_username= and sentinel_password= in the"
            " store's URL"
        )
    if code == "NOPERM":
        return StoreRefused(
            "the sentinels do not let the user ask for the master: give it"
            " 'ACL SETUSER <user> +sentinel|get-master-addr-by-name' there"
        )
    if isinstance(error.last, ResponseError):
        return StoreRefused("what should be a Sentinel is none: a Redis server's own URL is redis://host:port")
    return _of_tls(error.last, *dial.tried) or without_connection("none of the sentinels can be reached", error.last)


def _of_tls(error: BaseException, address: tuple[str, int] | None, tls: Tls | None) -> CallboardError | None:
    """What was wrong with TLS; None when it was something else."""
    causes = list(causes_of(error))
    if tls is None:
        is_cut = not any(isinstance(cause, ConnectionRefusedError | socket.gaierror) for cause in causes)
        if address is not None and is_cut and isinstance(error, RedisConnectionError) and _speaks_tls(address):
            return StoreRefused("the Redis server speaks TLS on that port: use rediss://")
        return None
    bad = _bad_file(tls)
    if bad is not None:
        return StoreRefused(bad)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreRefused(_of_certificate(cause))
    if address is not None and not _takes_certificate(address, tls):
        return StoreRefused(
            "the Redis server does not take our certificate, or wants one: give one that it trusts with ssl_certfile= and"
            " ssl_keyfile= in the store's URL"
        )
    if address is not None and _speaks_plain(address):
        return StoreRefused("the Redis server speaks no TLS on that port: use redis://, or the server's TLS port")
    return None


def _bad_file(tls: Tls) -> str | None:
    """What is wrong with the files that the settings name."""
    context = ssl.create_default_context()
    if tls.ca_file is not None:
        try:
            context.load_verify_locations(tls.ca_file)
        except OSError:
            return "ssl_ca_certs names no file that can be read and holds certificates of CAs in PEM format"
    if tls.cert_file is not None:
        try:
            # Without a password here, OpenSSL would ask the terminal for it.
            context.load_cert_chain(tls.cert_file, tls.key_file, tls.key_password.reveal() if tls.key_password else "")
        except OSError as error:
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                return "ssl_keyfile is not the key of ssl_certfile"
            return (
                "ssl_certfile and ssl_keyfile name no files that can be read and hold a certificate and its key in PEM format, or"
                " ssl_password does not open the key"
            )
    return None


def _of_certificate(error: ssl.SSLCertVerificationError) -> str:
    # Source: OpenSSL, x509_vfy.h.
    if error.verify_code in (62, 64):
        return (
            "the Redis server's certificate is for another host name than the store's URL has: use a name that is in it"
        )
    if error.verify_code in (9, 10):
        return "the Redis server's certificate is out of date, or this machine's clock is wrong"
    return "the Redis server's certificate is not of a CA that is trusted here: name the CA's file with ssl_ca_certs= in the store's URL"


_PROBE_SECONDS: Final = 2.0
_ALERT_SECONDS: Final = 0.5


def _speaks_tls(address: tuple[str, int]) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Nothing is sent: it is only asked whether someone speaks TLS there.
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(address, _PROBE_SECONDS) as plain:
            with context.wrap_socket(plain):
                return True
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)
    except OSError:
        return False


def _takes_certificate(address: tuple[str, int], tls: Tls) -> bool:
    """False when the server says that it is not content with it, which it does after the handshake of TLS 1.3 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file, tls.key_password.reveal() if tls.key_password else "")
        with socket.create_connection(address, _PROBE_SECONDS) as plain:
            with context.wrap_socket(plain) as secure:
                # Nothing is sent: an answer that is under way when the server closes would be lost with it.
                secure.settimeout(_ALERT_SECONDS)
                secure.recv(1)
    except ssl.SSLError as error:
        return not re.search("CERT|UNKNOWN_CA", str(error.reason))
    except OSError:
        pass
    return True


def _speaks_plain(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, _PROBE_SECONDS) as plain:
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _plain(text: str | None) -> str:
    """What a server says of itself, as far as it is a plain word."""
    return text if text and re.fullmatch(r"[A-Za-z0-9._-]{1,32}", text) else "unknown"
