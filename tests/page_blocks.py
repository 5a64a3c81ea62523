"""The YAML blocks of the pages, and what each of them is: one or more whole objects, a fragment
that is laid over the smallest object, or values of the chart. ``OTHERS`` lists what is none of
these.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.api.v1alpha1.policy import RolloutPolicySpec

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "model-rollout-operator"
# What a reader copies to a cluster stands in these.
PAGES = ("README.md", "docs/*.md", "charts/*.md", "tools/*.md")
# Page and first line of each block that is none of the three, and why it stands there all the same.
OTHERS = {
    ("docs/how-to/demo.md", "gateway:"): "the demo's target file, which a test reads as the demo does",
    ("docs/how-to/golden-data-and-feedback.md", "apiVersion: v1"): "the pod of a client",
    ("docs/how-to/gitops.md", "apiVersion: argoproj.io/v1alpha1"): "an object of Argo CD",
    ("docs/tutorial/from-git.md", "apiVersion: argoproj.io/v1alpha1"): "an object of Argo CD",
    ("docs/how-to/install.md", "relabel_configs:"): "a part of the configuration of Prometheus",
    (
        "docs/reference/gateways.md",
        "apiVersion: gateway.envoyproxy.io/v1alpha1",
    ): "one of Envoy Gateway",
}


class Sort(StrEnum):
    """What a block is."""

    OBJECTS = "objects"
    FRAGMENT = "fragment"
    VALUES = "values"
    OTHER = "other"


@dataclass(frozen=True)
class Block:
    """A block with its page; ``number`` counts from 1 on that page."""

    page: str
    number: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"

    @property
    def key(self) -> tuple[str, str]:
        return self.page, self.text.splitlines()[0]

    @property
    def documents(self) -> list[Any]:
        return list(yaml.safe_load_all(self.text))

    @property
    def sort(self) -> Sort | None:
        """None: it is nothing that this project knows."""
        if self.key in OTHERS:
            return Sort.OTHER
        loaded = self.documents
        if all(isinstance(d, dict) and is_ours(d) for d in loaded):
            return Sort.OBJECTS
        if len(loaded) != 1 or not isinstance(loaded[0], dict):
            return None
        if set(loaded[0]) <= set(chart_schema()["properties"]):
            return Sort.VALUES
        return Sort.FRAGMENT if spec_of(loaded[0]) else None

    def objects(self) -> list[dict[str, Any]]:
        """The objects that a reader would have: those of the block, or the smallest one with the
        fragment laid over it.
        """
        if self.sort is Sort.OBJECTS:
            return self.documents
        kind, fragment = spec_of(self.documents[0]) or ("", {})
        return [laid_over(smallest(kind), {"spec": fragment})]


def is_ours(document: dict[str, Any]) -> bool:
    return document.get("apiVersion") == names.API_VERSION and "kind" in document


def spec_of(fragment: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The kind that a fragment is of, and what it says of its spec."""
    spec = fragment["spec"] if set(fragment) == {"spec"} else fragment
    for kind, model in (("ModelDeployment", ModelDeploymentSpec), ("RolloutPolicy", RolloutPolicySpec)):
        if set(spec) <= {field.alias or name for name, field in model.model_fields.items()}:
            return kind, spec
    return None


def smallest(kind: str) -> dict[str, Any]:
    if kind == "RolloutPolicy":
        return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": "all"}, "spec": {}}
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "smallest.yaml").read_text())
    return found


def laid_over(base: dict[str, Any], fragment: dict[str, Any]) -> dict[str, Any]:
    """The base with the fragment's values; of mappings with both's, as Helm and kubectl merge."""
    merged = copy.deepcopy(base)
    for key, value in fragment.items():
        below = merged.get(key)
        merged[key] = (
            laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return merged


@cache
def chart_schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return found


def pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,  # not a checkout of Git: no pages, which a test of its own notices
    )
    return sorted({page for page in listed.stdout.splitlines() if (ROOT / page).is_file()})


@cache
def blocks() -> list[Block]:
    """Every YAML block of the pages."""
    return [
        Block(page, number, text)
        for page in pages()
        for number, text in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), flags=re.S | re.M), 1
        )
    ]


def of_sort(*sorts: Sort) -> list[Block]:
    return [block for block in blocks() if block.sort in sorts]
