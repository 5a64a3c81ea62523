"""Who counts what: the table of evidence sources."""

from __future__ import annotations

from collections.abc import Mapping

from modelrollout.analysis.providers.prometheus.sources.base import EvidenceSource
from modelrollout.analysis.providers.prometheus.sources.feedback import FEEDBACK
from modelrollout.analysis.providers.prometheus.sources.traefik import TRAEFIK
from modelrollout.analysis.providers.prometheus.sources.triton import TRITON
from modelrollout.analysis.target import Profile
from modelrollout.api.v1alpha1 import REQUEST_METRICS

# who counts requests, by profile of the gateway
REQUESTS: Mapping[Profile, EvidenceSource] = {"traefik": TRAEFIK, "none": TRITON}


def source_of(metric: str, profile: Profile) -> EvidenceSource | None:
    """The source of a built-in metric of spec; None for any other name."""
    return FEEDBACK if metric == "accuracy" else REQUESTS[profile] if metric in REQUEST_METRICS else None
