"""Istio's standard metrics, as the proxy of the gateway reports them: requests by the Service that
they were sent to, and durations in milliseconds (istio.io/latest/docs/reference/config/metrics).
"""

from __future__ import annotations

from collections.abc import Mapping

from modelrollout.analysis.providers.prometheus.sources.gateway import (
    GRPC_STATUS,
    Answers,
    BackendSeries,
    Histogram,
    metric_of_http,
)
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget

_REQUESTS = "istio_requests_total"
_SIDES = (
    "workload", "workload_namespace", "principal", "app", "version", "cluster", "canonical_service",
    "canonical_revision",
)  # fmt: skip
_LABELS = (
    "reporter",
    *(f"source_{label}" for label in _SIDES),
    *(f"destination_{label}" for label in _SIDES),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "response_flags",
    "connection_security_policy",
)
_KINDS = ("request_protocol", "response_code", "grpc_response_status")


def _select(target: ScrapedTarget, revision: str) -> str:
    backend = f'destination_service_namespace="{target.namespace}",destination_service_name="{revision}"'
    return f'reporter="source",{backend}'


def _metric_of(labels: Mapping[str, str]) -> str | None:
    """By the gRPC status where there is one: HTTP says 200 for every gRPC call with an answer."""
    status = labels.get("grpc_response_status", "")
    if labels.get("request_protocol") == "grpc" and status:
        return GRPC_STATUS.get(status)
    return metric_of_http(labels.get("response_code", ""))


ISTIO = BackendSeries(
    (Answers("", _select, _REQUESTS, _KINDS, _LABELS, _metric_of, _REQUESTS),),
    Histogram("istio_request_duration_milliseconds_bucket", (*_LABELS, *_KINDS), 0.001),
)
