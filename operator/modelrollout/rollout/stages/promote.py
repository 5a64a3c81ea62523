"""promote and revert: all traffic to one side, and only then the end of the other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import Outcome, RolloutStatus, seconds
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.dead_stable import is_all_that_serves
from modelrollout.rollout.desired.pods import has_all_pods, scaling_problem
from modelrollout.rollout.desired.traffic import is_confirmed
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.server_crashes import hold_after_end
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
from modelrollout.rollout.stages.waiting import (
    GRACE_SECONDS,
    data_plane_problem,
    remaining,
    time_left,
    wait,
)
from modelrollout.rollout.transitions import change, enter, fail_first, retire, revert, succeed
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
        return _wait_or_give_up(s, server.problem or NOT_READY, now)
    if not s.traffic.programmed:
        return _wait_or_give_up(s, data_plane_problem(s, rollout.since, now), now)
    # a gateway accepts a route before its proxies have it
    if (left := s.settle_seconds - since(rollout.since, now)) > 0:
        return wait(s, None, left)
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
    back = _in_last_step(s, now)
    if ended := servers_ended(back, now):
        return ended
    on_hold = hold_after_end(s, assessment_of(s, back.step.metrics), now)
    if on_hold.reason != Reason.SERVER_RESTARTED or back.step.phase != "Observing":
        return None
    event = Event(on_hold.reason, on_hold.message, "Warning")
    return Transition(change(back.status, reason=on_hold.reason, message=on_hold.message), (event,))


def _scaling_up(s: InFlight, now: datetime) -> Transition:
    """The weight of the last step stays until all pods are ready, and the revision is judged on
    it.
    """
    if s.rollout.step is not None and s.assessment is not None and s.assessment.verdict == "Failed":
        return proven_worse(_in_last_step(s, now), s.assessment, now)
    if remaining(s, now) <= 0:
        return _give_up(s, scaling_problem(s), now)
    return release_stable_pods(s) or wait(s, scaling_problem(s), min(5.0, interval(s)))


def _in_last_step(s: InFlight, now: datetime) -> AtStep:
    """A pause belongs to the last step: in Promote the rollout would go on by itself once the pods
    are ready.
    """
    return AtStep.narrowed(replace(s, status=enter(s.status, "Canary", now)))


def _wait_or_give_up(s: InFlight, problem: Problem | None, now: datetime) -> Transition:
    if remaining(s, now) > 0:
        return wait(s, problem, 5.0)
    return _give_up(s, problem or Problem(Reason.TRAFFIC_UNCONFIRMED, s.traffic.message), now)


def _give_up(s: InFlight, why: Problem, now: datetime) -> Transition:
    """Back to the last step, where spec says what follows; without steps back to stable. Neither
    happens while stable has no ready pod. Without a stable revision the rollout has failed.
    """
    text = f"not promoted within progressDeadline {s.spec.rollout.progress_deadline}: {why.message}"
    event = (Event(why.reason, text, "Warning"),)
    if s.status.stable is None:
        return Transition(fail_first(s, now, "Failed", why.reason, text), event)
    if is_all_that_serves(s):  # in the last step it would have less, and stable has no pod for the rest
        return wait(s, why, 5.0)
    if s.rollout.step is None:
        return Transition(revert(s.status, now, "Failed", why.reason, text), event)
    back = _in_last_step(s, now)
    return handle_inconclusive(back, back.step, why.reason, text, now, may_promote=False)


def revert_in_flight(s: InFlight, now: datetime) -> Transition:
    """The rollout has failed once stable has all traffic again, or the time is over."""
    return end_revert(s, s.rollout, now)


def end_revert(s: Snapshot, rollout: RolloutStatus, now: datetime) -> Transition:
    """``revert_in_flight``, also where spec cannot be read.

    A data plane that is gone, or refuses the route, must not keep a rollout from ending. Then the
    route stays as it is written, and the pods stay until the data plane confirms it.
    """
    spent, limit = since(rollout.since, now), _revert_limit(s)
    left = s.settle_seconds - spent if s.traffic.programmed else min(5.0, time_left(s, limit, spent, now))
    if left > 0:
        return Transition(s.status, requeue_after=left)
    message, result = rollout.message, "stable has all traffic"
    if not s.traffic.programmed:
        result = f"not confirmed within {limit:.0f} s that stable has all traffic: {s.traffic.message}"
        message = f"{message}; {result}" if message else result
    ended = enter(s.status, "Failed", now, reason=rollout.reason, message=message, step=None)
    event = Event(
        rollout.outcome or Reason.ROLLED_BACK,
        f"revision {rollout.revision}: {rollout.message}; {result}",
        "Warning",
    )
    retired = retire(
        ended, rollout.revision, rollout.number, now, s.settle_seconds, unconfirmed=not is_confirmed(s)
    )
    return Transition(retired, (event,))


def _revert_limit(s: Snapshot) -> float:
    """Seconds; a longer progressDeadline is for evidence, which a rollback does not wait for."""
    return min(seconds(s.spec.rollout.progress_deadline), GRACE_SECONDS) if s.spec else GRACE_SECONDS


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
    revert_in_flight,
    InFlight,
    phase="RollingBack",
    doing="stable is getting all traffic back",
    then="the rollout has ended",
    needs_stable=True,
)
