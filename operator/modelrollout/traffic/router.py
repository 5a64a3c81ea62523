"""Gateway API and plain Service behind one interface.

Accepted by the gateway for the route's generation does not prove that the data plane carries it; the decision adds a delay before it
counts requests, and the canary's own counters are the proof (DESIGN.md, Traffic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Rollout
from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.resources.common import Object, Owner
from modelrollout.resources.routes import preview_routes, routes
from modelrollout.rollout.facts import Problem, Server, Split, Traffic


class Router(Protocol):
    """One way to divide requests between revisions."""

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """Objects of the ModelDeployment that carry the split."""

    def taken_up(self, split: Split, seen: Mapping[tuple[str, str], Object], servers: Mapping[str, Server]) -> Traffic:
        """Whether what was last ``seen`` (by kind and name) carries the split and is accepted."""


class GatewayRouter:
    """HTTPRoute and GRPCRoute with weights over Services of revisions; requests with the headers of a test and a preview's host names go to one."""

    def __init__(self, name: str, spec: TrafficSpec, rollout: Rollout | None = None, matched: str | None = None, preview: str | None = None) -> None:
        self._name, self._spec = name, spec
        self._headers = rollout.ab_test.headers if rollout and rollout.ab_test else []
        self._preview = rollout.blue_green.preview if rollout and rollout.blue_green else None
        self._matched, self._shown = matched if self._headers else None, preview

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The routes; none while nothing serves."""
        if not split:
            return []
        aside = preview_routes(owner, self._spec.gateway, self._preview, self._shown) if self._spec.gateway and self._preview and self._shown else []
        return routes(owner, self._spec, split, self._headers, self._matched) + aside

    def taken_up(self, split: Split, seen: Mapping[tuple[str, str], Object], servers: Mapping[str, Server]) -> Traffic:
        """Every route has these rules, and its gateway has accepted this generation with all references resolved.

        Those of a preview count while it shows what has no other traffic: then the trial waits for them.
        """
        on_trial = self._shown is not None and self._shown not in dict(split)
        for route in self.children(_NOBODY, split):
            kind, name = route["kind"], route["metadata"]["name"].removeprefix(_NOBODY.name)
            if name and not on_trial:
                continue
            taken = _carried(kind, seen.get((kind, self._name + name)), _rules(route))
            if not taken.taken_up:
                return taken
        return Traffic(True)


class KeptRoutes:
    """The routes as they are, for a spec that cannot be read: only their weights follow."""

    def __init__(self, name: str, seen: Mapping[tuple[str, str], Object]) -> None:
        self._routes = [o for (kind, n), o in seen.items() if kind in ("HTTPRoute", "GRPCRoute") and n == name]

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The same routes with one rule: its backends are those of the split."""
        return [_with_split(route, split) for route in self._routes]

    def taken_up(self, split: Split, seen: Mapping[tuple[str, str], Object], servers: Mapping[str, Server]) -> Traffic:
        """As of ``GatewayRouter``."""
        for route in self._routes:
            taken = _carried(route["kind"], route, [((), dict(split))])
            if not taken.taken_up:
                return taken
        return Traffic(True)


_NOBODY = Owner("", "", "", "")


def _with_split(route: Object, split: Split) -> Object:
    port = names.PORT_HTTP if route["kind"] == "HTTPRoute" else names.PORT_GRPC
    refs = [{"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight} for revision, weight in split]
    metadata = {key: route["metadata"][key] for key in ("name", "namespace", "labels", "ownerReferences")}
    spec = {key: route["spec"][key] for key in ("parentRefs", "hostnames") if key in route["spec"]}
    return {"apiVersion": route["apiVersion"], "kind": route["kind"], "metadata": metadata, "spec": spec | {"rules": [{"backendRefs": refs}]}}


_Rule = tuple[tuple[tuple[str, str, str], ...], dict[str, int]]  # headers (type, name, value) that a request must carry, weights by Service


def _carried(kind: str, route: Object | None, wanted: list[_Rule]) -> Traffic:
    if route is None or _rules(route) != wanted:
        return Traffic(False, f"{kind} is not written yet")
    problem = refusal_of(kind, route)
    if problem is not None:
        return Traffic(False, problem.message, problem)
    if not accepted(route):
        return Traffic(False, f"{kind} generation {route['metadata'].get('generation')} is not accepted by its gateway yet")
    return Traffic(True)


def _rules(route: Object) -> list[_Rule]:
    return [(_headers(rule), _weights(rule)) for rule in route["spec"].get("rules") or []]


def _headers(rule: Object) -> tuple[tuple[str, str, str], ...]:
    found = [h for match in rule.get("matches") or [] for h in match.get("headers") or []]
    return tuple(sorted((h.get("type", "Exact"), h["name"], h["value"]) for h in found))


def _weights(rule: Object) -> dict[str, int]:
    return {ref["name"]: ref.get("weight", 1) for ref in rule.get("backendRefs") or [] if ref.get("weight", 1) > 0}


def weights(route: Object) -> dict[str, int]:
    """Weights above 0 by Service, as the route says for requests that carry no special header: that rule is the last."""
    rules = route["spec"].get("rules") or []
    return _weights(rules[-1]) if rules else {}


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
