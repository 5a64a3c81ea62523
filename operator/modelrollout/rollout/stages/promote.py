"""promote and revert: all traffic to one side, and only then the end of the other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import Outcome, RolloutStatus
from modelrollout.reasons import Reason
from modelrollout.rollout.desired.pods import has_all_pods, scaling_problem
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.server_ends import hold_after_end
from modelrollout.rollout.snapshot import NOT_READY, Snapshot, predecessor
from modelrollout.rollout.stages.bake import begin_bake
from modelrollout.rollout.stages.in_place import release_stable_pods
from modelrollout.rollout.stages.judging import (
    assessment_of,
    handle_inconclusive,
    interval,
    proven_worse,
    servers_ended,
)
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.waiting import remaining, wait
from modelrollout.rollout.transitions import change, enter, retire, succeed
from modelrollout.rollout.views import AtStep, InFlight


def promote(s: InFlight, now: datetime) -> Transition:
    """Bring the revision to its full size, then give it all traffic; it becomes stable (or bakes)
    once the data plane has taken that up.
    """
    if s.status.stable is not None and s.rollout.step is not None and (back := _servers_ended(s, now)):
        return back
    if s.status.stable is not None and not has_all_pods(s):
        return _scaling_up(s, now)
    rollout, server = s.rollout, s.server(s.rollout.revision)
    if server.ready == 0:
        return wait(s, server.problem or NOT_READY, 5.0)
    if (left := _until_taken_up(s, rollout, now)) > 0:
        return wait(s, s.traffic.problem, left)
    proven = rollout.mode == "Rollback" and rollout.proven
    if s.spec.rollout.bake is not None and predecessor(s) is not None and not proven:
        return Transition(
            begin_bake(s, now),
            (Event(Reason.BAKE_STARTED, f"revision {rollout.revision} has all traffic and is watched"),),
        )
    outcome: Outcome = "Stable" if proven or s.status.stable is None else "Promoted"
    return Transition(
        succeed(s, s.status, now, outcome),
        (Event(outcome, f"revision {rollout.revision} serves all traffic"),),
    )


def _servers_ended(s: InFlight, now: datetime) -> Transition | None:
    """Back to the last step after an end of a server: there it is judged longer, or it pauses."""
    back = AtStep.narrowed(replace(s, status=enter(s.status, "Canary", now)))
    if ended := servers_ended(back, now):
        return ended
    on_hold = hold_after_end(s, assessment_of(s, back.step.metrics), now)
    if on_hold.reason != Reason.SERVER_RESTARTED or back.step.phase != "Observing":
        return None
    event = Event(on_hold.reason, on_hold.message, "Warning")
    return Transition(change(back.status, reason=on_hold.reason, message=on_hold.message), (event,))


def _until_taken_up(s: Snapshot, rollout: RolloutStatus, now: datetime) -> float:
    """Seconds to wait for the data plane: a gateway accepts a route before its proxies have it."""
    return max(0.0, s.settle_seconds - since(rollout.since, now)) if s.traffic.programmed else 5.0


def _scaling_up(s: InFlight, now: datetime) -> Transition:
    """The weight of the last step stays until all pods are ready, and the revision is judged on
    it.
    """
    if s.rollout.step is not None:
        # A pause belongs to the last step: in Promote the rollout would go on by itself once the
        # pods are ready.
        back = AtStep.narrowed(replace(s, status=enter(s.status, "Canary", now)))
        if s.assessment is not None and s.assessment.verdict == "Failed":
            return proven_worse(back, s.assessment, now)
        if remaining(s, now) <= 0:
            why = scaling_problem(s)
            text = f"not promoted within progressDeadline {s.spec.rollout.progress_deadline}: {why.message}"
            return handle_inconclusive(back, back.step, why.reason, text, now, may_promote=False)
    return release_stable_pods(s) or wait(s, scaling_problem(s), min(5.0, interval(s)))


def revert(s: InFlight, now: datetime) -> Transition:
    """The rollout has failed once stable has all traffic again, and not before."""
    return end_revert(s, s.rollout, now)


def end_revert(s: Snapshot, rollout: RolloutStatus, now: datetime) -> Transition:
    """``revert``, also where spec cannot be read."""
    if (left := _until_taken_up(s, rollout, now)) > 0:
        return Transition(s.status, requeue_after=left)
    ended = enter(s.status, "Failed", now, reason=rollout.reason, message=rollout.message, step=None)
    event = Event(
        rollout.outcome or Reason.ROLLED_BACK,
        f"revision {rollout.revision}: {rollout.message}; stable has all traffic",
        "Warning",
    )
    return Transition(retire(ended, rollout.revision, rollout.number, now, s.settle_seconds), (event,))


PROMOTE = StageSpec(
    "Promote",
    promote,
    InFlight,
    phase="Promoting",
    doing="the revision is getting all traffic",
    then="it bakes if spec says so, and the old servers go away",
    condition="Promoted",
    watched=True,
    carries_weight=True,
)
REVERT = StageSpec(
    "Revert",
    revert,
    InFlight,
    phase="RollingBack",
    doing="stable is getting all traffic back",
    then="the rollout has ended",
    needs_stable=True,
)
