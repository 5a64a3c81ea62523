"""promote, revert, retiring: all traffic to one side, and only then the end of the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.snapshot import Server, Traffic
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)
NOT_YET = Traffic(False, "not accepted yet")
UNREADY = {V1: b.ready(), V2: Server(2, 0, Problem("ServerCrashed", "ended with code 1"), 2)}


def test_the_new_revision_is_stable_once_the_data_plane_has_it() -> None:
    assert b.moved(decide(b.second("Promote", traffic=NOT_YET), b.START)).stage == "Promote"
    plan = decide(b.second("Promote"), b.START)
    assert (b.moved(plan).stage, b.moved(plan).outcome) == ("Done", "Promoted")
    assert plan.status.stable and plan.status.stable.revision == V2


@pytest.mark.parametrize(
    ("stage", "end", "changes"),
    [("Promote", "Done", {}), ("Revert", "Failed", {"outcome": "RolledBack", "reason": "AccuracyLow"})],
)
def test_accepted_is_not_taken_up(stage: Any, end: str, changes: dict[str, Any]) -> None:
    """A gateway accepts a route before its processes have it: whoever waits for Ready must not meet
    a 404.
    """
    s = b.second(stage, changes={**changes, "since": b.ago(1)})
    assert b.moved(decide(s, b.START)).stage == stage
    assert b.moved(decide(s, b.at(2.1))).stage == end


def test_the_former_stable_keeps_its_pods_until_its_traffic_has_surely_gone() -> None:
    after = decide(b.second("Promote"), b.START).status
    assert [(d.revision, d.until) for d in after.draining] == [(V1, b.ago(-3))]
    s = b.second("Promote")
    later = b.snapshot(s.spec, after, revisions=s.revisions, servers=s.servers, traffic=b.TAKEN)
    early = b.children(later, b.at(2.9))
    assert early.servers == {V2: 2, V1: 2} and early.split == ((V2, 100),)
    late = decide(later, b.at(3.1))
    assert (
        late.status == after
        and late.desired
        and late.desired.servers == {V2: 2}
        and late.requeue_after is None
    ), "the clock ends it, no write"


def test_the_wait_for_retiring_has_a_time() -> None:
    after = decide(b.second("Promote"), b.START).status
    s = b.second("Promote")
    plan = decide(
        b.snapshot(s.spec, after, revisions=s.revisions, servers=s.servers, traffic=b.TAKEN), b.at(1)
    )
    assert plan.requeue_after == pytest.approx(2.0)


def test_all_traffic_never_goes_to_a_revision_without_a_ready_pod() -> None:
    s = b.second("Promote", servers=UNREADY)
    assert split(s) == ((V1, 100),)
    plan = decide(s, b.START)
    assert b.moved(plan).stage == "Promote" and b.moved(plan).reason == "ServerCrashed"


def test_what_is_proven_worse_while_promotion_waits_for_pods_is_not_promoted_by_them() -> None:
    """onFailure Pause: a person is asked in the last step. In Promote the pods that come would have
    given it everything.
    """
    few = {V1: b.ready(), V2: Server(1, 1, None, 2)}
    s = b.second(
        "Promote", wanted=b.spec(2, steps=b.STEPS, rollout={"onFailure": "Pause"}), servers=few,
        changes={"step": b.step(2, 50)},
        assessment=b.judged("Failed"),
    )  # fmt: skip
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.stage, to.step.phase, to.reason) == ("Canary", "Paused", "AccuracyLow")
    there = replace(s, status=plan.status, servers={V1: b.ready(), V2: b.ready()}, assessment=None)
    for seconds in (1, 60, 100_000):
        later = decide(there, b.at(seconds))
        assert later.status.rollout and later.status.rollout.stage == "Canary"
        assert split(replace(there, status=later.status)) == ((V1, 50), (V2, 50))


def test_the_first_version_becomes_stable() -> None:
    state = b.status(None, rollout=b.rollout("Promote", 1))
    s = b.snapshot(b.spec(1), state, revisions=(b.revision(1),), servers={V1: b.ready()}, traffic=b.TAKEN)
    assert split(s) == ((V1, 100),)
    plan = decide(s, b.START)
    assert b.moved(plan).outcome == "Stable" and plan.status.draining == []


def test_a_rollback_by_hand_ends_stable() -> None:
    assert b.moved(decide(b.second("Promote", changes={"mode": "Rollback"}), b.START)).outcome == "Stable"


def test_a_gateway_that_refuses_is_told() -> None:
    s = b.second(
        "Promote", traffic=Traffic(False, "refused", Problem("RouteNotAccepted", "no such listener"))
    )
    assert b.condition(decide(s, b.START), "Promoted").reason == "RouteNotAccepted"


REVERTED = {"outcome": "RolledBack", "reason": "AccuracyLow", "message": "proven worse", "step": b.step()}


def test_a_rollback_ends_only_when_stable_has_all_traffic() -> None:
    s = b.second("Revert", changes=REVERTED, traffic=NOT_YET)
    assert split(s) == ((V1, 100),)
    assert b.moved(decide(s, b.START)).stage == "Revert"
    plan = decide(b.second("Revert", changes=REVERTED), b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason, to.message, to.step) == (
        "Failed",
        "RolledBack",
        "AccuracyLow",
        "proven worse",
        None,
    )
    assert [d.revision for d in plan.status.draining] == [V2]


def test_a_newer_spec_does_not_interrupt_a_rollback() -> None:
    assert (
        b.moved(
            decide(b.second("Revert", changes=REVERTED, traffic=NOT_YET, wanted=b.spec(3)), b.START)
        ).stage
        == "Revert"
    )


@pytest.mark.parametrize("on_inconclusive", ["Rollback", "Pause"])
def test_without_a_ready_pod_of_stable_no_weight_goes_back_at_the_deadline(on_inconclusive: str) -> None:
    rollout = {"blueGreen": {}, "onInconclusive": on_inconclusive}
    step = b.step(1, 0, "Paused", strategy="BlueGreen")
    s = b.second(
        "Promote",
        wanted=b.spec(2, rollout=rollout),
        changes={"step": step, "since": b.ago(4000), "started": b.ago(4000)},
        servers={V1: b.ready(0), V2: b.ready()},
        traffic=Traffic(False, "the gateway has not accepted it"),
    )
    plan = decide(s, b.START)
    assert plan.status.rollout is not None and plan.status.rollout.stage == "Promote"
    alive = decide(replace(s, servers={V1: b.ready(), V2: b.ready()}), b.START)
    assert b.moved(alive).stage in ("Revert", "Canary")
