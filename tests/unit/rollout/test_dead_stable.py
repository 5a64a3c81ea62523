"""Stable is dead: the new version is judged by what needs no comparison, and takes over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import (
    Condition,
    Counter,
    EvaluationEvidence,
    MetricStatus,
    ShadowStatus,
    UserPause,
)
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.rollout.assessment import assess, metrics_due
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.jobs import stage_job
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.plan import Write
from modelrollout.rollout.policy.rules import Rules, combine, read
from modelrollout.rollout.snapshot import Assessment, JobState, Server, Slot, Snapshot, Traffic, baseline
from modelrollout.rollout.stages.next_stage import outputs_of
from modelrollout.rollout.status import derive_status
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

V1, V2, V3 = (b.revision_name(v) for v in (1, 2, 3))
CRASHING = Server(2, 0, None, 2)
DEAD: dict[str, Any] = {"servers": {V1: CRASHING, V2: b.ready()}}
LIMITED = {"analysis": {"metrics": [{"name": "errors", "max": 0.05}]}}
TAKEOVER = b.step(0, 100, override="StableDead: as it was")


def down_for(s: Snapshot, seconds: float) -> Snapshot:
    """Stable has been down for so long."""
    return replace(s, status=s.status.model_copy(update={"stable_down_since": b.ago(seconds)}))


def dead(s: Snapshot) -> Snapshot:
    return down_for(s, 61)


def uncompared(s: Snapshot) -> Snapshot:
    """... and the rollout knows."""
    assert s.status.rollout is not None
    rollout = s.status.rollout.model_copy(update={"uncompared_since": b.ago(1)})
    return dead(replace(s, status=s.status.model_copy(update={"rollout": rollout})))


def policy(**gates: Any) -> Rules:
    return combine([read({"metadata": {"name": "p"}, "spec": {"gates": gates}})])


def frozen(until: str) -> Rules:
    window = {"freezeWindows": [{"start": "2026-11-22T11:00:00Z", "end": until}]}
    rules = combine([read({"metadata": {"name": "p"}, "spec": window})])
    assert not rules.broken
    return rules


def in_canary(**facts: Any) -> Snapshot:
    return uncompared(b.in_canary(**(DEAD | facts)))


def having_taken_over(assessment: Assessment | None, **facts: Any) -> Snapshot:
    wanted = facts.pop("wanted", b.spec(2, steps=b.STEPS, rollout=LIMITED))
    return in_canary(**({"at_step": TAKEOVER, "wanted": wanted, "assessment": assessment} | facts))


def no_metrics() -> Assessment:
    return Assessment("Inconclusive", "NoMetrics", "no metric has a limit without stable")


# --- since when it is down


def since_when(s: Snapshot, now: Any = b.START) -> str | None:
    return derive_status(s, s.status, now).stable_down_since


def test_status_says_since_when_no_pod_of_stable_is_ready() -> None:
    s = b.in_canary(**DEAD)
    assert since_when(s) == b.ago(0)
    assert since_when(down_for(s, 30)) == b.ago(30), "the time goes on, also after a restart of the operator"
    assert since_when(down_for(b.in_canary(), 30)) is None, "a pod is ready"


def test_another_stable_is_not_down_since_the_former_one_was() -> None:
    s = down_for(b.in_canary(servers={V1: CRASHING, V2: CRASHING}), 30)
    after = s.status.model_copy(update={"stable": b.ref(2)})
    assert derive_status(s, after, b.START).stable_down_since == b.ago(0)


def test_a_deployment_that_is_gone_counts_as_down_and_one_of_no_pods_does_not() -> None:
    assert since_when(b.in_canary(servers={V2: b.ready()})) == b.ago(0)
    none = b.spec(1, replicas=0)
    assert since_when(b.snapshot(none, b.status(1), servers={V1: Server(0, 0, None, 0)})) is None


def test_pods_that_were_scaled_to_zero_have_their_startup_timeout() -> None:
    """They and those of a new version start together; who is first must not take over."""
    zero = b.snapshot(b.spec(1, replicas=0), b.status(1), servers={V1: Server(0, 0, None, 0)})
    status = derive_status(zero, zero.status, b.START)
    again = b.snapshot(b.spec(1, replicas=2), status, servers={V1: Server(0, 0, None, 0)})
    assert since_when(again) == b.ago(-600), "startupTimeout is 10m"


def test_stable_is_dead_after_a_minute_and_the_next_pass_comes_in_time() -> None:
    s = b.in_canary(**DEAD)
    early = replace(s, status=decide(down_for(s, 50), b.START).status)
    plan = decide(early, b.START)
    assert not isinstance(plan, Write) and plan.requeue_after is not None and plan.requeue_after <= 10
    plan = decide(dead(s), b.START)
    assert b.moved(plan).uncompared_since == b.ago(0)
    [event] = [e for e in b.events(plan) if e.reason == "StableDead"]
    assert V1 in event.message and event.type == "Warning"


def test_a_new_leader_looks_for_a_minute_itself() -> None:
    """Stable may have been ready while there was no leader."""
    s = down_for(b.in_canary(**DEAD), 4000)
    for leads, decided in ((50, False), (61, True)):
        plan = decide(replace(s, leading_since=b.at(-leads)), b.START)
        assert plan.status.rollout and bool(plan.status.rollout.uncompared_since) is decided


@pytest.mark.parametrize("stage", ["Resolve", "Prepare", "Provision", "Promote", "Bake", "Revert"])
def test_other_stages_compare_nothing(stage: str) -> None:
    changes = {"step": b.step(2, 50)} if stage in ("Promote", "Bake") else {}
    plan = decide(dead(b.second(stage, changes=changes, **DEAD)), b.START)
    assert plan.status.rollout is None or plan.status.rollout.uncompared_since is None


def test_no_deadline_passes_before_it_is_decided_whether_stable_is_dead() -> None:
    brief = b.spec(2, steps=b.STEPS, rollout={"progressDeadline": "20s"})
    old = b.step(0, 5, since=b.ago(30))
    s = b.in_canary(wanted=brief, at_step=old, assessment=b.judged("Inconclusive", "NoStableData"), **DEAD)
    plan = decide(down_for(s, 25), b.START)
    assert plan.status.rollout and plan.status.rollout.step and plan.status.rollout.step.phase == "Observing"


# --- golden data

GOLDEN = b.spec(2, golden=True, steps=b.STEPS)
STABLE_FAILED = JobState(
    "Failed", int(ExitCode.RETRYABLE), TaskResult(reason="StableFailed", message="stable did not answer")
)


def test_golden_data_waits_for_the_stable_that_does_not_answer_and_is_sent_again() -> None:
    s = b.second("Evaluate", wanted=GOLDEN, work=STABLE_FAILED, **DEAD)
    waits = b.moved(decide(down_for(s, 20), b.START))
    assert (waits.stage, waits.reason) == ("Evaluate", "StableFailed")
    answers = replace(s, servers={V1: b.ready(), V2: b.ready()})
    assert b.moved(decide(answers, b.START)).attempt == 1, "another Job"
    tried = b.second("Evaluate", wanted=GOLDEN, work=STABLE_FAILED, changes={"attempt": 3})
    assert b.moved(decide(tried, b.START)).stage == "Failed", "not for ever"


def test_golden_data_is_sent_to_the_candidate_alone_once_stable_is_dead() -> None:
    s = dead(b.second("Evaluate", wanted=GOLDEN, work=STABLE_FAILED, **DEAD))
    plan = decide(s, b.START)
    assert b.moved(plan).stage == "Evaluate" and stage_job(replace(s, status=plan.status)) != stage_job(s)
    assert baseline(replace(s, status=plan.status)) is None
    back = replace(s, status=plan.status, servers={V1: b.ready(), V2: b.ready()})
    again = decide(back, b.START)
    assert stage_job(replace(back, status=again.status)) == stage_job(s), "it is compared after all"
    assert next(e.reason for e in b.events(again)) == "StableBack"


def test_golden_data_below_its_floor_rejects_without_stable_too() -> None:
    work = JobState("Succeeded", 0, TaskResult(samples=1000, accuracy=0.5))
    s = uncompared(b.second("Evaluate", wanted=GOLDEN, work=work, evaluation=b.evaluation("Failed"), **DEAD))
    plan = decide(s, b.START)
    assert (b.moved(plan).stage, b.moved(plan).outcome) == ("Failed", "Rejected")
    assert b.condition(plan, "Stalled").status == "True"


def test_what_policies_demand_of_golden_data_is_looked_at_again() -> None:
    """Without stable ``min`` is the only proof, and spec may have been edited since."""
    s = uncompared(b.second("Evaluate", wanted=GOLDEN, rules=policy(minGolden=0.9), **DEAD))
    plan = decide(s, b.START)
    assert b.moved(plan).reason == "GateRequired" and "golden.min" in (b.moved(plan).message or "")


def test_after_golden_data_comes_the_trial_and_no_shadow() -> None:
    wanted = b.spec(2, steps=b.STEPS, rollout={"shadow": {}})
    assert b.moved(decide(uncompared(b.second("Evaluate", wanted=wanted, **DEAD)), b.START)).stage == "Canary"


# --- shadow


def in_shadow(phase: str) -> Snapshot:
    wanted = b.spec(2, steps=b.STEPS, rollout={"shadow": {}})
    assert wanted.rollout.shadow is not None
    shadow = ShadowStatus.model_validate({"phase": phase, "since": b.ago(10), "mirror": "TraefikService"})
    shadow = shadow.model_copy(update={"outputs_hash": outputs_of(wanted.rollout.shadow)})
    return uncompared(b.second("Shadow", wanted=wanted, changes={"shadow": shadow}, **DEAD))


@pytest.mark.parametrize("phase", ["Starting", "Accepted", "Mirroring", "Observing"])
def test_a_shadow_ends_since_there_is_nothing_to_agree_with(phase: str) -> None:
    shadow = b.moved(decide(in_shadow(phase), b.START)).shadow
    assert shadow and shadow.phase == "Leaving" and (shadow.override or "").startswith("StableDead: stable")


def test_a_shadow_that_disagreed_waits_for_a_person_all_the_same() -> None:
    plan = decide(in_shadow("Paused"), b.START)
    assert plan.status.rollout and plan.status.rollout.shadow
    assert plan.status.rollout.shadow.phase == "Paused"


# --- the trial


def test_the_canary_takes_over_as_a_recorded_override() -> None:
    plan = decide(in_canary(), b.START)
    to = b.moved(plan)
    assert to.stage == "Canary" and to.step
    assert (to.step.weight, to.step.phase, to.step.previous_weight) == (100, "Shifting", 5)
    assert to.step.override == f"StableDead: stable {V1} has had no ready pod since {b.ago(61)}"
    assert [(e.weight, e.verdict, e.reason) for e in to.history] == [(5, "Inconclusive", "StableDead")]
    assert "StableDead" in [e.reason for e in b.events(plan)]


@pytest.mark.parametrize(
    "strategy", [{"blueGreen": {}}, {"abTest": {"headers": [{"name": "x", "value": "y"}]}}]
)
def test_so_does_a_preview_and_a_test_by_headers(strategy: dict[str, Any]) -> None:
    kind = "BlueGreen" if "blueGreen" in strategy else "ABTest"
    s = in_canary(wanted=b.spec(2, rollout=strategy), at_step=b.step(0, 0, strategy=kind))
    to = b.moved(decide(s, b.START))
    assert to.step and (to.step.weight, to.step.strategy) == (100, kind)


def test_it_gets_no_more_than_its_ready_pods_can_carry() -> None:
    shifting = b.step(0, 100, "Shifting", previous_weight=5, override="StableDead: as it was")
    s = having_taken_over(None, at_step=shifting, servers={V1: CRASHING, V2: Server(2, 1, None, 2)})
    assert split(s) == ((V1, 95), (V2, 5))
    whole = replace(s, servers={V1: CRASHING, V2: b.ready()})
    assert split(whole) == ((V2, 100),), "stable gets no weight"


def test_without_limits_of_its_own_it_is_promoted_at_once_and_says_so() -> None:
    plan = decide(having_taken_over(no_metrics()), b.START)
    to = b.moved(plan)
    assert (to.stage, to.uncompared_since) == ("Promote", b.ago(1))
    assert (to.history[-1].verdict, to.history[-1].reason) == ("Inconclusive", "StableDead")
    [event] = [e for e in b.events(plan) if e.reason == "StableDead"]
    assert "promoted without a comparison" in event.message and V1 in event.message


def test_with_limits_it_is_promoted_once_it_keeps_to_them() -> None:
    waits = decide(having_taken_over(b.judged("Inconclusive", "TooFewSamples")), b.START)
    assert waits.status.rollout and waits.status.rollout.stage == "Canary"
    to = b.moved(decide(having_taken_over(b.judged("Successful")), b.START))
    assert (to.stage, to.history[-1].verdict) == ("Promote", "Successful")


def test_at_the_deadline_nothing_is_proven_against_it_and_it_is_promoted() -> None:
    step = TAKEOVER.model_copy(update={"since": b.ago(4000)})
    to = b.moved(decide(having_taken_over(b.judged("Inconclusive"), at_step=step), b.START))
    assert (to.stage, to.history[-1].verdict) == ("Promote", "Inconclusive")


def test_proven_bad_by_its_own_limits_it_is_stalled_and_the_weight_stays_where_pods_are_ready() -> None:
    errors = MetricStatus(name="errors", verdict="Failed", reason="LimitExceeded")
    s = having_taken_over(Assessment("Failed", "LimitExceeded", "12 % failed", (errors,)))
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.stage, to.step.phase, to.step.weight) == ("Canary", "Paused", 100)
    assert "no pod of stable is ready" in (to.message or "")
    assert b.condition(plan, "Stalled").status == "True"
    assert split(replace(s, status=plan.status)) == ((V2, 100),)


def test_a_candidate_without_pods_takes_nothing_over() -> None:
    both = {V1: CRASHING, V2: CRASHING}
    step = TAKEOVER.model_copy(update={"since": b.ago(4000)})
    plan = decide(having_taken_over(no_metrics(), at_step=step, servers=both), b.START)
    to = b.moved(plan)
    assert to.step and to.step.phase == "Paused" and b.condition(plan, "Stalled").status == "True"


def available_of(s: Snapshot) -> Condition:
    conditions = derive_status(s, s.status, b.START).conditions
    return next(c for c in conditions if c.type == "Available")


def test_available_says_who_serves() -> None:
    available = available_of(having_taken_over(b.judged("Inconclusive")))
    assert (available.status, available.reason) == ("True", "Serving") and V2 in available.message
    available = available_of(in_canary())
    assert (available.status, available.reason) == ("False", "NoReadyPods") and V1 in available.message


# --- stable comes back


def test_when_stable_is_back_the_trial_starts_over() -> None:
    s = having_taken_over(b.judged("Inconclusive"), servers={V1: b.ready(), V2: b.ready()})
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.step.weight, to.step.phase, to.uncompared_since) == (5, "Shifting", None)
    assert "StableBack" in [e.reason for e in b.events(plan)]


def test_one_of_its_pods_is_not_enough_to_carry_its_weight() -> None:
    s = having_taken_over(b.judged("Inconclusive"), servers={V1: Server(2, 1, None, 2), V2: b.ready()})
    plan = decide(s, b.START)
    assert plan.status.rollout and plan.status.rollout.step and plan.status.rollout.step.weight == 100


def test_before_it_has_taken_over_one_ready_pod_of_stable_is_enough() -> None:
    partly = {V1: Server(2, 1, None, 2), V2: b.ready()}
    to = b.moved(decide(in_canary(servers=partly), b.START))
    assert to.step and (to.step.weight, to.step.phase, to.uncompared_since) == (5, "Observing", None)
    judged = b.second("Evaluate", wanted=GOLDEN, servers=partly)
    assert b.moved(decide(uncompared(judged), b.START)).uncompared_since is None


def test_a_pause_of_a_person_lasts_when_stable_is_back() -> None:
    s = having_taken_over(b.judged("Inconclusive"), servers={V1: b.ready(), V2: b.ready()})
    assert s.status.rollout is not None
    paused = s.status.rollout.model_copy(update={"paused_by_user": UserPause(since=b.ago(5), by="n1")})
    to = b.moved(decide(replace(s, status=s.status.model_copy(update={"rollout": paused})), b.START))
    assert to.step and to.step.weight == 5 and to.paused_by_user is not None


def test_no_weight_rises_in_a_pause_of_a_person_when_stable_is_back() -> None:
    """It had waited for pods in vain: the step is the one before, without any requests."""
    servers = {V1: b.ready(), V2: b.ready()}
    reached = b.step(-1, 0, "Paused", override="StableDead: as it was")
    s = having_taken_over(b.judged("Inconclusive"), at_step=reached, servers=servers)
    assert s.status.rollout is not None
    paused = s.status.rollout.model_copy(update={"paused_by_user": UserPause(since=b.ago(5), by="n1")})
    held = decide(replace(s, status=s.status.model_copy(update={"rollout": paused})), b.START)
    assert held.status.rollout and held.status.rollout.step and held.status.rollout.step.weight == 0
    assert held.status.rollout.paused_by_user is not None
    to = b.moved(decide(s, b.START))
    assert to.step and (to.step.index, to.step.weight, to.uncompared_since) == (0, 5, None)


def test_a_promotion_is_not_turned_round() -> None:
    s = uncompared(b.second("Promote", changes={"step": TAKEOVER}))
    plan = decide(s, b.START)
    assert plan.status.stable and plan.status.stable.revision == V2
    assert plan.status.rollout and plan.status.rollout.uncompared_since == b.ago(1), "it stays on record"


# --- who holds it


def held_by(s: Snapshot) -> str:
    """The message of the rollout that waits for a person, without more weight."""
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and s.status.rollout and s.status.rollout.step
    assert (to.step.phase, to.reason) == ("Paused", "StableDead")
    assert to.step.weight == s.status.rollout.step.weight
    assert b.condition(plan, "Stalled").status == "True" and "promote --full" in (to.message or "")
    again = replace(s, status=plan.status)
    assert not isinstance(decide(again, b.START), Write), "said once"
    return to.message or ""


def test_a_policy_may_forbid_it() -> None:
    assert "RolloutPolicy p (gates.deadStable)" in held_by(in_canary(rules=policy(deadStable="Forbid")))


def test_where_several_policies_speak_each_must_allow_it() -> None:
    parts = [
        read({"metadata": {"name": name}, "spec": {"gates": {"deadStable": says}}})
        for name, says in (("a", "Allow"), ("b", "Forbid"))
    ]
    assert "RolloutPolicy b" in held_by(in_canary(rules=combine(parts)))


def test_it_goes_on_by_itself_once_nothing_holds_it() -> None:
    s = in_canary(rules=policy(deadStable="Forbid"))
    held = decide(s, b.START).status
    to = b.moved(decide(replace(s, status=held, rules=policy(deadStable="Allow")), b.START))
    assert to.step and (to.step.weight, to.step.phase) == (100, "Shifting")


def test_when_stable_is_back_what_was_held_goes_on() -> None:
    s = in_canary(rules=policy(deadStable="Forbid"))
    back = replace(s, status=decide(s, b.START).status, servers={V1: b.ready(), V2: b.ready()})
    to = b.moved(decide(back, b.START))
    assert to.step and (to.step.phase, to.reason, to.step.weight) == ("Shifting", None, 5)


def demanding(metric: dict[str, Any]) -> Rules:
    return policy(metrics=[metric])


def test_demanded_metrics_that_need_a_comparison_hold_it() -> None:
    """A limit of spec's own is not what the policy demands."""
    demanded = demanding({"name": "errors", "maxIncrease": 0.01})
    limited = b.spec(2, steps=b.STEPS, rollout=LIMITED)
    message = held_by(in_canary(rules=demanded, mandatory=demanded.mandatory, wanted=limited))
    assert "gates.metrics" in message and "errors" in message


def test_demanded_metrics_with_limits_prove_it_at_the_first_weight() -> None:
    demanded = demanding({"name": "errors", "max": 0.01})
    s = in_canary(rules=demanded, mandatory=demanded.mandatory)
    to = b.moved(decide(s, b.START))
    assert to.step and (to.step.weight, (to.step.override or "")[:10]) == (5, "StableDead")
    proven = MetricStatus(name="errors", verdict="Successful", reason="ProvenWithinLimit", next_weight=100)
    taken = having_taken_over(
        replace(b.judged("Successful"), metrics=(proven,)),
        at_step=b.step(0, 5, override="StableDead: as it was"),
        rules=demanded,
        mandatory=demanded.mandatory,
    )
    assert b.moved(decide(taken, b.START)).stage == "Promote"
    unproven = having_taken_over(
        b.judged("Inconclusive"),
        at_step=b.step(0, 5, override="StableDead: as it was", since=b.ago(4000)),
        rules=demanded,
        mandatory=demanded.mandatory,
    )
    paused = b.moved(decide(unproven, b.START))
    assert paused.step and (paused.stage, paused.step.phase) == ("Canary", "Paused"), "no deadline proves it"


def test_golden_data_that_a_policy_demands_has_to_prove_something() -> None:
    alone = EvaluationEvidence(verdict="Successful", reason="WithinLimits", samples=1000, accuracy=0.97)
    facts: dict[str, Any] = {"rules": policy(golden=True), "wanted": GOLDEN}
    s = in_canary(**facts)
    assert s.status.rollout is not None

    def judged(evidence: EvaluationEvidence) -> Snapshot:
        assert s.status.rollout is not None
        rollout = s.status.rollout.model_copy(update={"evaluation": evidence})
        return replace(s, status=s.status.model_copy(update={"rollout": rollout}))

    assert "golden data" in held_by(judged(alone))
    compared = judged(alone.model_copy(update={"stable": V1}))
    to = b.moved(decide(compared, b.START))
    assert to.step and to.step.weight == 100, "it was compared before stable died"


def test_a_pause_in_spec_for_a_person_holds_it_and_a_timed_one_does_not() -> None:
    ahead = b.spec(2, steps=[{"weight": 5}, {"pause": {}}, {"weight": 50}])
    assert "pause" in held_by(in_canary(wanted=ahead))
    timed = b.spec(2, steps=[{"weight": 5}, {"pause": {"duration": "1h"}}, {"weight": 50}])
    to = b.moved(decide(in_canary(wanted=timed, at_step=b.step(1, 5, "Paused"), reason="PauseStep"), b.START))
    assert to.step and to.step.weight == 100


def test_a_pause_of_a_person_holds_it() -> None:
    s = in_canary(assessment=b.judged("Successful"))
    assert s.status.rollout is not None
    paused = s.status.rollout.model_copy(update={"paused_by_user": UserPause(since=b.ago(5), by="n1")})
    plan = decide(replace(s, status=s.status.model_copy(update={"rollout": paused})), b.START)
    assert plan.status.rollout and plan.status.rollout.step and plan.status.rollout.step.weight == 5


def test_a_freeze_holds_it_until_its_end() -> None:
    s = in_canary(rules=frozen("2026-11-22T13:00:00Z"), assessment=b.judged("Successful"))
    plan = decide(s, b.START)
    assert plan.status.rollout and plan.status.rollout.step and plan.status.rollout.step.weight == 5
    assert b.condition(plan, "Frozen").status == "True"
    after = b.moved(decide(replace(s, rules=frozen("2026-11-22T11:59:00Z")), b.START))
    assert after.step and after.step.weight == 100


def test_a_takeover_that_waits_for_pods_when_a_freeze_begins_goes_back() -> None:
    shifting = b.step(0, 100, "Shifting", previous_weight=5, override="StableDead: as it was")
    s = having_taken_over(
        None,
        at_step=shifting,
        servers={V1: CRASHING, V2: Server(2, 1, None, 2)},
        rules=frozen("2026-11-22T13:00:00Z"),
    )
    to = b.moved(decide(s, b.START))
    assert to.step and to.step.weight == 5


def test_a_return_by_hand_meets_no_demand() -> None:
    s = in_canary(rules=policy(deadStable="Forbid"))
    assert s.status.rollout is not None
    by_hand = s.status.rollout.model_copy(update={"mode": "Rollback", "proven": False})
    to = b.moved(decide(replace(s, status=s.status.model_copy(update={"rollout": by_hand})), b.START))
    assert to.step and to.step.weight == 100


# --- nothing but a person takes the weight from who serves


def test_proven_worse_waits_for_stable_and_goes_back_once_it_is_there() -> None:
    s = b.in_canary(assessment=b.judged("Failed"), **DEAD)
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert to.step and (to.stage, to.step.phase, to.step.weight) == ("Canary", "Paused", 5)
    back = replace(s, status=plan.status, servers={V1: b.ready(), V2: b.ready()})
    assert b.moved(decide(back, b.START)).stage == "Revert"


def test_a_bake_does_not_go_back_to_a_stable_without_pods() -> None:
    baking = b.spec(2, steps=b.STEPS, rollout={"bake": "10m"})
    s = b.second(
        "Bake", wanted=baking, changes={"step": b.step(3, 100)}, assessment=b.judged("Failed"), **DEAD
    )
    plan = decide(replace(s, live_split=((V2, 100),)), b.START)
    assert b.moved(plan).stage == "Bake" and b.condition(plan, "Stalled").status == "True"


def test_no_verdict_does_not_roll_back_to_a_stable_without_pods() -> None:
    words = {"onInconclusive": "Rollback", "progressDeadline": "5m", "bake": "1m"}
    step = b.step(3, 100, since=b.ago(4000))
    facts: dict[str, Any] = {
        "wanted": b.spec(2, steps=b.STEPS, rollout=words),
        "changes": {"step": step},
        "assessment": b.judged("Error"),
        "live_split": ((V2, 100),),
    }
    assert b.moved(decide(b.second("Bake", **facts), b.START)).stage == "Revert"
    to = b.moved(decide(b.second("Bake", **(facts | DEAD)), b.START))
    assert to.step and (to.stage, to.step.phase) == ("Bake", "Paused")
    assert "no pod of stable is ready" in (to.message or "")


def test_an_abort_by_hand_is_obeyed_and_says_what_it_costs() -> None:
    world = taken_over(LIMITED)
    world.say("abort", V2, "n1")
    world.reconcile()
    assert world.status.rollout and world.status.rollout.stage == "Revert"
    assert world.route == ((V1, 100),)
    assert "clients get no answers" in (world.status.rollout.message or "")


# --- whole rollouts


def taken_over(rollout: dict[str, Any], **spec: Any) -> ModelCluster:
    """Version 2 has all requests, since version 1 died during its canary."""
    world = ModelCluster(b.spec(1, steps=b.STEPS, **spec))
    world.serve()
    world.edit(b.spec(2, steps=b.STEPS, rollout=rollout, **spec))
    world.verdict = None
    for _ in range(20):
        world.reconcile()
        world.kindly()
        if world.status.rollout and world.status.rollout.stage == "Canary":
            break
    world.kill(V1)
    world.verdict = "Inconclusive"
    for _ in range(25):
        world.reconcile()
        world.kindly()
        step = world.status.rollout.step if world.status.rollout else None
        if step and step.weight == 100 and step.phase == "Observing":
            return world
    raise AssertionError(f"{world.status.rollout}")


@pytest.mark.parametrize("gateway", [True, False])
def test_a_good_version_takes_over_from_a_dead_stable_by_itself(gateway: bool) -> None:
    world = taken_over(LIMITED, gateway=gateway)
    world.verdict = "Successful"
    for _ in range(20):
        world.reconcile()
        world.kindly()
    assert world.status.stable and world.status.stable.revision == V2
    evidence = world.revisions[V2].status
    assert (evidence.outcome, evidence.steps[-1].reason) == ("Promoted", "StableDead")
    assert world.status.rollout and world.status.rollout.uncompared_since


def test_it_takes_less_than_the_deadline() -> None:
    world = taken_over(LIMITED)
    assert (world.now - b.START).total_seconds() < 180


def test_stable_that_comes_back_in_the_middle_serves_again() -> None:
    world = taken_over(LIMITED)
    world.dead.clear()
    world.schedule()
    world.reconcile()
    assert world.route == ((V1, 95), (V2, 5))
    world.serve()
    assert world.status.stable and world.status.stable.revision == V2
    assert {e.reason for e in world.revisions[V2].status.steps} > {"ProvenNotWorse"}, "after a comparison"


def test_another_version_in_spec_begins_from_the_one_that_serves() -> None:
    """Back to the dead stable no request would be served until the third one is there."""
    world = taken_over(LIMITED)
    world.edit(b.spec(3, steps=b.STEPS))
    world.reconcile()
    assert world.status.stable and world.status.stable.revision == V2
    for _ in range(3):
        world.kindly()
        world.reconcile()
        assert dict(world.route or ())[V2] >= 95
    world.serve()
    assert world.status.stable.revision == V3


def test_a_slot_that_was_kept_too_long_leaves_what_serves() -> None:
    limits = {"limits": {"concurrentRollouts": 1, "maxHold": "1m"}}
    rules = combine([read({"metadata": {"name": "p"}, "spec": limits})])
    slot = {"since": b.ago(4000)}
    s = having_taken_over(b.judged("Inconclusive"), rules=rules, slots=(Slot("p", True),))
    assert s.status.rollout is not None
    changed = type(s.status.rollout).model_validate(s.status.rollout.model_dump() | {"slot": slot})
    plan = decide(replace(s, status=s.status.model_copy(update={"rollout": changed})), b.START)
    assert plan.status.stable and plan.status.stable.revision == V2


def test_what_the_gateway_has_not_taken_up_does_not_become_stable() -> None:
    s = having_taken_over(b.judged("Inconclusive"), traffic=Traffic(False), wanted=b.spec(3))
    to = b.moved(decide(s, b.START))
    assert (to.stage, to.outcome) == ("Revert", "Superseded")


# --- what is measured


def test_only_what_needs_no_comparison_is_measured() -> None:
    metrics = [
        {"name": "errors", "maxIncrease": 0.01},
        {"name": "latency", "objective": "50ms", "share": 0.99},
        {"name": "gpu", "query": "gpu_temperature", "max": 80},
    ]
    wanted = b.spec(2, steps=b.STEPS, rollout={"analysis": {"metrics": metrics}})
    due = metrics_due(having_taken_over(None, wanted=wanted), b.START, "traefik")
    assert isinstance(due, list) and [m.name for m in due] == ["latency", "gpu"]
    nothing = metrics_due(having_taken_over(None, wanted=b.spec(2, steps=b.STEPS)), b.START, "traefik")
    assert isinstance(nothing, Assessment) and nothing.reason == "NoMetrics", "the default compares"


def test_its_own_limit_is_proven_for_all_requests() -> None:
    """Alone, and for weight 100, whatever weight a policy's cap leaves it."""
    counted = MetricStatus(
        name="errors",
        verdict="Inconclusive",
        reason="NotYetProven",
        canary=Counter(total=50_000, bad=100, last={"pod": [50_000, 100, 1.0]}),
    )
    capped = b.step(0, 5, override="StableDead: as it was", metrics=[counted])
    s = having_taken_over(None, at_step=capped)
    metrics = metrics_due(s, b.START, "traefik")
    assert isinstance(metrics, list)
    reading = CounterReading(Raw({"pod": Sample(50_000, 100, 2.0)}), Raw({"dead": Sample(100, 90, 2.0)}))
    judged = assess(s, metrics, {"errors": reading}, b.START, profile="traefik")
    [metric] = judged.metrics
    assert (judged.verdict, metric.reason, metric.next_weight) == ("Successful", "ProvenWithinLimit", 100)
    assert metric.stable is None
