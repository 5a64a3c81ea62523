"""canary: traffic in steps, each judged before the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.analysis.metrics import MAX_METRICS
from modelrollout.analysis.process_groups import FOLLOWED, GROUPS
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import Counter, MetricStatus, StepEvidence, Strategy, VerdictName
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.plan import Converge, Write
from modelrollout.rollout.snapshot import Assessment, Server, Snapshot, Traffic
from modelrollout.rollout.status import derive_status
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)
NOT_READY = {V1: b.ready(), V2: Server(2, 0, Problem("ServerCrashed", "ended with code 1"), 2)}


def policy(**rollout: Any) -> Any:
    return b.spec(2, rollout={"canary": {"steps": b.STEPS}, "progressDeadline": "10m", **rollout})


# --- Shifting: the data plane has to take the weight up before anything is counted


def shifting(**facts: Any) -> Snapshot:
    return b.in_canary(wanted=policy(), at_step=b.step(phase="Shifting"), **facts)


def test_a_weight_is_observed_once_the_route_is_taken_up_and_settled() -> None:
    to = b.moved(decide(shifting(assessment=b.judged("Inconclusive")), b.START)).step
    assert to and (to.phase, to.observed_since, to.weight) == ("Observing", stamp(b.START), 5)


def test_the_first_measurement_is_only_the_baseline() -> None:
    """A verdict on what came before this weight is no verdict on it."""
    assert b.moved(decide(shifting(assessment=b.judged("Failed")), b.START)).stage == "Canary"


@pytest.mark.parametrize(
    "facts",
    [{"traffic": Traffic(False, "not accepted yet")}, {"settle_seconds": 60.0}, {"servers": NOT_READY}],
    ids=["route", "delay", "pods"],
)
def test_until_then_nothing_is_counted(facts: dict[str, Any]) -> None:
    s = shifting(assessment=b.judged("Successful"), **facts)
    to = b.moved(decide(s, b.START))
    assert to.step and to.step.phase == "Shifting"


def test_a_gateway_that_refuses_the_route_is_told() -> None:
    s = shifting(traffic=Traffic(False, "refused", Problem("RouteNotAccepted", "no such listener")))
    assert b.condition(decide(s, b.START), "CanaryPassed").reason == "RouteNotAccepted"


def test_a_canary_without_ready_pods_is_told_and_has_no_traffic() -> None:
    s = shifting(servers=NOT_READY)
    assert split(s) == ((V1, 100),)
    assert b.condition(decide(s, b.START), "CanaryPassed").reason == "ServerCrashed"


def test_a_weight_that_is_never_taken_up_ends_without_a_verdict_at_the_deadline() -> None:
    s = shifting(traffic=Traffic(False, "not accepted yet"))
    to = b.moved(decide(s, b.at(591)))
    assert to.step and (to.stage, to.step.phase, to.history[-1].reason) == (
        "Canary",
        "Paused",
        "TrafficNotShifted",
    )
    strict = b.in_canary(
        wanted=policy(onInconclusive="Rollback"), at_step=b.step(phase="Shifting"), traffic=Traffic(False)
    )
    assert b.moved(decide(strict, b.at(591))).stage == "Revert"


# --- Observing


def test_a_successful_verdict_leads_to_the_next_weight_and_is_recorded() -> None:
    plan = decide(b.in_canary(assessment=b.judged("Successful")), b.START)
    to = b.moved(plan)
    assert to.step and (to.step.index, to.step.weight, to.step.phase, to.step.metrics) == (
        1,
        25,
        "Shifting",
        [],
    )
    assert [(e.index, e.weight, e.verdict, e.reason) for e in to.history] == [
        (0, 5, "Successful", "ProvenNotWorse")
    ]
    assert to.history[0].seconds == 10.0


def test_the_last_step_leads_to_promotion() -> None:
    to = b.moved(decide(b.in_canary(at_step=b.step(2, 50), assessment=b.judged("Successful")), b.START))
    assert to.stage == "Promote"


def test_a_step_of_weight_100_is_promotion() -> None:
    spec = b.spec(2, steps=[{"weight": 50}, {"weight": 100}])
    assert (
        b.moved(
            decide(
                b.in_canary(wanted=spec, at_step=b.step(0, 50), assessment=b.judged("Successful")), b.START
            )
        ).stage
        == "Promote"
    )


def test_a_weight_with_for_stays_that_long_however_good_it_is() -> None:
    spec = b.spec(2, steps=[{"weight": 5, "for": "10m"}, {"weight": 50}])
    s = b.in_canary(wanted=spec, assessment=b.judged("Successful"))
    assert b.moved(decide(s, b.at(594))).step == s.status.rollout.step.model_copy(
        update={"measured": stamp(b.at(594))}
    )  # type: ignore[union-attr]
    after = b.moved(decide(s, b.at(595))).step
    assert after and after.weight == 50


def test_proven_worse_gives_traffic_back_before_the_rollout_ends() -> None:
    plan = decide(b.in_canary(assessment=b.judged("Failed")), b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason) == ("Revert", "RolledBack", "AccuracyLow")
    assert to.history[-1].verdict == "Failed"
    assert [(e.type, e.reason) for e in plan.events] == [("Warning", "AccuracyLow")]


def test_fail_wins_at_any_time_also_in_a_pause() -> None:
    s = b.in_canary(at_step=b.step(phase="Paused"), reason="PauseStep", assessment=b.judged("Failed"))
    assert b.moved(decide(s, b.START)).stage == "Revert"


def failed(**metrics: str) -> Assessment:
    """Metrics by name that failed, with their reasons."""
    actual = tuple(
        MetricStatus(name=name, verdict="Failed", reason=reason, message="as counted")
        for name, reason in metrics.items()
    )
    return Assessment("Failed", actual[0].reason, actual[0].message, actual)


@pytest.mark.parametrize(
    ("strategy", "actual", "then"),
    [
        # a weight divides what is asked wrongly as it divides the rest
        ("Canary", failed(errors="ErrorsHigh"), "Revert"),
        ("ABTest", failed(errors="ErrorsHigh"), "Canary"),
        ("BlueGreen", failed(errors="ErrorsHigh"), "Canary"),
        ("Canary", failed(clientErrors="ClientErrorsHigh"), "Revert"),
        ("ABTest", failed(clientErrors="ClientErrorsHigh"), "Canary"),
        ("BlueGreen", failed(errors="ErrorsHigh", clientErrors="ClientErrorsHigh"), "Canary"),
        ("ABTest", failed(refusedRequests="RefusedRequestsHigh"), "Canary"),
        ("ABTest", failed(clientErrors="ClientErrorsHigh", latency="LatencyHigh"), "Revert"),
        ("ABTest", failed(accuracy="AccuracyLow"), "Revert"),  # labels come from who may send them
        ("ABTest", failed(errors="ErrorsHigh", accuracy="AccuracyLow"), "Revert"),
        ("Canary", failed(errors="LimitExceeded"), "Canary"),
        ("Canary", failed(accuracy="LimitExceeded", latency="LimitExceeded"), "Canary"),
        ("Canary", failed(errors="LimitExceeded", latency="LatencyHigh"), "Revert"),
    ],
)
def test_what_clients_may_have_caused_holds_and_takes_nothing_back(
    strategy: Strategy, actual: Assessment, then: str
) -> None:
    trial: dict[str, Any] = {
        "Canary": {"canary": {"steps": b.STEPS}},
        "ABTest": {"abTest": {"headers": [{"name": "x-group", "value": "beta"}]}},
        "BlueGreen": {"blueGreen": {}},
    }[strategy]
    s = b.in_canary(wanted=b.spec(2, rollout=trial), at_step=b.step(strategy=strategy), assessment=actual)
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.stage == then and [(e.type, e.reason) for e in plan.events] == [("Warning", actual.reason)]
    if then == "Canary":
        assert (
            to.step
            and (to.step.phase, to.reason) == ("Paused", actual.reason)
            and "promote or abort" in (to.message or "")
        )
        assert b.condition(plan, "Stalled").status == "True"
        worse = replace(s, status=plan.status, assessment=failed(errors="ErrorsHigh", accuracy="AccuracyLow"))
        assert b.moved(decide(worse, b.START)).stage == "Revert", (
            "what is proven meanwhile takes everything back"
        )


@pytest.mark.parametrize(
    ("actual", "then"),
    [(failed(errors="ErrorsHigh"), "Canary"), (failed(latency="LatencyHigh"), "Revert")],
)
def test_clients_that_name_their_sessions_choose_the_revision(actual: Assessment, then: str) -> None:
    traffic = {
        "gateway": {"name": "public"},
        "http": {"hostnames": ["digits.x"]},
        "sessionAffinity": {"cookie": "sid"},
    }
    s = b.in_canary(wanted=b.spec(2, traffic=traffic, steps=b.STEPS), assessment=actual)
    assert b.moved(decide(s, b.START)).stage == then


def test_on_failure_pause_holds_for_a_person() -> None:
    s = b.in_canary(wanted=policy(onFailure="Pause"), assessment=b.judged("Failed"))
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.step.phase, to.step.weight, to.reason) == ("Paused", 5, "AccuracyLow")
    assert (
        b.condition(plan, "Stalled").status == "True"
        and "promote or abort" in b.condition(plan, "Stalled").message
    )


@pytest.mark.parametrize("verdict", ["Failed", "Successful", "Inconclusive", "Error"])
def test_a_pause_for_a_cause_never_ends_by_itself(verdict: VerdictName) -> None:
    """Not even in a pause step whose time is over."""
    spec = b.spec(
        2,
        rollout={
            "canary": {"steps": [{"weight": 5}, {"pause": {"duration": "1m"}}, {"weight": 50}]},
            "onFailure": "Pause",
        },
    )
    s = b.in_canary(
        wanted=spec, at_step=b.step(1, 5, "Paused"), reason="AccuracyLow", assessment=b.judged(verdict)
    )
    assert b.moved(decide(s, b.at(7200))).step == b.step(
        1, 5, "Paused", metrics=[], measured=_measured(s, b.at(7200))
    )


def _measured(s: Snapshot, now: Any) -> str | None:
    rollout = decide(s, now).status.rollout
    return rollout.step.measured if rollout and rollout.step else None


@pytest.mark.parametrize(
    ("verdict", "said"), [("Error", "ProviderUnreachable"), ("Inconclusive", "in progress")]
)
def test_no_verdict_neither_promotes_nor_rolls_back(verdict: VerdictName, said: str) -> None:
    """What keeps evidence from coming is told; that there is too little of it yet is how every step
    begins.
    """
    s = b.in_canary(wanted=policy(), assessment=b.judged(verdict))
    plan = decide(s, b.at(500))
    to = b.moved(plan)
    assert to.step and (to.stage, to.step.weight, to.step.phase) == ("Canary", 5, "Observing")
    assert plan.status.verdict == said


def test_after_the_deadline_no_verdict_pauses() -> None:
    plan = decide(b.in_canary(wanted=policy(), assessment=b.judged("Error")), b.at(591))
    to = b.moved(plan)
    assert (
        to.step
        and (to.step.phase, to.reason) == ("Paused", "Inconclusive")
        and "progressDeadline 10m" in (to.message or "")
    )
    assert to.history[-1].verdict == "Inconclusive" and plan.status.phase == "Paused"


def test_after_the_deadline_no_verdict_rolls_back_if_spec_says_so() -> None:
    to = b.moved(
        decide(b.in_canary(wanted=policy(onInconclusive="Rollback"), assessment=b.judged("Error")), b.at(591))
    )
    assert (to.stage, to.outcome, to.reason) == ("Revert", "RolledBack", "ProviderUnreachable")


def test_nothing_measured_at_all_is_no_verdict_either() -> None:
    s = b.in_canary(wanted=policy(), assessment=None)
    assert b.moved(decide(s, b.START)).reason == "NoData"
    assert b.moved(decide(s, b.at(591))).reason == "Inconclusive"


def test_a_canary_whose_pods_are_gone_gets_no_more_on_old_evidence() -> None:
    s = b.in_canary(wanted=policy(), servers=NOT_READY, assessment=b.judged("Successful"))
    to = b.moved(decide(s, b.START))
    assert to.step and (to.step.weight, to.reason) == (5, "ServerCrashed")
    assert b.moved(decide(s, b.at(591))).history[-1].reason == "ServerCrashed"


def test_but_what_is_proven_worse_still_goes_back() -> None:
    assert (
        b.moved(decide(b.in_canary(servers=NOT_READY, assessment=b.judged("Failed")), b.START)).stage
        == "Revert"
    )


# --- measurements in status


def metric(verdict: VerdictName, total: float) -> MetricStatus:
    return MetricStatus(name="accuracy", verdict=verdict, reason="TooFewSamples", canary=Counter(total=total))


def measured(seconds_ago: float, *metrics: MetricStatus) -> Snapshot:
    """A step that was last written so long ago, and what is measured now."""
    at_step = b.step(metrics=[metric("Inconclusive", 10)], measured=b.ago(seconds_ago))
    s = b.in_canary(
        at_step=at_step,
        assessment=Assessment("Inconclusive", "TooFewSamples", "", (metric("Inconclusive", 10),)),
    )
    written = derive_status(s, s.status, b.START)
    return replace(s, status=written, assessment=Assessment("Inconclusive", "TooFewSamples", "", metrics))


def test_a_look_without_news_writes_nothing() -> None:
    plan = decide(measured(30, metric("Inconclusive", 20)), b.at(20))
    assert plan.desired is not None and plan.requeue_after == 5.0


@pytest.mark.parametrize(
    ("at", "verdict", "after"), [(9, "Inconclusive", 1), (9, "Error", 5), (11, "Inconclusive", 5)]
)
def test_a_step_is_looked_at_more_often_at_first(at: float, verdict: str, after: float) -> None:
    """It is observed since five seconds before START."""
    s = b.in_canary(wanted=policy(analysis={"interval": "5s"}), assessment=b.judged(verdict))
    s = replace(s, status=decide(s, b.START).status)
    assert decide(s, b.at(at)).requeue_after == after


@pytest.mark.parametrize("interval", ["5s", "30s"])
def test_trouble_is_looked_at_again_at_the_same_interval(interval: str) -> None:
    s = b.in_canary(wanted=policy(analysis={"interval": interval}), assessment=b.judged("Error"))
    s = replace(s, status=decide(s, b.START).status)
    assert decide(s, b.at(1)).requeue_after == float(interval[:-1])


def test_a_measurement_is_written_once_a_minute() -> None:
    to = b.moved(decide(measured(61, metric("Inconclusive", 20)), b.at(0.5)))
    assert to.step and to.step.metrics[0].canary and to.step.metrics[0].canary.total == 20


def test_the_last_counts_before_pods_changed_and_the_first_baseline_after_it_are_news() -> None:
    """Written at once: what the operator does not write is lost."""

    def at(began: float, scraped: float, reason: str) -> bool:
        counted = [
            MetricStatus(name="errors", verdict="Inconclusive", reason="x", canary=c)
            for c in (Counter(began=1, scraped=5), Counter(began=began, scraped=scraped))
        ]
        s = b.in_canary(at_step=b.step(metrics=[counted[0]], measured=b.ago(1)))
        s = replace(s, status=derive_status(s, s.status, b.START))
        s = replace(s, assessment=Assessment("Inconclusive", reason, "", (counted[1],)))
        return isinstance(decide(s, b.at(0.5)), Write)

    assert not at(1, 6, "NotYetProven")
    assert at(1, 6, "InitialDelay") and not at(1, 5, "InitialDelay")
    assert at(40, 40, "NotYetProven")


def test_trouble_with_a_metric_is_news() -> None:
    to = b.moved(decide(measured(1, metric("Error", 20)), b.at(0.5)))
    assert to.step and to.step.metrics[0].verdict == "Error"


def test_raw_counters_are_not_kept_in_the_history() -> None:
    canary = Counter(total=100, bad=1, last={"pod-a": [100.0, 1.0, 5.0]}, scraped=5.0)
    assessment = Assessment(
        "Successful", "", "", (MetricStatus(name="errors", verdict="Successful", reason="x", canary=canary),)
    )
    rollout = b.moved(decide(b.in_canary(assessment=assessment), b.START)).history[0].metrics[0].canary
    assert rollout == Counter(total=100, bad=1)


# --- pause steps

PAUSED = [{"weight": 5}, {"pause": {}}, {"weight": 50}]
TIMED = [{"weight": 5}, {"pause": {"duration": "10m"}}, {"weight": 50}]


def test_a_pause_keeps_the_weight() -> None:
    to = b.moved(
        decide(b.in_canary(wanted=b.spec(2, steps=PAUSED), assessment=b.judged("Successful")), b.START)
    )
    assert to.step and (to.step.index, to.step.weight, to.step.phase, to.reason) == (
        1,
        5,
        "Paused",
        "PauseStep",
    )


def test_a_pause_without_a_duration_waits_for_promote_and_says_so_quietly() -> None:
    s = b.in_canary(
        wanted=b.spec(2, steps=PAUSED),
        at_step=b.step(1, 5, "Paused"),
        reason="PauseStep",
        assessment=b.judged("Successful"),
    )
    plan = decide(s, b.at(100_000))
    assert b.moved(plan).step and plan.status.weight == 5 and plan.status.phase == "Paused"
    assert b.condition(plan, "Stalled").status == "False", "a pause that spec asks for is no stall"


def test_a_pause_with_a_duration_ends_by_itself() -> None:
    s = b.in_canary(wanted=b.spec(2, steps=TIMED), at_step=b.step(1, 5, "Paused"), reason="PauseStep")
    assert decide(s, b.at(589)).status.weight == 5
    to = b.moved(decide(s, b.at(591))).step
    assert to and (to.index, to.weight, to.phase) == (2, 50, "Shifting")


def test_a_canary_is_judged_during_a_pause_too() -> None:
    """Counts need a baseline in status, or a regression in a long pause would never be seen."""
    assessment = Assessment("Inconclusive", "TooFewSamples", "", (metric("Inconclusive", 0),))
    s = b.in_canary(
        wanted=b.spec(2, steps=PAUSED),
        at_step=b.step(1, 5, "Paused"),
        reason="PauseStep",
        assessment=assessment,
    )
    to = b.moved(decide(s, b.START))
    assert to.step and to.step.metrics == [metric("Inconclusive", 0)] and to.reason == "PauseStep"


# --- no verdict: errors that last, evidence that comes too late, and a policy that goes on all the
# same


def trouble(seconds_ago: float, **fields: Any) -> Assessment:
    """A metric that has been in Error for so long."""
    metric = MetricStatus(
        name="errors", verdict="Error", reason="ProviderTimeout", since=b.ago(seconds_ago), **fields
    )
    return Assessment("Error", "ProviderTimeout", "slow", (metric,))


def limited(**more: Any) -> Any:
    return policy(analysis={"errorLimit": "2m"}, **more)


def test_errors_that_last_end_the_step_before_its_deadline() -> None:
    early = decide(b.in_canary(wanted=limited(), assessment=trouble(119)), b.START)
    assert b.moved(early).step and early.status.phase == "Canary"
    to = b.moved(decide(b.in_canary(wanted=limited(), assessment=trouble(120)), b.START))
    assert to.step and (to.step.phase, to.reason, to.history[-1].reason) == (
        "Paused",
        "Inconclusive",
        "ProviderTimeout",
    )
    assert "errorLimit 2m" in (to.message or "")
    back = b.moved(
        decide(b.in_canary(wanted=limited(onInconclusive="Rollback"), assessment=trouble(120)), b.START)
    )
    assert (back.stage, back.reason) == ("Revert", "ProviderTimeout")


def test_without_a_limit_errors_hold_until_the_deadline() -> None:
    assert decide(b.in_canary(wanted=policy(), assessment=trouble(500)), b.START).status.phase == "Canary"


@pytest.mark.parametrize("fields", [{"dry_run": True}, {"slice": "night"}])
def test_what_does_not_decide_does_not_end_a_step_by_its_errors(fields: dict[str, Any]) -> None:
    young = MetricStatus(name="other", verdict="Error", reason="ProviderTimeout", since=b.ago(1))
    changed = replace(trouble(500, **fields), metrics=(*trouble(500, **fields).metrics, young))
    assert decide(b.in_canary(wanted=limited(), assessment=changed), b.START).status.phase == "Canary"


def test_when_trouble_began_is_written_at_once() -> None:
    """Else the operator that is restarted would wait anew."""
    pending = MetricStatus(name="memory", verdict="Inconclusive", reason="BeyondLimits", since=b.ago(0))
    at_step = b.step(
        metrics=[pending.model_copy(update={"since": None, "reason": "WithinLimits"})], measured=b.ago(1)
    )
    s = b.in_canary(at_step=at_step, assessment=Assessment("Inconclusive", "BeyondLimits", "", (pending,)))
    to = b.moved(decide(s, b.START))
    assert to.step and to.step.metrics == [pending]


def slow(total: float, needed: int, observed: float = 300, **step: Any) -> Snapshot:
    """So many samples have come in ``observed`` seconds, and so many are missing; progressDeadline
    is 10 minutes.
    """
    metric = MetricStatus(
        name="errors",
        verdict="Inconclusive",
        reason="NotYetProven",
        canary=Counter(total=total),
        needed=needed,
    )
    at_step = b.step(
        since=b.ago(observed), observed_since=b.ago(observed), metrics=[metric], measured=b.ago(1), **step
    )
    assessment = Assessment("Inconclusive", "NotYetProven", "about so many more", (metric,))
    return b.in_canary(wanted=policy(), at_step=at_step, assessment=assessment)


def test_a_deadline_that_cannot_be_met_is_said_at_once_and_once() -> None:
    s = slow(300, 1000)  # one a second; 1000 s are needed and 300 are left
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert (
        to.reason == "DeadlineUnreachable"
        and "1000 more samples" in (to.message or "")
        and "1.0 a second" in (to.message or "")
    )
    assert to.step and to.step.phase == "Observing", "it goes on: traffic may come"
    assert [(e.type, e.reason) for e in plan.events] == [("Warning", "DeadlineUnreachable")]
    assert plan.status.verdict == "DeadlineUnreachable"
    again = decide(replace(s, status=plan.status), b.START)
    assert isinstance(again, Converge) and again.requeue_after == 5.0
    later = decide(replace(s, status=plan.status), b.at(70))  # the minute's write
    assert b.moved(later).reason == "DeadlineUnreachable" and not later.events


@pytest.mark.parametrize(
    ("total", "needed", "observed"), [(300, 290, 300), (300, 350, 300), (2, 1000, 50), (300, 0, 300)]
)
def test_it_is_not_said_while_the_rate_may_suffice_or_is_hardly_known(
    total: float, needed: int, observed: float
) -> None:
    assert decide(slow(total, needed, observed), b.START).status.verdict == "in progress"


def test_it_is_taken_back_when_the_rate_suffices_and_does_not_waver() -> None:
    told = decide(slow(300, 1000), b.START).status
    almost = decide(replace(slow(300, 350), status=told), b.START)
    assert almost.status.verdict == "DeadlineUnreachable", "between the two limits what was said stands"
    enough = decide(replace(slow(300, 250), status=told), b.START)
    assert enough.status.verdict == "in progress" and not enough.events


def test_no_sample_at_all_is_a_rate_too() -> None:
    """As if the first came now."""
    assert decide(slow(0, 50), b.START).status.verdict == "DeadlineUnreachable"


PROMOTE = {"onInconclusive": "Promote"}


def test_the_policy_may_go_on_without_proof_and_is_named() -> None:
    plan = decide(b.in_canary(wanted=policy(**PROMOTE), assessment=b.judged("Error")), b.at(591))
    to = b.moved(plan)
    assert to.step and (to.step.weight, to.step.override) == (25, "onInconclusive Promote at 1/3")
    assert [(e.weight, e.verdict, e.reason) for e in to.history] == [(5, "Inconclusive", "PromotedByPolicy")]
    assert [(e.type, e.reason) for e in plan.events] == [
        ("Warning", "PromotedByPolicy")
    ] and "ProviderUnreachable" in plan.events[0].message


def test_going_on_without_proof_leads_to_promotion_after_the_last_step() -> None:
    to = b.moved(
        decide(
            b.in_canary(wanted=policy(**PROMOTE), at_step=b.step(2, 50), assessment=b.judged("Inconclusive")),
            b.at(591),
        )
    )
    assert (to.stage, to.history[-1].reason) == ("Promote", "PromotedByPolicy")


@pytest.mark.parametrize(
    "facts",
    [
        {"servers": NOT_READY},
        {"at_step": b.step(phase="Shifting"), "traffic": Traffic(False, "not accepted yet")},
    ],
    ids=["pods", "route"],
)
def test_a_canary_without_traffic_is_never_promoted_for_want_of_a_verdict(facts: dict[str, Any]) -> None:
    to = b.moved(
        decide(b.in_canary(wanted=policy(**PROMOTE), assessment=b.judged("Error"), **facts), b.at(591))
    )
    assert to.step and (to.stage, to.step.phase, to.step.weight) == ("Canary", "Paused", 5)


def test_a_regression_is_no_want_of_a_verdict() -> None:
    assert (
        b.moved(decide(b.in_canary(wanted=policy(**PROMOTE), assessment=b.judged("Failed")), b.at(591))).stage
        == "Revert"
    )


# --- room


def test_status_stays_small_however_much_is_measured() -> None:
    """32 KiB: gateways by the hundred, every metric and slice there may be, and messages without
    end.
    """
    many = Counter(
        total=1e9,
        bad=1e6,
        last={f"10.42.100.{i}:9100/http": [1e9, 1e6, 1763812345.123] for i in range(FOLLOWED + GROUPS)},
        scraped=1.7e9,
    )
    one = Counter(total=1e9, bad=1e6, last={"10.42.100.1:8080": [1e9, 1e6, 1763812345.123]}, scraped=1.7e9)
    fields: dict[str, Any] = {
        "verdict": "Error",
        "reason": "NotABucketBound",
        "message": "m" * 5000,
        "interval": [-0.123456, 0.123456],
        "value": 1.0,
    }
    metrics = [MetricStatus(name=n, canary=many, stable=many, **fields) for n in ("errors", "latency")]
    metrics += [
        MetricStatus(name=f"accuracy/{'s' * 60}{i}", slice=f"{'s' * 60}{i}", canary=one, stable=one, **fields)
        for i in range(16)
    ]
    metrics += [MetricStatus(name=f"q{i}", **fields) for i in range(MAX_METRICS - 3)]
    assessment = Assessment("Error", "NotABucketBound", "m" * 5000, tuple(metrics))
    to = b.moved(decide(b.in_canary(assessment=assessment), b.START))
    assert to.step and len(to.step.model_dump_json(by_alias=True, exclude_none=True)) < 30 * 1024


def test_the_history_keeps_what_later_steps_build_on_longest() -> None:
    """32 steps with 19 metrics and slices each: the last ones whole, some before them as evidence,
    all of them as verdicts.
    """
    metrics = [
        MetricStatus(
            name=f"accuracy/{i}",
            verdict="Successful",
            reason="ProvenNotWorse",
            message="m" * 300,
            log_evidence=-1.5,
        )
        for i in range(19)
    ]
    past = [
        StepEvidence(index=i, weight=i + 1, verdict="Successful", reason="x", seconds=1, metrics=metrics)
        for i in range(31)
    ]
    s = b.second("Canary", changes={"step": b.step(0, 5, metrics=metrics), "history": past})
    rollout = b.moved(
        decide(replace(s, assessment=Assessment("Successful", "x", "", tuple(metrics))), b.START)
    ).history
    assert len(rollout) == 32
    whole, bare, empty = ([e for e in rollout if size(e)] for size in (_whole, _carried, _empty))
    assert whole and bare and empty and rollout == [*empty, *bare, *whole]
    assert sum(len(e.model_dump_json(by_alias=True, exclude_none=True)) for e in rollout) < 16 * 1024


def _whole(e: StepEvidence) -> bool:
    return any(m.message for m in e.metrics)


def _carried(e: StepEvidence) -> bool:
    return bool(e.metrics) and not _whole(e)


def _empty(e: StepEvidence) -> bool:
    return not e.metrics
