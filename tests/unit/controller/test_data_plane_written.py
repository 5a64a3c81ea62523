"""Gateways that are missing, refuse or are silent, in the cluster in memory: what a pass reads,
writes and reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Condition
from modelrollout.kube.kinds import DEPLOYMENT, GATEWAY, HTTP_ROUTE
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

TRAFFIC = {"http": {"hostnames": ["digits.example.com"]}, "gateway": {"name": "public"}}
ROLLOUT = {"progressDeadline": "2m"}
V1, V2 = b.revision_name(1), b.revision_name(2)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def spec(version: int = 1) -> Any:
    return b.spec(version, steps=b.STEPS, traffic=TRAFFIC, rollout=ROLLOUT)


def condition(cluster: Cluster, kind: str) -> Condition:
    return next(c for c in cluster.status.conditions if c.type == kind)


async def serving() -> tuple[Cluster, Operator]:
    cluster = Cluster()
    cluster.user(spec())
    operator = Operator(cluster)
    await operator.live()
    assert condition(cluster, "Available").status == "True"
    operator.events.clear()
    return cluster, operator


async def in_canary() -> tuple[Cluster, Operator]:
    cluster, operator = await serving()
    operator.assessment = b.judged("Inconclusive")
    cluster.user(spec(2))
    await operator.live(rounds=8)
    assert cluster.weights().get(V2) == 5
    return cluster, operator


def test_a_first_version_waits_for_a_gateway_that_does_not_exist_by_name() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.remove(GATEWAY, "public")
        cluster.user(spec())
        operator = Operator(cluster)
        await operator.live(rounds=5)
        ready = condition(cluster, "Ready")
        assert (cluster.status.phase, ready.status) == ("Promoting", "False")
        assert "Gateway ml/public does not exist" in ready.message
        assert "GatewayMissing" in [e.reason for e in operator.events]
        cluster.open_gateway()
        await operator.live(rounds=3)
        assert cluster.status.phase == "Stable" and condition(cluster, "Available").status == "True"

    run(main)


def test_at_rest_available_follows_the_gateway() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.remove(GATEWAY, "public")
        assert await operator.settle() is None, "nothing is polled while the watch tells"
        available = condition(cluster, "Available")
        assert (available.status, available.reason) == ("False", "GatewayMissing")
        assert condition(cluster, "Ready").reason == "GatewayMissing"
        cluster.open_gateway()
        await operator.settle()
        assert {condition(cluster, kind).status for kind in ("Available", "Ready")} == {"True"}
        assert [e.reason for e in operator.events] == ["GatewayMissing", "Serving"]

    run(main)


def test_a_gateway_that_has_yet_to_answer_for_its_present_generation_is_waited_for() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        listener = {"name": "other", "protocol": "HTTP"}
        cluster.change(GATEWAY, "public", lambda o: o["spec"].update(listeners=[listener]))
        again = await operator.settle()
        assert condition(cluster, "Available").status == "True" and again == pytest.approx(60.0)
        cluster.now += timedelta(seconds=61)
        await operator.settle()
        available = condition(cluster, "Available")
        assert (available.status, available.reason) == ("Unknown", "TrafficUnconfirmed")
        another = Operator(cluster)
        await another.settle()
        assert condition(cluster, "Available").status == "Unknown", "a new leader knows no better"
        no = [
            {"type": "Programmed", "status": "False", "reason": "Invalid", "observedGeneration": 2},
        ]
        cluster.change(GATEWAY, "public", lambda o: o["status"].update(conditions=no))
        await another.settle()
        assert condition(cluster, "Available").reason == "GatewayNotProgrammed"

    run(main)


def test_a_foreign_answer_neither_stops_a_canary_nor_lets_it_go_on() -> None:
    async def main() -> None:
        cluster, operator = await in_canary()
        operator.assessment = b.judged("Successful")

        def answers(own: dict[str, str], foreign: dict[str, str]) -> None:
            route = cluster.find(HTTP_ROUTE)
            assert route is not None
            theirs = b.answered(route, foreign, "example.org/foreign")["parents"]
            former = [
                answer | {"parentRef": {"name": "former"}} for answer in b.answered(route, foreign)["parents"]
            ]
            parents = [*theirs, *former, *b.answered(route, own)["parents"]]
            cluster.change(HTTP_ROUTE, "digits", lambda o: o.update(status={"parents": parents}))

        async def step() -> int:
            await operator.settle()
            cluster.now += timedelta(seconds=4)
            await operator.settle()
            return cluster.weights().get(V2, 0)

        no = {"Accepted": "False", "ResolvedRefs": "False"}
        answers({}, b.ACCEPTED)
        assert await step() == 25 and await step() == 25, "25 % are written, and not taken up"
        answers(b.ACCEPTED, no)
        assert await step() == 50

    run(main)


def test_an_abort_while_the_gateway_is_missing_ends_and_keeps_the_pods() -> None:
    async def main() -> None:
        cluster, operator = await in_canary()
        cluster.remove(GATEWAY, "public")
        cluster.annotate(V2, "abort", "n1")
        await operator.settle()
        assert cluster.status.phase == "RollingBack" and cluster.weights() == {V1: 100}
        assert "does not exist" in condition(cluster, "Ready").message
        cluster.now += timedelta(seconds=121)
        assert await operator.settle() == 30.0
        rollout = cluster.status.rollout
        assert rollout is not None and (cluster.status.phase, rollout.outcome) == ("Failed", "Aborted")
        assert condition(cluster, "Drained").status == "False"
        cluster.now += timedelta(hours=10)
        assert await operator.settle() == 30.0 and set(cluster.all(DEPLOYMENT)) == {V1, V2}
        cluster.open_gateway()
        cluster.accept_routes()
        await operator.settle()
        cluster.now += timedelta(seconds=4)
        await operator.settle()
        assert set(cluster.all(DEPLOYMENT)) == {V1}
        assert not [c for c in cluster.status.conditions if c.type == "Drained"]

    run(main)
