"""pause, resume, promote --full, restart, and the window of rollback (docs/reference/verbs.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import RestartStatus, UserPause
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired import desired
from modelrollout.rollout.snapshot import Server, Snapshot, Verb
from modelrollout.testing import builders as b
from tests.unit.rollout.test_verbs import refusal

V1, V2 = b.revision_name(1), b.revision_name(2)
PAUSE = UserPause(since=b.ago(5), by="n0")


def say(verb: str, step: str | None = None, revision: str = V2) -> tuple[Verb, ...]:
    return (Verb(verb, revision, "n1", step),)


def paused(**facts: Any) -> Snapshot:
    s = b.in_canary(**facts)
    assert s.status.rollout
    return replace(
        s,
        status=s.status.model_copy(
            update={"rollout": s.status.rollout.model_copy(update={"paused_by_user": PAUSE})}
        ),
    )


# --- pause and resume


@pytest.mark.parametrize("step", [None, "1/3"])
def test_pause_holds_the_weight_whatever_the_verdict(step: str | None) -> None:
    plan = decide(b.in_canary(verbs=say("pause", step), assessment=b.judged("Successful")), b.START)
    assert (
        b.moved(plan).paused_by_user == UserPause(since=b.ago(0), by="n1") and plan.status.phase == "Paused"
    )
    later = decide(paused(assessment=b.judged("Successful")), b.at(100_000)).status.rollout
    assert later and later.step and (later.stage, later.step.weight) == ("Canary", 5)


def test_a_paused_rollout_is_no_stall_and_says_what_to_do() -> None:
    plan = decide(paused(assessment=b.judged("Inconclusive")), b.START)
    assert b.condition(plan, "Stalled").status == "False"
    assert (
        b.condition(plan, "Reconciling").reason == "PausedByUser"
        and "resume" in b.condition(plan, "Ready").message
    )


def test_what_is_proven_worse_goes_back_in_a_pause_too() -> None:
    to = b.moved(decide(paused(assessment=b.judged("Failed")), b.START))
    assert (to.stage, to.paused_by_user) == ("Revert", None)


def test_pause_of_another_step_revision_or_stage_is_refused() -> None:
    assert "it names step 2/3" in refusal(b.in_canary(verbs=say("pause", "2/3")))
    assert "not in a step of a trial" in refusal(b.in_canary(verbs=say("pause", revision=V1)))
    assert "not in a step of a trial" in refusal(b.second("Provision", verbs=say("pause")))
    assert "paused already" in refusal(replace(paused(), verbs=say("pause")))


def test_a_pause_takes_no_time_from_the_deadline() -> None:
    s = replace(
        paused(wanted=b.spec(2, rollout={"canary": {"steps": b.STEPS}, "progressDeadline": "1m"})),
        verbs=say("resume"),
    )
    to = b.moved(decide(s, b.at(1000)))
    assert to.paused_by_user is None and to.step and to.step.since == b.ago(10 - 1005)
    assert to.stage == "Canary"
    on = replace(
        s, verbs=(), status=s.status.model_copy(update={"rollout": to}), assessment=b.judged("Inconclusive")
    )
    assert b.moved(decide(on, b.at(1040))).step != to.step and b.moved(decide(on, b.at(1040))).reason is None
    assert b.moved(decide(on, b.at(1060))).reason == "Inconclusive"


def test_a_timed_pause_does_not_end_while_a_person_holds_it() -> None:
    spec = b.spec(2, steps=[{"weight": 5}, {"pause": {"duration": "1m"}}, {"weight": 50}])
    s = paused(wanted=spec, at_step=b.step(1, 5, "Paused"), reason="PauseStep")
    assert decide(s, b.at(10_000)).status.weight == 5


def test_resume_of_what_is_not_paused_is_refused() -> None:
    assert refusal(b.in_canary(verbs=say("resume"))) == "it is not paused by hand"
    waiting = b.in_canary(at_step=b.step(phase="Paused"), reason="Inconclusive", verbs=say("resume"))
    assert refusal(waiting) == "it is not paused by hand; promote it to go on"


def test_promote_ends_a_pause_by_hand() -> None:
    to = b.moved(decide(replace(paused(), verbs=say("promote", "1/3")), b.START))
    assert to.step and (to.step.weight, to.paused_by_user) == (25, None)


# --- promote --full


def test_promote_full_skips_all_steps_and_leaves_a_trace() -> None:
    to = b.moved(decide(b.in_canary(verbs=say("promote-full", "1/3")), b.START))
    assert (to.stage, to.history[-1].reason) == ("Promote", "PromotedByUser")
    assert to.step and to.step.override == "promote-full n1 at 1/3"


def test_it_names_the_step_that_it_means() -> None:
    assert "it names step 3/3" in refusal(b.in_canary(verbs=say("promote-full", "3/3")))
    assert "it names step (none)" in refusal(b.in_canary(verbs=say("promote-full")))


def test_promote_ends_a_bake_and_promote_full_does_not() -> None:
    spec = b.spec(2, rollout={"bake": "30m"})
    s = b.second("Bake", wanted=spec, changes={"step": b.step(3, 100)}, live_split=((V2, 100),))
    assert b.moved(decide(replace(s, verbs=say("promote", "bake")), b.START)).stage == "Done"
    assert "promote ends its bake" in refusal(replace(s, verbs=say("promote-full", "bake")))


# --- restart


def test_restart_is_kept_in_status_and_in_the_pods() -> None:
    s = b.snapshot(
        b.spec(1), b.status(1), revisions=(b.revision(1, "Stable"),), servers={V1: b.ready()}, traffic=b.TAKEN
    )
    plan = decide(replace(s, verbs=say("restart", revision=V1)), b.START)
    assert plan.status.restarts == {V1: RestartStatus(at=b.ago(0))} and [e.reason for e in plan.events] == [
        "RestartedByUser"
    ]
    again = replace(s, verbs=say("restart", revision=V1), status=plan.status)
    assert decide(again, b.at(60)).status.restarts == {V1: RestartStatus(at=b.ago(0))}, "carried out once"
    assert desired(again, b.START).restarts == {V1: b.ago(0)}


def test_a_lost_status_restarts_nothing() -> None:
    """What the pods say stands, or the next write of their Deployment would replace them."""
    servers = {V1: Server(2, 2, None, 2, restarted="2026-11-22T10:00:00.000Z")}
    s = b.snapshot(
        b.spec(1), b.status(1), revisions=(b.revision(1, "Stable"),), servers=servers, traffic=b.TAKEN
    )
    assert desired(s, b.START).restarts == {V1: "2026-11-22T10:00:00.000Z"}


def test_what_has_pods_is_restarted_and_nothing_else() -> None:
    """Stable, what is on trial, and bake's former stable."""
    for revision in (V1, V2):
        plan = decide(b.in_canary(verbs=say("restart", revision=revision)), b.START)
        assert set(plan.status.restarts) == {revision}
    baking = b.second(
        "Bake",
        wanted=b.spec(2, rollout={"bake": "30m"}),
        changes={"step": b.step(3, 100)},
        live_split=((V2, 100),),
    )
    assert set(decide(replace(baking, verbs=say("restart", revision=V1)), b.START).status.restarts) == {V1}
    queued = b.in_canary(verbs=say("restart"))
    assert "has no pods" in refusal(replace(queued, servers={V1: b.ready()}))


def test_downtime_is_allowed_for_one_restart() -> None:
    s = b.snapshot(
        b.spec(1), b.status(1), revisions=(b.revision(1, "Stable"),), servers={V1: b.ready()}, traffic=b.TAKEN
    )
    first = decide(replace(s, verbs=say("restart-allow-downtime", revision=V1)), b.START).status
    assert desired(replace(s, status=first), b.START).ends_first == {V1}
    again = decide(replace(s, status=first, verbs=say("restart", revision=V1)), b.at(60)).status
    assert desired(replace(s, status=again), b.START).ends_first == frozenset()


# --- rollback within its window


def back(window: str | None, retired: str | None) -> Any:
    existing = b.revision(1, "Retired")
    existing = replace(existing, status=existing.status.model_copy(update={"retired": retired}))
    spec = b.spec(2, steps=b.STEPS, rollout={"rollbackWindow": window} if window else {})
    s = b.snapshot(
        spec,
        b.status(2),
        revisions=(existing, b.revision(2, "Promoted")),
        servers={V1: b.ready(), V2: b.ready()},
        traffic=b.TAKEN,
    )
    return replace(s, verbs=say("rollback", revision=V1))


@pytest.mark.parametrize(
    ("window", "retired", "proven"),
    [(None, None, True), ("1h", b.ago(60), True), ("1h", b.ago(3700), False), ("1h", None, False)],
)
def test_what_was_proven_counts_within_the_window(
    window: str | None, retired: str | None, proven: bool
) -> None:
    s = back(window, retired)
    begun = decide(s, b.START).status
    assert begun.rollout and (begun.rollout.mode, begun.rollout.proven) == ("Rollback", proven)
    onward = decide(replace(s, status=begun), b.START).status.rollout
    assert onward and onward.stage == ("Promote" if proven else "Canary")


def test_beyond_it_the_revision_is_judged_like_a_new_one_and_spec_does_not_take_it_away() -> None:
    s = back("1h", b.ago(3700))
    for _ in range(3):
        s = replace(s, status=decide(s, b.START).status)
    rollout = s.status.rollout
    assert (
        rollout
        and rollout.step
        and (rollout.stage, rollout.revision, rollout.step.weight) == ("Canary", V1, 5)
    )
    observing = rollout.model_copy(update={"step": b.step()})
    bad = replace(s, status=s.status.model_copy(update={"rollout": observing}), assessment=b.judged("Failed"))
    assert b.moved(decide(bad, b.START)).outcome == "RolledBack"
