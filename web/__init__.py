"""The Quart extension, the command line and the server.

    the extension ........... board, options, checks, access, lifespan, mounting, metrics
    a request with a job .... mapping, submission, body, ndjson, bulk
    routes about jobs ....... jobs, operating, lookup, pages, cursors
    streams ................. websocket, multistream, sse, outbox
    in and out of the wire .. parsing, render, answers, responses, problems
    the OpenAPI document .... openapi, openapi_mapped, openapi_operating, openapi_parts, openapi_paths, openapi_refusals,
                              openapi_routes, openapi_schemas
    bounds round the app .... limits, inbound, socket_limit, host_check, early_refusal, asgi
    generations of Quart .... compat, generations
    the server .............. serve, server_options, surroundings, binds, tls, ending, watchdog, notify, logs, hypercorn_fixes
      round the app there ... rootpath, access_log, header_limit
      of several processes .. workers, reload
      jobs without the app .. worker
    for people .............. cli, demo, ui

What a client sends goes through RootPath, AccessLog and HeaderLimit, which are the server's, then through HostCheck, SocketLimit,
BodyLimit and Lifespan, which are the extension's, and so to Quart.
"""

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
