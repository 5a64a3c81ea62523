"""ModelRevision: what one version is made of, and what became of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from modelrollout.api.v1alpha1.evidence import (
    ArtifactEvidence,
    EvaluationEvidence,
    MetricStatus,
    RestartEvidence,
    StepEvidence,
    TuningEvidence,
    VerbRecord,
)
from modelrollout.api.v1alpha1.model import Lineage, Model
from modelrollout.api.v1alpha1.optimization import Optimization
from modelrollout.api.v1alpha1.schema import ApiModel, Name, Rule, Sha256, ShapeOf, StatusModel
from modelrollout.api.v1alpha1.serving import Serving
from modelrollout.api.v1alpha1.status import Outcome


class ModelRevisionStatus(StatusModel):
    """Evidence on one version."""

    outcome: Outcome = "Pending"
    reason: str = "-"
    message: str = ""
    artifact: ArtifactEvidence | None = None
    tuning: TuningEvidence | None = None
    evaluation: EvaluationEvidence | None = None
    shadow: MetricStatus | None = Field(None, description="Agreement with stable on mirrored requests.")
    restarts: RestartEvidence | None = Field(None, description="Servers that ended during the trial.")
    step: str | None = Field(
        None, description="Step of its trial that is under way, as the verbs promote and pause name it."
    )
    steps: list[StepEvidence] = Field(default_factory=list)
    verbs: list[VerbRecord] = Field(
        default_factory=list, description="Verbs of people that concerned this revision."
    )
    stages: dict[str, float] = Field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    retired: str | None = Field(None, description="When it ceased to be stable.")
    children: list[str] = Field(
        default_factory=list,
        description=(
            "Uids of what the ModelDeployment itself controlled while this revision was stable, or the first"
            " one on trial: by them the orphans of a ModelDeployment that was deleted with --cascade=orphan"
            " are known again."
        ),
    )
    # columns
    accuracy: str | None = None
    size: str | None = None
    p99: str | None = None


class RevisionInput(ApiModel):
    """What makes a version, in canonical form (``deployment.user_input``)."""

    model: Model
    optimization: Optimization
    serving: Serving


class ModelRevisionSpec(ApiModel):
    """An immutable snapshot of one version; only the operator creates it."""

    number: int = Field(
        ge=1,
        description="Grows by one; it is the model's version in Triton, so every answer names its revision.",
    )
    deployment: Name = Field(description="Name of the ModelDeployment.")
    sha256: Sha256 = Field(description="Pinned digest of the source.")
    input: Annotated[
        dict[str, Any], ShapeOf("modelrollout.api.v1alpha1.revision:RevisionInput", bare=True)
    ] = Field(description="The user's input in canonical form.")
    builder: str = Field(max_length=64, description="Version of the builder that rendered the template.")
    template: Annotated[dict[str, Any], ShapeOf("kubernetes.client:V1PodTemplateSpec", bare=True)] = Field(
        description="Rendered pod template: an upgrade of the operator does not change it."
    )
    lineage: Lineage | None = Field(
        None, description="Where the model comes from, as in the ModelDeployment."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self == oldSelf", "a ModelRevision is immutable; change the ModelDeployment instead"),
    )
