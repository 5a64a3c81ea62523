"""The status of a ModelDeployment, and the evidence that status and revisions keep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
from modelrollout.api.v1alpha1.schema import ListMapKey, ShapeOf, StatusModel

Stage = Literal[
    "Resolve",
    "Prepare",
    "Tune",
    "Provision",
    "Evaluate",
    "Shadow",
    "Canary",
    "Promote",
    "Bake",
    "Revert",
    "Failed",
    "Done",
]
Phase = Literal[
    "Pending", "Resolving", "Preparing", "Tuning", "Provisioning", "Evaluating", "Shadowing", "Canary",
    "Previewing", "Testing", "Paused",
    "Promoting", "Baking", "RollingBack", "Stable", "Failed",
]  # fmt: skip
Strategy = Literal["Canary", "BlueGreen", "ABTest"]
Outcome = Literal[
    "Pending",
    "Canary",
    "Stable",
    "Promoted",
    "RolledBack",
    "Rejected",
    "Failed",
    "Aborted",
    "Superseded",
    "Retired",
]
MirrorMethod = Literal["RequestMirror", "TraefikService"]


class Condition(StatusModel):
    """A Kubernetes condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: str
    observed_generation: int | None = None


class RevisionRef(StatusModel):
    """A revision that serves or did."""

    revision: str
    number: int
    since: str | None = None


class Draining(StatusModel):
    """A revision that has lost its traffic and keeps its pods for a while."""

    revision: str
    number: int
    until: str = Field(
        description=("Its pods are deleted at this time; a later write removes an entry whose time is over.")
    )
    unconfirmed: bool | None = Field(
        None,
        description=(
            "True: its rollout ended before the data plane had confirmed that it sends nothing there any"
            " more. Its pods stay until it does, whatever the time."
        ),
    )


class UserPause(StatusModel):
    """A person paused the rollout with the verb ``pause``."""

    since: str
    by: str = Field(description="Nonce of the verb.")


class StepStatus(StatusModel):
    """Where in the canary the rollout is."""

    index: int = Field(description="Step of the strategy, from 0; past the last one in Bake.")
    weight: int = Field(
        description="Weight that the route is to have, percent; 0 in a preview and in a test by headers."
    )
    strategy: Strategy = "Canary"
    previous_weight: int = Field(
        0, description="Weight of the previous step; requests keep it until enough pods are ready."
    )
    phase: Literal["Shifting", "Observing", "Paused"]
    since: str = Field(description="Start of the step.")
    observed_since: str | None = Field(None, description="When the data plane had programmed the weight.")
    measured: str | None = Field(None, description="When the metrics below were written.")
    metrics: list[MetricStatus] = Field(
        default_factory=list,
        description=(
            "Of this step; while its weight waits for pods, of the one before, whose weight the requests"
            " still have."
        ),
    )
    override: str | None = Field(
        None, description="Who let the rollout go on without a verdict, and from which step."
    )


class ShadowStatus(StatusModel):
    """Where in the shadow the rollout is, and what it has shown."""

    phase: Literal["Starting", "Accepted", "Mirroring", "Observing", "Paused", "Leaving"]
    since: str = Field(description="Start of the phase.")
    mirror: MirrorMethod | None = Field(
        None, description="How the gateway mirrors; kept for as long as it does."
    )
    outputs_hash: str = Field(
        "", description="Hash of the tolerances; with other tolerances the comparison starts again."
    )
    observed_since: str | None = Field(None, description="When the data plane had programmed the mirror.")
    measured: str | None = Field(None, description="When the metric was written.")
    metric: MetricStatus | None = Field(
        None,
        description=(
            "Agreement with stable; its canary's counter counts requests, bad are those that disagree."
        ),
    )
    override: str | None = Field(None, description="Who let the rollout go on without a verdict.")
    promoted: Literal["Step", "Full"] | None = Field(
        None, description="What a user requested: on to the first step, or past all of them."
    )


class QueueStatus(StatusModel):
    """The rollout waits for GPUs; it has no pods yet."""

    since: str = Field(description="Since when it waits; the queue is first in, first out.")
    gpus: int = Field(0, description="GPUs that its pods will ask for, rounded up.")
    exact_gpus: str | None = Field(None, description="The same where it is no whole number, as 10/7.")
    position: int | None = Field(
        None, description="Place in the queue for a slot, from 1, as last published."
    )
    gpu_shortage_since: str | None = Field(
        None, description="Since when only free GPUs are missing; unscheduledDeadline counts from here."
    )


class SlotStatus(StatusModel):
    """The rollout holds a slot of every RolloutPolicy that limits it."""

    since: str = Field(description="Since when: limits.maxHold counts from here.")
    gpus: int = Field(0, description="GPUs that it may use, rounded up; replicas that ask for more wait.")
    exact_gpus: str | None = Field(None, description="The same where it is no whole number, as 10/7.")


class InPlaceStatus(StatusModel):
    """No GPU was free for the new revision, so stable releases pods for it (surge InPlace)."""

    previous_stable_replicas: int = Field(description="Replicas that stable had before.")
    stable_replicas: int = Field(description="Replicas that stable keeps until the rollout ends.")


class RolloutStatus(StatusModel):
    """The revision in flight, or the one that failed last."""

    stage: Stage
    since: str = Field(description="Start of the stage.")
    started: str = Field(description="Start of the rollout.")
    generation: int
    input_hash: str
    attempt: int = 0
    mode: Literal["Update", "Rollback"] = "Update"
    proven: bool = Field(
        True, description="Rollback: what was proven of the revision still counts (rollbackWindow)."
    )
    paused_by_user: UserPause | None = Field(
        None, description="A person paused it: the weight stays and no deadline runs."
    )
    sha256: str | None = None
    revision: str | None = None
    number: int | None = None
    queue: QueueStatus | None = None
    slot: SlotStatus | None = None
    in_place: InPlaceStatus | None = None
    uncompared_since: str | None = Field(
        None,
        description=(
            "Since when the revision has been judged without a comparison, because stable is dead: pods of it"
            " are asked for, and none has been ready for a minute. It stays when the rollout has ended so."
        ),
    )
    step: StepStatus | None = None
    reason: str | None = None
    message: str | None = None
    outcome: Outcome | None = None
    artifact: ArtifactEvidence | None = None
    tuning: TuningEvidence | None = None
    evaluation: EvaluationEvidence | None = None
    shadow: ShadowStatus | None = None
    restarts: RestartEvidence | None = Field(
        None, description="Servers that ended during the trial; absent: none did."
    )
    history: list[StepEvidence] = Field(
        default_factory=list, description="Verdicts of the steps that have ended."
    )
    verbs: list[VerbRecord] = Field(
        default_factory=list, description="Verbs that were carried out during the rollout, or begun it."
    )
    stages: dict[str, float] = Field(
        default_factory=dict, description="Seconds spent in each stage that has ended."
    )


class Pinned(StatusModel):
    """A person rolled back: the version in spec is not tried again until spec names another one or
    a person retries it.
    """

    revision: str = Field(description="Revision that the rollback restored.")
    generation: int
    rolled_back_from: str | None = Field(
        None, description="Revision of the version that spec requested then, if it had one."
    )
    input_hash: str = ""


class FollowStatus(StatusModel):
    """What spec.model.follow has found."""

    uri: str = Field(description="The source that was looked at; what is known of another one is dropped.")
    settings: str = Field("", description="Hash of every and supersede, whose change lets it follow again.")
    sha256: str | None = Field(
        None, description="SHA-256 of the source as it was seen last: the version that is followed."
    )
    etag: str | None = Field(None, description="The store's ETag of these bytes, where it gave a strong one.")
    seen: str | None = Field(None, description="When they were seen first.")
    checked: str | None = Field(None, description="Start of the last look that has ended.")
    looking: str | None = Field(None, description="Start of the look under way.")
    resumed: str | None = Field(
        None,
        description=(
            "Start of the rollout whose end no longer stops it, since a person said follow or spec changed."
        ),
    )
    reason: str | None = Field(None, description="Why the last look failed.")
    message: str | None = None


class RestartStatus(StatusModel):
    """A person requested new pods of a revision."""

    at: str
    previous_at: str | None = Field(None, description="When the restart before was requested.")
    allow_downtime: bool = Field(False, description="A pod may end before its successor is there.")
    done: bool = Field(False, description="All its pods are new.")
    triton_too_old: bool = Field(
        False,
        description=(
            "The image's Triton lacks the flags of a hardened server, so the pods stay as they were."
        ),
    )


class CrashStatus(StatusModel):
    """How a server crashed."""

    revision: str
    at: str = Field(description="When, as the kubelet says.")
    reason: str
    message: str


class Address(StatusModel):
    """Where clients inside the cluster reach the model."""

    url: str
    grpc: str


class ModelDeploymentStatus(StatusModel):
    """The state of the rollout; the operator makes everything else match it."""

    observed_generation: int | None = None
    phase: Phase = "Pending"
    conditions: Annotated[list[Condition], ListMapKey("type")] = Field(default_factory=list)
    stable: RevisionRef | None = None
    stable_down_since: str | None = Field(
        None,
        description=(
            "Since when no pod of stable is ready although some are asked for. After spec.serving.replicas"
            " was 0 it is the time at which startupTimeout ends."
        ),
    )
    draining: Annotated[list[Draining], ListMapKey("revision")] = Field(
        default_factory=list,
        description="Revisions that have lost their traffic and keep their pods for a while.",
    )
    restarts: dict[str, RestartStatus] = Field(
        default_factory=dict, description="The last restart that was requested of a revision, by its name."
    )
    crash: CrashStatus | None = Field(None, description="The last server that crashed.")
    rollout: RolloutStatus | None = None
    pinned: Pinned | None = None
    follow: FollowStatus | None = None
    last_number: int = 0
    handled_verbs: list[str] = Field(
        default_factory=list, description="The last verbs that were carried out or refused."
    )
    policies: list[str] | None = Field(None, description="RolloutPolicies that match.")
    defaults: (
        Annotated[dict[str, Any], ShapeOf("modelrollout.api.v1alpha1.policy:DefaultsInForce", bare=True)]
        | None
    ) = Field(None, description="What they fill in where spec.rollout leaves a field out.")
    address: Address | None = None
    replicas: int = 0
    ready_replicas: int = 0
    selector: str = ""
    # what the columns of kubectl get show
    canary: str | None = None
    weight: int | None = None
    share: int | None = Field(
        None,
        description="Without a gateway: percent of the ready pods that are the revision's, its real share.",
    )
    step: str | None = None
    verdict: str | None = None
