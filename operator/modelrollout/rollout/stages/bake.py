"""bake: the promoted revision has all traffic and is watched, while the former stable keeps its
pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    Counter,
    MetricStatus,
    ModelDeploymentStatus,
    StepEvidence,
    StepStatus,
    seconds,
)
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.snapshot import Assessment, rollout_of
from modelrollout.rollout.stages.judging import (
    assessment_of,
    error_without_servers,
    handle_inconclusive,
    interval,
    next_look,
    proven_worse,
    servers_ended,
    stay_at_step,
    with_fresh_measurement,
    with_metrics,
)
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.waiting import remaining
from modelrollout.rollout.transitions import enter, record, succeed
from modelrollout.rollout.views import AtStep, InFlight


def begin_bake(s: InFlight, now: datetime) -> ModelDeploymentStatus:
    """Start to watch the revision. The former stable gets no requests to compare with, so its
    counts of the last judged step are the reference.
    """
    reference = [
        MetricStatus(
            name=name,
            verdict="Inconclusive",
            reason=Reason.NO_DATA,
            message="bake begins",
            stable=counter,
            source=source,
        )
        for name, (counter, source) in _stable_counts(s.rollout.history).items()
    ]
    step = StepStatus(
        index=len(steps_of(s)),
        weight=100,
        strategy=strategy.strategy_of(s.spec.rollout),
        previous_weight=100,
        phase="Observing",
        since=stamp(now),
        observed_since=stamp(now),
        metrics=reference,
    )
    return enter(s.status, "Bake", now, step=step)


def _stable_counts(history: Sequence[StepEvidence]) -> dict[str, tuple[Counter, str | None]]:
    """Stable's counts at the last weight and who counted them, by metric. A pause records its own,
    possibly seconds-long evidence, so the record with the most requests wins.
    """
    counts: dict[str, tuple[Counter, str | None]] = {}
    for evidence in history:
        for m in evidence.metrics:
            if (
                evidence.weight == history[-1].weight
                and m.stable is not None
                and (m.name not in counts or m.stable.total >= counts[m.name][0].total)
            ):
                counts[m.name] = m.stable, m.source
    return counts


def bake(s: AtStep, now: datetime) -> Transition:
    """Back to the former stable if proven worse; stable after the time, if it could be measured:
    the counts of one measurement cover all of it.
    """
    step, assessment = s.step, assessment_of(s, s.step.metrics)
    if assessment.verdict == "Failed":
        return proven_worse(s, assessment, now)
    if ended := servers_ended(s, now):
        return ended
    if s.spec.rollout.bake is None:  # edited away
        return _finish(s, s.status, "bake was removed from spec", now)
    assessment = error_without_servers(s, assessment, now)
    if step.phase == "Paused":  # for a cause: a person promotes or aborts
        return Transition(with_fresh_measurement(s, step, s.assessment, now), requeue_after=interval(s))
    left = seconds(s.spec.rollout.bake) - since(step.since, now)
    if left <= 0 and s.rollout.paused_by_user is None:
        if assessment.verdict != "Error":
            status = record(
                with_metrics(s.status, assessment, now), assessment.verdict, assessment.reason, now
            )
            return _finish(s, status, assessment.message, now)
        if remaining(s, now) <= 0:
            return _end_unmeasured(s, assessment, now)
    requeue = (
        max(0.2, min(next_look(s, assessment, now), left)) if left > 0 else next_look(s, assessment, now)
    )
    return stay_at_step(s, step, assessment, now, requeue, ignore_deadline=True)


def _end_unmeasured(s: AtStep, assessment: Assessment, now: datetime) -> Transition:
    deadline = s.spec.rollout.progress_deadline
    text = f"no verdict within progressDeadline {deadline} after bake: {assessment.message}"
    if s.spec.rollout.on_inconclusive == "Promote" and s.server(s.rollout.revision).ready > 0:
        status = record(
            with_metrics(s.status, assessment, now), "Inconclusive", Reason.PROMOTED_BY_POLICY, now
        )
        return _finish(s, status, f"as onInconclusive says: {text}", now)
    return handle_inconclusive(s, s.step, assessment.reason, text, now, may_promote=False)


def _finish(s: AtStep, status: ModelDeploymentStatus, message: str, now: datetime) -> Transition:
    return Transition(
        succeed(s, status, now, "Promoted"),
        (Event(Reason.PROMOTED, f"revision {rollout_of(status).revision} stays: {message}"),),
    )


BAKE = StageSpec(
    "Bake",
    bake,
    AtStep,
    phase="Baking",
    doing="the revision has all traffic and is watched; the former stable keeps its pods",
    condition="Baked",
    needs_stable=True,
    watched=True,
    carries_weight=True,
)
