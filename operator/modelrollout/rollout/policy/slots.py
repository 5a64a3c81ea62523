"""Slots of a RolloutPolicy: who holds them, and whose turn it is. The Leases are
``controller.lookups.slots``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelrollout.rollout.policy.rules import Limit
from modelrollout.rollout.snapshot import Slot


@dataclass(frozen=True)
class SlotRequest:
    """A ModelDeployment's rollout: ``holder`` is namespace/name/uid, ``rollout`` the start of the
    rollout.
    """

    holder: str
    rollout: str
    gpus: int

    @property
    def told(self) -> str:
        """Namespace and name."""
        return self.holder.rpartition("/")[0]


@dataclass(frozen=True)
class TakenSlot:
    """A slot that is taken. ``version``: the Lease's resourceVersion, by which those who took slots
    can be ordered: it grows with every write.
    """

    index: int
    claim: SlotRequest
    version: int
    ended: bool  # by all that is known here, the rollout that holds it is over


def is_within_limit(limit: Limit, held: Sequence[TakenSlot], mine: TakenSlot) -> bool:
    """Whether ``mine`` is within the limit, counted in the order in which the slots were taken.

    Two leaders (one of them late) may take two slots at the same time, when the limit was lowered
    or the GPUs do not suffice for both. The list that each reads afterwards holds its own slot and
    all that were taken before, so that the later one sees that it is over the limit.
    """
    before = [h for h in held if h.version <= mine.version]
    if limit.rollouts is not None and len(before) > limit.rollouts:
        return False
    return limit.gpus is None or sum(h.claim.gpus for h in before) <= limit.gpus


def standing(
    limit: Limit, held: Sequence[TakenSlot], queue: Sequence[SlotRequest], mine: SlotRequest
) -> Slot:
    """How ``mine`` stands with the limit. ``queue``: all that wait for a slot of this policy,
    longest first.

    Nobody overtakes: a small rollout does not slip past a large one that waits for GPUs, or that
    would wait for ever. One that asks for more GPUs than there are for all together (the limit was
    lowered meanwhile) has no turn, and nobody waits behind it.
    """
    own = next((h for h in held if (h.claim.holder, h.claim.rollout) == (mine.holder, mine.rollout)), None)
    holders = tuple(sorted(h.claim.told for h in held if h is not own and not h.ended))
    if own is not None:
        return Slot(limit.policy, is_within_limit(limit, held, own), False, 1, 1, holders, own.claim.gpus)
    working = [h for h in held if not h.ended]
    waiting = [
        c
        for c in queue
        if c.holder not in {h.claim.holder for h in working} and (limit.gpus is None or c.gpus <= limit.gpus)
    ]
    position = next((i for i, c in enumerate(waiting) if c.holder == mine.holder), len(waiting))
    ahead = waiting[:position]
    room = len(working) + len(ahead) < limit.slots
    if limit.gpus is not None:
        room = (
            room and sum(h.claim.gpus for h in working) + sum(c.gpus for c in ahead) + mine.gpus <= limit.gpus
        )
    return Slot(limit.policy, False, room, position + 1, max(len(waiting), position + 1), holders)


def standing_enlarged(
    limit: Limit, held: Sequence[TakenSlot], queue: Sequence[SlotRequest], mine: SlotRequest
) -> Slot:
    """How a rollout that holds a slot stands with the GPUs that it asks for by now: ``turn`` where
    its slot may count them all.

    Who waits for a slot goes first, as everywhere. ``held`` is False where the slot is beyond the
    limit: another one grew at the same time.
    """
    own = next((h for h in held if (h.claim.holder, h.claim.rollout) == (mine.holder, mine.rollout)), None)
    if own is None:
        return Slot(limit.policy, False)
    others = [h for h in held if h is not own and not h.ended]
    waiting = [c for c in queue if limit.gpus is None or c.gpus <= limit.gpus]
    room = limit.gpus is None or (not waiting and sum(h.claim.gpus for h in others) + mine.gpus <= limit.gpus)
    holders = tuple(sorted(h.claim.told for h in others))
    return Slot(
        limit.policy,
        is_within_limit(limit, held, own),
        room and own.claim.gpus < mine.gpus,
        holders=holders,
        gpus=own.claim.gpus,
    )
