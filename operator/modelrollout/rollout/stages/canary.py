"""canary: a revision on trial, in the steps of its strategy, each judged before the next."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import Step, StepStatus, seconds
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.desired.pods import has_pods_for, scaling_problem
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.server_crashes import hold_after_end
from modelrollout.rollout.snapshot import Assessment, is_paused_for_cause
from modelrollout.rollout.stages.in_place import release_stable_pods
from modelrollout.rollout.stages.judging import (
    assessment_of,
    error_without_servers,
    handle_inconclusive,
    interval,
    next_look,
    no_verdict,
    proven_worse,
    servers_ended,
    stay_at_step,
    with_fresh_measurement,
    with_metrics,
    with_truncated_messages,
)
from modelrollout.rollout.stages.next_stage import advance, begin_trial
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.waiting import data_plane_problem, remaining, wait
from modelrollout.rollout.stages.without_stable import try_without_stable
from modelrollout.rollout.transitions import change, record
from modelrollout.rollout.views import AtStep


def canary(s: AtStep, now: datetime) -> Transition:
    """First what ends the canary, then what keeps it where it is, then the next step."""
    step = s.step
    waits_for_a_person = s.rollout.paused_by_user or is_paused_for_cause(s.rollout)
    if step.strategy != strategy.strategy_of(s.spec.rollout) and not waits_for_a_person:
        # spec was edited: counts under the other strategy say nothing about this one
        return Transition(begin_trial(s, s.status, now))
    position = strategy.locate(steps_of(s), step)
    effective_step = strategy.with_traffic(step)
    if s.assessment and s.assessment.verdict == "Failed" and effective_step.phase != "Shifting":
        return proven_worse(_at(s, effective_step), s.assessment, now)
    if alone := try_without_stable(s, now):
        return alone
    # a pause must not give a weight that requests do not have yet
    reached_step = strategy.previous_step(step) if step.phase == "Shifting" else step
    if ended := servers_ended(_at(s, reached_step), now):
        return ended
    if step.phase == "Shifting":
        return _shifting(s, now)
    if step.phase == "Paused":
        return _paused(s, position, now)
    return _observing(s, position, now)


def _at(s: AtStep, step: StepStatus) -> AtStep:
    return replace(s, status=change(s.status, step=step))


def _shifting(s: AtStep, now: datetime) -> Transition:
    step = s.step
    waited = since(step.since, now)
    has_pods = has_pods_for(s, step)
    if has_pods and step.metrics:  # counted at the previous weight
        fresh = step.model_copy(update={"metrics": [], "measured": None, "observed_since": None})
        return Transition(change(s.status, step=fresh))
    if s.traffic.programmed and has_pods and waited >= s.settle_seconds:
        # The first measurement is the baseline; what came before belongs to another weight.
        metrics = with_truncated_messages(s.assessment.metrics) if s.assessment else []
        observing = step.model_copy(
            update={"phase": "Observing", "observed_since": stamp(now), "metrics": metrics}
        )
        return Transition(change(s.status, step=observing, reason=None, message=None))
    if remaining(s, now) <= 0:
        message = (
            f"the gateway has not taken up weight {step.weight}:"
            f" {s.traffic.message or 'too few pods of the canary are ready for it'}"
        )
        # a pause must not give a weight that there are no pods for
        step = step if has_pods else strategy.previous_step(step)
        return handle_inconclusive(
            _at(s, step), step, Reason.TRAFFIC_NOT_SHIFTED, no_verdict(s, message), now, may_promote=False
        )
    if has_pods:
        problem = data_plane_problem(s, step.since, now)
        return wait(s, problem, max(0.2, s.settle_seconds - waited) if s.traffic.programmed else 5.0)
    if released := release_stable_pods(s):
        return released
    # The split does not have this weight yet, so the previous one is still being measured.
    measured = replace(s, status=with_fresh_measurement(s, step, s.assessment, now)) if step.metrics else s
    return wait(measured, scaling_problem(s), min(5.0, interval(s)))


def _paused(s: AtStep, position: strategy.Position, now: datetime) -> Transition:
    """Wait for promote, or for the end of a pause step. The canary keeps its traffic and is judged
    all the same.
    """
    step = s.step
    status = with_fresh_measurement(s, step, s.assessment, now)
    if s.rollout.reason != Reason.PAUSE_STEP or s.rollout.paused_by_user:
        # paused for a cause or by a person: only a person may raise the weight now
        return Transition(status, requeue_after=interval(s))
    pause = strategy.pause_at(steps_of(s), position)
    left = seconds(pause.duration) - since(step.since, now) if pause and pause.duration else None
    if pause is None or (left is not None and left <= 0):  # edited away, or over
        on_hold = hold_after_end(s, assessment_of(s, step.metrics), now)
        if on_hold.reason != Reason.SERVER_RESTARTED:
            return Transition(advance(s, s.status, position, now))
        return Transition(change(status, message=on_hold.message), requeue_after=interval(s))
    return Transition(status, requeue_after=interval(s) if left is None else min(interval(s), left))


def _observing(s: AtStep, position: strategy.Position, now: datetime) -> Transition:
    """The next step on a Successful verdict. An Inconclusive one (``analysis.judge``: too few
    samples, for example) keeps the weight until progressDeadline.
    """
    step = s.step
    assessment = error_without_servers(s, assessment_of(s, step.metrics), now)
    proven = assessment.verdict == "Successful"
    steps = steps_of(s)
    present = steps[position.index] if position.exact else None
    stay = (
        seconds(present.for_) - since(step.observed_since or step.since, now)
        if present and present.for_
        else 0.0
    )
    ends_by_time, paused = _ends_by_time(step, present), s.rollout.paused_by_user is not None
    if (proven or (ends_by_time and assessment.verdict == "Inconclusive")) and stay <= 0 and not paused:
        status = record(
            with_metrics(s.status, assessment, now),
            assessment.verdict,
            assessment.reason if proven else Reason.PREVIEW_ENDED,
            now,
        )
        message = f"step {strategy.step_position(steps, position)} at {step.weight} %: {assessment.message}"
        override = None if proven else "spec.rollout.blueGreen.for"
        return Transition(
            advance(s, status, position, now, override),
            (Event(Reason.STEP_PASSED if proven else Reason.PREVIEW_ENDED, message),),
        )
    if not proven and remaining(s, now) <= 0 and not (ends_by_time and stay > 0):
        return handle_inconclusive(s, step, assessment.reason, no_verdict(s, assessment.message), now)
    if assessment.verdict == "Error" and not paused and (limit := _errors_too_long(s, assessment, now)):
        text = f"errors for longer than errorLimit {limit}: {assessment.message}"
        return handle_inconclusive(s, step, assessment.reason, text, now)
    requeue = min(next_look(s, assessment, now), stay) if stay > 0 else next_look(s, assessment, now)
    return stay_at_step(s, step, assessment, now, max(0.2, requeue), ignore_deadline=ends_by_time or paused)


def _ends_by_time(step: StepStatus, present: Step | None) -> bool:
    """Whether the time is the criterion: a preview gets few requests, so it may never be proven,
    and it passes unless something speaks against it.
    """
    return bool(step.strategy == "BlueGreen" and present and present.for_)


def _errors_too_long(s: AtStep, assessment: Assessment, now: datetime) -> str | None:
    """The errorLimit, if a metric that decides has been in Error for longer."""
    limit = s.spec.rollout.analysis.error_limit
    lasting = [
        since(m.since, now)
        for m in assessment.metrics
        if m.verdict == "Error" and m.since and not m.dry_run and m.slice is None
    ]
    return limit if limit is not None and lasting and max(lasting) >= seconds(limit) else None


CANARY = StageSpec(
    "Canary",
    canary,
    AtStep,
    phase="Canary",
    doing="the revision is being judged on live traffic",
    condition="CanaryPassed",
    needs_stable=True,
    watched=True,
    carries_weight=True,
)
