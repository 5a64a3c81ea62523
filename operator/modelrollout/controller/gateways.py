"""What gateways can do, read from their GatewayClass when a spec needs to know, and remembered for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from modelrollout.kube.client import GATEWAY, GATEWAY_CLASS, Kube, KubeError, NotFound
from modelrollout.rollout.facts import Problem
from modelrollout.traffic.features import GatewayFacts, supported_features

REMEMBER_SECONDS = 60.0


class Gateways:
    """Needs no right but get on gateways and gatewayclasses. A failure is not remembered."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._known: dict[tuple[str, str], tuple[float, GatewayFacts]] = {}

    async def facts(self, namespace: str, name: str) -> GatewayFacts | Problem:
        """The facts on a Gateway, or why there are none. After REMEMBER_SECONDS they are read again; if that fails, the old ones hold."""
        at, known = self._known.get((namespace, name), (0.0, None))
        if known is not None and self._clock() - at < REMEMBER_SECONDS:
            return known
        try:
            gateway = await self._kube.get(GATEWAY, namespace, name)
            of_class = str(gateway["spec"]["gatewayClassName"])
            found = await self._kube.get(GATEWAY_CLASS, None, of_class)
        except NotFound:
            return Problem("GatewayUnknown", f"spec.traffic.gateway: there is no Gateway {namespace}/{name}, or its class is gone; correct the name")
        except KubeError as e:
            if known is not None:
                return known
            return Problem("GatewayUnknown", f"spec.traffic.gateway: Gateway {namespace}/{name} or its class cannot be read: {e.message}")
        facts = GatewayFacts(f"{namespace}/{name}", of_class, str(found["spec"]["controllerName"]), supported_features(found))
        self._known[namespace, name] = (self._clock(), facts)
        return facts
