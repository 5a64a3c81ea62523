"""canary: a revision on trial, in the steps of its strategy, each judged before the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from modelrollout.api.v1alpha1 import MetricStatus, ModelDeploymentStatus, StepStatus, seconds
from modelrollout.rollout import steps as stepping
from modelrollout.rollout.desired import has_pods_for, too_few
from modelrollout.rollout.facts import NOT_READY, Assessment, Event, Problem, Snapshot, baseline, since, stamp
from modelrollout.rollout.stages.move import CHECK_SECONDS, Move, remaining, wait
from modelrollout.rollout.transitions import at_step, change, cut, enter, record, revert

REWRITE_SECONDS = 60.0  # measurements without news are written to status this often at most


def canary(s: Snapshot, now: datetime) -> Move:
    """First what ends the canary, then what keeps it where it is, then the next step."""
    assert s.spec is not None and s.status.rollout is not None and s.status.rollout.step is not None
    step = s.status.rollout.step
    waits_for_a_person = s.status.rollout.held or (step.phase == "Paused" and s.status.rollout.reason != "PauseStep")
    if step.strategy != stepping.strategy_of(s.spec.rollout) and not waits_for_a_person:
        return Move(begin_trial(s, s.status, now))  # spec was edited: what was counted under the other strategy says nothing about this one
    position = stepping.locate(stepping.steps_of(s.spec.rollout), step)
    found = s.assessment
    if found and found.verdict == "Failed" and step.phase != "Shifting":
        return proven_worse(s, found, now)
    if step.phase == "Shifting":
        return _shifting(s, step, now)
    if step.phase == "Paused":
        return _paused(s, step, position, found, now)
    return _observing(s, step, position, found, now)


def begin_trial(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """The first step of the strategy; promotion where there is nothing to compare with, or nothing is to be tried."""
    assert s.spec is not None
    first = stepping.steps_of(s.spec.rollout)[0]
    if baseline(s) is None or first.weight == 100:
        return enter(status, "Promote", now, held=None)
    entered = status if status.rollout and status.rollout.stage == "Canary" else enter(status, "Canary", now)
    return at_step(entered, 0, first.weight or 0, now, strategy=stepping.strategy_of(s.spec.rollout), pause=first.pause is not None)


def proven_worse(s: Snapshot, found: Assessment, now: datetime) -> Move:
    """Everything back to stable, or hold for a person if spec says so."""
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
    there = has_pods_for(s, step)
    if s.traffic.taken_up and there and waited >= s.settle_seconds:
        # The first measurement is the baseline; what came before belongs to another weight.
        metrics = _brief(s.assessment.metrics) if s.assessment else []
        observing = step.model_copy(update={"phase": "Observing", "observed_since": stamp(now), "metrics": metrics})
        return Move(change(s.status, step=observing, reason=None, message=None))
    if remaining(s, now) <= 0:
        message = f"the gateway has not taken up weight {step.weight}: {s.traffic.message or 'too few pods of the canary are ready for it'}"
        return inconclusive(s, step, "TrafficNotShifted", message, now)
    if not there:  # the split does not have this weight yet
        return wait(s, too_few(s), 5.0)
    return wait(s, s.traffic.problem, max(0.2, s.settle_seconds - waited) if s.traffic.taken_up else 5.0)


def _paused(s: Snapshot, step: StepStatus, position: stepping.Position, found: Assessment | None, now: datetime) -> Move:
    """Wait for promote, or for the end of a pause step. The canary has its traffic meanwhile and is judged all the same."""
    assert s.spec is not None and s.status.rollout is not None
    status = with_news(s, step, found, now)
    if s.status.rollout.reason != "PauseStep":
        return Move(status, requeue_after=interval(s))  # for a cause: only somebody who says promote may raise the weight now
    if s.status.rollout.held:
        return Move(status, requeue_after=interval(s))
    pause = stepping.steps_of(s.spec.rollout)[position.index].pause if position.exact else None
    left = seconds(pause.duration) - since(step.since, now) if pause and pause.duration else None
    if pause is None or (left is not None and left <= 0):  # edited away, or over
        return Move(advance(s, s.status, position, now))
    return Move(status, requeue_after=interval(s) if left is None else min(interval(s), left))


def _observing(s: Snapshot, step: StepStatus, position: stepping.Position, found: Assessment | None, now: datetime) -> Move:
    assert s.spec is not None and s.status.rollout is not None
    if found is None:
        found = Assessment("Error", "NoData", "nothing was measured", tuple(step.metrics))
    server = s.server(s.status.rollout.revision)
    if server.ready == 0:  # it has no traffic now: what it did before is no ground to give it more
        problem = server.problem or NOT_READY
        found = replace(found, verdict="Error", reason=problem.reason, message=problem.message)
    steps = stepping.steps_of(s.spec.rollout)
    present = steps[position.index] if position.exact else None
    stay = seconds(present.for_) - since(step.observed_since or step.since, now) if present and present.for_ else 0.0
    # Few requests come to a preview, so nothing may ever be proven of it: its time is the criterion, unless something speaks against it.
    soaks = bool(step.strategy == "BlueGreen" and present and present.for_)
    if (found.verdict == "Successful" or (soaks and found.verdict == "Inconclusive")) and stay <= 0 and not s.status.rollout.held:
        proven = found.verdict == "Successful"
        status = record(_with_metrics(s.status, found, now), found.verdict, found.reason if proven else "PreviewEnded", now)
        message = f"step {stepping.label(steps, position)} at {step.weight} %: {found.message}"
        override = None if proven else "spec.rollout.blueGreen.for"
        return Move(advance(s, status, position, now, override), (Event("StepPassed" if proven else "PreviewEnded", message),))
    if found.verdict != "Successful" and remaining(s, now) <= 0 and not (soaks and stay > 0):
        return inconclusive(s, step, found.reason, found.message, now)
    requeue = min(interval(s), stay) if stay > 0 else interval(s)
    return Move(rewritten(s, step, found, now), requeue_after=max(0.2, requeue))


def rewritten(s: Snapshot, step: StepStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    """The status with the new measurement if that is news, else as it is: an idle look costs no write."""
    assert s.status.rollout is not None
    # Still too little evidence is how every step begins and no trouble; what keeps evidence from coming is.
    problem = Problem(found.reason, found.message) if found.verdict == "Error" else None
    reason = problem.reason if problem else None
    if s.status.rollout.reason == reason and not _is_news(step, found, now):
        return s.status
    return change(_with_metrics(s.status, found, now), reason=reason, message=problem.message if problem else None)


def with_news(s: Snapshot, step: StepStatus, found: Assessment | None, now: datetime) -> ModelDeploymentStatus:
    """Measurements of a pause: a count needs a baseline in status, or a regression would never be seen during it. The reason of the pause stands."""
    return _with_metrics(s.status, found, now) if found and _is_news(step, found, now) else s.status


def _is_news(step: StepStatus, found: Assessment, now: datetime) -> bool:
    """Whether a measurement is worth a write: a baseline, trouble that came or went, or much later.

    That one metric of several has enough is no news: the step's verdict is written when it moves the rollout.
    """

    def gist(metrics: Iterable[MetricStatus]) -> dict[str, tuple[str | None, bool, bool]]:
        return {m.name: (m.reason if m.verdict == "Error" else None, m.canary is not None, m.stable is not None) for m in metrics}

    return gist(step.metrics) != gist(found.metrics) or step.measured is None or since(step.measured, now) >= REWRITE_SECONDS


def _with_metrics(status: ModelDeploymentStatus, found: Assessment, now: datetime) -> ModelDeploymentStatus:
    assert status.rollout is not None and status.rollout.step is not None
    return change(status, step=status.rollout.step.model_copy(update={"metrics": _brief(found.metrics), "measured": stamp(now)}))


def _brief(metrics: Iterable[MetricStatus]) -> list[MetricStatus]:
    return [m.model_copy(update={"message": cut(m.message)}) for m in metrics]


def inconclusive(s: Snapshot, step: StepStatus, reason: str, message: str, now: datetime) -> Move:
    """No verdict within the deadline: pause or roll back, as spec says."""
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
    steps = stepping.steps_of(s.spec.rollout)
    if status.rollout.step.strategy != stepping.strategy_of(s.spec.rollout):
        return begin_trial(s, status, now)
    index = stepping.next_index(steps, position)
    if index is None:
        return enter(status, "Promote", now, held=None)
    step, before = steps[index], status.rollout.step
    return at_step(status, index, step.weight or before.weight, now, strategy=before.strategy, pause=step.pause is not None, override=override)


def interval(s: Snapshot) -> float:
    """Seconds between two looks."""
    assert s.spec is not None
    return max(1.0, seconds(s.spec.rollout.analysis.interval))
