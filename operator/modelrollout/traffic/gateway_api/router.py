"""The Gateway API: weights in HTTPRoutes and GRPCRoutes.

That the gateway accepts a route's generation does not prove that the data plane carries it. So the
decision adds a delay before it counts requests, and the canary's own counters are the proof
(docs/design/0001-the-loop.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from modelrollout.api.v1alpha1 import Rollout
from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.resources.common import Object, Owner
from modelrollout.resources.endpoints import narrowed
from modelrollout.rollout.snapshot import Server, Split, Traffic
from modelrollout.traffic.base import LiveObjects
from modelrollout.traffic.gateway_api.answers import carried, parents
from modelrollout.traffic.gateway_api.extras import NO_EXTRAS, Extras, extras_in
from modelrollout.traffic.gateway_api.routes import (
    ROUTE_KINDS,
    Rule,
    client_rules,
    is_of_clients,
    is_of_preview,
    preview_routes,
    preview_rules,
    rendered_rules,
    routes,
)
from modelrollout.traffic.gateway_api.staging import split_of
from modelrollout.traffic.gateway_facts import GatewayFacts


class GatewayRouter:
    """HTTPRoutes and GRPCRoutes with weights over Services of revisions. Requests with a test's
    headers, and those for a preview's host names, go to one revision.

    ``guest_at``: host names of which another ModelDeployment has the paths that name no model.
    """

    def __init__(
        self,
        name: str,
        spec: TrafficSpec,
        rollout: Rollout | None = None,
        matched: str | None = None,
        preview: str | None = None,
        guest_at: frozenset[str] = frozenset(),
        gateway: GatewayFacts | None = None,
        positions: Sequence[str] = (),
        extras: Extras = NO_EXTRAS,
    ) -> None:
        self._name, self._spec, self._gateway, self._positions = name, spec, gateway, positions
        self._guest_at, self._extras = guest_at, extras
        self._unsplit = _UnsplitRequests(rollout, matched, preview)
        self._preview = rollout.blue_green.preview if rollout and rollout.blue_green else None

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The routes; none while nothing serves."""
        if not split:
            return []
        shown, gateways = self._unsplit.preview, self._spec.gateways
        common = (self._positions, self._guest_at, self._extras)
        aside = (
            preview_routes(owner, gateways, self._preview, shown, *common)
            if gateways and self._preview and shown
            else []
        )
        return routes(owner, self._spec, self._unsplit.rules(split), *common) + aside

    def programmed(self, split: Split, live: LiveObjects, servers: Mapping[str, Server]) -> Traffic:
        """Every route is as desired, and its gateway carries it (``answers.carried``).

        A preview's routes count while its revision has no other traffic: then the trial waits for
        them.
        """
        return _all_programmed(
            self._name,
            self.children(Owner("", self._name, "", ""), split),
            live,
            self._gateway,
            with_preview=self._unsplit.only_previewed(split),
        )


class FrozenRoutes:
    """The present routes, where spec is unreadable or its host names are not granted: only weights
    change, and matches become as narrow as those of ``GatewayRouter``.

    ``withheld``: host names that belong to another ModelDeployment; ``guest_at`` as of
    ``GatewayRouter``.
    """

    def __init__(
        self,
        name: str,
        live: LiveObjects,
        rollout: Rollout | None = None,
        matched: str | None = None,
        preview: str | None = None,
        withheld: frozenset[str] = frozenset(),
        guest_at: frozenset[str] = frozenset(),
        gateway: GatewayFacts | None = None,
        positions: Sequence[str] = (),
    ) -> None:
        self._name, self._withheld, self._gateway = name, withheld, gateway
        self._guest_at, self._positions = guest_at, positions
        self._unsplit = _UnsplitRequests(rollout, matched, preview)
        self._routes = [o for (kind, n), o in live.items() if kind in ROUTE_KINDS and self._is_desired(n)]

    def _is_desired(self, route: str) -> bool:
        return is_of_clients(route, self._name) or (
            self._unsplit.preview is not None and is_of_preview(route, self._name)
        )

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The same routes with the weights of ``split``."""
        return [
            _to_apply(route, desired) for route in self._routes if (desired := self._desired(route, split))
        ]

    def _desired(self, route: Object, split: Split) -> Object | None:
        hosts = (route.get("spec") or {}).get("hostnames") or []
        left = [h for h in hosts if h not in self._withheld]
        if hosts and not left:
            return None
        shown = self._unsplit.preview if is_of_preview(route["metadata"]["name"], self._name) else None
        rules = preview_rules(shown) if shown else self._unsplit.rules(split)
        server = self._guest_at.isdisjoint(left)
        rendered = rendered_rules(
            route["kind"], self._name, rules, self._positions, server=server, extras=extras_in(route)
        )
        return route | {"spec": route["spec"] | {"hostnames": left, "rules": rendered}}

    def programmed(self, split: Split, live: LiveObjects, servers: Mapping[str, Server]) -> Traffic:
        """As of ``GatewayRouter``."""
        return _all_programmed(
            self._name,
            [desired for route in self._routes if (desired := self._desired(route, split))],
            live,
            self._gateway,
            with_preview=self._unsplit.only_previewed(split),
        )


class _UnsplitRequests:
    """Requests that the split does not divide: those with the headers of a test go to the revision
    ``matched``, and those to a preview's host names to the revision ``preview``.
    """

    def __init__(self, rollout: Rollout | None, matched: str | None, preview: str | None) -> None:
        self._headers = rollout.ab_test.headers if rollout and rollout.ab_test else []
        self._matched, self.preview = matched if self._headers else None, preview

    def rules(self, split: Split) -> list[Rule]:
        return client_rules(split, self._headers, self._matched)

    def only_previewed(self, split: Split) -> bool:
        """Whether the preview's revision gets no other traffic, so that its trial waits for the
        preview's routes.
        """
        return self.preview is not None and self.preview not in dict(split)


def _all_programmed(
    model: str,
    desired: Iterable[Object],
    live: LiveObjects,
    gateway: GatewayFacts | None,
    *,
    with_preview: bool,
) -> Traffic:
    traffic = Traffic(False, "no route exists yet")
    for route in desired:
        kind, name = route["kind"], route["metadata"]["name"]
        if is_of_preview(name, model) and not with_preview:
            continue
        traffic = _programmed(route, live.get((kind, name)), gateway)
        if not traffic.programmed:
            return traffic
    return traffic


def overly_open_routes(live: LiveObjects, model: str) -> list[Object]:
    """The routes of clients and of a preview that let through more than clients may request, as
    they should be, with their present backends.

    An earlier operator wrote such routes, or a user edited them.
    """
    routes = [
        o
        for (kind, n), o in live.items()
        if kind in ROUTE_KINDS and (is_of_clients(n, model) or is_of_preview(n, model))
    ]
    pairs = [(o, narrowed(o, model)) for o in routes]
    return [_to_apply(o, narrow) for o, narrow in pairs if not _have_same_rules(o, narrow)]


def _to_apply(live: Object, desired: Object) -> Object:
    """``desired`` as the operator applies it to the route ``live``: without status and without the
    metadata that belongs to the API server.
    """
    metadata = {
        key: live["metadata"][key]
        for key in ("name", "namespace", "labels", "ownerReferences")
        if key in live["metadata"]
    }
    spec = {
        key: desired["spec"][key] for key in ("parentRefs", "hostnames", "rules") if key in desired["spec"]
    }
    return {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata, "spec": spec}


def _programmed(desired: Object, live: Object | None, gateway: GatewayFacts | None) -> Traffic:
    if live is None or not _is_written(live, desired):
        return Traffic(False, f"{desired['kind']} {desired['metadata']['name']} is not written yet")
    return carried(live, gateway)


def _is_written(live: Object, desired: Object) -> bool:
    """Whether the route ``live`` has the rules, host names and parents of the desired one, and what
    spec asks for beside.
    """
    namespace = live["metadata"].get("namespace") or ""
    return (
        _have_same_rules(live, desired)
        and extras_in(live) == extras_in(desired)
        and (not any(_counted_apart(desired)) or _counted_apart(live) == _counted_apart(desired))
        and (live["spec"].get("hostnames") or []) == (desired["spec"].get("hostnames") or [])
        and parents(live, namespace) == parents(desired, namespace)
    )


def _have_same_rules(one: Object, other: Object) -> bool:
    """Whether two routes of a kind let through the same to the same backends."""
    kind = one["kind"]
    rules, others = ((route.get("spec") or {}).get("rules") or [] for route in (one, other))
    return len(rules) == len(others) and all(
        # nearly always they are equal as they stand, which costs a fiftieth
        (a.get("matches") == b.get("matches") or _opens(kind, a) == _opens(kind, b))
        and _weights(a) == _weights(b)
        for a, b in zip(rules, others, strict=True)
    )


def _counted_apart(route: Object) -> list[list[tuple[str, int]]]:
    """By rule the backends, in order, that have a filter and so are counted by their position."""
    return [
        [(ref["name"], ref.get("weight", 1)) for ref in rule.get("backendRefs") or [] if ref.get("filters")]
        for rule in (route.get("spec") or {}).get("rules") or []
    ]


def is_counted_apart(route: Object) -> bool:
    """Whether backends of the live route have the filter by which a gateway counts each apart."""
    return any(_counted_apart(route))


# Without matches a rule lets everything through: the API server fills this in for an HTTPRoute, and
# a GRPCRoute means it.
_EVERYTHING: dict[str, list[Object]] = {
    "HTTPRoute": [{"path": {"type": "PathPrefix", "value": "/"}}],
    "GRPCRoute": [{}],
}


def _opens(kind: str, rule: Object) -> frozenset[tuple[tuple[str, str, str, str], ...]]:
    """What the rule lets through: its matches, each as sorted (field, type, name, value),
    regardless of their order and of defaults that are written out.
    """
    return frozenset(tuple(sorted(_match(kind, m))) for m in rule.get("matches") or _EVERYTHING[kind])


def _match(kind: str, match: Object) -> Iterator[tuple[str, str, str, str]]:
    for field in ("headers", "queryParams"):
        for condition in match.get(field) or []:
            yield field, condition.get("type", "Exact"), condition["name"], condition["value"]
    if kind == "HTTPRoute":
        path = match.get("path") or {}
        yield "path", path.get("type", "PathPrefix"), "", path.get("value", "/")
        yield "method", "Exact", "", match.get("method") or "*"
    else:
        call = match.get("method") or {}
        yield "method", call.get("type", "Exact"), call.get("service") or "*", call.get("method") or "*"


def _weights(rule: Object) -> dict[str, int]:
    return {
        ref["name"]: ref.get("weight", 1) for ref in rule.get("backendRefs") or [] if ref.get("weight", 1) > 0
    }


def weights(route: Object) -> dict[str, int]:
    """Weights above 0 by Service, for requests without a test's headers."""
    rules = route["spec"].get("rules") or []
    of_all = (rule for rule in rules if not any(m.get("headers") for m in rule.get("matches") or []))
    return split_of(next(of_all, rules[-1])) if rules else {}
