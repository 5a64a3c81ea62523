"""Whole rollouts, driven against a cluster in plain Python that asserts the invariants after every
write.
"""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.problem import Problem
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

V1, V2, V3 = (b.revision_name(v) for v in (1, 2, 3))


def serving(version: int = 1, **settings: Any) -> ModelCluster:
    """A world in which a version is stable."""
    world = ModelCluster(b.spec(version, **settings))
    world.serve()
    assert world.status.stable is not None and world.status.stable.revision == b.revision_name(version)
    world.history.clear()
    return world


def stages(world: ModelCluster) -> list[str]:
    return [r.stage for r in world.history]


def until(world: ModelCluster, stage: str, verdict: Any = None) -> None:
    """Go on kindly until the rollout in flight comes to a stage."""
    world.verdict = verdict
    for _ in range(40):
        world.reconcile()
        if world.status.rollout and world.status.rollout.stage == stage:
            return
        world.kindly()
    raise AssertionError(f"never came to {stage}: {world.status.rollout}")


def outcome(world: ModelCluster, name: str) -> tuple[str, str]:
    return world.revisions[name].status.outcome, world.revisions[name].status.reason


def test_the_first_version_has_nothing_to_be_compared_with_and_becomes_stable_without_a_canary() -> None:
    world = ModelCluster(b.spec(1))
    world.serve()
    assert stages(world) == ["Resolve", "Prepare", "Provision", "Promote", "Done"]
    assert world.status.stable and world.status.stable.revision == V1 and world.status.stable.number == 1
    assert world.route == ((V1, 100),) and world.service == V1
    assert outcome(world, V1) == ("Stable", "-")
    assert world.mirrors == {V1: "Stable"}
    assert world.status.phase == "Stable"


def test_a_better_version_climbs_step_by_step_and_is_promoted() -> None:
    world = serving(steps=b.STEPS)
    weights: list[int] = []
    world.edit(b.spec(2, steps=b.STEPS))
    world.verdict = "Successful"
    for _ in range(20):
        world.kindly()
        world.reconcile()
        weights += [w for r, w in world.route or () if r == V2 and w not in weights]
    assert weights == [5, 25, 50, 100]
    assert outcome(world, V2) == ("Promoted", "-")
    assert outcome(world, V1) == ("Retired", "Replaced")
    assert world.mirrors == {V1: "Retired", V2: "Promoted"}
    assert [(e.weight, e.verdict) for e in world.revisions[V2].status.steps] == [
        (5, "Successful"),
        (25, "Successful"),
        (50, "Successful"),
    ]
    assert set(world.servers) == {V2}, "the former stable goes once its traffic has surely gone"


def test_a_version_proven_worse_gives_all_traffic_back_and_ends_rolled_back() -> None:
    world = serving(steps=b.STEPS)
    world.edit(b.spec(2, steps=b.STEPS))
    until(world, "Canary")
    world.verdict = "Failed"
    until(world, "Failed", "Failed")
    assert stages(world)[-3:] == ["Canary", "Revert", "Failed"]
    assert outcome(world, V2) == ("RolledBack", "AccuracyLow")
    assert world.status.stable and world.status.stable.revision == V1
    assert world.route == ((V1, 100),)


def test_golden_data_that_fails_rejects_before_any_traffic() -> None:
    world = serving()
    world.golden_verdict = "Failed"
    world.edit(b.spec(2, golden=True))
    until(world, "Failed")
    assert outcome(world, V2) == ("Rejected", "AccuracyLow")
    assert "Canary" not in stages(world) and "Revert" not in stages(world)
    assert world.route == ((V1, 100),) and world.route_version == 1, "the route was not even written"


def test_a_gate_that_fails_rejects_before_anything_is_provisioned() -> None:
    world = serving()
    world.edit(b.spec(2))
    until(world, "Prepare")
    world.end_job("gate")
    world.reconcile()
    assert stages(world) == ["Resolve", "Prepare", "Failed"]
    assert outcome(world, V2) == ("Rejected", "AccuracyDrop")
    assert set(world.servers) == {V1}


def test_a_rollback_to_a_kept_revision_skips_what_is_proven_and_is_not_undone_by_spec() -> None:
    world = serving()
    world.edit(b.spec(2))
    world.serve()
    world.history.clear()
    jobs = set(world.jobs)
    world.say("rollback", V1, "n1")
    world.serve()
    assert stages(world) == ["Provision", "Promote", "Done"]
    assert set(world.jobs) == jobs, "nothing is prepared or evaluated again"
    assert outcome(world, V1) == ("Stable", "-") and outcome(world, V2) == ("Retired", "Replaced")
    ready = {c.type: (c.status, c.reason) for c in world.status.conditions}
    assert ready["Ready"] == ("False", "RolledBackByUser") and ready["Stalled"] == (
        "True",
        "RolledBackByUser",
    )
    assert ready["Available"] == ("True", "Serving")
    for _ in range(5):
        world.tick(4000)
        assert world.reconcile().requeue_after is None
    assert stages(world)[-1] == "Done", "spec still names version 2, and nothing climbs"


def test_after_a_rollback_a_new_generation_climbs_again() -> None:
    world = serving()
    world.edit(b.spec(2))
    world.serve()
    world.say("rollback", V1, "n1")
    world.serve()
    world.edit(b.spec(3))
    world.serve()
    assert world.status.stable and world.status.stable.revision == V3


def test_after_a_rollback_retry_climbs_again() -> None:
    world = serving()
    world.edit(b.spec(2))
    world.serve()
    world.say("rollback", V1, "n1")
    world.serve()
    world.say("retry", V2, "n2")
    world.serve()
    assert world.status.stable and world.status.stable.revision == V2


@pytest.mark.parametrize("stage", ["Resolve", "Prepare", "Provision", "Evaluate", "Canary", "Promote"])
def test_a_newer_spec_supersedes_at_every_stage(stage: str) -> None:
    world = serving(golden=True)
    world.edit(b.spec(2, golden=True))
    until(world, stage, "Successful" if stage == "Promote" else None)
    world.edit(b.spec(3, golden=True))
    world.reconcile()
    if stage not in ("Promote", "Canary"):
        assert (
            world.status.rollout and world.status.rollout.input_hash == b.rollout("Resolve", 3).input_hash
        ), "at once"
    world.serve()
    assert world.status.stable and world.status.stable.revision == V3
    if stage not in ("Resolve", "Promote"):
        assert world.revisions[V2].status.outcome == "Superseded"
    if stage == "Promote":
        assert world.revisions[V2].status.outcome == "Retired", (
            "what has all traffic already becomes stable first"
        )


@pytest.mark.parametrize("stage", ["Resolve", "Prepare", "Provision", "Evaluate", "Canary"])
def test_a_spec_that_returns_to_stable_ends_the_rollout_and_begins_none(stage: str) -> None:
    world = serving(golden=True)
    world.edit(b.spec(2, golden=True))
    until(world, stage)
    world.edit(b.spec(1, golden=True))
    world.serve()
    assert stages(world)[-1] == "Failed" and world.history[-1].outcome == "Superseded"
    assert world.status.phase == "Stable"
    assert {c.type: c.status for c in world.status.conditions}["Ready"] == "True"
    assert set(world.servers) == {V1}


def test_a_version_that_was_refused_is_not_tried_again_by_another_sync_but_by_retry() -> None:
    world = serving(golden=True)
    world.golden_verdict = "Failed"
    world.edit(b.spec(2, golden=True))
    until(world, "Failed")
    world.edit(b.spec(1, golden=True))
    world.reconcile()
    world.history.clear()
    world.edit(b.spec(2, golden=True))
    world.serve()
    assert stages(world) == [] and world.status.phase == "Failed" and world.status.verdict == "AccuracyLow"
    world.golden_verdict = "Successful"
    world.edit(b.spec(3, golden=True))
    world.serve()
    world.history.clear()
    world.edit(b.spec(2, golden=True))
    world.serve()
    assert stages(world) == ["Failed"] and world.history[-1].reason == "Quarantined", (
        "also long after, with another version in between"
    )
    assert outcome(world, V2) == ("Rejected", "AccuracyLow"), "its own evidence stays"
    world.say("retry", V2, "n1")
    world.serve()
    assert world.status.stable and world.status.stable.revision == V2


@pytest.mark.parametrize("stage", ["Prepare", "Provision", "Evaluate", "Canary", "Promote"])
def test_abort_ends_the_rollout_at_every_stage_and_stable_keeps_all_traffic(stage: str) -> None:
    world = serving(golden=True)
    world.edit(b.spec(2, golden=True))
    until(world, stage, "Successful" if stage == "Promote" else None)
    world.say("abort", V2, "n1")
    world.serve()
    assert world.history[-1].stage == "Failed"
    assert outcome(world, V2) == ("Aborted", "AbortedByUser")
    assert world.route == ((V1, 100),) and world.status.stable and world.status.stable.revision == V1
    for _ in range(3):
        world.tick(4000)
        world.reconcile()
    assert world.history[-1].stage == "Failed", "what was aborted stays so"


def test_abort_while_the_digest_is_resolved_is_said_on_the_model_deployment() -> None:
    world = serving()
    world.edit(b.spec(2))
    until(world, "Resolve")
    world.say("abort", "", "n1")
    world.serve()
    assert world.history[-1].outcome == "Aborted" and world.status.stable


def test_a_result_that_was_lost_with_its_pod_is_worked_out_again() -> None:
    world = serving()
    world.edit(b.spec(2))
    until(world, "Prepare")
    first = set(world.jobs)
    world.end_job("lost")
    world.reconcile()
    assert len(set(world.jobs) - first) == 1, "the Job runs again under another name"
    world.serve()
    assert world.status.stable and world.status.stable.revision == V2


def test_results_lost_again_and_again_end_the_rollout_with_a_reason() -> None:
    world = serving()
    world.edit(b.spec(2))
    until(world, "Prepare")
    for _ in range(10):
        world.end_job("lost")
        world.reconcile()
    assert outcome(world, V2) == ("Failed", "ResultLost")


@pytest.mark.parametrize("reason", ["Unschedulable", "ImagePullFailed"])
def test_pods_that_cannot_start_are_told_and_end_the_rollout_after_the_deadline(reason: str) -> None:
    world = serving()
    world.edit(b.spec(2, rollout={"progressDeadline": "10m"}))
    until(world, "Provision")
    world.pods(V2, 0, Problem(reason, "the pod says why"))
    plan = world.reconcile()
    assert (
        b.condition(plan, "Reconciling").reason == reason
        and "the pod says why" in b.condition(plan, "Provisioned").message
    )
    world.tick(599)
    world.reconcile()
    assert world.status.rollout and world.status.rollout.stage == "Provision", (
        "an autoscaler may bring a node yet"
    )
    world.tick(2)
    world.reconcile()
    assert outcome(world, V2) == ("Failed", reason)
    assert set(world.servers) == {V1}


@pytest.mark.parametrize(("policy", "ends"), [("Pause", "Paused"), ("Rollback", "RolledBack")])
def test_without_prometheus_a_canary_holds_and_then_does_what_spec_says(policy: str, ends: str) -> None:
    world = serving(steps=b.STEPS)
    world.edit(
        b.spec(
            2,
            steps=b.STEPS,
            rollout={"onInconclusive": policy, "progressDeadline": "10m", "canary": {"steps": b.STEPS}},
        )
    )
    until(world, "Canary", "Error")
    for _ in range(5):
        world.kindly()
        world.reconcile()
    for _ in range(5):
        world.tick(100)
        world.reconcile()
    assert world.route == ((V1, 95), (V2, 5)), "neither promoted nor rolled back"
    assert world.status.verdict == "ProviderUnreachable"
    world.tick(100)
    world.reconcile()
    if ends == "Paused":
        assert world.status.phase == "Paused" and world.route == ((V1, 95), (V2, 5))
        assert {c.type: c.status for c in world.status.conditions}["Stalled"] == "True"
    else:
        until(world, "Failed", "Error")
        assert outcome(world, V2) == ("RolledBack", "ProviderUnreachable")


def test_replicas_of_another_clock_do_no_harm() -> None:
    world = serving(steps=b.STEPS)
    world.edit(b.spec(2, steps=b.STEPS))
    until(world, "Canary")
    for _ in range(3):
        world.tick(-10)  # a new leader whose clock is behind
        world.reconcile()
    world.serve()
    assert world.status.stable and world.status.stable.revision == V2


def test_a_status_that_was_emptied_is_rebuilt_and_starts_no_canary() -> None:
    world = serving()
    world.edit(b.spec(2))
    world.serve()
    before = world.status
    world.history.clear()
    world.lose_status()
    world.reconcile()
    assert world.status.stable and (world.status.stable.revision, world.status.stable.number) == (V2, 2)
    assert world.status.last_number == before.last_number and world.history == []
    assert {c.type: c.status for c in world.status.conditions}["Ready"] == "True"


def test_a_status_lost_in_mid_canary_begins_the_canary_again_at_its_first_step() -> None:
    world = serving(steps=b.STEPS)
    world.edit(b.spec(2, steps=b.STEPS))
    until(world, "Canary", "Successful")
    while dict(world.route or ()).get(V2) != 25:
        world.kindly()
        world.reconcile()
    world.lose_status()
    world.one_pass()
    assert world.status.stable and world.status.stable.revision == V1 and world.status.rollout is None
    world.reconcile()
    assert dict(world.route or ()) == {V1: 95, V2: 5}
    world.serve()
    assert world.status.stable.revision == V2 and world.status.stable.number == 2, (
        "the version keeps its number"
    )


def test_without_a_gateway_replicas_stand_for_weights() -> None:
    world = serving(gateway=False, replicas=4, steps=[{"weight": 20}, {"weight": 50}])
    world.edit(b.spec(2, gateway=False, replicas=4, steps=[{"weight": 20}, {"weight": 50}]))
    until(world, "Canary")
    world.kindly()
    world.reconcile()
    assert world.service == "*" and {n: p.asked for n, p in world.servers.items()} == {V1: 4, V2: 1}
    world.verdict = "Failed"
    world.kindly()
    world.reconcile()
    assert world.service == V1 and world.servers[V1].asked == 4
    assert V2 not in world.servers or world.servers[V2].asked == 1, (
        "what has lost its traffic is not scaled up"
    )
    world.serve()
    assert outcome(world, V2) == ("RolledBack", "AccuracyLow")


def test_without_a_gateway_a_better_version_is_promoted_when_it_can_carry_everything() -> None:
    world = serving(gateway=False, replicas=4, steps=[{"weight": 20}])
    world.edit(b.spec(2, gateway=False, replicas=4, steps=[{"weight": 20}]))
    until(world, "Promote", "Successful")
    world.reconcile()
    assert world.servers[V2].asked == 4 and world.servers[V2].ready < 4
    assert world.service == "*", "stable's pods carry on until the new ones can"
    world.serve()
    assert world.service == V2 and set(world.servers) == {V2}
