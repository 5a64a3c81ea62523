"""Slots of a RolloutPolicy: which rollouts have one, and which is next.
``controller.lookups.slots`` keeps them as Leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from modelrollout.rollout.policy.rules import Limit
from modelrollout.rollout.snapshot import Slot


@dataclass(frozen=True)
class SlotRequest:
    """A rollout that needs a slot. ``holder``: namespace/name/uid; ``rollout``: its start."""

    holder: str
    rollout: str
    gpus: Fraction

    @property
    def display_name(self) -> str:
        """Namespace and name."""
        return self.holder.rpartition("/")[0]


@dataclass(frozen=True)
class TakenSlot:
    """A taken slot. ``version``: the Lease's resourceVersion, which grows with every write and so
    orders the slots.
    """

    index: int
    claim: SlotRequest
    version: int
    ended: bool  # its rollout is over, as far as this operator knows


def is_within_limit(limit: Limit, taken: Sequence[TakenSlot], mine: TakenSlot) -> bool:
    """Whether ``mine`` is within the limit, counted in the order in which the slots were taken.

    Two leaders (one of them outdated) may take slots at the same time although there is room for
    one. The list that each reads afterwards has its own slot and all earlier ones, so the later one
    sees that it is over the limit.
    """
    before = [h for h in taken if h.version <= mine.version]
    if limit.rollouts is not None and len(before) > limit.rollouts:
        return False
    return limit.gpus is None or sum(h.claim.gpus for h in before) <= limit.gpus


def standing(
    limit: Limit, taken: Sequence[TakenSlot], queue: Sequence[SlotRequest], mine: SlotRequest
) -> Slot:
    """Where ``mine`` is in the queue of the limit. ``queue``: all that wait for a slot of this
    policy, longest first.

    A small rollout does not overtake a large one that waits for GPUs, or the large one could wait
    for ever. One that needs more GPUs than the limit has in all (it was lowered) is never next, and
    blocks no one.
    """
    own = next((h for h in taken if (h.claim.holder, h.claim.rollout) == (mine.holder, mine.rollout)), None)
    holders = tuple(sorted(h.claim.display_name for h in taken if h is not own and not h.ended))
    if own is not None:
        return Slot(limit.policy, is_within_limit(limit, taken, own), False, 1, 1, holders, own.claim.gpus)
    working = [h for h in taken if not h.ended]
    waiting = [
        c
        for c in queue
        if c.holder not in {h.claim.holder for h in working} and (limit.gpus is None or c.gpus <= limit.gpus)
    ]
    position = next((i for i, c in enumerate(waiting) if c.holder == mine.holder), len(waiting))
    ahead = waiting[:position]
    room = limit.rollouts is None or len(working) + len(ahead) < limit.rollouts
    if limit.gpus is not None:
        room = (
            room and sum(h.claim.gpus for h in working) + sum(c.gpus for c in ahead) + mine.gpus <= limit.gpus
        )
    return Slot(limit.policy, False, room, position + 1, max(len(waiting), position + 1), holders)


def standing_enlarged(
    limit: Limit, taken: Sequence[TakenSlot], queue: Sequence[SlotRequest], mine: SlotRequest
) -> Slot:
    """Where a rollout with a slot is in the queue for more GPUs: ``turn`` if its slot may count
    them all.

    Rollouts that wait for a slot go first. ``held`` is False if the slot is beyond the limit,
    because another one grew at the same time.
    """
    own = next((h for h in taken if (h.claim.holder, h.claim.rollout) == (mine.holder, mine.rollout)), None)
    if own is None:
        return Slot(limit.policy, False)
    others = [h for h in taken if h is not own and not h.ended]
    waiting = [c for c in queue if limit.gpus is None or c.gpus <= limit.gpus]
    room = limit.gpus is None or (not waiting and sum(h.claim.gpus for h in others) + mine.gpus <= limit.gpus)
    holders = tuple(sorted(h.claim.display_name for h in others))
    return Slot(
        limit.policy,
        is_within_limit(limit, taken, own),
        room and own.claim.gpus < mine.gpus,
        holders=holders,
        gpus=own.claim.gpus,
    )
