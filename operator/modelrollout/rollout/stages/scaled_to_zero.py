"""spec.serving.replicas: 0. A new version is prepared and waits in Provision, without pods; the
trial of one that was further starts over from there.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import seconds
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import is_paused_for_cause
from modelrollout.rollout.stages.next_stage import in_shadow
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, time_left
from modelrollout.rollout.transitions import change, enter, retire
from modelrollout.rollout.views import SpecifiedSnapshot

_WAITING = Problem(
    Reason.SCALED_TO_ZERO,
    "spec.serving.replicas is 0: the new version is prepared and waits for replicas; it goes on by itself"
    " once spec asks for some",
)


def wait_for_replicas(s: SpecifiedSnapshot, now: datetime) -> Transition | None:
    """Wait in Provision, without a deadline, while spec asks for no pods: neither revision has any
    then.

    A rollout that has passed its trial ends first. One that a person has to decide on keeps its
    pods: what was proven against it must not be forgotten.
    """
    rollout = s.status.rollout
    if rollout is None or rollout.stage not in ("Provision", "Evaluate", "Shadow", "Canary"):
        return None
    waits = rollout.reason == _WAITING.reason
    if (
        rollout.paused_by_user is not None
        or is_paused_for_cause(rollout)
        or (s.spec.serving.replicas > 0 and not (waits and rollout.stage == "Shadow"))
    ):
        return None
    if rollout.stage == "Shadow" and rollout.shadow is not None:
        if not waits:  # out of the route with the mirror
            out = in_shadow(s.status, "Starting", now)
            return Transition(change(out, in_place=None, reason=_WAITING.reason, message=_WAITING.message))
        left = s.settle_seconds - since(rollout.shadow.since, now)
        if not s.traffic.programmed:
            limit = seconds(s.spec.rollout.progress_deadline)
            overdue = time_left(s, limit, since(rollout.shadow.since, now), now) <= 0
            if s.spec.serving.replicas > 0 and overdue:
                return None  # the shadow goes on, and ends by its own deadline
            left = 5.0
        if left > 0:  # until the data plane has forgotten it
            return Transition(s.status, requeue_after=max(0.2, left))
    elif waits:
        return Transition(s.status, requeue_after=CHECK_SECONDS)
    waiting = enter(
        s.status,
        "Provision",
        now,
        queue=None,
        slot=None,
        step=None,
        in_place=None,
        shadow=None,
        uncompared_since=None,
        reason=_WAITING.reason,
        message=_WAITING.message,
    )
    if rollout.stage == "Canary":
        waiting = retire(waiting, rollout.revision, rollout.number, now, s.settle_seconds)
    return Transition(waiting, (Event(_WAITING.reason, _WAITING.message),))
