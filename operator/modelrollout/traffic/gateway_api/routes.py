"""Gateway API routes: an HTTPRoute or GRPCRoute of our own for each host name of a ModelDeployment,
with weights over Services of revisions.

One for each name, because Traefik ranks all names of a route by the longest of them. They let
through what clients may call (``resources.endpoints``) and nothing else.

The routes belong to the operator alone, so that neither Git nor Argo CD ever sees a weight that it
did not write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from modelrollout.api import names
from modelrollout.api.v1alpha1 import GatewayRef, HeaderMatch, Hostnames, Preview, Traffic
from modelrollout.resources.common import Object, Owner, labels, metadata
from modelrollout.resources.endpoints import matches
from modelrollout.rollout.snapshot import Split

ROUTE_KINDS = ("HTTPRoute", "GRPCRoute")
_DIGITS = 8  # of the hash of a host name in the name of a further route
Rule = tuple[list[dict[str, str]], Split]  # (headers that a request must carry, backends)


def client_rules(split: Split, headers: Iterable[HeaderMatch] = (), matched: str | None = None) -> list[Rule]:
    """Requests with all of ``headers`` go to the revision ``matched``, if any; the others by
    ``split``.
    """
    test = (
        [([{"type": h.type, "name": h.name, "value": h.value} for h in headers], ((matched, 100),))]
        if matched
        else []
    )
    return [*test, ([], split)]


def preview_rules(revision: str) -> list[Rule]:
    """Everything goes to the one revision."""
    return [([], ((revision, 100),))]


def routes(owner: Owner, traffic: Traffic, rules: list[Rule]) -> list[Object]:
    """The routes that the spec asks for; none without a gateway."""
    return (
        _routes(owner, owner.name, traffic.gateway, traffic.http, traffic.grpc, rules)
        if traffic.gateway
        else []
    )


def preview_routes(owner: Owner, gateway: GatewayRef, preview: Preview, revision: str) -> list[Object]:
    """Routes NAME-preview of the preview's own host names to one revision."""
    return _routes(
        owner, names.preview_name(owner.name), gateway, preview.http, preview.grpc, preview_rules(revision)
    )


def _routes(
    owner: Owner,
    name: str,
    gateway: GatewayRef,
    http: Hostnames | None,
    grpc: Hostnames | None,
    rules: list[Rule],
) -> list[Object]:
    """Further routes before the first: when another name becomes the first, the former first name
    already has a route of its own.
    """
    return [
        _route(
            kind, owner, name if i == 0 else f"{name}-{names.short_hash(host, _DIGITS)}", gateway, host, rules
        )
        for kind, listed in (("HTTPRoute", http), ("GRPCRoute", grpc))
        for i, host in reversed(list(enumerate(listed.hostnames if listed else ())))
    ]


def backends_of(o: Object) -> set[tuple[str, str]]:
    """Kind and name of all backends of a route, or of a TraefikService that mirrors; none for other
    kinds.
    """
    spec = o.get("spec") or {}
    refs = [spec["mirroring"], *spec["mirroring"].get("mirrors", [])] if "mirroring" in spec else []
    for rule in (spec.get("rules") or []) if o["kind"] in ROUTE_KINDS else []:
        refs += rule.get("backendRefs") or []
        refs += [f["requestMirror"]["backendRef"] for f in rule.get("filters") or [] if "requestMirror" in f]
    return {(ref.get("kind") or "Service", ref["name"]) for ref in refs}


def is_of_clients(name: str, model: str) -> bool:
    """Whether a route of that name is one of the clients of ``model``."""
    return _is_of(model, name)


def is_of_preview(name: str, model: str) -> bool:
    """Whether a route of that name is one of the preview of ``model``."""
    return _is_of(names.preview_name(model), name)


def _is_of(first: str, name: str) -> bool:
    return name == first or re.fullmatch(f"-[0-9a-f]{{{_DIGITS}}}", name.removeprefix(first)) is not None


def _route(kind: str, owner: Owner, name: str, gateway: GatewayRef, host: str, rules: list[Rule]) -> Object:
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
            "hostnames": [host],
            "rules": rendered_rules(kind, owner.name, rules),
        },
    }


def rendered_rules(kind: str, model: str, rules: list[Rule]) -> list[Object]:
    """The rules as a route of that kind has them."""
    port = names.PORT_HTTP if kind == "HTTPRoute" else names.PORT_GRPC
    return [
        {"matches": matches(kind, model, headers), "backendRefs": _backends(split, port)}
        for headers, split in rules
    ]


def _backends(split: Split, port: int) -> list[Object]:
    """References to the Services of revisions."""
    return [
        {"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight}
        for revision, weight in split
    ]


def with_rules(route: Object, change: Callable[[Object], Object]) -> Object:
    """The route with every rule changed."""
    return route | {"spec": route["spec"] | {"rules": [change(rule) for rule in route["spec"]["rules"]]}}
