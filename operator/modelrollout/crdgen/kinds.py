"""The CustomResourceDefinitions: what each kind declares beside its schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionSpec,
    ModelRevisionStatus,
    Rule,
)
from modelrollout.api.v1alpha1.policy import RolloutPolicySpec, RolloutPolicyStatus
from modelrollout.crdgen.schema import (
    Schema,
    SchemaError,
    docstring,
    drop_defaults_in_atomic_lists,
    model_schema,
    unbounded,
)


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0  # above 0: only with -o wide
    description: str = ""

    def wire(self) -> dict[str, Any]:
        column: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        if self.priority:
            column["priority"] = self.priority
        if self.description:
            column["description"] = self.description
        return column


@dataclass(frozen=True)
class Kind:
    """One kind of this group."""

    kind: str
    plural: str
    short: str
    spec: type[ModelDeploymentSpec] | type[ModelRevisionSpec] | type[RolloutPolicySpec]
    status: type[ModelDeploymentStatus] | type[ModelRevisionStatus] | type[RolloutPolicyStatus]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    scale: dict[str, str] | None = None
    namespaced: bool = True

    @property
    def crd_name(self) -> str:
        return f"{self.plural}.{names.GROUP}"

    @property
    def file_name(self) -> str:
        return f"{names.GROUP}_{self.plural}.yaml"


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

MODEL_DEPLOYMENT = Kind(
    kind="ModelDeployment",
    plural="modeldeployments",
    short="mdep",
    spec=ModelDeploymentSpec,
    status=ModelDeploymentStatus,
    columns=(
        Column(
            "Ready",
            '.status.conditions[?(@.type=="Ready")].status',
            description="Whether the present spec is the stable revision.",
        ),
        Column("Phase", ".status.phase"),
        Column("Stable", ".status.stable.revision", description="Revision that serves."),
        Column("Canary", ".status.canary", description="Revision on trial."),
        Column(
            "Weight",
            ".status.weight",
            "integer",
            description="Share of the requests for the canary, percent.",
        ),
        Column("Step", ".status.step"),
        Column("Verdict", ".status.verdict"),
        _AGE,
        Column("Message", '.status.conditions[?(@.type=="Ready")].message', priority=1),
    ),
    rules=(
        # Services take this name with up to 23 characters more, and a Service's name is a DNS-1035
        # label.
        Rule(
            "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be at most 40 characters: a lower-case letter first, then letters, digits and"
            " '-' (Services are named after it)",
        ),
    ),
    scale={
        "specReplicasPath": ".spec.serving.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)

MODEL_REVISION = Kind(
    kind="ModelRevision",
    plural="modelrevisions",
    short="mrev",
    spec=ModelRevisionSpec,
    status=ModelRevisionStatus,
    columns=(
        Column("Outcome", ".status.outcome"),
        Column("Reason", ".status.reason"),
        Column(
            "Accuracy",
            ".status.accuracy",
            description="On golden or held-out data, and what the optimization changed.",
        ),
        Column("Size", ".status.size", description="Of the served model, and what the optimization changed."),
        Column("P99", ".status.p99", description="Latency of the served model on golden data."),
        _AGE,
        Column(
            "Number", ".spec.number", "integer", priority=1, description="Version of the model in Triton."
        ),
        Column("Message", ".status.message", priority=1),
    ),
)

ROLLOUT_POLICY = Kind(
    kind="RolloutPolicy",
    plural="rolloutpolicies",
    short="rpol",
    spec=RolloutPolicySpec,
    status=RolloutPolicyStatus,
    columns=(
        Column("Accepted", ".status.accepted", description="Whether the operator understands it."),
        Column("Matches", ".status.matches", "integer", description="ModelDeployments that it is for."),
        Column(
            "Rollouts",
            ".spec.limits.concurrentRollouts",
            "integer",
            description="Rollouts that may hold GPUs at one time.",
        ),
        Column(
            "GPUs", ".spec.limits.gpus", "integer", description="GPUs that rollouts in flight may ask for."
        ),
        Column("Frozen until", ".status.frozenUntil", description="End of the freeze that is in force."),
        _AGE,
        Column("Message", '.status.conditions[?(@.type=="Accepted")].message', priority=1),
    ),
    rules=(
        # The Leases of its slots are named after it, and carry the name as a label.
        Rule(
            "self.metadata.name.size() <= 63",
            "metadata.name must be at most 63 characters (Leases are labelled with it)",
        ),
    ),
    namespaced=False,
)

KINDS = (MODEL_DEPLOYMENT, MODEL_REVISION, ROLLOUT_POLICY)


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale:
        subresources["scale"] = dict(kind.scale)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": kind.crd_name,
            # Removing the definition removes every object of the kind; uninstalling the chart must
            # not.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short],
                "categories": ["modelrollout"],
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _root(kind)},
                    "subresources": subresources,
                    "additionalPrinterColumns": [c.wire() for c in kind.columns],
                }
            ],
        },
    }


def _root(kind: Kind) -> Schema:
    root: Schema = {
        "type": "object",
        "description": docstring(kind.spec),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": model_schema(kind.spec),
            "status": model_schema(kind.status),
        },
    }
    drop_defaults_in_atomic_lists(root["properties"]["spec"])
    for part in ("spec", "status"):
        if open_ended := unbounded(root["properties"][part], part):
            raise SchemaError(
                f"{kind.kind}: without a bound, so one object could be larger than the operator can hold:"
                f" {', '.join(open_ended)}"
            )
    if kind.rules:
        root["x-kubernetes-validations"] = [{"rule": r.rule, "message": r.message} for r in kind.rules]
    return root
