"""Who counts the requests of a ModelDeployment: the gateway whose counters are known, or Triton."""

from __future__ import annotations

from collections.abc import Mapping

from modelrollout.analysis.target import Counting
from modelrollout.config import GatewayMetrics, Profile
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.traffic.gateway_facts import GatewayFacts

# spec.controllerName of a GatewayClass. A controller that is missing here has no counters by
# backend, or none that were looked at (docs/reference/gateways.md).
PROFILES: Mapping[str, Profile] = {
    "traefik.io/gateway-controller": "traefik",
    "gateway.envoyproxy.io/gatewayclass-controller": "envoy-gateway",
    "istio.io/gateway-controller": "istio",
    "io.cilium/gateway-controller": "cilium",
    "projectcontour.io/gateway-controller": "contour",
}

# profiles of gateways that count a backend by its position in the rule of a route
COUNTED_BY_POSITION: frozenset[Profile] = frozenset({"envoy-gateway"})


def counting(configured: GatewayMetrics, facts: GatewayFacts | None) -> Counting:
    """As the operator's configuration says, else by the controller of the Gateway that spec names.
    ``facts``: what is known of that Gateway; None: it cannot be read.
    """
    if configured.profile != "auto":
        return Counting(configured.profile)
    if facts is None or facts.controller is None:
        text = (
            "who counts the requests is unknown, because the operator cannot read the Gateway of"
            " spec.traffic.gateway or its GatewayClass; let it read both, or set gatewayMetrics.profile in"
            " its chart"
        )
        return Counting(unknown=(facts and facts.problem) or Problem(Reason.GATEWAY_UNKNOWN, text))
    profile = PROFILES.get(facts.controller)
    if profile is not None:
        return Counting(profile)
    return Counting(
        uncounted=Problem(
            Reason.COUNTED_BY_SERVERS,
            f"GatewayClass {facts.gateway_class} of Gateway {facts.gateway} has the controller"
            f" {facts.controller}, whose counters are not known, so Triton's own decide: errors are judged,"
            " and latency where Triton has a histogram of it; client errors are not; take a gateway of"
            " docs/reference/gateways.md, or, if it is one of them under another name, set"
            " gatewayMetrics.profile in the operator's chart",
        )
    )
