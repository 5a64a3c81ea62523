"""The cap of mandatory metrics: no weight rises beyond the first without their verdict
(``rollout.policy.mandatory_metrics``), whatever a stage has decided.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.reasons import Reason
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import unproven_weight
from modelrollout.rollout.snapshot import Snapshot
from modelrollout.rollout.stages.waiting import CHECK_SECONDS
from modelrollout.rollout.transitions import at_step, enter, reached, weight

OVERRIDDEN = Reason.METRICS_OVERRIDDEN
DEMANDED = Reason.METRICS_DEMANDED


def cap_unproven_weight(s: Snapshot, transition: Transition, now: datetime) -> Transition:
    """The transition; or the weight that was reached, judged further, if the transition would
    exceed it unproven.

    This is the one place for all strategies, so that no stage can forget it.
    """
    why = unproven_weight(s, transition.status)
    before = s.status.rollout
    if why is None or before is None:
        return transition
    by_hand = transition.status.handled_verbs != s.status.handled_verbs
    last = before.history[-1] if before.history else None
    # a pause step lies between, during which the steps may have been edited
    if last is not None and last.reason == Reason.PROMOTED_BY_USER:
        by_hand = by_hand or weight(transition.status) <= (last.next_weight or 0)
    if before.stage == "Shadow" and before.shadow is not None:
        # a person promoted it while the mirror still had to be removed
        by_hand = by_hand or before.shadow.promoted is not None
    if by_hand:
        return Transition(
            transition.status,
            (*transition.events, Event(OVERRIDDEN, f"by hand: {why}", "Warning")),
            transition.requeue_after,
        )
    if before.step is None:
        return Transition(s.status, requeue_after=CHECK_SECONDS)
    judged_on = s.status if before.stage == "Canary" else enter(s.status, "Canary", now)
    back = at_step(judged_on, before.step.index, reached(before.step), now, strategy=before.step.strategy)
    return Transition(back, (Event(DEMANDED, why, "Warning"),))
