"""shadow: answers are compared before any traffic; clients notice neither the mirror nor its
end.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Counter, MetricStatus, ShadowStatus, VerdictName
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired import desired
from modelrollout.rollout.desired.pods import replicas
from modelrollout.rollout.desired.traffic import needs_measurement, split
from modelrollout.rollout.plan import Plan, Write
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.snapshot import Assessment, Crash, MirrorState, Server, Snapshot, Traffic, Verb
from modelrollout.rollout.stages.next_stage import outputs_of
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster
from modelrollout.traffic.gateway_api.mirror import mirror_of

SHADOW = {"minSamples": 100}
SPEC = b.spec(2, steps=b.STEPS, rollout={"shadow": SHADOW, "progressDeadline": "10m"})
COMPARER = f"{b.revision_name(2)}-shadow"
UP = MirrorState("TraefikService", tried=Traffic(True))


def at(phase: str, **changes: Any) -> ShadowStatus:
    assert SPEC.rollout.shadow is not None
    made = ShadowStatus.model_validate(
        {"phase": phase, "since": b.ago(10), "mirror": "TraefikService", "observedSince": b.ago(5)}
    )
    return made.model_copy(update={"outputs_hash": outputs_of(SPEC.rollout.shadow)} | changes)


def in_shadow(
    phase: str, *, wanted: Any = SPEC, shadow: dict[str, Any] | None = None, ready: int = 1, **facts: Any
) -> Snapshot:
    """``second`` in this phase of the shadow; the comparer is ready, the gateway takes the
    mirror.
    """
    servers = {
        b.revision_name(1): b.ready(),
        b.revision_name(2): b.ready(),
        COMPARER: Server(1, ready, None, 1),
    }
    state = {"shadow": at(phase, **(shadow or {}))}
    return b.second("Shadow", wanted=wanted, changes=state, **({"servers": servers, "mirror": UP} | facts))


def agreement(verdict: VerdictName, reason: str, total: float = 500, bad: float = 0) -> Assessment:
    counter = Counter(total=total, bad=bad, last={"10.0.0.9:8002": [total, bad, 7.0]}, scraped=7.0)
    metric = MetricStatus(
        name="agreement", verdict=verdict, reason=reason, message="as it was counted", canary=counter
    )
    return Assessment(verdict, reason, "as it was counted", (metric,))


def phase(plan: Plan) -> str | None:
    rollout = b.moved(plan)
    return rollout.shadow.phase if rollout.stage == "Shadow" and rollout.shadow else rollout.stage


def test_it_comes_after_evaluate_where_the_spec_asks_for_it() -> None:
    to = b.moved(decide(b.second("Evaluate", wanted=SPEC, mirror=UP), b.START))
    assert (
        to.stage == "Shadow"
        and to.shadow
        and (to.shadow.phase, to.shadow.mirror) == ("Starting", "TraefikService")
    )


def test_the_first_version_has_nothing_to_be_compared_with() -> None:
    spec = b.spec(1, rollout={"shadow": SHADOW})
    s = b.snapshot(
        spec,
        b.status(None, rollout=b.rollout("Evaluate", 1)),
        revisions=(b.revision(1),),
        servers={b.revision_name(1): b.ready()},
    )
    assert b.moved(decide(s, b.START)).stage == "Promote"


def test_stable_keeps_all_traffic_and_the_canary_its_pods() -> None:
    s = in_shadow("Observing")
    assert split(s) == ((b.revision_name(1), 100),)
    assert replicas(s, b.START) == {b.revision_name(1): 2, b.revision_name(2): 2}


@pytest.mark.parametrize(
    ("name", "routed"),
    [
        ("Starting", False),
        ("Accepted", False),
        ("Mirroring", True),
        ("Observing", True),
        ("Paused", False),
        ("Leaving", False),
    ],
)
def test_the_route_mirrors_in_two_phases_only_while_the_mirror_exists_in_all(name: str, routed: bool) -> None:
    mirror = mirror_of(in_shadow(name))
    assert mirror is not None and mirror.routed is routed


def test_the_mirror_outlives_its_place_in_the_route() -> None:
    """Until the data plane has surely taken up that it is gone: in Revert, and as long as the
    canary's pods stay.
    """
    reverting = b.second("Revert", wanted=SPEC, changes={"shadow": at("Observing"), "outcome": "Rejected"})
    mirror = mirror_of(reverting)
    assert mirror is not None and not mirror.routed
    ended = decide(reverting, b.START).status
    assert ended.rollout and ended.rollout.stage == "Failed" and ended.draining
    after = b.snapshot(SPEC, ended, revisions=reverting.revisions)
    assert mirror_of(after) is None, "nothing is written of it any more"
    assert desired(after, b.START).draining == {b.revision_name(2)}
    assert desired(after, datetime.fromisoformat(ended.draining[0].until)).draining == frozenset()


def test_a_rollback_from_the_canary_makes_no_mirror_again() -> None:
    left = b.moved(decide(in_shadow("Leaving"), b.START))
    assert left.shadow is not None and left.shadow.mirror is None
    assert (
        mirror_of(b.second("Revert", wanted=SPEC, changes={"shadow": left.shadow, "outcome": "RolledBack"}))
        is None
    )


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"ready": 0}, "ComparerNotReady"),
        ({"mirror": MirrorState("TraefikService", tried=Traffic(False))}, None),
        (
            {
                "mirror": MirrorState(
                    "TraefikService", tried=Traffic(False, "no", Problem("RouteNotAccepted", "no such kind"))
                )
            },
            "RouteNotAccepted",
        ),
    ],
)
def test_the_clients_route_is_left_alone_until_the_mirror_is_known_to_work(
    facts: dict[str, Any], reason: str | None
) -> None:
    plan = decide(in_shadow("Starting", **facts), b.START)
    assert (
        plan.status.rollout and plan.status.rollout.shadow and plan.status.rollout.shadow.phase == "Starting"
    )
    assert plan.status.rollout.reason == reason


def test_from_start_to_the_canary() -> None:
    assert phase(decide(in_shadow("Starting"), b.START)) == "Accepted"
    early = decide(in_shadow("Accepted", shadow={"since": b.ago(1)}), b.START)
    assert (
        early.status.rollout
        and early.status.rollout.shadow
        and early.status.rollout.shadow.phase == "Accepted"
    )
    assert phase(decide(in_shadow("Accepted"), b.START)) == "Mirroring"
    assert (
        phase(decide(in_shadow("Accepted", mirror=MirrorState("TraefikService")), b.START)) == "Starting"
    ), "it went away again"
    observing = b.moved(
        decide(in_shadow("Mirroring", assessment=agreement("Inconclusive", "NoData", 0)), b.START)
    )
    assert observing.shadow and observing.shadow.phase == "Observing" and observing.shadow.metric, (
        "the first look is the baseline"
    )
    leaving = decide(in_shadow("Observing", assessment=agreement("Successful", "ShadowAgrees")), b.START)
    assert phase(leaving) == "Leaving" and [e.reason for e in leaving.events] == ["ShadowPassed"]
    early = decide(in_shadow("Leaving", shadow={"since": b.ago(1)}), b.START)
    assert early.status.rollout and early.status.rollout.stage == "Shadow", "the data plane may still mirror"
    to = b.moved(decide(in_shadow("Leaving"), b.START))
    assert to.stage == "Canary" and to.step and (to.step.weight, to.step.phase) == (5, "Shifting")


def test_a_proven_disagreement_rejects_without_a_word_of_the_payload() -> None:
    plan = decide(in_shadow("Observing", assessment=agreement("Failed", "ShadowDisagrees", 200, 80)), b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason) == ("Revert", "Rejected", "ShadowDisagrees")
    assert to.shadow and to.shadow.metric and to.shadow.metric.canary and to.shadow.metric.canary.bad == 80, (
        "the evidence stays"
    )
    paused = b.spec(2, steps=b.STEPS, rollout={"shadow": SHADOW, "onFailure": "Pause"})
    plan = decide(
        in_shadow("Observing", wanted=paused, assessment=agreement("Failed", "ShadowDisagrees", 200, 80)),
        b.START,
    )
    assert phase(plan) == "Paused" and b.condition(plan, "Stalled").reason == "ShadowDisagrees"


def test_no_verdict_until_the_deadline_pauses_or_rejects() -> None:
    s = in_shadow("Observing", assessment=agreement("Inconclusive", "TooFewSamples", 3))
    soon = decide(s, b.START)
    assert isinstance(soon, Write) or soon.requeue_after
    late = decide(s, b.at(601))
    assert (
        phase(late) == "Paused" and b.moved(late).reason == "Inconclusive" and late.status.phase == "Paused"
    )
    rollback = b.spec(
        2, steps=b.STEPS, rollout={"shadow": SHADOW, "progressDeadline": "10m", "onInconclusive": "Rollback"}
    )
    to = b.moved(
        decide(
            in_shadow("Observing", wanted=rollback, assessment=agreement("Error", "ProviderUnreachable")),
            b.at(601),
        )
    )
    assert (to.stage, to.outcome, to.reason) == ("Revert", "Rejected", "ProviderUnreachable")


def test_agreement_of_pods_that_are_gone_is_no_ground_for_traffic() -> None:
    servers = {
        b.revision_name(1): b.ready(),
        b.revision_name(2): Server(2, 0, None, 2),
        COMPARER: Server(1, 1, None, 1),
    }
    to = b.moved(
        decide(
            in_shadow("Observing", servers=servers, assessment=agreement("Successful", "ShadowAgrees")),
            b.START,
        )
    )
    assert to.stage == "Shadow" and to.reason == "NoReadyPods"


def test_a_gateway_that_refuses_the_mirror_loses_it_at_once() -> None:
    refused = Traffic(False, "no", Problem("RouteNotAccepted", "the gateway refuses HTTPRoute: InvalidKind"))
    plan = decide(
        in_shadow("Observing", traffic=refused, assessment=agreement("Successful", "ShadowAgrees")), b.START
    )
    assert phase(plan) == "Paused"


def test_a_gateway_that_is_gone_does_not_end_the_shadow() -> None:
    """Without the mirror it would carry as little; it may be back before the deadline."""
    gone = Traffic(False, "gone", Problem("GatewayMissing", "gone"))
    s = in_shadow("Observing", traffic=gone, assessment=agreement("Inconclusive", "TooFewSamples"))
    here = decide(s, b.START).status.rollout
    assert here and here.shadow and here.shadow.phase == "Observing"


@pytest.mark.parametrize(("choice", "stage"), [("Pause", "Shadow"), ("Rollback", "Revert")])
def test_a_mirror_that_the_gateway_does_not_take_out_ends_the_wait(choice: str, stage: str) -> None:
    """The time of the comparison does not count."""
    gone = Traffic(False, "gone", Problem("GatewayMissing", "gone"))
    wanted = b.spec(
        2, steps=b.STEPS, rollout={"shadow": SHADOW, "progressDeadline": "2m", "onInconclusive": choice}
    )
    s = in_shadow("Leaving", wanted=wanted, traffic=gone, shadow={"since": b.ago(-1000)})
    waiting = b.moved(decide(s, b.at(1000)))
    assert waiting.shadow and (waiting.shadow.phase, waiting.reason) == ("Leaving", "GatewayMissing")
    ended = b.moved(decide(s, b.at(1121)))
    assert ended.stage == stage and "not out of the route within progressDeadline 2m: gone" in (
        ended.message or ""
    )
    assert choice == "Rollback" or (ended.shadow and ended.shadow.phase == "Paused")


def test_servers_that_crash_while_the_gateway_keeps_the_mirror_are_given_no_weight() -> None:
    def crashed(times: int, **shadow: Any) -> Snapshot:
        crash = Crash(b.ago(1), "ServerCrashed", "SIGSEGV", pod="p", created=b.ago(5), count=times)
        s = in_shadow("Leaving", shadow=shadow)
        canary = replace(b.ready(), crashes=(crash,))
        return replace(s, servers={**s.servers, b.revision_name(2): canary})

    on_hold = b.moved(decide(crashed(1), b.START))
    assert on_hold.shadow and (on_hold.shadow.phase, on_hold.reason) == ("Leaving", "ServerRestarted")
    assert b.moved(decide(crashed(1), b.at(400))).stage == "Canary"
    assert b.moved(decide(crashed(2), b.START)).stage == "Revert"
    assert b.moved(decide(crashed(2, override="by ann"), b.START)).stage == "Canary", "a person has decided"


def test_stay_at_least_as_long_as_asked() -> None:
    spec = b.spec(2, steps=b.STEPS, rollout={"shadow": SHADOW | {"for": "1m"}})
    s = in_shadow("Observing", wanted=spec, assessment=agreement("Successful", "ShadowAgrees"))
    here = decide(s, b.START).status.rollout
    assert here and here.shadow and here.shadow.phase == "Observing"
    assert phase(decide(s, b.at(60))) == "Leaving"


def test_other_tolerances_begin_anew_and_no_shadow_any_more_goes_on() -> None:
    other = b.spec(
        2, steps=b.STEPS, rollout={"shadow": SHADOW | {"outputs": [{"name": "logits", "argmax": True}]}}
    )
    to = b.moved(
        decide(
            in_shadow("Observing", wanted=other, assessment=agreement("Failed", "ShadowDisagrees")), b.START
        )
    )
    assert to.shadow and (to.shadow.phase, to.shadow.metric) == ("Starting", None)
    assert phase(decide(in_shadow("Observing", wanted=b.spec(2, steps=b.STEPS)), b.START)) == "Leaving"


def test_promote_and_abort_mean_the_shadow_by_its_name() -> None:
    def say(verb: str, step: str | None) -> Plan:
        return decide(in_shadow("Paused", verbs=(Verb(verb, b.revision_name(2), "n1", step),)), b.START)

    refused = say("promote", "1/3").status
    assert (
        "refused" in refused.handled_verbs[-1]
        and refused.rollout
        and refused.rollout.shadow
        and refused.rollout.shadow.phase == "Paused"
    )
    promoted = b.moved(say("promote", "shadow"))
    assert (
        promoted.shadow
        and promoted.shadow.phase == "Leaving"
        and "promote n1" in (promoted.shadow.override or "")
    )
    assert b.moved(say("abort", None)).stage == "Revert", "the route first, then the pods"


def test_promote_in_full_leads_past_the_shadow_and_all_steps() -> None:
    said = in_shadow("Observing", verbs=(Verb("promote-full", b.revision_name(2), "n1", "shadow"),))
    left = b.moved(decide(said, b.START))
    assert left.shadow and (left.shadow.phase, left.shadow.promoted) == ("Leaving", "Full"), (
        "the mirror is taken out first"
    )
    to = b.moved(decide(in_shadow("Leaving", shadow={"promoted": "Full"}), b.START))
    assert to.stage == "Promote" and to.step is None


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_shadow_cannot_be_held(verb: str) -> None:
    plan = decide(in_shadow("Observing", verbs=(Verb(verb, b.revision_name(2), "n1"),)), b.START)
    assert "promote or abort" in plan.status.handled_verbs[-1] and [e.reason for e in plan.events] == [
        "VerbRefused"
    ]


@pytest.mark.parametrize(("promoted", "stage"), [(None, "Shadow"), ("Step", "Canary"), ("Full", "Promote")])
def test_a_freeze_holds_the_step_after_the_shadow_unless_a_person_promoted(
    promoted: str | None, stage: str
) -> None:
    freeze = {"freezeWindows": [{"start": b.ago(60), "end": b.ago(-3600)}]}
    rules = combine([read({"metadata": {"name": "p"}, "spec": freeze})])
    plan = decide(in_shadow("Leaving", shadow={"promoted": promoted}, rules=rules), b.START)
    assert plan.status.rollout and plan.status.rollout.stage == stage
    assert ("FreezeOverridden" in [e.reason for e in plan.events]) == (promoted is not None)


def test_no_verdict_goes_on_unproven_where_the_spec_says_so_and_requests_were_mirrored() -> None:
    promote = b.spec(
        2, steps=b.STEPS, rollout={"shadow": SHADOW, "progressDeadline": "10m", "onInconclusive": "Promote"}
    )
    few = agreement("Inconclusive", "TooFewSamples", 3)
    plan = decide(in_shadow("Observing", wanted=promote, assessment=few), b.at(601))
    to = b.moved(plan)
    assert (
        to.shadow
        and (to.shadow.phase, to.shadow.promoted) == ("Leaving", None)
        and "onInconclusive" in (to.shadow.override or "")
    )
    assert [e.reason for e in plan.events] == ["PromotedByPolicy"]
    assert phase(decide(in_shadow("Starting", wanted=promote, ready=0), b.at(601))) == "Paused", (
        "nothing was mirrored"
    )


def test_it_is_looked_at_only_while_requests_are_mirrored() -> None:
    looked = {
        name: needs_measurement(in_shadow(name), b.TAKEN)
        for name in ("Starting", "Accepted", "Mirroring", "Observing", "Paused", "Leaving")
    }
    assert [name for name, look in looked.items() if look] == ["Mirroring", "Observing"]
    assert not needs_measurement(in_shadow("Mirroring"), Traffic(False))


def test_an_unreadable_spec_and_abort_take_the_mirror_out() -> None:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.edit(SPEC)
    world.verdict = "Inconclusive"
    for _ in range(10):
        world.kindly()
        world.reconcile()
    assert world.route_mirror == b.revision_name(2) == world.plane_mirror
    world.edit(None)
    world.reconcile()
    assert world.route_mirror is not None, "nothing changes by itself"
    world.say("abort", b.revision_name(2), "n1")
    for _ in range(3):
        world.reconcile()
        world.kindly()
    assert world.status.rollout and world.status.rollout.stage == "Failed"
    assert (world.route_mirror, world.plane_mirror) == (None, None) and world.mirror is not None, (
        "what it was made of waits for a spec"
    )


@pytest.mark.parametrize(
    ("strategy", "stages"),
    [
        ({"blueGreen": {}}, ["Shadow", "Canary", "Promote", "Done"]),
        (
            {"abTest": {"headers": [{"name": "x-group", "value": "b"}]}},
            ["Shadow", "Canary", "Promote", "Done"],
        ),
        ({"bake": "10s"}, ["Shadow", "Canary", "Promote", "Bake", "Done"]),
    ],
)
def test_it_comes_before_every_strategy(strategy: dict[str, Any], stages: list[str]) -> None:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.edit(b.spec(2, rollout={"shadow": SHADOW, **strategy}))
    world.serve()
    assert [r.stage for r in world.history if r.revision == b.revision_name(2)][-len(stages) :] == stages
    assert world.status.stable and world.status.stable.revision == b.revision_name(2) and world.mirror is None


def test_a_newer_spec_takes_the_mirror_out_first() -> None:
    newer = b.spec(3, steps=b.STEPS, rollout={"shadow": SHADOW})
    assert b.moved(decide(in_shadow("Observing", wanted=newer), b.START)).stage == "Revert"


def test_what_people_see() -> None:
    assessment = agreement("Inconclusive", "TooFewSamples", 3)
    plan = decide(
        in_shadow(
            "Observing", shadow={"metric": assessment.metrics[0], "measured": b.ago(5)}, assessment=assessment
        ),
        b.START,
    )
    assert (plan.status.phase, plan.status.step, plan.status.weight, plan.status.verdict) == (
        "Shadowing",
        "shadow",
        0,
        "in progress",
    )
    assert b.condition(plan, "Shadowed").message == "as it was counted"
    assert b.condition(plan, "CanaryPassed").reason == "NotReached"
    without = decide(b.in_canary(), b.START)
    assert "Shadowed" not in {c.type for c in without.status.conditions}, "who asks for none sees none"


def test_a_gateway_that_cannot_mirror_is_refused_before_anything_begins() -> None:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.way = None
    world.edit(SPEC)
    world.reconcile()
    stalled = next(c for c in world.status.conditions if c.type == "Stalled")
    assert (stalled.status, stalled.reason) == ("True", "GatewayFeatureMissing")
    world.way = "RequestMirror"
    world.serve()
    assert world.status.stable and world.status.stable.revision == b.revision_name(2), (
        "it begins by itself once the gateway can"
    )
    assert [r.stage for r in world.history if r.revision == b.revision_name(2)][-4:] == [
        "Shadow",
        "Canary",
        "Promote",
        "Done",
    ]
    assert world.revisions[b.revision_name(2)].status.shadow is not None
