"""Views onto routes of the app: the job routes, the mapped routes, and under the prefix an answer of our own to every other path.

The app's error handlers stay as they are: an unknown path or method under the prefix is routed here, not handled there.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from quart import Response, current_app, request, websocket
from quart_trio import QuartTrio
from werkzeug.routing import BaseConverter, Map, Rule

from callboard.web.answers import bare_answer, guarded, json_answer, json_bytes
from callboard.web.jobs import JobRoutes, Route
from callboard.web.limits import ENDPOINT_PREFIX, MAPPED_PREFIX
from callboard.web.mapping import Mapping, make_view
from callboard.web.multistream import make_multistream_view
from callboard.web.openapi import App, openapi_document
from callboard.web.operating import OperatingRoutes
from callboard.web.problems import Refusal
from callboard.web.responses import Responses
from callboard.web.sse import make_events_view
from callboard.web.ui import make_ui_view
from callboard.web.websocket import make_stream_view, unknown_socket

if TYPE_CHECKING:
    from callboard.web.board import Callboard

__all__ = ["mount_jobs", "mount_mapping"]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

View = Callable[..., Awaitable[Any]]

REST: Final = "callboard_rest"


class _Rest(BaseConverter):
    """Whatever follows the prefix, slashes at its beginning too: Werkzeug would answer a doubled one with a page of its own."""

    part_isolating = False
    regex = r"[\s\S]*?"
    weight = 1000


def mount_mapping(app: QuartTrio, board: "Callboard", mapping: Mapping) -> None:
    """Put a mapped handler on its route."""
    endpoint = f"{MAPPED_PREFIX}{mapping.handler.name.replace('.', '_')}:{len(app.view_functions)}"
    app.add_url_rule(mapping.route, endpoint, make_view(board, mapping), methods=[mapping.method])


def mount_jobs(app: QuartTrio, board: "Callboard") -> None:
    """Put the job routes under the prefix."""
    routes = [
        *JobRoutes(board).routes(),
        *OperatingRoutes(board).routes(),
        Route("GET", "/<job_id>/events", make_events_view(board)),
        Route("GET", "/metrics", _metrics_view(board)),
        Route("GET", "/openapi.json", _openapi_view(board)),
        Route("GET", "/ui", make_ui_view(board)),
    ]
    for route in routes:
        name = f"{route.method} {route.path}"
        # Probes read the contract's own form, whatever the app makes of errors elsewhere.
        responses = Responses() if route.path.startswith("/health/") else None
        view = guarded(request, _checked(board, route), responses)
        _add(app, board.prefix + route.path, name, view, methods=[route.method], provide_automatic_options=False)
    unknown = guarded(request, _unknown_view(board, routes))
    app.url_map.converters[REST] = _Rest
    # Paths of their own take no method that is a job's: DELETE /metrics is not about a job of that name.
    own = dict.fromkeys(route.path for route in routes if "<" not in route.path)
    for number, path in enumerate((*own, "/", f"/<{REST}:rest>")):
        # No methods: this rule takes whatever method no other rule takes, unheard-of ones too.
        endpoint = f"{ENDPOINT_PREFIX}unknown {number}"
        rule = app.url_rule_class(board.prefix + path, methods=None, endpoint=endpoint, strict_slashes=False)
        rule.provide_automatic_options = False
        app.url_map.add(rule)
        app.endpoint(endpoint)(unknown)
    _add(app, f"{board.prefix}/stream", "streams", guarded(websocket, make_multistream_view(board)), websocket=True)
    stream = guarded(websocket, make_stream_view(board))
    _add(app, f"{board.prefix}/<job_id>/stream", "stream", stream, websocket=True)
    _add(app, f"{board.prefix}/<{REST}:rest>", "unknown socket", guarded(websocket, unknown_socket), websocket=True)


def _add(app: QuartTrio, path: str, name: str, view: View, **options: Any) -> None:
    app.add_url_rule(path, ENDPOINT_PREFIX + name.replace(".", "_"), view, **options)


def _checked(board: "Callboard", route: Route) -> View:
    if route.method in SAFE_METHODS:
        return route.view

    async def checked(**parameters: Any) -> Any:
        board.access.check_origin(request)
        return await route.view(**parameters)

    return checked


def _unknown_view(board: "Callboard", routes: list[Route]) -> View:
    def rules(of: list[Route]) -> Map:
        every = [Rule(board.prefix + route.path, methods=[route.method], endpoint=route.path) for route in of]
        return Map(every, merge_slashes=False)

    # A path of its own comes first: /metrics could also be the path of a job.
    known = [rules([route for route in routes if "<" not in route.path]), rules(routes)]

    async def unknown(rest: str = "") -> Response:
        if request.method not in SAFE_METHODS:
            board.access.check_origin(request)
        allowed = next(filter(None, ({*paths.bind("").allowed_methods(request.path)} for paths in known)), set())
        if not allowed:
            raise Refusal(404, "not-found", "There is nothing at this path.")
        headers = {"Allow": ", ".join(sorted({*allowed, "OPTIONS"}))}
        if request.method == "OPTIONS":
            return bare_answer(204, headers)
        raise Refusal(405, "method-not-allowed", f"{request.method} is not for this path.", headers=headers)

    return unknown


def _metrics_view(board: "Callboard") -> View:
    async def metrics() -> Response:
        await board.access.require(request, "metrics")
        text = await board.metrics.text(board.runtime, board.role)
        response: Response = current_app.response_class(text, content_type=board.metrics.content_type)
        return response

    return metrics


def _openapi_view(board: "Callboard") -> View:
    kept: dict[tuple[int, str], bytes] = {}

    async def openapi() -> Response:
        # Made anew when a handler has been mapped, or for another root path.
        key = (len(board.mappings), request.root_path)
        if key not in kept:
            text = json_bytes(_openapi(board, current_app.import_name, request.root_path))
            kept.clear()
            kept[key] = text
        return json_answer(kept[key])

    return openapi


def _openapi(board: "Callboard", title: str, root_path: str) -> dict[str, Any]:
    document = openapi_document(
        App(
            title=title,
            prefix=board.prefix,
            root_path=root_path,
            mappings=board.mappings,
            authorizes=board.access.authorize is not None,
            identifies=board.access.identify is not None,
            responses=board.responses,
            timeout_seconds=board.config.timeout_seconds,
        )
    )
    return document if board.openapi is None else board.openapi(document)
