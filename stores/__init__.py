"""Drivers of the store protocol (``callboard.runtime.core.store``) and the public suite that holds them to it.

``open_store`` makes a store from a URL, ``conformance`` checks any driver. Nothing in here knows actors or the web.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callboard.stores.opening import open_store

__all__ = ["open_store"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # On first use: who takes one driver need not load the others.
        if name == "open_store":
            from callboard.stores.opening import open_store

            return open_store
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
