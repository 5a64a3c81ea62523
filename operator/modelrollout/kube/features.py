"""What a Gateway can do, as its GatewayClass says. Read seldom and remembered: it changes with an upgrade of the gateway, and never in a hurry."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from modelrollout.kube.client import GATEWAY, GATEWAY_CLASS, KubeError, Object, Resource

KNOWN_SECONDS = 600.0
UNKNOWN_SECONDS = 60.0  # not allowed to read, not there yet, or not said


class Getter(Protocol):
    """What is needed of ``Kube``."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...


class GatewayFeatures:
    """``of(deployment)``: one memory for all ModelDeployments behind the same Gateway."""

    def __init__(self, kube: Getter, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._known: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}

    async def of(self, deployment: Object | None) -> frozenset[str]:
        """Names of features such as ``HTTPRouteRequestMirror``; empty when there is no Gateway or nothing is known. Never raises KubeError."""
        gateway = (((deployment or {}).get("spec") or {}).get("traffic") or {}).get("gateway") or {}
        if deployment is None or not isinstance(gateway, dict) or "name" not in gateway:
            return frozenset()
        key = (str(gateway.get("namespace") or deployment["metadata"]["namespace"]), str(gateway["name"]))
        until, found = self._known.get(key, (0.0, frozenset[str]()))
        if self._clock() >= until:
            found = await self._read(*key)
            self._known[key] = (self._clock() + (KNOWN_SECONDS if found else UNKNOWN_SECONDS), found)
        return found

    async def _read(self, namespace: str, name: str) -> frozenset[str]:
        try:
            gateway = await self._kube.get(GATEWAY, namespace, name)
            kind = await self._kube.get(GATEWAY_CLASS, None, gateway["spec"]["gatewayClassName"])
        except KubeError:
            return frozenset()
        # Objects since v1.1 of Gateway API, plain names before.
        listed = (kind.get("status") or {}).get("supportedFeatures") or []
        return frozenset(f["name"] if isinstance(f, dict) else str(f) for f in listed)
