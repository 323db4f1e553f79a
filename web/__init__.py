"""The Quart extension, the command line and the server."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["Callboard"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # On first use: the command line's remote commands need neither Quart nor the runtime.
        if name == "Callboard":
            from callboard.web.board import Callboard

            return Callboard
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
