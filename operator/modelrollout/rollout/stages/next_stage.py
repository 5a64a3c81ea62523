"""What follows a stage, or a step, whose successor depends on spec."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api import names
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, Shadow, ShadowStatus, StepStatus
from modelrollout.rollout import strategy
from modelrollout.rollout.dead_stable import is_down
from modelrollout.rollout.desired.jobs import asks_made_up
from modelrollout.rollout.desired.pods import has_pods_for
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.policy.requirements import golden_violation
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.snapshot import baseline, predecessor, rollout_of, shadow_of, step_of
from modelrollout.rollout.transitions import at_step, change, enter
from modelrollout.rollout.views import InFlight, Specified, SpecifiedSnapshot


def after_provision(s: InFlight, now: datetime) -> ModelDeploymentStatus:
    """Evaluate; or what follows it, where it would ask the served model nothing and only be a write
    of its own. Evaluate also waits for golden data that a policy demands, and for the end of a
    freeze, in which the servers need not stay ready, and looks whether a stable without a ready pod
    is dead.
    """
    status = enter(s.status, "Evaluate", now)
    asks = s.spec.rollout.analysis.golden is not None or asks_made_up(s)
    if asks or is_down(s) or golden_violation(s.rules, s.spec) or active_freeze(s.rules, now):
        return status
    return after_evaluate(replace(s, status=status), status, now)


def after_evaluate(
    s: SpecifiedSnapshot, status: ModelDeploymentStatus, now: datetime
) -> ModelDeploymentStatus:
    """The shadow, if spec requests one and there is a baseline; otherwise the trial."""
    if s.spec.rollout.shadow is None or baseline(s) is None:
        return begin_trial(s, status, now)
    return in_shadow(
        enter(status, "Shadow", now),
        "Starting",
        now,
        outputs_hash=outputs_of(s.spec.rollout.shadow),
        mirror=s.mirror.way,
    )


def after_shadow(s: Specified, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """The trial, or promotion if a person skipped all steps. The mirror is released."""
    shadow = shadow_of(status)
    released = change(status, shadow=shadow.model_copy(update={"mirror": None}))
    return enter(released, "Promote", now) if shadow.promoted == "Full" else begin_trial(s, released, now)


def in_shadow(
    status: ModelDeploymentStatus, phase: str, now: datetime, **changes: object
) -> ModelDeploymentStatus:
    """Go to a phase of the shadow."""
    shadow = rollout_of(status).shadow
    before = shadow.model_dump() if shadow else {}
    return change(
        status,
        shadow=ShadowStatus.model_validate(before | {"phase": phase, "since": stamp(now)} | changes),
        reason=None,
        message=None,
    )


def outputs_of(shadow: Shadow) -> str:
    """Hash of the tolerances under which answers are compared."""
    return names.short_hash([o.wire() for o in shadow.outputs or ()])


def begin_trial(s: Specified, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """The first step of the strategy; promotion if there is no stable to replace, or if the first
    step already has all traffic.
    """
    first = steps_of(s)[0]
    if predecessor(s) is None or first.weight == 100:
        return enter(status, "Promote", now, paused_by_user=None)
    entered = status if rollout_of(status).stage == "Canary" else enter(status, "Canary", now)
    return at_step(
        entered,
        0,
        first.weight or 0,
        now,
        strategy=strategy.strategy_of(s.spec.rollout),
        pause=first.pause,
    )


def advance(
    s: Specified,
    status: ModelDeploymentStatus,
    position: strategy.Position,
    now: datetime,
    override: str | None = None,
) -> ModelDeploymentStatus:
    """The next step, or promotion after the last one. Callers have a Successful verdict or an
    override: no weight rises without one (docs/explanation/invariants.md, 1).
    """
    before, steps = step_of(status), steps_of(s)
    if before.strategy != strategy.strategy_of(s.spec.rollout):
        return begin_trial(s, status, now)
    index = strategy.next_index(steps, position)
    if index is None:
        return enter(status, "Promote", now, paused_by_user=None)
    step = steps[index]
    moved = at_step(
        status,
        index,
        step.weight or before.weight,
        now,
        strategy=before.strategy,
        pause=step.pause,
        override=override,
    )
    return moved if override else _judged_meanwhile(s, moved, before)


def _judged_meanwhile(
    s: Specified, status: ModelDeploymentStatus, before: StepStatus
) -> ModelDeploymentStatus:
    """Keeps the previous step's counts while the pods for the next weight are missing: they may
    take hours, and requests keep coming at the previous weight.
    """
    step = step_of(status)
    if step.phase != "Shifting" or step.previous_weight == 0 or has_pods_for(replace(s, status=status), step):
        return status
    carried = {
        "metrics": before.metrics,
        "measured": before.measured,
        "observed_since": before.observed_since,
    }
    return change(status, step=step.model_copy(update=carried))
