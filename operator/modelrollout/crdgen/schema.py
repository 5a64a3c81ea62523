"""Pydantic types to structural OpenAPI schemas, as a CustomResourceDefinition wants them."""

from __future__ import annotations

import importlib
import inspect
import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from modelrollout.api.v1alpha1 import (
    STATUS_ITEMS,
    STATUS_TEXT,
    ApiModel,
    LateDefault,
    ListMapKey,
    Rule,
    ShapeOf,
    StatusModel,
)
from modelrollout.crdgen.kubernetes import bare_schema

Schema = dict[str, Any]

_SCALARS: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number", "format": "double"},
    str: {"type": "string"},
}
# What a length bounds depends on what it is the length of.
_LENGTH_OF = {"string": "Length", "array": "Items", "object": "Properties"}


class SchemaError(TypeError):
    """A type that has no structural schema; the text names the field."""


def model_schema(model: type[BaseModel]) -> Schema:
    """Structural schema of a model: properties, what is required, defaults and rules."""
    properties: Schema = {}
    required: list[str] = []
    for name, field in model.model_fields.items():
        wire = field.alias or name
        try:
            properties[wire] = _field_schema(model, field)
        except SchemaError as e:
            raise SchemaError(f"{model.__name__}.{wire}: {e}") from e
        if field.is_required():
            required.append(wire)
    schema: Schema = {"type": "object", "description": docstring(model)}
    if properties:
        schema["properties"] = properties
    else:  # the API server leaves out empty properties, which tools like Argo CD show as a difference
        schema["maxProperties"] = 0
    if required:
        schema["required"] = required
    if issubclass(model, ApiModel):
        _add_rules(schema, model.rules)
    if issubclass(model, StatusModel):
        _bound(schema)
    return schema


def unbounded(schema: Schema, path: str = "") -> list[str]:
    """Paths in the schema of what could grow without end: texts, lists, maps and objects with
    unknown fields.
    """
    paths: list[str] = []
    kind = schema.get("type")
    if (kind == "string" or "x-kubernetes-int-or-string" in schema) and not {"maxLength", "enum"} & set(
        schema
    ):
        paths.append(path)
    if kind == "array" and "maxItems" not in schema:
        paths.append(path)
    is_empty = schema.get("maxProperties") == 0
    is_map = "additionalProperties" in schema and "maxProperties" in schema
    if kind == "object" and "properties" not in schema and not is_map and not is_empty:
        paths.append(path)
    if "x-kubernetes-preserve-unknown-fields" in schema:
        paths.append(path)
    for name, child in schema.get("properties", {}).items():
        paths += unbounded(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            paths += unbounded(schema[key], f"{path}[]")
    return paths


def drop_defaults_in_atomic_lists(schema: Schema, inside: bool = False) -> None:
    """Remove the defaults of items that server-side apply replaces as a whole: a default that is
    filled in there would for ever differ from what a tool applies. The types fill it in, and the
    description names it. Rules on such items need ``has()``.
    """
    if inside and "default" in schema:
        default = schema.pop("default")
        told = default if isinstance(default, str) else json.dumps(default)
        schema["description"] = f"{schema.get('description', '')} Default: {told}.".strip()
    for child in schema.get("properties", {}).values():
        drop_defaults_in_atomic_lists(child, inside)
    if isinstance(values := schema.get("additionalProperties"), dict):
        drop_defaults_in_atomic_lists(values, inside)
    if "items" in schema:
        is_atomic = schema.get("x-kubernetes-list-type", "atomic") == "atomic"
        drop_defaults_in_atomic_lists(schema["items"], inside or is_atomic)


def _bound(schema: Schema) -> None:
    """Status is the operator's own: what its types leave open gets one bound for all, which nothing
    that it writes comes near.
    """
    kind = schema.get("type")
    if kind == "string" and "enum" not in schema:
        schema.setdefault("maxLength", STATUS_TEXT)
    elif kind == "array":
        schema.setdefault("maxItems", STATUS_ITEMS)
    elif "additionalProperties" in schema:
        schema.setdefault("maxProperties", STATUS_ITEMS)
    for child in _inside(schema):
        _bound(child)


def _inside(schema: Schema) -> list[Schema]:
    return [
        *schema.get("properties", {}).values(),
        *(schema[key] for key in ("items", "additionalProperties") if key in schema),
    ]


_BARE = {
    "type",
    "format",
    "properties",
    "items",
    "additionalProperties",
    "maxLength",
    "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string",
}


def _shape(shape: ShapeOf) -> Schema:
    module, _, name = shape.type.partition(":")
    if module == "kubernetes.client":
        return bare_schema(name)
    schema = model_schema(getattr(importlib.import_module(module), name))
    if shape.bare:
        _strip(schema)
    return schema


def _strip(schema: Schema) -> None:
    if "enum" in schema and schema.get("type") == "string":
        # an older version may have had other words
        schema["maxLength"] = max(64, *map(len, schema["enum"]))
    for key in schema.keys() - _BARE:
        del schema[key]
    for child in _inside(schema):
        _strip(child)


def docstring(model: type[BaseModel]) -> str:
    """The class's own docstring as paragraphs for ``kubectl explain``."""
    text = inspect.cleandoc(model.__dict__.get("__doc__") or "")
    if not text:
        raise SchemaError(f"{model.__name__} has no docstring, so kubectl explain would show nothing")
    return _prose(text)


def _field_schema(owner: type[BaseModel], field: FieldInfo) -> Schema:
    # FieldInfo.annotation lacks the outer metadata, which pydantic moved to FieldInfo.metadata.
    schema = _with_metadata(_type_schema(field.annotation), field.metadata)
    if field.description:
        schema["description"] = _prose(field.description)
    # Status is written whole by the operator: a default there would only invent facts.
    if not field.is_required() and not issubclass(owner, StatusModel) and not _is_late(field):
        default = _default(field)
        if default is not None:
            schema["default"] = default
    return schema


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return None
    # Written out in full: the API server checks the CEL rules on a default as it stands, before the
    # defaults inside it are filled in.
    return _written_out(value)


def _written_out(value: Any) -> Any:
    if not isinstance(value, BaseModel):
        return to_jsonable_python(value, by_alias=True, exclude_none=True)
    fields = {f.alias or name: (f, getattr(value, name)) for name, f in type(value).model_fields.items()}
    return {
        wire: _written_out(inner)
        for wire, (f, inner) in fields.items()
        if inner is not None and not _is_late(f)
    }


def _is_late(field: FieldInfo) -> bool:
    return any(isinstance(m, LateDefault) for m in field.metadata)


def _type_schema(tp: Any) -> Schema:
    origin, args = get_origin(tp), get_args(tp)
    if origin is Annotated:
        base, *metadata = args
        return _with_metadata(_type_schema(base), metadata)
    if origin in (Union, types.UnionType):
        return _union_schema([a for a in args if a is not types.NoneType])
    if origin is Literal:
        return {"type": "integer" if all(isinstance(a, int) for a in args) else "string", "enum": list(args)}
    if origin in (list, tuple):
        if origin is tuple and (len(args) != 2 or args[1] is not Ellipsis):
            raise SchemaError(f"{tp} is not a list of one type")
        return {"type": "array", "items": _type_schema(args[0])}
    if origin is dict:
        # dict[str, Any] only makes sense with ShapeOf, which replaces this schema.
        return (
            {"type": "object"}
            if args[1] is Any
            else {"type": "object", "additionalProperties": _type_schema(args[1])}
        )
    if isinstance(tp, type) and issubclass(tp, BaseModel):
        return model_schema(tp)
    if tp in _SCALARS:
        return dict(_SCALARS[tp])
    raise SchemaError(f"{tp} has no structural schema")


def _union_schema(members: list[Any]) -> Schema:
    schemas = [_type_schema(m) for m in members]
    if len(schemas) == 1:
        return schemas[0]
    if sorted(s["type"] for s in schemas) != ["integer", "string"]:
        raise SchemaError(f"a structural schema knows no union of {members}, only of int and str")
    merged: Schema = {"x-kubernetes-int-or-string": True}
    for schema in schemas:
        merged |= {k: v for k, v in schema.items() if k not in ("type", "format")}
    return merged


def _with_metadata(schema: Schema, metadata: list[Any] | tuple[Any, ...]) -> Schema:
    for item in metadata:
        _apply(schema, item)
    return schema


def _apply(schema: Schema, item: Any) -> None:
    match item:
        case Rule():
            _add_rules(schema, (item,))
        case ListMapKey(key=key):
            schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
        case LateDefault():
            pass
        case ShapeOf():
            schema.clear()
            schema |= _shape(item)
        case FieldInfo(metadata=inner, description=description):
            _with_metadata(schema, inner)
            if description:
                schema["description"] = _prose(description)
        case StringConstraints(pattern=pattern, min_length=low, max_length=high):
            _put(schema, pattern=pattern, minLength=low, maxLength=high)
        case at.MinLen(min_length=low):
            schema["min" + _LENGTH_OF[schema["type"]]] = low
        case at.MaxLen(max_length=high):
            schema["max" + _LENGTH_OF[schema["type"]]] = high
        case at.Ge(ge=bound):
            schema["minimum"] = bound
        case at.Gt(gt=bound):
            schema |= {"minimum": bound, "exclusiveMinimum": True}
        case at.Le(le=bound):
            schema["maximum"] = bound
        case at.Lt(lt=bound):
            schema |= {"maximum": bound, "exclusiveMaximum": True}
        # pydantic's metadata for Field(pattern=...) has no public class
        case _ if (pattern := getattr(item, "pattern", None)) is not None:
            schema["pattern"] = pattern
        case _:
            raise SchemaError(f"{item!r} has no counterpart in a structural schema")


def _put(schema: Schema, **values: Any) -> None:
    schema |= {k: v for k, v in values.items() if v is not None}


def _add_rules(schema: Schema, rules: tuple[Rule, ...]) -> None:
    if rules:
        schema.setdefault("x-kubernetes-validations", []).extend(
            {"rule": r.rule, "message": r.message} for r in rules
        )


def _prose(text: str) -> str:
    """Paragraphs, each on one line, without the marks of a docstring."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.replace("``", "").split("\n\n"))
