"""What gateways can do, read from their GatewayClass and remembered for a while: it changes with an upgrade of the gateway, and never in a hurry."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from modelrollout.kube.client import GATEWAY, GATEWAY_CLASS, KubeError, NotFound, Object, Resource
from modelrollout.rollout.facts import Problem
from modelrollout.traffic.features import GatewayFacts, supported_features

KNOWN_SECONDS = 60.0
UNKNOWN_SECONDS = 30.0  # not allowed to read, or not there yet


class Getter(Protocol):
    """What is needed of ``Kube``."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...


class Gateways:
    """One memory for all ModelDeployments. Needs no right but get on gateways and gatewayclasses."""

    def __init__(self, kube: Getter, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._known: dict[tuple[str, str], tuple[float, GatewayFacts | Problem]] = {}

    async def of(self, deployment: Object | None) -> GatewayFacts | Problem | None:
        """The facts on the Gateway that a spec, as it is stored, names, or why there are none; None where it names none. Never raises KubeError."""
        gateway = (((deployment or {}).get("spec") or {}).get("traffic") or {}).get("gateway") or {}
        if deployment is None or not isinstance(gateway, dict) or "name" not in gateway:
            return None
        key = (str(gateway.get("namespace") or deployment["metadata"]["namespace"]), str(gateway["name"]))
        until, known = self._known.get(key, (0.0, None))
        if known is not None and self._clock() < until:
            return known
        found = await self._read(*key, known)
        self._known[key] = (self._clock() + (KNOWN_SECONDS if isinstance(found, GatewayFacts) else UNKNOWN_SECONDS), found)
        return found

    async def _read(self, namespace: str, name: str, known: GatewayFacts | Problem | None) -> GatewayFacts | Problem:
        """What was ``known`` holds on where the API server does not answer."""
        try:
            gateway = await self._kube.get(GATEWAY, namespace, name)
            of_class = str(gateway["spec"]["gatewayClassName"])
            found = await self._kube.get(GATEWAY_CLASS, None, of_class)
        except NotFound:
            return Problem("GatewayUnknown", f"spec.traffic.gateway: there is no Gateway {namespace}/{name}, or its class is gone; correct the name")
        except KubeError as e:
            if isinstance(known, GatewayFacts):
                return known
            return Problem("GatewayUnknown", f"spec.traffic.gateway: Gateway {namespace}/{name} or its class cannot be read: {e.message}")
        return GatewayFacts(f"{namespace}/{name}", of_class, str(found["spec"]["controllerName"]), supported_features(found))
