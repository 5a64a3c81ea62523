"""Which fields of our kinds the definitions that an API server serves lack. It prunes those from
every object in silence.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from modelrollout.api import names
from modelrollout.crdgen.kinds import KINDS, crd
from modelrollout.crdgen.schema import Schema

PARTS = ("spec", "status")


def pruned_fields(openapi: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """By kind, the paths (``spec.rollout.bake``) of fields that this release knows and the API
    server does not. A path stands for all below it. A kind that is not served is left out, and so
    are fields that only a newer release knows.

    ``openapi``: the OpenAPI v3 document of the group's version, ``/openapi/v3/apis/GROUP/VERSION``.
    """
    served = _schemas(openapi)
    return {kind: tuple(_missing(own, served[kind])) for kind, own in _own().items() if kind in served}


@functools.cache
def _own() -> dict[str, Schema]:
    """By kind, a tree of the fields alone: descriptions and rules would take memory for nothing."""
    roots = {kind.kind: crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for kind in KINDS}
    return {
        kind: {"properties": {part: _fields_of(root["properties"][part]) for part in PARTS}}
        for kind, root in roots.items()
    }


def _fields_of(schema: Schema) -> Schema:
    tree: Schema = {}
    if properties := schema.get("properties"):
        tree["properties"] = {name: _fields_of(child) for name, child in properties.items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict) and (below := _fields_of(schema[key])):
            tree[key] = below
    return tree


def _schemas(openapi: Mapping[str, Any]) -> dict[str, Schema]:
    """The schema of each kind of our group and version."""
    own = {"group": names.GROUP, "version": names.VERSION}
    return {
        kind["kind"]: schema
        for schema in ((openapi.get("components") or {}).get("schemas") or {}).values()
        for kind in schema.get("x-kubernetes-group-version-kind") or ()
        if own.items() <= kind.items()
    }


def _missing(own: Schema, served: Schema, path: str = "") -> Iterable[str]:
    if served.get("x-kubernetes-preserve-unknown-fields"):
        return  # nothing is pruned here
    known = served.get("properties") or {}
    for name, child in (own.get("properties") or {}).items():
        below = f"{path}.{name}" if path else name
        if name in known:
            yield from _missing(child, known[name], below)
        elif "additionalProperties" not in served:
            yield below
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if key in own and isinstance(served.get(key), dict):
            yield from _missing(own[key], served[key], path + mark)
