"""Gateway API routes: one HTTPRoute and one GRPCRoute of our own for a ModelDeployment, weights over Services of revisions.

The routes belong to the operator alone, so that neither Git nor Argo CD ever sees a weight that it did not write (PEERS.md, GitOps).
"""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Traffic
from modelrollout.resources.common import Object, Owner, labels, metadata

Split = tuple[tuple[str, int], ...]  # (revision, weight in percent), 0 left out


def routes(owner: Owner, traffic: Traffic, split: Split) -> list[Object]:
    """The routes that the spec asks for; none without a gateway."""
    found: list[Object] = []
    if traffic.gateway is None:
        return found
    if traffic.http:
        found.append(_route("HTTPRoute", owner, traffic, traffic.http.hostnames, names.PORT_HTTP, split))
    if traffic.grpc:
        found.append(_route("GRPCRoute", owner, traffic, traffic.grpc.hostnames, names.PORT_GRPC, split))
    return found


def _route(kind: str, owner: Owner, traffic: Traffic, hostnames: list[str], port: int, split: Split) -> Object:
    assert traffic.gateway is not None
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(owner, owner.name, labels(owner.name, names.COMPONENT_SERVER)),
        "spec": {
            "parentRefs": [
                {
                    "group": "gateway.networking.k8s.io",
                    "kind": "Gateway",
                    "name": traffic.gateway.name,
                    "namespace": traffic.gateway.namespace or owner.namespace,
                }
            ],
            "hostnames": list(hostnames),
            "rules": [
                {"backendRefs": [{"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight} for revision, weight in split]}
            ],
        },
    }
