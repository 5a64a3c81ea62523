"""canary: traffic in steps, each judged before the next."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.v1alpha1 import ModelDeploymentStatus, Step, StepStatus, seconds
from modelrollout.rollout import steps as stepping
from modelrollout.rollout.facts import Assessment, Event, Problem, Snapshot, since, stamp
from modelrollout.rollout.stages.move import CHECK_SECONDS, Move, remaining, wait
from modelrollout.rollout.transitions import at_step, change, enter, record, revert

REWRITE_SECONDS = 60.0  # measurements without news are written to status this often at most


def canary(s: Snapshot, now: datetime) -> Move:
    """First what ends the canary, then what keeps it where it is, then the next step."""
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    step = s.status.rollout.step
    position = stepping.locate(s.spec.rollout.canary.steps, step)
    found = s.assessment
    if found and found.verdict == "Failed" and step.phase != "Shifting":
        return _proven_worse(s, found, now)
    if step.phase == "Shifting":
        return _shifting(s, step, now)
    if step.phase == "Paused":
        return _paused(s, step, position, now)
    return _observing(s, step, position, found, now)


def _proven_worse(s: Snapshot, found: Assessment, now: datetime) -> Move:
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    status = record(_with_metrics(s.status, found, now), "Failed", found.reason, now)
    step = s.status.rollout.step
    if s.spec.rollout.on_failure == "Pause":
        if s.status.rollout.reason == found.reason:
            return Move(s.status, requeue_after=CHECK_SECONDS)
        return Move(_pause(status, step, found.reason, f"{found.message}; onFailure is Pause: promote or abort"), (_event(found),))
    return Move(revert(status, now, "RolledBack", found.reason, found.message), (_event(found),))


def _event(found: Assessment) -> Event:
    return Event(found.reason, found.message, "Warning")


def _pause(status: ModelDeploymentStatus, step: StepStatus, reason: str, message: str) -> ModelDeploymentStatus:
    metrics = status.rollout.step.metrics if status.rollout and status.rollout.step else step.metrics
    return change(status, step=step.model_copy(update={"phase": "Paused", "metrics": metrics}), reason=reason, message=message)


def _shifting(s: Snapshot, step: StepStatus, now: datetime) -> Move:
    waited = since(step.since, now)
    if s.traffic.taken_up and waited >= s.settle_seconds:
        # The first measurement is the baseline; what came before belongs to another weight.
        metrics = list(s.assessment.metrics) if s.assessment else []
        observing = step.model_copy(update={"phase": "Observing", "observed_since": stamp(now), "metrics": metrics})
        return Move(change(s.status, step=observing, reason=None, message=None))
    if remaining(s, now) <= 0:
        message = f"the gateway has not taken up weight {step.weight}: {s.traffic.message}"
        return _inconclusive(s, step, "TrafficNotShifted", message, now)
    return wait(s, s.traffic.problem, max(0.2, s.settle_seconds - waited) if s.traffic.taken_up else 5.0)


def _paused(s: Snapshot, step: StepStatus, position: stepping.Position, now: datetime) -> Move:
    assert s.spec is not None
    present = s.spec.rollout.canary.steps[position.index] if position.index >= 0 else None
    if position.exact and present and present.pause and present.pause.duration:
        left = seconds(present.pause.duration) - since(step.since, now)
        return Move(s.status, requeue_after=min(CHECK_SECONDS, left)) if left > 0 else Move(advance(s, s.status, position, now))
    return Move(s.status, requeue_after=_interval(s))


def _observing(s: Snapshot, step: StepStatus, position: stepping.Position, found: Assessment | None, now: datetime) -> Move:
    assert s.spec is not None
    if found is None:
        return Move(s.status, requeue_after=_interval(s))
    present = s.spec.rollout.canary.steps[position.index] if position.exact else Step(weight=step.weight)
    stay = seconds(present.for_) - since(step.observed_since or step.since, now) if present.for_ else 0.0
    if found.verdict == "Successful" and stay <= 0:
        status = record(_with_metrics(s.status, found, now), "Successful", found.reason, now)
        message = f"step {stepping.label(s.spec.rollout.canary.steps, position)} at {step.weight} %: {found.message}"
        return Move(advance(s, status, position, now), (Event("StepPassed", message),))
    if found.verdict != "Successful" and remaining(s, now) <= 0:
        return _inconclusive(s, step, found.reason, found.message, now)
    requeue = min(_interval(s), stay) if stay > 0 else _interval(s)
    return Move(_rewritten(s, step, found, now), requeue_after=max(0.2, requeue))


def _rewritten(s: Snapshot, step: StepStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    """The status with the new measurement if that is news, else as it is: an idle look costs no write."""
    assert s.status.rollout is not None
    before = {m.name: (m.verdict, m.reason, m.canary is not None, m.stable is not None) for m in step.metrics}
    after = {m.name: (m.verdict, m.reason, m.canary is not None, m.stable is not None) for m in found.metrics}
    measured = s.status.rollout.step.measured if s.status.rollout.step else None
    old = measured is None or since(measured, now) >= REWRITE_SECONDS
    if before == after and not old:
        return s.status
    problem = Problem(found.reason, found.message) if found.verdict in ("Error", "Inconclusive") else None
    status = _with_metrics(s.status, found, now)
    return change(status, reason=problem.reason if problem else None, message=problem.message if problem else None)


def _with_metrics(status: ModelDeploymentStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    assert status.rollout is not None and status.rollout.step is not None
    return change(status, step=status.rollout.step.model_copy(update={"metrics": list(found.metrics), "measured": stamp(now)}))


def _inconclusive(s: Snapshot, step: StepStatus, reason: str, message: str, now: datetime) -> Move:
    assert s.spec is not None
    status = _with_metrics(s.status, s.assessment, now) if s.assessment else s.status
    status = record(status, "Inconclusive", reason, now)
    text = f"no verdict within progressDeadline {s.spec.rollout.progress_deadline}: {message}"
    event = Event("Inconclusive", text, "Warning")
    if s.spec.rollout.on_inconclusive == "Rollback":
        return Move(revert(status, now, "RolledBack", reason, text), (event,))
    return Move(_pause(status, step, "Inconclusive", f"{text}; promote or abort"), (event,))


def advance(
    s: Snapshot, status: ModelDeploymentStatus, position: stepping.Position, now: datetime, override: str | None = None
) -> ModelDeploymentStatus:
    """The step after this one, or promotion after the last. Callers hold a Successful verdict or an override (invariant 1)."""
    assert s.spec is not None and status.rollout is not None and status.rollout.step is not None
    steps = s.spec.rollout.canary.steps
    index = stepping.next_index(steps, position)
    if index is None:
        return enter(status, "Promote", now)
    step = steps[index]
    return at_step(status, index, step.weight or status.rollout.step.weight, now, pause=step.pause is not None, override=override)


def _interval(s: Snapshot) -> float:
    assert s.spec is not None
    return max(1.0, seconds(s.spec.rollout.analysis.interval))
