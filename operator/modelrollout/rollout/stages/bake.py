"""bake: the promoted revision has all traffic and is watched, while the former stable keeps its
pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from modelrollout.api.v1alpha1 import (
    Counter,
    MetricStatus,
    ModelDeploymentStatus,
    StepEvidence,
    StepStatus,
    seconds,
)
from modelrollout.rollout import strategy as stepping
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.snapshot import NOT_READY, Assessment, Snapshot, since, stamp
from modelrollout.rollout.stages.canary import (
    handle_inconclusive,
    interval,
    proven_worse,
    step_rewritten,
    with_metric_events,
    with_metrics,
)
from modelrollout.rollout.stages.waiting import remaining
from modelrollout.rollout.transitions import enter, record, succeed


def begin_bake(s: Snapshot, now: datetime) -> ModelDeploymentStatus:
    """Watch the revision; there is no traffic on the former stable to compare with, so its counts
    of the last judged step are what stands for it.
    """
    assert s.spec is not None and s.status.rollout is not None
    reference = [
        MetricStatus(
            name=name, verdict="Inconclusive", reason="NoData", message="bake begins", stable=counted
        )
        for name, counted in _former(s.status.rollout.history).items()
    ]
    step = StepStatus(
        index=len(steps_of(s)),
        weight=100,
        strategy=stepping.strategy_of(s.spec.rollout),
        previous_weight=100,
        phase="Observing",
        since=stamp(now),
        observed_since=stamp(now),
        metrics=reference,
    )
    return enter(s.status, "Bake", now, step=step)


def _former(history: Sequence[StepEvidence]) -> dict[str, Counter]:
    """What stable has shown at the last weight, by metric. A pause there is a record of its own, of
    which a person may have made seconds: the record with the most requests.
    """
    found: dict[str, Counter] = {}
    for evidence in history:
        for m in evidence.metrics:
            if (
                evidence.weight == history[-1].weight
                and m.stable is not None
                and m.stable.total >= found.get(m.name, m.stable).total
            ):
                found[m.name] = m.stable
    return found


def bake(s: Snapshot, now: datetime) -> Transition:
    """Back to the former stable when proven worse; stable after the time, if it could be measured:
    the counts of one look cover all of it.
    """
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    rollout, step = s.status.rollout, s.status.rollout.step
    found = s.assessment or Assessment("Error", "NoData", "nothing was measured", tuple(step.metrics))
    if found.verdict == "Failed":
        return proven_worse(s, found, now)
    if s.spec.rollout.bake is None:  # edited away
        return _over(s, s.status, "bake was taken out of spec", now)
    server = s.server(rollout.revision)
    if server.ready == 0:  # the split has given everything back meanwhile
        problem = server.problem or NOT_READY
        found = replace(found, verdict="Error", reason=problem.reason, message=problem.message)
    if step.phase == "Paused":  # for a cause: a person says promote or abort
        return Transition(with_metric_events(s, step, s.assessment, now), requeue_after=interval(s))
    left = seconds(s.spec.rollout.bake) - since(step.since, now)
    if left <= 0 and rollout.paused_by_user is None:
        if found.verdict != "Error":
            return _over(
                s,
                record(with_metrics(s.status, found, now), found.verdict, found.reason, now),
                found.message,
                now,
            )
        if remaining(s, now) <= 0:
            return _unmeasured(s, step, found, now)
    requeue = max(0.2, min(interval(s), left)) if left > 0 else interval(s)
    return step_rewritten(s, step, found, now, requeue, on_time=True)


def _unmeasured(s: Snapshot, step: StepStatus, found: Assessment, now: datetime) -> Transition:
    assert s.spec is not None and s.status.rollout is not None
    text = (
        f"not measured until progressDeadline {s.spec.rollout.progress_deadline} after bake: {found.message}"
    )
    if s.spec.rollout.on_inconclusive == "Promote" and s.server(s.status.rollout.revision).ready > 0:
        return _over(
            s,
            record(with_metrics(s.status, found, now), "Inconclusive", "PromotedByPolicy", now),
            f"as onInconclusive says: {text}",
            now,
        )
    return handle_inconclusive(s, step, found.reason, text, now, may_promote=False)


def _over(s: Snapshot, status: ModelDeploymentStatus, message: str, now: datetime) -> Transition:
    assert status.rollout is not None
    return Transition(
        succeed(s, status, now, "Promoted"),
        (Event("Promoted", f"revision {status.rollout.revision} stays: {message}"),),
    )
