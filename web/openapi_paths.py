"""Routes in the app's own syntax as path templates and parameters of OpenAPI. Pure.

A path in the document is what is on the wire: what may not stand in a URL is percent-encoded, braces of the app's own too. A
parameter's schema says what the route takes and no more, so that a generated client sends what the router finds.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from msgspec import Struct
from werkzeug.routing.rules import parse_converter_args

from callboard.web.render import PATH_SIGNS

__all__ = ["Template", "template"]

Schema = dict[str, Any]

_VARIABLE: Final = re.compile(
    r"<(?:(?P<converter>[a-zA-Z_][a-zA-Z0-9_]*)(?:\((?P<arguments>.*?)\))?:)?(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)>"
)
"""A variable of a route. Source: werkzeug, ``routing/rules.py``."""
_SEGMENT: Final = "^[^/]+$"


class Template(Struct, frozen=True):
    """A route in OpenAPI's words."""

    path: str
    shape: str
    """The path without the names of its variables: OpenAPI takes two paths of one shape for the same."""
    parameters: tuple[Schema, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter["name"] for parameter in self.parameters)

    def renamed(self, names: tuple[str, ...]) -> tuple[Schema, ...]:
        """The parameters under other names, those of a path of the same shape."""
        return tuple({**parameter, "name": name} for parameter, name in zip(self.parameters, names, strict=True))


def template(route: str) -> Template:
    """A werkzeug route as a template. A converter of the app's own gives a plain text."""
    path, shape, end = "", "", 0
    parameters: list[Schema] = []
    for found in _VARIABLE.finditer(route):
        static = quote(route[end : found.start()], safe=PATH_SIGNS)
        path += static + "{" + found["name"] + "}"
        shape += static + "{}"
        end = found.end()
        schema = _schema(found["converter"] or "default", found["arguments"] or "")
        parameters.append({"name": found["name"], "in": "path", "required": True, "schema": schema})
    rest = quote(route[end:], safe=PATH_SIGNS)
    return Template(path + rest, shape + rest, tuple(parameters))


def _schema(converter: str, arguments: str) -> Schema:
    listed, named = parse_converter_args(arguments) if arguments else ((), {})
    match converter:
        case "default" | "string":
            return _text(dict(zip(("minlength", "maxlength", "length"), listed, strict=False)) | named)
        case "any":
            return {"type": "string", "enum": [str(item) for item in listed]}
        case "int" | "float":
            return _number(converter, dict(zip(("fixed_digits", "min", "max", "signed"), listed, strict=False)) | named)
        case "uuid":
            return {"type": "string", "format": "uuid"}
        case "path":
            return {"type": "string", "minLength": 1, "pattern": "^[^/]"}
        case _:
            return {"type": "string", "minLength": 1}


def _text(options: Mapping[str, Any]) -> Schema:
    exact = options.get("length")
    schema: Schema = {"type": "string", "minLength": exact or options.get("minlength") or 1, "pattern": _SEGMENT}
    most = exact or options.get("maxlength")
    return schema if most is None else {**schema, "maxLength": most}


def _number(converter: str, options: Mapping[str, Any]) -> Schema:
    sign = "-?" if options.get("signed") else ""
    if converter == "float":
        # 5 is not found where 5.0 is: as a number it would be written either way.
        return {"type": "string", "pattern": rf"^{sign}[0-9]+\.[0-9]+$", "examples": ["2.5"]}
    if digits := options.get("fixed_digits"):
        return {"type": "string", "pattern": f"^[0-9]{{{digits}}}$", "examples": ["1".zfill(digits)]}
    least = options.get("min")
    schema: Schema = {"type": "integer"}
    if not sign:
        schema["minimum"] = max(0, least or 0)
    elif least is not None:
        schema["minimum"] = least
    return schema if options.get("max") is None else {**schema, "maximum": options["max"]}
