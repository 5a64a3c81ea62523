"""Steps that are edited while a canary is under way: the weight that was reached is kept, and the
next one is the first beyond it.
"""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Step
from modelrollout.rollout.decide import decide
from modelrollout.rollout.strategy import Position, locate, next_index, next_weight, step_position
from modelrollout.testing import builders as b


def steps(*made: Any) -> list[Step]:
    """Integers are weights, ``None`` is a pause, a text is a pause of that length."""
    return [
        Step.model_validate({"weight": m} if isinstance(m, int) else {"pause": {"duration": m} if m else {}})
        for m in made
    ]


@pytest.mark.parametrize(
    ("edited", "index", "weight", "phase", "actual"),
    [
        (steps(5, 25, 50), 1, 25, "Observing", Position(1, True)),
        (steps(5, None, 50), 1, 5, "Paused", Position(1, True)),
        (steps(5, 10, 25, 50), 1, 25, "Observing", Position(2, True)),  # one more before it
        (steps(25, 50), 1, 25, "Observing", Position(0, True)),  # one less
        (steps(5, 20, 50), 1, 25, "Observing", Position(1, False)),  # the weight itself was edited
        (steps(50, 60), 1, 25, "Observing", Position(-1, False)),  # all beyond
        (steps(1, 2), 1, 25, "Observing", Position(1, False)),  # all passed
        # a pause was put behind: it is still to come
        (steps(25, None, 50), 1, 25, "Observing", Position(0, True)),
        (steps(5, 10, None, 50), 1, 5, "Paused", Position(0, True)),  # the pause went further up
        # reached 5 before; the pause now stands at the beginning
        (steps(None, 10), 0, 5, "Paused", Position(0, True)),
        # a pause below the weight is no pause to wait in
        (steps(1, 2, None, 10, 60), 2, 25, "Paused", Position(3, False)),
        (steps(5), 3, 50, "Observing", Position(0, False)),  # the list has become short
    ],
)
def test_the_place_in_an_edited_list(
    edited: list[Step], index: int, weight: int, phase: str, actual: Position
) -> None:
    assert locate(edited, b.step(index, weight, phase)) == actual


@pytest.mark.parametrize(
    "edited", [steps(5, 25, 50), steps(None, 5), steps(5, None, None, 50), steps(5, "1m", 100), steps(100)]
)
def test_going_on_never_goes_down_and_always_gets_on(edited: list[Step]) -> None:
    at: Position | None = Position(-1, False)
    weight, seen = 0, []
    while at is not None:
        index = next_index(edited, at)
        assert next_weight(edited, at) > weight or next_weight(edited, at) == 100
        if index is None:
            break
        weight = edited[index].weight or weight
        at = locate(edited, b.step(index, weight, "Paused" if edited[index].pause else "Shifting"))
        assert at == Position(index, True)
        seen.append(step_position(edited, at))
    assert len(seen) == len([s for s in edited if s.weight != 100])


def test_an_edit_never_raises_the_weight_by_itself() -> None:
    s = b.in_canary(
        wanted=b.spec(2, steps=[{"weight": 50}, {"weight": 80}]), assessment=b.judged("Inconclusive")
    )
    to = b.moved(decide(s, b.START)).step
    assert to and to.weight == 5


def test_the_next_step_is_the_first_beyond_what_was_reached() -> None:
    spec = b.spec(2, steps=[{"weight": 5}, {"weight": 10}, {"weight": 30}, {"weight": 60}])
    to = b.moved(
        decide(b.in_canary(wanted=spec, at_step=b.step(1, 25), assessment=b.judged("Successful")), b.START)
    ).step
    assert to and (to.index, to.weight) == (2, 30)


def test_a_pause_put_behind_the_present_weight_is_kept() -> None:
    spec = b.spec(2, steps=[{"weight": 25}, {"pause": {}}, {"weight": 50}])
    to = b.moved(
        decide(b.in_canary(wanted=spec, at_step=b.step(1, 25), assessment=b.judged("Successful")), b.START)
    ).step
    assert to and (to.index, to.weight, to.phase) == (1, 25, "Paused")


def test_a_pause_that_is_edited_away_ends() -> None:
    s = b.in_canary(
        wanted=b.spec(2, steps=[{"weight": 5}, {"weight": 50}]),
        at_step=b.step(1, 5, "Paused"),
        reason="PauseStep",
    )
    to = b.moved(decide(s, b.START)).step
    assert to and (to.index, to.weight, to.phase) == (1, 50, "Shifting")


def test_other_settings_of_the_rollout_hold_at_once() -> None:
    s = b.in_canary(
        wanted=b.spec(2, rollout={"canary": {"steps": b.STEPS}, "progressDeadline": "1m"}),
        assessment=b.judged("Error"),
    )
    assert b.moved(decide(s, b.at(55))).reason == "Inconclusive"
