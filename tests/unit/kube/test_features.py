"""What a Gateway can do: read seldom, and never in the way."""

from __future__ import annotations

import asyncio
from typing import Any

from modelrollout.kube.client import Forbidden, KubeError, Object, Resource
from modelrollout.kube.features import KNOWN_SECONDS, UNKNOWN_SECONDS, GatewayFeatures

HERE: Object = {"metadata": {"namespace": "ml", "name": "digits"}, "spec": {"traffic": {"gateway": {"name": "public"}}}}
THERE: Object = {"metadata": {"namespace": "ml", "name": "x"}, "spec": {"traffic": {"gateway": {"name": "public", "namespace": "gateways"}}}}


class Fake:
    def __init__(self, features: list[Any] | KubeError) -> None:
        self.features = features
        self.asked: list[tuple[str, str | None, str]] = []
        self.now = 1000.0

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        self.asked.append((resource.plural, namespace, name))
        if isinstance(self.features, KubeError):
            raise self.features
        if resource.plural == "gateways":
            return {"spec": {"gatewayClassName": "traefik"}}
        return {"status": {"supportedFeatures": self.features}}


def of(fake: Fake, *deployments: Object | None, apart: float = 0.0) -> list[frozenset[str]]:
    async def main() -> list[frozenset[str]]:
        features, found = GatewayFeatures(fake, lambda: fake.now), []
        for deployment in deployments:
            found.append(await features.of(deployment))
            fake.now += apart
        return found

    return asyncio.run(main())


def test_a_gateway_is_read_once_for_all_and_again_after_a_while() -> None:
    fake = Fake([{"name": "HTTPRoute"}, "GRPCRoute"])
    assert of(fake, HERE, HERE, THERE) == [frozenset({"HTTPRoute", "GRPCRoute"})] * 3
    assert fake.asked == [
        ("gateways", "ml", "public"),
        ("gatewayclasses", None, "traefik"),
        ("gateways", "gateways", "public"),
        ("gatewayclasses", None, "traefik"),
    ]
    fake.asked.clear()
    of(fake, HERE, HERE, apart=KNOWN_SECONDS)
    assert len(fake.asked) == 4


def test_what_cannot_be_read_is_unknown_and_asked_again_sooner() -> None:
    fake = Fake(Forbidden(403, "Forbidden", "no"))
    assert of(fake, HERE, HERE, HERE, apart=UNKNOWN_SECONDS / 2) == [frozenset()] * 3
    assert len(fake.asked) == 2


def test_without_a_gateway_nothing_is_asked() -> None:
    fake = Fake([])
    assert of(fake, None, {"metadata": {"namespace": "ml"}, "spec": {}}, {"metadata": {"namespace": "ml"}, "spec": {"traffic": {"gateway": "odd"}}})
    assert fake.asked == []
