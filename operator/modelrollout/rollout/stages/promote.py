"""promote and revert: all traffic to one side, and only then the end of the other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api.v1alpha1 import Outcome
from modelrollout.rollout.desired import has_all_pods, scaling_problem
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import NOT_READY, Snapshot, baseline, since
from modelrollout.rollout.stages.bake import begin_bake
from modelrollout.rollout.stages.canary import handle_inconclusive, interval, proven_worse
from modelrollout.rollout.stages.in_place import release_stable_pods
from modelrollout.rollout.stages.waiting import remaining, wait
from modelrollout.rollout.transitions import enter, retire, succeed


def promote(s: Snapshot, now: datetime) -> Transition:
    """Bring the revision to its full size, then give it everything; it becomes stable (or bakes)
    once the data plane has taken that up.
    """
    rollout = s.status.rollout
    assert rollout is not None and s.spec is not None
    if s.status.stable is not None and not has_all_pods(s):
        return _waits_for_pods(s, now)
    server = s.server(rollout.revision)
    if server.ready == 0:
        return wait(s, server.problem or NOT_READY, 5.0)
    if (left := _until_taken_up(s, now)) > 0:
        return wait(s, s.traffic.problem, left)
    proven = rollout.mode == "Rollback" and rollout.proven
    if s.spec.rollout.bake is not None and baseline(s) is not None and not proven:
        return Transition(
            begin_bake(s, now),
            (Event("BakeStarted", f"revision {rollout.revision} has all traffic and is watched"),),
        )
    outcome: Outcome = "Stable" if proven or s.status.stable is None else "Promoted"
    return Transition(
        succeed(s, s.status, now, outcome),
        (Event(outcome, f"revision {rollout.revision} serves all traffic"),),
    )


def _until_taken_up(s: Snapshot, now: datetime) -> float:
    """Seconds to wait for the data plane: a gateway accepts a route before its processes have it,
    and Ready is said when they do.
    """
    assert s.status.rollout is not None
    return max(0.0, s.settle_seconds - since(s.status.rollout.since, now)) if s.traffic.programmed else 5.0


def _waits_for_pods(s: Snapshot, now: datetime) -> Transition:
    """The weight of the last step stays meanwhile, and the revision is judged on it."""
    rollout = s.status.rollout
    assert rollout is not None and s.spec is not None
    found, step = s.assessment, rollout.step
    # Whoever is to decide is asked in the last step: in Promote the rollout would go on by itself
    # when the pods come.
    back = replace(s, status=enter(s.status, "Canary", now))
    if found is not None and found.verdict == "Failed" and step is not None:
        return proven_worse(back, found, now)
    if step is not None and remaining(s, now) <= 0:
        why = scaling_problem(s)
        text = f"not promoted within progressDeadline {s.spec.rollout.progress_deadline}: {why.message}"
        return handle_inconclusive(back, step, why.reason, text, now, may_promote=False)
    if given := release_stable_pods(s):
        return given
    return wait(s, scaling_problem(s), min(5.0, interval(s)))


def revert(s: Snapshot, now: datetime) -> Transition:
    """The rollout has failed once stable has all traffic again, and not before."""
    rollout = s.status.rollout
    assert rollout is not None
    if (left := _until_taken_up(s, now)) > 0:
        return Transition(s.status, requeue_after=left)
    ended = enter(s.status, "Failed", now, reason=rollout.reason, message=rollout.message, step=None)
    event = Event(
        rollout.outcome or "RolledBack",
        f"revision {rollout.revision}: {rollout.message}; stable has all traffic",
        "Warning",
    )
    return Transition(retire(ended, rollout.revision, rollout.number, now, s.settle_seconds), (event,))
