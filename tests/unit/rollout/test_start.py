"""When a rollout begins, when another takes its place, and when none does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentSpec, ModelDeploymentStatus, Pinned
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.plan import Converge, Wait, Write
from modelrollout.rollout.snapshot import Snapshot, Verb
from modelrollout.rollout.transitions import pinned
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)


def at_rest(version: int = 1, **facts: Any) -> Snapshot:
    """Version 1 is stable, and its rollout is over and recorded."""
    state = b.status(1, rollout=b.rollout("Done", 1, outcome="Stable"), last_number=1)
    usual: dict[str, Any] = {
        "revisions": (b.revision(1, "Stable"),),
        "servers": {V1: b.ready()},
        "traffic": b.TAKEN,
    }
    s = b.snapshot(b.spec(version), state, **(usual | facts))
    recorded = b.children(replace(s, spec=b.spec(1), spec_problem=None)).revision_status
    return replace(s, revisions=tuple(replace(r, status=recorded.get(r.name, r.status)) for r in s.revisions))


def begins(s: Snapshot) -> bool:
    plan = decide(s, b.START)
    before = s.status.rollout.started if s.status.rollout else None
    return plan.status.rollout is not None and plan.status.rollout.started != before


EMPTY = {"nodeSelector": {}, "tolerations": []}


def with_empty_fields(version: int) -> ModelDeploymentSpec:
    plain = b.spec(version)
    return b.spec(version, serving=plain.serving.wire() | EMPTY)


@pytest.mark.parametrize("requested", [b.spec(1), with_empty_fields(1)], ids=["left out", "empty"])
@pytest.mark.parametrize("recorded", [b.spec(1), with_empty_fields(1)], ids=["from left out", "from empty"])
def test_what_is_empty_begins_no_rollout_whichever_operator_recorded_the_stable_version(
    requested: ModelDeploymentSpec, recorded: ModelDeploymentSpec
) -> None:
    for written in (recorded.user_input(), recorded.user_input_as_written()):
        s = at_rest(1, revisions=(replace(b.revision(1, "Stable"), input=written),))
        assert not begins(replace(s, spec=requested))
        assert begins(replace(s, spec=with_empty_fields(2)))


@pytest.mark.parametrize("stage", ["Resolve", "Failed"])
def test_a_rollout_of_empty_fields_that_an_earlier_operator_began_is_not_begun_again(stage: str) -> None:
    """It has no revision, so the hash of the version tells."""
    spec = with_empty_fields(2)
    earlier = names.short_hash([spec.user_input_as_written(), None])
    assert earlier != names.short_hash([spec.user_input(), None])
    outcome = {"stage": "Failed", "outcome": "Failed", "reason": "StoreNotResolved"}
    rollout = b.rollout("Resolve", 2, input_hash=earlier).model_copy(
        update=outcome if stage == "Failed" else {}
    )
    s = replace(at_rest(2), status=b.status(1, rollout=rollout))
    for requested, same in ((spec, True), (with_empty_fields(3), False)):
        after = decide(replace(s, spec=requested), b.START).status.rollout
        assert after is not None
        assert ((after.stage, after.started) == (stage, rollout.started)) is same


def test_a_pin_of_an_earlier_operator_holds_for_empty_fields() -> None:
    spec = with_empty_fields(2)
    earlier = names.short_hash([spec.user_input_as_written(), None])
    state = b.status(1, pinned=Pinned(revision=V1, generation=1, input_hash=earlier))
    s = replace(at_rest(2), status=state)
    assert not begins(replace(s, spec=spec))
    assert begins(replace(s, spec=with_empty_fields(3)))


def test_a_new_model_deployment_begins_at_once() -> None:
    assert begins(b.snapshot(b.spec(1), ModelDeploymentStatus()))


def test_another_version_begins() -> None:
    plan = decide(at_rest(2), b.START)
    assert b.moved(plan).stage == "Resolve" and b.moved(plan).generation == 1
    assert [e.reason for e in plan.events] == ["RolloutStarted"]
    assert plan.status.stable == b.ref(1)


@pytest.mark.parametrize(
    "edited",
    [
        b.spec(1, replicas=7),
        b.spec(1, steps=b.STEPS, golden=True),
        b.spec(1, gateway=False),
        b.spec(1, pinned=True),
        b.spec(1, revisionHistoryLimit=9),
        b.spec(1, model={"uri": b.uri(1), "lineage": {"commit": "4f2a9c1"}}),
        b.spec(1, optimization={"timeout": "2h", "queueName": "q", "resources": {"limits": {"cpu": 8}}}),
    ],
    ids=["replicas", "rollout", "traffic", "the digest itself", "history", "lineage", "the job's resources"],
)
def test_what_changes_no_answer_is_no_other_version(edited: Any) -> None:
    assert not begins(
        replace(at_rest(), spec=edited, generation=2, exact_weights=edited.traffic.gateway is not None)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"uri": b.uri(1), "sha256": b.sha(9)}},
        {"serving": {"replicas": 2, "resources": {"limits": {"nvidia.com/gpu": 2}}}},
        {
            "serving": {
                "replicas": 2,
                "resources": {"limits": {"nvidia.com/gpu": 1}},
                "batching": {"maxBatchSize": 8},
            }
        },
        {"optimization": {"steps": [{"int8": {}}]}},
    ],
    ids=["digest", "gpu", "batching", "optimization"],
)
def test_what_changes_answers_or_speed_is_another_version(changes: dict[str, Any]) -> None:
    assert begins(replace(at_rest(), spec=b.spec(1, **changes), generation=2))


def test_an_upgrade_that_adds_a_default_begins_nothing() -> None:
    """Inputs are compared as today's types read them: an older one lacks the new field."""
    old = b.revision(1, "Stable")
    older = replace(
        old,
        input={
            part: {k: v for k, v in fields.items() if k != "batching"} for part, fields in old.input.items()
        },
    )
    assert older.input != old.input
    assert not begins(at_rest(revisions=(older,)))


def test_going_back_to_an_older_operator_begins_nothing_either() -> None:
    """Its types do not know a field of stable's input; what they do know is as spec has it."""
    made = b.revision(1, "Stable")
    newer = replace(made, input=made.input | {"serving": made.input["serving"] | {"quantum": {"spin": 1}}})
    assert not begins(at_rest(revisions=(newer,)))
    assert begins(at_rest(2, revisions=(newer,)))


def test_what_is_empty_in_a_list_begins_nothing_after_a_newer_operator_either() -> None:
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {}}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    spec = b.spec(1, serving=b.spec(1).serving.wire() | {"affinity": affinity})
    recorded = spec.user_input_as_written()
    newer = recorded | {"model": recorded["model"] | {"quantum": True}}
    s = at_rest(1, revisions=(replace(b.revision(1, "Stable"), input=newer),))
    assert not begins(replace(s, spec=spec))


def test_an_input_of_a_newer_operator_does_no_harm() -> None:
    old = b.revision(1, "Retired")
    newer = replace(
        old, name="digits-newer", number=9, input=old.input | {"model": {"uri": b.uri(1), "quantum": True}}
    )
    assert not begins(at_rest(revisions=(b.revision(1, "Stable"), newer)))


# --- the evidence of the old rollout stands in its revision before a new one takes its place


def test_a_new_rollout_waits_until_the_old_ones_evidence_is_recorded() -> None:
    s = at_rest(2)
    unrecorded = replace(s, revisions=(b.revision(1, "Canary"),))
    plan = decide(unrecorded, b.START)
    assert (
        isinstance(plan, Converge)
        and plan.desired.revision_status[V1].outcome == "Stable"
        and plan.requeue_after == 0
    )
    assert begins(s)


# --- failures are remembered


@pytest.mark.parametrize("outcome", ["RolledBack", "Rejected", "Failed", "Aborted"])
def test_a_version_that_ended_badly_is_not_tried_again(outcome: str) -> None:
    state = b.status(1, rollout=b.rollout("Failed", 2, outcome=outcome, reason="AccuracyLow"))
    s = at_rest(2, revisions=(b.revision(1, "Stable"), b.revision(2, outcome, reason="AccuracyLow")))
    assert not begins(replace(s, status=state))
    plan = decide(s, b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason, to.revision) == ("Failed", outcome, "Quarantined", V2)
    assert (
        b.condition(plan, "Stalled").reason == "Quarantined" and "retry" in b.condition(plan, "Ready").message
    )
    children = b.children(replace(s, status=plan.status))
    assert V2 not in children.revision_status, "its own evidence stays as it is"
    assert set(children.servers) == {V1} and children.work is None


def test_the_same_bytes_under_another_uri_are_another_version_only_if_spec_says_so() -> None:
    """The URI is part of the user's input: moving the file is a new version, to be proven again."""
    assert begins(at_rest(revisions=(b.revision(1, "Stable"),), version=2))


def test_a_failure_before_there_was_a_revision_is_remembered_too() -> None:
    failed = b.rollout(
        "Failed", 2, revision=None, number=None, sha256=None, outcome="Failed", reason="ObjectMissing"
    )
    s = replace(at_rest(2), status=b.status(1, rollout=failed))
    assert not begins(s)
    assert not begins(replace(s, generation=5)), "the next sync of Git changes nothing"
    assert begins(replace(s, spec=b.spec(3)))


def test_a_version_that_was_only_superseded_is_tried_again() -> None:
    state = b.status(1, rollout=b.rollout("Failed", 2, outcome="Superseded", reason="Superseded"))
    s = replace(at_rest(2, revisions=(b.revision(1, "Stable"), b.revision(2, "Superseded"))), status=state)
    recorded = b.children(replace(s, spec=b.spec(1))).revision_status
    assert begins(
        replace(s, revisions=tuple(replace(r, status=recorded.get(r.name, r.status)) for r in s.revisions))
    )


def test_after_a_rollback_by_hand_only_another_version_or_a_retry_climbs() -> None:
    """An autoscaler's replicas and edits of the rollout are other generations of the same version:
    the pin holds.
    """
    state = b.status(1, rollout=b.rollout("Done", 1, outcome="Stable", mode="Rollback"))
    s = replace(at_rest(2), status=state, generation=4)
    s = replace(s, status=state.model_copy(update={"pinned": pinned(s, V1)}))
    plan = decide(s, b.START)
    assert not begins(s)
    assert (
        b.condition(plan, "Ready").reason == "RolledBackByUser"
        and b.condition(plan, "Stalled").status == "True"
    )
    scaled = b.spec(2)
    scaled = scaled.model_copy(update={"serving": scaled.serving.model_copy(update={"replicas": 7})})
    assert not begins(replace(s, generation=5, spec=scaled))
    assert begins(replace(s, generation=5, spec=b.spec(3)))
    known = replace(s, revisions=(*s.revisions, b.revision(2, "Retired")))
    changed = replace(known, status=state.model_copy(update={"pinned": pinned(known, V1)}))
    assert not begins(changed)
    assert b.revision(2, "Retired").name not in b.children(changed).forget


# --- what stands in the way


def test_a_refused_spec_begins_nothing_says_why_and_looks_again() -> None:
    s = replace(at_rest(2), spec_problem=Problem("StoreNotAllowed", "use s3://models"))
    plan = decide(s, b.START)
    assert not begins(s)
    assert b.condition(plan, "Stalled").message == "use s3://models" and [e.reason for e in plan.events] == [
        "StoreNotAllowed"
    ]
    settled = decide(replace(s, status=plan.status), b.START)
    assert (
        isinstance(settled, Converge) and settled.requeue_after == 30 and set(settled.desired.servers) == {V1}
    )
    assert begins(replace(s, spec_problem=None))


def test_a_spec_that_cannot_be_read_changes_nothing_that_runs() -> None:
    for s in (at_rest(), b.in_canary(assessment=b.judged("Failed")), b.second("Provision")):
        broken = replace(s, spec=None, parse_error="spec.rollout.canary.steps.0.weight: not an integer")
        plan = decide(broken, b.START)
        assert isinstance(plan, Write) and plan.status.rollout == s.status.rollout
        assert (
            b.condition(plan, "Stalled").reason == "InvalidSpec"
            and b.condition(plan, "Reconciling").status == "False"
        )
        assert b.condition(plan, "Available").status == "True"
        again = decide(replace(broken, status=plan.status), b.at(9))
        assert again.status == plan.status and isinstance(again, Wait)


# --- a newer spec takes the place of a rollout in flight


@pytest.mark.parametrize(
    ("stage", "to"),
    [
        ("Resolve", "Failed"),
        ("Prepare", "Failed"),
        ("Provision", "Failed"),
        ("Evaluate", "Failed"),
        ("Canary", "Revert"),
    ],
)
def test_a_newer_spec_ends_a_rollout_stable_first(stage: str, to: str) -> None:
    s = b.in_canary(wanted=b.spec(3)) if stage == "Canary" else b.second(stage, wanted=b.spec(3))
    after = b.moved(decide(s, b.START))
    assert (after.stage, after.outcome, after.reason) == (to, "Superseded", "Superseded")


@pytest.mark.parametrize("stage", ["Resolve", "Prepare", "Provision", "Evaluate", "Canary"])
def test_another_generation_of_the_same_version_does_not(stage: str) -> None:
    s = b.in_canary() if stage == "Canary" else b.second(stage)
    edited = replace(s, generation=2, spec=b.spec(2, replicas=3, steps=b.STEPS))
    assert b.moved(decide(edited, b.START)).outcome is None


def test_what_has_all_traffic_already_is_finished_first() -> None:
    assert b.moved(decide(b.second("Promote", wanted=b.spec(3)), b.START)).stage == "Done"


def test_a_rollback_by_hand_gives_way_to_another_generation() -> None:
    s = b.second("Provision", changes={"mode": "Rollback"})
    assert b.moved(decide(replace(s, spec=b.spec(3)), b.START)).outcome is None, (
        "spec names another version all the time"
    )
    assert b.moved(decide(replace(s, spec=b.spec(3), generation=2), b.START)).outcome == "Superseded"


# --- an older definition

OUTDATED = Problem("DefinitionOutdated", "the API server drops spec.rollout.bake")


def test_no_rollout_begins_while_the_definition_is_older() -> None:
    s = replace(at_rest(2), definition_problem=OUTDATED)
    plan = decide(s, b.START)
    assert not begins(s)
    assert b.condition(plan, "Ready").reason == "DefinitionOutdated"
    assert b.condition(plan, "DefinitionCurrent").status == "False"
    assert begins(at_rest(2))


def test_what_runs_goes_on_with_an_older_definition() -> None:
    s = b.in_canary(assessment=b.judged("Successful"), definition_problem=OUTDATED)
    plan = decide(s, b.at(60))
    assert b.moved(plan).step.weight == 25  # type: ignore[union-attr]
    assert b.condition(plan, "DefinitionCurrent").message == OUTDATED.message
    resting = decide(replace(at_rest(1), definition_problem=OUTDATED), b.START)
    assert b.condition(resting, "Ready").status == "True"


def test_a_retry_waits_for_the_definition() -> None:
    failed = replace(
        b.snapshot(
            b.spec(2),
            b.status(1, rollout=b.rollout("Failed", 2, outcome="Failed", reason="Terminated")),
            revisions=(b.revision(1, "Stable"), b.revision(2, "Failed")),
        ),
        verbs=(Verb("retry", V2, "n1"),),
    )
    blocked = decide(replace(failed, definition_problem=OUTDATED), b.START)
    assert blocked.status.handled_verbs[-1].endswith(f":refused {OUTDATED.message}")


# --- a revert in Git


def reverted(window: str | None, retired: str | None = b.ago(60), **kept: Any) -> Snapshot:
    """Version 2 is stable, and spec requests version 1 again."""
    first = b.revision(1, "Retired")
    first = replace(first, status=first.status.model_copy(update={"retired": retired} | kept))
    return b.snapshot(
        b.spec(1, steps=b.STEPS, pinned=True, rollout={"rollbackWindow": window} if window else {}),
        b.status(2),
        revisions=(first, b.revision(2, "Promoted")),
        servers={b.revision_name(1): b.ready(), b.revision_name(2): b.ready()},
        traffic=b.TAKEN,
    )


def test_a_revert_within_its_window_is_as_proven_as_a_rollback_by_hand() -> None:
    s = reverted("1h")
    begun = decide(s, b.START)
    to = b.moved(begun)
    assert (to.stage, to.mode, to.proven, to.revision) == ("Provision", "Rollback", True, b.revision_name(1))
    assert begun.status.pinned is None, "spec requests what will serve"
    assert "rollbackWindow 1h" in b.events(begun)[0].message
    assert b.moved(decide(replace(s, status=begun.status), b.START)).stage == "Promote"


@pytest.mark.parametrize(
    "s",
    [
        reverted(None),
        reverted("1h", b.ago(3700)),
        reverted("1h", None),
        replace(reverted("1h"), names_since=b.START),
    ],
    ids=["no window", "too long ago", "a person went back from it", "it never served these host names"],
)
def test_any_other_revert_is_a_rollout_like_any_other(s: Snapshot) -> None:
    to = b.moved(decide(s, b.START))
    assert (to.stage, to.mode) == ("Prepare", "Update")


def test_an_autoscaler_does_not_end_a_revert_that_is_under_way() -> None:
    s = reverted("1h")
    begun = decide(s, b.START).status
    scaled = b.spec(1, steps=b.STEPS, pinned=True, replicas=5, rollout={"rollbackWindow": "1h"})
    waiting = replace(s, spec=scaled, status=begun, generation=s.generation + 1, servers={})
    rollout = decide(waiting, b.at(5)).status.rollout
    assert rollout is not None
    assert rollout.stage == "Provision"
