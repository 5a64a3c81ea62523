"""Servers of models that stream their answers get the time that streams take to end."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.kube.errors import Forbidden, KubeError, TooManyRequests, Unavailable
from modelrollout.kube.kinds import DEPLOYMENT, LEASE, MODEL_DEPLOYMENT, MODEL_REVISION, POD, Resource
from modelrollout.kube.objects import Object, annotations_of
from modelrollout.reasons import Reason
from modelrollout.resources.server import drain_of
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

V1, V2 = b.revision_name(1), b.revision_name(2)


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """What preparing finds."""
    result = b.job_result
    monkeypatch.setattr(b, "job_result", lambda *args: result(*args).model_copy(update={"decoupled": True}))


def template(cluster: Cluster) -> Any:
    found = cluster.find(DEPLOYMENT, V1)
    assert found is not None
    return copy.deepcopy(found["spec"]["template"])


async def served(**serving: Any) -> tuple[Cluster, Operator]:
    cluster, wanted = Cluster(), b.spec(1).wire()
    cluster.user(wanted | {"serving": wanted["serving"] | serving})
    operator = Operator(cluster)
    await operator.live()
    return cluster, operator


def test_preparing_finds_that_a_model_streams_and_its_servers_may_end_what_they_answer(
    streaming: None,
) -> None:
    async def main() -> None:
        cluster, operator = await served()
        before = template(cluster)
        assert drain_of(before) == (10, 900)
        revision = cluster.find(MODEL_REVISION, V1)
        assert revision is not None and drain_of(revision["spec"]["template"]) == (10, 30), "as it was frozen"
        # what is known of the artifact is lost: it is read from the pods that run
        cluster.change(MODEL_REVISION, V1, lambda o: o.pop("status"))
        cluster.change(MODEL_DEPLOYMENT, b.NAME, lambda o: o["status"].pop("rollout"))
        await operator.live(rounds=3)
        assert template(cluster) == before, "no pod is replaced"

    asyncio.run(main())


def test_what_spec_says_holds_for_them_too(streaming: None) -> None:
    async def main() -> None:
        cluster, _ = await served(drain={"exitTimeout": "60s"})
        assert drain_of(template(cluster)) == (10, 60)

    asyncio.run(main())


def test_all_others_end_as_the_operator_is_configured() -> None:
    async def main() -> None:
        cluster, _ = await served()
        assert drain_of(template(cluster)) == (10, 30)

    asyncio.run(main())


async def ended_trial(verdict: str | None, **policy: Any) -> tuple[Cluster, Operator, Object]:
    """The trial of a version that streams is over, by that verdict or by hand (None), and its
    Deployment is gone: what it was.
    """
    cluster, operator = await served()
    if policy:
        cluster.policy("production", **policy)
    cluster.user(b.spec(2, rollout={"onInconclusive": "Rollback", "progressDeadline": "60s"}))
    operator.assessment = b.judged("Inconclusive")
    for _ in range(40):
        await operator.live(rounds=1)
        if cluster.weights().get(V2):
            break
    deployment = copy.deepcopy(cluster.find(DEPLOYMENT, V2))
    assert deployment is not None
    if verdict is None:
        cluster.annotate(V2, "abort", "n1")
    else:
        operator.assessment = b.judged(verdict)  # type: ignore[arg-type]
    await operator.live(rounds=30)
    assert cluster.find(DEPLOYMENT, V2) is None and cluster.status.phase == "Failed"
    cluster.requests.clear()
    operator.events.clear()
    return cluster, operator, deployment


def ending(cluster: Cluster, deployment: Object, **metadata: Any) -> None:
    """A pod of that Deployment, which the garbage collector is deleting."""
    made = copy.deepcopy(deployment["spec"]["template"])
    labels = made["metadata"]["labels"] | {"pod-template-hash": "6d9f8b7c5d"}
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"{deployment['metadata']['name']}-6d9f8b7c5d",
        "uid": "of-the-replica-set",
        "controller": True,
    }
    about = {
        "name": "ending",
        "namespace": b.NAMESPACE,
        "labels": labels,
        "ownerReferences": [owner],
        "deletionTimestamp": "2026-01-01T00:15:00Z",
        "deletionGracePeriodSeconds": made["spec"]["terminationGracePeriodSeconds"],
    }
    cluster.put(POD, {"metadata": about | metadata, "spec": made["spec"], "status": {"phase": "Running"}})


def grace(cluster: Cluster) -> Any:
    found = cluster.find(POD, "ending")
    assert found is not None
    return found["metadata"]["deletionGracePeriodSeconds"]


def test_streams_of_a_version_that_was_proven_worse_have_thirty_seconds(streaming: None) -> None:
    async def main() -> None:
        cluster, operator, deployment = await ended_trial("Failed")
        ending(cluster, deployment)
        assert grace(cluster) == 10 + 900 + 5
        await operator.settle()
        await operator.settle()
        assert cluster.requests == ["delete Pod ending within 45 s"] and grace(cluster) == 10 + 30 + 5

    asyncio.run(main())


@pytest.mark.parametrize("verdict", ["Inconclusive", None])
def test_streams_of_a_version_that_nothing_was_proven_against_have_all_their_time(
    streaming: None, verdict: str | None
) -> None:
    async def main() -> None:
        cluster, operator, deployment = await ended_trial(verdict)
        ending(cluster, deployment)
        await operator.settle()
        assert not cluster.requests and grace(cluster) == 915

    asyncio.run(main())


def test_a_version_that_is_tried_again_is_not_hurried(streaming: None) -> None:
    async def main() -> None:
        cluster, operator, deployment = await ended_trial("Failed")
        cluster.annotate(V2, "retry", "n2")
        operator.assessment = b.judged("Inconclusive")
        for _ in range(40):
            await operator.live(rounds=1)
            if cluster.find(DEPLOYMENT, V2):
                break
        cluster.requests.clear()
        ending(cluster, deployment)
        await operator.settle()
        assert "delete Pod" not in " ".join(cluster.requests) and grace(cluster) == 915

    asyncio.run(main())


def test_what_only_looks_like_a_pod_of_the_version_is_left_alone(streaming: None) -> None:
    async def main() -> None:
        cluster, operator, deployment = await ended_trial("Failed")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        ending(cluster, deployment, labels=labels | {"pod-template-hash": "other"})
        await operator.settle()
        ending(cluster, deployment, name="comparer", labels=labels | {names.LABEL_COMPONENT: "shadow"})
        await operator.settle()
        cluster.remove(POD, "ending")
        ending(cluster, deployment, deletionTimestamp=None)
        await operator.settle()
        assert not cluster.requests

    asyncio.run(main())


def test_an_operator_that_may_not_shorten_it_says_so_and_goes_on(streaming: None) -> None:
    async def main() -> None:
        cluster, operator, deployment = await ended_trial("Failed")

        def refuse(verb: str, resource: Resource, name: str) -> None:
            if resource == POD:
                raise Forbidden(403, "Forbidden", 'pods "ending" is forbidden')

        cluster.before = refuse
        ending(cluster, deployment)
        assert await operator.settle() is None
        [event] = [e for e in operator.events if e.reason == Reason.GRACE_KEPT]
        assert event.type == "Warning" and V2 in event.message and "is forbidden" in event.message
        assert "915 s" in event.message and "grant" in event.message and grace(cluster) == 915
        cluster.user(b.spec(3))
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=30)
        assert cluster.status.stable and cluster.status.stable.revision == b.revision_name(3)

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        Unavailable(500, "InternalError", 'failed calling webhook "pods.example.com"'),
        TooManyRequests(429, "TooManyRequests", "too many requests"),
    ],
    ids=lambda e: str(e.status),
)
def test_an_api_server_that_does_not_shorten_it_now_holds_nothing_up(
    streaming: None, error: KubeError
) -> None:
    async def main() -> None:
        cluster, operator, deployment = await ended_trial("Failed")

        def refuse(verb: str, resource: Resource, name: str) -> None:
            if resource == POD:
                raise error

        cluster.before = refuse
        ending(cluster, deployment)
        assert await operator.settle() is None
        [event] = [e for e in operator.events if e.reason == Reason.GRACE_KEPT]
        assert error.message in event.message and "grant" not in event.message
        cluster.before = lambda *_: None
        await operator.settle()
        assert grace(cluster) == 10 + 30 + 5

    asyncio.run(main())


def test_a_rollback_has_ended_and_its_slot_is_free_while_its_pods_still_end(streaming: None) -> None:
    async def main() -> None:
        cluster, operator, deployment = await ended_trial("Failed", limits={"concurrentRollouts": 1})
        [lease] = (o for name, o in cluster.all(LEASE).items() if name.startswith("modelrollout-slot-"))
        assert names.ANNOTATION_ROLLOUT not in annotations_of(lease) and not lease["spec"]
        assert cluster.status.rollout and cluster.status.rollout.stage == "Failed"
        ending(cluster, deployment)
        await operator.settle()
        assert cluster.find(POD, "ending") and cluster.status.rollout.stage == "Failed"

    asyncio.run(main())
