"""The counters of Envoy's clusters, where the gateway has a cluster for each backend: Envoy
Gateway, Contour, Cilium. Only the names of the clusters differ.

Envoy counts HTTP answers by code (``envoy_cluster_upstream_rq``; every gRPC call as 200), and its
filter ``grpc_stats``, which all three have in place, gRPC calls by the status of their trailers, in
the name of the metric. A method's name may be part of that, too
(``envoy_cluster_grpc_ModelInfer_13``). Durations are in milliseconds, and Envoy adds them up every
five seconds: the histogram is behind the counters by as much.
"""

from __future__ import annotations

from collections.abc import Callable

from modelrollout.analysis.providers.prometheus.promql import any_of
from modelrollout.analysis.providers.prometheus.sources.gateway import (
    GRPC_STATUS,
    Answers,
    BackendSeries,
    Histogram,
    metric_of_http,
)
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.api import names

_DATED = "envoy_cluster_upstream_rq_total"  # there from a cluster's first request on
_DURATIONS = Histogram("envoy_cluster_upstream_rq_time_bucket", ("envoy_cluster_name",), 0.001)
# The name of a backend's cluster as a regular expression, by target, revision and protocol.
Cluster = Callable[[ScrapedTarget, str, str], str]
_PORTS = {"http": names.PORT_HTTP, "grpc": names.PORT_GRPC}


def envoy(cluster: Cluster, *, by_route: bool = False) -> BackendSeries:
    """A gateway on Envoy. ``by_route``: it has a cluster for each rule of each route."""

    def select(protocol: str) -> Callable[[ScrapedTarget, str], str]:
        return lambda target, revision: f'envoy_cluster_name=~"{cluster(target, revision, protocol)}"'

    http = Answers(
        "http",
        select("http"),
        "envoy_cluster_upstream_rq",
        ("envoy_response_code",),
        ("envoy_cluster_name",),
        lambda labels: metric_of_http(labels.get("envoy_response_code", "")),
        _DATED,
    )
    grpc = Answers(
        "grpc",
        select("grpc"),
        "envoy_cluster_grpc_(?:[A-Za-z0-9_]+_)?[0-9]+",
        ("grpc_status",),
        ("envoy_cluster_name", "envoy_grpc_bridge_service", "envoy_grpc_bridge_method"),
        lambda labels: GRPC_STATUS.get(labels.get("grpc_status", "")),
        _DATED,
        status_in_name=True,
    )
    return BackendSeries((http, grpc), _DURATIONS, by_route="envoy_cluster_name" if by_route else None)


def _of_contour(target: ScrapedTarget, revision: str, protocol: str) -> str:
    """``alt_stat_name``: namespace, Service and port (Contour 1.33, internal/envoy/cluster.go)."""
    return f"{target.namespace}_{revision}_{_PORTS[protocol]}"


def _of_cilium(target: ScrapedTarget, revision: str, protocol: str) -> str:
    """``namespace:name:port`` after the namespace and name of the Gateway's CiliumEnvoyConfig
    (Cilium 1.18, operator/pkg/model/translation/envoy_cluster.go). Envoy turns colons of a
    cluster's name into underscores.
    """
    return f"[^/]+/[^/]+/{_of_contour(target, revision, protocol)}"


def _of_envoy_gateway(target: ScrapedTarget, revision: str, protocol: str) -> str:
    """By the position of the backend in its rule, where a filter of a backend makes Envoy Gateway
    give each one a cluster (1.9, internal/gatewayapi: ``irDestinationSettingName``). The operator's
    routes have the revisions at the same positions in every rule of every route
    (``traffic.gateway_api.routes``). A revision that has no position has no cluster.
    """
    position = target.positions.index(revision) if revision in target.positions else "none"
    route = f"(?:{any_of(target.routes or (target.name,))})"
    return f"{protocol}route/{target.namespace}/{route}/rule/[0-9]+/backend/{position}"


CONTOUR = envoy(_of_contour)
CILIUM = envoy(_of_cilium)
ENVOY_GATEWAY = envoy(_of_envoy_gateway, by_route=True)
