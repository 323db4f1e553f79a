"""The Lua scripts of the Redis stores: how one is named. It reads no files and calls nothing."""

from msgspec import Struct

__all__ = ["Script"]


class Script(Struct, frozen=True):
    """One Lua script: ``sha`` is the SHA-1 of ``text`` in hexadecimal, by which the server knows it."""

    name: str
    text: str
    sha: str
