"""Options of a plugin in words: what `show` prints of each, and the JSON Schema that an editor can use."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
from msgspec import inspect

from deployd_core.units import Duration, Share, Size, encode_unit

_UNITS: dict[type, tuple[str, str]] = {
    Duration: ("duration, such as 30s", r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"),
    Size: ("size, such as 500MB", r"^\d+(\.\d+)?\s*(B|[kMGT]B|[KMGT]iB)$"),
    Share: ("count or percentage, such as 3 or 10%", r"^\d+%?$"),
}
_PLAIN: dict[type, str] = {
    inspect.BoolType: "true or false",
    inspect.FloatType: "number",
    inspect.IntType: "whole number",
    inspect.StrType: "text",
    inspect.NoneType: "nothing",
    inspect.AnyType: "anything",
    inspect.StructType: "table",
}
_BOUNDS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option of a plugin."""

    name: str
    type: str
    """In words, with the unit: ``duration, such as 30s``."""
    required: bool
    default: Any
    """As a spec writes it; None when the option is required, or is off unless it is given."""
    meaning: str


def describe_options(options_type: type[msgspec.Struct]) -> list[Option]:
    """Every option of a plugin, in the order of its class."""
    described = inspect.type_info(options_type)
    assert isinstance(described, inspect.StructType)
    return [_option(field) for field in described.fields]


def options_schema(options_type: type[msgspec.Struct]) -> dict[str, Any]:
    """The options as a JSON Schema."""
    hints = typing.get_type_hints(options_type, include_extras=True)
    # The schema of a struct holds its defaults, and msgspec cannot write units into it: so a twin with defaults in plain values.
    fields: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(options_type):
        default = _default(field.default, field.default_factory)
        fields.append((field.encode_name, hints[field.name], msgspec.field() if field.required else msgspec.field(**default)))
    twin = msgspec.defstruct(options_type.__name__, fields, kw_only=True, forbid_unknown_fields=True)
    return msgspec.json.schema(twin, schema_hook=_unit_schema)


def _default(value: Any, factory: Any) -> dict[str, Any]:
    if value is not msgspec.NODEFAULT:
        return {"default": msgspec.to_builtins(value, enc_hook=encode_unit)}
    return {"default_factory": factory}


def _unit_schema(kind: type) -> dict[str, Any]:
    words, pattern = _UNITS.get(kind, (kind.__name__, ""))
    kinds: str | list[str] = ["string", "integer"] if kind is Share else "string"
    return {"type": kinds, "description": words, **({"pattern": pattern} if pattern else {})}


def _option(field: inspect.Field) -> Option:
    words, meaning = _words(field.type)
    default: Any = None
    if field.default is not msgspec.NODEFAULT:
        default = msgspec.to_builtins(field.default, enc_hook=encode_unit)
    elif field.default_factory is not msgspec.NODEFAULT:
        default = msgspec.to_builtins(field.default_factory(), enc_hook=encode_unit)
    return Option(name=field.encode_name, type=words, required=field.required, default=default, meaning=meaning)


def _words(kind: inspect.Type) -> tuple[str, str]:
    """What may be written, and the description that came with the type."""
    if isinstance(kind, inspect.Metadata):
        words, inner = _words(kind.type)
        return words, (kind.extra_json_schema or {}).get("description", inner)
    if isinstance(kind, inspect.UnionType):
        parts = [_words(part) for part in kind.types if not isinstance(part, inspect.NoneType)]
        return " or ".join(words for words, _ in parts), next((meaning for _, meaning in parts if meaning), "")
    if isinstance(kind, inspect.CustomType):
        return _UNITS.get(kind.cls, (kind.cls.__name__, ""))[0], ""
    return _plain_words(kind), ""


def _plain_words(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(repr(value) for value in kind.values)
    if isinstance(kind, inspect.EnumType):
        return " or ".join(repr(member.value) for member in kind.cls)
    if isinstance(kind, inspect.VarTupleType | inspect.ListType | inspect.SetType | inspect.FrozenSetType):
        return f"list of {_words(kind.item_type)[0]}"
    if isinstance(kind, inspect.DictType):
        return f"table of {_words(kind.value_type)[0]}"
    words = _PLAIN.get(type(kind), type(kind).__name__.removesuffix("Type").lower())
    bounds = [f"{words_of} {getattr(kind, name)}" for name, words_of in _BOUNDS if getattr(kind, name, None) is not None]
    return ", ".join([words, *bounds])
