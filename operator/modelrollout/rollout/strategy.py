"""The steps of each strategy, and the position of a rollout in them, even after an edit during the
rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelrollout.api.v1alpha1 import (
    AbTest,
    BlueGreen,
    Canary,
    Pause,
    Rollout,
    Stage,
    Step,
    StepStatus,
    Strategy,
)

BAKE = "bake"


@dataclass(frozen=True)
class Position:
    """``index`` of the step in the present list; ``exact`` is False when the list was edited and no
    step is the one being watched.
    """

    index: int
    exact: bool


def strategy_of(rollout: Rollout) -> Strategy:
    """The strategy in spec; canary by default."""
    return "BlueGreen" if rollout.blue_green else "ABTest" if rollout.ab_test else "Canary"


def steps_of(rollout: Rollout, most: int | None = None) -> list[Step]:
    """The steps of the strategy. A preview and an A/B test are one step of weight 0, followed by a
    pause unless autoPromote is set, so that verdicts, deadlines and verbs work as in a canary.

    ``most``: the first weight, where policies require metrics; a step of that weight precedes any
    larger one.
    """
    trial = rollout.blue_green or rollout.ab_test
    steps = (
        [_beside(trial), *([] if trial.auto_promote else [Step(pause=Pause())])]
        if trial
        else list((rollout.canary or Canary()).steps)
    )
    first = next((i for i, step in enumerate(steps) if step.weight), len(steps))
    if most is None or (first < len(steps) and (steps[first].weight or 0) <= most):
        return steps
    return [*steps[:first], Step(weight=most), *steps[first:]]


def _beside(trial: BlueGreen | AbTest) -> Step:
    # a user may not write 0, so it is not validated
    return Step.model_construct(weight=0, for_=trial.for_)


def with_traffic(step: StepStatus) -> StepStatus:
    """The step whose weight the requests have: the previous one while the new weight waits for its
    pods; it is judged until then.
    """
    waits = step.phase == "Shifting" and bool(step.metrics)
    return previous_step(step) if waits else step


def previous_step(step: StepStatus) -> StepStatus:
    """The step before one that requests never reached."""
    return step.model_copy(
        update={"index": step.index - 1, "weight": step.previous_weight, "phase": "Observing"}
    )


def locate(steps: Sequence[Step], status: StepStatus) -> Position:
    """Find the present step again.

    If the list was edited, the weight that has been reached is kept and judged, and the next step
    is the first beyond it: an edit never raises the weight past a step that was not judged
    (docs/explanation/invariants.md, 1).
    """
    reached = max(
        (i for i, step in enumerate(steps) if step.weight is not None and step.weight <= status.weight),
        default=-1,
    )
    if 0 <= status.index < len(steps):
        step = steps[status.index]
        # A pause is the one that is being waited in only if nothing but pauses lies between it and
        # the weight that was reached.
        between = steps[reached + 1 : status.index] if reached < status.index else steps
        pausing = (
            step.pause is not None and status.phase == "Paused" and all(s.weight is None for s in between)
        )
        if pausing or step.weight == status.weight:
            return Position(status.index, True)
    return Position(reached, reached >= 0 and steps[reached].weight == status.weight)


def pause_at(steps: Sequence[Step], position: Position) -> Pause | None:
    """The pause that the step is, as spec has it now."""
    return steps[position.index].pause if position.exact else None


def next_index(steps: Sequence[Step], position: Position) -> int | None:
    """Index of the next step; None when only promotion is left. A weight of 100 is promotion."""
    index = position.index + 1
    return index if index < len(steps) and steps[index].weight != 100 else None


def next_weight(steps: Sequence[Step], position: Position) -> int:
    """The weight that a Successful verdict would lead to, past any pauses; 100 after the last
    step.
    """
    return next((s.weight for s in steps[position.index + 1 :] if s.weight is not None), 100)


def step_position(steps: Sequence[Step], position: Position) -> str:
    """``2/4`` as people and verbs name a step."""
    return f"{position.index + 1}/{len(steps)}"


def step_label(stage: Stage, step: StepStatus, steps: Sequence[Step]) -> str:
    """The present step as ``status.step`` shows it and ``promote`` names it: ``2/4``, or
    ``bake``.
    """
    return BAKE if stage == "Bake" else step_position(steps, locate(steps, step))
