"""The children that a written state asks for: pods, split, selector, evidence, history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import (
    Draining,
    QueueStatus,
    Stage,
    StepEvidence,
    TuningEvidence,
)
from modelrollout.rollout.desired import desired
from modelrollout.rollout.desired.pods import replicas, share_replicas
from modelrollout.rollout.desired.revisions import human_bytes, revision_status
from modelrollout.rollout.desired.traffic import service_selector, split
from modelrollout.rollout.plan import Desired
from modelrollout.rollout.snapshot import Server, Snapshot
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)
PLAIN = b.spec(2, gateway=False, replicas=4, steps=[{"weight": 20}, {"weight": 50}])


def replicas_of(s: Snapshot) -> dict[str, int]:
    return replicas(s, b.START)


def desired_by(s: Snapshot) -> Desired:
    return desired(s, b.START)


def pods(v1: tuple[int, int] = (2, 2), v2: tuple[int, int] = (2, 2)) -> dict[str, Server]:
    """(asked, ready) of both revisions."""
    return {V1: Server(v1[0], v1[1], None, v1[0]), V2: Server(v2[0], v2[1], None, v2[0])}


# --- split


@pytest.mark.parametrize("stage", ["Resolve", "Prepare", "Provision", "Evaluate", "Revert"])
def test_only_the_canary_and_promotion_have_traffic_beside_stable(stage: str) -> None:
    assert split(b.second(stage)) == ((V1, 100),)


@pytest.mark.parametrize("phase", ["Shifting", "Observing", "Paused"])
def test_the_canary_has_its_weight_and_stable_the_rest(phase: str) -> None:
    assert split(b.in_canary(at_step=b.step(1, 25, phase))) == ((V1, 75), (V2, 25))


def test_a_canary_without_a_ready_pod_is_left_out() -> None:
    assert split(b.in_canary(servers=pods(v2=(2, 0)))) == ((V1, 100),)


def test_a_first_pause_is_without_traffic() -> None:
    assert split(b.in_canary(at_step=b.step(0, 0, "Paused"))) == ((V1, 100),)


def test_nothing_serves_nothing_is_split() -> None:
    s = b.snapshot(
        b.spec(1), b.status(None, rollout=b.rollout("Prepare", 1)), revisions=(b.revision(1, prepared=False),)
    )
    children = desired_by(s)
    assert (children.split, children.selector, children.budget, dict(children.servers)) == (
        (),
        None,
        None,
        {},
    )


# --- replicas


def test_a_candidate_gets_pods_when_it_is_prepared_and_loses_them_when_it_failed() -> None:
    assert replicas_of(b.second("Prepare")) == {V1: 2}
    assert replicas_of(b.second("Provision")) == {V1: 2, V2: 2}
    assert replicas_of(b.second("Failed", changes={"outcome": "Rejected", "reason": "x"})) == {V1: 2}


def test_a_candidate_on_trial_is_never_scaled_to_zero() -> None:
    """Its trial ends first, or goes back to Provision; there neither revision has pods."""
    none = b.spec(2, replicas=0)
    waiting = {"reason": "ScaledToZero", "message": "waits"}
    assert replicas_of(b.second("Provision", wanted=none, changes=waiting)) == {V1: 0, V2: 0}
    assert replicas_of(b.second("Promote", wanted=none, servers=pods((2, 2), (2, 2)))) == {V1: 2, V2: 2}
    assert replicas_of(b.second("Bake", wanted=none, changes={"step": b.step(3, 100)}))[V2] == 1


def test_stable_is_not_scaled_down_while_traffic_is_divided() -> None:
    """An autoscaler looks at stable's pods, which see only a part of the load; after a rollback
    they have to carry all of it again.
    """
    down = b.spec(2, replicas=1, steps=b.STEPS)
    assert replicas_of(b.in_canary(wanted=down, servers=pods((4, 4), (4, 4)))) == {V1: 4, V2: 4}
    assert (
        replicas_of(
            b.second(
                "Revert",
                wanted=down,
                servers=pods((4, 4), (4, 4)),
                changes={"outcome": "RolledBack", "reason": "x"},
            )
        )[V1]
        == 4
    )
    assert replicas_of(b.second("Provision", wanted=down, servers=pods((4, 4), (4, 4)))) == {V1: 1, V2: 1}
    up = b.spec(2, replicas=6, steps=b.STEPS)
    assert replicas_of(b.in_canary(wanted=up, servers=pods((4, 4), (4, 4)))) == {V1: 6, V2: 6}


def test_what_has_just_lost_its_traffic_keeps_the_pods_it_has() -> None:
    s = b.second(
        "Failed",
        changes={"outcome": "RolledBack", "reason": "x"},
        servers=pods((4, 4), (1, 1)),
        wanted=b.spec(2, replicas=4),
    )
    retiring = replace(
        s, status=s.status.model_copy(update={"draining": [Draining(revision=V2, number=2, until=b.ago(-1))]})
    )
    assert replicas_of(retiring) == {V1: 4, V2: 1}


@pytest.mark.parametrize(
    ("stable", "weight", "canary"),
    [
        (4, 20, 1),
        (4, 50, 4),
        (10, 5, 1),
        (10, 25, 3),
        (2, 5, 1),
        (1, 50, 1),
        (3, 75, 9),
        (4, 0, 1),
        (4, 100, 4),
    ],
)
def test_replicas_as_near_to_a_weight_as_whole_pods_allow(stable: int, weight: int, canary: int) -> None:
    assert share_replicas(stable, weight) == canary


# --- without a gateway one Service and replica counts stand for the route


def plain(stage: str = "Canary", **facts: Any) -> Snapshot:
    changes = (
        {"step": b.step(0, 20)}
        if stage == "Canary"
        else {"outcome": "RolledBack", "reason": "x"}
        if stage == "Revert"
        else {}
    )
    return b.second(stage, wanted=PLAIN, changes=changes, **({"servers": pods((4, 4), (1, 1))} | facts))


def test_replica_weighted_canary() -> None:
    assert replicas_of(plain()) == {V1: 4, V2: 1}
    assert service_selector(plain()) == "*"


def test_without_a_ready_canary_pod_the_service_is_stables() -> None:
    assert service_selector(plain(servers=pods((4, 4), (1, 0)))) == V1


def test_before_and_after_the_canary_the_service_is_stables() -> None:
    assert service_selector(plain("Evaluate")) == service_selector(plain("Revert")) == V1
    assert replicas_of(plain("Revert")) == {V1: 4, V2: 1}, "a canary that goes back is not scaled up first"


def test_at_promotion_stable_helps_until_the_new_pods_can_carry_everything() -> None:
    assert service_selector(plain("Promote", servers=pods((4, 4), (4, 2)))) == "*"
    assert service_selector(plain("Promote", servers=pods((4, 4), (4, 4)))) == V2
    assert replicas_of(plain("Promote", servers=pods((4, 4), (4, 2)))) == {V1: 4, V2: 4}


def test_with_a_gateway_the_service_is_always_one_revision() -> None:
    assert service_selector(b.in_canary()) == V1
    assert service_selector(b.second("Promote")) == V2


# --- budget


def test_the_disruption_budget_is_stables() -> None:
    assert desired_by(b.in_canary()).budget == V1 == desired_by(b.second("Promote")).budget


@pytest.mark.parametrize(
    ("stage", "weight", "budgets"),
    [
        ("Provision", 0, (V1, None)),
        ("Canary", 5, (V1, None)),  # one pod, which a budget could only hold on its node
        ("Canary", 50, (V1, V2)),
        ("Promote", 50, (V1, V2)),
        ("Bake", 100, (V2, None)),
        ("Revert", 50, (V1, None)),
        ("Done", 100, (V1, None)),
    ],
)
@pytest.mark.parametrize("gateway", [True, False])
def test_a_canary_with_several_pods_has_a_budget_and_no_revision_has_two(
    stage: str, weight: int, budgets: tuple[str, str | None], gateway: bool
) -> None:
    canary = {"steps": [{"weight": 5}, {"weight": 50}], "scale": "Weight"}
    wanted = b.spec(2, rollout={"canary": canary}, replicas=4, gateway=gateway)
    step = (
        {"step": b.step({5: 0, 50: 1, 100: 2}.get(weight, 0), weight)}
        if stage in ("Canary", "Promote", "Bake")
        else {}
    )
    s = b.second(stage, wanted=wanted, changes=step, servers=pods((4, 4), (1, 1)), exact_weights=gateway)
    actual = desired_by(s)
    assert (actual.budget, actual.canary_budget) == budgets


# --- what stands in revisions


def test_a_revision_in_flight_is_pending_then_canary() -> None:
    queue = QueueStatus(since=b.ago(0), gpus=1)
    assert revision_status(b.second("Provision", changes={"queue": queue}))[V2].outcome == "Pending"
    assert revision_status(b.in_canary())[V2].outcome == "Canary"


@pytest.mark.parametrize("stage", ["Prepare", "Provision", "Evaluate", "Promote", "Revert"])
def test_what_the_next_stage_writes_of_a_revision_is_not_written_before(stage: Stage) -> None:
    assert V2 not in revision_status(b.second(stage))


@pytest.mark.parametrize("stage", ["Provision", "Evaluate"])
def test_a_first_versions_revision_says_before_it_serves_whose_children_there_are(stage: Stage) -> None:
    s = b.snapshot(
        b.spec(1),
        b.status(None, rollout=b.rollout(stage, 1), last_number=1),
        revisions=(b.revision(1),),
        children=("uid-1",),
    )
    written = revision_status(s)[V1]
    assert (written.outcome, written.children) == ("Pending", ["uid-1"])


def test_what_tuning_found_stands_in_the_revision_before_it_serves() -> None:
    tuning = TuningEvidence(message="as configured")
    assert revision_status(b.second("Provision", changes={"tuning": tuning}))[V2].tuning == tuning


def test_the_evidence_of_a_rollout_stands_in_its_revision() -> None:
    evidence = StepEvidence(index=0, weight=5, verdict="Failed", reason="LatencyHigh", seconds=30)
    changes = {
        "outcome": "RolledBack",
        "reason": "LatencyHigh",
        "message": "proven slower",
        "evaluation": b.evaluation("Successful").model_copy(update={"latency_p99_ms": 3.14}),
        "artifact": b.artifact(2).model_copy(update={"accuracy_before": 0.98, "accuracy_after": 0.975}),
        "history": [evidence],
        "stages": {"Canary": 31.0},
    }
    statuses = revision_status(b.second("Failed", changes=changes))[V2]
    assert (statuses.outcome, statuses.reason, statuses.message) == (
        "RolledBack",
        "LatencyHigh",
        "proven slower",
    )
    assert (statuses.steps, statuses.stages, statuses.started, statuses.finished) == (
        [evidence],
        {"Canary": 31.0},
        b.ago(60),
        b.ago(10),
    )
    assert (statuses.accuracy, statuses.size, statuses.p99) == ("0.975 (-0.005)", "260 (-74 %)", "3.1ms")


@pytest.mark.parametrize(("reason", "worse"), [("ErrorsHigh", True), ("SlotHeldTooLong", False)])
def test_only_the_reason_for_which_a_step_failed_proves_a_version_worse(reason: str, worse: bool) -> None:
    """What clients may have caused pauses a step that failed, until something else ends it."""
    evidence = StepEvidence(index=0, weight=5, verdict="Failed", reason="ErrorsHigh", seconds=30)
    changes = {"outcome": "RolledBack", "reason": reason, "history": [evidence]}
    s = b.second("Failed", changes=changes)
    ended = replace(s.revisions[1], status=revision_status(s)[V2])
    assert ended.status.outcome == "RolledBack" and ended.proven_worse is worse


def test_the_former_stable_is_retired() -> None:
    s = b.snapshot(
        b.spec(2),
        b.status(2, rollout=b.rollout("Done", 2, outcome="Promoted")),
        revisions=(b.revision(1, "Stable"), b.revision(2, "Canary")),
    )
    statuses = revision_status(s)
    assert (statuses[V1].outcome, statuses[V1].reason, statuses[V2].outcome) == (
        "Retired",
        "Replaced",
        "Promoted",
    )


def test_a_rollback_under_way_says_nothing_about_its_target() -> None:
    s = b.second(
        "Canary",
        changes={"mode": "Rollback", "step": b.step(0, 5)},
        revisions=(b.revision(1, "Stable"), b.revision(2, "Retired")),
    )
    assert revision_status(s)[V2].outcome == "Retired"


def test_what_is_recorded_is_not_written_again() -> None:
    s = b.in_canary()
    again = replace(
        s, revisions=tuple(replace(r, status=revision_status(s).get(r.name, r.status)) for r in s.revisions)
    )
    assert revision_status(again) == {}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1.0Ki"), (421_888, "412Ki"), (5 << 20, "5.0Mi"), (3 << 40, "3072Gi")],
)
def test_sizes_as_kubernetes_writes_them(count: int, text: str) -> None:
    assert human_bytes(count) == text


# --- history


def history(limit: int, *outcomes: str) -> tuple[str, ...]:
    """Names of what is forgotten of revisions 2, 3, ... with these outcomes; 1 is stable."""
    others = tuple(
        replace(b.revision(1, outcome), name=f"r{i}", number=i) for i, outcome in enumerate(outcomes, start=2)
    )
    s = b.snapshot(
        b.spec(1, revisionHistoryLimit=limit), b.status(1), revisions=(b.revision(1, "Stable"), *others)
    )
    return desired_by(s).forget


def test_the_oldest_go_beyond_the_limit() -> None:
    assert history(2, "Retired", "Retired", "Retired") == ("r2",)
    assert history(3, "Retired", "Retired", "Retired") == ()


def test_bad_versions_do_not_push_out_what_can_be_rolled_back_to() -> None:
    assert history(1, "Retired", "Rejected", "RolledBack", "Failed") == ("r4", "r3")


def test_what_is_needed_is_never_forgotten() -> None:
    state = b.status(
        1,
        rollout=b.rollout("Canary", 2, step=b.step()),
        draining=[Draining(revision="r3", number=3, until=b.ago(-1))],
    )
    revisions = (
        b.revision(1, "Stable"),
        b.revision(2),
        replace(b.revision(3, "Aborted"), name="r3"),
        replace(b.revision(4, "Aborted"), name="r4"),
    )
    s = b.snapshot(
        b.spec(2, revisionHistoryLimit=1),
        state,
        revisions=(*revisions, replace(b.revision(5, "Aborted"), name="r5")),
    )
    assert desired_by(s).forget == ("r4",)
