"""Gateway API and plain Service behind one interface.

Accepted by the gateway for the route's generation does not prove that the data plane carries it; the decision adds a delay before it
counts requests, and the canary's own counters are the proof (DESIGN.md, Traffic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.resources.common import Object, Owner
from modelrollout.resources.routes import routes
from modelrollout.rollout.facts import Problem, Server, Split, Traffic


class Router(Protocol):
    """One way to divide requests between revisions."""

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """Objects of the ModelDeployment that carry the split."""

    def taken_up(self, split: Split, seen: Mapping[tuple[str, str], Object], servers: Mapping[str, Server]) -> Traffic:
        """Whether what was last ``seen`` (by kind and name) carries the split and is accepted."""


class GatewayRouter:
    """HTTPRoute and GRPCRoute with weights over Services of revisions."""

    def __init__(self, spec: TrafficSpec) -> None:
        self._spec = spec

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The routes; none while nothing serves."""
        return routes(owner, self._spec, split) if split else []

    def taken_up(self, split: Split, seen: Mapping[tuple[str, str], Object], servers: Mapping[str, Server]) -> Traffic:
        """Every route has these weights, and its gateway has accepted this generation with all references resolved."""
        kinds = [kind for kind, part in (("HTTPRoute", self._spec.http), ("GRPCRoute", self._spec.grpc)) if part]
        for kind in kinds:
            route = next((o for (k, _), o in seen.items() if k == kind), None)
            if route is None or weights(route) != dict(split):
                return Traffic(False, f"{kind} is not written yet")
            problem = refusal_of(kind, route)
            if problem is not None:
                return Traffic(False, problem.message, problem)
            if not accepted(route):
                return Traffic(False, f"{kind} generation {route['metadata'].get('generation')} is not accepted by its gateway yet")
        return Traffic(True)


def weights(route: Object) -> dict[str, int]:
    """Weights above 0 by Service, as the route says."""
    backends = [ref for rule in route["spec"].get("rules", []) for ref in rule.get("backendRefs", [])]
    return {ref["name"]: ref.get("weight", 1) for ref in backends if ref.get("weight", 1) > 0}


def _conditions(route: Object) -> Sequence[Mapping[str, Any]]:
    return [c for parent in (route.get("status") or {}).get("parents") or [] for c in parent.get("conditions") or []]


def accepted(route: Object) -> bool:
    """Accepted and ResolvedRefs are True for the present generation."""
    generation = route["metadata"].get("generation", 0)
    true = {c["type"] for c in _conditions(route) if c["status"] == "True" and c.get("observedGeneration", 0) >= generation}
    return {"Accepted", "ResolvedRefs"} <= true


def refusal_of(kind: str, route: Object) -> Problem | None:
    """What the gateway has against the route's present generation."""
    generation = route["metadata"].get("generation", 0)
    for c in _conditions(route):
        if c["type"] in ("Accepted", "ResolvedRefs") and c["status"] == "False" and c.get("observedGeneration", 0) >= generation:
            return Problem("RouteNotAccepted", f"the gateway refuses {kind}: {c.get('reason')}: {c.get('message', '')}")
    return None


class ServiceRouter:
    """No gateway: one Service over the pods of both revisions; the share follows the replica counts."""

    def __init__(self, name: str, wanted: Mapping[str, int], selector: str | None) -> None:
        self._name, self._wanted, self._selector = name, wanted, selector

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """None beyond the stable Service, which every ModelDeployment has."""
        return []

    def taken_up(self, split: Split, seen: Mapping[tuple[str, str], Object], servers: Mapping[str, Server]) -> Traffic:
        """The Service selects what it should, and the pods of the split are ready."""
        service = seen.get(("Service", self._name))
        selector = (service or {}).get("spec", {}).get("selector", {})
        if service is None or selector.get(names.LABEL_REVISION) != (None if self._selector == "*" else self._selector):
            return Traffic(False, "the Service is not written yet")
        for revision, weight in split:
            server, wanted = servers.get(revision, Server()), self._wanted.get(revision, 0)
            if weight and server.ready < wanted:
                return Traffic(False, f"{server.ready} of {wanted} pods of {revision} are ready")
        if self._selector == "*" and len(split) == 1:
            return Traffic(False, "the new revision's pods are not all ready yet")
        return Traffic(True)


def real_share(split: Split, servers: Mapping[str, Server]) -> float | None:
    """Percent of ready pods that are the canary's: the real share of connections without a gateway."""
    if len(split) != 2:
        return None
    stable, canary = (servers.get(r, Server()).ready for r, _ in split)
    return 100.0 * canary / (stable + canary) if stable + canary else None
