"""What is read of gateways: seldom, with get alone, and a failure never forgets what was known."""

from __future__ import annotations

from typing import Any

from modelrollout.controller.gateways import REMEMBER_SECONDS, Gateways
from modelrollout.controller.observe import gateway_to_ask
from modelrollout.kube.client import Forbidden, NotFound, Resource
from modelrollout.rollout.facts import Problem
from modelrollout.traffic.features import GatewayFacts


class Kube:
    def __init__(self) -> None:
        self.reads: list[str] = []
        self.error: Exception | None = None
        self.features: list[Any] = [{"name": "HTTPRouteRequestMirror"}]

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        self.reads.append(f"{resource.kind} {namespace} {name}")
        if self.error:
            raise self.error
        if resource.kind == "Gateway":
            return {"spec": {"gatewayClassName": "shiny"}}
        return {"spec": {"controllerName": "example.com/gateway"}, "status": {"supportedFeatures": self.features}}


async def test_facts_are_remembered_and_read_again_after_a_while() -> None:
    kube, now = Kube(), [1000.0]
    gateways = Gateways(kube, lambda: now[0])  # type: ignore[arg-type]
    found = await gateways.facts("gateways", "public")
    assert found == GatewayFacts("gateways/public", "shiny", "example.com/gateway", frozenset({"HTTPRouteRequestMirror"}))
    assert await gateways.facts("gateways", "public") == found
    assert kube.reads == ["Gateway gateways public", "GatewayClass None shiny"]
    now[0] += REMEMBER_SECONDS + 1
    kube.features = []
    again = await gateways.facts("gateways", "public")
    assert isinstance(again, GatewayFacts) and again.features == frozenset()
    now[0] += REMEMBER_SECONDS + 1
    kube.error = Forbidden(403, "Forbidden", "no")
    assert await gateways.facts("gateways", "public") == again, "an API server that is away changes nothing"


async def test_what_cannot_be_read_is_told_and_asked_again() -> None:
    kube = Kube()
    gateways = Gateways(kube, lambda: 0.0)  # type: ignore[arg-type]
    for error, word in ((NotFound(404, "NotFound", "no"), "there is no Gateway"), (Forbidden(403, "Forbidden", "may not get"), "may not get")):
        kube.error = error
        found = await gateways.facts("gateways", "public")
        assert isinstance(found, Problem) and found.reason == "GatewayUnknown" and word in found.message
    kube.error = None
    assert isinstance(await gateways.facts("gateways", "public"), GatewayFacts)


def test_only_a_spec_that_needs_to_know_makes_a_read() -> None:
    def asked(spec: dict[str, Any]) -> tuple[str, str] | None:
        return gateway_to_ask({"metadata": {"namespace": "ml", "name": "digits"}, "spec": spec})

    traffic = {"gateway": {"name": "public", "namespace": "gateways"}}
    assert asked({"traffic": traffic}) is None
    assert asked({"rollout": {"shadow": {"percent": 5}}}) is None
    assert asked({"traffic": traffic, "rollout": {"shadow": {"percent": 5}}}) == ("gateways", "public")
    assert asked({"traffic": {"gateway": {"name": "mine"}}, "rollout": {"shadow": {"percent": 5}}}) == ("ml", "mine")
