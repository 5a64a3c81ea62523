"""Who counts what: the table of evidence sources."""

from __future__ import annotations

from collections.abc import Mapping

from modelrollout.analysis.providers.prometheus.sources.base import EvidenceSource
from modelrollout.analysis.providers.prometheus.sources.custom import CUSTOM
from modelrollout.analysis.providers.prometheus.sources.envoy import CILIUM, CONTOUR, ENVOY_GATEWAY
from modelrollout.analysis.providers.prometheus.sources.feedback import FEEDBACK
from modelrollout.analysis.providers.prometheus.sources.istio import ISTIO
from modelrollout.analysis.providers.prometheus.sources.linkerd import LINKERD
from modelrollout.analysis.providers.prometheus.sources.traefik import TRAEFIK
from modelrollout.analysis.providers.prometheus.sources.triton import TRITON
from modelrollout.analysis.target import TRITON as BY_SERVERS
from modelrollout.analysis.target import counted_by
from modelrollout.api.v1alpha1 import Metric
from modelrollout.config import Profile

# who counts requests, by profile of the gateway
REQUESTS: Mapping[Profile, EvidenceSource] = {
    "traefik": TRAEFIK,
    "envoy-gateway": ENVOY_GATEWAY,
    "istio": ISTIO,
    "cilium": CILIUM,
    "contour": CONTOUR,
    "linkerd": LINKERD,
    "custom": CUSTOM,
    "none": TRITON,
}


def source_of(metric: Metric, profile: Profile) -> EvidenceSource | None:
    """The source of a built-in metric of spec; None for any other name."""
    by = counted_by(metric, profile)
    if by == "feedback":
        return FEEDBACK
    return TRITON if by == BY_SERVERS else None if by is None else REQUESTS[profile]
