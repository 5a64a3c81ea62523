"""Specs, snapshots and a clock for tests of the state machine. Everything has a default; a test
names only what it is about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from modelrollout.analysis.target import Counting
from modelrollout.api import names
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import (
    ArtifactEvidence,
    Condition,
    EvaluationEvidence,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionStatus,
    RevisionRef,
    RolloutStatus,
    StepStatus,
    VerdictName,
)
from modelrollout.contract.common import ServingConfig
from modelrollout.contract.results import Paired, TaskResult, TrialResult, TuneResult
from modelrollout.rollout.decide import decide
from modelrollout.rollout.plan import Converge, Desired, Event, Plan, Write
from modelrollout.rollout.snapshot import Assessment, Revision, Server, Snapshot, Traffic
from modelrollout.rollout.transitions import input_hash
from modelrollout.rollout.views import Specified

CONTROLLER = "example.com/gateway"  # of GatewayClasses
START = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
NAME, NAMESPACE = "digits", "ml"
TAKEN = Traffic(True)


def at(seconds: float) -> datetime:
    """So many seconds after the start of the test."""
    return START + timedelta(seconds=seconds)


def ago(seconds: float) -> str:
    """A timestamp of status, so many seconds before ``START``."""
    return stamp(START - timedelta(seconds=seconds))


def uri(version: int) -> str:
    return f"s3://models/digits/v{version}/model.onnx"


def sha(version: int) -> str:
    """Digest of the model file of a version."""
    return hashlib.sha256(uri(version).encode()).hexdigest()


def sha_of(source: str) -> str | None:
    """Digest of the model file at one of the first ``uri``s."""
    return next((sha(version) for version in range(10) if uri(version) == source), None)


def spec(
    version: int = 1,
    *,
    steps: list[dict[str, Any]] | None = None,
    golden: bool = False,
    pinned: bool = False,
    gateway: bool = True,
    replicas: int = 2,
    tune: Mapping[str, Any] | None = None,
    rollout: Mapping[str, Any] | None = None,
    **other: Any,
) -> ModelDeploymentSpec:
    """Spec that asks for ``version``; ``pinned``: with its sha256. Steps count at once, unless
    ``rollout`` names an initial delay.
    """
    canary = {} if steps is None else {"canary": {"steps": steps}}
    analysis = {"golden": {"uri": "s3://models/golden.npz"}} if golden else {}
    policy = canary | {"analysis": analysis} | dict(rollout or {})
    return ModelDeploymentSpec.model_validate(
        {
            "model": {"uri": uri(version)} | ({"sha256": sha(version)} if pinned else {}),
            "serving": (
                {"replicas": replicas, "resources": {"limits": {"nvidia.com/gpu": 1}}}
                | ({"tune": tune} if tune else {})
            ),
            "traffic": (
                {"gateway": {"name": "public"}, "http": {"hostnames": ["digits.example.com"]}}
                if gateway
                else {}
            ),
            "rollout": policy | {"analysis": {"initialDelay": "0s"} | policy["analysis"]},
        }
        | other
    )


STEPS = [{"weight": 5}, {"weight": 25}, {"weight": 50}]


def artifact(version: int = 1) -> ArtifactEvidence:
    return ArtifactEvidence(
        uri=f"s3://artifacts/ml/v{version}", digest=f"sha256:{sha(version)}", size_before=1000, size_after=260
    )


def revision(
    version: int,
    outcome: str = "Pending",
    *,
    number: int | None = None,
    prepared: bool = True,
    reason: str = "-",
) -> Revision:
    """The kept revision of a version."""
    user_input = spec(version).user_input()
    status = ModelRevisionStatus.model_validate({"outcome": outcome, "reason": reason}).model_copy(
        update={"artifact": artifact(version) if prepared else None}
    )
    return Revision(revision_name(version), number or version, sha(version), user_input, status)


def revision_name(version: int) -> str:
    return names.revision_name(NAMESPACE, NAME, spec(version).user_input(), sha(version))


def ref(version: int) -> RevisionRef:
    return RevisionRef(revision=revision_name(version), number=version, since=ago(1000))


def ready(count: int = 2, asked: int = 2) -> Server:
    return Server(count, count, None, asked)


def rollout(stage: str, version: int = 2, **changes: Any) -> RolloutStatus:
    """A rollout of ``version`` that came to ``stage`` ten seconds ago."""
    before = {
        "input_hash": input_hash(Specified.of(snapshot(spec(version)))),
        "generation": 1,
        "since": ago(10),
        "started": ago(60),
    }
    named = (
        {}
        if stage == "Resolve"
        else {"sha256": sha(version), "revision": revision_name(version), "number": version}
    )
    made = RolloutStatus.model_validate({"stage": stage, **before, **named})
    if stage in ("Tune", "Provision", "Evaluate", "Shadow", "Canary", "Promote", "Bake", "Revert"):
        made = made.model_copy(update={"artifact": artifact(version)})
    return made.model_copy(update=changes)


def step(index: int = 0, weight: int = 5, phase: str = "Observing", **changes: Any) -> StepStatus:
    """A step that began ten seconds ago and is observed since five."""
    made = StepStatus.model_validate(
        {"index": index, "weight": weight, "phase": phase, "since": ago(10), "observedSince": ago(5)}
    )
    return made.model_copy(update=changes)


def status(stable: int | None = 1, *, last_number: int = 2, **changes: Any) -> ModelDeploymentStatus:
    return ModelDeploymentStatus(stable=ref(stable) if stable else None, last_number=last_number).model_copy(
        update=changes
    )


def snapshot(
    wanted: ModelDeploymentSpec | None, state: ModelDeploymentStatus | None = None, **changes: Any
) -> Snapshot:
    """Generation 1 of the ModelDeployment ``ml/digits``."""
    exact = wanted is not None and wanted.traffic.gateway is not None
    fields: dict[str, Any] = {
        "exact_weights": exact,
        "counting": Counting("traefik" if exact else "none"),
    } | changes
    return Snapshot(
        name=NAME,
        namespace=NAMESPACE,
        generation=fields.pop("generation", 1),
        spec=wanted,
        status=state or status(None),
        **fields,
    )


def second(
    stage: str,
    *,
    wanted: ModelDeploymentSpec | None = None,
    changes: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Snapshot:
    """The usual case: version 1 is stable, a rollout of version 2 is in ``stage``, all pods are
    ready, the route is taken up.
    """
    state = status(1, rollout=rollout(stage, 2, **(changes or {})))
    revisions = (
        revision(1, "Stable"),
        revision(
            2,
            "Canary" if stage in ("Canary", "Bake") else "Pending",
            prepared=stage not in ("Resolve", "Prepare"),
        ),
    )
    usual = {
        "revisions": revisions if stage != "Resolve" else revisions[:1],
        "servers": {revision_name(1): ready(), revision_name(2): ready()},
        "traffic": TAKEN,
    }
    return snapshot(wanted or spec(2), state, **(usual | facts))


def in_canary(
    *,
    wanted: ModelDeploymentSpec | None = None,
    at_step: StepStatus | None = None,
    reason: str | None = None,
    message: str | None = None,
    **facts: Any,
) -> Snapshot:
    """``second`` in the canary."""
    return second(
        "Canary",
        wanted=wanted or spec(2, steps=STEPS),
        changes={"step": at_step or step(), "reason": reason, "message": message},
        **facts,
    )


ACCEPTED = {"Accepted": "True", "ResolvedRefs": "True"}


def answered(
    route: Mapping[str, Any], conditions: Mapping[str, str] = ACCEPTED, controller: str = CONTROLLER
) -> dict[str, Any]:
    """The status that a controller writes for the present generation of a route, by each of its
    parents.
    """
    about = {
        "reason": "Stated",
        "message": "as it is",
        "observedGeneration": route["metadata"].get("generation", 0),
    }
    stated = [{"type": t, "status": s, **about} for t, s in conditions.items()]
    return {
        "parents": [
            {"parentRef": ref, "controllerName": controller, "conditions": stated}
            for ref in route["spec"].get("parentRefs") or []
        ]
    }


def judged(verdict: VerdictName, reason: str = "", message: str = "as it was measured") -> Assessment:
    return Assessment(
        verdict,
        reason
        or {"Successful": "ProvenNotWorse", "Failed": "AccuracyLow"}.get(verdict, "ProviderUnreachable"),
        message,
    )


def evaluation(verdict: VerdictName, reason: str = "AccuracyLow") -> EvaluationEvidence:
    return EvaluationEvidence(
        verdict=verdict,
        reason=reason,
        message="on golden data",
        samples=1000,
        accuracy=0.97,
        stable_accuracy=0.96,
    )


def job_result(task: str, sha256: str | None, artifact_uri: str | None = None) -> TaskResult:
    """What a Job with such a task says when all went well; ``sha256``: of the source."""
    if task == "resolve":
        return TaskResult(size_bytes=1000, sha256=sha256)
    if task == "prepare":
        return TaskResult(
            size_bytes=1000,
            artifact_uri=artifact_uri,
            artifact_digest=f"sha256:{sha256}",
            artifact_size_bytes=260,
        )
    if task == "tune":
        configured = TrialResult(serving=ServingConfig(), throughput=400, within=True)
        chosen = ServingConfig(instances=2, batch=8, queue_delay_us=500)
        best = TrialResult(serving=chosen, throughput=900, latency_ms=40, within=True)
        return TaskResult(tuned=TuneResult(configured=configured, chosen=best))
    paired = Paired(n=1000, both_right=970, only_candidate_right=0, only_baseline_right=0, both_wrong=30)
    return TaskResult(samples=1000, accuracy=0.97, stable_accuracy=0.97, paired=paired)


def condition(plan: Plan, kind: str) -> Condition:
    """A condition of the status that the plan writes (or leaves as it is)."""
    return next(c for c in plan.status.conditions if c.type == kind)


def moved(plan: Plan) -> RolloutStatus:
    """The rollout that the plan writes."""
    assert plan.status.rollout is not None
    assert isinstance(plan, Write), "a pass either writes a transition or makes the children match"
    return plan.status.rollout


def events(plan: Plan) -> tuple[Event, ...]:
    """The events that the plan posts; only a transition has any."""
    return plan.events if isinstance(plan, Write) else ()


def rests(plan: Plan) -> bool:
    """Nothing is written but children, and nothing is waited for by time."""
    return isinstance(plan, Converge) and plan.requeue_after is None


def children(s: Snapshot, now: datetime = START) -> Desired:
    """The children of the state, once what people read in status is written."""
    for _ in range(5):
        plan = decide(s, now)
        if isinstance(plan, Converge):
            return plan.desired
        assert (plan.status.rollout is None) == (s.status.rollout is None), (
            f"a rollout begins or ends: {plan.status.rollout}"
        )
        s = replace(s, status=plan.status)
    raise AssertionError("status does not settle")
