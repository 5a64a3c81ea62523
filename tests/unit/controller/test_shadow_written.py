"""The shadow as objects: real observe, decide and act against the cluster in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Counter, MetricStatus, VerdictName
from modelrollout.kube.kinds import DEPLOYMENT, GATEWAY_CLASS, HTTP_ROUTE, MODEL_DEPLOYMENT, SERVICE
from modelrollout.rollout.snapshot import Assessment
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator
from modelrollout.traffic.gateway_api.mirror import is_mirrored

V1, V2 = b.revision_name(1), b.revision_name(2)
COMPARER = f"{V2}-shadow"
TRAFFIC = {"http": {"hostnames": ["digits.example.com"]}, "gateway": {"name": "public"}}


def judged(verdict: VerdictName) -> Assessment:
    verdicts = b.judged(verdict)
    return replace(
        verdicts,
        metrics=(
            MetricStatus(
                name="agreement", verdict=verdict, reason=verdicts.reason, canary=Counter(total=100)
            ),
        ),
    )


async def mirroring(rollout: dict[str, Any] | None = None) -> tuple[Cluster, Operator]:
    """Version 1 is stable; requests are mirrored to the comparer of version 2, which has no verdict
    yet.
    """
    cluster = Cluster()
    cluster.open_gateway(gatewayClassName="shiny")
    cluster.objects[GATEWAY_CLASS, "", "shiny"] = {
        "metadata": {"name": "shiny"},
        "spec": {"controllerName": "example.com/gateway"},
        "status": {
            "supportedFeatures": [
                {"name": "HTTPRoute"},
                {"name": "HTTPRouteMethodMatching"},
                {"name": "HTTPRouteRequestMirror"},
            ]
        },
    }
    desired = {"shadow": {"minSamples": 10}, **(rollout or {})}
    cluster.user(b.spec(1, rollout=desired, traffic=TRAFFIC))
    operator = Operator(cluster)
    await operator.live()
    operator.assessment = judged("Inconclusive")
    cluster.user(b.spec(2, rollout=desired, traffic=TRAFFIC))
    await operator.live(rounds=8)
    assert cluster.status.phase == "Shadowing" and mirrors(cluster), cluster.status.rollout
    return cluster, operator


def mirrors(cluster: Cluster) -> bool:
    route = cluster.find(HTTP_ROUTE)
    assert route is not None
    return is_mirrored(route)


@pytest.mark.parametrize(
    "rollout", [{}, {"blueGreen": {"preview": {"http": {"hostnames": ["preview.example.com"]}}}}]
)
async def test_from_mirror_to_trial(rollout: dict[str, Any]) -> None:
    cluster, operator = await mirroring(rollout)
    assert (
        cluster.weights() == {V1: 100}
        and COMPARER in cluster.all(DEPLOYMENT)
        and COMPARER in cluster.all(SERVICE)
    )
    preview = cluster.find(HTTP_ROUTE, "digits-preview")
    assert preview is None or not is_mirrored(preview)
    operator.assessment = judged("Successful")
    await operator.settle()
    assert not mirrors(cluster) and COMPARER in cluster.all(DEPLOYMENT), (
        "the data plane may still know the mirror"
    )
    operator.assessment = judged("Inconclusive")
    await operator.live(rounds=3)
    assert cluster.status.rollout and cluster.status.rollout.stage == "Canary"
    assert set(cluster.all(DEPLOYMENT)) == {V1, V2} and COMPARER not in cluster.all(SERVICE)


async def test_what_mirrored_drains_with_the_canary_whatever_comes_next() -> None:
    cluster, operator = await mirroring()
    operator.assessment = judged("Failed")
    await operator.settle()
    cluster.accept_routes()
    cluster.now += timedelta(seconds=4)
    cluster.user(b.spec(3, rollout={"shadow": {"minSamples": 10}}, traffic=TRAFFIC))
    await operator.settle()
    assert cluster.status.rollout and cluster.status.rollout.revision != V2, "another rollout is under way"
    assert (
        not mirrors(cluster)
        and {V1, V2, COMPARER} <= set(cluster.all(DEPLOYMENT))
        and COMPARER in cluster.all(SERVICE)
    )
    cluster.now += timedelta(seconds=4)
    await operator.settle()
    assert not {V2, COMPARER} & set(cluster.all(DEPLOYMENT)) and COMPARER not in cluster.all(SERVICE)


async def test_abort_takes_the_mirror_out_of_the_route_also_where_spec_cannot_be_read() -> None:
    cluster, operator = await mirroring()
    cluster.change(MODEL_DEPLOYMENT, b.NAME, lambda o: o["spec"].update(surprise=True))
    await operator.live(rounds=2)
    assert mirrors(cluster), "nothing changes by itself"
    cluster.annotate(V2, "abort", "7f3a")
    await operator.live(rounds=3)
    assert not mirrors(cluster) and cluster.weights() == {V1: 100}
    assert cluster.status.rollout and (cluster.status.rollout.stage, cluster.status.rollout.outcome) == (
        "Failed",
        "Aborted",
    )
