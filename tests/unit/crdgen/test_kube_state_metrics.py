"""The configuration for kube-state-metrics reads fields that the definitions have, of types that it
can turn into numbers and labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelrollout.crdgen.kinds import KINDS, crd

FILE = Path(__file__).parents[3] / "charts/model-rollout-operator/files/kube-state-metrics.yaml"
RESOURCES = yaml.safe_load(FILE.read_text())["spec"]["resources"]
METRICS = [(r, m) for r in RESOURCES for m in r["metrics"]]
SCHEMAS = {
    kind.kind: crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"] for kind in KINDS
}


def at(schema: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The schema of a field; raises KeyError."""
    for part in path:
        schema = schema["properties"][part]
    return schema


def paths(kind: str, each: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    root = {"properties": SCHEMAS[kind]}
    made = each[each["type"].lower()]
    begin = at(root, made["path"]) if "path" in made else root
    inner = begin.get("items", begin)
    for path in (made.get("labelsFromPath") or {}).values():
        yield path, at(inner, path)
    if each["type"] == "Gauge":
        yield made["path"], at(inner, made["valueFrom"]) if "valueFrom" in made else begin


@pytest.mark.parametrize(("resource", "metric"), METRICS, ids=lambda x: x.get("name", ""))
def test_every_path_is_a_field_of_a_simple_type(resource: dict[str, Any], metric: dict[str, Any]) -> None:
    kind = resource["groupVersionKind"]["kind"]
    for path, schema in paths(kind, metric["each"]):
        assert schema["type"] in ("string", "integer", "number"), path
    assert metric["help"].endswith(".")
