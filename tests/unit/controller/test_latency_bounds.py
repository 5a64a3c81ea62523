"""What new servers' own histogram of latencies tells, and that no other server is asked to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from modelrollout.contract.common import OBJECTIVES_ENV
from modelrollout.controller.apply.render import render_revision
from modelrollout.controller.observe.observation import observe
from modelrollout.kube.kinds import GRPC_ROUTE, HTTP_ROUTE, MODEL_REVISION
from modelrollout.rollout.plan import NewRevision
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, KEY, Cluster, Operator
from modelrollout.triton.histogram import LADDER

V1 = b.revision_name(1)
DATED = "registry.example.com/tritonserver:26.10-py3"
LATENCY = {"name": "latency", "objective": "37ms", "maxIncrease": 0.01}
ANALYSIS = {"analysis": {"metrics": [{"name": "errors", "max": 0.1}, LATENCY]}}


def spec(image: str | None, version: int = 1, analysis: Any = ANALYSIS) -> Any:
    wanted = b.spec(version, rollout=analysis)
    triton = wanted.serving.triton.model_copy(update={"image": image})
    return wanted.model_copy(update={"serving": wanted.serving.model_copy(update={"triton": triton})})


def bounds_of(template: Any) -> set[int]:
    [fetch] = template["spec"]["initContainers"]
    return {ms for e in fetch["env"] if e["name"] == OBJECTIVES_ENV for ms in json.loads(e["value"])}


def created(wanted: Any, **policy: Any) -> set[int]:
    """By the first revision of a ModelDeployment."""

    async def main() -> Any:
        cluster = Cluster()
        if policy:
            cluster.policy("production", **policy)
        cluster.user(wanted)
        await Operator(cluster).live(rounds=2)
        [revision] = cluster.all(MODEL_REVISION).values()
        return revision["spec"]["template"]

    return bounds_of(asyncio.run(main()))


def test_the_objectives_in_force_and_a_ladder_are_told_by_a_triton_that_takes_them() -> None:
    assert created(spec(DATED)) == {*LADDER, 37}
    assert created(spec(DATED, analysis={})) == set(LADDER)
    demanded = {"gates": {"metrics": [LATENCY | {"objective": "83ms"}]}}
    assert created(spec(DATED, analysis={}), **demanded) == {*LADDER, 83}
    assert created(spec(DATED, analysis={"analysis": {"templates": ["odd"]}})) == set(LADDER)


def test_a_triton_of_unknown_version_is_left_alone_since_it_might_load_no_model() -> None:
    assert created(spec(None)) == created(spec("registry.example.com/tritonserver:24.10-py3")) == set()


def test_what_servers_of_the_image_have_reported_is_believed() -> None:
    async def main() -> tuple[set[int], set[int], set[int]]:
        cluster = Cluster()
        cluster.user(spec(None))
        operator = Operator(cluster)
        await operator.live()
        cluster.user(spec(None, 2))

        def rendered(versions: dict[str, str], image: str | None = None) -> set[int]:
            routes = frozenset({HTTP_ROUTE.kind, GRPC_ROUTE.kind})
            seen = observe(operator.store, KEY, CONFIG, routes, operator.lookups.hostnames.known())
            assert seen is not None
            observation = replace(seen, observed=replace(seen.observed, spec=spec(image, 2)))
            new = NewRevision("digits-2", 2, b.sha(2), versions)
            return bounds_of(render_revision(observation, new, CONFIG)["spec"]["template"])

        return rendered({V1: "2.65.0"}), rendered({V1: "2.51.0"}), rendered({V1: "2.65.0"}, "other/triton:2")

    newer, older, other = asyncio.run(main())
    assert newer == {*LADDER, 37} and older == other == set()


def test_a_revision_is_made_with_the_versions_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> set[int]:
        cluster = Cluster()
        cluster.user(spec(None))
        operator = Operator(cluster)
        await operator.live()
        monkeypatch.setattr(
            operator.lookups._versions, "look_up", lambda key, names, pods: dict.fromkeys(names, "2.65.0")
        )
        cluster.user(spec(None, 2))
        await operator.live(rounds=3)
        newest = max(cluster.all(MODEL_REVISION).values(), key=lambda o: o["spec"]["number"])
        return bounds_of(newest["spec"]["template"])

    assert asyncio.run(main()) == {*LADDER, 37}
