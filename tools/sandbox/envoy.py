"""PURE: Envoy Gateway beside Traefik (`up --gateway envoy`): the values of its own chart, and a
Gateway that a proxy of this sandbox's image serves.
"""

from __future__ import annotations

from typing import Any

from sandbox.addons import Object, http_listener
from sandbox.build_images import ENVOY
from sandbox.configs import PORTS

RELEASE = "envoy-gateway"
NAMESPACE = "envoy-gateway-system"
GATEWAY_CLASS = "envoy"
GATEWAY = ("gateways", "envoy")
CONTROLLER = "gateway.envoyproxy.io/gatewayclass-controller"
CRDS = ("gateways.gateway.networking.k8s.io", "envoyproxies.gateway.envoyproxy.io")
_PROXY = "proxy"


def chart_values() -> dict[str, Any]:
    """Certificates come from its certgen Job. Zones, for which it would inject nodes' labels into
    pods, are of no use here.
    """
    return {
        "global": {"images": {"envoyGateway": {"image": ENVOY, "pullPolicy": "IfNotPresent"}}},
        "crds": {"enabled": False},  # applied before, as the server's to merge
        "topologyInjector": {"enabled": False},
        "config": {
            "envoyGateway": {
                "gateway": {"controllerName": CONTROLLER},
                "provider": {"type": "Kubernetes", "kubernetes": {"shutdownManager": {"image": ENVOY}}},
            }
        },
    }


def gateway() -> list[Object]:
    """One listener for HTTP/1.1 and h2c alike, behind a ClusterIP. The proxy annotates its pods for
    Prometheus by itself.
    """
    space, name = GATEWAY
    version = "gateway.networking.k8s.io/v1"
    resources = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    kubernetes = {
        "envoyDeployment": {"replicas": 1, "container": {"image": ENVOY, "resources": resources}},
        "envoyService": {"type": "ClusterIP"},
    }
    proxy = {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyProxy",
        "metadata": {"name": _PROXY, "namespace": NAMESPACE},
        "spec": {
            "concurrency": 1,  # two cores are for everything here
            "provider": {"type": "Kubernetes", "kubernetes": kubernetes},
        },
    }
    parameters = {
        "group": "gateway.envoyproxy.io",
        "kind": "EnvoyProxy",
        "name": _PROXY,
        "namespace": NAMESPACE,
    }
    return [
        proxy,
        {
            "apiVersion": version,
            "kind": "GatewayClass",
            "metadata": {"name": GATEWAY_CLASS},
            "spec": {
                "controllerName": CONTROLLER,
                "parametersRef": parameters,
            },
        },
        {
            "apiVersion": version,
            "kind": "Gateway",
            "metadata": {"name": name, "namespace": space},
            "spec": {"gatewayClassName": GATEWAY_CLASS, "listeners": [http_listener(PORTS["gateway"])]},
        },
    ]


def described(gateway: Object) -> dict[str, Any] | None:
    """What `status` says of it; None without an address. Each Gateway of the class has proxies and
    a Service of its own, whose address it states.
    """
    space, name = GATEWAY
    addresses = (gateway.get("status") or {}).get("addresses") or []
    if not addresses:
        return None
    return {
        "address": f"{addresses[0]['value']}:{PORTS['gateway']}",
        "class": GATEWAY_CLASS,
        "namespace": space,
        "name": name,
        "proxies": NAMESPACE,
    }
