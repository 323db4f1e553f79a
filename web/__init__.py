"""The Quart extension, the command line and the server."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callboard.web.board import Callboard
    from callboard.web.responses import ErrorResponse, Responses, StatusResponse, SubmittedResponse

__all__ = ["Callboard", "ErrorResponse", "Responses", "StatusResponse", "SubmittedResponse"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # On first use: the command line's remote commands need neither Quart nor the runtime.
        from importlib import import_module

        if name in __all__:
            home = "board" if name == "Callboard" else "responses"
            try:
                return getattr(import_module(f"callboard.web.{home}"), name)
            except ImportError as error:
                from callboard.web.generations import misfit

                if (reason := misfit()) is None:
                    raise
                raise ImportError(reason) from error
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
