"""What a freeze holds: no weight rises while one is in force. Whatever lowers a weight, and what a person says, goes through."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.rollout.facts import Event, Snapshot, in_flight
from modelrollout.rollout.policy import frozen
from modelrollout.rollout.stages.move import CHECK_SECONDS, Move


def held(s: Snapshot, move: Move, now: datetime) -> Move:
    """The move, or none where it would raise a weight in a freeze.

    One place for all strategies, so that no stage can forget it. A rollback by hand goes on, and a promote by hand is carried out and told: the
    right to say it is apart from the right to edit a model.
    """
    rollout = move.status.rollout
    if not in_flight(rollout) or _weight(move.status) <= _weight(s.status):
        return move
    freeze = frozen(s.rules, now)
    if freeze is None or rollout is None or rollout.mode == "Rollback":
        return move
    by_hand = move.status.handled_verbs != s.status.handled_verbs
    before = s.status.rollout
    if before is not None and before.stage == "Shadow" and before.shadow is not None:
        by_hand = by_hand or before.shadow.promoted is not None  # it was said when the mirror still had to be taken out
    if by_hand:
        return Move(move.status, (*move.events, Event("FreezeOverridden", f"by hand: {freeze.message}", "Warning")), move.requeue_after)
    return Move(s.status, requeue_after=min(freeze.left(now), CHECK_SECONDS))


def _weight(status: ModelDeploymentStatus) -> int:
    """Percent of the requests that the state gives to the revision in flight."""
    rollout = status.rollout
    if rollout is None or not in_flight(rollout):
        return 0
    if rollout.stage in ("Promote", "Bake"):
        return 100
    if rollout.stage != "Canary" or rollout.step is None:
        return 0
    return rollout.step.weight or (1 if rollout.step.strategy == "ABTest" else 0)
