"""RolloutPolicy: what a platform team demands of the ModelDeployments of many teams.
Cluster-scoped; ``rollout.policy.rules`` combines those that match.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from modelrollout.api import uris
from modelrollout.api.v1alpha1 import (
    STEPS_RULES,
    ApiModel,
    Condition,
    Duration,
    Labels,
    ListMapKey,
    Metric,
    Name,
    Rule,
    StatusModel,
    Step,
    plain_uri,
)

NamespacePattern = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9*?]([-a-z0-9*?]*[a-z0-9*?])?$", max_length=63)
]
SourcePrefix = Annotated[
    str, StringConstraints(pattern=uris.PREFIX_PATTERN, max_length=1024), plain_uri(uris.PREFIX_INSTEAD)
]
ImagePrefix = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.:_/-]*$", max_length=512)]
HostnamePattern = Annotated[
    str,
    StringConstraints(
        pattern=r"^(\*|(\*\.)?([a-z0-9]|\{\{namespace\}\})(([-a-z0-9.]|\{\{namespace\}\})*([a-z0-9]|\{\{namespace\}\}))?)$",
        max_length=253,
    ),
]
NamePattern = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9*?]([-a-z0-9.*?]*[a-z0-9*?])?$", max_length=253)
]
KeyPattern = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9*?]([-A-Za-z0-9_./*?]*[A-Za-z0-9*?])?$", max_length=317)
]
EnvPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_*?][A-Za-z0-9_*?]*$", max_length=253)]
Moment = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})$",
        max_length=32,
    ),
]

# whether ModelDeployments may have PromQL of their own, or only policies
Queries = Literal["Templates", "Own"]
DeadStable = Literal["Allow", "Forbid"]


class PolicySelector(ApiModel):
    """Which ModelDeployments the policy is for; all parts must hold. Empty: all of them."""

    namespaces: Annotated[list[NamespacePattern], Field(min_length=1, max_length=64)] | None = Field(
        None, description="Names of namespaces, or patterns with * and ?; left out: all namespaces."
    )
    namespace_labels: Labels | None = Field(
        None,
        description=(
            "Labels that the namespace carries; left out: any. Where the operator may not read namespaces, it"
            " is as if each carried them."
        ),
    )
    match_labels: Labels | None = Field(
        None,
        description=(
            "Labels that the ModelDeployment carries; left out: any. Its author chooses them: what must hold"
            " is chosen by namespaces."
        ),
    )


class DefaultCanary(ApiModel):
    """Defaults of spec.rollout.canary."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=32)] | None = Field(
        None, description="Steps; weights must grow."
    )
    rules: ClassVar[tuple[Rule, ...]] = STEPS_RULES


class DefaultAnalysis(ApiModel):
    """Defaults of spec.rollout.analysis."""

    prometheus: Name | None = Field(
        None, description="Metrics provider by its name in the operator's configuration."
    )
    metrics: Annotated[list[Metric], Field(max_length=16), ListMapKey("name")] | None = Field(
        None, description="Metrics of analyses that name none themselves."
    )


class PolicyDefaults(ApiModel):
    """Fields of spec.rollout where a ModelDeployment leaves them out. What it sets itself always
    wins; gates are for what it may not.
    """

    canary: DefaultCanary | None = None
    analysis: DefaultAnalysis | None = None
    on_failure: Literal["Rollback", "Pause"] | None = Field(
        None, description="What to do when the canary is proven worse."
    )
    on_inconclusive: Literal["Pause", "Rollback", "Promote"] | None = Field(
        None, description="What to do when a step ends without a verdict."
    )
    progress_deadline: Duration | None = Field(None, description="Limit for each stage and each canary step.")
    unscheduled_deadline: Duration | None = Field(
        None, description="How long a new revision may wait for free GPUs."
    )


class DefaultsInForce(PolicyDefaults):
    """What the policies that match fill in together: their defaults, and what gates demand in the
    place of what a spec says.
    """

    bake: Duration | None = None
    max_first_weight: int | None = None
    min_progress_deadline: Duration | None = None


class PolicyGates(ApiModel):
    """What a ModelDeployment must have before a version of it is rolled out."""

    golden: bool = Field(False, description="spec.rollout.analysis.golden is required.")
    held_out: bool = Field(
        False, description="A spec with optimization steps needs spec.optimization.gate with held-out data."
    )
    digest: bool = Field(
        False, description="spec.model.sha256 is required: nothing is pinned at first sight."
    )
    min_golden: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "Least min that golden data may ask for: all that a first version can show, with no stable"
            " beside it."
        ),
    )
    max_drop: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "Largest maxDrop that golden data and the optimization's gate may allow, absolute: 0.01 is one"
            " point."
        ),
    )
    patched_servers: bool = Field(
        False,
        description=(
            "A new revision whose Triton has a flaw that a bulletin of NVIDIA's names, as of the operator's"
            " release, is rejected."
        ),
    )
    bake: Duration | None = Field(
        None,
        description=(
            "Every rollout bakes at least that long after promotion, whatever spec.rollout.bake says; proven"
            " worse, it goes back."
        ),
    )
    metrics: Annotated[list[Metric], Field(max_length=16), ListMapKey("name")] | None = Field(
        None,
        description=(
            "Metrics that every analysis has, whatever the ModelDeployment names; it can make them stricter,"
            " not weaker."
        ),
    )
    max_first_weight: int | None = Field(
        None,
        ge=1,
        le=50,
        description=(
            "Where metrics are demanded: percent of the requests that a new version may have before all of"
            " them have proven it, whatever strategy, steps and onInconclusive say. Left out: 5; where"
            " several policies say it, the least."
        ),
    )
    reserve_names: Duration | None = Field(
        None,
        description=(
            "Where metrics are demanded: how long a host name, and a ModelDeployment's own name, stay with"
            " the version that served last under it, once its holder gave it up or is gone. Left out: 720h;"
            " where several policies say it, the longest."
        ),
    )
    min_progress_deadline: Duration | None = Field(
        None,
        description=(
            "No progressDeadline is shorter, whatever a spec says: evidence has that much time to come."
        ),
    )
    filters: Literal["Allow", "Forbid"] | None = Field(
        None,
        description=(
            "Whether a spec may have traffic.filters. Left out: Allow. Where several policies say it, Forbid"
            " holds."
        ),
    )
    dead_stable: DeadStable | None = Field(
        None,
        description=(
            "Whether a new version may take over without a comparison once no pod of stable has been ready"
            " for a minute. Forbid: the rollout waits for a person to promote it. Left out: Allow. Where"
            " several policies say it, each must say Allow."
        ),
    )
    queries: Queries | None = Field(
        None,
        description=(
            "Which PromQL a spec may have itself (query of its metrics). Templates: none, all PromQL is that"
            " of policies. Own: the operator runs it with a matcher of its namespace in every selector. Left"
            " out: as in the operator's configuration. If several policies set this, each must say Own."
        ),
    )


class AllowedSources(ApiModel):
    """Prefixes that URIs and images must lie in. They narrow the stores of the operator's
    configuration and never widen them; only code and followUnsigned open something.
    """

    models: Annotated[list[SourcePrefix], Field(min_length=1, max_length=64)] | None = Field(
        None, description="For spec.model.uri, for example s3://models/approved/; left out: any store."
    )
    data: Annotated[list[SourcePrefix], Field(min_length=1, max_length=64)] | None = Field(
        None, description="For calibration, held-out and golden data; left out: any store."
    )
    code: Annotated[list[SourcePrefix], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description=(
            "Where models may lie that carry code (spec.serving.triton.code: Allowed). Without a policy that"
            " says so there is no such place; where several do, the model must lie in a place of each."
        ),
    )
    follow_unsigned: Annotated[list[SourcePrefix], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description=(
            "Where models may lie that are followed (spec.model.follow) without a signature: whoever may"
            " write there deploys. Without a policy that says so there is no such place; where several do,"
            " the model must lie in a place of each."
        ),
    )
    images: Annotated[list[ImagePrefix], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description=(
            "For images that a spec names: spec.serving.triton.image and those of container steps. A"
            " registry, a folder of one or a repository, for example registry.example.com/approved/; left"
            " out: any image."
        ),
    )


class AllowedPods(ApiModel):
    """What spec.serving.pod may say: names, or patterns with * and ?. An empty list allows none;
    one that is left out allows what the operator's configuration does.
    """

    labels: Annotated[list[KeyPattern], Field(max_length=64)] | None = Field(
        None, description="Keys of labels, of those in the operator's configuration."
    )
    annotations: Annotated[list[KeyPattern], Field(max_length=64)] | None = Field(
        None, description="Keys of annotations, of those in the operator's configuration."
    )
    priority_classes: Annotated[list[NamePattern], Field(max_length=64)] | None = Field(
        None, description="PriorityClasses, of those in the operator's configuration."
    )
    runtime_classes: Annotated[list[NamePattern], Field(max_length=64)] | None = Field(
        None, description="RuntimeClasses, for example nvidia."
    )
    schedulers: Annotated[list[NamePattern], Field(max_length=64)] | None = Field(
        None, description="Schedulers beside default-scheduler."
    )
    env: Annotated[list[EnvPattern], Field(max_length=64)] | None = Field(
        None, description="Names in the server's environment, for example HF_*."
    )
    volume_claims: Annotated[list[NamePattern], Field(max_length=64)] | None = Field(
        None, description="PersistentVolumeClaims to mount, also those for TensorRT's engines."
    )
    secrets: Annotated[list[NamePattern], Field(max_length=64)] | None = Field(
        None,
        description=(
            "Secrets that env and volumes may name, which code of the model and of its image reads. Left out"
            " where the policy has allowedSecrets: none."
        ),
    )


class FreezeWindow(ApiModel):
    """A time in which no rollout begins and no weight rises. Rollbacks, aborts and reverts always
    work.

    Either schedule and duration, or start and end.
    """

    schedule: str | None = Field(
        None,
        max_length=128,
        description=(
            'When it begins, as cron: minute hour day month weekday; "0 16 * * FRI" is Fridays at 16:00.'
        ),
    )
    timezone: str = Field(
        "UTC",
        max_length=64,
        description="Time zone of schedule, for example Europe/Berlin; summer time is observed.",
    )
    duration: Duration | None = Field(
        None, description="How long it lasts from each time of schedule, for example 63h."
    )
    start: Moment | None = Field(
        None, description="Beginning of a single window, for example 2026-12-20T00:00:00Z."
    )
    end: Moment | None = Field(None, description="End of a single window.")
    reason: str | None = Field(
        None, max_length=128, description="Shown on the rollouts that wait, for example: end of the quarter."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.schedule) != has(self.start)",
            "a freeze window is either schedule and duration, or start and end",
        ),
        Rule(
            "has(self.schedule) == has(self.duration)",
            "schedule needs duration, for example 63h, and duration belongs to schedule",
        ),
        Rule("has(self.start) == has(self.end)", "start needs end, and end belongs to start"),
    )


class PolicyLimits(ApiModel):
    """What all matching ModelDeployments together may use at one time. Rollbacks never wait and do
    not count.
    """

    concurrent_rollouts: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=(
            "Rollouts that may hold GPUs at one time: from Provision to their end. Others wait in the order"
            " they came."
        ),
    )
    gpus: int | None = Field(
        None,
        ge=1,
        le=10000,
        description=(
            "GPUs that the new revisions of rollouts in flight may ask for together, beside what stable"
            " revisions have; a slice counts as its part of one (the chart's gpus). Replicas that are"
            " requested later wait until there is room."
        ),
    )
    jobs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=(
            "Jobs that may resolve and prepare models at one time. Others wait in the order they came; no"
            " deadline counts meanwhile."
        ),
    )
    max_hold: Duration | None = Field(
        None,
        description=(
            "The most that a rollout may hold its slot, pauses and bake included; then it goes back to stable"
            " and releases the slot. Left out: as long as it takes."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.maxHold) || has(self.concurrentRollouts) || has(self.gpus)",
            "maxHold needs concurrentRollouts or gpus: they make the slots",
        ),
    )


class AnalysisTemplate(ApiModel):
    """Metrics under a name, to be used in spec.rollout.analysis.templates."""

    name: Name = Field(
        description=(
            "Name of the template. Where several policies have one of this name, that of the first policy by"
            " name holds."
        )
    )
    metrics: Annotated[list[Metric], Field(min_length=1, max_length=16), ListMapKey("name")] = Field(
        description="Its metrics."
    )


class RolloutPolicySpec(ApiModel):
    """What a platform team demands of the rollouts of many teams.

    Several policies may match one ModelDeployment: every gate, every list of what is allowed, every
    freeze window and every limit of each of them holds; for defaults and templates the first policy
    by name wins.
    """

    selector: PolicySelector = Field(default_factory=PolicySelector)
    defaults: PolicyDefaults | None = None
    gates: PolicyGates | None = None
    allowed_sources: AllowedSources | None = None
    allowed_hostnames: Annotated[list[HostnamePattern], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description=(
            "Host names that ModelDeployments may claim: a name, or *.example.com for all names below it and"
            " wildcards among them, or * for every name; {{namespace}} stands for the namespace. Left out:"
            " any name, but no wildcard."
        ),
    )
    shared_hostnames: Annotated[list[HostnamePattern], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description=(
            "Host names of HTTP that ModelDeployments may share with those of other namespaces: patterns as"
            " in allowedHostnames. Each has the paths of its own model; the first to claim the name has"
            " those that name no model. Left out: a host name is shared within one namespace only."
        ),
    )
    allowed_service_accounts: Annotated[list[NamePattern], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description=(
            "Service accounts that pods and Jobs may run as (spec.serving.serviceAccountName): names, or"
            " patterns with * and ?. A spec that names none runs as default: leave default out, and every"
            " spec must name one. Left out: any of the namespace."
        ),
    )
    allowed_secrets: Annotated[list[NamePattern], Field(max_length=64)] | None = Field(
        None,
        description=(
            "Secrets that a spec may name, for credentials, signers' keys and to pull images: names, or"
            " patterns with * and ?. The Secret that the operator's configuration has for a store may always"
            " be named for what lies there; empty: no other. Left out: any of the namespace. Those that a"
            " server gets are in allowedPods.secrets."
        ),
    )
    allowed_pods: AllowedPods | None = None
    freeze_windows: Annotated[list[FreezeWindow], Field(max_length=32)] | None = Field(
        None, description="Times in which no rollout starts and no weight rises."
    )
    limits: PolicyLimits | None = None
    analysis_templates: Annotated[list[AnalysisTemplate], Field(max_length=16), ListMapKey("name")] | None = (
        Field(None, description="Metrics to share.")
    )


class RolloutPolicyStatus(StatusModel):
    """Whether the policy is valid, and which ModelDeployments it matches."""

    observed_generation: int | None = None
    conditions: Annotated[list[Condition], ListMapKey("type")] = Field(default_factory=list)
    accepted: str | None = Field(
        None, description="Condition Accepted. False: what it matches starts no rollout until corrected."
    )
    matches: int | None = Field(
        None,
        description=(
            "ModelDeployments that it matches, counted when the policy changes and every few minutes."
        ),
    )
    frozen_until: str | None = Field(
        None, description="End of the freeze that is in force, as of the last check."
    )
