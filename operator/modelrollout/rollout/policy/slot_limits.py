"""What a slot allows a rollout: as many pods as its GPUs cover, for as long as the policy says."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import QueueStatus, SlotStatus, seconds
from modelrollout.gpus import exact, exact_text, rounded_up, shown
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.policy.requirements import gpus_of_pod, gpus_of_spec
from modelrollout.rollout.policy.rules import Limit
from modelrollout.rollout.snapshot import Observed, in_flight

TOO_LONG = Reason.SLOT_HELD_TOO_LONG


def slot_of(s: Observed) -> SlotStatus | None:
    """The slot of the rollout in flight."""
    rollout = s.status.rollout
    return rollout.slot if rollout is not None and in_flight(rollout) and rollout.queue is None else None


def counted(held: QueueStatus | SlotStatus) -> Fraction:
    """The GPUs that a queue or a slot counts."""
    return exact(held.gpus, held.exact_gpus)


def count(gpus: Fraction) -> dict[str, int | str | None]:
    """The fields of a queue or a slot that counts so many GPUs."""
    return {"gpus": rounded_up(gpus), "exact_gpus": exact_text(gpus)}


def gpus_requested(s: Observed) -> Fraction:
    """GPUs of all replicas in spec."""
    return gpus_of_spec(s.spec, s.gpu_table) if s.spec is not None else Fraction(0)


def gpu_limits(s: Observed) -> list[Limit]:
    """The limits that count GPUs."""
    return [limit for limit in s.rules.limits if limit.gpus is not None]


def pods_covered_by_slot(s: Observed) -> int | None:
    """Pods that the slot's GPUs cover; None if no limit counts GPUs."""
    slot = slot_of(s)
    each = gpus_of_pod(s.spec, s.gpu_table) if s.spec is not None else 0
    return max(1, counted(slot) // each) if slot is not None and each and gpu_limits(s) else None


def waiting_replicas(s: Observed) -> Problem | None:
    """Why replicas wait that were added after the slot was taken."""
    slot, covered = slot_of(s), pods_covered_by_slot(s)
    if s.spec is None or slot is None or covered is None or s.spec.serving.replicas <= covered:
        return None
    policies = ", ".join(limit.policy for limit in gpu_limits(s))
    text = (
        f"spec.serving.replicas: {s.spec.serving.replicas} ask for {shown(gpus_requested(s))} GPUs, the slot"
        f" of RolloutPolicy {policies} has {shown(counted(slot))}"
    )
    return Problem(
        Reason.WAITING_FOR_SLOT,
        f"{text}: the others wait until limits.gpus has room for them, or until the rollout is over",
    )


def held_too_long(s: Observed, now: datetime) -> Problem | None:
    """Why the rollout has to release its slot."""
    slot = slot_of(s)
    if slot is None:
        return None
    longest = [
        (seconds(x.max_hold), x)
        for x in s.rules.limits
        if x.max_hold is not None and x.concerns(counted(slot))
    ]
    least, limit = min(longest, key=lambda entry: entry[0], default=(0.0, None))
    if limit is None or since(slot.since, now) <= least:
        return None
    text = (
        f"it has held a slot of RolloutPolicy {limit.policy} for longer than limits.maxHold {limit.max_hold}"
    )
    return Problem(
        TOO_LONG,
        f"{text}, so others are next: retry once it can finish in that time, or have the policy raise the"
        " limit",
    )
