"""prepare: the optimization Job with the first accuracy gate."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import (
    ArtifactEvidence,
    GateMetricEvidence,
    Interface,
    SearchEvidence,
    SearchPoint,
    Stage,
)
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import Search, TaskResult
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.compatibility import interface_change, served_interface
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import baseline
from modelrollout.rollout.stages.job import RESULT_LOST, failed_job, job_in_progress, retry_job
from modelrollout.rollout.stages.provision import queued
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.tune import needs_tuning
from modelrollout.rollout.stages.waiting import wait, wait_or_fail
from modelrollout.rollout.transitions import change, enter, fail
from modelrollout.rollout.views import InFlight

_TOGETHER = Reason.PREPARED_TOGETHER


def prepare(s: InFlight, now: datetime) -> Transition:
    """Tune or Provision with the artifact that the Job published, or that the revision already
    has.
    """
    rollout = s.rollout
    revision = s.revision(rollout.revision)
    if revision is None:
        return wait_or_fail(s, now, None, "the ModelRevision")
    if revision.prepared is not None:
        return _onward(s, revision.prepared, now)
    work, shared = s.work, s.shared
    if shared.artifact is not None:
        taken = shared.artifact.model_copy(update={"reused": True})
        if shared.refused:
            return _reject(
                s,
                now,
                replace(
                    shared.refused,
                    message=f"{shared.refused.message} (ModelDeployment {shared.by} did the same work)",
                ),
                taken,
            )
        return _onward(
            s,
            taken,
            now,
            Event(Reason.PREPARED, f"reused from ModelDeployment {shared.by}, which requested the same"),
        )
    if shared.by is not None:
        text = (
            f"ModelDeployment {shared.by} requests the same; its prepare Job works for both, and its"
            " result is reused here"
        )
        return wait(s, Problem(_TOGETHER, text), latest=True)
    # It works itself now: the time it waited for another one counts for no deadline.
    if rollout.reason == _TOGETHER:
        return Transition(enter(s.status, "Prepare", now))
    if work.state == "Running" or work.state == "Absent":
        return job_in_progress(s, now, "the prepare Job")
    evidence = _evidence(work.result, now) if work.result else None
    if work.state == "Failed":
        if work.exit_code in (ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE) and work.result:
            return _reject(s, now, Problem(work.result.reason, work.result.message), evidence)
        return failed_job(s, work, now)
    if evidence is None or not evidence.digest:
        return retry_job(s, now, RESULT_LOST)
    return _onward(s, evidence, now, _gate_event(evidence))


def _onward(s: InFlight, artifact: ArtifactEvidence, now: datetime, *events: Event) -> Transition:
    """Tune or Provision, if clients of stable could use the new version."""
    rollout = s.rollout
    if rollout.mode == "Update":
        if problem := interface_change(s, artifact.interface):
            rejected = change(
                fail(s.status, now, "Rejected", problem.reason, problem.message), artifact=artifact
            )
            return Transition(rejected, (*events, Event(problem.reason, problem.message, "Warning")))
        if baseline(s) is not None and (artifact.interface is None or served_interface(s) is None):
            text = (
                "inputs and outputs were not compared with those of stable, since an older operator prepared"
                " one of the two"
            )
            events = (*events, Event(Reason.SIGNATURE_UNKNOWN, text))
    following: Stage = "Tune" if needs_tuning(s) else "Provision"
    return Transition(enter(s.status, following, now, artifact=artifact, queue=queued(s, now)), events)


def _reject(s: InFlight, now: datetime, problem: Problem, evidence: ArtifactEvidence | None) -> Transition:
    """Refused by the gate. The evidence stays readable; the artifact was not published, so it has
    no digest.
    """
    rejected = fail(s.status, now, "Rejected", problem.reason, problem.message)
    if evidence:
        rejected = change(rejected, artifact=evidence)
    return Transition(rejected, (Event(problem.reason, problem.message, "Warning"),))


def _evidence(result: TaskResult, now: datetime) -> ArtifactEvidence:
    return ArtifactEvidence(
        uri=result.artifact_uri or "",
        digest=result.artifact_digest or "",
        size_before=result.size_bytes or 0,
        size_after=result.artifact_size_bytes or 0,
        accuracy_before=result.accuracy_before,
        accuracy_after=result.accuracy_after,
        samples=result.samples,
        drop_interval=list(result.drop_interval) if result.drop_interval else None,
        metrics=[
            GateMetricEvidence(
                name=m.name,
                verdict=m.verdict,
                reason=m.reason,
                samples=m.n,
                before=m.before,
                after=m.after,
                interval=list(m.interval),
                allowed=m.allowed,
                slice=m.slice,
            )
            for m in result.metrics
        ],
        reused=result.reused,
        prepared=stamp(now),
        interface=Interface.model_validate(result.interface.model_dump()) if result.interface else None,
        search=_search(result.search) if result.search else None,
        decoupled=result.decoupled,
    )


def _search(search: Search) -> SearchEvidence:
    points = [SearchPoint(**point._asdict()) for point in search.points]
    return SearchEvidence(**search.model_dump(exclude={"points"}), points=points)


def _gate_event(evidence: ArtifactEvidence) -> Event:
    size = (
        f"{evidence.size_before} -> {evidence.size_after}"
        f" bytes{f', auto took {evidence.search.chosen}' if evidence.search else ''}"
    )
    if not evidence.metrics:
        return Event(Reason.PREPARED, f"{size}, no gate")
    metrics = ", ".join(f"{m.name} {m.before:.4f} -> {m.after:.4f}" for m in evidence.metrics)
    return Event(Reason.PREPARED, f"{size}, {metrics} on {evidence.samples} samples")


PREPARE = StageSpec(
    "Prepare",
    prepare,
    InFlight,
    phase="Preparing",
    doing="the model is being fetched, verified and optimized",
    then="its servers start",
    condition="Prepared",
)
