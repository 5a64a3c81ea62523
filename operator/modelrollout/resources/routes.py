"""Gateway API routes: one HTTPRoute and one GRPCRoute of our own for a ModelDeployment, weights over Services of revisions.

They open what clients may ask (``resources.endpoints``) and nothing else of the servers.

The routes belong to the operator alone, so that neither Git nor Argo CD ever sees a weight that it did not write (PEERS.md, GitOps).
"""

from __future__ import annotations

from collections.abc import Iterable

from modelrollout.api import names
from modelrollout.api.v1alpha1 import GatewayRef, HeaderMatch, Hostnames, Preview, Traffic
from modelrollout.resources.common import Object, Owner, labels, metadata
from modelrollout.resources.endpoints import matches

Split = tuple[tuple[str, int], ...]  # (revision, weight in percent), 0 left out


def routes(owner: Owner, traffic: Traffic, split: Split, headers: Iterable[HeaderMatch] = (), matched: str | None = None) -> list[Object]:
    """The routes that the spec asks for; none without a gateway. Requests with all of ``headers`` go to the revision ``matched``, if there is one."""
    if traffic.gateway is None:
        return []
    rules = [([{"type": h.type, "name": h.name, "value": h.value} for h in headers], ((matched, 100),))] if matched else []
    return _routes(owner, owner.name, traffic.gateway, traffic.http, traffic.grpc, [*rules, ([], split)])


def preview_routes(owner: Owner, gateway: GatewayRef, preview: Preview, revision: str) -> list[Object]:
    """Routes NAME-preview of the preview's own host names to one revision."""
    return _routes(owner, names.preview_name(owner.name), gateway, preview.http, preview.grpc, [([], ((revision, 100),))])


_Rule = tuple[list[dict[str, str]], Split]  # (headers that a request must carry, backends)


def _routes(owner: Owner, name: str, gateway: GatewayRef, http: Hostnames | None, grpc: Hostnames | None, rules: list[_Rule]) -> list[Object]:
    found: list[Object] = []
    if http:
        found.append(_route("HTTPRoute", owner, name, gateway, http.hostnames, names.PORT_HTTP, rules))
    if grpc:
        found.append(_route("GRPCRoute", owner, name, gateway, grpc.hostnames, names.PORT_GRPC, rules))
    return found


def _route(kind: str, owner: Owner, name: str, gateway: GatewayRef, hostnames: list[str], port: int, rules: list[_Rule]) -> Object:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(owner, name, labels(owner.name, names.COMPONENT_SERVER)),
        "spec": {
            "parentRefs": [
                {
                    "group": "gateway.networking.k8s.io",
                    "kind": "Gateway",
                    "name": gateway.name,
                    "namespace": gateway.namespace or owner.namespace,
                }
            ],
            "hostnames": list(hostnames),
            "rules": [{"matches": matches(kind, owner.name, headers), "backendRefs": backends(split, port)} for headers, split in rules],
        },
    }


def backends(split: Split, port: int) -> list[Object]:
    """References to the Services of revisions."""
    return [{"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight} for revision, weight in split]
