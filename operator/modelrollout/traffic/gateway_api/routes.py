"""Gateway API routes: an HTTPRoute or GRPCRoute of our own for each host name of a ModelDeployment,
with weights over Services of revisions.

One for each name, because Traefik ranks all names of a route by the longest of them. They let
through what clients may call (``resources.endpoints``) and nothing else.

The routes belong to the operator alone, so that neither Git nor Argo CD ever sees a weight that it
did not write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from modelrollout.api import names
from modelrollout.api.v1alpha1 import GatewayRef, HeaderMatch, Hostnames, Preview, Traffic
from modelrollout.resources.common import Object, Owner, labels, metadata
from modelrollout.resources.endpoints import matches
from modelrollout.rollout.snapshot import Split
from modelrollout.traffic.gateway_api.extras import NO_EXTRAS, Extras

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


def routes(
    owner: Owner,
    traffic: Traffic,
    rules: list[Rule],
    positions: Sequence[str] = (),
    guest_at: frozenset[str] = frozenset(),
    extras: Extras = NO_EXTRAS,
) -> list[Object]:
    """The routes that the spec asks for; none without a gateway. ``positions`` as of
    ``rendered_rules``; ``guest_at``: host names of which another ModelDeployment has the paths that
    name no model.
    """
    return (
        _routes(
            owner,
            owner.name,
            traffic.gateways,
            traffic.http,
            traffic.grpc,
            rules,
            positions,
            guest_at,
            extras,
        )
        if traffic.gateways
        else []
    )


def preview_routes(
    owner: Owner,
    gateways: Sequence[GatewayRef],
    preview: Preview,
    revision: str,
    positions: Sequence[str] = (),
    guest_at: frozenset[str] = frozenset(),
    extras: Extras = NO_EXTRAS,
) -> list[Object]:
    """Routes NAME-preview of the preview's own host names to one revision."""
    return _routes(
        owner,
        names.preview_name(owner.name),
        gateways,
        preview.http,
        preview.grpc,
        preview_rules(revision),
        positions,
        guest_at,
        extras,
    )


def _routes(
    owner: Owner,
    name: str,
    gateways: Sequence[GatewayRef],
    http: Hostnames | None,
    grpc: Hostnames | None,
    rules: list[Rule],
    positions: Sequence[str],
    guest_at: frozenset[str],
    extras: Extras,
) -> list[Object]:
    """Further routes before the first: when another name becomes the first, the former first name
    already has a route of its own.
    """
    return [
        _route(
            kind,
            owner,
            name if i == 0 else f"{name}-{names.short_hash(host, _DIGITS)}",
            gateways,
            host,
            rendered_rules(kind, owner.name, rules, positions, server=host not in guest_at, extras=extras),
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


def _route(
    kind: str, owner: Owner, name: str, gateways: Sequence[GatewayRef], host: str, rules: list[Object]
) -> Object:
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
                    **({"sectionName": gateway.section_name} if gateway.section_name else {}),
                }
                for gateway in gateways
            ],
            "hostnames": [host],
            "rules": rules,
        },
    }


def rendered_rules(
    kind: str,
    model: str,
    rules: list[Rule],
    positions: Sequence[str] = (),
    *,
    server: bool = True,
    extras: Extras = NO_EXTRAS,
) -> list[Object]:
    """The rules as a route of that kind has them. ``server``: with the paths that name no model.

    ``positions``: revisions that every rule has, in this order and also with weight 0, for a
    gateway that counts a backend by its position in the rule. Such a gateway counts it only where
    a backend has a filter, so each gets one that changes nothing. It counts by the position of the
    rule as well, so the rule that is always there comes first: which rule a request fits does not
    depend on their order, for that with headers is the narrower one.
    """
    if positions:
        rules = sorted(rules, key=lambda rule: bool(rule[0]))
    port = names.PORT_HTTP if kind == "HTTPRoute" else names.PORT_GRPC
    return [
        {
            "matches": matches(
                kind, model, headers, server=server, streamed=streamed, cors=extras.opens_options
            ),
            **further,
            "backendRefs": [
                _backend(revision, weight, port) | ({"filters": [NO_CHANGE]} if positions else {})
                for revision, weight in _at_positions(split, positions)
            ],
        }
        for headers, split in rules
        for streamed, further in extras.parts(kind)
    ]


# Removes a header that no client sends.
NO_CHANGE: Object = {
    "type": "RequestHeaderModifier",
    "requestHeaderModifier": {"remove": ["x-modelrollout-counted-apart"]},
}


def _at_positions(split: Split, positions: Sequence[str]) -> Split:
    weights = dict(split)
    return (
        *((revision, weights.get(revision, 0)) for revision in positions),
        *((revision, weight) for revision, weight in split if revision not in positions),
    )


def _backend(revision: str, weight: int, port: int) -> Object:
    """A reference to the Service of a revision."""
    return {"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight}


def with_rules(route: Object, change: Callable[[Object], Object]) -> Object:
    """The route with every rule changed."""
    return route | {"spec": route["spec"] | {"rules": [change(rule) for rule in route["spec"]["rules"]]}}
