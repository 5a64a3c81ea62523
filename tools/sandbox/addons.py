"""PURE: the objects that make a bare cluster the sandbox: DNS, names for what runs beside it, the
gateway.
"""

from __future__ import annotations

from typing import Any

from sandbox.configs import PORTS, Config

GATEWAY_CLASS = "traefik"
GATEWAY = ("gateways", "public")

Object = dict[str, Any]


def namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def external(
    name: str, space: str, address: str, ports: dict[str, tuple[int, str]], cluster_ip: str | None = None
) -> list[Object]:
    """A Service without selector and its endpoints: a stable in-cluster name for a process of the
    sandbox.
    """
    listed = [{"name": n, "port": port, "protocol": protocol} for n, (port, protocol) in ports.items()]
    spec: Object = {"ports": listed}
    if cluster_ip:
        spec["clusterIP"] = cluster_ip
    labels = {
        "kubernetes.io/service-name": name,
        "endpointslice.kubernetes.io/managed-by": "modelrollout-sandbox",
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": space}, "spec": spec},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-sandbox", "namespace": space, "labels": labels},
            "addressType": "IPv4",
            "ports": listed,
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    ]


def base(c: Config) -> list[Object]:
    ip = c.slot.infra
    return [
        *(namespace(n) for n in ("monitoring", "storage", "gateways")),
        *external(
            "kube-dns", "kube-system", ip, {"dns": (53, "UDP"), "dns-tcp": (53, "TCP")}, c.slot.dns_service
        ),
        *external("prometheus", "monitoring", ip, {"http": (PORTS["prometheus"], "TCP")}),
        *external("objectstore", "storage", ip, {"http": (PORTS["objectstore"], "TCP")}),
        *external("traefik", "gateways", ip, {"http": (PORTS["gateway"], "TCP")}),
    ]


def http_listener(port: int) -> Object:
    """Of a Gateway: for HTTP/1.1 and h2c alike."""
    kinds = [{"group": "gateway.networking.k8s.io", "kind": k} for k in ("HTTPRoute", "GRPCRoute")]
    return {
        "name": "http",
        "port": port,
        "protocol": "HTTP",
        "allowedRoutes": {"namespaces": {"from": "All"}, "kinds": kinds},
    }


def gateway() -> list[Object]:
    """One listener; its port must be the entry point's."""
    space, name = GATEWAY
    version = "gateway.networking.k8s.io/v1"
    return [
        {
            "apiVersion": version,
            "kind": "GatewayClass",
            "metadata": {"name": GATEWAY_CLASS},
            "spec": {"controllerName": "traefik.io/gateway-controller"},
        },
        {
            "apiVersion": version,
            "kind": "Gateway",
            "metadata": {"name": name, "namespace": space},
            "spec": {"gatewayClassName": GATEWAY_CLASS, "listeners": [http_listener(PORTS["gateway"])]},
        },
    ]
