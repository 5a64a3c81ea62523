"""What is read of gateways: seldom, with get alone, and a failure never forgets what was known."""

from __future__ import annotations

from typing import Any

from modelrollout.controller.lookups.gateways import KNOWN_SECONDS, UNKNOWN_SECONDS, Gateways
from modelrollout.kube.errors import Forbidden, NotFound
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object
from modelrollout.problem import Problem
from modelrollout.traffic.base import GatewayFacts


def of_gateway(gateway: Any) -> Object:
    return {"metadata": {"namespace": "ml", "name": "digits"}, "spec": {"traffic": {"gateway": gateway}}}


HERE = of_gateway({"name": "public"})
THERE = of_gateway({"name": "public", "namespace": "gateways"})


class Kube:
    def __init__(self) -> None:
        self.reads: list[str] = []
        self.error: Exception | None = None
        self.takes = "All"
        self.features: list[Any] = [{"name": "HTTPRouteRequestMirror"}, "GRPCRoute"]

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        self.reads.append(f"{resource.kind} {namespace} {name}")
        if self.error:
            raise self.error
        if resource.kind == "Gateway":
            return {
                "spec": {
                    "gatewayClassName": "shiny",
                    "listeners": [{"allowedRoutes": {"namespaces": {"from": self.takes}}}],
                }
            }
        return {
            "spec": {"controllerName": "example.com/gateway"},
            "status": {"supportedFeatures": self.features},
        }


async def test_facts_are_read_once_for_all_and_again_after_a_while() -> None:
    kube, now = Kube(), [1000.0]
    gateways = Gateways(kube, lambda: now[0])
    features = await gateways.of(THERE)
    assert features == GatewayFacts(
        "gateways/public", "shiny", "example.com/gateway", frozenset({"HTTPRouteRequestMirror", "GRPCRoute"})
    )
    assert await gateways.of(THERE) == features
    assert kube.reads == ["Gateway gateways public", "GatewayClass None shiny"]
    here = await gateways.of(HERE)
    assert isinstance(here, GatewayFacts) and here.gateway == "ml/public"
    now[0] += KNOWN_SECONDS + 1
    kube.features = []
    again = await gateways.of(THERE)
    assert isinstance(again, GatewayFacts) and again.features is None
    now[0] += KNOWN_SECONDS + 1
    kube.error = Forbidden(403, "Forbidden", "no")
    assert await gateways.of(THERE) == again, "an API server that is away changes nothing"


async def test_what_cannot_be_read_is_told_and_asked_again_sooner() -> None:
    kube, now = Kube(), [1000.0]
    gateways = Gateways(kube, lambda: now[0])
    said: set[str] = set()
    for error in (NotFound(404, "NotFound", "no"), Forbidden(403, "Forbidden", "may not get")):
        kube.error = error
        for _ in range(3):
            features = await gateways.of(THERE)
            assert isinstance(features, Problem) and features.reason == "GatewayUnknown"
            said.add(features.message)
        now[0] += UNKNOWN_SECONDS + 1
    assert len(kube.reads) == 2 and len(said) == 1 and "correct the name" in said.pop()
    kube.error = None
    assert isinstance(await gateways.of(THERE), GatewayFacts)


async def test_without_a_gateway_nothing_is_asked() -> None:
    kube = Kube()
    gateways = Gateways(kube)
    for deployment in (None, {"metadata": {"namespace": "ml"}, "spec": {}}, of_gateway("odd")):
        assert await gateways.of(deployment) is None
    assert kube.reads == []


async def test_a_gateway_that_is_not_for_him_is_as_one_that_is_not_there() -> None:
    kube, missing = Kube(), Kube()
    kube.takes, missing.error = "Same", NotFound(404, "NotFound", "no")
    assert await Gateways(kube).of(THERE) == await Gateways(missing).of(THERE)
    assert isinstance(await Gateways(kube).of(HERE), GatewayFacts), "its own namespace's"
