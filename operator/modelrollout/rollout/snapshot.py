"""The input of a decision: plain immutable values, gathered by the controller."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any, Literal

from pydantic import ValidationError

from modelrollout.analysis.target import NOT_BY_GATEWAY, Counting
from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    ArtifactEvidence,
    EvaluationEvidence,
    InPlaceStatus,
    Metric,
    MetricStatus,
    MirrorMethod,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionStatus,
    RevisionRef,
    RolloutStatus,
    ShadowStatus,
    StepStatus,
    VerdictName,
    same_version,
)
from modelrollout.contract.results import TaskResult
from modelrollout.gpus import GpuTable
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.policy.rules import NO_RULES, Rules

Split = tuple[tuple[str, int], ...]  # (revision, weight in percent)
QUARANTINED = frozenset({"RolledBack", "Rejected", "Failed", "Aborted"})
SERVED = frozenset({"Stable", "Promoted", "Retired"})
TRAFFIC_REFUSALS = frozenset(
    {
        Reason.FILTER_NOT_ALLOWED,
        Reason.FILTER_UNSUPPORTED,
        Reason.GATEWAY_API_MISSING,
        Reason.GATEWAY_CLASSES_DIFFER,
        Reason.HOSTNAME_NOT_ALLOWED,
        Reason.HOSTNAME_TAKEN,
        Reason.NAME_RESERVED,
        Reason.SESSION_AFFINITY_REFUSED,
        Reason.SESSION_AFFINITY_UNSUPPORTED,
        Reason.TIMEOUTS_UNSUPPORTED,
    }
)  # they concern routes, also those of a version that serves already
NAME_TAKEN = Reason.NAME_TAKEN  # something that is not ours has the name of a child
_LOST = frozenset(
    {Reason.ARTIFACT_MISSING, Reason.ARTIFACT_DIGEST_MISMATCH, Reason.ARTIFACT_CORRUPT, Reason.OUTPUT_REFUSED}
)
_NONCE = re.compile(r"[\w.-]{1,64}")


def artifact_is_unusable(status: ModelRevisionStatus) -> bool:
    """Whether a revision failed because its servers could not load the artifact."""
    return status.outcome == "Failed" and status.reason in _LOST


# between looks at a data plane that has not confirmed that a revision gets no traffic
RECHECK_SECONDS = 30.0
# why the data plane does not carry the routes
UNCARRIED = frozenset(
    {
        Reason.GATEWAY_MISSING,
        Reason.GATEWAY_NOT_PROGRAMMED,
        Reason.NO_MATCHING_LISTENER,
        Reason.ROUTE_NOT_ACCEPTED,
    }
)
NOT_READY = Problem(Reason.NO_READY_PODS, "no pod of the revision is ready, so it gets no traffic")


@dataclass(frozen=True)
class JobState:
    """The Job of the present stage."""

    state: Literal["Absent", "Running", "Succeeded", "Failed"] = "Absent"
    exit_code: int | None = None
    result: TaskResult | None = None
    problem: Problem | None = None  # why it failed; while it runs, what keeps its pod from starting
    retried: Problem | None = None  # why the previous attempt ended
    idle_since: str | None = None  # since when none of its pods runs; None: one does
    no_pod_created: bool = False
    stuck: tuple[str, Problem] | None = None  # since when a pod has been terminating
    queued: Problem | None = None  # why it is suspended
    result_pending: bool = False  # ... and a better reason may arrive any moment


@dataclass(frozen=True)
class Crash:
    """The latest unexpected end of a pod's server; ``at`` is the kubelet's timestamp."""

    at: str
    reason: str
    message: str
    pod: str = ""  # hash of its uid
    created: str = ""  # when the pod was
    count: int = 1  # ends in the life of the pod


@dataclass(frozen=True)
class Server:
    """The Triton pods of a revision."""

    replicas: int = 0
    ready: int = 0
    problem: Problem | None = None
    desired_replicas: int = 0  # spec.replicas of the Deployment
    restarted: str | None = None  # restart annotation of its template
    # version of the hardening (resources.hardening) that its template has; None: not hardened
    hardened: str | None = "1"
    overlay: str | None = None  # version that its template claims, even if it was edited since
    updated: int | None = None  # pods of the present template; None: unknown
    down: Problem | None = None  # why a pod that was ready no longer is
    newest_ready: str | None = None  # when one of its pods last became ready: it is cold at first
    crashes: tuple[Crash, ...] = ()  # of its present pods, one each
    drain: tuple[int, int] | None = None  # preStop and exit timeout of its template, seconds

    @property
    def crash(self) -> Crash | None:
        """The latest crash."""
        return max(self.crashes, key=lambda c: c.at, default=None)


@dataclass(frozen=True)
class Verb:
    """A person's request, as an annotation on a revision. ``revision`` is empty if the annotation
    is on the ModelDeployment.
    """

    verb: str
    revision: str
    nonce: str
    step: str | None = None
    by: str | None = None  # the user, as the API server stamped it
    reason: str | None = None  # in his words

    @property
    def key(self) -> str:
        """How status remembers a handled verb. The parts are split at colons, so an unusual nonce
        is replaced by its hash.
        """
        nonce = self.nonce if _NONCE.fullmatch(self.nonce) else names.short_hash(self.nonce, 16)
        return f"{self.verb}:{self.revision}:{nonce}"


@dataclass(frozen=True)
class Revision:
    """A ModelRevision."""

    name: str
    number: int
    sha256: str
    input: Mapping[str, Any]
    status: ModelRevisionStatus
    hardened: bool = True  # its frozen template is hardened
    # the version of that in its frozen template, if a restart brings a later one
    outdated: str | None = None

    @property
    def prepared(self) -> ArtifactEvidence | None:
        """The published artifact; None if there is nothing to serve: a gate refused it (its
        evidence has no digest), or servers could not load it, so it has to be prepared again.
        """
        artifact = self.status.artifact
        return (
            artifact
            if artifact is not None and artifact.digest and not artifact_is_unusable(self.status)
            else None
        )

    @property
    def proven_worse(self) -> bool:
        """Whether its last rollout ended because it was judged and found worse, and for no other
        reason: a person's, a deadline, too little evidence.
        """
        outcome, last = self.status.outcome, self.status.steps[-1:]
        # the reason: a step that failed may have been paused over it, and something else ended it
        return outcome == "Rejected" or (
            outcome == "RolledBack"
            and any(step.verdict == "Failed" and step.reason == self.status.reason for step in last)
        )

    def is_version(self, spec: ModelDeploymentSpec) -> bool:
        """Whether spec requests exactly this version. A spec without a digest means the digest that
        was pinned when the source was first resolved.
        """
        if spec.model.sha256 not in (None, self.sha256):
            return False
        try:
            return same_version(dict(self.input), spec.user_input())
        except (ValidationError, KeyError):
            # Written by a newer operator with fields that these types do not know: a downgrade of
            # the operator is no reason for a canary.
            return any(_within(x, self.input) for x in (spec.user_input(), spec.user_input_as_written()))


def _within(requested: Any, recorded: Any) -> bool:
    """Whether ``recorded`` contains all of ``requested``."""
    if isinstance(requested, Mapping) and isinstance(recorded, Mapping):
        return all(key in recorded and _within(value, recorded[key]) for key, value in requested.items())
    return bool(requested == recorded)


@dataclass(frozen=True)
class Traffic:
    """Whether the data plane has what the state calls for."""

    programmed: bool = False
    message: str = ""
    problem: Problem | None = None


@dataclass(frozen=True)
class MirrorState:
    """How this gateway can mirror (None: it cannot, because of ``problem``), and whether it
    accepted the mirror on trial.
    """

    way: MirrorMethod | None = None
    problem: Problem | None = None
    tried: Traffic = Traffic()


@dataclass(frozen=True)
class Assessment:
    """The verdict on the shadow or on the present step with the metrics behind it."""

    verdict: VerdictName
    reason: str
    message: str
    metrics: tuple[MetricStatus, ...] = ()
    # why the counters may not come from the gateway, feedback, the comparer or the servers
    doubt: Problem | None = None


@dataclass(frozen=True)
class Slot:
    """Where a rollout is in the queue of one limit of a RolloutPolicy."""

    policy: str
    held: bool  # it has a slot, within the limit
    turn: bool = False  # a slot is free, and no other rollout has waited longer
    position: int = 0  # in the queue, from 1
    waiting: int = 0
    holders: tuple[str, ...] = ()  # namespace/name
    gpus: Fraction = Fraction(0)  # counted by its slot


@dataclass(frozen=True)
class Gpus:
    """GPUs of the nodes that a new revision's pods fit on, counted in whole pods."""

    resource: str  # for example nvidia.com/gpu
    needed: int
    free: int
    total: int
    nodes: int


@dataclass(frozen=True)
class SharedPreparation:
    """The same work of another ModelDeployment of the namespace."""

    by: str | None = None  # name of that ModelDeployment
    artifact: ArtifactEvidence | None = None  # its result; None: it is under way
    refused: Problem | None = None  # why its gate refused the result


@dataclass(frozen=True)
class Observed:
    """One ModelDeployment and its children as they were read, with the RolloutPolicies that match.
    What follows from the written state alone is asked of these facts: where requests go, the Job of
    the stage, whether it is time to measure. The rest of a Snapshot is gathered with the answers.
    """

    name: str
    namespace: str
    generation: int
    spec: ModelDeploymentSpec | None
    status: ModelDeploymentStatus
    revisions: tuple[Revision, ...] = ()
    # uids of the lasting objects that the ModelDeployment itself controls
    children: tuple[str, ...] = ()
    servers: Mapping[str, Server] = field(default_factory=dict)
    verbs: tuple[Verb, ...] = ()
    # when it took over the latest of its reserved host names: earlier stable revisions never served
    # the clients of those names
    names_since: datetime | None = None
    parse_error: str | None = None  # why spec cannot be read
    # weights of the live route (or stable Service), to recover a lost status from
    live_split: Split = ()
    # routes that open more of the servers than clients may use, as "HTTPRoute digits"
    overly_open: tuple[str, ...] = ()
    settle_seconds: float = 3.0
    # whether requests follow the weights; else they follow the numbers of ready pods
    exact_weights: bool = False
    counting: Counting = NOT_BY_GATEWAY  # who counts its requests
    rules: Rules = NO_RULES  # of all RolloutPolicies that match
    # analysis templates of the policies in force here
    templates: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict)
    mandatory: tuple[Metric, ...] = ()  # metrics that those policies require
    triton_versions: Mapping[str, str] = field(default_factory=dict)  # by revision, where a pod answered
    gpu_table: GpuTable = field(default_factory=GpuTable)  # which resources are GPUs

    def revision(self, name: str | None) -> Revision | None:
        """The revision of that name, if it exists."""
        return next((r for r in self.revisions if r.name == name), None)

    def server(self, name: str | None) -> Server:
        """The pods of a revision; zero of zero if there are none."""
        return self.servers.get(name or "", Server())

    @property
    def candidate_server(self) -> Server:
        """The pods of the latest rollout's revision; zero of zero if there are none."""
        return self.server(self.status.rollout.revision if self.status.rollout else None)


@dataclass(frozen=True)
class Snapshot(Observed):
    """Everything that a decision about one ModelDeployment depends on, at one time."""

    work: JobState = JobState()
    traffic: Traffic = Traffic()
    mirror: MirrorState = MirrorState()
    shared: SharedPreparation = SharedPreparation()  # in Prepare, as long as no Job of its own is there
    evaluation: EvaluationEvidence | None = None
    assessment: Assessment | None = None
    # why this spec cannot be rolled out: a store that is not allowed, a taken host name
    spec_problem: Problem | None = None
    # why clients may not reach it: another object's route claims one of its host names
    taken: Problem | None = None
    # why the last pass could not write a child: quota, admission, a taken name
    write_problem: Problem | None = None
    # why it could not write the Job of a look (``rollout.follow``), which nothing else needs
    look_problem: Problem | None = None
    # why the last pass could not write or remove a NetworkPolicy
    network_policy_problem: Problem | None = None
    # why the API server may have dropped fields of the spec, or will drop fields of status
    definition_problem: Problem | None = None
    # since when the data plane has neither confirmed the present routes nor refused them
    silent_since: datetime | None = None
    # when this operator became leader: deadlines must not count time without a leader
    leading_since: datetime | None = None
    # by policy, up to the first without a slot; only if the rollout is queued, or needs more GPUs
    # than its slot counts
    slots: tuple[Slot, ...] = ()
    gpus: Gpus | None = None  # None: not needed, or the operator may not read nodes


def rollout_of(status: ModelDeploymentStatus) -> RolloutStatus:
    """The rollout of a status that has one."""
    assert status.rollout is not None
    return status.rollout


def step_of(status: ModelDeploymentStatus) -> StepStatus:
    """The step of a status whose rollout is at one."""
    step = rollout_of(status).step
    assert step is not None
    return step


def shadow_of(status: ModelDeploymentStatus) -> ShadowStatus:
    """The shadow of a status whose rollout has one."""
    shadow = rollout_of(status).shadow
    assert shadow is not None
    return shadow


def in_flight(rollout: RolloutStatus | None) -> bool:
    """Whether a rollout is under way."""
    return rollout is not None and rollout.stage not in ("Failed", "Done")


def is_paused_for_cause(rollout: RolloutStatus) -> bool:
    """Whether the step or the shadow is paused by a verdict, a deadline or a policy, so that a
    person has to decide: no pause step of spec, and no pause by hand. A step that was left keeps
    its phase.
    """
    step = rollout.step if rollout.stage in ("Canary", "Bake") else None
    at = rollout.shadow if rollout.stage == "Shadow" else step
    return at is not None and at.phase == "Paused" and rollout.reason != Reason.PAUSE_STEP


def active_in_place(status: ModelDeploymentStatus) -> InPlaceStatus | None:
    """How many pods stable keeps in the rollout in flight, if it released any."""
    return status.rollout.in_place if status.rollout is not None and in_flight(status.rollout) else None


def still_draining(s: Observed, now: datetime) -> dict[str, float]:
    """Seconds that each draining revision keeps its pods, at least."""
    left = {
        d.revision: max(
            (datetime.fromisoformat(d.until) - now).total_seconds(), RECHECK_SECONDS if d.unconfirmed else 0.0
        )
        for d in s.status.draining
    }
    return {revision: seconds for revision, seconds in left.items() if seconds > 0}


def serving_revision(status: ModelDeploymentStatus) -> RevisionRef | None:
    """The revision that has the traffic outside of a trial: stable, or the promoted one while it
    bakes.
    """
    rollout = status.rollout
    if (
        rollout is not None
        and rollout.stage == "Bake"
        and rollout.revision is not None
        and rollout.number is not None
    ):
        return RevisionRef(revision=rollout.revision, number=rollout.number)
    return status.stable


def predecessor(s: Observed) -> RevisionRef | None:
    """The stable revision that the one in flight is to replace; None if there is none, or if stable
    itself is being rolled out again.
    """
    stable, rollout = s.status.stable, s.status.rollout
    return None if stable is None or (rollout and rollout.revision == stable.revision) else stable


def baseline(s: Observed) -> RevisionRef | None:
    """The predecessor, if the revision in flight is compared with it: not while it is dead."""
    rollout = s.status.rollout
    return predecessor(s) if rollout is None or rollout.uncompared_since is None else None


def rollout_id(rollout: RolloutStatus) -> str:
    """Short id of a rollout's attempt, part of the names of its Jobs."""
    return names.short_hash([rollout.started, rollout.attempt], 4)
