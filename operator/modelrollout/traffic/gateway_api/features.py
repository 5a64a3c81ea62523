"""The features that a GatewayClass reports, and those that a spec needs. A missing feature is a
problem that names it; it is never skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.traffic.gateway_facts import GatewayFacts

# Names of Gateway API features (sigs.k8s.io/gateway-api/pkg/features).
REQUEST_MIRROR = "HTTPRouteRequestMirror"
PERCENTAGE_MIRROR = "HTTPRouteRequestPercentageMirror"
# without it a route would open what manages the servers
METHOD_MATCHING = "HTTPRouteMethodMatching"
REQUEST_TIMEOUT = "HTTPRouteRequestTimeout"
BACKEND_TIMEOUT = "HTTPRouteBackendTimeout"
RESPONSE_HEADERS = "HTTPRouteResponseHeaderModification"
CORS = "HTTPRouteCORS"
_CORE = frozenset({"Gateway", "HTTPRoute", "GRPCRoute"})
TRAEFIK_CONTROLLER = "traefik.io/gateway-controller"
ENVOY_GATEWAY_CONTROLLER = "gateway.envoyproxy.io/gatewayclass-controller"
# Of controllers that report no features of any class, and of which they are known all the same.
# Envoy Gateway 1.9 leaves the field empty (internal/gatewayapi/status/gatewayclass.go).
UNREPORTED: Mapping[str, frozenset[str]] = {
    ENVOY_GATEWAY_CONTROLLER: _CORE
    | {METHOD_MATCHING, REQUEST_MIRROR, PERCENTAGE_MIRROR, REQUEST_TIMEOUT, BACKEND_TIMEOUT}
    | {RESPONSE_HEADERS, CORS}
}


def needed_features(spec: ModelDeploymentSpec) -> dict[str, str]:
    """Features that the spec's routes need, each with its field. (For a mirror see
    ``traffic.gateway_api.mirror``.)

    Matching a header exactly is part of every HTTPRoute and GRPCRoute; a regular expression has no
    feature of its own: a gateway that has none refuses the route.
    """
    if spec.traffic.gateway is None:
        return {}
    parts = (
        ("HTTPRoute", "spec.traffic.http", spec.traffic.http),
        (METHOD_MATCHING, "spec.traffic.http", spec.traffic.http),
        ("GRPCRoute", "spec.traffic.grpc", spec.traffic.grpc),
    )
    return {feature: field for feature, field, part in parts if part is not None}


def missing_features(needed: Iterable[str], supported: frozenset[str] | None) -> tuple[str, ...]:
    """The ``needed`` features that the class is known to lack, in their order; none where nothing
    is known.

    A list without any of the core features does not mean that the class lacks them.
    """
    if supported is None:
        return ()
    known = supported if supported & _CORE else supported | _CORE
    return tuple(name for name in needed if name not in known)


def route_problem(spec: ModelDeploymentSpec, facts: GatewayFacts | None) -> Problem | None:
    """What the gateway is known to lack for the spec's routes. Where nothing is known, its verdict
    on the routes themselves decides.
    """
    needed = needed_features(spec)
    missing = missing_features(needed, facts.features) if facts is not None else ()
    if not missing or facts is None:
        return None
    return feature_missing(
        " and ".join(dict.fromkeys(needed[name] for name in missing)),
        facts,
        missing,
        "take another gateway, or leave it out",
    )


def feature_missing(field: str, facts: GatewayFacts, missing: Iterable[str], remedy: str) -> Problem:
    """The refusal of a spec whose gateway lacks something."""
    listed = (
        "does not say what it supports"
        if facts.features is None
        else f"does not support {', '.join(missing)}"
    )
    text = (
        f"{field}: GatewayClass {facts.gateway_class} of Gateway {facts.gateway} (controller"
        f" {facts.controller}) {listed}; {remedy}"
    )
    return Problem(Reason.GATEWAY_FEATURE_MISSING, text)
