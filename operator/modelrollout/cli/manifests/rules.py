"""The rules (CEL) of our definitions, evaluated without an API server."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel

from modelrollout.crdgen.kinds import KINDS, crd
from modelrollout.crdgen.schema import Schema


@functools.cache
def schema_of(kind: str) -> Schema:
    """The schema of an object of the kind; raises KeyError."""
    schemas = {k.kind: k for k in KINDS}
    schema: Schema = crd(schemas[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def broken_rules(schema: Schema, value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Path and message of each rule that a new object breaks. Rules on changes (``oldSelf``) are
    left out. ``value``: as it is sent (``form``), and of the schema's form.
    """
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not _program(rule["rule"]).evaluate(
            {"self": json_to_cel(value)}
        ):
            yield path, rule["message"]
    if isinstance(value, dict):
        for name, child in value.items():
            inner = (schema.get("properties") or {}).get(name, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                yield from broken_rules(inner, child, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and "items" in schema:
        for i, child in enumerate(value):
            yield from broken_rules(schema["items"], child, f"{path}[{i}]")


# Kubernetes adds these to the standard (k8s.io/apiserver/pkg/cel/library, lists.go).
_LISTS: dict[str, Any] = {
    "sum": lambda numbers: celtypes.IntType(sum(numbers)),
    "isSorted": lambda items: celtypes.BoolType(all(a <= b for a, b in itertools.pairwise(items))),
}


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule), functions=_LISTS)
