"""Pods that are taken away from a rollout: drains, consolidated nodes, higher priorities."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import DEPLOYMENT, POD, POD_DISRUPTION_BUDGET, Resource
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

V1, V2 = b.revision_name(1), b.revision_name(2)


def serving(version: int) -> Any:
    return b.spec(version, steps=[{"weight": 50}], replicas=4, rollout={"bake": "60s"})


async def in_canary() -> tuple[Cluster, Operator]:
    """Version 2 has half of all requests, and two of four pods."""
    cluster = Cluster()
    cluster.user(serving(1))
    operator = Operator(cluster)
    await operator.live()
    operator.assessment = b.judged("Inconclusive")
    cluster.user(serving(2))
    for _ in range(40):
        await operator.live(rounds=1)
        if cluster.weights().get(V2) == 50:
            break
    await operator.live(rounds=1)
    assert cluster.weights() == {V1: 50, V2: 50}
    return cluster, operator


def protected(cluster: Cluster) -> dict[str, str]:
    """Revisions by the names of the budgets that select their pods."""
    budgets = cluster.all(POD_DISRUPTION_BUDGET)
    return {n: o["spec"]["selector"]["matchLabels"][names.LABEL_REVISION] for n, o in budgets.items()}


@pytest.mark.parametrize("verdict", ["Successful", "Failed"])
def test_a_canary_has_a_budget_until_it_is_stable_or_gone_and_no_pod_ever_has_two(verdict: Any) -> None:
    async def main() -> None:
        cluster, operator = await in_canary()
        assert protected(cluster) == {b.NAME: V1, V2: V2}

        def look(verb: str, resource: Resource, name: str) -> None:
            """A pod with two budgets cannot be evicted."""
            revisions = list(protected(cluster).values())
            assert len(revisions) == len(set(revisions)), (verb, resource.kind, name)

        cluster.before = look
        operator.assessment = b.judged(verdict)
        await operator.live(rounds=40)
        winner = V2 if verdict == "Successful" else V1
        assert cluster.status.stable and cluster.status.stable.revision == winner
        assert protected(cluster) == {b.NAME: winner}

    asyncio.run(main())


@pytest.mark.parametrize(("verdict", "winner"), [("Successful", V2), ("Failed", V1)])
def test_a_budget_that_cannot_be_deleted_holds_no_traffic_up(verdict: Any, winner: str) -> None:
    async def main() -> None:
        cluster, operator = await in_canary()

        def refuse(verb: str, resource: Resource, name: str) -> None:
            if (verb, resource) == ("delete", POD_DISRUPTION_BUDGET):
                raise Forbidden(403, "Forbidden", "poddisruptionbudgets is forbidden")

        cluster.before = refuse
        operator.assessment = b.judged(verdict)
        for _ in range(30):
            await operator.live(rounds=1)
            if cluster.weights() == {winner: 100}:
                break
        assert cluster.weights() == {winner: 100}

    asyncio.run(main())


@pytest.mark.parametrize(("verdict", "winner"), [("Successful", V2), ("Failed", V1)])
def test_a_budget_that_cannot_be_written_holds_no_rollout_up(verdict: Any, winner: str) -> None:
    """A quota of the namespace may be for one budget of each model."""

    async def main() -> None:
        cluster = Cluster()
        cluster.user(serving(1))
        operator = Operator(cluster)
        await operator.live()
        said = "exceeded quota: count/poddisruptionbudgets.policy=1"

        def refuse(verb: str, resource: Resource, name: str) -> None:
            if resource == POD_DISRUPTION_BUDGET and name == V2:
                raise Forbidden(403, "Forbidden", said)

        cluster.before = refuse
        operator.assessment = b.judged("Inconclusive")
        cluster.user(serving(2))
        for _ in range(40):
            await operator.live(rounds=1)
            if cluster.weights().get(V2) == 50:
                break
        assert cluster.weights() == {V1: 50, V2: 50}
        assert protected(cluster) == {b.NAME: V1}
        operator.assessment = b.judged(verdict)
        await operator.live(rounds=40)
        assert cluster.weights() == {winner: 100} and protected(cluster) == {b.NAME: winner}

    asyncio.run(main())


def pod_of(cluster: Cluster, revision: str, **condition: str) -> None:
    """A pod of the revision that is being deleted."""
    deployment = cluster.find(DEPLOYMENT, revision)
    assert deployment is not None
    made = copy.deepcopy(deployment["spec"]["template"])
    labels = made["metadata"]["labels"] | {"pod-template-hash": "6d9f8b7c5d"}
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"{revision}-6d9f8b7c5d",
        "uid": "of-the-replica-set",
        "controller": True,
    }
    metadata = {
        "name": "leaving",
        "namespace": b.NAMESPACE,
        "labels": labels,
        "ownerReferences": [owner],
        "deletionTimestamp": "2026-01-01T00:15:00Z",
        "deletionGracePeriodSeconds": 45,
    }
    ended = {
        "name": "triton",
        "restartCount": 0,
        "state": {"terminated": {"exitCode": 137, "finishedAt": "2026-01-01T00:15:00Z"}},
    }
    status = {
        "phase": "Running",
        "conditions": [{"type": "DisruptionTarget", "status": "True"} | condition] if condition else [],
        "containerStatuses": [ended],
    }
    cluster.put(POD, {"metadata": metadata, "spec": made["spec"] | {"nodeName": "n1"}, "status": status})


@pytest.mark.parametrize("revision", [V1, V2], ids=["stable", "canary"])
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("EvictionByEvictionAPI", "Evicted"),
        ("PreemptionByScheduler", "Preempted"),
        ("DeletionByTaintManager", "NodeLost"),
    ],
)
def test_a_drain_in_mid_canary_is_said_and_is_no_regression(revision: str, reason: str, said: str) -> None:
    async def main() -> None:
        cluster, operator = await in_canary()
        operator.events.clear()
        pod_of(cluster, revision, reason=reason, message="the node is consolidated")
        await operator.live(rounds=3)
        told = {(e.type, e.reason, e.message) for e in operator.events}
        assert told == {
            (
                "Warning",
                said,
                f"pod leaving on node n1 was taken away: the node is consolidated; revision {revision} has"
                " one pod less until its successor is ready, and its end counts as no failure of the version",
            )
        }
        rollout = cluster.status.rollout
        assert rollout is not None and rollout.stage == "Canary" and rollout.restarts is None
        assert cluster.weights() == {V1: 50, V2: 50}

    asyncio.run(main())


def test_a_pod_that_is_scaled_away_or_goes_without_a_rollout_is_no_news() -> None:
    async def main() -> None:
        cluster, operator = await in_canary()
        operator.events.clear()
        pod_of(cluster, V2)  # deleted by its ReplicaSet
        await operator.live(rounds=2)
        assert operator.events == []
        cluster.remove(POD, "leaving")
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=40)
        operator.events.clear()
        pod_of(cluster, V2, reason="EvictionByEvictionAPI", message="drained")
        await operator.live(rounds=2)
        assert operator.events == []

    asyncio.run(main())
