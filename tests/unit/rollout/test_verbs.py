"""promote, abort, retry, rollback: carried out once, or refused with a reason
(docs/reference/verbs.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Pinned
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.revisions import revision_status
from modelrollout.rollout.plan import Write
from modelrollout.rollout.snapshot import JobState, Snapshot, Verb
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

V1, V2, V3 = (b.revision_name(v) for v in (1, 2, 3))


def promote(step: str | None = "1/3", revision: str = V2, nonce: str = "n1") -> Verb:
    return Verb("promote", revision, nonce, step)


def refusal(s: Snapshot) -> str:
    """The verb is refused: status says why, and nothing else changes."""
    plan = decide(s, b.START)
    assert [e.reason for e in plan.events] == ["VerbRefused"]
    before, after = s.status.rollout, plan.status.rollout
    assert before == after
    return plan.status.handled_verbs[-1].split(":refused ", 1)[1]


# --- who, and why


def test_who_requested_a_verb_and_why_stands_in_event_rollout_and_revision() -> None:
    verb = replace(promote(), by="alice", reason="the labels were wrong")
    plan = decide(b.in_canary(verbs=(verb,), assessment=b.judged("Inconclusive")), b.START)
    assert plan.events[0].message.endswith(" (by alice: the labels were wrong)")
    (record,) = b.moved(plan).verbs
    assert (record.verb, record.by, record.reason, record.step) == (
        "promote", "alice", "the labels were wrong", "1/3",
    )  # fmt: skip
    s = replace(b.in_canary(), status=plan.status)
    assert revision_status(s)[V2].verbs == [record]


def test_a_verb_without_author_and_reason_is_recorded_all_the_same() -> None:
    plan = decide(b.in_canary(verbs=(promote(),), assessment=b.judged("Inconclusive")), b.START)
    assert plan.events[0].message.endswith("was promoted by hand")
    assert [(r.verb, r.by, r.reason) for r in b.moved(plan).verbs] == [("promote", None, None)]


def test_a_rollback_is_recorded_on_the_revision_that_it_restores_beside_what_was_there() -> None:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.edit(b.spec(2))
    world.serve()
    for nonce in ("n1", "n2"):
        world.say("restart", V1 if world.status.stable and world.status.stable.revision == V1 else V2, nonce)
        world.serve()
    world.say("rollback", V1, "n3")
    world.serve()
    assert [r.verb for r in world.revisions[V2].status.verbs] == ["restart", "restart"]
    assert [r.verb for r in world.revisions[V1].status.verbs] == ["rollback"]


# --- promote


def test_promote_goes_on_without_a_verdict_and_leaves_a_trace() -> None:
    plan = decide(b.in_canary(verbs=(promote(),), assessment=b.judged("Inconclusive")), b.START)
    to = b.moved(plan)
    assert to.step and (to.step.weight, to.step.override) == (25, "promote n1 at 1/3")
    assert [(e.verdict, e.reason) for e in to.history] == [("Inconclusive", "PromotedByUser")]
    assert plan.status.handled_verbs == [f"promote:{V2}:n1"]
    assert [e.reason for e in plan.events] == ["PromotedByUser"]


@pytest.mark.parametrize("reason", ["PauseStep", "Inconclusive", "AccuracyLow"])
def test_promote_ends_a_pause_of_any_cause(reason: str) -> None:
    to = b.moved(
        decide(b.in_canary(at_step=b.step(phase="Paused"), reason=reason, verbs=(promote(),)), b.START)
    )
    assert to.step and (to.step.weight, to.reason) == (25, None)


def test_promote_at_the_last_step_promotes() -> None:
    assert (
        b.moved(decide(b.in_canary(at_step=b.step(2, 50), verbs=(promote("3/3"),)), b.START)).stage
        == "Promote"
    )


@pytest.mark.parametrize("step", ["2/3", "1/4", None])
def test_promote_of_another_step_than_the_present_one_is_refused(step: str | None) -> None:
    assert "the rollout is at step 1/3" in refusal(b.in_canary(verbs=(promote(step),)))


def test_promote_of_another_revision_is_refused() -> None:
    assert "is not in a step of a trial" in refusal(b.in_canary(verbs=(promote(revision=V1),)))


@pytest.mark.parametrize("stage", ["Prepare", "Provision", "Evaluate", "Promote"])
def test_only_canary_steps_are_promoted(stage: str) -> None:
    assert "is not in a step of a trial" in refusal(b.second(stage, verbs=(promote(),)))


# --- each verb is carried out once


def test_a_verb_that_was_handled_is_not_carried_out_again() -> None:
    s = b.in_canary(verbs=(promote(),))
    after = decide(s, b.START).status
    again = decide(replace(s, status=after), b.START)
    assert again.status.rollout and again.status.rollout.step and again.status.rollout.step.weight == 25


def test_another_nonce_is_another_request() -> None:
    s = b.in_canary(verbs=(promote("2/3", nonce="n2"),), at_step=b.step(1, 25))
    s = replace(s, status=s.status.model_copy(update={"handled_verbs": [f"promote:{V2}:n1"]}))
    plan = decide(s, b.START)
    assert b.moved(plan).step and plan.status.handled_verbs == [f"promote:{V2}:n2"], (
        "one entry for each annotation"
    )


@pytest.mark.parametrize("nonce", ["2026-11-22T12:00:00Z", "a:b:c", "x" * 100_000, "über", ":"])
def test_any_nonce_is_remembered(nonce: str) -> None:
    """A timestamp is what a person would write; entries of status are split at colons."""
    s = b.in_canary(verbs=(promote("9/9", nonce=nonce),), assessment=b.judged("Inconclusive"))
    assert "the rollout is at step" in refusal(s)
    after = decide(s, b.START).status
    assert not decide(replace(s, status=after), b.START).events, "it is handled"
    assert len(after.model_dump_json()) < 8000


def test_the_trace_of_an_override_is_short() -> None:
    to = b.moved(decide(b.in_canary(verbs=(promote(nonce="x" * 100_000),)), b.START))
    assert to.step and len(to.step.override or "") < 100


def test_nothing_handled_is_forgotten_while_its_revision_exists() -> None:
    """Or an old annotation would be carried out a second time."""
    revisions = tuple(
        replace(b.revision(1, "Retired"), name=f"digits-{i:08x}", number=i) for i in range(1, 60)
    )
    handled = [
        f"{verb}:{r.name}:old:refused {'because ' * 10}"
        for r in revisions
        for verb in ("rollback", "retry", "abort")
    ]
    old = tuple(Verb(verb, r.name, "old") for r in revisions for verb in ("rollback", "retry", "abort"))
    state = b.status(1, handled_verbs=handled, rollout=b.rollout("Done", 1, outcome="Stable"))
    s = b.snapshot(
        b.spec(1),
        state,
        revisions=(*revisions, b.revision(1, "Stable", number=60)),
        verbs=(*old, Verb("rollback", "digits-0000000a", "new")),
    )
    s = replace(s, servers={V1: b.ready()}, traffic=b.TAKEN)
    after = decide(s, b.START).status
    assert after.rollout and after.rollout.stage in ("Done", "Provision")
    assert {":".join(e.split(":")[:3]) for e in handled if not e.startswith("rollback:digits-0000000a")} <= {
        ":".join(e.split(":")[:3]) for e in after.handled_verbs
    }
    assert len(after.model_dump_json()) < 32 * 1024


def test_what_was_handled_on_a_revision_that_went_is_forgotten() -> None:
    s = b.in_canary(verbs=(promote(),))
    s = replace(s, status=s.status.model_copy(update={"handled_verbs": ["abort:digits-gone:n1"]}))
    assert decide(s, b.START).status.handled_verbs == [f"promote:{V2}:n1"]


# --- abort


@pytest.mark.parametrize(
    ("stage", "to"),
    [("Prepare", "Failed"), ("Provision", "Failed"), ("Evaluate", "Failed"), ("Promote", "Revert")],
)
def test_abort_takes_traffic_back_where_there_may_be_some(stage: str, to: str) -> None:
    after = b.moved(decide(b.second(stage, verbs=(Verb("abort", V2, "n1"),)), b.START))
    assert (after.stage, after.outcome, after.reason) == (to, "Aborted", "AbortedByUser")


def test_abort_in_the_canary_takes_traffic_back() -> None:
    assert b.moved(decide(b.in_canary(verbs=(Verb("abort", V2, "n1"),)), b.START)).stage == "Revert"


def test_abort_of_the_first_version_ends_it() -> None:
    state = b.status(None, rollout=b.rollout("Promote", 1))
    s = b.snapshot(
        b.spec(1),
        state,
        revisions=(b.revision(1),),
        servers={V1: b.ready()},
        verbs=(Verb("abort", V1, "n1"),),
    )
    assert b.moved(decide(s, b.START)).stage == "Failed"


def test_abort_of_another_revision_or_of_nothing_is_refused() -> None:
    assert "no rollout of" in refusal(b.in_canary(verbs=(Verb("abort", V1, "n1"),)))
    done = b.snapshot(
        b.spec(1),
        b.status(1, rollout=b.rollout("Done", 1)),
        revisions=(b.revision(1, "Stable"),),
        verbs=(Verb("abort", "", "n1"),),
    )
    assert "no rollout" in refusal(done)


def test_abort_of_a_rollback_is_refused() -> None:
    s = b.second(
        "Revert",
        changes={"outcome": "RolledBack", "reason": "AccuracyLow"},
        verbs=(Verb("abort", V2, "n1"),),
        traffic=type(b.TAKEN)(False),
    )
    assert "already going back to stable" in refusal(s)


# --- retry


def ended(outcome: str = "RolledBack", **facts: Any) -> Snapshot:
    """Version 2 has failed, spec still asks for it."""
    state = b.status(
        1, rollout=b.rollout("Failed", 2, outcome=outcome, reason="AccuracyLow", artifact=b.artifact(2))
    )
    s = b.snapshot(
        b.spec(2),
        state,
        revisions=(b.revision(1, "Stable"), b.revision(2, outcome)),
        servers={V1: b.ready()},
        traffic=b.TAKEN,
    )
    recorded = b.children(s).revision_status
    known = tuple(replace(r, status=recorded.get(r.name, r.status)) for r in s.revisions)
    return replace(s, revisions=known, **facts)


def test_retry_begins_again_with_what_was_prepared() -> None:
    to = b.moved(decide(ended(verbs=(Verb("retry", V2, "n1"),)), b.START))
    assert (to.stage, to.revision, to.number, to.outcome, to.history) == ("Prepare", V2, 2, None, [])


def test_retry_on_the_model_deployment_looks_at_the_source_again() -> None:
    assert b.moved(decide(ended(verbs=(Verb("retry", "", "n1"),)), b.START)).stage == "Resolve"


def test_retry_with_a_digest_in_spec_has_nothing_to_look_at() -> None:
    to = b.moved(decide(ended(spec=b.spec(2, pinned=True), verbs=(Verb("retry", "", "n1"),)), b.START))
    assert (to.stage, to.revision) == ("Prepare", V2)


def test_retry_while_something_is_in_flight_is_refused() -> None:
    assert "abort it first" in refusal(b.in_canary(verbs=(Verb("retry", V2, "n1"),)))


def test_retry_of_what_spec_does_not_ask_for_is_refused() -> None:
    assert "spec requests another version" in refusal(ended(verbs=(Verb("retry", V1, "n1"),)))


def test_retry_of_stable_is_refused() -> None:
    s = b.snapshot(
        b.spec(1),
        b.status(1, rollout=b.rollout("Done", 1)),
        revisions=(b.revision(1, "Stable"),),
        verbs=(Verb("retry", V1, "n1"),),
    )
    assert "is stable" in refusal(s)
    assert "is stable" in refusal(replace(s, spec=b.spec(1, pinned=True), verbs=(Verb("retry", "", "n1"),)))


def test_retry_of_a_spec_that_is_not_allowed_is_refused() -> None:
    s = ended(verbs=(Verb("retry", V2, "n1"),), spec_problem=Problem("StoreNotAllowed", "use s3://models"))
    assert refusal(s) == "use s3://models"


# --- rollback


def third(**facts: Any) -> Snapshot:
    """Version 2 is stable, version 1 was; spec asks for 2."""
    state = b.status(2, rollout=b.rollout("Done", 2, outcome="Promoted"))
    return b.snapshot(
        b.spec(2),
        state,
        **(
            {
                "revisions": (b.revision(1, "Retired"), b.revision(2, "Promoted")),
                "servers": {V2: b.ready()},
                "traffic": b.TAKEN,
            }
            | facts
        ),
    )


def settled(s: Snapshot) -> Snapshot:
    """With the evidence of the ended rollout recorded."""
    recorded = b.children(replace(s, verbs=())).revision_status
    return replace(s, revisions=tuple(replace(r, status=recorded.get(r.name, r.status)) for r in s.revisions))


ROLLBACK = Verb("rollback", V1, "n1")


def test_what_has_served_and_was_superseded_when_it_was_tried_again_can_still_be_gone_back_to() -> None:
    """Git went back to version 1 for a minute and on to version 3: nothing was found against it."""
    existing = b.revision(1, "Canary")
    existing = replace(existing, status=existing.status.model_copy(update={"retired": b.ago(500)}))
    state = b.status(2, rollout=b.rollout("Failed", 1, outcome="Superseded", reason="Superseded"))
    s = settled(replace(third(revisions=(existing, b.revision(2, "Stable"))), status=state))
    assert s.revisions[0].status.outcome == "Retired"
    assert b.moved(decide(replace(s, verbs=(ROLLBACK,)), b.START)).mode == "Rollback"


def test_rollback_goes_to_provision_with_what_is_proven_and_pins() -> None:
    plan = decide(settled(third(verbs=(ROLLBACK,))), b.START)
    to = b.moved(plan)
    assert (to.stage, to.mode, to.revision, to.number, to.artifact) == (
        "Provision",
        "Rollback",
        V1,
        1,
        b.artifact(1),
    )
    assert plan.status.pinned and (plan.status.pinned.revision, plan.status.pinned.generation) == (V1, 1)


@pytest.mark.parametrize("outcome", ["RolledBack", "Rejected", "Failed", "Aborted", "Superseded", "Pending"])
def test_rollback_to_what_never_served_is_refused(outcome: str) -> None:
    assert "never served as stable" in refusal(
        settled(third(verbs=(ROLLBACK,), revisions=(b.revision(1, outcome), b.revision(2, "Promoted"))))
    )


def test_rollback_to_what_was_never_prepared_is_refused() -> None:
    s = third(
        verbs=(ROLLBACK,), revisions=(b.revision(1, "Retired", prepared=False), b.revision(2, "Promoted"))
    )
    assert "never prepared" in refusal(settled(s))


def test_rollback_to_stable_or_to_nothing_is_refused() -> None:
    assert "stable already" in refusal(settled(third(verbs=(Verb("rollback", V2, "n1"),))))
    assert "there is no revision" in refusal(settled(third(verbs=(Verb("rollback", "digits-gone", "n1"),))))


def test_rollback_in_mid_canary_first_gives_traffic_back() -> None:
    revisions = (b.revision(1, "Retired"), b.revision(2, "Promoted"), b.revision(3, "Canary"))
    state = b.status(2, rollout=b.rollout("Canary", 3, step=b.step()), last_number=3)
    s = b.snapshot(
        b.spec(3, steps=b.STEPS),
        state,
        revisions=revisions,
        servers={V2: b.ready(), V3: b.ready()},
        traffic=b.TAKEN,
        verbs=(ROLLBACK,),
    )
    plan = decide(s, b.START)
    assert b.moved(plan).stage == "Revert" and plan.status.handled_verbs == [], (
        "it is carried out when stable has all traffic"
    )
    waiting = decide(replace(s, status=plan.status, traffic=type(b.TAKEN)(False)), b.at(1))
    assert waiting.status.rollout and waiting.status.rollout.stage == "Revert"


def test_a_second_rollback_to_the_same_revision_does_not_start_it_over() -> None:
    state = b.status(2, rollout=b.rollout("Provision", 1, mode="Rollback"))
    s = third(verbs=(ROLLBACK,))
    assert "in flight already" in refusal(replace(s, status=state))


@pytest.mark.parametrize("stage", ["Prepare", "Provision", "Evaluate"])
def test_rollback_to_what_spec_requests_again_does_not_end_its_rollout(stage: str) -> None:
    state = b.status(2, rollout=b.rollout(stage, 1))
    s = replace(third(verbs=(ROLLBACK,)), spec=b.spec(1))
    assert f"a rollout of {V1} is in flight already" in refusal(replace(s, status=state))


def test_a_rollback_that_fails_says_nothing_about_the_version_and_stays_pinned() -> None:
    rollout = b.rollout("Provision", 1, mode="Rollback")
    state = b.status(2, rollout=rollout, pinned=Pinned(revision=V1, generation=1))
    s = replace(third(), status=state, spec=b.spec(2, rollout={"progressDeadline": "1m"}))
    plan = decide(s, b.at(100))
    assert b.moved(plan).stage == "Failed"
    after = b.children(replace(s, status=plan.status), b.at(100))
    assert V1 not in after.revision_status or after.revision_status[V1].outcome == "Retired"
    assert b.condition(plan, "Ready").status == "True", "stable still is what spec asks for"


def test_an_unreadable_spec_waits_with_its_verbs() -> None:
    plan = decide(
        replace(b.in_canary(verbs=(promote(),)), spec=None, parse_error="spec.model: missing"), b.START
    )
    assert plan.status.handled_verbs == [] and isinstance(plan, Write)


def test_work_in_flight_is_not_disturbed_by_a_refused_verb() -> None:
    s = b.second("Resolve", verbs=(promote(),), work=JobState("Running"))
    after = decide(s, b.START).status
    children = b.children(replace(s, status=after))
    assert children.work is not None
