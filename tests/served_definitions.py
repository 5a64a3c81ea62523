"""The OpenAPI document of an API server that serves this project's kinds."""

from __future__ import annotations

import copy
from typing import Any

from modelrollout.api import names
from modelrollout.crdgen.kinds import KINDS, crd


def served() -> dict[str, Any]:
    """The OpenAPI v3 document of an API server that serves exactly this release's definitions."""
    return {
        "components": {
            "schemas": {
                f"dev.modelrollout.{names.VERSION}.{kind.kind}": {
                    **copy.deepcopy(crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]),
                    "x-kubernetes-group-version-kind": [
                        {"group": names.GROUP, "version": names.VERSION, "kind": kind.kind}
                    ],
                }
                for kind in KINDS
            }
        }
    }


def fields(document: dict[str, Any], kind: str, *path: str) -> dict[str, Any]:
    """The properties below a path of one kind."""
    schema = document["components"]["schemas"][f"dev.modelrollout.{names.VERSION}.{kind}"]
    for name in path:
        schema = schema["properties"][name] if name != "[]" else schema["items"]
    properties: dict[str, Any] = schema["properties"]
    return properties
