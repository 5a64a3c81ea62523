"""surge InPlace: where there is no GPU for both revisions, they take turns, and no request is
without a pod.
"""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

ONE, TWO = b.revision_name(1), b.revision_name(2)


def in_place(
    version: int,
    *,
    replicas: int = 4,
    gateway: bool = True,
    steps: list[dict[str, Any]] | None = None,
    **serving: Any,
) -> ModelDeploymentSpec:
    limits = {"limits": {"nvidia.com/gpu": 1}}
    specified = {"replicas": replicas, "resources": limits, "surge": "InPlace", **serving}
    return b.spec(version, steps=steps, gateway=gateway, serving=specified)


def serving(*, gpus: int, replicas: int = 4, **more: Any) -> ModelCluster:
    """Version 1 is stable, and has ``replicas`` of ``gpus`` GPUs."""
    world = ModelCluster(in_place(1, replicas=replicas, **more), gpus=gpus)
    world.serve()
    assert world.status.stable is not None and world.servers[ONE].ready == replicas
    return world


def ran(world: ModelCluster, rounds: int = 90) -> list[tuple[int, int]]:
    """What (stable, new) asked for, each time that it changed."""
    seen: list[tuple[int, int]] = []
    for _ in range(rounds):
        world.kindly()
        world.reconcile()
        asked = tuple(world.servers[r].asked if r in world.servers else 0 for r in (ONE, TWO))
        if not seen or seen[-1] != asked:
            seen.append(asked)  # type: ignore[arg-type]  # two entries
    return seen


@pytest.mark.parametrize("gateway", [True, False])
def test_promoted_pod_by_pod_where_no_gpu_is_free(gateway: bool) -> None:
    world = serving(gpus=4, gateway=gateway)
    world.edit(in_place(2, gateway=gateway))
    world.verdict = "Successful"
    seen = ran(world)
    assert world.status.stable is not None and world.status.stable.revision == TWO
    assert world.servers[TWO].ready == 4, "the GPUs of the former one are its own now"
    trial = [(stable, new) for stable, new in seen if stable]
    assert min(stable for stable, _ in trial) == 2, "half of them is the floor"


def test_what_is_free_is_taken_first() -> None:
    """One of six GPUs is free twice: stable gives up nothing for a step that two pods carry."""
    world = serving(gpus=6)
    world.edit(in_place(2, steps=[{"weight": 25}, {"weight": 50}]))
    world.verdict = None
    seen = ran(world, 20)
    assert world.status.rollout is not None and world.status.rollout.stage == "Canary"
    assert seen[-1] == (4, 2)
    world.verdict = "Successful"
    assert min(stable for stable, _ in ran(world) if stable) == 4
    assert world.status.stable is not None and world.status.stable.revision == TWO


def test_with_room_for_all_it_is_like_auto() -> None:
    world = serving(gpus=8)
    world.edit(in_place(2))
    world.verdict = "Successful"
    assert (4, 4) in ran(world)
    assert all(r.in_place is None for r in world.history)


def test_taken_back_stable_gets_its_gpus_again() -> None:
    world = serving(gpus=4)
    world.edit(in_place(2, steps=[{"weight": 50}]))
    world.verdict = None
    assert ran(world, 20)[-1] == (2, 2)
    world.verdict = "Failed"
    seen = ran(world)
    assert world.status.rollout is not None and world.status.rollout.outcome == "RolledBack"
    assert seen[-1] == (4, 0) and world.servers[ONE].ready == 4
    assert world.route == ((ONE, 100),)


def test_a_floor_that_leaves_no_way_is_told_and_stable_keeps_it() -> None:
    """Three of four are to carry everything: the new revision never gets three while stable keeps
    three.
    """
    world = serving(gpus=4, floor=3)
    world.edit(in_place(2, floor=3))
    world.verdict = "Successful"
    seen = ran(world, 20)
    assert min(stable for stable, _ in seen) == 3
    assert world.status.rollout is not None and world.status.rollout.reason == "Unschedulable"
    world.tick(4000)
    ran(world, 5)
    assert world.status.phase == "Paused" and "too few pods" in (world.status.rollout.message or "")
    world.say("abort", TWO, "n1", world.status.step)
    ran(world, 5)
    assert world.servers[ONE].ready == 4 and world.route == ((ONE, 100),)


def test_a_single_pod_gives_nothing_up() -> None:
    world = serving(gpus=1, replicas=1)
    world.edit(in_place(2, replicas=1))
    assert ran(world, 10)[-1] == (1, 1)
    assert world.status.rollout is not None and world.status.rollout.in_place is None
    assert world.servers[ONE].ready == 1


def test_blue_green_promotes_with_the_floor() -> None:
    world = serving(gpus=4, floor=1)
    blue = in_place(2, floor=1).model_dump(by_alias=True, exclude_none=True) | {"rollout": {"blueGreen": {}}}
    world.edit(ModelDeploymentSpec.model_validate(blue))
    world.verdict = "Successful"
    seen = ran(world)
    assert (1, 3) in seen
    assert (
        world.status.stable is not None
        and world.status.stable.revision == TWO
        and world.servers[TWO].ready == 4
    )


def test_another_version_under_way_begins_from_the_whole_stable() -> None:
    world = serving(gpus=4)
    world.edit(in_place(2, steps=[{"weight": 50}]))
    world.verdict = None
    ran(world, 20)
    world.edit(in_place(3))
    world.verdict = "Successful"
    world.serve()
    world.serve()
    assert world.status.stable is not None and world.status.stable.revision == b.revision_name(3)
    assert world.servers[b.revision_name(3)].ready == 4


def test_without_a_gateway_status_tells_the_share_that_whole_pods_give() -> None:
    world = serving(gpus=8, gateway=False)
    world.edit(in_place(2, gateway=False, steps=[{"weight": 5}]))
    world.verdict = None
    ran(world, 20)
    assert (world.status.weight, world.status.share) == (5, 20), "one of five pods"
    world.verdict = "Successful"
    ran(world)
    assert world.status.share is None
