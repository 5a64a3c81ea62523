"""When a step begins to count."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.analysis.eta import counted_seconds, delay_seconds, initial_delay
from modelrollout.api.v1alpha1 import Rollout
from modelrollout.testing import builders as b


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        ({}, 30),
        ({"progressDeadline": "3m"}, 18),
        ({"progressDeadline": "3s"}, 0.3),
        ({"analysis": {"initialDelay": "2m"}}, 120),
        ({"analysis": {"initialDelay": "0s"}}, 0),
    ],
)
def test_counting_waits_for_half_a_minute_or_a_tenth_of_a_short_deadline(
    rollout: dict[str, Any], expected: float
) -> None:
    assert initial_delay(Rollout.model_validate(rollout)) == pytest.approx(expected)


def test_a_pause_shifts_no_weight_and_has_no_delay() -> None:
    assert delay_seconds(b.step(1, 5, "Paused", observed_since=None), Rollout()) == 0
    assert delay_seconds(b.step(0, 5, "Shifting", observed_since=None), Rollout()) == 30


def test_the_delay_is_not_counted() -> None:
    """The step is observed since five seconds before START."""
    assert counted_seconds(b.step(0, 5), Rollout(), b.at(20)) == 0
    assert counted_seconds(b.step(0, 5), Rollout(), b.at(27)) == pytest.approx(2)
