"""Ends of servers as the operator sees and writes them: pods with the kubelet's records, conflicts,
and operators that die in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import ModelRevisionStatus, RestartEvidence
from modelrollout.kube.errors import Conflict
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION, POD, Resource
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

V1, V2 = b.revision_name(1), b.revision_name(2)
TRAFFIC = {"http": {"hostnames": ["digits.example.com"]}, "gateway": {"name": "public"}}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def start_pod(cluster: Cluster, revision: str, name: str) -> None:
    """A server pod as a ReplicaSet of the revision's Deployment makes it."""
    labels = {
        names.LABEL_NAME: b.NAME,
        names.LABEL_REVISION: revision,
        names.LABEL_COMPONENT: names.COMPONENT_SERVER,
        "pod-template-hash": "5d8",
    }
    owner = {"kind": "ReplicaSet", "name": f"{revision}-5d8", "uid": "rs", "controller": True}
    cluster.put(POD, {"metadata": {"name": name, "labels": labels, "ownerReferences": [owner]}})


def end_server(cluster: Cluster, pod: str, code: int = 139) -> None:
    """The server of a pod ends and runs again at once."""

    def change(o: dict[str, Any]) -> None:
        before = ((o.get("status") or {}).get("containerStatuses") or [{}])[0].get("restartCount", 0)
        last = {"exitCode": code, "reason": "Error", "finishedAt": stamp(cluster.now)}
        server = {
            "name": "triton",
            "ready": True,
            "restartCount": before + 1,
            "state": {"running": {"startedAt": stamp(cluster.now)}},
            "lastState": {"terminated": last},
        }
        o["status"] = {"phase": "Running", "containerStatuses": [server]}

    cluster.change(POD, pod, change)


async def on_trial(**rollout: Any) -> tuple[Cluster, Operator]:
    """Version 1 is stable, version 2 is in its first step; each has a pod."""
    cluster = Cluster()
    cluster.user(b.spec(1, steps=b.STEPS, traffic=TRAFFIC, rollout=rollout))
    operator = Operator(cluster)
    await operator.live()
    start_pod(cluster, V1, "stable-0")
    start_pod(cluster, V2, "canary-0")
    end_server(cluster, "canary-0")  # while it starts
    operator.assessment = b.judged("Inconclusive")
    cluster.user(b.spec(2, steps=b.STEPS, traffic=TRAFFIC, rollout=rollout))
    await operator.live(rounds=8)
    assert cluster.status.step == "1/3" and cluster.status.rollout
    assert cluster.status.rollout.restarts is None
    cluster.now += timedelta(seconds=10)
    return cluster, operator


def restarts(cluster: Cluster) -> RestartEvidence:
    assert cluster.status.rollout and cluster.status.rollout.restarts
    return cluster.status.rollout.restarts


def test_a_server_that_crashes_and_comes_back_is_not_promoted() -> None:
    async def main() -> None:
        cluster, operator = await on_trial()
        operator.assessment = b.judged("Successful")
        end_server(cluster, "canary-0")
        await operator.live(rounds=6)
        assert cluster.weights() == {V1: 95, V2: 5}
        assert cluster.status.rollout and cluster.status.rollout.reason == "ServerRestarted"
        assert restarts(cluster).canary.counts == {"ServerCrashed": 1}, "the one before the trial is none"
        end_server(cluster, "canary-0")
        await operator.live(rounds=3)
        assert cluster.status.phase == "Paused" and cluster.weights() == {V1: 95, V2: 5}
        assert cluster.status.rollout.reason == "RepeatedCrashes"
        assert restarts(cluster).canary.counts == {"ServerCrashed": 2}
        (event,) = [e for e in operator.events if e.reason == "RepeatedCrashes"]
        assert "2 times" in event.message and "SIGSEGV" in event.message
        record = ModelRevisionStatus.model_validate(cluster.all(MODEL_REVISION)[V2]["status"]).restarts
        assert record and record.canary.counts == {"ServerCrashed": 2} and not record.canary.pods
        cluster.annotate(V2, "promote", "1/3 7f3a")
        await operator.live(rounds=3)
        assert cluster.weights()[V2] > 5, "a person accepts it"

    run(main())


def test_stables_ends_in_the_same_time_excuse_it() -> None:
    async def main() -> None:
        cluster, operator = await on_trial()
        operator.assessment = b.judged("Successful")
        end_server(cluster, "stable-0")
        end_server(cluster, "canary-0")
        await operator.live(rounds=12)
        assert cluster.status.stable and cluster.status.stable.revision == V2
        record = ModelRevisionStatus.model_validate(cluster.all(MODEL_REVISION)[V2]["status"]).restarts
        assert record and (sum(record.canary.counts.values()), sum(record.stable.counts.values())) == (1, 1)

    run(main())


@pytest.mark.parametrize("how", ["conflict", "died before the write", "died after the write", "deaf"])
def test_no_end_is_lost_or_counted_twice(how: str) -> None:
    """Whatever happens to the write of the first end, the second is the second."""

    async def main() -> None:
        cluster, operator = await on_trial()
        failed = {"left": 1}

        def fail(verb: str, resource: Resource, name: str) -> None:
            if (verb, resource) == ("status", MODEL_DEPLOYMENT) and failed["left"]:
                failed["left"] -= 1
                raise Conflict(409, "Conflict", name)

        operator.deaf = how == "deaf"  # both are seen at once, and the first may be of long ago
        end_server(cluster, "canary-0")
        if how == "conflict":
            cluster.before = fail
            await operator.settle()
            assert not failed["left"]
        elif how == "died after the write":
            await operator.once()
        if how.startswith("died"):
            operator = Operator(cluster)
            operator.assessment = b.judged("Inconclusive")
            await operator.settle()
        cluster.now += timedelta(seconds=30)
        end_server(cluster, "canary-0")
        operator.hear()
        for _ in range(3):
            await operator.settle()
            cluster.now += timedelta(seconds=5)
        assert restarts(cluster).canary.counts == {"ServerCrashed": 1 if how == "deaf" else 2}
        assert cluster.weights() == {V1: 95, V2: 5}

    run(main())
