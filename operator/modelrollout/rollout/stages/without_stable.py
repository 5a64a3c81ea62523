"""A rollout whose stable is dead: it is judged by what needs no comparison, and takes over.

Golden data counts against its own ``min``, there is no shadow, and the trial is one step with all
requests (in a policy's cap: with as many as that allows), in which metrics count against limits of
their own. If stable comes back before the revision is promoted, the trial starts over.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import VerdictName
from modelrollout.reasons import Reason
from modelrollout.rollout.dead_stable import (
    COMPARING_STAGES,
    describe,
    has_taken_over,
    is_all_that_serves,
    is_back,
    is_down,
    is_newly_dead,
)
from modelrollout.rollout.desired.pods import has_pods_for
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import first_weight
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.policy.takeover import takeover_problem
from modelrollout.rollout.snapshot import Snapshot, predecessor, rollout_of
from modelrollout.rollout.stages.judging import (
    assessment_of,
    error_without_servers,
    handle_inconclusive,
    interval,
    no_verdict,
    stay_at_step,
    with_metrics,
)
from modelrollout.rollout.stages.next_stage import begin_trial
from modelrollout.rollout.stages.waiting import remaining
from modelrollout.rollout.strategy import previous_step
from modelrollout.rollout.transitions import at_step, change, enter, record, succeed, weight
from modelrollout.rollout.views import AtStep, SpecifiedSnapshot

_REASON = Reason.STABLE_DEAD


def follow_stable(s: SpecifiedSnapshot, now: datetime) -> Transition | None:
    """Record that stable is dead, or that it is back and the trial starts over."""
    rollout, stable = s.status.rollout, predecessor(s)
    if rollout is None or rollout.stage not in COMPARING_STAGES or stable is None:
        return None
    if is_newly_dead(s, now, s.leading_since):
        text = f"{describe(s)}: {rollout.revision} is judged without a comparison"
        status = change(s.status, uncompared_since=stamp(now))
        return Transition(status, (Event(_REASON, text, "Warning"),))
    if rollout.uncompared_since is None:
        return None
    # it has its weight, and any ready pod answers; or it is to have it again, all at once
    if not (is_back(s) if has_taken_over(rollout) else not is_down(s)):
        return None
    status = change(s.status, uncompared_since=None)
    if rollout.stage == "Canary" and (has_taken_over(rollout) or rollout.reason == _REASON):
        again = begin_trial(s, status, now)
        if rollout.paused_by_user is not None and weight(again) > weight(s.status):
            return None  # it starts over once the person resumes it
        pause = rollout.paused_by_user if rollout_of(again).stage == "Canary" else None
        status = change(again, paused_by_user=pause)
    text = f"stable {stable.revision} is ready again: {rollout.revision} is compared with it"
    return Transition(status, (Event(Reason.STABLE_BACK, text),))


def try_without_stable(s: AtStep, now: datetime) -> Transition | None:
    """The trial while stable is dead; None where it goes on as any other does."""
    step = s.step
    paused = step.phase == "Paused" and s.rollout.reason not in (Reason.PAUSE_STEP, _REASON)
    if s.rollout.uncompared_since is None or s.rollout.paused_by_user is not None or paused:
        return None
    if has_taken_over(s.rollout):
        return _judge_alone(s, now) if step.phase == "Observing" else None
    if problem := takeover_problem(s):
        return _hold(s, problem)
    if s.rollout.mode == "Update" and active_freeze(s.rules, now) is not None:
        # condition Frozen says why; the weight that it has goes on being measured
        assessment = assessment_of(s, step.metrics)
        observing = step.phase == "Observing"
        return (
            stay_at_step(s, step, assessment, now, interval(s), ignore_deadline=True) if observing else None
        )
    return _take_over(s, now)


def _take_over(s: AtStep, now: datetime) -> Transition:
    cap = first_weight(s)
    step = at_step(
        record(s.status, "Inconclusive", _REASON, now),
        s.step.index,
        100 if cap is None else max(cap, s.step.weight),
        now,
        strategy=s.step.strategy,
        override=f"{_REASON}: {describe(s)}",
    )
    text = f"{describe(s)}: {s.rollout.revision} takes over as soon as enough of its pods are ready"
    return Transition(step, (Event(_REASON, text, "Warning"),))


def _hold(s: AtStep, problem: str) -> Transition | None:
    """Pause for a person, at a weight that there are pods for."""
    text = f"{describe(s)}, but {problem}: promote --full, or abort"
    if s.step.phase == "Paused" and (s.rollout.reason, s.rollout.message) == (_REASON, text):
        return None
    shifts = s.step.phase == "Shifting" and not has_pods_for(s, s.step)
    step = (previous_step(s.step) if shifts else s.step).model_copy(update={"phase": "Paused"})
    return Transition(
        change(s.status, step=step, reason=_REASON, message=text), (Event(_REASON, text, "Warning"),)
    )


def _judge_alone(s: AtStep, now: datetime) -> Transition:
    """Promotion, once its metrics keep to their own limits. Without limits there is nothing to wait
    for, and at the deadline nothing has been proven against it.
    """
    step = s.step
    assessment = error_without_servers(s, assessment_of(s, step.metrics), now)
    over, nothing_to_judge = remaining(s, now) <= 0, assessment.reason == Reason.NO_METRICS
    unproven = s.candidate_server.ready > 0 and first_weight(s) is None and (nothing_to_judge or over)
    if assessment.verdict == "Successful" or unproven:
        verdict: VerdictName = "Successful" if assessment.verdict == "Successful" else "Inconclusive"
        status = record(with_metrics(s.status, assessment, now), verdict, _REASON, now)
        text = f"{s.rollout.revision} is promoted without a comparison: {describe(s)}; {assessment.message}"
        return Transition(
            enter(status, "Promote", now, paused_by_user=None), (Event(_REASON, text, "Warning"),)
        )
    if over:
        text = no_verdict(s, assessment.message)
        return handle_inconclusive(s, step, assessment.reason, text, now, may_promote=False)
    return stay_at_step(s, step, assessment, now, interval(s))


def keep_what_serves(s: Snapshot, now: datetime) -> Transition | None:
    """Where a rollout is to end whose revision has all traffic, and stable has no ready pod: make
    that revision stable, so that the next rollout has one to go back to. Else None.
    """
    rollout = s.status.rollout
    if (
        rollout is None
        or rollout.step is None
        or rollout.step.phase == "Shifting"
        or not is_all_that_serves(s)
        or split(s) != ((rollout.revision, 100),)
        or not s.traffic.programmed
    ):
        return None
    text = (
        f"{rollout.revision} becomes stable before its rollout is over, since it serves alone: {describe(s)}"
    )
    status = record(s.status, "Inconclusive", _REASON, now)
    return Transition(succeed(s, status, now, "Promoted"), (Event(_REASON, text, "Warning"),))
