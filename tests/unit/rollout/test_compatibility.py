"""A new version that takes or gives other tensors than stable is refused, unless the change is
declared.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelrollout.api.v1alpha1 import Interface, ModelDeploymentSpec
from modelrollout.contract.results import Interface as Reported
from modelrollout.contract.results import TaskResult
from modelrollout.rollout.compatibility import changes
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.revisions import revision_status
from modelrollout.rollout.snapshot import JobState, Revision, Snapshot
from modelrollout.testing import builders as b

OLD = Interface(digest="old", inputs={"x": "FP32 [n, 64]"}, outputs={"y": "FP32 [n, 10]"})
NEW = Reported(
    digest="new", inputs={"x": "FP32 [8, 64]", "z": "INT64 [n]"}, outputs={"scores": "FP32 [n, 10]"}
)
DECLARED = b.spec(2, model={"uri": b.uri(2), "interfaceChange": "Allowed"})


def having(version: int, interface: Interface | None) -> Revision:
    existing = b.revision(version, "Stable")
    artifact = b.artifact(version).model_copy(update={"interface": interface})
    return replace(existing, status=existing.status.model_copy(update={"artifact": artifact}))


def prepared(
    old: Interface | None, new: Reported | None, spec: ModelDeploymentSpec | None = None, mode: str = "Update"
) -> Snapshot:
    result = TaskResult(
        artifact_uri="s3://artifacts/v2",
        artifact_digest="sha256:2",
        size_bytes=9,
        artifact_size_bytes=9,
        interface=new,
    )
    revisions = (having(1, old), b.revision(2, prepared=False))
    return b.second(
        "Prepare",
        wanted=spec,
        changes={"mode": mode},
        revisions=revisions,
        work=JobState("Succeeded", 0, result),
    )


def test_a_changed_interface_is_rejected_and_says_what_changed() -> None:
    plan = decide(prepared(OLD, NEW), b.START)
    ended = b.moved(plan)
    assert (ended.stage, ended.outcome, ended.reason) == ("Failed", "Rejected", "SignatureChanged")
    for told in (
        "input z (INT64 [n]) is new",
        "input x was FP32 [n, 64] and is FP32 [8, 64]",
        "output y (FP32 [n, 10]) is gone",
        "output scores (FP32 [n, 10]) is new",
        "spec.model.interfaceChange: Allowed",
    ):
        assert told in (ended.message or "")
    assert ended.artifact is not None and ended.artifact.digest == "sha256:2", (
        "the work is kept: declaring the change needs no second run"
    )
    assert plan.status.stable == b.ref(1)


@pytest.mark.parametrize("spec", [b.spec(2), DECLARED])
def test_the_same_interface_goes_on(spec: ModelDeploymentSpec) -> None:
    same = Reported(digest="old", inputs=OLD.inputs, outputs=OLD.outputs)
    plan = decide(prepared(OLD, same, spec), b.START)
    assert b.moved(plan).stage == "Provision"
    assert [e.reason for e in plan.events] == ["Prepared"]


def test_a_declared_change_goes_on() -> None:
    assert b.moved(decide(prepared(OLD, NEW, DECLARED), b.START)).stage == "Provision"


@pytest.mark.parametrize(("old", "new"), [(None, NEW), (OLD, None)])
def test_what_an_older_operator_prepared_is_not_compared_and_that_is_said_once(
    old: Interface | None, new: Reported | None
) -> None:
    plan = decide(prepared(old, new), b.START)
    assert b.moved(plan).stage == "Provision"
    assert [e.reason for e in plan.events] == ["Prepared", "SignatureUnknown"]


def test_going_back_is_never_held_up_by_it() -> None:
    assert b.moved(decide(prepared(OLD, NEW, mode="Rollback"), b.START)).stage == "Provision"


def test_declaring_the_change_tries_the_version_again_by_itself() -> None:
    """No retry by hand: what is declared in Git is done."""
    rejected = b.rollout("Failed", 2, outcome="Rejected", reason="SignatureChanged", message="input z is new")
    revisions = (having(1, OLD), b.revision(2, "Rejected", reason="SignatureChanged"))
    for spec, begins in ((b.spec(2), False), (DECLARED, True)):
        s = b.snapshot(
            spec,
            b.status(1, rollout=rejected),
            revisions=revisions,
            servers={b.revision_name(1): b.ready()},
            traffic=b.TAKEN,
        )
        recorded = revision_status(s)  # as the pass after the rejection writes it
        s = replace(
            s, revisions=tuple(replace(r, status=recorded.get(r.name, r.status)) for r in s.revisions)
        )
        for _ in range(3):
            plan = decide(s, b.START)
            s = replace(s, status=plan.status)
        assert s.status.rollout is not None
        assert (s.status.rollout.stage != "Failed") is begins


def test_declaring_a_change_makes_no_new_version() -> None:
    assert b.revision(2).is_version(DECLARED)


def test_a_large_interface_is_compared_by_its_digest_and_told_in_counts() -> None:
    large = Interface(digest="a", counts=[200, 3])
    assert changes(large, OLD) == [
        "inputs or outputs changed: 200 inputs and 3 outputs before, 1 inputs and 1 outputs now"
    ]
    assert (
        b.moved(decide(prepared(large, Reported(digest="a", counts=(200, 3))), b.START)).stage == "Provision"
    )
