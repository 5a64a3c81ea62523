"""The status of a ModelDeployment, and the evidence that status and revisions keep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

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
VerdictName = Literal["Successful", "Failed", "Inconclusive", "Error"]


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
        description=(
            "Its pods go at this time; an entry whose time is over means nothing and goes with a later write."
        )
    )


class Held(StatusModel):
    """Somebody said pause."""

    since: str
    by: str = Field(description="The nonce of the request.")


class Counter(StatusModel):
    """Counts of one metric for one revision in this step: ``bad`` of ``total``, and the last raw
    counters by process.

    ``last`` maps a process (pod or gateway instance) to [total, bad, Unix time of the scrape] as
    last scraped: a smaller value is a restart, which starts at 0. Processes beyond the first few
    are followed in groups, ``#N``, with a hash of their names as fourth number.
    """

    total: float = 0
    bad: float = 0
    last: dict[str, list[float]] = Field(default_factory=dict)
    scraped: float | None = Field(None, description="Unix time of the newest scrape that is counted.")
    spread: list[float] = Field(
        default_factory=list,
        description=(
            "Variation of the bad share from look to look: requests and bad ones of the last, number of"
            " differences, sum of their squares, requests and bad ones of all; of stable with those of the"
            " hour before the step."
        ),
    )


class MetricStatus(StatusModel):
    """One metric in the current step, as ``modelrollout status`` shows it."""

    name: str
    verdict: VerdictName
    reason: str
    message: str = ""
    canary: Counter | None = None
    stable: Counter | None = None
    value: float | None = None
    interval: list[float] | None = Field(
        None,
        description=(
            "Confidence interval of the harm: canary minus stable, worse is positive; the canary's bad share"
            " where only that is limited."
        ),
    )
    needed: int | None = Field(
        None,
        description=(
            "Samples that the canary still needs for a verdict, at the present shares; absent: unknown or"
            " none."
        ),
    )
    needed_seconds: int | None = Field(
        None, description="How long those take to come at the present rate; absent: unknown or none."
    )
    next_weight: int | None = Field(
        None, description="Successful by counts: the weight, percent, for which harm was ruled out."
    )
    log_evidence: float | None = Field(
        None,
        description=(
            "Natural logarithm of this step's e-value against 'not worse than stable by more than the"
            " tolerance' (where only a limit is set: 'within the limit'). The counts are those above; later"
            " steps of the rollout build on it."
        ),
    )
    since: str | None = Field(
        None, description="Since when the metric has been in Error, or its query beyond its limits."
    )
    slice: str | None = Field(None, description="The slice that this is about; it decides only by failing.")
    dry_run: bool | None = Field(None, description="It decides nothing.")


class StepStatus(StatusModel):
    """Where in the canary the rollout is."""

    index: int = Field(description="Step of the strategy, from 0; past the last one in Bake.")
    weight: int = Field(
        description="Weight that the route is to have, percent; 0 in a preview and in a test by headers."
    )
    strategy: Strategy = "Canary"
    former: int = Field(
        0, description="Weight of the step before; it stays until there are pods for the new one."
    )
    phase: Literal["Shifting", "Observing", "Paused"]
    since: str = Field(description="Start of the step.")
    observed_since: str | None = Field(None, description="When the data plane had taken the weight up.")
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
    outputs: str = Field("", description="Hash of the tolerances: evidence under others is no evidence.")
    observed_since: str | None = Field(None, description="When the data plane had taken the mirror up.")
    measured: str | None = Field(None, description="When the metric was written.")
    metric: MetricStatus | None = Field(
        None,
        description=(
            "Agreement with stable; its canary's counter counts requests, bad are those that disagree."
        ),
    )
    override: str | None = Field(None, description="Who let the rollout go on without a verdict.")
    promoted: Literal["Step", "Full"] | None = Field(
        None, description="What somebody said by hand: on to the first step, or past all of them."
    )


class GateMetricEvidence(StatusModel):
    """What the gate found on one metric."""

    name: str
    verdict: VerdictName
    reason: str
    samples: int
    before: float
    after: float
    interval: list[float] = Field(
        description="95 % interval of the loss: worse than the original model is positive."
    )
    allowed: float | None = Field(None, description="Largest loss allowed, in the metric's units.")
    slice: str | None = Field(
        None, description="NAME=VALUE of the slice that decided; the numbers are its own."
    )


class Interface(StatusModel):
    """What a model takes and gives: each tensor as ``FP32 [n, 64]`` by its name. Of a very large
    one only digest and counts are kept.
    """

    digest: str = Field(
        description="Of all inputs and outputs, whatever their order; equal interfaces have equal digests."
    )
    inputs: dict[str, str] | None = None
    outputs: dict[str, str] | None = None
    counts: list[int] | None = Field(None, description="Inputs and outputs, where they are not listed.")


class SearchPoint(StatusModel):
    """One model that auto made, judged on its own data."""

    name: str = Field(
        description="The steps, for example prune-0.7+int8; source is the model that auto was given."
    )
    size: int = Field(description="Bytes.")
    milliseconds: float = Field(
        description="CPU time of one request on the Job's CPU, median of runs in turns with the source."
    )
    value: float = Field(description="Of the gate's first metric.")
    highest_loss: float = Field(description="Upper end of the 95 % interval of the loss of that metric.")
    within: bool = Field(description="Whether it keeps all budgets.")


class SearchEvidence(StatusModel):
    """What auto found: the chosen model, and those that no other one beats in accuracy and size, or
    in accuracy and latency.
    """

    objective: str
    metric: str
    before: float = Field(description="That metric of the original model, on auto's data.")
    allowed: float | None = Field(None, description="Largest loss allowed, in the metric's units.")
    chosen: str
    tried: int = Field(description="Models that were made; report.json beside the artifact has them all.")
    ended: str = Field(description="Complete, or TimeLimit.")
    points: list[SearchPoint] = Field(default_factory=list)


class ArtifactEvidence(StatusModel):
    """What prepare made."""

    uri: str
    digest: str
    size_before: int
    size_after: int
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    samples: int | None = None
    drop_interval: list[float] | None = None
    metrics: list[GateMetricEvidence] = Field(
        default_factory=list, description="The gate's metrics, each with its verdict."
    )
    reused: bool = False
    prepared: str | None = Field(
        None, description="When a Job made it, or found it made; absent where an older operator wrote this."
    )
    interface: Interface | None = Field(
        None, description="Inputs and outputs; absent where an older operator prepared it."
    )
    search: SearchEvidence | None = Field(None, description="The frontier that the step auto found.")


class TuningTrial(StatusModel):
    """A serving configuration, and what it was measured to do in one pod."""

    instances: int = Field(1, description="Executions of the model side by side.")
    batch: int = Field(0, description="Requests are joined up to so many samples; 0: never.")
    queue_delay_microseconds: int = Field(0, description="How long a request may wait for others.")
    throughput: float = Field(
        0, description="Samples a second, with as many requests in flight as the objective allows."
    )
    latency_ms: float = Field(0, description="What the asked share of the requests kept to.")
    in_flight: int = 0
    within: bool = Field(False, description="The objective was kept.")
    problem: str | None = Field(None, description="How the server failed under it.")


class TuningEvidence(StatusModel):
    """What tuning found; the pods of the revision serve with ``chosen``, or as configured where
    there is none.
    """

    objective: str = ""
    share: float = 0
    configured: TuningTrial | None = None
    chosen: TuningTrial | None = None
    candidates: int = 0
    failed: int = Field(0, description="Candidates under which the server failed.")
    trials: list[TuningTrial] = Field(default_factory=list, description="The best of the others.")
    message: str = ""


class SliceEvidence(StatusModel):
    """What the golden data said of one slice: its name as ARRAY=VALUE, and the loss of accuracy
    with an interval for all slices together.
    """

    name: str
    samples: int
    drop: float
    interval: list[float]


class EvaluationEvidence(StatusModel):
    """What the golden data said."""

    verdict: VerdictName
    reason: str
    message: str = ""
    samples: int = 0
    accuracy: float | None = None
    stable_accuracy: float | None = None
    stable: str | None = Field(None, description="Revision compared with.")
    only_candidate_right: int | None = None
    only_stable_right: int | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    slices: list[SliceEvidence] | None = Field(None, description="The slices that lost most.")


class StepEvidence(StatusModel):
    """A step's verdict with its numbers."""

    index: int
    weight: int
    verdict: VerdictName
    reason: str
    seconds: float
    next_weight: int | None = Field(
        None, description="Promoted by a person: the weight, percent, that he gave it by that."
    )
    metrics: list[MetricStatus] = Field(default_factory=list)


class QueueStatus(StatusModel):
    """The rollout waits to be given GPUs; it has no pods yet."""

    since: str = Field(description="Since when it waits: who came first goes first.")
    gpus: int = Field(0, description="GPUs that its pods will ask for.")
    position: int | None = Field(None, description="Place in the queue for a slot, from 1, as told last.")
    short_since: str | None = Field(None, description="Since when it has all but free GPUs.")


class SlotStatus(StatusModel):
    """The rollout holds a slot of every RolloutPolicy that limits it."""

    since: str = Field(description="Since when: limits.maxHold counts from here.")
    gpus: int = Field(0, description="GPUs that it may use; replicas that ask for more wait.")


class InPlaceStatus(StatusModel):
    """No GPU was free for the new revision, so stable makes room for it (surge InPlace)."""

    of: int = Field(description="Pods that stable had.")
    keeps: int = Field(description="Pods that it keeps until the rollout ends.")


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
    held: Held | None = Field(None, description="Somebody said pause: the weight stays, deadlines wait.")
    sha256: str | None = None
    revision: str | None = None
    number: int | None = None
    queue: QueueStatus | None = None
    slot: SlotStatus | None = None
    in_place: InPlaceStatus | None = None
    step: StepStatus | None = None
    reason: str | None = None
    message: str | None = None
    outcome: Outcome | None = None
    artifact: ArtifactEvidence | None = None
    tuning: TuningEvidence | None = None
    evaluation: EvaluationEvidence | None = None
    shadow: ShadowStatus | None = None
    history: list[StepEvidence] = Field(
        default_factory=list, description="Verdicts of the steps that have ended."
    )
    stages: dict[str, float] = Field(
        default_factory=dict, description="Seconds spent in each stage that has ended."
    )


class Pinned(StatusModel):
    """Somebody rolled back: the version that spec asked for then is not tried again until spec asks
    for another or somebody says retry.
    """

    revision: str = Field(description="Revision that was gone back to.")
    generation: int
    against: str | None = Field(
        None, description="Revision of the version that spec asked for, if it had one."
    )
    input_hash: str = ""


class RestartStatus(StatusModel):
    """Somebody asked for new pods of a revision."""

    at: str
    former: str | None = Field(None, description="When that was asked for the time before.")
    allow_downtime: bool = Field(False, description="A pod may end before its successor is there.")
    done: bool = Field(False, description="All its pods are new.")
    too_old: bool = Field(
        False,
        description=(
            "Its image's Triton does not know the flags of hardened servers, so its pods stay as they were."
        ),
    )


class CrashStatus(StatusModel):
    """How a server ended while it should have gone on."""

    revision: str
    at: str = Field(description="When, as the kubelet says.")
    reason: str
    message: str


class Address(StatusModel):
    """Where clients inside the cluster reach the model."""

    url: str
    grpc: str


class ModelDeploymentStatus(StatusModel):
    """The only state machine; everything else is made to match it."""

    observed_generation: int | None = None
    phase: Phase = "Pending"
    conditions: Annotated[list[Condition], ListMapKey("type")] = Field(default_factory=list)
    stable: RevisionRef | None = None
    draining: Annotated[list[Draining], ListMapKey("revision")] = Field(
        default_factory=list,
        description="Revisions that have lost their traffic and keep their pods for a while.",
    )
    retiring: RevisionRef | None = Field(
        None, description="What an earlier operator wrote instead of draining; read, never written."
    )
    restarts: dict[str, RestartStatus] = Field(
        default_factory=dict, description="What was last asked of the pods of a revision, by its name."
    )
    crash: CrashStatus | None = Field(
        None, description="The last server that ended while it should have gone on."
    )
    rollout: RolloutStatus | None = None
    pinned: Pinned | None = None
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
