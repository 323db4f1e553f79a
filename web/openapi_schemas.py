"""Handlers' types as JSON Schemas and named components. Pure; a type that has no schema gets an empty one, which promises nothing.

msgspec describes its own Structs, dataclasses, TypedDicts and plain types, pydantic its models. Each type is described by itself;
``Components`` then gives every part a name of its own, however alike the types of an app are called.
"""

import re
from typing import Any, Final, Literal

import msgspec

from callboard.runtime.payload import is_pydantic

__all__ = ["REF", "Components", "Schema", "ref"]

REF: Final = "#/components/schemas/{name}"

Schema = dict[str, Any]

Way = Literal["validation", "serialization"]
"""Whether a client sends the type or is sent it: a pydantic model may look different either way. The words are pydantic's."""


def ref(name: str) -> Schema:
    """A reference to the component of that name."""
    return {"$ref": REF.format(name=name)}


class Components:
    """The schemas that have names; ``own`` are there before any type's and keep theirs."""

    def __init__(self, own: dict[str, Schema]) -> None:
        self.schemas = dict(own)
        self._own = frozenset(own)

    def add(self, kind: Any, way: Way) -> Schema:
        """The schema of a type; what of it has a name is added to the components."""
        # Reading a type runs what its author wrote into annotations and hooks, and not every type that can be decoded or encoded
        # has a schema: whatever is raised means that there is none.
        try:
            schema, family = _pydantic(kind, way) if is_pydantic(kind) else _plain(kind)
        except Exception:  # noqa: BLE001
            return {}
        names = self._names(family)
        self.schemas.update({names[name]: _renamed(part, names) for name, part in family.items()})
        renamed: Schema = _renamed(schema, names)
        return renamed

    def _names(self, family: dict[str, Schema]) -> dict[str, str]:
        """A name for each part: the one that it has, numbered where that belongs to something else."""
        names = {name: name for name in family}
        numbers = dict.fromkeys(family, 1)
        while True:
            clashes = [name for name in family if not self._fits(names[name], _renamed(family[name], names))]
            if not clashes:
                return names
            # A part that refers to a renamed part is another one too, so it is looked at again.
            for name in clashes:
                numbers[name] += 1
                while f"{name}_{numbers[name]}" in family:
                    numbers[name] += 1
                names[name] = f"{name}_{numbers[name]}"

    def _fits(self, name: str, schema: Schema) -> bool:
        return name not in self.schemas or (name not in self._own and self.schemas[name] == schema)


def _plain(kind: Any) -> tuple[Schema, dict[str, Schema]]:
    (schema,), family = msgspec.json.schema_components([kind], ref_template=REF)
    return schema, family


def _pydantic(kind: Any, way: Way) -> tuple[Schema, dict[str, Schema]]:
    schema: Schema = kind.model_json_schema(ref_template=REF.replace("{name}", "{model}"), mode=way)
    family: dict[str, Schema] = schema.pop("$defs", {})
    if set(schema) == {"$ref"}:
        return schema, family
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", kind.__name__)
    while name in family:
        name += "_"
    return ref(name), {**family, name: schema}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """``value`` with its references to the renamed parts put right, those of a discriminator's mapping too."""
    references = {REF.format(name=old): REF.format(name=new) for old, new in names.items() if old != new}

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walk(item) for key, item in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        return references.get(node, node) if isinstance(node, str) else node

    return walk(value) if references else value
