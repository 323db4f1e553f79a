"""Values to JSON text and back, by the type that a handler declares.

msgspec Structs, dataclasses, TypedDicts, ``dict`` and plain JSON types go through msgspec; pydantic models through
pydantic, which is not imported unless the app did.
"""

import re
from typing import Any, Final

import msgspec
import msgspec.inspect
from msgspec import Raw

from callboard.runtime.core.errors import FieldError, InvalidPayload, InvalidRequest

__all__ = ["decode", "encode", "is_pydantic", "reread", "storable", "undecodable"]

_encoder = msgspec.json.Encoder()
_syntax = msgspec.json.Decoder(Raw)
_PATH: Final = re.compile(r"^(?P<text>.*?)(?: - at `(?P<where>key in )?(?P<path>\$.*)`)?$", re.DOTALL)
_VALUES: Final = frozenset({"default", "default_factory", "extra"})
"""Parts of msgspec's description of a type that are no types."""
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


def is_pydantic(kind: Any) -> bool:
    """Whether ``kind`` is a pydantic model class."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json") and hasattr(kind, "model_json_schema")


def undecodable(kind: Any) -> Any:
    """The first type within ``kind`` that msgspec does not know and JSON cannot be decoded to; None where there is none."""
    waiting: list[Any] = [msgspec.inspect.type_info(kind)]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, msgspec.inspect.CustomType):
            return node.cls
        if isinstance(node, tuple):
            waiting += node
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            # A type that holds itself is a ring here.
            seen.add(id(node))
            waiting += [getattr(node, name) for name in node.__struct_fields__ if name not in _VALUES]
    return None


def decode(kind: Any, body: bytes | Raw) -> Any:
    """The value of JSON text ``body`` as type ``kind``.

    Raises InvalidRequest if it is no JSON, InvalidPayload (with JSON Pointers in wire names) if it does not fit.
    """
    if is_pydantic(kind):
        return _decode_pydantic(kind, bytes(body))
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidPayload((_field_error(str(error)),)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def encode(value: Any) -> Raw:
    """``value`` as JSON text. Raises TypeError or ValueError if it has no JSON form."""
    dump = getattr(value, "model_dump_json", None)
    if dump is not None and is_pydantic(type(value)):
        text: str = dump(by_alias=True)
        return Raw(text.encode())
    try:
        encoded = _encoder.encode(value)
        # A Raw somewhere in the value is passed on as it is; text that is no JSON would spoil the record that it is put into.
        _syntax.decode(encoded)
        return Raw(encoded)
    except (msgspec.MsgspecError, RecursionError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from error


def reread(kind: Any, encoded: Raw) -> Any:
    """A value that ``encode`` made this of: as ``kind``, what its function declares to return, or as plain JSON where that does not fit."""
    try:
        return decode(kind, encoded)
    except (InvalidRequest, TypeError):
        return msgspec.json.decode(encoded)


def storable(text: str) -> str:
    """``text`` with ``?`` for what has no UTF-8 form: half of a surrogate pair, as in the name of a file of other bytes."""
    return text.encode("utf-8", "replace").decode()


def _decode_pydantic(kind: Any, body: bytes) -> Any:
    # The syntax is checked first, so that "no JSON" and "does not fit" stay apart.
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    try:
        return kind.model_validate_json(body)
    except ValueError as error:
        listed = getattr(error, "errors", None)
        if listed is None:
            raise InvalidPayload((FieldError("", str(error)),)) from None
        found = listed(include_url=False, include_context=False, include_input=False)
        raise InvalidPayload(tuple(FieldError(_pointer(item["loc"]), item["msg"]) for item in found)) from None


def _field_error(text: str) -> FieldError:
    match = _PATH.match(text)
    assert match is not None
    path = match["path"] or "$"
    steps = [name or index for name, index in _STEP.findall(path)]
    return FieldError(_pointer(steps), match["text"])


def _pointer(steps: Any) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
