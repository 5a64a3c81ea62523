"""``spec.traffic.sessionAffinity`` in the cluster in memory, behind Envoy Gateway and elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from modelrollout.api.v1alpha1 import Condition
from modelrollout.kube.errors import Invalid
from modelrollout.kube.kinds import (
    BACKEND_TRAFFIC_POLICY,
    DEPLOYMENT,
    GATEWAY_CLASS,
    HTTP_ROUTE,
    Resource,
)
from modelrollout.kube.objects import Object
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, Cluster, Operator
from modelrollout.traffic.gateway_api.features import ENVOY_GATEWAY_CONTROLLER
from modelrollout.traffic.gateway_api.staging import WHOLE

TRAFFIC = {"http": {"hostnames": ["digits.example.com"]}, "gateway": {"name": "public"}}
TWO_HOSTS = TRAFFIC | {"http": {"hostnames": ["digits.example.com", "further.example.com"]}}
STICKY = TRAFFIC | {"sessionAffinity": {"header": "x-session"}}
MAY = CONFIG.model_copy(
    update={"routes": CONFIG.routes.model_copy(update={"backend_traffic_policies": True})}
)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


class EnvoyGateway(Cluster):
    """A ``Cluster`` whose gateway is Envoy Gateway; ``refuses``: it has a policy for the routes
    already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds.add(BACKEND_TRAFFIC_POLICY.kind)
        self.set_spec(GATEWAY_CLASS, "simple", {"controllerName": ENVOY_GATEWAY_CONTROLLER})
        self.refuses = False

    def accept_routes(self) -> None:
        for (resource, namespace, name), o in list(self.objects.items()):
            if resource == HTTP_ROUTE:
                self.set_status(resource, name, b.answered(o, controller=ENVOY_GATEWAY_CONTROLLER), namespace)
            if resource == BACKEND_TRAFFIC_POLICY:
                self.set_status(resource, name, {"ancestors": [self._answer(o)]}, namespace)

    def _answer(self, policy: Object) -> Object:
        stated = {
            "type": "Accepted",
            "status": "False" if self.refuses else "True",
            "reason": "Conflicted" if self.refuses else "Accepted",
            "message": "another BackendTrafficPolicy has already attached to it",
            "observedGeneration": policy["metadata"]["generation"],
        }
        ref = {"kind": "Gateway", "name": "public"}
        return {"ancestorRef": ref, "controllerName": ENVOY_GATEWAY_CONTROLLER, "conditions": [stated]}


def ready(cluster: Cluster) -> Condition:
    return next(c for c in cluster.status.conditions if c.type == "Ready")


def policy(cluster: Cluster) -> Object | None:
    return cluster.find(BACKEND_TRAFFIC_POLICY)


async def serving(cluster: Cluster, traffic: Any = STICKY) -> Operator:
    cluster.user(b.spec(1, traffic=traffic))
    operator = Operator(cluster, MAY)
    await operator.live()
    return operator


def test_the_policy_comes_and_goes_with_the_field() -> None:
    async def main() -> None:
        cluster = EnvoyGateway()
        operator = await serving(cluster)
        made = policy(cluster)
        assert ready(cluster).status == "True" and made is not None
        assert made["spec"]["targetRefs"] == [
            {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "digits"}
        ]
        assert set(cluster.weights().values()) == {WHOLE}
        cluster.requests.clear()
        await operator.settle()
        assert cluster.requests == [], "what is settled costs nothing"
        cluster.user(b.spec(1, traffic=TRAFFIC))
        await operator.live(rounds=2)
        assert policy(cluster) is None and ready(cluster).status == "True"
        assert set(cluster.weights().values()) == {100}

    run(main)


def test_backends_keep_their_clusters_when_the_field_goes_though_nothing_counts_by_position() -> None:
    async def main() -> None:
        none = MAY.gateway_metrics.model_copy(update={"profile": "none"})
        cluster = EnvoyGateway()
        cluster.user(b.spec(1, traffic=STICKY))
        operator = Operator(cluster, MAY.model_copy(update={"gateway_metrics": none}))
        await operator.live()
        cluster.user(b.spec(1, traffic=TRAFFIC))
        await operator.live(rounds=2)
        [route] = cluster.all(HTTP_ROUTE).values()
        refs = [ref for rule in route["spec"]["rules"] for ref in rule["backendRefs"]]
        assert policy(cluster) is None and refs
        assert all(ref["filters"] and ref["weight"] == 100 for ref in refs)

    run(main)


def test_a_policy_that_is_refused_is_said_and_holds_the_next_version() -> None:
    async def main() -> None:
        cluster = EnvoyGateway()
        cluster.refuses = True
        operator = await serving(cluster)
        assert ready(cluster).reason == "SessionAffinityRefused" and "Conflicted" in ready(cluster).message
        cluster.user(b.spec(2, traffic=STICKY))
        await operator.live(rounds=2)
        assert ready(cluster).reason == "SessionAffinityRefused"
        assert cluster.status.rollout is None or cluster.status.rollout.number != 2
        cluster.refuses = False
        await operator.live()
        assert ready(cluster).reason != "SessionAffinityRefused" and policy(cluster) is not None
        assert cluster.status.rollout is not None and cluster.status.rollout.number == 2

    run(main)


def test_an_edit_of_spec_ends_the_refusal_of_another_header() -> None:
    class Conflicting(EnvoyGateway):
        def _answer(self, policy: Object) -> Object:
            self.refuses = "x-session" in str(policy["spec"]["loadBalancer"])
            return super()._answer(policy)

    async def main() -> None:
        cluster = Conflicting()
        operator = await serving(cluster)
        assert ready(cluster).reason == "SessionAffinityRefused"
        cluster.user(b.spec(1, traffic=TRAFFIC | {"sessionAffinity": {"header": "x-user"}}))
        await operator.live(rounds=2)
        assert ready(cluster).status == "True"

    run(main)


def test_an_edit_of_spec_takes_the_host_name_away_whose_route_has_another_policy() -> None:
    class Conflicting(EnvoyGateway):
        def _answer(self, policy: Object) -> Object:
            self.refuses = len(policy["spec"]["targetRefs"]) > 1
            return super()._answer(policy)

    async def main() -> None:
        cluster = Conflicting()
        operator = await serving(cluster, TWO_HOSTS | {"sessionAffinity": {"header": "x-session"}})
        assert ready(cluster).reason == "SessionAffinityRefused"
        cluster.user(b.spec(1, traffic=STICKY))
        await operator.live(rounds=2)
        assert ready(cluster).status == "True" and list(cluster.all(HTTP_ROUTE)) == ["digits"]

    run(main)


def test_a_policy_that_the_api_server_refuses_holds_up_nothing_else() -> None:
    def refuse(verb: str, resource: Resource, name: str) -> None:
        if resource == BACKEND_TRAFFIC_POLICY:
            raise Invalid(422, "Invalid", "no such field")

    async def main() -> None:
        cluster = EnvoyGateway()
        operator = await serving(cluster, TWO_HOSTS)
        cluster.before = refuse
        cluster.user(b.spec(2, traffic=STICKY))
        await operator.live(rounds=5)
        rollout = cluster.status.rollout
        assert rollout is not None and (rollout.number, rollout.stage) == (2, "Canary"), "its Job ran"
        assert rollout.reason == "ChildRefused" and "no such field" in ready(cluster).message
        assert list(cluster.all(HTTP_ROUTE)) == ["digits"], "the route of the other host name is gone"
        assert cluster.weights()[b.revision_name(2)] == WHOLE * 5 // 100
        cluster.before = lambda verb, resource, name: None
        await operator.live(rounds=2)
        assert policy(cluster) is not None and b.revision_name(2) in cluster.all(DEPLOYMENT)
        rollout = cluster.status.rollout
        assert rollout is not None and (rollout.stage, rollout.reason) != ("Canary", "ChildRefused")

    run(main)


def test_elsewhere_it_is_refused_by_name_and_routes_stay() -> None:
    async def main() -> None:
        cluster = Cluster()
        operator = await serving(cluster, TRAFFIC)
        before = cluster.weights()
        cluster.user(b.spec(1, traffic=STICKY))
        await operator.live(rounds=2)
        assert ready(cluster).reason == "SessionAffinityUnsupported"
        assert "is not known to keep a session" in ready(cluster).message and cluster.weights() == before

    run(main)
