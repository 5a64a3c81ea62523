"""Where a canary is in its steps, also after somebody has edited them under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelrollout.api.v1alpha1 import Step, StepStatus


@dataclass(frozen=True)
class Position:
    """``index`` of the step in the present list; ``exact`` is False when the list was edited and no step is the one being watched."""

    index: int
    exact: bool


def locate(steps: Sequence[Step], status: StepStatus) -> Position:
    """Find the present step again.

    If the list was edited, the weight that has been reached is kept and judged, and the next step is the first beyond it: an edit never
    raises the weight past a step that was not judged (invariant 1).
    """
    if 0 <= status.index < len(steps):
        step = steps[status.index]
        pausing = step.pause is not None and status.phase == "Paused" and _weight_before(steps, status.index) == status.weight
        if pausing or step.weight == status.weight:
            return Position(status.index, True)
    reached = [i for i, step in enumerate(steps) if step.weight is not None and step.weight <= status.weight]
    index = reached[-1] if reached else -1
    return Position(index, index >= 0 and steps[index].weight == status.weight)


def _weight_before(steps: Sequence[Step], index: int) -> int:
    return next((s.weight for s in reversed(steps[:index]) if s.weight is not None), 0)


def next_index(steps: Sequence[Step], position: Position) -> int | None:
    """Index of the next step; None when only promotion is left. A weight of 100 is promotion."""
    index = position.index + 1
    return index if index < len(steps) and steps[index].weight != 100 else None


def next_weight(steps: Sequence[Step], position: Position) -> int:
    """The weight that a Successful verdict would lead to, past any pauses; 100 after the last step."""
    return next((s.weight for s in steps[position.index + 1 :] if s.weight is not None), 100)


def label(steps: Sequence[Step], position: Position) -> str:
    """``2/4`` as people and verbs name a step."""
    return f"{position.index + 1}/{len(steps)}"
