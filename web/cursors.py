"""A store's cursors as clients see them: sealed, because a store's own may say how many jobs everybody else submits.

Without state, so that a cursor holds across restarts and processes: a digest of the cursor seals it and is checked when it comes
back. The key is in the open, so this hides nothing from those who read this file; it keeps numbers out of plain sight, and
cursors that nobody gave out.
"""

import base64
import hashlib
from typing import Final

__all__ = ["seal", "unseal"]

_LEAST_BYTES: Final = 24
"""Shorter cursors are filled up: their length would tell the size of a number."""
_DIGEST_BYTES: Final = 8


def seal(cursor: str) -> str:
    """A store's cursor of at most 64 bytes as a client sees it."""
    text = cursor.encode().ljust(_LEAST_BYTES)
    digest = _digest(b"seal", text, _DIGEST_BYTES)
    return base64.urlsafe_b64encode(digest + _masked(digest, text)).decode().rstrip("=")


def unseal(sealed: str) -> str:
    """The store's cursor. Raises ValueError for what ``seal`` did not make."""
    try:
        data = base64.urlsafe_b64decode(sealed.encode() + b"=" * (-len(sealed) % 4))
        cursor = _masked(data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]).rstrip().decode()
        if seal(cursor) == sealed:
            return cursor
    except ValueError:
        pass
    raise ValueError("not a cursor")


def _masked(digest: bytes, text: bytes) -> bytes:
    mask = _digest(b"mask", digest, len(text)) if text else b""
    return bytes(one ^ other for one, other in zip(text, mask, strict=True))


def _digest(use: bytes, data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size, key=b"callboard cursor", person=use).digest()
