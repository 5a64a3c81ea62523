"""What gateways export about two revisions of ``ml/digits``, in the form that each documents or
records. Envoy Gateway's was held against what the real one exports (``RECORDED``); none of the
others was scraped from a gateway by this project.

The answers are the same in all of them: (HTTP status or gRPC status: requests), by revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Series = dict[str, float]  # as the exposition writes it: name and labels to value
Answers = Mapping[str, int]
BUCKETS = {"50": 0.9, "100": 0.95, "+Inf": 1.0}  # milliseconds: share of the requests


def _series(name: str, value: float, **labels: str) -> Series:
    return {f"{name}{{{','.join(f'{k}={chr(34)}{v}{chr(34)}' for k, v in labels.items())}}}": value}


def envoy(http_cluster: str, grpc_cluster: str, http: Answers, grpc: Answers, method: str = "") -> Series:
    """Envoy's ``/stats/prometheus`` (envoyproxy.io: cluster statistics, and gRPC statistics).
    ``method``: of gRPC, where ``stats_for_all_methods`` is set.
    """
    made: Series = {}
    for cluster, answers in ((http_cluster, http), (grpc_cluster, {"200": sum(grpc.values())})):
        total = sum(answers.values())
        made |= _series("envoy_cluster_upstream_rq_total", total, envoy_cluster_name=cluster)
        for code, n in answers.items():
            labels = {"envoy_response_code": code, "envoy_cluster_name": cluster}
            made |= _series("envoy_cluster_upstream_rq", n, **labels)
            of_class = {"envoy_response_code_class": code[0], "envoy_cluster_name": cluster}
            made |= _series("envoy_cluster_upstream_rq_xx", n, **of_class)
        for le, share in BUCKETS.items():
            durations = {"envoy_cluster_name": cluster, "le": le}
            made |= _series("envoy_cluster_upstream_rq_time_bucket", round(share * total), **durations)
    # so Envoy takes the name of inference.GRPCInferenceService/ModelInfer apart
    bridge = {"method": "GRPCInferenceService", "service": "inference"} if method else {}
    called = {f"envoy_grpc_bridge_{name}": value for name, value in bridge.items()}
    prefix = "envoy_cluster_grpc_" + (f"{method}_" if method else "")
    for status, n in grpc.items():
        made |= _series(f"{prefix}{status}", n, **called, envoy_cluster_name=grpc_cluster)
    counted = {"request_message_count": sum(grpc.values()), "success": grpc.get("0", 0)}
    for name, value in (counted | {"total": sum(grpc.values())}).items():
        made |= _series(f"{prefix}{name}", value, **called, envoy_cluster_name=grpc_cluster)
    return made


def envoy_gateway(revision: str, http: Answers, grpc: Answers, position: int = 0) -> Series:
    """By position: 1 is the canary's."""
    names = [f"{kind}route/ml/digits/rule/0/backend/{position}" for kind in ("http", "grpc")]
    return envoy(names[0], names[1], http, grpc, "ModelInfer")


RECORDED = Path(__file__).parent / "recordings" / "envoy-gateway-1.9.1.txt"


def recorded(path: Path = RECORDED) -> Series:
    """A scrape of the real thing."""
    lines = (line for line in path.read_text().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def contour(revision: str, http: Answers, grpc: Answers, position: int = 0) -> Series:
    """By namespace, Service and port."""
    return envoy(f"ml_{revision}_8000", f"ml_{revision}_8001", http, grpc)


def cilium(revision: str, http: Answers, grpc: Answers, position: int = 0) -> Series:
    """The same behind the Gateway's CiliumEnvoyConfig."""
    prefix = "gateways/cilium-gateway-public"
    return envoy(f"{prefix}/ml_{revision}_8000", f"{prefix}/ml_{revision}_8001", http, grpc)


def istio(revision: str, http: Answers, grpc: Answers, position: int = 0) -> Series:
    """istio.io: standard metrics, of the gateway's proxy and of the server's."""
    made: Series = {}
    statuses = [("http", code, "", n) for code, n in http.items()]
    statuses += [("grpc", "200", status, n) for status, n in grpc.items()]
    for reporter in ("source", "destination"):
        for protocol, code, status, n in statuses:
            labels = {
                "reporter": reporter,
                "source_workload": "public-istio",
                "source_workload_namespace": "gateways",
                "destination_workload": revision,
                "destination_workload_namespace": "ml",
                "destination_service": f"{revision}.ml.svc.cluster.local",
                "destination_service_name": revision,
                "destination_service_namespace": "ml",
                "request_protocol": protocol,
                "response_code": code,
                "grpc_response_status": status,
                "response_flags": "-",
                "connection_security_policy": "unknown",
            }
            made |= _series("istio_requests_total", n, **labels)
            for le, share in BUCKETS.items():
                name = "istio_request_duration_milliseconds_bucket"
                made |= _series(name, round(share * n), **labels, le=le)
    return made


def linkerd(revision: str, http: Answers, grpc: Answers, position: int = 0) -> Series:
    """linkerd.io: proxy metrics, of the gateway's proxy (outbound) and of the server's."""
    made: Series = {}
    statuses = [(code, {}, n) for code, n in http.items()]
    statuses += [("200", {"grpc_status": status}, n) for status, n in grpc.items()]
    for direction in ("outbound", "inbound"):
        for pod in ("a", "b"):  # each has half of the requests
            to = {
                "direction": direction,
                "authority": "digits.example.com",
                "tls": "true",
                "dst_namespace": "ml",
                "dst_deployment": revision,
                "dst_pod": f"{revision}-{pod}",
            }
            for code, grpc_status, n in statuses:
                half = n // 2 if pod == "a" else n - n // 2
                kind = "success" if code[0] in "23" else "failure"
                made |= _series(
                    "response_total", half, **to, status_code=code, **grpc_status, classification=kind
                )
            total = sum(n for _, _, n in statuses)
            half = total // 2 if pod == "a" else total - total // 2
            for le, share in BUCKETS.items():
                made |= _series(
                    "response_latency_ms_bucket", round(share * half), **to, status_code="200", le=le
                )
    return made


def custom(revision: str, http: Answers, grpc: Answers, position: int = 0) -> Series:
    """A gateway without a profile; its histogram is in seconds."""
    made: Series = {}
    answers = {**http, **{f"grpc-{status}": n for status, n in grpc.items()}}
    for code, n in answers.items():
        made |= _series("gw_requests_total", n, backend=revision, code=code)
    total = sum(answers.values())
    made |= _series("gw_seconds_count", total, backend=revision)
    for le, share in BUCKETS.items():
        bound = le if le == "+Inf" else str(float(le) / 1000)
        made |= _series("gw_seconds_bucket", round(share * total), backend=revision, le=bound)
    return made


_OF_CUSTOM = 'backend="{{revision}}",job="a"'
CUSTOM_QUERIES = {
    "requests": f"sum by (instance) (gw_requests_total{{{_OF_CUSTOM}}})",
    "errors": f'gw_requests_total{{{_OF_CUSTOM},code=~"5..|grpc-(2|4|8|13|14|15)"}}',
    "clientErrors": f'gw_requests_total{{{_OF_CUSTOM},code=~"400|404|grpc-3"}}',
    "refusedRequests": f'gw_requests_total{{{_OF_CUSTOM},code="429"}}',
    "slow": (
        f"sum by (instance) (gw_seconds_count{{{_OF_CUSTOM}}})"
        f' - sum by (instance) (gw_seconds_bucket{{{_OF_CUSTOM},le="{{{{objective}}}}"}})'
    ),
}
GATEWAYS = {
    "custom": custom,
    "envoy-gateway": envoy_gateway,
    "contour": contour,
    "cilium": cilium,
    "istio": istio,
    "linkerd": linkerd,
}
