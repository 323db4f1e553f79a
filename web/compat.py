"""What differs between the generations of Quart that callboard runs on, and nothing else."""

from typing import Final

from quart.wrappers import base

__all__ = ["CLIENT_GONE"]


def _client_gone() -> tuple[type[Exception], ...]:
    error = getattr(base, "ClientDisconnectedError", None)
    return () if error is None else (error,)


CLIENT_GONE: Final = _client_gone()
"""What reading from or writing to a client that has left raises, for an ``except``. Quart 0.23 raises, 0.22 cancels instead."""
