"""A cluster in memory, and objects to stand in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.kube.client import Listing, Row
from modelrollout.kube.errors import KubeError, NotFound
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object

NOW = datetime(2026, 11, 22, 9, 0, 0, tzinfo=UTC)
EXAMPLE = Path(__file__).parents[3] / "examples" / "canary-with-golden.yaml"


def ago(**delta: float) -> str:
    """A timestamp of status."""
    return (NOW - timedelta(**delta)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class FakeKube:
    """What the commands need of Kube. ``errors`` maps (verb, plural) to what is raised;
    ``on_patch`` plays the operator.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.rows: list[Row] = []
        self.patches: list[tuple[str, str, str, Object]] = []
        self.errors: dict[tuple[str, str], KubeError] = {}
        self.on_patch: Callable[[str, Object], None] | None = None
        self.closed = False

    def add(self, resource: Resource, obj: Object) -> Object:
        self.objects[
            resource.plural, obj["metadata"].setdefault("namespace", "default"), obj["metadata"]["name"]
        ] = obj
        return obj

    def cluster_wide(self, resource: Resource, obj: Object) -> None:
        self.objects[resource.plural, "", obj["metadata"]["name"]] = obj

    def _raise(self, verb: str, resource: Resource) -> None:
        if (verb, resource.plural) in self.errors:
            raise self.errors[verb, resource.plural]

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        self._raise("get", resource)
        try:
            return self.objects[resource.plural, namespace or "", name]
        except KeyError:
            raise NotFound(404, "NotFound", f"{resource.plural} {name!r} not found") from None

    async def list(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", limit: int = 500
    ) -> Listing:
        self._raise("list", resource)
        desired = dict(term.split("=") for term in label_selector.split(",") if term)
        actual = [
            o
            for (plural, there, _), o in self.objects.items()
            if plural == resource.plural
            and there == (namespace or "")
            and desired.items() <= o["metadata"].get("labels", {}).items()
        ]
        return Listing(actual, "1")

    async def table(self, resource: Resource, namespace: str | None = None) -> AsyncIterator[list[Row]]:
        self._raise("list", resource)
        for row in self.rows:
            if namespace in (None, row.namespace):
                yield [row]

    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object
    ) -> Object:
        self._raise("patch", resource)
        obj = await self.get(resource, namespace, name)
        self.patches.append((resource.plural, namespace or "", name, patch))
        if self.on_patch:
            self.on_patch(name, patch)
        return obj

    async def close(self) -> None:
        self.closed = True


def deployment(**status: Any) -> Object:
    """``digits`` at generation 2, with this status."""
    actual: Object = yaml.safe_load(EXAMPLE.read_text())
    actual["metadata"] |= {"generation": 2, "uid": "u1", "managedFields": [{"manager": "kubectl"}]}
    actual["spec"]["rollout"]["canary"]["steps"] = [
        {"weight": 5},
        {"weight": 25},
        {"pause": {}},
        {"weight": 50, "for": "10m"},
    ]
    if status:
        actual["status"] = {"observedGeneration": 2, "conditions": [], **status}
    return actual


def revision(name: str, number: int, outcome: str, *, sha256: str = "a" * 64, **status: Any) -> Object:
    """A ModelRevision of ``digits`` whose input is that of the example."""
    spec = ModelDeploymentSpec.model_validate(deployment()["spec"])
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": ago(days=10 - number),
            "labels": {"modelrollout.dev/name": "digits", "modelrollout.dev/number": str(number)},
        },
        "spec": {
            "number": number, "deployment": "digits", "sha256": sha256, "builder": "0.1.0",
            "input": spec.user_input(), "template": {},
        },
        "status": {"outcome": outcome, **status},
    }  # fmt: skip


def rollout(stage: str, name: str | None = "digits-8d1b", **fields: Any) -> dict[str, Any]:
    """status.rollout."""
    return {
        "stage": stage, "since": ago(seconds=131), "started": ago(minutes=5), "generation": 2,
        "inputHash": "h", "revision": name,
        "number": 3 if name else None, "stages": {"Resolve": 1.2, "Prepare": 34.0, "Provision": 8.1,
            "Evaluate": 3.0}, **fields,
    }  # fmt: skip


STABLE = {"revision": "digits-6c9f", "number": 2, "since": ago(days=9)}


def canary_status(phase: str = "Observing", **rollout_fields: Any) -> dict[str, Any]:
    """In the second step of four, at 25 %."""
    step = {
        "index": 1, "weight": 25, "phase": phase, "since": ago(seconds=70), "observedSince": ago(seconds=65),
        "metrics": [
            {
                "name": "accuracy", "verdict": "Inconclusive", "reason": "TooFewSamples",
                "message": "31 of 50 labels",
                "canary": {"total": 31, "bad": 1}, "stable": {"total": 96, "bad": 2},
                "interval": [-0.062, 0.081],
            },
            {
                "name": "errors", "verdict": "Successful", "reason": "RegressionRuledOut",
                "canary": {"total": 1204, "bad": 3}, "stable": {"total": 3590, "bad": 9},
                "interval": [-0.0031, 0.0044],
            },
            {"name": "gpu-memory", "verdict": "Successful", "reason": "WithinLimits", "value": 6.1e10},
        ],
    }  # fmt: skip
    fields: dict[str, Any] = {
        "sha256": "b" * 64,
        "step": step,
        "artifact": {
            "uri": "s3://a/k/", "digest": "sha256:1", "sizeBefore": 1_600_000, "sizeAfter": 408_000,
            "accuracyBefore": 0.988, "accuracyAfter": 0.986, "samples": 10_000,
        },
        "evaluation": {
            "verdict": "Successful", "reason": "NotWorse", "samples": 10_000, "accuracy": 0.986,
            "stableAccuracy": 0.983, "stable": "digits-6c9f",
            "latencyP99Ms": 2.9,
        },
        "history": [{"index": 0, "weight": 5, "verdict": "Successful", "reason": "RegressionRuledOut",
            "seconds": 61.0}],
        **rollout_fields,
    }  # fmt: skip
    return {
        "phase": "Paused" if phase == "Paused" else "Canary",
        "stable": STABLE,
        "rollout": rollout("Canary", **fields),
        "canary": "digits-8d1b",
        "weight": 25,
        "step": "2/4",
        "verdict": "in progress",
        "replicas": 2,
        "readyReplicas": 2,
        "address": {"url": "http://digits.default.svc:8000", "grpc": "digits.default.svc:8001"},
        "conditions": [
            {
                "type": "Available",
                "status": "True",
                "reason": "Serving",
                "message": "revision digits-6c9f serves",
                "lastTransitionTime": ago(days=9),
            },
            {
                "type": "Ready",
                "status": "False",
                "reason": "Canary",
                "message": "judged on live traffic",
                "lastTransitionTime": ago(minutes=5),
            },
            {
                "type": "Stalled",
                "status": "False",
                "reason": "Progressing",
                "message": "",
                "lastTransitionTime": ago(minutes=5),
            },
        ],
    }


def pod(name: str, of: str, ready: bool, **metadata: Any) -> Object:
    """A server's pod."""
    labels = {
        "modelrollout.dev/name": "digits",
        "modelrollout.dev/component": "server",
        "modelrollout.dev/revision": of,
    }
    return {
        "metadata": {"name": name, "labels": labels, **metadata},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def event(
    reason: str, message: str, *, about: str = "digits", kind: str = "ModelDeployment", **fields: Any
) -> Object:
    """A Kubernetes event."""
    return {
        "metadata": {"name": f"{about}.{reason}"},
        "involvedObject": {"kind": kind, "name": about},
        "reason": reason, "message": message, "type": "Normal", "lastTimestamp": ago(minutes=1), **fields,
    }  # fmt: skip
