"""PURE: what a change of status says of rollouts as such, for counting: ends, verdicts of steps,
and how long stages took.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelrollout.api.v1alpha1 import ModelDeploymentStatus, RolloutStatus
from modelrollout.rollout.snapshot import in_flight


@dataclass(frozen=True)
class Milestones:
    """``ended``: outcome and reason of a rollout that ended. ``verdicts``: of steps, each with its
    reason and seconds. ``stages``: those that were left, with the seconds that they took.
    """

    ended: tuple[str, str] | None = None
    verdicts: tuple[tuple[str, str, float], ...] = ()
    stages: tuple[tuple[str, float], ...] = ()


def milestones(before: ModelDeploymentStatus, after: ModelDeploymentStatus) -> Milestones:
    """What happened between two statuses that followed each other."""
    old, new = before.rollout, after.rollout
    if new is None:
        return Milestones()
    same = old if old is not None and old.started == new.started else None
    return Milestones(_end(same, new), _verdicts(same, new), _stages(same, new))


def _end(old: RolloutStatus | None, new: RolloutStatus) -> tuple[str, str] | None:
    if in_flight(new) or (old is not None and not in_flight(old)):
        return None
    return new.outcome or new.stage, new.reason or "-"


def _verdicts(old: RolloutStatus | None, new: RolloutStatus) -> tuple[tuple[str, str, float], ...]:
    # the history is bounded, so it may have lost its first entries
    known = old.history if old else []
    return tuple((e.verdict, e.reason, e.seconds) for e in new.history if e not in known)


def _stages(old: RolloutStatus | None, new: RolloutStatus) -> tuple[tuple[str, float], ...]:
    spent = old.stages if old else {}
    return tuple(
        (stage, total - spent.get(stage, 0.0))
        for stage, total in new.stages.items()
        if total > spent.get(stage, -1.0)
    )
