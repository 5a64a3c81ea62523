"""What gateways can do, read from their GatewayClass and remembered for a while: it changes with an
upgrade of the gateway, and never in a hurry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from modelrollout.kube.errors import KubeError, NotFound
from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, Resource
from modelrollout.kube.objects import Object
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.traffic.base import GatewayFacts
from modelrollout.traffic.gateway_api.features import supported_features

log = logging.getLogger(__name__)

KNOWN_SECONDS = 60.0
UNKNOWN_SECONDS = 30.0  # not allowed to read, or not there yet


class Getter(Protocol):
    """What is needed of ``Kube``."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...


class Gateways:
    """A cache shared by all ModelDeployments. Needs only ``get`` on gateways and gatewayclasses."""

    def __init__(self, kube: Getter, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._known: dict[tuple[str, str, bool], tuple[float, GatewayFacts | Problem]] = {}

    async def of(self, deployment: Object | None) -> GatewayFacts | Problem | None:
        """The facts on the Gateway that a spec, as it is stored, names, or why there are none; None
        where it names none. Never raises KubeError.
        """
        gateway = (((deployment or {}).get("spec") or {}).get("traffic") or {}).get("gateway") or {}
        if deployment is None or not isinstance(gateway, dict) or "name" not in gateway:
            return None
        own = str(deployment["metadata"]["namespace"])
        namespace = str(gateway.get("namespace") or own)
        key = (namespace, str(gateway["name"]), namespace == own)
        until, known = self._known.get(key, (0.0, None))
        if known is not None and self._clock() < until:
            return known
        facts = await self._read(*key, known)
        self._known[key] = (
            self._clock() + (KNOWN_SECONDS if isinstance(facts, GatewayFacts) else UNKNOWN_SECONDS),
            facts,
        )
        return facts

    async def _read(
        self, namespace: str, name: str, own: bool, known: GatewayFacts | Problem | None
    ) -> GatewayFacts | Problem:
        """Falls back to what was ``known`` when the API server does not answer. A Gateway that
        takes no routes of this namespace is reported like one that does not exist.
        """
        unknown = Problem(
            Reason.GATEWAY_UNKNOWN,
            f"spec.traffic.gateway: no Gateway {namespace}/{name} that takes routes of this namespace can be"
            " read, or its GatewayClass is gone; correct the name, or ask the platform team",
        )
        try:
            gateway = await self._kube.get(GATEWAY, namespace, name)
            of_class = str(gateway["spec"]["gatewayClassName"])
            gateway_class = await self._kube.get(GATEWAY_CLASS, None, of_class)
        except NotFound:
            return unknown
        except KubeError as e:
            if isinstance(known, GatewayFacts):
                return known
            log.warning("Gateway %s/%s or its class cannot be read: %s", namespace, name, e.message)
            return unknown
        if not own and not _takes_others(gateway):
            return unknown
        return GatewayFacts(
            f"{namespace}/{name}",
            of_class,
            str(gateway_class["spec"]["controllerName"]),
            supported_features(gateway_class),
        )


def _takes_others(gateway: Object) -> bool:
    """Whether any listener takes routes of other namespaces; if a selector chooses them, only the
    gateway knows which.
    """
    listeners = gateway["spec"].get("listeners") or []
    return any(
        ((x.get("allowedRoutes") or {}).get("namespaces") or {}).get("from", "Same") in ("All", "Selector")
        for x in listeners
    )
