"""What an app's author registers, checked when it is registered. Every refusal is a ConfigError that says what would do."""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Mappings
from typing import Any, Final

from werkzeug.routing import Map, Rule

from callboard.runtime.core.errors import ConfigError
from callboard.web.mapping import Mapping
from callboard.web.responses import Responses

__all__ = ["check_mapping", "check_route", "checked_origins", "checked_responses", "require_hook"]

_ORIGIN: Final = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@*\s]+/?", re.IGNORECASE | re.ASCII)
_VARIABLE: Final = re.compile(r"<(?:([^:<>]+):)?[^:<>]+>")


def require_takes(option: str, hook: Callable[..., Any] | None, *arguments: str) -> None:
    """Raises ConfigError unless the hook is None or can be called with so many arguments."""
    require_hook(option, hook)
    if hook is None:
        return
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):
        # Some builtins have no signature that can be read: the first call will tell.
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ConfigError(f"{option} is called with ({', '.join(arguments)}), and takes {signature}") from None


def require_hook(option: str, hook: object) -> None:
    """Raises ConfigError unless the hook is a function or None."""
    if hook is not None and not callable(hook):
        raise ConfigError(f"{option} is {hook!r}: give a function")


def checked_origins(origins: Iterable[str]) -> tuple[str, ...]:
    """The origins. Raises ConfigError unless they are texts in a sequence, each of a form that a browser could send."""
    if not isinstance(origins, str) and isinstance(origins, Iterable):
        listed = tuple(origins)
        if all(isinstance(one, str) and _ORIGIN.fullmatch(one) for one in listed):
            return listed
    raise ConfigError(f'allowed_origins is {origins!r}: give a list of origins, such as ["https://shop.example"]')


def checked_responses(option: str, responses: object) -> Responses:
    """The responses; none for None. Raises ConfigError unless they are functions in a Responses."""
    if responses is None:
        return Responses()
    if not isinstance(responses, Responses):
        raise ConfigError(
            f"{option} is {responses!r}: give callboard.web.Responses(submitted=..., status=..., error=...)"
        )
    for name in Responses.__struct_fields__:
        require_takes(f"{option}.{name}", getattr(responses, name), "answer")
    return responses


def check_mapping(mapping: Mapping, others: Sequence[Mapping], converters: Mappings[str, Any] | None) -> None:
    """Raises ConfigError if a mapping's route or options cannot work, or another one has its route and method.

    ``converters`` are those of the app's routes; None where the app is not known yet.
    """
    where = _name(mapping)
    check_route(mapping, converters)
    for other in others:
        if other.method == mapping.method and _shape(other.route) == _shape(mapping.route):
            raise ConfigError(
                f"{where}: handler {other.handler.name!r} is there already: give each its own route or method"
            )
    require_takes(f"{where}: validate", mapping.validate, *(["body"] if mapping.handler.takes_body else []))
    if mapping.redirect and mapping.handler.location is None:
        raise ConfigError(f"{where}: redirect needs to know where to: give location=, a function of (job, result)")
    checked_responses(f"{where}: responses", mapping.responses)
    decorators = mapping.decorators
    if isinstance(decorators, str) or not isinstance(decorators, Sequence) or not all(map(callable, decorators)):
        raise ConfigError(f"{where}: decorators is {decorators!r}: give a list of functions, such as [login_required]")


def check_route(mapping: Mapping, converters: Mappings[str, Any] | None) -> None:
    """Raises ConfigError if an app with these ``converters`` cannot have the route; None where the app is not known yet."""
    where, route = _name(mapping), mapping.route
    if not isinstance(route, str):
        raise ConfigError(f"{where}: the route is no text: give a path, such as '/api/orders/<int:number>'")
    try:
        Map([Rule(route)], converters=converters)
    except LookupError as error:
        # Before the app is known nobody can say which converters it has.
        if converters is not None:
            raise ConfigError(f"{where}: {error}: give a converter that the app has") from error
    except Exception as error:  # werkzeug makes code of a route, and calls what its converters name
        raise ConfigError(f"{where}: {error}: give a path, such as '/api/orders/<int:number>'") from error


def _name(mapping: Mapping) -> str:
    return f"handler {mapping.handler.name!r} on {mapping.method} {mapping.route!r}"


def _shape(route: str) -> str:
    """The route without the names of its variables, which tell no two requests apart."""
    return _VARIABLE.sub(lambda found: f"<{found[1] or 'default'}>", route)
