"""promote and revert: all traffic to one side, and only then the end of the other."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.v1alpha1 import Outcome
from modelrollout.rollout.facts import Event, Snapshot
from modelrollout.rollout.stages.move import NOT_READY, Move, wait
from modelrollout.rollout.transitions import enter, retire, succeed


def promote(s: Snapshot, now: datetime) -> Move:
    """The revision becomes stable once the data plane has taken it up; the former stable keeps its pods until then."""
    rollout = s.status.rollout
    assert rollout is not None
    server = s.server(rollout.revision)
    if server.ready == 0:  # the split leaves everything with stable until a pod is ready
        return wait(s, server.problem or NOT_READY, 5.0)
    if not s.traffic.taken_up:
        return wait(s, s.traffic.problem, 5.0)
    outcome: Outcome = "Stable" if rollout.mode == "Rollback" or s.status.stable is None else "Promoted"
    return Move(succeed(s.status, now, outcome), (Event(outcome, f"revision {rollout.revision} serves all traffic"),))


def revert(s: Snapshot, now: datetime) -> Move:
    """The rollout has failed once stable has all traffic again, and not before."""
    rollout = s.status.rollout
    assert rollout is not None
    if not s.traffic.taken_up:
        return Move(s.status, requeue_after=5.0)
    ended = enter(s.status, "Failed", now, reason=rollout.reason, message=rollout.message, step=None)
    event = Event(rollout.outcome or "RolledBack", f"revision {rollout.revision}: {rollout.message}; stable has all traffic", "Warning")
    return Move(retire(ended, rollout.revision, rollout.number, now), (event,))
