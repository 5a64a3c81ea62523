"""The form that a definition demands: what the API server says of types, bounds and unknown fields,
before it comes to rules.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from modelrollout.crdgen.schema import Schema

_LARGEST = 1 << 63
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_CALLED = {"string": "a text", "integer": "an integer", "boolean": "true or false", "array": "a list"}
_CALLED |= {"number": "a number", "object": "a mapping"}


def as_sent(schema: Schema, value: Any) -> Any:
    """The value as it comes to the API server and is filled in there: keys are texts, 2.0 is 2, and
    defaults stand where nothing does.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST:
        return int(value)
    if isinstance(value, dict):
        filled = {_key(k): v for k, v in value.items()}
        properties = schema.get("properties") or {}
        for name, child in properties.items():
            if filled.get(name) is None and "default" in child:
                filled[name] = child["default"]
        return {k: as_sent(properties.get(k) or _values(schema), v) for k, v in filled.items()}
    if isinstance(value, list):
        return [as_sent(schema.get("items") or {}, v) for v in value]
    return value


def wrong_form(schema: Schema, value: Any, path: str) -> Iterator[str]:
    """A line for each fault of a value ``as_sent``: where it is, and what is wrong."""
    kind = schema.get("type", "")
    either = "x-kubernetes-int-or-string" in schema
    types = (int, str) if either else _TYPES.get(kind, (object,))
    if value is None:
        yield f"{path}: nothing is written there: leave the field out"
    elif not isinstance(value, types) or (isinstance(value, bool) and int in types):
        yield f"{path}: {_wrong_type(value, 'an integer or a text' if either else _CALLED.get(kind, ''))}"
    elif isinstance(value, dict):
        yield from _of_mapping(schema, value, path)
    elif isinstance(value, list):
        yield from _of_list(schema, value, path)
    elif fault := _of_scalar(schema, value):
        yield f"{path}: {fault}"


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said of a field that no definition has."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"the field {name} is unknown{f'; do you mean {near[0]}?' if near else ''}"


def _wrong_type(value: Any, wanted: str) -> str:
    present = next((_CALLED[k] for k, types in _TYPES.items() if type(value) in types), "something else")
    quoted = isinstance(value, str) and wanted in (
        _CALLED["integer"], _CALLED["number"], _CALLED["boolean"],
    ) and re.fullmatch(r"[-+0-9.eE]+|true|false", value)  # fmt: skip
    if isinstance(value, (int, float)) and wanted == _CALLED["string"]:
        return f"must be {wanted}, not {present}: write it in quotes"
    return f"must be {wanted}, not {present}{': leave out the quotes' if quoted else ''}"


def _of_mapping(schema: Schema, value: dict[str, Any], path: str) -> Iterator[str]:
    yield from (f"{path}: {fault}" for fault in _of_size(schema, len(value), "Properties", "fields"))
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: is missing"
    properties, values = schema.get("properties") or {}, _values(schema)
    is_open = bool(values) or "x-kubernetes-preserve-unknown-fields" in schema
    for name, inner in value.items():
        if name in properties or is_open:
            yield from wrong_form(properties.get(name) or values, inner, f"{path}.{name}")
        elif properties:
            yield f"{path}.{name}: {unknown(name, properties)}"


def _of_list(schema: Schema, value: list[Any], path: str) -> Iterator[str]:
    yield from (f"{path}: {fault}" for fault in _of_size(schema, len(value), "Items", "items"))
    for i, item in enumerate(value):
        yield from wrong_form(schema.get("items") or {}, item, f"{path}[{i}]")
    if schema.get("x-kubernetes-list-type") == "map":
        names = schema["x-kubernetes-list-map-keys"]
        seen: set[str] = set()
        for i, item in enumerate(value):
            key = ", ".join(f"{n} {item.get(n)}" for n in names) if isinstance(item, dict) else ""
            if key in seen and key:
                yield f"{path}[{i}]: {key} stands twice"
            seen.add(key)


def _of_scalar(schema: Schema, value: Any) -> str | None:
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, str):
        pattern = schema.get("pattern")
        if pattern and not _compiled(pattern).search(value):
            return f"must match {pattern}"
        return next(iter(_of_size(schema, len(value), "Length", "characters")), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not (-_LARGEST <= value < _LARGEST if isinstance(value, int) else math.isfinite(value)):
        return "is beyond the numbers of the API server"
    least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if value < least or (value == least and "exclusiveMinimum" in schema):
        return f"must be {'more than' if 'exclusiveMinimum' in schema else 'at least'} {least}"
    if value > most or (value == most and "exclusiveMaximum" in schema):
        return f"must be {'less than' if 'exclusiveMaximum' in schema else 'at most'} {most}"
    return None


def _of_size(schema: Schema, size: int, what: str, called: str) -> Iterator[str]:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", math.inf)
    if size < least:
        yield f"must have at least {least} {called}"
    elif size > most:
        yield f"must have at most {most} {called}"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # Python's $ also stands before a last line end
    return re.compile(f"{pattern[:-1]}\\Z" if pattern.endswith("$") else pattern)


def _values(schema: Schema) -> Schema:
    values = schema.get("additionalProperties")
    return values if isinstance(values, dict) else {}


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)
