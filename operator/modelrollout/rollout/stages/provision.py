"""provision: Triton pods with the model loaded."""

from __future__ import annotations

from datetime import datetime

from modelrollout.rollout.desired import trial_pods
from modelrollout.rollout.facts import Snapshot
from modelrollout.rollout.stages.move import Move, wait_or_fail
from modelrollout.rollout.transitions import enter


def provision(s: Snapshot, now: datetime) -> Move:
    """Go on once every replica that the trial begins with serves the model: a weight never rises on pods that are not there."""
    rollout = s.status.rollout
    assert rollout is not None and s.spec is not None
    server = s.server(rollout.revision)
    wanted = trial_pods(s) if s.gateway else max(1, s.spec.serving.replicas)
    if server.ready >= wanted:
        if rollout.mode == "Rollback" and rollout.proven:
            return Move(enter(s.status, "Promote", now))  # what is proven stays proven
        return Move(enter(s.status, "Evaluate", now))
    return wait_or_fail(s, now, server.problem, f"the model server: {server.ready} of {wanted} replicas have the model loaded")
