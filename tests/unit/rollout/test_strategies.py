"""Blue-green, A/B by header, the canary's own pods, bake: what each does step by step
(docs/explanation/strategies.md).
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from modelrollout.analysis.measurement import carried_of
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import (
    Counter,
    Draining,
    MetricStatus,
    ModelDeploymentStatus,
    RevisionRef,
    StepEvidence,
    UserPause,
    VerdictName,
)
from modelrollout.problem import Problem
from modelrollout.rollout.assessment import metrics_due
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired import desired
from modelrollout.rollout.desired.pods import replicas, replicas_with_traffic
from modelrollout.rollout.desired.traffic import header_revision, needs_measurement, preview_revision, split
from modelrollout.rollout.plan import Converge, Wait
from modelrollout.rollout.recovery import sanitize
from modelrollout.rollout.snapshot import Assessment, Server, Snapshot, Traffic
from modelrollout.rollout.stages.waiting import GRACE_SECONDS
from modelrollout.rollout.strategy import with_traffic
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)
BLUE = {"blueGreen": {"preview": {"http": {"hostnames": ["preview.example.com"]}}}}
HEADERS = [{"name": "x-group", "value": "b"}]


def blue_green(**more: Any) -> Any:
    return b.spec(2, rollout={"blueGreen": {**BLUE["blueGreen"], **more}, "progressDeadline": "1h"})


def ab_test(**more: Any) -> Any:
    return b.spec(2, rollout={"abTest": {"headers": HEADERS, **more}})


def beside(strategy: str, phase: str = "Observing", index: int = 0) -> Any:
    return b.step(index, 0, phase, strategy=strategy)


def pods(v1: tuple[int, int], v2: tuple[int, int]) -> dict[str, Server]:
    """(asked, ready) of both revisions."""
    return {V1: Server(v1[0], v1[1], None, v1[0]), V2: Server(v2[0], v2[1], None, v2[0])}


# --- blue-green


def test_a_preview_is_shown_and_takes_no_traffic_of_others() -> None:
    to = b.moved(decide(b.second("Evaluate", wanted=blue_green()), b.START))
    assert to.step and (to.stage, to.step.strategy, to.step.weight, to.step.phase) == (
        "Canary",
        "BlueGreen",
        0,
        "Shifting",
    )
    s = b.in_canary(wanted=blue_green(), at_step=beside("BlueGreen"))
    assert (
        split(s) == ((V1, 100),) and preview_revision(s) == V2 and replicas_with_traffic(s) == {V1: 2, V2: 2}
    )


@pytest.mark.parametrize("stage", ["Provision", "Evaluate", "Revert", "Done", "Failed"])
def test_without_a_trial_the_preview_leads_to_stable(stage: str) -> None:
    assert (
        preview_revision(
            b.second(stage, wanted=blue_green(), changes={"outcome": "RolledBack", "reason": "x"})
        )
        == V1
    )


def test_a_preview_without_ready_pods_leads_to_stable() -> None:
    assert (
        preview_revision(
            b.in_canary(wanted=blue_green(), at_step=beside("BlueGreen"), servers=pods((2, 2), (2, 0)))
        )
        == V1
    )


def test_only_blue_green_has_a_preview() -> None:
    assert preview_revision(b.in_canary()) is None and desired(b.in_canary(), b.START).preview is None


def test_a_proven_preview_is_promoted_all_at_once() -> None:
    s = b.in_canary(wanted=blue_green(), at_step=beside("BlueGreen"), assessment=b.judged("Successful"))
    assert b.moved(decide(s, b.START)).stage == "Promote"
    assert split(b.second("Promote", wanted=blue_green(), changes={"step": beside("BlueGreen")})) == (
        (V2, 100),
    )


def test_a_preview_with_a_time_goes_on_when_nothing_speaks_against_it() -> None:
    s = b.in_canary(
        wanted=blue_green(**{"for": "10m"}), at_step=beside("BlueGreen"), assessment=b.judged("Inconclusive")
    )
    early = decide(s, b.at(590))
    assert early.status.rollout and early.status.rollout.stage == "Canary"
    to = b.moved(decide(s, b.at(596)))
    assert to.stage == "Promote" and (to.history[-1].verdict, to.history[-1].reason) == (
        "Inconclusive",
        "PreviewEnded",
    )


def test_it_ends_not_before_its_time_however_short_the_deadline() -> None:
    spec = b.spec(2, rollout={"blueGreen": {"for": "10m"}, "progressDeadline": "1m"})
    s = b.in_canary(wanted=spec, at_step=beside("BlueGreen"), assessment=b.judged("Inconclusive"))
    assert b.moved(decide(s, b.at(300))).step == replace_measured(s, 300)


def replace_measured(s: Snapshot, at: float) -> Any:
    assert s.status.rollout and s.status.rollout.step
    return s.status.rollout.step.model_copy(update={"measured": stamp(b.at(at))})


def test_a_preview_that_cannot_be_measured_holds() -> None:
    s = b.in_canary(
        wanted=blue_green(**{"for": "10m"}), at_step=beside("BlueGreen"), assessment=b.judged("Error")
    )
    assert b.moved(decide(s, b.at(700))).stage == "Canary"
    late = b.moved(decide(s, b.at(3700)))
    assert late.step and (late.step.phase, late.reason) == ("Paused", "Inconclusive")


def test_without_a_time_a_preview_needs_a_verdict() -> None:
    s = b.in_canary(wanted=blue_green(), at_step=beside("BlueGreen"), assessment=b.judged("Inconclusive"))
    assert b.moved(decide(s, b.at(3000))).stage == "Canary"


def test_a_bad_preview_goes_back() -> None:
    s = b.in_canary(wanted=blue_green(), at_step=beside("BlueGreen"), assessment=b.judged("Failed"))
    assert b.moved(decide(s, b.START)).stage == "Revert"


def test_without_auto_promote_a_person_has_the_last_word() -> None:
    spec = blue_green(autoPromote=False)
    to = b.moved(
        decide(
            b.in_canary(wanted=spec, at_step=beside("BlueGreen"), assessment=b.judged("Successful")),
            b.START,
        )
    )
    assert to.step and (to.step.phase, to.step.index, to.step.strategy, to.reason) == (
        "Paused",
        1,
        "BlueGreen",
        "PauseStep",
    )
    waits = b.in_canary(
        wanted=spec,
        at_step=beside("BlueGreen", "Paused", 1),
        reason="PauseStep",
        assessment=b.judged("Successful"),
    )
    plan = decide(waits, b.at(100_000))
    assert plan.status.step == "2/2" and plan.status.phase == "Paused" and preview_revision(waits) == V2


# --- A/B by header


def test_a_test_takes_only_requests_with_its_headers() -> None:
    s = b.in_canary(wanted=ab_test(), at_step=beside("ABTest"))
    assert split(s) == ((V1, 100),) and header_revision(s) == V2
    assert (
        header_revision(b.in_canary(wanted=ab_test(), at_step=beside("ABTest"), servers=pods((2, 2), (2, 0))))
        is None
    ), "no pod would answer"
    assert (
        header_revision(
            b.second("Revert", wanted=ab_test(), changes={"step": beside("ABTest"), "outcome": "RolledBack"})
        )
        is None
    )


def test_a_test_stays_its_time_and_needs_a_verdict() -> None:
    s = b.in_canary(
        wanted=ab_test(**{"for": "10m"}), at_step=beside("ABTest"), assessment=b.judged("Successful")
    )
    early = decide(s, b.at(590)).status.rollout
    assert early and early.stage == "Canary"
    assert b.moved(decide(s, b.at(596))).stage == "Promote"
    assert b.moved(decide(replace(s, assessment=b.judged("Inconclusive")), b.at(700))).stage == "Canary"


def test_the_phase_says_which_trial_it_is() -> None:
    assert decide(b.in_canary(wanted=ab_test(), at_step=beside("ABTest")), b.START).status.phase == "Testing"
    assert (
        decide(b.in_canary(wanted=blue_green(), at_step=beside("BlueGreen")), b.START).status.phase
        == "Previewing"
    )


# --- another strategy under way


def test_the_trial_starts_over_in_another_strategy() -> None:
    s = b.in_canary(wanted=blue_green(), at_step=b.step(1, 25), assessment=b.judged("Successful"))
    to = b.moved(decide(s, b.START))
    assert to.step and (to.step.strategy, to.step.weight, to.step.phase, to.step.metrics) == (
        "BlueGreen",
        0,
        "Shifting",
        [],
    )
    back = b.moved(
        decide(b.in_canary(at_step=beside("BlueGreen"), assessment=b.judged("Successful")), b.START)
    )
    assert back.step and (back.step.strategy, back.step.index, back.step.weight) == ("Canary", 0, 5)


def test_but_what_waits_for_a_person_goes_on_waiting() -> None:
    s = b.in_canary(
        at_step=beside("BlueGreen", "Paused"), reason="AccuracyLow", assessment=b.judged("Successful")
    )
    assert b.moved(decide(s, b.START)).reason == "AccuracyLow"


# --- the canary's own pods


def scaled(
    ready: int,
    *,
    weight: int = 25,
    previous_weight: int = 5,
    phase: str = "Shifting",
    asked: int = 1,
    **step: Any,
) -> Snapshot:
    """8 replicas, pods by weight, on the way from 5 % (1 pod) to 25 % (2 pods)."""
    steps = [{"weight": 5}, {"weight": weight, **step}, {"weight": 50}]
    spec = b.spec(2, replicas=8, rollout={"canary": {"scale": "Weight", "steps": steps}})
    return b.in_canary(
        wanted=spec,
        at_step=b.step(1, weight, phase, previous_weight=previous_weight),
        servers=pods((8, 8), (asked, ready)),
    )


def test_pods_follow_the_weight() -> None:
    assert replicas_with_traffic(scaled(1)) == {V1: 8, V2: 2}
    assert replicas_with_traffic(scaled(1, replicas=5)) == {V1: 8, V2: 5}
    assert replicas_with_traffic(b.second("Provision", wanted=scaled(1).spec)) == {V1: 8, V2: 1}
    assert replicas_with_traffic(scaled(1, asked=6)) == {V1: 8, V2: 6}, (
        "nothing that has traffic is scaled down"
    )


def test_a_weight_rises_only_with_the_pods_for_it() -> None:
    assert split(scaled(1)) == ((V1, 95), (V2, 5))
    plan = decide(scaled(1), b.START)
    waits = b.condition(plan, "CanaryPassed")
    assert (waits.reason, waits.message) == (
        "ScalingUp",
        f"1 pods of {V2} are ready; the next weight needs 2",
    )
    assert split(scaled(2)) == ((V1, 75), (V2, 25))
    assert split(scaled(1, replicas=1)) == ((V1, 75), (V2, 25)), "spec asks for no more"
    assert split(scaled(1, phase="Observing")) == ((V1, 75), (V2, 25)), "a weight that was reached stays"
    assert split(scaled(0)) == ((V1, 100),)


def test_a_weight_skipped_by_hand_has_no_more_than_was_reached() -> None:
    from modelrollout.rollout.snapshot import Verb

    s = replace(scaled(1), verbs=(Verb("promote", V2, "n", "2/3"),))
    to = b.moved(decide(s, b.START)).step
    assert to and (to.weight, to.previous_weight) == (50, 5)


def counted(verdict: VerdictName, bad: int) -> Assessment:
    """100 requests, of which so many were bad, with the evidence that they are."""
    metric = MetricStatus(
        name="errors",
        verdict=verdict,
        reason="x",
        canary=Counter(total=100, bad=bad),
        stable=Counter(total=900),
        log_evidence=3.0,
    )
    return Assessment(
        verdict, "ErrorsHigh" if verdict == "Failed" else "ProvenNotWorse", "as it was measured", (metric,)
    )


def waiting(**rollout: Any) -> Snapshot:
    """5 % are proven, and the second pod for 25 % is still to come."""
    first = scaled(1)
    assert first.spec is not None and first.status.rollout is not None
    desired = first.spec.model_copy(update={"rollout": first.spec.rollout.model_copy(update=rollout)})
    s = b.in_canary(
        wanted=desired, at_step=b.step(0, 5), servers=first.servers, assessment=counted("Successful", 0)
    )
    return replace(s, status=decide(s, b.START).status, assessment=None)


def test_what_has_traffic_is_judged_while_a_weight_waits_for_pods() -> None:
    s = waiting()
    step = b.moved(decide(s, b.START)).step
    assert (
        step
        and (step.phase, step.index, step.weight, step.previous_weight) == ("Shifting", 1, 25, 5)
        and needs_measurement(s, s.traffic)
    )
    assert [m.canary for m in step.metrics] == [Counter(total=100)], "its counts go on"
    to = b.moved(decide(replace(s, assessment=counted("Failed", 90)), b.at(60)))
    assert (to.stage, to.outcome, to.reason) == ("Revert", "RolledBack", "ErrorsHigh")
    assert [(e.index, e.weight, e.verdict) for e in to.history] == [(0, 5, "Successful"), (0, 5, "Failed")]


def test_and_if_a_person_is_to_say_it_keeps_the_weight_that_it_has() -> None:
    s = waiting(on_failure="Pause")
    s = replace(s, status=decide(replace(s, assessment=counted("Failed", 90)), b.at(60)).status)
    step = s.status.rollout.step if s.status.rollout else None
    assert step and (step.phase, step.index, step.weight) == ("Paused", 0, 5)
    assert split(replace(s, servers=pods((8, 8), (2, 2)))) == ((V1, 95), (V2, 5)), "also when the pods come"


def test_its_evidence_counts_once() -> None:
    s = waiting()
    assert s.status.rollout is not None and s.status.rollout.step is not None
    step = with_traffic(s.status.rollout.step)
    assert (step.index, step.weight, step.observed_since) == (0, 5, b.step().observed_since)
    assert carried_of(s.status.rollout.history, step) == {}
    assert carried_of(s.status.rollout.history, s.status.rollout.step) == {"errors": [3.0]}


def test_the_next_weight_counts_for_itself() -> None:
    s = replace(waiting(), servers=pods((8, 8), (2, 2)), assessment=counted("Successful", 0))
    to = b.moved(decide(s, b.at(60))).step
    assert to and (to.phase, to.weight, to.metrics, to.observed_since) == ("Shifting", 25, [], None)
    s = replace(s, status=decide(s, b.at(60)).status, assessment=counted("Inconclusive", 0))
    to = b.moved(decide(s, b.at(61))).step
    assert to and (to.phase, to.weight) == ("Observing", 25)


def test_who_went_on_without_a_verdict_is_not_asked_again_at_the_weight_before() -> None:
    from modelrollout.rollout.snapshot import Verb

    s = b.in_canary(
        wanted=scaled(1).spec,
        at_step=b.step(0, 5),
        servers=scaled(1).servers,
        assessment=counted("Inconclusive", 9),
    )
    to = b.moved(decide(replace(s, verbs=(Verb("promote", V2, "n", "1/3"),)), b.START)).step
    assert to and (to.phase, to.weight, to.previous_weight, to.metrics) == ("Shifting", 25, 5, [])


def test_a_weight_whose_pods_never_come_pauses_at_the_one_before() -> None:
    to = b.moved(decide(scaled(1), b.at(3600)))
    assert to.step and (to.step.phase, to.step.index, to.step.weight, to.history[-1].reason) == (
        "Paused",
        0,
        5,
        "TrafficNotShifted",
    )


def test_provision_waits_for_the_pods_of_the_first_step_only() -> None:
    s = b.second("Provision", wanted=scaled(1).spec, servers=pods((8, 8), (1, 1)))
    assert b.moved(decide(s, b.START)).stage == "Canary"


def promoting(ready: int, **facts: Any) -> Snapshot:
    spec = b.spec(2, replicas=8, rollout={"canary": {"scale": "Weight"}, "progressDeadline": "10m"})
    changes = {"step": b.step(2, 50)}
    return b.second("Promote", wanted=spec, changes=changes, servers=pods((8, 8), (8, ready)), **facts)


def test_promotion_brings_all_pods_before_all_traffic() -> None:
    s = promoting(4)
    assert replicas_with_traffic(s)[V2] == 8 and split(s) == ((V1, 50), (V2, 50))
    assert b.moved(decide(s, b.START)).reason == "ScalingUp"
    assert split(promoting(8)) == ((V2, 100),)


def test_and_is_judged_meanwhile() -> None:
    assert needs_measurement(promoting(4), b.TAKEN) and not needs_measurement(promoting(8), b.TAKEN)
    to = b.moved(decide(promoting(4, assessment=b.judged("Failed")), b.START))
    assert (to.stage, to.outcome) == ("Revert", "RolledBack")


def test_pods_that_never_come_pause_the_trial() -> None:
    to = b.moved(decide(promoting(4), b.at(600)))
    assert to.step and (to.stage, to.step.phase, to.step.weight, to.history[-1].reason) == (
        "Canary",
        "Paused",
        50,
        "ScalingUp",
    )


def test_another_version_supersedes_a_promotion_that_waits_for_pods() -> None:
    s = promoting(4)
    to = b.moved(decide(replace(s, spec=b.spec(3, replicas=8)), b.START))
    assert (to.stage, to.outcome) == ("Revert", "Superseded")


# --- bake


COUNTED = StepEvidence(
    index=2,
    weight=50,
    verdict="Successful",
    reason="ProvenNotWorse",
    seconds=60,
    metrics=[
        MetricStatus(
            name="errors",
            verdict="Successful",
            reason="x",
            canary=Counter(total=9),
            stable=Counter(total=900, bad=3),
        )
    ],
)


def baking(*, bake: str | None = "30m", baked: float = 10, **facts: Any) -> Snapshot:
    """Version 2 has had all traffic for so many seconds."""
    rollout = (
        {"canary": {"steps": b.STEPS}, "progressDeadline": "10m"}
        | ({"bake": bake} if bake else {})
        | facts.pop("policy", {})
    )
    step = b.step(3, 100, since=b.ago(baked), observed_since=b.ago(baked)).model_copy(
        update=facts.pop("at_step", {})
    )
    usual = {"live_split": ((V2, 100),)}
    changes = {"step": step, "since": b.ago(baked)} | facts.pop("changes", {})
    return b.second("Bake", wanted=b.spec(2, rollout=rollout), changes=changes, **(usual | facts))


@pytest.mark.parametrize(
    ("metric", "then"),
    [("errors", "Bake"), ("clientErrors", "Bake"), ("accuracy", "Revert"), ("latency", "Revert")],
)
def test_errors_alone_take_nothing_back_while_all_requests_go_to_it(metric: str, then: str) -> None:
    """Who asks wrongly in the bake fails there and nowhere else: it is told, and a person
    decides.
    """
    assessment = Assessment(
        "Failed",
        "High",
        "worse",
        (MetricStatus(name=metric, verdict="Failed", reason="High", message="worse"),),
    )
    plan = decide(baking(assessment=assessment), b.START)
    assert b.moved(plan).stage == then and plan.events[0].type == "Warning"
    if then == "Bake":
        assert plan.status.phase == "Paused" and "all requests on this revision" in (
            b.moved(plan).message or ""
        )


def test_promotion_goes_on_to_bake_with_what_stable_did_last() -> None:
    s = b.second("Promote", wanted=baking().spec, changes={"step": b.step(2, 50), "history": [COUNTED]})
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert (
        to.step
        and (to.stage, to.step.weight) == ("Bake", 100)
        and to.step.metrics[0].stable == Counter(total=900, bad=3)
    )
    assert to.step.metrics[0].canary is None and plan.status.stable == b.ref(1), (
        "stable is the former one until then"
    )


def test_a_short_pause_before_promotion_does_not_stand_for_what_stable_did() -> None:
    """The record of a pause at the last weight that a person ended after seconds: nothing could be
    proven against three requests.
    """
    [metric] = COUNTED.metrics
    earlier = COUNTED.model_copy(
        update={
            "index": 1,
            "weight": 25,
            "metrics": [metric.model_copy(update={"stable": Counter(total=5000)})],
        }
    )
    pause = COUNTED.model_copy(
        update={"index": 3, "metrics": [metric.model_copy(update={"stable": Counter(total=3)})]}
    )
    s = b.second(
        "Promote",
        wanted=baking().spec,
        changes={"step": b.step(3, 50, "Paused"), "history": [earlier, COUNTED, pause]},
    )
    to = b.moved(decide(s, b.START))
    assert to.step and to.step.metrics[0].stable == Counter(total=900, bad=3)


def test_a_bake_keeps_what_stable_did_over_its_initial_delay() -> None:
    s = baking(
        at_step={"metrics": [COUNTED.metrics[0].model_copy(update={"canary": None})]},
        policy={"analysis": {"initialDelay": "1m"}},
    )
    due = metrics_due(s, b.at(1), "traefik")
    assert isinstance(due, Assessment) and due.reason == "InitialDelay"
    to = b.moved(decide(replace(s, assessment=due), b.at(1)))
    assert to.step and to.step.metrics[0].stable == Counter(total=900, bad=3)


def test_without_bake_promotion_is_the_end() -> None:
    assert b.moved(decide(b.second("Promote", changes={"step": b.step(2, 50)}), b.START)).stage == "Done"


def test_a_first_version_and_a_proven_rollback_have_nothing_to_bake_for() -> None:
    state = b.status(None, rollout=b.rollout("Promote", 1))
    s = b.snapshot(
        b.spec(1, rollout={"bake": "30m"}),
        state,
        revisions=(b.revision(1),),
        servers={V1: b.ready()},
        traffic=b.TAKEN,
    )
    assert b.moved(decide(s, b.START)).stage == "Done"
    assert (
        b.moved(
            decide(b.second("Promote", wanted=baking().spec, changes={"mode": "Rollback"}), b.START)
        ).stage
        == "Done"
    )


def test_in_bake_both_have_their_pods_and_one_the_traffic() -> None:
    s = baking(servers=pods((6, 6), (4, 4)))
    assert (
        split(s) == ((V2, 100),)
        and replicas_with_traffic(s) == {V1: 6, V2: 2}
        and needs_measurement(s, s.traffic)
    )
    actual = desired(s, b.at(60))
    assert actual.servers == {V1: 6, V2: 2} and actual.budget == V2 and actual.selector == V2
    assert replicas(baking(baked=1, servers=pods((6, 6), (4, 4))), b.START)[V2] == 4, (
        "not before an autoscaler has seen the load"
    )


def test_in_bake_an_autoscaler_looks_at_the_pods_that_have_the_traffic() -> None:
    plan = decide(baking(servers=pods((6, 6), (4, 4))), b.START)
    assert V2 in plan.status.selector and plan.status.replicas == 4
    assert (plan.status.phase, plan.status.step, plan.status.weight) == ("Baking", "bake", 100)
    assert b.condition(plan, "Ready").status == "False" and b.condition(plan, "Available").status == "True"


def test_a_regression_in_bake_gives_everything_back() -> None:
    to = b.moved(decide(baking(assessment=b.judged("Failed")), b.START))
    assert (to.stage, to.outcome, to.history[-1].weight) == ("Revert", "RolledBack", 100)
    assert split(b.second("Revert", changes={"outcome": "RolledBack", "reason": "x"})) == ((V1, 100),)


@pytest.mark.parametrize("verdict", ["Successful", "Inconclusive"])
def test_a_bake_ends_well_when_its_time_is_over(verdict: VerdictName) -> None:
    assert decide(baking(assessment=b.judged(verdict)), b.at(60)).status.stable == b.ref(1)
    plan = decide(baking(assessment=b.judged(verdict)), b.at(1791))
    to = b.moved(plan)
    assert (
        (to.stage, to.outcome) == ("Done", "Promoted")
        and plan.status.stable
        and plan.status.stable.revision == V2
    )
    assert [d.revision for d in plan.status.draining] == [V1]


def test_a_bake_that_could_not_be_measured_does_not_end_well() -> None:
    s = baking(assessment=b.judged("Error"))
    assert b.moved(decide(s, b.at(1900))).stage == "Bake"
    to = b.moved(decide(s, b.at(2391)))
    assert to.step and (to.stage, to.step.phase, to.reason) == ("Bake", "Paused", "Inconclusive")
    strict = baking(assessment=b.judged("Error"), policy={"onInconclusive": "Rollback"})
    assert b.moved(decide(strict, b.at(2391))).stage == "Revert"


def test_one_look_at_the_end_is_enough() -> None:
    """The counts go back to the beginning of the bake."""
    s = baking(
        assessment=b.judged("Inconclusive"),
        changes={"reason": "ProviderUnreachable", "message": "it was down"},
    )
    assert b.moved(decide(s, b.at(1900))).stage == "Done"


def test_a_bake_that_is_taken_out_of_spec_ends() -> None:
    assert b.moved(decide(baking(bake=None, assessment=b.judged("Error")), b.START)).stage == "Done"


def test_another_version_ends_a_bake_by_going_back() -> None:
    to = b.moved(decide(replace(baking(), spec=b.spec(1)), b.START))
    assert (to.stage, to.outcome) == ("Revert", "Superseded")


def test_a_baking_revision_without_pods_gives_way_until_all_are_back() -> None:
    gone = baking(servers=pods((2, 2), (2, 0)))
    assert split(gone) == ((V1, 100),)
    assert b.moved(decide(gone, b.START)).reason == "NoReadyPods"
    some = baking(servers=pods((2, 2), (2, 1)), live_split=((V1, 100),))
    assert split(some) == ((V1, 100),) and split(replace(some, live_split=((V2, 100),))) == ((V2, 100),)
    assert split(baking(servers=pods((2, 2), (2, 2)), live_split=((V1, 100),))) == ((V2, 100),)


def test_pause_holds_a_bake_and_it_is_judged_all_the_same() -> None:
    pending = {"paused_by_user": UserPause(since=b.ago(5), by="n")}
    plan = decide(baking(changes=pending, assessment=b.judged("Successful")), b.at(100_000))
    assert b.moved(plan).stage == "Bake" and plan.status.phase == "Paused"
    assert b.moved(decide(baking(changes=pending, assessment=b.judged("Failed")), b.START)).stage == "Revert"


def test_a_paused_bake_writes_only_news() -> None:
    s = baking(
        at_step={"phase": "Paused", "measured": b.ago(1)},
        changes={"reason": "Inconclusive"},
        assessment=b.judged("Error"),
    )
    written = decide(s, b.START).status
    assert isinstance(decide(replace(s, status=written), b.at(1)), Converge)


# --- what drains


def drained(*entries: tuple[str, float], **changes: Any) -> Snapshot:
    """Version 2 is stable; these keep their pods for so many seconds more."""
    drains = [Draining(revision=name, number=1, until=b.ago(-left)) for name, left in entries]
    state = b.status(
        2, rollout=b.rollout("Done", 2, outcome="Promoted", step=None), draining=drains
    ).model_copy(update=changes)
    servers = {V1: Server(5, 5, None, 5), V2: Server(4, 4, None, 4), "digits-other": Server(1, 1, None, 1)}
    return b.snapshot(
        b.spec(2),
        state,
        revisions=(b.revision(1, "Retired"), b.revision(2, "Promoted")),
        servers=servers,
        traffic=b.TAKEN,
    )


def test_each_drain_has_its_own_end() -> None:
    s = drained((V1, 60), ("digits-other", 20))
    assert replicas(s, b.START) == {V2: 4, V1: 5, "digits-other": 1}
    assert replicas(s, b.at(30)) == {V2: 4, V1: 5}
    assert replicas(s, b.at(61)) == {V2: 2}, "and now what took over follows spec again"


def test_the_next_end_is_waited_for() -> None:
    settled = settle(drained((V1, 60), ("digits-other", 20)))
    assert settled.requeue_after == pytest.approx(20.0)


def settle(s: Snapshot, now: Any = b.START) -> Converge:
    for _ in range(5):
        plan = decide(s, now)
        if isinstance(plan, Converge):
            return plan
        s = replace(s, status=plan.status)
    raise AssertionError("status does not settle")


def test_a_status_of_the_version_before_goes_on() -> None:
    """A canary in flight: no strategy, no former weight, no draining."""
    told = b.in_canary(at_step=b.step(1, 25, "Observing")).status.wire()
    for gone in ("strategy", "previousWeight"):
        del told["rollout"]["step"][gone]
    del told["draining"], told["restarts"], told["rollout"]["proven"]
    s = dataclasses.replace(
        b.in_canary(), status=ModelDeploymentStatus.model_validate(told), assessment=b.judged("Successful")
    )
    to = b.moved(decide(s, b.START))
    assert to.step and (to.step.weight, to.step.previous_weight) == (50, 25)


def test_a_scale_down_delay_is_the_formers() -> None:
    spec = b.spec(2, rollout={"scaleDownDelay": "10m"})
    plan = decide(b.second("Promote", wanted=spec), b.START)
    assert [(d.revision, d.until) for d in plan.status.draining] == [(V1, b.ago(-600))]
    failed = decide(
        b.second("Revert", wanted=spec, changes={"outcome": "RolledBack", "reason": "x"}), b.START
    )
    assert [(d.revision, d.until) for d in failed.status.draining] == [(V2, b.ago(-3))], (
        "a failed one gives its GPUs back at once"
    )


def test_a_second_loss_of_traffic_does_not_shorten_the_first_drain() -> None:
    s = b.second("Revert", changes={"outcome": "RolledBack", "reason": "x"})
    s = replace(
        s,
        status=s.status.model_copy(
            update={"draining": [Draining(revision="digits-other", number=1, until=b.ago(-100))]}
        ),
    )
    assert [(d.revision, d.until) for d in decide(s, b.START).status.draining] == [
        ("digits-other", b.ago(-100)),
        (V2, b.ago(-3)),
    ]


def test_damaged_drains_are_dropped() -> None:
    bad = ModelDeploymentStatus.model_validate({"draining": [{"revision": V1, "number": 1, "until": "soon"}]})
    assert sanitize(bad).draining == []


# --- deadlines and those who look


def test_time_without_a_pass_takes_no_stage_its_deadline() -> None:
    servers = pods((2, 2), (2, 0))
    s = b.second("Provision", servers=servers, leading_since=b.at(7000))
    assert b.moved(decide(replace(s, leading_since=None), b.at(7010))).stage == "Failed"
    still = decide(s, b.at(7010)).status.rollout
    assert still and still.stage == "Provision"
    assert b.moved(decide(s, b.at(7000 + GRACE_SECONDS + 1))).stage == "Failed"


# --- a spec that cannot be read


def unreadable(s: Snapshot, **changes: Any) -> Snapshot:
    return replace(s, spec=None, parse_error="spec.rollout: not valid", exact_weights=False, **changes)


def test_with_an_unreadable_spec_abort_gives_stable_everything() -> None:
    from modelrollout.rollout.snapshot import Verb

    s = unreadable(b.in_canary(verbs=(Verb("promote", V2, "p", "1/3"), Verb("abort", V2, "n"))))
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, plan.status.handled_verbs) == ("Revert", "Aborted", [f"abort:{V2}:n"])
    going = replace(s, status=plan.status, traffic=Traffic(False, "not accepted yet"))
    shares = settle(going)
    assert shares.desired.split == ((V1, 100),) and shares.desired.selector == V1 and shares.requeue_after
    assert shares.desired.servers == {V1: 2, V2: 2}
    assert b.moved(decide(replace(going, traffic=b.TAKEN), b.at(5))).stage == "Failed"


def test_without_one_nothing_is_touched() -> None:
    s = unreadable(b.in_canary(assessment=Assessment("Failed", "ErrorsHigh", "")))
    told = decide(s, b.START).status
    quiet = decide(replace(s, status=told), b.START)
    assert quiet.status == told and isinstance(quiet, Wait) and quiet.requeue_after is None
    assert Problem("InvalidSpec", "x").reason == b.condition(quiet, "Ready").reason


def test_since_when_a_revision_is_retired_stands_in_it() -> None:
    from modelrollout.rollout.desired.revisions import revision_status

    state = b.status(2, rollout=b.rollout("Done", 2, outcome="Promoted"))
    state = state.model_copy(update={"stable": RevisionRef(revision=V2, number=2, since=b.ago(7))})
    s = b.snapshot(b.spec(2), state, revisions=(b.revision(1, "Stable"), b.revision(2, "Canary")))
    assert revision_status(s)[V1].retired == b.ago(7)
