"""What a gateway can do, as its GatewayClass says, and what a spec needs of it. What is missing is refused by name, never skipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelrollout.rollout.facts import Problem

# Names of Gateway API features (sigs.k8s.io/gateway-api/pkg/features).
REQUEST_MIRROR = "HTTPRouteRequestMirror"
PERCENTAGE_MIRROR = "HTTPRouteRequestPercentageMirror"
TRAEFIK_CONTROLLER = "traefik.io/gateway-controller"


@dataclass(frozen=True)
class GatewayFacts:
    """A Gateway's class as last read. ``features`` is None where its controller does not say what it supports."""

    gateway: str
    gateway_class: str
    controller: str
    features: frozenset[str] | None


def supported_features(gateway_class: Mapping[str, Any]) -> frozenset[str] | None:
    """Names in ``status.supportedFeatures``; None when the list is absent. Gateway API 1.0 wrote plain names, later ones write objects."""
    listed = (gateway_class.get("status") or {}).get("supportedFeatures")
    if listed is None:
        return None
    return frozenset(str(f.get("name")) if isinstance(f, Mapping) else str(f) for f in listed)


def missing_features(needed: Iterable[str], supported: frozenset[str] | None) -> tuple[str, ...]:
    """Those of ``needed`` that are not supported, in their order; all of them where nothing is said."""
    return tuple(name for name in needed if name not in (supported or ()))


def feature_missing(field: str, facts: GatewayFacts, missing: Iterable[str], remedy: str) -> Problem:
    """The refusal of a spec whose gateway lacks something."""
    listed = "does not say what it supports" if facts.features is None else f"does not support {', '.join(missing)}"
    text = f"{field}: GatewayClass {facts.gateway_class} of Gateway {facts.gateway} (controller {facts.controller}) {listed}; {remedy}"
    return Problem("GatewayFeatureMissing", text)
