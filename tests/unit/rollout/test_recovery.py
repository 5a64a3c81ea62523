"""A status that was emptied or damaged: what of it is believed, and what revisions and the live
route say instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import (
    Counter,
    MetricStatus,
    ModelDeploymentStatus,
    RevisionRef,
    ServerCounts,
    StepEvidence,
)
from modelrollout.rollout.decide import decide
from modelrollout.rollout.recovery import sanitize
from modelrollout.rollout.snapshot import Revision, Snapshot, Split, Verb
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)


def emptied(*revisions: Revision, route: Split = (), **facts: Any) -> Snapshot:
    return b.snapshot(b.spec(2), ModelDeploymentStatus(), revisions=revisions, live_split=route, **facts)


def test_a_new_model_deployment_has_nothing_to_rebuild() -> None:
    plan = decide(emptied(), b.START)
    assert b.moved(plan).stage == "Resolve" and [e.reason for e in plan.events] == ["RolloutStarted"]


def test_what_the_route_sends_everything_to_is_stable() -> None:
    plan = decide(emptied(b.revision(1, "Retired"), b.revision(2, "Promoted"), route=((V2, 100),)), b.START)
    assert plan.status.stable and (plan.status.stable.revision, plan.status.stable.number) == (V2, 2)
    assert plan.status.rollout is None and plan.status.last_number == 2
    assert [(e.type, e.reason) for e in plan.events] == [("Warning", "StateRebuilt")]


def test_what_is_taken_for_stable_in_its_promotion_is_recorded_as_stable() -> None:
    s = emptied(
        b.revision(1, "Retired"),
        b.revision(2, "Canary"),
        route=((V2, 100),),
        servers={V2: b.ready()},
        traffic=b.TAKEN,
    )
    desired = b.children(replace(s, status=decide(s, b.START).status)).revision_status
    assert {name: status.outcome for name, status in desired.items()} == {V2: "Stable"}


def test_the_route_is_believed_before_the_mirrors() -> None:
    plan = decide(emptied(b.revision(1, "Stable"), b.revision(2, "Promoted"), route=((V1, 100),)), b.START)
    assert plan.status.stable and plan.status.stable.revision == V1


@pytest.mark.parametrize("share", [5, 50, 95])
def test_in_mid_canary_stable_is_the_one_that_is_known_to_have_served(share: int) -> None:
    plan = decide(
        emptied(b.revision(1, "Stable"), b.revision(2, "Canary"), route=((V1, 100 - share), (V2, share))),
        b.START,
    )
    assert plan.status.stable and plan.status.stable.revision == V1


def test_without_a_route_the_newest_outcome_decides() -> None:
    plan = decide(
        emptied(b.revision(1, "Stable"), b.revision(2, "Promoted"), b.revision(3, "RolledBack")), b.START
    )
    assert plan.status.stable and plan.status.stable.revision == V2 and plan.status.last_number == 3


def test_a_route_to_a_revision_that_is_gone_is_no_evidence() -> None:
    plan = decide(emptied(b.revision(1, "Stable"), route=(("digits-gone", 100),)), b.START)
    assert plan.status.stable and plan.status.stable.revision == V1


def test_where_nothing_ever_served_a_rollout_begins_with_the_next_number() -> None:
    s = emptied(replace(b.revision(1, "Rejected"), number=4))
    first = decide(s, b.START)
    assert first.status.last_number == 4 and first.status.rollout is None
    assert b.moved(decide(replace(s, status=first.status), b.START)).stage == "Resolve"


def test_after_it_the_bad_version_in_spec_is_not_taken_for_a_new_one() -> None:
    s = emptied(b.revision(1, "Stable"), b.revision(2, "RolledBack"), route=((V1, 100),))
    rebuilt = decide(s, b.START).status
    plan = decide(replace(s, status=rebuilt), b.START)
    assert (b.moved(plan).stage, b.moved(plan).reason) == ("Failed", "Quarantined")


def test_what_has_lost_its_artifact_too_is_made_ready_again_before_anything_else() -> None:
    """A backup brought revisions with their annotations, and neither status nor pods."""
    plan = decide(
        emptied(b.revision(1, "Stable", prepared=False), b.revision(2, "RolledBack", prepared=False)), b.START
    )
    to = b.moved(plan)
    assert (to.stage, to.mode, to.revision, to.number) == ("Prepare", "Rollback", V1, 1)


def test_old_verbs_are_not_carried_out_again() -> None:
    verbs = (Verb("retry", V2, "old"), Verb("abort", V1, "old"))
    s = emptied(b.revision(1, "Stable"), b.revision(2, "RolledBack"), route=((V1, 100),), verbs=verbs)
    rebuilt = decide(s, b.START).status
    assert set(rebuilt.handled_verbs) == {v.key for v in verbs}
    assert b.moved(decide(replace(s, status=rebuilt), b.START)).reason == "Quarantined"


def test_a_rollback_by_hand_is_not_undone() -> None:
    s = emptied(
        b.revision(1, "Stable"),
        b.revision(2, "Retired"),
        route=((V1, 100),),
        verbs=(Verb("rollback", V1, "old"),),
    )
    rebuilt = decide(s, b.START).status
    assert rebuilt.pinned and rebuilt.pinned.revision == V1
    again = decide(replace(s, status=rebuilt), b.START).status
    assert again.rollout is None, "spec still names version 2"


@pytest.mark.parametrize("stage", ["Resolve", "Prepare", "Provision", "Failed", "Done"])
@pytest.mark.parametrize("named", [None, "digits-unknown"])
def test_a_status_that_has_lost_only_stable_removes_nothing_that_serves(
    stage: str, named: str | None
) -> None:
    """Its field was damaged by hand or by a merge of two backups; the rest of it reads well."""
    ended = (
        {"outcome": "RolledBack"} if stage == "Failed" else {"outcome": "Promoted"} if stage == "Done" else {}
    )
    wrong = b.status(None, rollout=b.rollout(stage, 2, **ended))
    wrong = wrong.model_copy(update={"stable": RevisionRef(revision=named, number=7) if named else None})
    revisions = (b.revision(1, "Stable"), b.revision(2, "RolledBack"))
    s = b.snapshot(
        b.spec(2),
        sanitize(wrong),
        revisions=revisions,
        servers={V1: b.ready()},
        live_split=((V1, 100),),
        traffic=b.TAKEN,
    )
    plan = decide(s, b.START)
    assert plan.status.stable and (plan.status.stable.revision, plan.status.rollout) == (V1, None)
    assert [e.reason for e in plan.events] == ["StateRebuilt"]
    desired = b.children(replace(s, status=plan.status, spec=b.spec(1)))
    assert desired.servers == {V1: 2} and desired.split == ((V1, 100),)


def test_a_rollback_by_hand_that_has_lost_stable_removes_nothing_that_serves() -> None:
    back = b.rollout("Provision", 1, mode="Rollback")
    revisions = (b.revision(1, "Retired"), b.revision(2, "Stable"))
    s = b.snapshot(
        b.spec(2),
        b.status(None, rollout=back),
        revisions=revisions,
        servers={V2: b.ready()},
        live_split=((V2, 100),),
    )
    plan = decide(s, b.START).status
    assert plan.stable and (plan.stable.revision, plan.rollout) == (V2, None)


def test_a_stable_revision_that_was_removed_is_not_looked_for() -> None:
    gone = b.snapshot(b.spec(1), b.status(1), revisions=(b.revision(2, "Retired"),), live_split=((V1, 100),))
    assert b.moved(decide(gone, b.START)).stage == "Resolve"


def test_the_first_version_on_its_way_is_no_lost_status() -> None:
    s = b.snapshot(
        b.spec(1), b.status(None, rollout=b.rollout("Promote", 1)), revisions=(b.revision(1, "Pending"),),
        servers={V1: b.ready()},
        traffic=b.TAKEN, live_split=((V1, 100),),
    )  # fmt: skip
    assert b.moved(decide(s, b.START)).stage == "Done"


def test_what_is_made_ready_again_goes_its_way() -> None:
    s = emptied(b.revision(1, "Stable", prepared=False))
    first = decide(s, b.START).status
    assert decide(replace(s, status=first), b.at(1)).status.rollout == first.rollout


# --- damage


def damaged(stage: str = "Canary", **changes: Any) -> ModelDeploymentStatus:
    step = {"step": b.step()} if stage == "Canary" else {}
    return b.status(1, rollout=b.rollout(stage, 2, **(step | changes)))


@pytest.mark.parametrize(
    "status",
    [
        damaged(step=None),
        damaged(since="yesterday"),
        damaged(since="2026-11-22T12:00:00"),
        damaged(started=""),
        damaged(step=b.step(since="?")),
        damaged(step=b.step(observed_since="?")),
        damaged(step=b.step(measured="?")),
        damaged(step=b.step(weight=101)),
        damaged(step=b.step(weight=-1)),
        damaged(step=b.step(previous_weight=400)),
        damaged("Provision", revision=None),
        damaged("Prepare", sha256=None),
        damaged("Promote", number=None),
        damaged("Failed", outcome=None),
        damaged().model_copy(update={"stable": None}),
        damaged("Revert").model_copy(update={"stable": None}),
        damaged("Done").model_copy(update={"stable": None}),
    ],
)
def test_a_rollout_that_contradicts_itself_is_dropped_and_stable_kept(status: ModelDeploymentStatus) -> None:
    sanitized = sanitize(status)
    assert sanitized.rollout is None and sanitized.stable == status.stable
    s = replace(b.in_canary(), status=sanitized)
    decide(s, b.START)


def test_times_of_references_are_not_worth_losing_them() -> None:
    bad = b.ref(1).model_copy(update={"since": "?"})
    sanitized = sanitize(b.status(1).model_copy(update={"stable": bad}))
    assert sanitized.stable == b.ref(1).model_copy(update={"since": None})


def test_handled_verbs_of_another_form_are_dropped() -> None:
    assert sanitize(b.status(1, handled_verbs=["x", "a:b", f"promote:{V2}:n1"])).handled_verbs == [
        f"promote:{V2}:n1"
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"since": "?"},
        {"canary": Counter(last={"g": [1.0]})},
        {"stable": Counter(last={"g": [1.0, 2.0, 3.0, 4.0]})},
        {"canary": Counter(last={"#1": [1.0, 2.0, 3.0]})},
        {"canary": Counter(total=5, bad=10)},
        {"stable": Counter(total=5, bad=-1)},
        {"stable": Counter(total=5, bad=1, spread=[1.0, 1.0, -1.0, 1.0, 5.0, 1.0])},
        {"servers": ServerCounts(canary=Counter(last={"g": [1.0]}))},
        {"servers": ServerCounts(stable=Counter(total=5, bad=10))},
    ],
)
def test_a_damaged_measurement_is_made_anew_and_the_rollout_goes_on(fields: dict[str, Any]) -> None:
    bad = MetricStatus.model_validate({"name": "errors", "verdict": "Inconclusive", "reason": "x"} | fields)
    sanitized = sanitize(damaged(step=b.step(metrics=[bad]))).rollout
    assert sanitized and sanitized.step == b.step(metrics=[])


def test_damaged_evidence_of_an_earlier_step_is_left_out() -> None:
    """A bake would be judged against it, and fail at every look."""
    bad = MetricStatus(name="errors", verdict="Successful", reason="x", stable=Counter(total=5, bad=10))
    record = StepEvidence(index=0, weight=5, verdict="Successful", reason="x", seconds=1, metrics=[bad])
    sanitized = sanitize(damaged(history=[record])).rollout
    assert (
        sanitized
        and sanitized.step == b.step()
        and sanitized.history == [record.model_copy(update={"metrics": []})]
    )


def test_a_sound_measurement_is_kept() -> None:
    counter = Counter(last={"g": [1.0, 0.0, 5.0], "#1": [1.0, 0.0, 5.0, 77.0]})
    good = MetricStatus(name="errors", verdict="Error", reason="x", since=b.ago(5), canary=counter)
    status = damaged(step=b.step(metrics=[good]))
    assert sanitize(status) is status


@pytest.mark.parametrize(
    "stage", ["Resolve", "Prepare", "Provision", "Evaluate", "Canary", "Promote", "Revert", "Done"]
)
def test_a_sound_status_is_left_alone(stage: str) -> None:
    status = damaged(stage)
    assert sanitize(status) is status
