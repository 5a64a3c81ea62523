"""What ``modelrollout analyze`` judges by: a ModelDeployment with the policies in force for it, and
with what the options change of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from modelrollout.analysis.metrics import effective_metrics
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api import names
from modelrollout.api.v1alpha1 import Metric, ModelDeploymentSpec
from modelrollout.cli.cluster import Rollout
from modelrollout.cli.errors import Refused
from modelrollout.cli.manifests.documents import labels_of_namespaces
from modelrollout.cli.manifests.documents import read as read_files
from modelrollout.config import Profile
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, ROLLOUT_POLICY
from modelrollout.kube.objects import Object
from modelrollout.rollout.policy.rules import NO_RULES, Rules, combine, read, spec_in_force

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Manifest:
    """A ModelDeployment and the rules for it. ``rules``: None where they are unknown."""

    namespace: str
    name: str
    spec: ModelDeploymentSpec
    rules: Rules | None = NO_RULES


def from_file(path: Path) -> Manifest:
    """The one ModelDeployment in a YAML file, with those RolloutPolicies in it that match; raises
    Refused.
    """
    documents, others = read_files([path])
    deployments = [d for d in documents if d.kind == MODEL_DEPLOYMENT.kind]
    if len(deployments) != 1:
        raise Refused(
            f"{path}: {len(deployments)} objects of kind ModelDeployment ({names.GROUP}): give a"
            " file with one"
        )
    metadata = deployments[0].metadata
    namespace, name = str(metadata.get("namespace") or "default"), str(metadata.get("name") or "")
    policies = [
        {**d.raw, "metadata": {"name": "?", **d.metadata}} for d in documents if d.kind == ROLLOUT_POLICY.kind
    ]
    labels = labels_of_namespaces(others).get(namespace)
    rules = _rules(policies, namespace, metadata.get("labels") or {}, labels)
    raw = deployments[0].raw.get("spec")
    raw = spec_in_force(raw, rules.defaults) if isinstance(raw, dict) else raw
    return Manifest(namespace, name, checked(ModelDeploymentSpec, raw, f"{path}: spec"), rules)


def from_cluster(
    rollout: Rollout, policies: Iterable[Object] | None, of_namespace: Mapping[str, str] | None
) -> Manifest:
    """A ModelDeployment in the cluster. ``policies``, and ``of_namespace`` (labels of its
    namespace): None where the user may not read them. Raises Refused.
    """
    if rollout.spec is None:
        raise Refused(
            f"{rollout.name} was written by another version of the operator; use the command line of that"
            " version, or -f"
        )
    labels = ((rollout.raw or {}).get("metadata") or {}).get("labels") or {}
    rules = None if policies is None else _rules(policies, rollout.namespace, labels, of_namespace)
    return Manifest(rollout.namespace, rollout.name, rollout.spec, rules)


def _rules(
    policies: Iterable[Object], namespace: str, labels: dict[str, str], of_namespace: Mapping[str, str] | None
) -> Rules:
    rules = combine(p for p in map(read, policies) if p.matches(namespace, labels, of_namespace))
    for name, why in rules.broken:
        raise Refused(f"RolloutPolicy {name}: {why}")
    return rules


def with_changes(
    m: Manifest, settings: Sequence[str], steps: str | None, profile: Profile
) -> ModelDeploymentSpec:
    """The spec with all metrics in force written out, ``METRIC.FIELD=VALUE`` or ``FIELD=VALUE`` of
    spec.rollout set, and other steps (``5,25,50``).

    Metrics that a policy demands may be changed too, as this is a trial. ``profile``: who counts
    the requests. Raises Refused.
    """
    rules = m.rules or NO_RULES
    effective = effective_metrics(m.spec.rollout.analysis, rules.templates, rules.mandatory, profile)
    if isinstance(effective, MeasurementProblem):
        if m.rules is None:
            raise Refused(
                "spec.rollout.analysis.templates: not allowed to list rolloutpolicies, where they are: bind"
                " the ClusterRole modelrollout-view with a ClusterRoleBinding, or give the ModelDeployment"
                " and the policies in one file with -f"
            )
        raise Refused(f"{effective.message}; with -f the policies of that file count")
    metrics = {metric.name: metric.wire() for metric in effective}
    wire = m.spec.wire()
    rollout = wire.setdefault("rollout", {})
    for field in ("metrics", "templates"):
        rollout.setdefault("analysis", {}).pop(field, None)
    for setting in settings:
        _set(setting, rollout, metrics)
    if steps:
        weights = steps.split(",")
        if not all(re.fullmatch(r"[0-9]{1,3}", w.strip()) for w in weights):
            raise Refused(f"--steps {steps}: write weights in percent, for example 5,25,50")
        for strategy in ("blueGreen", "abTest"):
            rollout.pop(strategy, None)
        rollout["canary"] = {"steps": [{"weight": int(w)} for w in weights]}
    spec = checked(ModelDeploymentSpec, wire, "with --set and --steps: spec")
    # With those of policies there may be more metrics than one spec may have.
    judged = [checked(Metric, metric, f"with --set: {name}") for name, metric in metrics.items()]
    analysis = spec.rollout.analysis.model_copy(update={"metrics": judged})
    return spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"analysis": analysis})})


def _set(setting: str, rollout: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> None:
    path, sep, text = setting.partition("=")
    *parents, field = path.split(".")
    if not sep or not field:
        raise Refused(
            f"--set {setting}: write METRIC.FIELD=VALUE (latency.maxIncrease=0.01) or a field of spec.rollout"
            " (progressDeadline=30m)"
        )
    target: Any = rollout
    if parents and parents[0] in metrics:
        target, parents = metrics[parents[0]], parents[1:]
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise Refused(f"--set {setting}: {parent} is no object; metrics are {', '.join(metrics)}")
    target[field] = yaml.safe_load(text)


def checked(kind: type[M], raw: object, where: str) -> M:
    """The object of that type; raises Refused with every field that is wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as e:
        lines = "; ".join(
            f"{where}.{'.'.join(map(str, err['loc']))}: {err['msg']}"
            for err in e.errors(include_input=False, include_url=False)
        )
        raise Refused(lines) from e
