"""canary: traffic in steps, each judged before the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from modelrollout.analysis.pace import counted_seconds, paces
from modelrollout.api.v1alpha1 import MetricStatus, ModelDeploymentStatus, Step, StepStatus, seconds
from modelrollout.rollout import steps as stepping
from modelrollout.rollout.facts import Assessment, Event, Problem, Snapshot, since, stamp
from modelrollout.rollout.stages.move import CHECK_SECONDS, NOT_READY, Move, remaining, wait
from modelrollout.rollout.transitions import at_step, change, cut, enter, record, revert

REWRITE_SECONDS = 60.0  # measurements without news are written to status this often at most
UNREACHABLE = "DeadlineUnreachable"
PLAN_AFTER_SECONDS, PLAN_AFTER_SHARE = 60.0, 0.05  # of progressDeadline; before that a rate is hardly known
PLAN_SLACK = 1.25  # how much too long it must take at the present rate before that is said
MESSAGES_BYTES = 6 * 1024  # of all metrics of a step together


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
        return _paused(s, step, position, found, now)
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
    assert s.status.rollout is not None
    waited = since(step.since, now)
    there = step.weight == 0 or s.server(s.status.rollout.revision).ready > 0
    if s.traffic.taken_up and there and waited >= s.settle_seconds:
        # The first measurement is the baseline; what came before belongs to another weight.
        metrics = _brief(s.assessment.metrics) if s.assessment else []
        observing = step.model_copy(update={"phase": "Observing", "observed_since": stamp(now), "metrics": metrics})
        return Move(change(s.status, step=observing, reason=None, message=None))
    if remaining(s, now) <= 0:
        message = f"the gateway has not taken up weight {step.weight}: {s.traffic.message or 'no pod of the canary is ready'}"
        return _inconclusive(s, step, "TrafficNotShifted", f"{_deadline(s)}: {message}", now)
    if not there:  # without a ready pod the canary is not in the route, whatever the weight
        return wait(s, s.server(s.status.rollout.revision).problem or NOT_READY, 5.0)
    return wait(s, s.traffic.problem, max(0.2, s.settle_seconds - waited) if s.traffic.taken_up else 5.0)


def _paused(s: Snapshot, step: StepStatus, position: stepping.Position, found: Assessment | None, now: datetime) -> Move:
    """Wait for promote, or for the end of a pause step. The canary has its traffic meanwhile and is judged all the same."""
    assert s.spec is not None and s.status.rollout is not None
    # Kept: a count needs a baseline in status, or a regression would never be seen during a pause.
    status = _with_metrics(s.status, found, now) if found and _is_news(step, found, now) else s.status
    if s.status.rollout.reason != "PauseStep":
        return Move(status, requeue_after=_interval(s))  # for a cause: only somebody who says promote may raise the weight now
    pause = s.spec.rollout.canary.steps[position.index].pause if position.exact else None
    left = seconds(pause.duration) - since(step.since, now) if pause and pause.duration else None
    if pause is None or (left is not None and left <= 0):  # edited away, or over
        return Move(advance(s, s.status, position, now))
    return Move(status, requeue_after=_interval(s) if left is None else min(_interval(s), left))


def _observing(s: Snapshot, step: StepStatus, position: stepping.Position, found: Assessment | None, now: datetime) -> Move:
    assert s.spec is not None and s.status.rollout is not None
    if found is None:
        found = Assessment("Error", "NoData", "nothing was measured", tuple(step.metrics))
    server = s.server(s.status.rollout.revision)
    if server.ready == 0:  # it has no traffic now: what it did before is no ground to give it more
        problem = server.problem or NOT_READY
        found = replace(found, verdict="Error", reason=problem.reason, message=problem.message)
    present = s.spec.rollout.canary.steps[position.index] if position.exact else Step(weight=step.weight)
    stay = seconds(present.for_) - since(step.observed_since or step.since, now) if present.for_ else 0.0
    if found.verdict == "Successful" and stay <= 0:
        status = record(_with_metrics(s.status, found, now), "Successful", found.reason, now)
        message = f"step {stepping.label(s.spec.rollout.canary.steps, position)} at {step.weight} %: {found.message}"
        return Move(advance(s, status, position, now), (Event("StepPassed", message),))
    if found.verdict != "Successful" and remaining(s, now) <= 0:
        return _inconclusive(s, step, found.reason, f"{_deadline(s)}: {found.message}", now)
    if found.verdict == "Error" and (limit := _errors_too_long(s, found, now)):
        return _inconclusive(s, step, found.reason, f"errors for longer than errorLimit {limit}: {found.message}", now)
    requeue = min(_interval(s), stay) if stay > 0 else _interval(s)
    return _rewritten(s, step, found, now, max(0.2, requeue))


def _rewritten(s: Snapshot, step: StepStatus, found: Assessment, now: datetime, requeue: float) -> Move:
    """The status with the new measurement if that is news, else as it is: an idle look costs no write."""
    assert s.status.rollout is not None
    # Still too little evidence is how every step begins and no trouble; what keeps evidence from coming (in time) is.
    problem = Problem(found.reason, found.message) if found.verdict == "Error" else _unreachable(s, step, found, now)
    reason = problem.reason if problem else None
    if s.status.rollout.reason == reason and not _is_news(step, found, now):
        return Move(s.status, requeue_after=requeue)
    status = change(_with_metrics(s.status, found, now), reason=reason, message=problem.message if problem else None)
    told = problem is None or problem.reason != UNREACHABLE or s.status.rollout.reason == UNREACHABLE
    return Move(status, () if told or problem is None else (Event(problem.reason, problem.message, "Warning"),), requeue)


def _unreachable(s: Snapshot, step: StepStatus, found: Assessment, now: datetime) -> Problem | None:
    """The deadline comes before the evidence, at the rate at which samples have come so far."""
    assert s.spec is not None and s.status.rollout is not None
    counted = counted_seconds(step, s.spec.rollout.analysis, now)
    limit = s.spec.rollout.progress_deadline
    if found.verdict != "Inconclusive" or counted < max(PLAN_AFTER_SECONDS, PLAN_AFTER_SHARE * seconds(limit)):
        return None
    left = remaining(s, now)
    slowest = next(iter(paces(found.metrics, counted)), None)
    # Once said it stands until the rate suffices: an estimate that wavers about the limit must not be told again and again.
    if slowest is None or slowest.seconds <= left * (1 if s.status.rollout.reason == UNREACHABLE else PLAN_SLACK):
        return None
    then = f"then onInconclusive {s.spec.rollout.on_inconclusive} holds"
    remedy = "send more traffic, or give more weight, a larger margin or a longer progressDeadline"
    return Problem(UNREACHABLE, f"{slowest.told()}, but progressDeadline {limit} ends in {left:.0f} s, {then}: {remedy}")


def _errors_too_long(s: Snapshot, found: Assessment, now: datetime) -> str | None:
    """The errorLimit, if a metric that decides has been in Error for longer."""
    assert s.spec is not None
    limit = s.spec.rollout.analysis.error_limit
    lasting = [since(m.since, now) for m in found.metrics if m.verdict == "Error" and m.since and not m.dry_run and m.slice is None]
    return limit if limit is not None and lasting and max(lasting) >= seconds(limit) else None


def _is_news(step: StepStatus, found: Assessment, now: datetime) -> bool:
    """Whether a measurement is worth a write: a baseline, trouble that came or went (its time is kept only there), or much later.

    That one metric of several has enough is no news: the step's verdict is written when it moves the rollout.
    """

    def gist(metrics: Iterable[MetricStatus]) -> dict[str, tuple[str | None, bool, bool, bool]]:
        return {
            m.name: (m.reason if m.verdict == "Error" else None, m.canary is not None, m.stable is not None, m.since is not None) for m in metrics
        }

    return gist(step.metrics) != gist(found.metrics) or step.measured is None or since(step.measured, now) >= REWRITE_SECONDS


def _with_metrics(status: ModelDeploymentStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    assert status.rollout is not None and status.rollout.step is not None
    return change(status, step=status.rollout.step.model_copy(update={"metrics": _brief(found.metrics), "measured": stamp(now)}))


def _brief(metrics: Iterable[MetricStatus]) -> list[MetricStatus]:
    """The metrics with messages for which status has room."""
    kept = list(metrics)
    room = max(128, MESSAGES_BYTES // max(1, len(kept)))
    return [m.model_copy(update={"message": cut(m.message, room)}) for m in kept]


def _deadline(s: Snapshot) -> str:
    assert s.spec is not None
    return f"no verdict within progressDeadline {s.spec.rollout.progress_deadline}"


def _inconclusive(s: Snapshot, step: StepStatus, reason: str, text: str, now: datetime) -> Move:
    assert s.spec is not None and s.status.rollout is not None
    then, server = s.spec.rollout.on_inconclusive, s.server(s.status.rollout.revision)
    status = _with_metrics(s.status, s.assessment, now) if s.assessment else s.status
    if then == "Promote" and step.phase == "Observing" and server.ready > 0:
        position = stepping.locate(s.spec.rollout.canary.steps, step)
        label = stepping.label(s.spec.rollout.canary.steps, position)
        onward = advance(s, record(status, "Inconclusive", "PromotedByPolicy", now), position, now, f"onInconclusive Promote at {label}")
        return Move(onward, (Event("PromotedByPolicy", f"step {label} goes on unproven, as onInconclusive says: {reason}: {text}", "Warning"),))
    status = record(status, "Inconclusive", reason, now)
    event = Event("Inconclusive", text, "Warning")
    if then == "Rollback":
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
