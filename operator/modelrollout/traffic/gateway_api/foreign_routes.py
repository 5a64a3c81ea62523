"""HTTPRoutes and GRPCRoutes that belong to no ModelDeployment: which requests they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelrollout.resources.common import Object
from modelrollout.traffic.hostnames import ForeignRoute, route_name


def foreign_route(route: Object) -> ForeignRoute | None:
    """What a route of no ModelDeployment takes. None where it takes nothing: without host names,
    rejected by its gateways, or only a redirect.

    Several controllers, or listeners, may answer for one gateway: one that does not reject it
    suffices.
    """
    metadata, spec = route["metadata"], route.get("spec") or {}
    namespace = metadata.get("namespace") or ""
    answers = [
        (_gateway(p.get("parentRef") or {}, namespace), _rejects(p))
        for p in (route.get("status") or {}).get("parents") or []
    ]
    refused = {at for at, _ in answers} - {at for at, rejects in answers if not rejects}
    parents = [p for p in spec.get("parentRefs") or [] if p.get("kind", "Gateway") == "Gateway"]
    gateways = frozenset(_gateway(p, namespace) for p in parents) - refused
    opens = tuple(
        m for rule in spec.get("rules") or [] if not _redirects(rule) for m in _matches(route["kind"], rule)
    )
    hosts = tuple(spec.get("hostnames") or ())
    return (
        ForeignRoute(route_name(route), namespace, gateways, hosts, opens)
        if hosts and gateways and opens
        else None
    )


def _gateway(parent: Mapping[str, Any], namespace: str) -> tuple[str, str]:
    return str(parent.get("namespace") or namespace), str(parent.get("name"))


def _rejects(answer: Mapping[str, Any]) -> bool:
    return any(
        c.get("type") == "Accepted" and c.get("status") == "False" for c in answer.get("conditions") or []
    )


def _redirects(rule: Object) -> bool:
    return any(f.get("type") == "RequestRedirect" for f in rule.get("filters") or [])


def _matches(kind: str, rule: Object) -> Iterator[tuple[str, str]]:
    for match in rule.get("matches") or [{}]:
        if kind == "HTTPRoute":
            path = match.get("path") or {}
            yield path.get("type", "PathPrefix"), path.get("value", "/")
            continue
        called = match.get("method") or {}
        service, method = called.get("service"), called.get("method")
        if called.get("type", "Exact") != "Exact" or (method and not service):
            yield "RegularExpression", ""
        else:
            yield ("Exact", f"/{service}/{method}") if method else ("PathPrefix", f"/{service or ''}")
