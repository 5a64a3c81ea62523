"""Servers that end by themselves during a trial: counted across pods, passes and stages; one end
beyond stable's holds the step, more pause it, and the shadow rejects what stable survives.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import (
    Counter,
    MetricStatus,
    ModelDeploymentStatus,
    RestartEvidence,
    ServerEnds,
    ShadowStatus,
)
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.revisions import revision_status
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.plan import Plan
from modelrollout.rollout.recovery import sanitize
from modelrollout.rollout.server_crashes import describe
from modelrollout.rollout.snapshot import Assessment, Crash, Server, Snapshot, Verb
from modelrollout.rollout.stages.next_stage import outputs_of
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

V1, V2 = b.revision_name(1), b.revision_name(2)
SAID = "pod p, container triton was ended by SIGSEGV (exit code 139); see kubectl logs --previous"
OLD = b.ago(9000)


def crash(
    ago: float = 1, count: int = 1, pod: str = "p", reason: str = "ServerCrashed", created: str = OLD
) -> Crash:
    return Crash(b.ago(ago), reason, SAID, pod=pod, created=created, count=count)


def with_crashes(s: Snapshot, *canary: Crash, stable: tuple[Crash, ...] = ()) -> Snapshot:
    """The snapshot with what the kubelet tells of the pods of both sides."""
    return replace(
        s,
        servers={**s.servers, V1: replace(b.ready(), crashes=stable), V2: replace(b.ready(), crashes=canary)},
    )


def counted(plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """Ends that the plan's status counts, of canary and stable."""
    restarts = plan.status.rollout and plan.status.rollout.restarts
    return (restarts.canary.counts, restarts.stable.counts) if restarts else ({}, {})


def on_trial(*canary: Crash, stable: tuple[Crash, ...] = (), **facts: Any) -> Snapshot:
    """The usual canary, whose evidence is good."""
    usual: dict[str, Any] = {"assessment": b.judged("Successful")}
    return with_crashes(b.in_canary(**(usual | facts)), *canary, stable=stable)


def ends(canary: int = 0, stable: int = 0, ago: float = 1, **more: Any) -> RestartEvidence:
    def side(count: int) -> ServerEnds:
        if not count:
            return ServerEnds()
        return ServerEnds(counts={"ServerCrashed": count}, at=b.ago(ago), message=SAID, pods={"p": count})

    return RestartEvidence(canary=side(canary), stable=side(stable), **more)


# --- counting


def test_without_an_end_nothing_is_written() -> None:
    assert b.moved(decide(on_trial(), b.START)).restarts is None
    before_the_trial = on_trial(crash(ago=11), stable=(crash(ago=4000, count=7),))
    assert b.moved(decide(before_the_trial, b.START)).restarts is None


def test_an_end_is_counted_once_with_what_ended_it() -> None:
    s = on_trial(crash(count=4), assessment=b.judged("Inconclusive"))
    first = decide(s, b.START)
    restarts = b.moved(first).restarts
    assert restarts and restarts.canary == ServerEnds(
        counts={"ServerCrashed": 1}, at=b.ago(1), message=SAID, pods={"p": 4}
    ), "the three before the trial do not count"
    again = decide(replace(s, status=first.status), b.at(5))
    assert counted(again) == counted(first)
    older = with_crashes(replace(s, status=first.status), crash(ago=8, count=3))
    assert counted(decide(older, b.at(5))) == counted(first), "a cache that is behind takes nothing back"
    three_more = with_crashes(replace(s, status=first.status), crash(ago=-9, count=7))
    assert counted(decide(three_more, b.at(10))) == ({"ServerCrashed": 4}, {})


def test_a_pod_of_the_trial_counts_from_its_first_end() -> None:
    assert counted(decide(on_trial(crash(count=3, created=b.ago(8))), b.START)) == ({"ServerCrashed": 3}, {})


def test_a_pod_that_is_gone_takes_no_end_along() -> None:
    first = decide(on_trial(crash(), assessment=b.judged("Inconclusive")), b.START)
    gone = replace(on_trial(), status=first.status)
    assert counted(decide(gone, b.at(5))) == ({"ServerCrashed": 1}, {})
    successor = with_crashes(gone, crash(ago=-4, pod="q", created=b.at(1).isoformat()))
    assert counted(decide(successor, b.at(5))) == ({"ServerCrashed": 2}, {})


def test_the_trial_begins_with_its_first_stage() -> None:
    s = on_trial(crash(ago=200), assessment=b.judged("Inconclusive"))
    assert counted(decide(s, b.START)) == ({}, {})
    assert s.status.rollout is not None
    shadowed = s.status.rollout.model_copy(update={"stages": {"Provision": 900.0, "Shadow": 300.0}})
    s = replace(s, status=s.status.model_copy(update={"rollout": shadowed}))
    assert counted(decide(s, b.START)) == ({"ServerCrashed": 1}, {})


@pytest.mark.parametrize("stage", ["Provision", "Evaluate", "Revert"])
def test_outside_of_the_trial_nothing_counts(stage: str) -> None:
    s = with_crashes(b.second(stage, changes={"outcome": "RolledBack"} if stage == "Revert" else {}), crash())
    assert counted(decide(s, b.START)) == ({}, {})


def test_of_very_many_pods_status_stays_small() -> None:
    many = tuple(crash(pod=f"{n:08x}", created=b.ago(5)) for n in range(500))
    plan = decide(on_trial(*many, stable=many), b.START)
    assert b.moved(plan).restarts is not None
    assert len(json.dumps(b.moved(plan).restarts.wire())) < 2048  # type: ignore[union-attr]


# --- one end


def test_one_end_holds_the_step_until_it_stayed_quiet_as_long_as_before() -> None:
    s = on_trial(crash())
    plan = decide(s, b.START)
    waits = b.moved(plan)
    assert waits.step and (waits.stage, waits.step.weight, waits.step.phase) == ("Canary", 5, "Observing")
    assert waits.reason == "ServerRestarted" and SAID in (waits.message or "")
    assert "ended once during its trial, stable's never" in (waits.message or "")
    assert "does not pass before 2026-11-22T12:04:59.000Z" in (waits.message or "")
    assert ("Warning", "ServerCrashed") in [(e.type, e.reason) for e in b.events(plan)]
    s = replace(s, status=plan.status)
    assert decide(s, b.at(290)).status.step == plan.status.step
    onward = b.moved(decide(s, b.at(299)))
    assert onward.step and (onward.step.weight, onward.reason) == (25, None)
    assert onward.restarts == waits.restarts, "it stays evidence"


def test_a_long_trial_is_held_as_long_again() -> None:
    long = {"stages": {"Canary": 1200.0}}
    s = on_trial(crash(ago=10), wanted=b.spec(2, steps=b.STEPS, rollout={"progressDeadline": "1h"}))
    assert s.status.rollout is not None
    s = replace(s, status=s.status.model_copy(update={"rollout": s.status.rollout.model_copy(update=long)}))
    s = replace(s, status=decide(s, b.START).status)
    assert b.moved(decide(s, b.at(1000))).reason == "ServerRestarted"
    onward = b.moved(decide(s, b.at(1191))).step
    assert onward and onward.weight == 25


def test_at_the_deadline_a_held_step_ends_as_one_without_a_verdict() -> None:
    s = on_trial(crash(), wanted=b.spec(2, steps=b.STEPS, rollout={"progressDeadline": "2m"}))
    s = replace(s, status=decide(s, b.START).status)
    to = b.moved(decide(s, b.at(120)))
    assert to.step and (to.step.phase, to.reason) == ("Paused", "Inconclusive")
    assert SAID in (to.message or "") and to.history[-1].reason == "ServerRestarted"


def test_a_pause_step_does_not_end_over_it() -> None:
    steps = [{"weight": 5}, {"pause": {"duration": "30s"}}, {"weight": 50}]
    s = on_trial(
        crash(),
        wanted=b.spec(2, steps=steps),
        at_step=b.step(1, 5, "Paused", since=b.ago(29)),
        reason="PauseStep",
    )
    waits = decide(s, b.at(5))
    assert (
        b.moved(waits).step
        and b.moved(waits).reason == "PauseStep"
        and SAID in (b.moved(waits).message or "")
    )
    onward = b.moved(decide(replace(s, status=waits.status), b.at(300))).step
    assert onward and onward.weight == 50


def test_a_preview_does_not_pass_by_time_over_it() -> None:
    wanted = b.spec(2, rollout={"blueGreen": {"for": "5s", "autoPromote": True}})
    s = on_trial(
        crash(),
        wanted=wanted,
        at_step=b.step(weight=0, strategy="BlueGreen"),
        assessment=b.judged("Inconclusive"),
    )
    assert b.moved(decide(s, b.START)).reason == "ServerRestarted"


def test_the_bake_does_not_end_over_it() -> None:
    wanted = b.spec(2, steps=b.STEPS, rollout={"bake": "5s"})
    changes = {"step": b.step(3, 100), "stages": {"Canary": 50.0}}
    s = with_crashes(
        b.second("Bake", wanted=wanted, changes=changes, assessment=b.judged("Successful")), crash()
    )
    plan = decide(s, b.START)
    assert (b.moved(plan).stage, b.moved(plan).reason) == ("Bake", "ServerRestarted")
    assert b.moved(decide(replace(s, status=plan.status), b.at(300))).outcome == "Promoted"


def test_promotion_goes_back_to_the_last_step_before_any_pod_gets_more() -> None:
    changes = {"step": b.step(2, 50), "stages": {"Canary": 60.0}}
    s = with_crashes(
        b.second(
            "Promote", wanted=b.spec(2, steps=b.STEPS), changes=changes, live_split=((V1, 50), (V2, 50))
        ),
        crash(),
    )
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.stage, to.step.weight, to.step.phase) == ("Canary", 50, "Observing")
    assert to.reason == "ServerRestarted" and split(replace(s, status=plan.status)) == ((V1, 50), (V2, 50))
    assert ("Warning", "ServerRestarted") in [(e.type, e.reason) for e in b.events(plan)]
    well = replace(s, status=plan.status, assessment=b.judged("Successful"))
    assert b.moved(decide(well, b.at(300))).stage == "Promote"


# --- more


@pytest.mark.parametrize(
    ("at_step", "reason"),
    [
        (b.step(1, 25), None),
        (b.step(2, 50, "Shifting", previous_weight=25), None),
        (b.step(1, 25, "Paused"), "Inconclusive"),
    ],
)
def test_more_ends_pause_for_a_person_with_signal_and_count(at_step: Any, reason: str | None) -> None:
    s = on_trial(crash(count=2, created=b.ago(9)), at_step=at_step, reason=reason)
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.stage, to.step.weight, to.step.phase) == ("Canary", 25, "Paused")
    assert to.reason == "RepeatedCrashes" and "ended 2 times during its trial, stable's never" in (
        to.message or ""
    )
    assert "SIGSEGV" in (to.message or "") and "promote or abort" in (to.message or "")
    assert b.condition(plan, "Stalled").status == "True"
    event = next(e for e in b.events(plan) if e.reason == "RepeatedCrashes")
    assert event.type == "Warning" and "2 times" in event.message and "SIGSEGV" in event.message
    assert to.history[-1].reason == "RepeatedCrashes"
    settled = decide(replace(s, status=plan.status), b.at(1))
    assert settled.status.rollout == plan.status.rollout, "written once"


def test_a_promotion_pauses_at_its_last_step() -> None:
    changes = {"step": b.step(2, 50), "stages": {"Canary": 60.0}}
    s = with_crashes(
        b.second("Promote", wanted=b.spec(2, steps=b.STEPS), changes=changes), crash(ago=9), crash(pod="q")
    )
    to = b.moved(decide(s, b.START))
    assert to.step and (to.stage, to.step.weight, to.step.phase) == ("Canary", 50, "Paused")
    assert to.reason == "RepeatedCrashes"


def test_a_bake_pauses() -> None:
    wanted = b.spec(2, steps=b.STEPS, rollout={"bake": "1h"})
    changes = {"step": b.step(3, 100), "stages": {"Canary": 50.0}}
    s = with_crashes(
        b.second("Bake", wanted=wanted, changes=changes, assessment=b.judged("Successful")),
        crash(count=2, created=b.ago(20)),
    )
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.stage, to.step.phase, to.reason) == ("Bake", "Paused", "RepeatedCrashes")


@pytest.mark.parametrize(
    ("canary", "stable", "then"),
    [
        (1, 1, None),
        (2, 1, None),
        (3, 1, "ServerRestarted"),
        (4, 1, "RepeatedCrashes"),
        (10, 5, None),
        (1, 0, "ServerRestarted"),
        (2, 0, "RepeatedCrashes"),
        (0, 9, None),
    ],
)
def test_stables_ends_of_the_same_time_excuse_as_many_twice_over(
    canary: int, stable: int, then: str | None
) -> None:
    new = b.ago(9)
    of_canary = (crash(count=canary, created=new),) if canary else ()
    of_stable = (crash(count=stable, created=new),) if stable else ()
    to = b.moved(decide(on_trial(*of_canary, stable=of_stable), b.START))
    assert to.reason == then and to.step and (to.step.weight == 25) == (then is None)


def test_memory_and_a_signal_are_not_alike() -> None:
    killed = crash(count=2, created=b.ago(9), reason="OutOfMemory")
    s = on_trial(killed, stable=(crash(count=5, created=b.ago(9)),))
    to = b.moved(decide(s, b.START))
    assert to.reason == "RepeatedCrashes" and "2 times (2 for memory)" in (to.message or "")


def test_a_model_that_is_not_loaded_again_ended_alike() -> None:
    unloaded = crash(count=2, created=b.ago(9), reason="ModelNotLoaded")
    assert counted(decide(on_trial(unloaded), b.START)) == ({"ServerCrashed": 2}, {})


def test_what_is_proven_worse_goes_back_whatever_ended() -> None:
    s = on_trial(crash(count=5, created=b.ago(9)), assessment=b.judged("Failed"))
    assert b.moved(decide(s, b.START)).stage == "Revert"


def test_in_the_pause_it_is_measured_and_goes_back_when_proven_worse() -> None:
    metric = MetricStatus(
        name="errors", verdict="Inconclusive", reason="NotYetProven", canary=Counter(total=9)
    )
    measured = Assessment("Inconclusive", "NotYetProven", "", (metric,))
    s = on_trial(crash(count=2, created=b.ago(9)), assessment=None)
    s = replace(s, status=decide(s, b.START).status, assessment=measured)
    to = b.moved(decide(s, b.at(1)))
    assert to.reason == "RepeatedCrashes" and to.step and to.step.metrics == [metric]
    worse = replace(s, assessment=b.judged("Failed"))
    assert b.moved(decide(worse, b.at(2))).stage == "Revert"


def test_a_person_who_promotes_it_accepts_what_has_ended_and_no_more() -> None:
    s = on_trial(crash(count=2, created=b.ago(9)), assessment=b.judged("Inconclusive"))
    s = replace(s, status=decide(s, b.START).status)
    promote = Verb("promote", V2, "n1", "1/3")
    promoted = decide(replace(s, verbs=(promote,)), b.at(5))
    to = b.moved(promoted)
    assert to.step and to.step.weight == 25 and to.restarts and to.restarts.accepted == 2
    s = replace(s, status=promoted.status, verbs=(promote,))
    assert decide(s, b.at(6)).status.rollout == to, "it does not pause over the same ones"
    third = with_crashes(s, crash(ago=-6, count=3))
    fourth = with_crashes(s, crash(ago=-6, count=4))
    assert b.moved(decide(fourth, b.at(7))).reason == "RepeatedCrashes"
    plan = decide(third, b.at(7))
    assert b.moved(plan).step == to.step and counted(plan) == ({"ServerCrashed": 3}, {})


# --- what no request can have done


def gateway_counts(canary: dict[str, list[float]], scraped: float) -> Assessment:
    """What the gateway has counted since the step began, as last scraped ``scraped`` seconds after
    the end.
    """
    stable = {"gw-0/http": [900.0, 0.0, b.at(scraped).timestamp()]}
    metric = MetricStatus(
        name="errors",
        verdict="Inconclusive",
        reason="NoData",
        canary=Counter(total=sum(v[0] for v in canary.values()), last=canary),
        stable=Counter(total=900, last=stable),
    )
    return Assessment("Inconclusive", "NoData", "", (metric,))


def test_without_a_single_request_it_goes_back() -> None:
    s = on_trial(crash(ago=0, count=2, created=b.ago(9)), assessment=gateway_counts({}, -1))
    before = decide(s, b.START)
    assert b.moved(before).reason == "RepeatedCrashes" and b.moved(before).stage == "Canary", (
        "the gateway was not scraped since: a request may have ended them"
    )
    s = replace(s, status=before.status, assessment=gateway_counts({}, 5))
    plan = decide(s, b.at(6))
    assert (b.moved(plan).stage, b.moved(plan).outcome) == ("Revert", "RolledBack")
    assert b.moved(plan).reason == "RepeatedCrashes"


@pytest.mark.parametrize(
    "facts",
    [
        {"assessment": gateway_counts({"gw-0/http": [1.0, 1.0, 1.0]}, 5)},
        {"assessment": None},
        {"wanted": b.spec(2, steps=b.STEPS, rollout={"onFailure": "Pause"})},
        {"wanted": b.spec(2, rollout={"blueGreen": {}}), "at_step": b.step(weight=0, strategy="BlueGreen")},
    ],
    ids=["a request", "nothing counted", "onFailure", "a preview has a Service of its own"],
)
def test_where_a_request_may_have_been_a_person_is_asked(facts: dict[str, Any]) -> None:
    usual = {"assessment": gateway_counts({}, 5)}
    s = on_trial(crash(ago=0, count=2, created=b.ago(9)), **(usual | facts))
    to = b.moved(decide(s, b.at(6)))
    assert to.step and (to.stage, to.step.phase, to.reason) == ("Canary", "Paused", "RepeatedCrashes")


def test_requests_of_an_earlier_step_count_as_requests() -> None:
    s = on_trial(assessment=b.judged("Successful"))
    second = decide(s, b.START).status
    later = with_crashes(
        replace(s, status=second, assessment=gateway_counts({}, 30)), crash(ago=-9, count=2, created=b.ago(9))
    )
    assert b.moved(decide(later, b.at(31))).stage == "Canary"


# --- the shadow

SHADOWED = b.spec(2, steps=b.STEPS, rollout={"shadow": {"minSamples": 100}})


def in_shadow(phase: str, *canary: Crash, stable: tuple[Crash, ...] = (), wanted: Any = SHADOWED) -> Snapshot:
    at = ShadowStatus.model_validate({"phase": phase, "since": b.ago(5), "observedSince": b.ago(5)})
    at = at.model_copy(update={"outputs_hash": outputs_of(wanted.rollout.shadow), "mirror": "TraefikService"})
    s = b.second("Shadow", wanted=wanted, changes={"shadow": at}, assessment=b.judged("Successful"))
    return with_crashes(s, *canary, stable=stable)


@pytest.mark.parametrize("phase", ["Starting", "Mirroring", "Observing"])
def test_what_ends_in_the_shadow_while_stable_lives_is_rejected(phase: str) -> None:
    plan = decide(in_shadow(phase, crash(count=2, created=b.ago(9))), b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason) == ("Revert", "Rejected", "RepeatedCrashes")
    assert "SIGSEGV" in (to.message or "")


def test_what_ends_stable_too_pauses_the_shadow() -> None:
    new = b.ago(9)
    s = in_shadow("Observing", crash(count=4, created=new), stable=(crash(pod="s", created=new),))
    to = b.moved(decide(s, b.START))
    assert to.shadow and (to.stage, to.shadow.phase, to.reason) == ("Shadow", "Paused", "RepeatedCrashes")


def test_on_failure_pause_holds_in_the_shadow_too() -> None:
    wanted = b.spec(2, steps=b.STEPS, rollout={"shadow": {"minSamples": 100}, "onFailure": "Pause"})
    to = b.moved(decide(in_shadow("Observing", crash(count=2, created=b.ago(9)), wanted=wanted), b.START))
    assert to.shadow and (to.shadow.phase, to.reason) == ("Paused", "RepeatedCrashes")


def test_one_end_holds_the_shadow() -> None:
    to = b.moved(decide(in_shadow("Observing", crash()), b.START))
    assert to.shadow and (to.shadow.phase, to.reason) == ("Observing", "ServerRestarted")
    gone = b.moved(decide(in_shadow("Observing"), b.START))
    assert gone.shadow and gone.shadow.phase == "Leaving"


def test_past_its_shadow_by_hand_they_are_accepted() -> None:
    new = b.ago(9)
    s = in_shadow("Observing", crash(count=4, created=new), stable=(crash(pod="s", created=new),))
    s = replace(s, status=decide(s, b.START).status, verbs=(Verb("promote", V2, "n1", "shadow"),))
    to = b.moved(decide(s, b.at(1)))
    assert to.shadow and to.shadow.phase == "Leaving" and to.restarts and to.restarts.accepted == 2


# --- evidence


def test_the_revision_keeps_it_without_its_book_keeping() -> None:
    s = on_trial(crash(count=2, created=b.ago(9)))
    s = replace(s, status=decide(s, b.START).status)
    record = revision_status(s)[V2].restarts
    assert record and record.canary == ServerEnds(counts={"ServerCrashed": 2}, at=b.ago(1), message=SAID)


def test_it_is_told_in_words() -> None:
    assert (
        describe(ends(3, 1))
        == f"the revision's servers ended 3 times during its trial, stable's once; last: {SAID}"
    )
    assert describe(ends(0, 2)) == "the revision's servers ended never during its trial, stable's 2 times"


@pytest.mark.parametrize(
    "damage",
    [
        {"accepted": -1},
        {"canary": {"counts": {"ServerCrashed": -5}}},
        {"canary": {"at": "soon"}},
        {"stable": {"pods": {"p": -1}}},
        {"stable": {"at": "9999-12-31T23:59:59Z"}},
    ],
)
def test_a_damaged_record_is_dropped_and_the_rollout_stays(damage: dict[str, Any]) -> None:
    good = on_trial().status
    wire = good.wire()
    wire["rollout"]["restarts"] = damage
    repaired = sanitize(ModelDeploymentStatus.model_validate(wire))
    assert repaired == good
    wire["rollout"]["restarts"] = ends(2, 1).wire()
    whole = sanitize(ModelDeploymentStatus.model_validate(wire))
    assert whole.rollout and whole.rollout.restarts == ends(2, 1)


def test_a_server_without_a_pod_has_no_crash() -> None:
    assert Server().crash is None


# --- whole rollouts


def in_first_step(rollout: dict[str, Any]) -> ModelCluster:
    """Version 1 is stable, version 2 is judged in its first step, and everything speaks for it."""
    cluster = ModelCluster(b.spec(1, rollout=rollout))
    cluster.serve()
    cluster.edit(b.spec(2, rollout=rollout))
    cluster.verdict = None
    for _ in range(40):
        cluster.reconcile()
        assert cluster.status.rollout is not None
        if cluster.status.rollout.step and cluster.status.rollout.step.phase == "Observing":
            cluster.verdict = "Successful"
            return cluster
        cluster.kindly()
    raise AssertionError("no step is judged")


@pytest.mark.parametrize(
    "rollout",
    [
        {"canary": {"steps": b.STEPS}},
        {"blueGreen": {"for": "5s"}},
        {"abTest": {"headers": [{"name": "x-group", "value": "b"}]}},
    ],
    ids=["canary", "preview", "test"],
)
def test_a_rollout_waits_for_quiet_and_then_goes_on_by_itself(rollout: dict[str, Any]) -> None:
    cluster = in_first_step({**rollout, "progressDeadline": "1h"})
    flying = cluster.status.rollout
    assert flying is not None
    cluster.end_server(flying.revision or "")
    split = cluster.route
    for _ in range(60):
        cluster.reconcile()
        assert cluster.route == split and cluster.status.verdict == "ServerRestarted"
        cluster.kindly()
    for _ in range(40):
        cluster.tick(10)
        cluster.reconcile()
        cluster.kindly()
    assert cluster.status.stable and cluster.status.stable.revision == flying.revision


def test_one_that_crashes_every_few_minutes_and_is_ready_in_between_is_never_promoted() -> None:
    cluster = in_first_step({"canary": {"steps": b.STEPS}, "progressDeadline": "1h"})
    flying = cluster.status.rollout
    assert flying is not None
    for _ in range(3):
        cluster.end_server(flying.revision or "")
        for _ in range(30):
            cluster.reconcile()
            cluster.kindly()
    assert cluster.status.phase == "Paused" and cluster.route == ((V1, 95), (V2, 5))
    assert cluster.status.rollout and cluster.status.rollout.reason == "RepeatedCrashes"
