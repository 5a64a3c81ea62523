"""Structural schemas of Kubernetes' own types, from the models of the package ``kubernetes``: types
and bounds only.

For what the operator wrote itself and must get back unchanged. No field of the type may be missing,
or the API server would drop it.
"""

from __future__ import annotations

import re
from typing import Any

from kubernetes import client

Schema = dict[str, Any]

TEXT, ITEMS = 16384, 256
_SCALARS: dict[str, Schema] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "double"},
    "str": {"type": "string", "maxLength": TEXT},
    "datetime": {"type": "string", "maxLength": TEXT},
}
_INT_OR_STRING: Schema = {"x-kubernetes-int-or-string": True, "maxLength": TEXT}
# Of an object's metadata a pod template has only these; managedFields would bring a schema without
# end.
_METADATA = ("annotations", "labels", "name", "namespace")


def bare_schema(kind: str) -> Schema:
    """The schema of a model of ``kubernetes.client``, such as ``V1PodTemplateSpec``."""
    model = getattr(client, kind)
    properties: Schema = {}
    for field, of in model.openapi_types.items():
        if kind == "V1ObjectMeta" and field not in _METADATA:
            continue
        properties[model.attribute_map[field]] = _schema(kind, field, of)
    return {"type": "object", "properties": properties}


def _schema(kind: str, field: str, of: str) -> Schema:
    if of == "object":  # IntOrString; whatever else came to be one would have to be looked at
        if field not in ("port", "target_port"):
            raise TypeError(f"{kind}.{field} has no type")
        return dict(_INT_OR_STRING)
    if inner := re.fullmatch(r"List\[(.*)\]", of):
        return {"type": "array", "maxItems": ITEMS, "items": _schema(kind, field, inner[1])}
    if inner := re.fullmatch(r"Dict\[str, (.*)\]", of):
        quantities = kind == "V1ResourceRequirements" or (kind, field) == ("V1PodSpec", "overhead")
        values = dict(_INT_OR_STRING) if quantities else _schema(kind, field, inner[1])
        return {"type": "object", "maxProperties": ITEMS, "additionalProperties": values}
    return dict(_SCALARS[of]) if of in _SCALARS else bare_schema(of)
