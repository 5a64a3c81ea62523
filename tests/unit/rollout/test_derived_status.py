"""What people and tools read in status: kstatus, columns, a condition for each stage."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.analysis.target import Counting
from modelrollout.api.v1alpha1 import Counter, MetricStatus, ModelDeploymentStatus
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.revisions import revision_status
from modelrollout.rollout.plan import Converge, Write
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.snapshot import Assessment, Server, Snapshot
from modelrollout.rollout.status import derive_status
from modelrollout.rollout.transitions import record
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)


def told(s: Snapshot, now: Any = b.START) -> ModelDeploymentStatus:
    return derive_status(s, s.status, now)


def truths(status: ModelDeploymentStatus) -> dict[str, str]:
    return {c.type: c.status for c in status.conditions}


def serves(version: int = 1, **facts: Any) -> Snapshot:
    state = b.status(1, rollout=b.rollout("Done", 1, outcome="Stable"))
    return b.snapshot(
        b.spec(version),
        state,
        **({"revisions": (b.revision(1, "Stable"),), "servers": {V1: b.ready()}, "traffic": b.TAKEN} | facts),
    )


def test_ready_is_the_present_spec_being_stable_and_serving() -> None:
    status = told(serves())
    assert {k: truths(status)[k] for k in ("Ready", "Reconciling", "Stalled", "Available")} == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Available": "True",
    }
    assert status.phase == "Stable" and status.observed_generation == 1


@pytest.mark.parametrize("reason", ["Superseded", "AccuracyLow"])
def test_the_verdict_of_a_former_rollout_is_not_shown_beside_ready(reason: str) -> None:
    former = b.rollout("Failed", 2, outcome="RolledBack", reason=reason, message="worse")
    status = told(replace(serves(), status=b.status(1, rollout=former)))
    assert (truths(status)["Ready"], status.phase, status.verdict) == ("True", "Stable", None)
    both = (b.revision(1, "Stable"), b.revision(2, "RolledBack"))
    still_requested = told(replace(serves(2, revisions=both), status=b.status(1, rollout=former)))
    assert (still_requested.phase, still_requested.verdict) == ("Failed", reason)


def kstatus(s: Snapshot) -> dict[str, tuple[str, str]]:
    conditions = {c.type: c for c in told(s).conditions}
    return {k: (conditions[k].status, conditions[k].reason) for k in ("Ready", "Reconciling", "Stalled")}


@pytest.mark.parametrize("outcome", ["Superseded", "RolledBack"])
def test_a_failure_of_another_version_does_not_stall_what_spec_asks_for_now(outcome: str) -> None:
    former = b.rollout("Failed", 2, outcome=outcome, reason="Superseded", message="makes way")
    both = (b.revision(1, "Stable"), b.revision(2, "RolledBack"))
    s = replace(serves(3, revisions=both), status=b.status(1, rollout=former))
    assert kstatus(s) == {
        "Ready": ("False", "Pending"),
        "Reconciling": ("True", "Pending"),
        "Stalled": ("False", "Progressing"),
    }
    assert (told(s).phase, told(s).verdict) == ("Pending", None)


def paused(version: int = 2, **changes: Any) -> Snapshot:
    step = b.step(0, 5, "Paused")
    return b.second("Canary", wanted=b.spec(version), changes={"step": step, **changes})


def test_a_pause_for_a_cause_is_stalled_and_not_reconciling() -> None:
    assert kstatus(paused(reason="Inconclusive", message="too few samples")) == {
        "Ready": ("False", "Canary"),
        "Reconciling": ("False", "Inconclusive"),
        "Stalled": ("True", "Inconclusive"),
    }


def test_a_pause_for_a_cause_is_not_stalled_once_spec_asks_for_another_version() -> None:
    assert kstatus(paused(3, reason="Inconclusive"))["Stalled"] == ("False", "Progressing")
    assert kstatus(paused(3, reason="Inconclusive"))["Reconciling"] == ("True", "Inconclusive")


def test_pauses_that_were_arranged_are_reconciling_each_with_its_own_reason() -> None:
    assert kstatus(paused(reason="PauseStep"))["Reconciling"] == ("True", "PauseStep")
    by_hand = b.second(
        "Canary", changes={"step": b.step(0, 5), "paused_by_user": True, "reason": "NoTraffic"}
    )
    assert kstatus(by_hand)["Reconciling"] == ("True", "PausedByUser")
    frozen = combine(
        [
            read(
                {
                    "metadata": {"name": "p"},
                    "spec": {
                        "freezeWindows": [{"start": "2026-11-22T11:00:00Z", "end": "2026-11-23T12:00:00Z"}]
                    },
                }
            )
        ]
    )
    held = b.second("Canary", changes={"step": b.step(0, 5)}, rules=frozen)
    assert kstatus(held)["Reconciling"] == ("True", "Frozen")
    back = b.second("Revert", changes={"step": b.step(0, 5), "outcome": "RolledBack"}, rules=frozen)
    assert kstatus(back)["Reconciling"] == ("True", "Revert")


@pytest.mark.parametrize(
    ("down", "led", "stalled"), [(70, 900, "True"), (50, 900, "False"), (600, 5, "False")]
)
def test_a_stable_that_serves_no_request_for_long_is_stalled_at_rest(
    down: float, led: float, stalled: str
) -> None:
    s = serves(servers={V1: b.ready(0)}, leading_since=b.START - timedelta(seconds=led))
    s = replace(s, status=s.status.model_copy(update={"stable_down_since": b.ago(down)}))
    assert kstatus(s)["Stalled"][0] == stalled and kstatus(s)["Ready"][0] == "False"
    assert stalled == "False" or kstatus(s)["Stalled"][1] == "NoReadyPods"
    s = replace(s, status=told(s))
    plan = decide(s, b.START)
    assert isinstance(plan, Converge)
    assert plan.requeue_after == pytest.approx(60 - min(down, led)) if stalled == "False" else True


def test_a_stable_that_served_no_request_stays_stalled_under_a_new_leader_until_a_pod_is_ready() -> None:
    s = serves(servers={V1: b.ready(0)}, leading_since=b.START - timedelta(seconds=900))
    s = replace(s, status=s.status.model_copy(update={"stable_down_since": b.ago(70)}))
    taken_over = replace(s, status=told(s), leading_since=b.START)
    assert kstatus(taken_over)["Stalled"] == ("True", "NoReadyPods")
    back = replace(taken_over, servers={V1: b.ready()})
    assert kstatus(back)["Stalled"] == ("False", "Idle") and kstatus(back)["Ready"][0] == "True"


def test_a_revision_shows_the_step_of_its_trial_as_verbs_name_it() -> None:
    s = b.second("Canary", changes={"step": b.step(0, 5)})
    s = replace(s, status=told(s))
    assert s.status.step is not None and revision_status(s)[V2].step == s.status.step
    over = replace(s, status=s.status.model_copy(update={"rollout": b.rollout("Failed", 2)}))
    assert revision_status(over)[V2].step is None


def test_what_never_began_has_its_reason_as_the_verdict() -> None:
    s = b.snapshot(b.spec(1), ModelDeploymentStatus(), spec_problem=Problem("StoreNotAllowed", "no"))
    assert (told(s).phase, told(s).verdict) == ("Failed", "StoreNotAllowed")
    unread = replace(s, spec=None, parse_error="spec.model: missing", spec_problem=None)
    assert (told(unread).phase, told(unread).verdict) == ("Failed", "InvalidSpec")


@pytest.mark.parametrize(
    ("pause", "how"), [({}, "it waits for promote"), ({"duration": "5m"}, "it goes on after 5m")]
)
def test_a_pause_step_says_how_it_ends(pause: dict[str, str], how: str) -> None:
    steps = [{"weight": 5}, {"pause": pause}, {"weight": 50}]
    s = b.in_canary(wanted=b.spec(2, steps=steps), assessment=b.judged("Successful"))
    plan = decide(s, b.at(60))
    assert b.condition(plan, "Ready").message == f"a pause step: {how}"
    # what ends by itself asks nothing of a person
    events = [] if pause else [f"a pause step: {how}"]
    assert [e.message for e in b.events(plan) if e.reason == "PauseStep"] == events
    again = decide(replace(s, status=plan.status, assessment=None), b.at(61))
    assert "PauseStep" not in [e.reason for e in b.events(again)]


def test_stable_may_serve_while_spec_is_not_ready() -> None:
    status = told(b.second("Provision"))
    assert {k: truths(status)[k] for k in ("Ready", "Reconciling", "Stalled", "Available")} == {
        "Ready": "False",
        "Reconciling": "True",
        "Stalled": "False",
        "Available": "True",
    }


def test_a_failed_rollout_is_stalled_and_not_reconciling_while_stable_serves() -> None:
    state = b.status(
        1, rollout=b.rollout("Failed", 2, outcome="RolledBack", reason="AccuracyLow", message="proven worse")
    )
    s = replace(serves(2), status=state, revisions=(b.revision(1, "Stable"), b.revision(2, "RolledBack")))
    status = told(s)
    assert {k: truths(status)[k] for k in ("Ready", "Reconciling", "Stalled", "Available")} == {
        "Ready": "False",
        "Reconciling": "False",
        "Stalled": "True",
        "Available": "True",
    }
    stalled = b.condition(Write(status), "Stalled")
    assert (stalled.reason, stalled.message, status.phase, status.verdict) == (
        "AccuracyLow",
        "proven worse",
        "Failed",
        "AccuracyLow",
    )


def test_a_failed_rollout_that_spec_no_longer_asks_for_is_no_trouble() -> None:
    state = b.status(1, rollout=b.rollout("Failed", 2, outcome="RolledBack", reason="AccuracyLow"))
    status = told(replace(serves(1), status=state))
    assert truths(status)["Ready"] == "True" and status.phase == "Stable"


def test_stable_without_ready_pods_is_neither_available_nor_ready() -> None:
    status = told(serves(servers={V1: Server(2, 0)}))
    assert (truths(status)["Available"], truths(status)["Ready"], truths(status)["Reconciling"]) == (
        "False",
        "False",
        "True",
    )


def test_scaled_to_zero_is_ready_and_not_available() -> None:
    """It is what was asked for, and no request is answered: both say so."""
    status = told(replace(serves(servers={V1: Server(0, 0)}), spec=b.spec(1, replicas=0)))
    rows = {c.type: c for c in status.conditions}
    available, ready = rows["Available"], rows["Ready"]
    assert (available.status, available.reason) == ("False", "ScaledToZero")
    assert (ready.status, ready.reason) == ("True", "ScaledToZero")
    assert "replicas is 0" in available.message and "serves all traffic" not in ready.message
    ending = told(replace(serves(servers={V1: Server(1, 1)}), spec=b.spec(1, replicas=0)))
    assert truths(ending)["Available"] == "True", "its pods are still there"


def test_ready_says_how_many_of_the_pods_are_ready() -> None:
    partly = told(serves(servers={V1: Server(2, 1, None, 2)}))
    [ready] = [c for c in partly.conditions if c.type == "Ready"]
    assert (ready.status, ready.reason) == ("True", "Stable") and "1 of 2 pods" in ready.message
    wholly = told(serves(servers={V1: b.ready()}))
    assert "pods" not in next(c.message for c in wholly.conditions if c.type == "Ready")


def test_nothing_yet() -> None:
    status = told(b.snapshot(b.spec(1), ModelDeploymentStatus()))
    assert (status.phase, truths(status)["Available"], status.address, status.selector) == (
        "Pending",
        "False",
        None,
        "",
    )


@pytest.mark.parametrize("reason", ["HostnameTaken", "GatewayAPIMissing"])
def test_traffic_that_is_refused_is_told_also_where_the_version_serves(reason: str) -> None:
    status = told(serves(spec_problem=Problem(reason, "choose another")))
    assert truths(status)["Ready"] == "False" and truths(status)["Available"] == "True"
    assert b.condition(Write(status), "Stalled").reason == reason


def test_a_store_that_is_not_allowed_any_more_is_no_trouble_for_what_serves() -> None:
    assert truths(told(serves(spec_problem=Problem("StoreNotAllowed", "use another"))))["Ready"] == "True"


def test_a_child_that_cannot_be_written_is_told() -> None:
    status = told(
        serves(
            write_problem=Problem("NameTaken", "Service digits exists and is controlled by another object")
        )
    )
    assert (
        b.condition(Write(status), "Stalled").reason
        == b.condition(Write(status), "Ready").reason
        == "NameTaken"
    )


def test_the_columns_of_a_canary() -> None:
    status = told(b.in_canary(at_step=b.step(1, 25)))
    assert (status.phase, status.canary, status.weight, status.step, status.verdict) == (
        "Canary",
        V2,
        25,
        "2/3",
        "in progress",
    )
    paused = told(b.in_canary(at_step=b.step(1, 25, "Paused"), reason="Inconclusive"))
    assert (paused.phase, paused.verdict, truths(paused)["Stalled"]) == ("Paused", "Inconclusive", "True")


def test_the_columns_are_empty_at_rest() -> None:
    status = told(serves())
    assert (status.canary, status.weight, status.step, status.verdict) == (None, None, None, None)


def test_the_scale_sub_resource_speaks_of_stables_pods_alone() -> None:
    status = told(b.in_canary(servers={V1: b.ready(2, 2), V2: b.ready(5, 5)}))
    assert (status.replicas, status.ready_replicas) == (2, 2)
    assert (
        status.selector
        == f"modelrollout.dev/name=digits,modelrollout.dev/component=server,modelrollout.dev/revision={V1}"
    )


def test_the_address_inside_the_cluster() -> None:
    address = told(serves()).address
    assert address and (address.url, address.grpc) == ("http://digits.ml.svc:8000", "digits.ml.svc:8001")


def test_each_stage_has_its_condition() -> None:
    rows = truths(
        told(b.second("Evaluate", changes={"stages": {"Resolve": 1.0, "Prepare": 20.0, "Provision": 9.0}}))
    )
    assert (
        rows.items()
        >= {"Resolved": "True", "Prepared": "True", "Provisioned": "True", "Evaluated": "False"}.items()
    )
    assert rows["CanaryPassed"] == rows["Promoted"] == "Unknown"


def test_a_stage_that_was_not_needed_says_so() -> None:
    plan = Write(told(b.second("Provision", changes={"mode": "Rollback", "stages": {}})))
    assert (b.condition(plan, "Resolved").reason, b.condition(plan, "Prepared").reason) == (
        "Skipped",
        "Skipped",
    )


def test_a_failure_stands_at_the_stage_where_it_happened() -> None:
    state = b.status(
        1,
        rollout=b.rollout(
            "Failed",
            2,
            outcome="Rejected",
            reason="AccuracyLow",
            stages={"Resolve": 1.0, "Prepare": 2.0, "Evaluate": 3.0},
        ),
    )
    plan = Write(told(replace(serves(2), status=state)))
    assert (b.condition(plan, "Evaluated").status, b.condition(plan, "Evaluated").reason) == (
        "False",
        "AccuracyLow",
    )
    assert b.condition(plan, "CanaryPassed").status == "Unknown"


def test_transition_times_move_only_with_the_status() -> None:
    s = serves()
    first = told(s)
    later = told(replace(s, status=first), b.at(500))
    assert [c.last_transition_time for c in later.conditions] == [
        c.last_transition_time for c in first.conditions
    ]
    assert later == first, "a look without news writes nothing"
    gone = told(replace(s, status=first, servers={}), b.at(500))
    before = {c.type: c for c in first.conditions}
    moved = {c.type for c in gone.conditions if c.last_transition_time != before[c.type].last_transition_time}
    assert moved == {"Available", "Ready", "Reconciling"}


def test_who_else_may_have_counted_is_told_while_a_version_is_judged() -> None:
    assessment = Assessment(
        "Inconclusive", "NoData", "", doubt=Problem("ForeignTargets", "tenant/x may count")
    )
    conditions = {c.type: c for c in told(b.in_canary(assessment=assessment)).conditions}
    assert (conditions["EvidenceVerified"].status, conditions["EvidenceVerified"].reason) == (
        "False",
        "ForeignTargets",
    )
    assert "EvidenceVerified" not in truths(told(b.in_canary()))
    proven = replace(assessment, verdict="Successful", reason="ProvenNotWorse")
    last = b.in_canary(at_step=b.step(2, 50), assessment=proven)
    plan = decide(last, b.START)
    assert b.moved(plan).stage == "Promote" and "EvidenceVerified" not in truths(plan.status), (
        "gone with the stage, not in a write of its own"
    )


@pytest.mark.parametrize("stage", ["Promote", "Revert"])
def test_a_step_that_was_paused_and_left_stalls_nothing(stage: str) -> None:
    changes = {"step": b.step(phase="Paused"), "reason": None}
    assert truths(told(b.second(stage, changes=changes)))["Stalled"] == "False"


def test_a_gateway_whose_counters_are_not_known_is_told_during_a_rollout() -> None:
    uncounted = Counting(uncounted=Problem("CountedByServers", "no profile"))
    judged = b.in_canary(assessment=Assessment("Inconclusive", "NoData", ""), counting=uncounted)
    conditions = {c.type: c for c in told(judged).conditions}
    found = conditions["CountedByGateway"]
    assert (found.status, found.reason, found.message) == ("False", "CountedByServers", "no profile")
    assert "CountedByGateway" not in truths(told(serves(counting=uncounted)))
    assert "CountedByGateway" not in truths(told(replace(judged, counting=Counting("istio"))))


def test_conditions_have_bounded_messages() -> None:
    status = told(replace(serves(2), spec=None, parse_error="spec.model.uri: " + "x" * 100_000))
    assert all(len(c.message) <= 1024 for c in status.conditions)


def test_the_largest_rollout_fits_into_status() -> None:
    """32 steps of 16 metrics each; every verdict stays, the numbers of the last ones too."""
    metrics = [
        MetricStatus(
            name=f"m{i}", verdict="Successful", reason="r", message="m" * 300, canary=Counter(total=9e9)
        )
        for i in range(16)
    ]
    state = b.status(1, rollout=b.rollout("Canary", 2, step=b.step(metrics=metrics)))
    for _ in range(32):
        state = record(state, "Successful", "ProvenNotWorse", b.START)
    s = replace(b.in_canary(), status=state)
    status = told(s)
    assert len(json.dumps(status.wire())) < 32 * 1024
    assert (
        status.rollout and len(status.rollout.history) == 32 and len(status.rollout.history[-1].metrics) == 16
    )
    revision = b.children(replace(s, status=status)).revision_status[V2]
    assert len(json.dumps(revision.wire())) < 32 * 1024


def test_status_survives_the_api_server() -> None:
    for s in (
        serves(),
        b.in_canary(),
        b.second("Revert", changes={"outcome": "RolledBack", "reason": "x"}),
        b.snapshot(b.spec(1), ModelDeploymentStatus()),
    ):
        status = decide(s, b.START).status
        assert ModelDeploymentStatus.model_validate(json.loads(json.dumps(status.wire()))) == status
