"""Ends, verdicts and stages are counted once each, over a whole rollout."""

from __future__ import annotations

import pytest

from modelrollout.rollout.milestones import Milestones, milestones
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster


def walked(verdict: str) -> list[Milestones]:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.edit(b.spec(2, steps=b.STEPS))
    world.verdict = verdict  # type: ignore[assignment]
    made, before = [], world.status
    for _ in range(60):
        world.kindly()
        for _ in range(20):
            wrote, plan = world.one_pass()
            made.append(milestones(before, world.status))
            before = world.status
            if not wrote and plan.requeue_after != 0:
                break
    return made


@pytest.mark.parametrize(
    ("verdict", "outcome", "steps"), [("Successful", "Promoted", 3), ("Failed", "RolledBack", 1)]
)
def test_a_rollout_is_counted_once(verdict: str, outcome: str, steps: int) -> None:
    made = walked(verdict)
    assert [m.ended[0] for m in made if m.ended] == [outcome]
    assert [v for m in made for v, *_ in m.verdicts] == [verdict] * steps
    stages = [stage for m in made for stage, _ in m.stages]
    assert len(stages) == len(set(stages)) and {"Prepare", "Provision", "Canary"} <= set(stages)
    assert all(seconds >= 0 for m in made for _, seconds in m.stages)


def test_nothing_happened_between_equal_statuses() -> None:
    s = b.second("Canary", changes={"step": b.step(0, 5)})
    assert milestones(s.status, s.status) == Milestones()
