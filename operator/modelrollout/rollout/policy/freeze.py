"""A freeze: no weight rises while one is in force, not even one that was decided earlier and waits
for pods.

Lowering a weight, and verbs that change a rollout in flight, are not blocked. What begins something
asks ``active_freeze`` itself: a rollout (``decide``), the queue (``provision``), the verb retry,
and a version that takes over from a dead stable.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.reasons import Reason
from modelrollout.rollout.dead_stable import has_taken_over
from modelrollout.rollout.desired.pods import has_all_pods, has_pods_for
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.snapshot import in_flight, rollout_of, step_of
from modelrollout.rollout.stages.waiting import CHECK_SECONDS
from modelrollout.rollout.transitions import at_step, enter, reached, weight
from modelrollout.rollout.views import Specified


def block_while_frozen(s: Specified, transition: Transition, now: datetime) -> Transition:
    """The transition, or none if it would raise a weight in a freeze.

    This is the one place for the weights of all strategies, so that no stage can forget it; stages
    that begin something check ``active_freeze`` themselves. A rollback by hand continues, and a
    promote by hand is carried out and reported: that verb needs other rights than editing a model.
    """
    rollout = transition.status.rollout
    if rollout is None or not in_flight(rollout) or rollout.mode == "Rollback":
        return transition
    rises = weight(transition.status) > weight(s.status)
    if not rises and not _is_pending_rise(s, transition):
        return transition
    freeze = active_freeze(s.rules, now)
    if freeze is None:
        return transition
    if not rises:
        return Transition(_back(s.status, now))
    by_hand = transition.status.handled_verbs != s.status.handled_verbs
    before = s.status.rollout
    if before is not None and before.stage == "Shadow" and before.shadow is not None:
        # a person promoted it while the mirror still had to be removed
        by_hand = by_hand or before.shadow.promoted is not None
    if by_hand:
        return Transition(
            transition.status,
            (*transition.events, Event(Reason.FREEZE_OVERRIDDEN, f"by hand: {freeze.message}", "Warning")),
            transition.requeue_after,
        )
    return Transition(s.status, requeue_after=min(freeze.left(now), CHECK_SECONDS))


def _is_pending_rise(s: Specified, transition: Transition) -> bool:
    """Whether a weight was decided before the freeze and still waits for pods, which may become
    ready in the middle of it.
    """
    rollout = s.status.rollout
    if (
        rollout is None
        or rollout.step is None
        or transition.status.rollout is None
        or transition.status.rollout.stage != rollout.stage
        or s.status.stable is None
    ):
        return False
    step, last_reason = rollout.step, rollout.history[-1].reason if rollout.history else None
    by_hand = step.override is not None and not has_taken_over(rollout)
    if by_hand or (rollout.stage == "Promote" and last_reason == Reason.PROMOTED_BY_USER):
        return False
    if rollout.stage == "Promote":
        return not has_all_pods(s)
    return (
        rollout.stage == "Canary"
        and step.phase == "Shifting"
        and step.previous_weight < step.weight
        and not has_pods_for(s, step)
    )


def _back(status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """Back to the weight that was reached, which is judged until the freeze ends."""
    entered = status if rollout_of(status).stage == "Canary" else enter(status, "Canary", now)
    step = step_of(status)
    return at_step(entered, step.index, reached(step), now, strategy=step.strategy)
