"""The spec of a ModelDeployment, and what in it makes a version."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from modelrollout.api import names
from modelrollout.api.v1alpha1.model import Model
from modelrollout.api.v1alpha1.optimization import NO_PART, Optimization
from modelrollout.api.v1alpha1.rollout import Rollout
from modelrollout.api.v1alpha1.said import said
from modelrollout.api.v1alpha1.schema import ApiModel, Rule
from modelrollout.api.v1alpha1.serving import Serving
from modelrollout.api.v1alpha1.status import FollowStatus
from modelrollout.api.v1alpha1.traffic import Traffic

_NO_PART_OF_MODEL = {"lineage", "sha256", "follow", "interface_change"}
_BACKEND = "has(self.serving.triton) && has(self.serving.triton.backend)"


class ModelDeploymentSpec(ApiModel):
    """One model in production: what it is, how it is made small, served, reached and rolled out."""

    model: Model
    optimization: Optimization = Field(default_factory=Optimization)
    serving: Serving
    traffic: Traffic = Field(default_factory=Traffic)
    rollout: Rollout = Field(default_factory=Rollout)
    revision_history_limit: int = Field(5, ge=1, le=50, description="Old revisions kept to roll back to.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.rollout) || !has(self.rollout.shadow) || (has(self.traffic) &&"
            " has(self.traffic.gateway) && has(self.traffic.http))",
            "rollout.shadow mirrors HTTP requests at a gateway: set traffic.gateway and traffic.http, or"
            " leave rollout.shadow out",
        ),
        Rule(
            "!has(self.rollout.abTest) || has(self.traffic.gateway)",
            "rollout.abTest needs traffic.gateway: only a gateway can match headers",
        ),
        Rule(
            "!has(self.serving.triton) || !has(self.serving.triton.inputs) ||"
            " has(self.serving.triton.backend) || (has(self.model.format) && self.model.format == 'PyTorch')",
            "serving.triton.inputs and outputs belong to a backend or to model.format: PyTorch; other files"
            " carry their own inputs and outputs",
        ),
        Rule(
            f"!({_BACKEND}) || !has(self.model.format)",
            "serving.triton.backend serves the file as it is, model.format converts it to ONNX: leave one of"
            " them out",
        ),
        Rule(
            "!has(self.model.rounds) || (has(self.model.format) && self.model.format == 'XGBoost') ||"
            f" ({_BACKEND} && self.serving.triton.backend == 'FIL')",
            "model.rounds belongs to model.format: XGBoost and to backend: FIL: other files say themselves"
            " which rounds count",
        ),
        Rule(
            "!has(self.model.missing) || (has(self.model.format) && self.model.format == 'XGBoost')",
            "model.missing belongs to model.format: XGBoost: other files hold what is missing",
        ),
        Rule(
            f"!({_BACKEND}) || !has(self.optimization) || (size(self.optimization.steps) == 0 &&"
            " !has(self.optimization.gate))",
            "serving.triton.backend serves the file as it is: leave optimization.steps and gate out;"
            " rollout.analysis.golden judges the served model",
        ),
        Rule(
            f"!({_BACKEND} && self.serving.triton.backend == 'VLLM') || !(has(self.rollout.shadow) ||"
            " (has(self.rollout.analysis) && has(self.rollout.analysis.golden)))",
            "backend: VLLM streams text, and golden data and shadow compare tensors: leave"
            " rollout.analysis.golden and rollout.shadow out",
        ),
        Rule(
            f"!({_BACKEND} && self.serving.triton.backend == 'VLLM') || !has(self.serving.batching) ||"
            " self.serving.batching.maxBatchSize == 0",
            "backend: VLLM batches by itself: leave serving.batching out",
        ),
        Rule(
            "!has(self.serving.accelerator) || !has(self.optimization) ||"
            " !self.optimization.steps.exists(s, has(s.int4) || (has(s.int8) && (!has(s.int8.method) ||"
            " s.int8.method == 'Dynamic')))",
            "serving.accelerator.tensorRT: TensorRT has no operators for int4 and for int8 with method"
            " Dynamic: use int8 with method Static, or halfPrecision, or leave accelerator out",
        ),
        Rule(
            "!has(self.rollout.blueGreen) || !has(self.rollout.blueGreen.preview) ||"
            " has(self.traffic.gateway)",
            "rollout.blueGreen.preview needs traffic.gateway; without one leave it out: the Service"
            " NAME-preview leads to the new revision",
        ),
        *(
            Rule(
                "!has(self.rollout.blueGreen) || !has(self.rollout.blueGreen.preview) ||"
                f" !has(self.rollout.blueGreen.preview.{mine}) || !has(self.traffic.{theirs}) ||"
                f" self.rollout.blueGreen.preview.{mine}.hostnames.all(h, !(h in"
                f" self.traffic.{theirs}.hostnames))",
                f"rollout.blueGreen.preview.{mine}: its host names must differ from those of"
                f" traffic.{theirs}",
            )
            for mine in ("http", "grpc")
            for theirs in ("http", "grpc")
        ),
    )

    def user_input(self) -> dict[str, Any]:
        """What makes a version: model, optimization and serving in canonical form, without what
        changes no answer and without what is empty (``said``).

        ``same_version`` reads both inputs with today's types before it compares them, so a field
        that a newer operator adds with a default makes no new version of an old object.
        """
        return user_input(self.model, self.optimization, self.serving)

    def user_input_as_written(self) -> dict[str, Any]:
        """The same with what is empty outside of ``pod``. Revisions record that: an earlier
        operator, which takes what is empty for a part of the version, knows its version again.
        """
        pod = self.user_input()["serving"].get("pod")
        whole = _dumped(self.model, self.optimization, self.serving)
        serving = {field: value for field, value in whole["serving"].items() if field != "pod"}
        return whole | {"serving": serving | ({"pod": pod} if pod else {})}

    def following(self, seen: FollowStatus | None) -> ModelDeploymentSpec:
        """The spec in effect: where it follows its source, as if it named the digest that was seen
        there last. So a new digest is a version like any other.
        """
        if self.model.follow is None or seen is None or seen.sha256 is None or seen.uri != self.model.uri:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"sha256": seen.sha256})})


def user_input(model: Model, optimization: Optimization, serving: Serving) -> dict[str, Any]:
    """Canonical form of the three parts, without sha256: the pinned digest stands for it."""
    whole = _dumped(model, optimization, serving)
    return {
        "model": said(model, whole["model"]),
        "optimization": said(optimization, whole["optimization"]),
        "serving": said(serving, whole["serving"]),
    }


def _dumped(model: Model, optimization: Optimization, serving: Serving) -> dict[str, dict[str, Any]]:
    return {
        "model": model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_NO_PART_OF_MODEL),
        "optimization": optimization.model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            exclude={**dict.fromkeys(NO_PART, True), "steps": {"__all__": {"container": {"resources"}}}},
        ),
        "serving": serving.model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            exclude={"replicas", "surge", "floor", "tune", "drain"},
        ),
    }


def as_today(value: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical input of any operator, read with today's types and defaults."""
    return user_input(
        Model.model_validate(value["model"]),
        Optimization.model_validate(value["optimization"]),
        Serving.model_validate(value["serving"]),
    )


def same_version(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two canonical inputs mean the same version."""
    return a == b or _as_today(names.canonical_json(a)) == _as_today(names.canonical_json(b))


@functools.lru_cache(maxsize=256)
def _as_today(canonical: str) -> dict[str, Any]:
    """Remembered: a pass compares the same two versions several times."""
    return as_today(json.loads(canonical))
