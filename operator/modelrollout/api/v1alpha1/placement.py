"""Where pods may run: affinity, tolerations and spreading as Kubernetes has them (core/v1), for
the API server's schema.

The operator passes them on as they are written, so that a version's input stays the same to the
letter, whatever of these fields Kubernetes adds. What is empty makes no other version (``said``).
Sizes are bounded here, which Kubernetes leaves open.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from modelrollout.api.v1alpha1.schema import ApiModel, Labels, ShapeOf

LabelKey = Annotated[str, StringConstraints(max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
# Kubernetes checks which, and has more of them in some versions
_Word = Annotated[str, StringConstraints(max_length=32)]
_Values = Annotated[list[LabelValue], Field(max_length=64)]
_Weight = Annotated[int, Field(ge=1, le=100)]
_Namespaces = Annotated[list[LabelValue], Field(max_length=32)]
_LabelKeys = Annotated[list[LabelKey], Field(max_length=16)]


class Toleration(ApiModel):
    """As in a pod: the taint that is tolerated."""

    key: LabelKey | None = Field(
        None, description="Key of the taint; left out, with operator Exists: every taint."
    )
    operator: _Word | None = Field(
        None, description="Exists, or Equal (the default), in newer clusters also Lt and Gt."
    )
    value: LabelValue | None = Field(None, description="Value of the taint.")
    effect: _Word | None = Field(
        None, description="NoSchedule, PreferNoSchedule or NoExecute; left out: all effects."
    )
    toleration_seconds: int | None = Field(
        None, description="NoExecute: how long the pod stays; left out: for ever."
    )


class NodeSelectorRequirement(ApiModel):
    """A condition on one label or field."""

    key: LabelKey = Field(description="Key of the label, or name of the field.")
    operator: _Word = Field(description="In, NotIn, Exists, DoesNotExist, Gt or Lt.")
    values: _Values | None = Field(
        None, description="None for Exists and DoesNotExist, one number for Gt and Lt."
    )


_Requirements = Annotated[list[NodeSelectorRequirement], Field(max_length=32)]


class NodeSelectorTerm(ApiModel):
    """Conditions that must all hold."""

    match_expressions: _Requirements | None = Field(None, description="On the node's labels.")
    match_fields: _Requirements | None = Field(
        None, description="On the node's fields, such as metadata.name."
    )


class NodeSelector(ApiModel):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(max_length=32)] = Field(
        description="One of them must hold."
    )


class PreferredSchedulingTerm(ApiModel):
    """Nodes that are preferred."""

    weight: _Weight = Field(description="How much, from 1 to 100.")
    preference: NodeSelectorTerm = Field(description="Which nodes.")


class NodeAffinity(ApiModel):
    """On which nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        None, description="Nodes that pods may run on."
    )
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=32)] | None
    ) = Field(None, description="Nodes that are preferred.")


class LabelSelectorRequirement(ApiModel):
    """A condition on one label."""

    key: LabelKey = Field(description="Key of the label.")
    operator: _Word = Field(description="In, NotIn, Exists or DoesNotExist.")
    values: _Values | None = Field(None, description="None for Exists and DoesNotExist.")


class LabelSelector(ApiModel):
    """Objects by their labels; empty: all."""

    match_labels: Labels | None = Field(None, description="Labels with their values.")
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=32)] | None = Field(
        None, description="Conditions."
    )


class PodAffinityTerm(ApiModel):
    """Pods, and the part of the cluster that is shared with them."""

    label_selector: LabelSelector | None = Field(None, description="Which pods; left out: none.")
    namespaces: _Namespaces | None = Field(
        None, description="Namespaces of those pods; left out, and no namespaceSelector: this one."
    )
    namespace_selector: LabelSelector | None = Field(
        None, description="Namespaces of those pods by their labels; empty: all."
    )
    topology_key: LabelKey = Field(
        description="Label of the nodes that are alike, such as kubernetes.io/hostname."
    )
    match_label_keys: _LabelKeys | None = Field(
        None, description="Labels in which those pods are like this one."
    )
    mismatch_label_keys: _LabelKeys | None = Field(
        None, description="Labels in which those pods differ from this one."
    )


class WeightedPodAffinityTerm(ApiModel):
    """A place that is preferred."""

    weight: _Weight = Field(description="How much, from 1 to 100.")
    pod_affinity_term: PodAffinityTerm = Field(description="Which place.")


_Terms = Annotated[list[PodAffinityTerm], Field(max_length=16)]
_WeightedTerms = Annotated[list[WeightedPodAffinityTerm], Field(max_length=16)]


class PodAffinity(ApiModel):
    """Beside which pods."""

    required_during_scheduling_ignored_during_execution: _Terms | None = Field(
        None, description="Where pods must run."
    )
    preferred_during_scheduling_ignored_during_execution: _WeightedTerms | None = Field(
        None, description="Where they preferably run."
    )


class PodAntiAffinity(ApiModel):
    """Away from which pods."""

    required_during_scheduling_ignored_during_execution: _Terms | None = Field(
        None, description="Where pods must not run."
    )
    preferred_during_scheduling_ignored_during_execution: _WeightedTerms | None = Field(
        None, description="Where they preferably do not run."
    )


class Affinity(ApiModel):
    """As in a pod."""

    node_affinity: NodeAffinity | None = Field(None, description="On which nodes.")
    pod_affinity: PodAffinity | None = Field(None, description="Beside which pods.")
    pod_anti_affinity: PodAntiAffinity | None = Field(None, description="Away from which pods.")


class TopologySpreadConstraint(ApiModel):
    """As in a pod: how its kind is spread over a part of the cluster."""

    max_skew: int = Field(ge=1, le=1000, description="The largest difference in pods.")
    topology_key: LabelKey = Field(
        description="Label of the nodes that are alike, such as topology.kubernetes.io/zone."
    )
    when_unsatisfiable: _Word = Field(description="DoNotSchedule or ScheduleAnyway.")
    label_selector: LabelSelector | None = Field(
        None, description="Which pods are counted; left out: those of the same revision."
    )
    match_label_keys: _LabelKeys | None = Field(
        None, description="Labels in which those pods are like this one."
    )
    min_domains: int | None = Field(
        None, ge=1, le=1000, description="DoNotSchedule: as if there were at least so many places."
    )
    node_affinity_policy: _Word | None = Field(None, description="Honor (the default) or Ignore.")
    node_taints_policy: _Word | None = Field(None, description="Honor or Ignore (the default).")


AffinityAsWritten = Annotated[dict[str, Any], ShapeOf("modelrollout.api.v1alpha1.placement:Affinity")]
TolerationAsWritten = Annotated[dict[str, Any], ShapeOf("modelrollout.api.v1alpha1.placement:Toleration")]
TopologySpreadAsWritten = Annotated[
    dict[str, Any], ShapeOf("modelrollout.api.v1alpha1.placement:TopologySpreadConstraint")
]
