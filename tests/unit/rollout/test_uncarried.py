"""A data plane that is gone, refuses, or is silent: it is named at once, every wait for it ends,
and nothing that it may still send requests to goes away.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.plan import Converge, Event, Wait, Write
from modelrollout.rollout.snapshot import Server, Snapshot, Traffic, Verb
from modelrollout.rollout.stages.waiting import GRACE_SECONDS, SILENT_SECONDS
from modelrollout.rollout.status import SILENCE_SECONDS
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import GATEWAY, ModelCluster

V1, V2, V3 = (b.revision_name(v) for v in (1, 2, 3))
MISSING = Problem("GatewayMissing", "spec.traffic.gateway: Gateway ml/public does not exist")
GONE = Traffic(False, MISSING.message, MISSING)
SILENT = Traffic(False, "Gateway ml/public has not accepted generation 2 of HTTPRoute digits yet")
ABORTED = {"outcome": "Aborted", "reason": "AbortedByUser", "message": "aborted by hand"}


def first(traffic: Traffic, spec: Any = None, **changes: Any) -> Snapshot:
    """The first version in Promote."""
    state = b.status(None, rollout=b.rollout("Promote", 1))
    usual = {"revisions": (b.revision(1),), "servers": {V1: b.ready()}, "traffic": traffic}
    return b.snapshot(spec or b.spec(1), state, **(usual | changes))


def at_rest(traffic: Traffic, **changes: Any) -> Snapshot:
    """Version 1 is stable, and spec requests it."""
    usual = {"revisions": (b.revision(1, "Stable"),), "servers": {V1: b.ready()}, "traffic": traffic}
    state = changes.pop("state", b.status(1, last_number=1))
    return b.snapshot(b.spec(1), state, **(usual | changes))


def settled(s: Snapshot, seconds: float = 0) -> Snapshot:
    """The snapshot with what a pass writes into status."""
    return replace(s, status=decide(s, b.at(seconds)).status)


# --- a first version


def test_a_first_version_without_a_gateway_is_told_and_ends() -> None:
    plan = decide(first(GONE), b.START)
    assert b.moved(plan).stage == "Promote" and b.condition(plan, "Promoted").reason == "GatewayMissing"
    assert b.condition(plan, "Ready").message == MISSING.message
    ended = decide(first(GONE, b.spec(1, rollout={"progressDeadline": "2m"})), b.at(111))
    to = b.moved(ended)
    assert (to.stage, to.outcome, to.reason) == ("Failed", "Failed", "GatewayMissing")
    assert to.message == f"not promoted within progressDeadline 2m: {MISSING.message}"


def test_the_route_of_a_first_version_goes_before_its_pods() -> None:
    spec = b.spec(1, rollout={"progressDeadline": "2m"})
    for ended, at in (
        (decide(first(GONE, spec), b.at(111)), 111),
        (decide(first(b.TAKEN, verbs=(Verb("abort", V1, "n"),)), b.START), 0),
    ):
        assert b.moved(ended).stage == "Failed"
        s = replace(first(GONE, spec), status=ended.status)
        early, late = b.children(s, b.at(at + 1)), b.children(s, b.at(at + 4))
        assert early.split == () and set(early.servers) == {V1} and not late.servers


def test_silence_is_named_after_a_moment_and_ends_too() -> None:
    s = first(SILENT, b.spec(1, rollout={"progressDeadline": "2m"}))
    now = b.at(SILENT_SECONDS - 10 - 1)  # the stage began ten seconds ago
    assert b.condition(decide(s, now), "Promoted").reason == "InProgress"
    plan = decide(s, b.at(SILENT_SECONDS))
    assert b.moved(plan).reason == "TrafficUnconfirmed" and b.moved(plan).message == SILENT.message
    assert b.moved(decide(s, b.at(111))).stage == "Failed"
    refused = Problem("ChildRefused", "HTTPRoute digits: quota")
    assert b.moved(decide(replace(s, write_problem=refused), b.at(60))).reason == "ChildRefused"


def test_a_first_version_whose_pods_never_get_ready_ends_too() -> None:
    crashed = Server(2, 0, Problem("ServerCrashed", "ended with code 1"), 2)
    s = first(b.TAKEN, b.spec(1, rollout={"progressDeadline": "2m"}), servers={V1: crashed})
    assert b.moved(decide(s, b.START)).stage == "Promote"
    assert (b.moved(decide(s, b.at(111))).stage, b.moved(decide(s, b.at(111))).reason) == (
        "Failed",
        "ServerCrashed",
    )


# --- promotion beside a stable revision


@pytest.mark.parametrize(
    ("choice", "stage", "phase"), [("Pause", "Canary", "Paused"), ("Rollback", "Revert", "Observing")]
)
def test_a_promotion_that_is_not_taken_up_does_what_spec_says(choice: str, stage: str, phase: str) -> None:
    spec = b.spec(2, steps=b.STEPS, rollout={"onInconclusive": choice, "progressDeadline": "2m"})
    s = b.second("Promote", wanted=spec, traffic=GONE, changes={"step": b.step(2, 50)})
    to = b.moved(decide(s, b.at(111)))
    assert to.step and (to.stage, to.step.phase) == (stage, phase)
    assert MISSING.message in (to.message or "")
    after = replace(s, status=decide(s, b.at(111)).status)
    assert split(after) == (((V1, 50), (V2, 50)) if choice == "Pause" else ((V1, 100),))


@pytest.mark.parametrize("servers", [{V1: b.ready(), V2: b.ready()}, {V1: b.ready(), V2: b.ready(1)}])
def test_a_promotion_without_steps_goes_back(servers: Any) -> None:
    """A rollback by hand, or a first step of 100 %; whether the data plane or pods are missing."""
    spec = b.spec(2, rollout={"progressDeadline": "2m"})
    s = b.second("Promote", wanted=spec, traffic=GONE, servers=servers, changes={"mode": "Rollback"})
    assert b.moved(decide(s, b.START)).stage == "Promote"
    to = b.moved(decide(s, b.at(111)))
    assert (to.stage, to.outcome) == ("Revert", "Failed")


def test_a_promotion_does_not_go_back_to_a_stable_without_a_ready_pod() -> None:
    spec = b.spec(2, rollout={"progressDeadline": "2m"})
    servers = {V1: Server(1, 0, None, 1), V2: b.ready()}
    s = b.second("Promote", wanted=spec, traffic=GONE, servers=servers, changes={"mode": "Rollback"})
    to = b.moved(decide(s, b.at(111)))
    assert (to.stage, to.reason) == ("Promote", "GatewayMissing")
    back = replace(s, servers={V1: b.ready(), V2: b.ready()})
    assert b.moved(decide(back, b.at(111))).stage == "Revert"


# --- rollback


def reverting(traffic: Traffic = GONE, deadline: str = "2m", **facts: Any) -> Snapshot:
    spec = b.spec(2, rollout={"progressDeadline": deadline})
    return b.second("Revert", wanted=spec, traffic=traffic, changes=ABORTED, **facts)


@pytest.mark.parametrize("traffic", [GONE, SILENT])
def test_a_rollback_ends_though_the_data_plane_does_not_confirm_it(traffic: Traffic) -> None:
    s = reverting(traffic)
    waiting = decide(s, b.at(SILENT_SECONDS))
    assert waiting.status.rollout and waiting.status.rollout.stage == "Revert"
    assert traffic.message in b.condition(waiting, "Ready").message, "it names what it waits for"
    plan = decide(s, b.at(111))
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason, plan.status.phase) == (
        "Failed",
        "Aborted",
        "AbortedByUser",
        "Failed",
    )
    assert to.message == (
        "aborted by hand; not confirmed within 120 s that stable has all traffic: " + traffic.message
    )
    drained = b.condition(plan, "Drained")
    assert drained.status == "False" and V2 in drained.message and traffic.message in drained.message
    assert drained.reason == (traffic.problem.reason if traffic.problem else "TrafficUnconfirmed")


def test_pods_stay_until_the_data_plane_confirms_that_it_sends_nothing_there() -> None:
    s = replace(reverting(), status=decide(reverting(), b.at(111)).status)
    for seconds in (112, 1000, 1_000_000):
        plan = decide(s, b.at(seconds))
        assert not isinstance(plan, Wait)
        s = replace(s, status=plan.status)
        assert set(b.children(s, b.at(seconds)).servers) == {V1, V2}
        assert isinstance(decide(s, b.at(seconds)), Converge) and decide(s, b.at(seconds)).requeue_after == 30
    back = replace(s, traffic=b.TAKEN)
    plan = decide(back, b.at(2_000_000))
    [entry] = plan.status.draining
    assert entry.unconfirmed is None and isinstance(plan, Write)
    assert [e.reason for e in plan.events if e.reason == "Drained"] == ["Drained"]
    back = replace(back, status=plan.status)
    assert set(b.children(back, b.at(2_000_001)).servers) == {V1, V2}, "in its proxies it takes a moment"
    assert set(b.children(back, b.at(2_000_004)).servers) == {V1}


def test_a_long_deadline_is_for_evidence_not_for_a_rollback() -> None:
    s = reverting(deadline="24h")
    assert decide(s, b.at(GRACE_SECONDS - 11)).status.rollout.stage == "Revert"  # type: ignore[union-attr]
    assert b.moved(decide(s, b.at(GRACE_SECONDS - 9))).stage == "Failed"


def test_no_rollback_ends_for_the_time_without_a_leader() -> None:
    s = reverting(leading_since=b.at(100_000))
    assert decide(s, b.at(100_000)).status.rollout.stage == "Revert"  # type: ignore[union-attr]
    assert b.moved(decide(s, b.at(100_121))).stage == "Failed"


def test_a_rollback_ends_where_spec_cannot_be_read_and_the_route_is_still_written() -> None:
    s = replace(reverting(), spec=None, parse_error="spec.rollout: not valid")
    plan = decide(s, b.at(GRACE_SECONDS - 9))
    assert b.moved(plan).stage == "Failed" and [d.unconfirmed for d in plan.status.draining] == [True]
    after = replace(s, status=plan.status)
    later = decide(after, b.at(10_000))
    assert isinstance(later, Converge) and later.desired.split == ((V1, 100),)
    assert later.requeue_after == 30 and set(later.desired.servers) == {V1, V2}


def test_a_service_confirms_it_by_its_selector() -> None:
    """Whether all pods of stable are ready is another matter: they may need the canary's GPUs."""
    spec = b.spec(2, gateway=False, rollout={"progressDeadline": "2m"})
    few = Traffic(False, f"1 of 2 pods of {V1} are ready")
    s = b.second("Revert", wanted=spec, traffic=few, changes=ABORTED, live_split=((V1, 100),))
    plan = decide(s, b.at(111))
    assert b.moved(plan).stage == "Failed" and [d.unconfirmed for d in plan.status.draining] == [None]
    both = decide(replace(s, live_split=()), b.at(111))
    assert [d.unconfirmed for d in both.status.draining] == [True], "it selects both, or nothing is known"


def aborted_without_gateway() -> ModelCluster:
    """Version 2 was in its canary when the Gateway went, and it was aborted."""
    cluster = ModelCluster(b.spec(1, steps=b.STEPS, rollout={"progressDeadline": "2m"}))
    cluster.serve()
    cluster.edit(b.spec(2, steps=b.STEPS, rollout={"progressDeadline": "2m"}))
    cluster.verdict = "Inconclusive"
    while V2 not in dict(cluster.plane):
        cluster.reconcile()
        cluster.kindly()
    cluster.gateway = replace(GATEWAY, problem=MISSING)
    cluster.reconcile()
    cluster.say("abort", V2, "n1")
    for _ in range(3):
        cluster.reconcile()
        cluster.tick(60)
    cluster.reconcile()
    return cluster


def test_an_abort_while_the_gateway_is_gone_ends_and_cleans_up_once_it_is_back() -> None:
    cluster = aborted_without_gateway()
    assert cluster.status.rollout is not None
    assert (cluster.status.phase, cluster.status.rollout.outcome) == ("Failed", "Aborted")
    for _ in range(5):
        cluster.tick(1000)
        cluster.reconcile()
    assert V2 in cluster.servers and V2 in dict(cluster.plane), "the proxies go on with what they have"
    cluster.gateway = GATEWAY
    for _ in range(3):
        cluster.reconcile()
        cluster.kindly()
    cluster.reconcile()
    assert set(cluster.servers) == {V1} and cluster.plane == ((V1, 100),)
    assert not [c for c in cluster.status.conditions if c.type == "Drained"]


def test_the_next_rollout_does_not_let_them_go_either() -> None:
    cluster = aborted_without_gateway()
    cluster.edit(b.spec(3, steps=b.STEPS, rollout={"progressDeadline": "2m"}))
    for _ in range(8):
        cluster.reconcile()
        cluster.kindly()
    rollout = cluster.status.rollout
    assert rollout is not None and (rollout.stage, rollout.reason) == ("Canary", "GatewayMissing")
    cluster.say("abort", V3, "n2")
    for _ in range(4):
        cluster.reconcile()
        cluster.tick(60)
    assert set(cluster.servers) == {V1, V2, V3}
    cluster.gateway = GATEWAY
    cluster.serve()
    assert V2 not in cluster.servers and cluster.route == cluster.plane


# --- at rest


@pytest.mark.parametrize(
    "reason", ["GatewayMissing", "GatewayNotProgrammed", "NoMatchingListener", "RouteNotAccepted"]
)
def test_at_rest_it_is_not_available_and_becomes_so_again_by_itself(reason: str) -> None:
    well = settled(at_rest(b.TAKEN))
    assert b.condition(decide(well, b.START), "Available").status == "True"
    gone = replace(well, traffic=Traffic(False, "why", Problem(reason, "why")))
    plan = decide(gone, b.START)
    for kind, truth in (("Available", "False"), ("Ready", "False"), ("Stalled", "True")):
        c = b.condition(plan, kind)
        assert (c.status, c.reason, c.message) == (truth, reason, "why")
    assert b.events(plan) == (Event(reason, "why", "Warning"),)
    again = decide(replace(gone, status=plan.status, traffic=b.TAKEN), b.START)
    assert {b.condition(again, kind).status for kind in ("Available", "Ready")} == {"True"}
    assert [e.reason for e in b.events(again)] == ["Serving"]


def test_missing_pods_are_more_urgent_than_a_missing_gateway() -> None:
    plan = decide(at_rest(GONE, servers={V1: b.ready(0)}), b.START)
    assert b.condition(plan, "Available").reason == "NoReadyPods"


def test_in_flight_stable_is_not_available_either() -> None:
    plan = decide(b.in_canary(traffic=GONE), b.START)
    assert b.condition(plan, "Available").reason == "GatewayMissing"
    assert b.condition(plan, "Ready").reason == "Canary"


def test_silence_is_no_statement_for_a_while_and_then_it_is_unknown() -> None:
    """A gateway answers for a new generation a moment later; one that does not may serve or not."""
    s = settled(at_rest(SILENT, silent_since=b.START))
    early = decide(s, b.at(SILENCE_SECONDS - 1))
    assert {b.condition(early, kind).status for kind in ("Available", "Ready")} == {"True"}
    assert isinstance(early, Converge) and early.requeue_after == pytest.approx(1.0), "it looks again then"
    late = decide(s, b.at(SILENCE_SECONDS))
    available, ready = b.condition(late, "Available"), b.condition(late, "Ready")
    assert (available.status, available.reason) == ("Unknown", "TrafficUnconfirmed")
    assert (ready.status, ready.message) == ("False", SILENT.message)
    new_leader = replace(s, status=late.status, silent_since=b.at(SILENCE_SECONDS))
    assert b.condition(decide(new_leader, b.at(SILENCE_SECONDS)), "Available").status == "Unknown"
    well = decide(replace(new_leader, traffic=b.TAKEN, silent_since=None), b.at(SILENCE_SECONDS))
    assert b.condition(well, "Available").status == "True"


def test_without_a_gateway_nothing_of_this_is_said() -> None:
    few = Traffic(False, f"1 of 2 pods of {V1} are ready")
    s = at_rest(few, silent_since=b.START - timedelta(hours=1), servers={V1: b.ready(1)})
    plan = decide(replace(s, spec=b.spec(1, gateway=False), exact_weights=False), b.START)
    assert b.condition(plan, "Available").status == "True"
