"""spec.serving.replicas: 0: no pod serves, and a new version waits for replicas, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import InPlaceStatus, ModelDeploymentSpec, ShadowStatus, SlotStatus, UserPause
from modelrollout.rollout.decide import decide
from modelrollout.rollout.plan import Write
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.snapshot import Server, Snapshot, Traffic, in_flight
from modelrollout.rollout.stages.next_stage import outputs_of
from modelrollout.rollout.stages.scaled_to_zero import wait_for_replicas
from modelrollout.rollout.views import SpecifiedSnapshot
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

V1, V2 = b.revision_name(1), b.revision_name(2)
WAITS = {"reason": "ScaledToZero", "message": "it waits"}
NO_PODS = {V1: Server(0, 0, None, 0), V2: Server(0, 0, None, 0)}


def zero(version: int = 2, **more: Any) -> ModelDeploymentSpec:
    return b.spec(version, replicas=0, **({"steps": b.STEPS} | more))


@pytest.mark.parametrize("stage", ["Provision", "Evaluate", "Canary"])
def test_a_new_version_waits_in_provision_and_says_why(stage: str) -> None:
    changes = {"step": b.step(2, 50)} if stage == "Canary" else {}
    plan = decide(b.second(stage, wanted=zero(), changes=changes), b.START)
    to = b.moved(plan)
    assert (to.stage, to.reason, to.step, to.queue) == ("Provision", "ScaledToZero", None, None)
    assert "spec.serving.replicas is 0" in b.condition(plan, "Reconciling").message
    assert b.condition(plan, "Stalled").status == "False"
    assert [e.reason for e in b.events(plan)] == ["ScaledToZero"]


def test_it_waits_without_a_deadline_and_without_a_write() -> None:
    s = b.second("Provision", wanted=zero(), changes=WAITS, servers=NO_PODS)
    settled = replace(s, status=decide(s, b.START).status)
    plan = decide(settled, b.at(100_000))
    assert not isinstance(plan, Write) and plan.requeue_after == 30


def test_it_goes_on_by_itself_and_its_deadline_begins_then() -> None:
    s = b.second("Provision", wanted=b.spec(2, steps=b.STEPS), changes=WAITS, servers=NO_PODS)
    to = b.moved(decide(s, b.at(100_000)))
    assert (to.stage, to.reason, to.since) == ("Provision", None, b.ago(-100_000))


def test_it_joins_the_queue_only_then_and_keeps_no_slot_meanwhile() -> None:
    limits = {"limits": {"concurrentRollouts": 1}}
    rules = combine([read({"metadata": {"name": "p"}, "spec": limits})])
    slot = {"slot": SlotStatus(since=b.ago(10))}
    assert (
        b.moved(decide(b.second("Evaluate", wanted=zero(), rules=rules, changes=slot), b.START)).slot is None
    )
    again = b.second("Provision", wanted=b.spec(2, steps=b.STEPS), rules=rules, changes=WAITS)
    assert b.moved(decide(again, b.START)).queue is not None


def test_a_canary_that_goes_back_gives_the_data_plane_time_to_forget_it() -> None:
    plan = decide(b.in_canary(wanted=zero(), at_step=b.step(2, 50)), b.START)
    assert [d.revision for d in plan.status.draining] == [V2]
    s = b.in_canary(wanted=zero(), at_step=b.step(2, 50))
    draining = replace(s, status=plan.status)
    assert b.children(draining).servers[V2] == 2, "requests still come"
    assert b.children(draining).split == ((V1, 100),)
    assert b.children(draining, b.at(4)).servers == {V1: 0, V2: 0}


@pytest.mark.parametrize("why", ["a cause", "a person"])
def test_a_trial_that_waits_for_a_person_is_not_forgotten(why: str) -> None:
    """What was proven against it must be there when he decides."""
    s = b.in_canary(wanted=zero(), at_step=b.step(0, 5, "Paused"), reason="AccuracyLow", message="worse")
    if why == "a person":
        s = b.in_canary(wanted=zero())
        assert s.status.rollout is not None
        paused = s.status.rollout.model_copy(update={"paused_by_user": UserPause(since=b.ago(5), by="n")})
        s = replace(s, status=s.status.model_copy(update={"rollout": paused}))
    plan = decide(s, b.START)
    assert plan.status.rollout and plan.status.rollout.stage == "Canary" and plan.status.rollout.step


def test_a_pause_of_spec_is_reached_again() -> None:
    s = b.in_canary(wanted=zero(), at_step=b.step(1, 5, "Paused"), reason="PauseStep")
    assert b.moved(decide(s, b.START)).stage == "Provision"


def test_a_shadow_ends_after_its_mirror_is_out_of_the_route() -> None:
    wanted = zero(rollout={"shadow": {}})
    shadow = ShadowStatus.model_validate(
        {"phase": "Observing", "since": b.ago(10), "mirror": "TraefikService"}
    )

    def at(s: Snapshot) -> tuple[str, str | None]:
        rollout = s.status.rollout
        assert rollout is not None
        return rollout.stage, rollout.shadow.phase if rollout.shadow else None

    shared = InPlaceStatus(previous_stable_replicas=2, stable_replicas=1)
    s = b.second("Shadow", wanted=wanted, changes={"shadow": shadow, "in_place": shared})
    out = replace(s, status=decide(s, b.START).status)
    assert at(out) == ("Shadow", "Starting") and out.status.rollout and out.status.rollout.reason
    assert at(replace(out, status=decide(out, b.at(1)).status)) == ("Shadow", "Starting"), "not yet"
    assert b.children(out).servers == {V1: 0, V2: 0}, "also those that took turns on the GPUs"
    slow = replace(out, traffic=Traffic(False))
    assert at(replace(slow, status=decide(slow, b.at(60)).status)) == ("Shadow", "Starting")
    back = replace(out, spec=b.spec(2, steps=b.STEPS, rollout={"shadow": {}}))
    for later in (out, back):
        assert at(replace(later, status=decide(later, b.at(4)).status)) == ("Provision", None)


def test_a_data_plane_that_keeps_the_mirror_ends_no_wait_for_replicas_and_no_other_wait() -> None:
    back = b.spec(2, steps=b.STEPS, rollout={"shadow": {}})
    waiting = {"phase": "Starting", "since": b.ago(3600), "mirror": "TraefikService"}
    waiting["outputs_hash"] = outputs_of(back.rollout.shadow)
    changes = {"shadow": ShadowStatus.model_validate(waiting), "since": b.ago(3600)} | WAITS
    gone = {"wanted": zero(rollout={"shadow": {}}), "changes": changes, "traffic": Traffic(False)}
    s = b.second("Shadow", **gone)
    stays = wait_for_replicas(SpecifiedSnapshot.narrowed(s), b.START)
    assert stays and (stays.status, stays.requeue_after) == (s.status, 5.0)
    rollout = b.moved(decide(replace(s, spec=back), b.START))
    assert rollout.shadow and (rollout.stage, rollout.shadow.phase) == ("Shadow", "Paused")


# --- whole rollouts


def lived(world: ModelCluster, rounds: int = 10) -> None:
    for _ in range(rounds):
        world.kindly()
        world.reconcile()


@pytest.mark.parametrize("gateway", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_version_is_prepared_waits_and_goes_on(gateway: bool, first: bool) -> None:
    world = ModelCluster(zero(1, gateway=gateway) if first else b.spec(1, steps=b.STEPS, gateway=gateway))
    if not first:
        world.serve()
        world.edit(zero(2, gateway=gateway))
    lived(world, 15)
    rollout = world.status.rollout
    assert rollout and (rollout.stage, rollout.reason) == ("Provision", "ScaledToZero")
    assert sum(p.asked for p in world.servers.values()) == 0, "no lone pod"
    world.edit(b.spec(1 if first else 2, steps=b.STEPS, gateway=gateway))
    world.serve()
    assert world.status.stable and world.status.stable.number == (1 if first else 2)


@pytest.mark.parametrize("gateway", [True, False])
def test_an_autoscaler_takes_all_pods_in_the_middle_of_a_canary(gateway: bool) -> None:
    world = ModelCluster(b.spec(1, steps=b.STEPS, gateway=gateway))
    world.serve()
    world.edit(b.spec(2, steps=b.STEPS, gateway=gateway))
    world.verdict = "Successful"
    for _ in range(30):
        world.kindly()
        world.reconcile()
        step = world.status.rollout.step if world.status.rollout else None
        if step and step.weight == 50:
            break
    world.edit(zero(2, gateway=gateway))
    world.reconcile()
    assert world.route in (None, ((V1, 100),))
    lived(world)
    assert world.status.stable and world.status.stable.revision == V1 and in_flight(world.status.rollout)
    assert {p.asked for p in world.servers.values()} == {0}
    world.edit(b.spec(2, steps=b.STEPS, gateway=gateway))
    world.reconcile()
    assert world.route in (None, ((V1, 100),)), "the trial starts over"
    world.serve()
    assert world.status.stable.revision == V2


def test_at_rest_zero_replicas_are_ready_and_not_available() -> None:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.edit(b.spec(1, replicas=0))
    lived(world, 3)
    rows = {c.type: (c.status, c.reason) for c in world.status.conditions}
    assert rows["Available"] == ("False", "ScaledToZero") and rows["Ready"] == ("True", "ScaledToZero")
    assert world.status.stable_down_since is None
