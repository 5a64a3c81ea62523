"""What a decision is made from: plain immutable values, filled by the controller."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.times import since as since
from modelrollout.api.times import stamp as stamp
from modelrollout.api.v1alpha1 import (
    ArtifactEvidence,
    Draining,
    EvaluationEvidence,
    Metric,
    MetricStatus,
    MirrorMethod,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionStatus,
    RevisionRef,
    RolloutStatus,
    VerdictName,
    same_version,
)
from modelrollout.contract.results import TaskResult
from modelrollout.problem import Problem as Problem
from modelrollout.rollout.policy.rules import NO_RULES, Rules

Split = tuple[tuple[str, int], ...]  # (revision, weight in percent)
QUARANTINED = frozenset({"RolledBack", "Rejected", "Failed", "Aborted"})
SERVED = frozenset({"Stable", "Promoted", "Retired"})
TRAFFIC_REFUSALS = frozenset(
    {"GatewayAPIMissing", "HostnameTaken", "HostnameNotAllowed", "NameReserved"}
)  # they concern routes, also those of a version that serves already
NAME_TAKEN = "NameTaken"  # something that is not ours has the name of a child
_LOST = frozenset({"ArtifactMissing", "ArtifactDigestMismatch", "ArtifactCorrupt", "OutputRefused"})
_NONCE = re.compile(r"[\w.-]{1,64}")


def artifact_is_unusable(status: ModelRevisionStatus) -> bool:
    """Whether a revision failed because of its artifact, as the loader of its servers said."""
    return status.outcome == "Failed" and status.reason in _LOST


NOT_READY = Problem("NoReadyPods", "no pod of the revision is ready, so it gets no traffic")


@dataclass(frozen=True)
class JobState:
    """The Job of the present stage."""

    state: Literal["Absent", "Running", "Succeeded", "Failed"] = "Absent"
    exit_code: int | None = None
    result: TaskResult | None = None
    problem: Problem | None = None  # of the end; while it runs, what keeps its pod from starting
    retried: Problem | None = None  # why the try before the present one ended
    idle_since: str | None = None  # since when none of its pods works; None: one does
    no_pod_created: bool = False
    stuck: tuple[str, Problem] | None = None  # since when a pod should be gone that is not
    queued: Problem | None = None  # it is suspended: its turn has not come
    result_pending: bool = False  # ... and why may be told any moment


@dataclass(frozen=True)
class Crash:
    """A server that ended while it should have gone on; ``at`` as the kubelet writes times."""

    at: str
    reason: str
    message: str


@dataclass(frozen=True)
class Server:
    """The Triton pods of a revision."""

    replicas: int = 0
    ready: int = 0
    problem: Problem | None = None
    desired_replicas: int = 0  # replicas that the Deployment asks for
    # when its pods were last asked to start anew, as its template says
    restarted: str | None = None
    # version of what keeps everybody from managing its servers (resources.hardening); None: nothing
    # does
    hardened: str | None = "1"
    overlay: str | None = None  # the version that its template says it has, whatever became of it
    updated: int | None = None  # pods of the present template; None: not known
    down: Problem | None = None  # why a pod that was ready is not any more
    crash: Crash | None = None  # the last one that its present pods have seen
    version: str | None = None  # of Triton, as a pod tells it; None: not known


@dataclass(frozen=True)
class Verb:
    """What a person asked of a revision: an annotation on it. ``revision`` is empty when it stands
    on the ModelDeployment.
    """

    verb: str
    revision: str
    nonce: str
    step: str | None = None

    @property
    def key(self) -> str:
        """How status remembers that it was handled. A nonce that is no plain word stands there as
        its hash: the parts are split at colons.
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
    hardened: bool = True  # the frozen template has what keeps everybody from managing its servers

    @property
    def prepared(self) -> ArtifactEvidence | None:
        """What prepare published; None where a gate refused it: its evidence is kept, but without a
        digest there is nothing to serve; and where it failed because what was published is not
        there any more as it was: another try makes it anew.
        """
        artifact = self.status.artifact
        return (
            artifact
            if artifact is not None and artifact.digest and not artifact_is_unusable(self.status)
            else None
        )

    def is_version(self, spec: ModelDeploymentSpec) -> bool:
        """Whether the spec asks for this very version. A spec without a digest takes the digest
        that was pinned at first sight.
        """
        if spec.model.sha256 not in (None, self.sha256):
            return False
        try:
            return same_version(dict(self.input), spec.user_input())
        except (ValidationError, KeyError):
            # Written by a newer operator in words that today's types do not know: going back to an
            # older one is no reason for a canary.
            return _within(spec.user_input(), self.input)


def _within(asked: Any, kept: Any) -> bool:
    """Whether ``kept`` has everything of ``asked``."""
    if isinstance(asked, Mapping) and isinstance(kept, Mapping):
        return all(key in kept and _within(value, kept[key]) for key, value in asked.items())
    return bool(asked == kept)


@dataclass(frozen=True)
class Traffic:
    """Whether the data plane has what the state asks for."""

    programmed: bool = False
    message: str = ""
    problem: Problem | None = None


@dataclass(frozen=True)
class MirrorState:
    """How this gateway could mirror (None: it cannot, for the ``problem``), and whether it would
    take up the mirror that was made.
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
    # why others than the gateway, feedback, the comparer or the servers may have counted
    doubt: Problem | None = None


@dataclass(frozen=True)
class Slot:
    """How a rollout stands with one limit of a RolloutPolicy."""

    policy: str
    held: bool  # a slot is ours, and within the limit
    turn: bool = False  # there is room, and nobody waits longer: take one
    position: int = 0  # in the queue, from 1
    waiting: int = 0
    holders: tuple[str, ...] = ()  # namespace/name
    gpus: int = 0  # that our own slot counts


@dataclass(frozen=True)
class Gpus:
    """A look at the GPUs of the nodes that a new revision's pods fit on; counted are those that
    whole pods can have.
    """

    kind: str  # resource name, for example nvidia.com/gpu
    needed: int
    free: int
    total: int
    nodes: int


@dataclass(frozen=True)
class SharedPreparation:
    """The same work of another ModelDeployment of the namespace."""

    by: str | None = None
    artifact: ArtifactEvidence | None = None  # what came of it; None: it is under way
    refused: Problem | None = None  # by its gate


@dataclass(frozen=True)
class Snapshot:
    """One ModelDeployment and all that belongs to it, at one time."""

    name: str
    namespace: str
    generation: int
    spec: ModelDeploymentSpec | None
    status: ModelDeploymentStatus
    revisions: tuple[Revision, ...] = ()
    # uids of what the ModelDeployment itself controls and that lasts
    children: tuple[str, ...] = ()
    work: JobState = JobState()
    servers: Mapping[str, Server] = field(default_factory=dict)
    traffic: Traffic = Traffic()
    mirror: MirrorState = MirrorState()
    shared: SharedPreparation = SharedPreparation()  # in Prepare, as long as no Job of its own is there
    evaluation: EvaluationEvidence | None = None
    assessment: Assessment | None = None
    verbs: tuple[Verb, ...] = ()
    # why this spec cannot be rolled out: a store that is not allowed, a host name that is taken
    spec_problem: Problem | None = None
    # why clients may not reach it: somebody else's route takes a host name that it has
    taken: Problem | None = None
    # when it took over the latest of its reserved host names: what was stable before never served
    # their clients
    names_since: datetime | None = None
    parse_error: str | None = None  # why spec could not even be read
    # why the last pass could not write a child: quota, admission, a name that is taken
    write_problem: Problem | None = None
    exposed: Problem | None = None  # why the last pass could not write or remove a NetworkPolicy
    # what the route (or the stable Service) in the cluster says now; for a status that was lost
    live_split: Split = ()
    # routes that open more of the servers than clients may ask, as "HTTPRoute digits"
    overly_open: tuple[str, ...] = ()
    settle_seconds: float = 3.0
    gateway: bool = False
    # when this leader began to look: what passed while nobody did is nobody's fault
    leading_since: datetime | None = None
    rules: Rules = NO_RULES  # what the RolloutPolicies that match say together
    # by policy, up to the first that is not held; of a rollout that is queued, or asks for more
    # GPUs than its slot has
    slots: tuple[Slot, ...] = ()
    gpus: Gpus | None = None  # None: not looked, or not allowed to
    # analysis templates of the policies in force here
    templates: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict)
    mandatory: tuple[Metric, ...] = ()  # metrics that those policies demand

    def revision(self, name: str | None) -> Revision | None:
        """The revision of that name, if it exists."""
        return next((r for r in self.revisions if r.name == name), None)

    def server(self, name: str | None) -> Server:
        """The pods of a revision; zero of zero if there are none."""
        return self.servers.get(name or "", Server())


def in_flight(rollout: RolloutStatus | None) -> bool:
    """Whether a rollout is under way."""
    return rollout is not None and rollout.stage not in ("Failed", "Done")


def draining(status: ModelDeploymentStatus, settle_seconds: float) -> list[Draining]:
    """Revisions that keep their pods for a while, also as an earlier operator wrote it; entries
    whose time is over are among them.
    """
    found = list(status.draining)
    if status.retiring is not None and status.retiring.since is not None:
        until = datetime.fromisoformat(status.retiring.since) + timedelta(seconds=settle_seconds)
        found.append(
            Draining(revision=status.retiring.revision, number=status.retiring.number, until=stamp(until))
        )
    return found


def still_draining(s: Snapshot, now: datetime) -> dict[str, float]:
    """Seconds that each such revision still has."""
    left = {
        d.revision: (datetime.fromisoformat(d.until) - now).total_seconds()
        for d in draining(s.status, s.settle_seconds)
    }
    return {revision: seconds for revision, seconds in left.items() if seconds > 0}


def serving_revision(status: ModelDeploymentStatus) -> RevisionRef | None:
    """The revision that has the traffic outside of a trial: stable, or what is watched after its
    promotion.
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


def baseline(s: Snapshot) -> RevisionRef | None:
    """Stable as what the revision in flight is compared with; None when there is none, or when it
    is stable itself that is made anew.
    """
    stable, rollout = s.status.stable, s.status.rollout
    return None if stable is None or (rollout and rollout.revision == stable.revision) else stable


def rollout_id(rollout: RolloutStatus) -> str:
    """Short id of a rollout's attempt, part of the names of its Jobs."""
    return names.short_hash([rollout.started, rollout.attempt], 4)
