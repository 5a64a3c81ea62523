"""The metrics of Linkerd's proxy beside a meshed gateway: answers by the Deployment that they came
from, and times to the first byte in milliseconds (linkerd.io/2-edge/reference/proxy-metrics).

Linkerd has no GatewayClass: the gateway is another one, and its pods and the model's are meshed.
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

_RESPONSES = "response_total"
_LABELS = (
    "direction", "authority", "tls", "no_tls_reason", "server_id", "target_addr", "target_ip", "target_port",
    "dst_namespace", "dst_deployment", "dst_service", "dst_serviceaccount", "dst_pod",
    "dst_pod_template_hash", "dst_control_plane_ns", "dst_zone", "dst_zone_locality",
)  # fmt: skip
_KINDS = ("status_code", "grpc_status", "grpc_status_code")


def _select(target: ScrapedTarget, revision: str) -> str:
    return f'direction="outbound",dst_namespace="{target.namespace}",dst_deployment="{revision}"'


def _metric_of(labels: Mapping[str, str]) -> str | None:
    """By the gRPC status where there is one, which the page calls grpc_status_code, and the proxy
    grpc_status.
    """
    status = labels.get("grpc_status") or labels.get("grpc_status_code")
    return GRPC_STATUS.get(status) if status else metric_of_http(labels.get("status_code", ""))


LINKERD = BackendSeries(
    (
        Answers(
            "", _select, _RESPONSES, _KINDS, (*_LABELS, "classification", "error"), _metric_of, _RESPONSES
        ),
    ),
    Histogram("response_latency_ms_bucket", (*_LABELS, "status_code"), 0.001),
)
