"""The table of router kinds: the first whose ``divides`` accepts a spec divides its requests."""

from __future__ import annotations

from collections.abc import Iterable

from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.resources.common import Object
from modelrollout.rollout.snapshot import Observed, Split
from modelrollout.traffic.base import LiveObjects, Router, RouterKind
from modelrollout.traffic.gateway_api.kind import GATEWAY_API
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.hostnames import ForeignRoute
from modelrollout.traffic.replicas import REPLICAS

ROUTERS: list[RouterKind] = [GATEWAY_API, REPLICAS]
ROUTES = tuple(resource for kind in ROUTERS for resource in kind.routes)
_BY_ROUTE = {resource.kind: kind for kind in ROUTERS for resource in kind.routes}


def kind_for(traffic: TrafficSpec) -> RouterKind:
    """The kind of router that divides the requests of such a spec."""
    return next(kind for kind in ROUTERS if kind.divides(traffic))


def routes_in(live: LiveObjects) -> list[Object]:
    """The routes among the objects."""
    return [o for (kind, _), o in live.items() if kind in _BY_ROUTE]


def hosts_of(routes: Iterable[Object]) -> frozenset[str]:
    """Host names of routes."""
    return frozenset(host for route in routes for host in _BY_ROUTE[route["kind"]].hosts_of(route))


def foreign_route(route: Object) -> ForeignRoute | None:
    """What a route of no ModelDeployment takes; None where it takes nothing."""
    return _BY_ROUTE[route["kind"]].foreign_route(route)


def overly_open_routes(live: LiveObjects, name: str) -> list[Object]:
    """The objects that let through more than clients may request, as they should be."""
    return [o for kind in ROUTERS for o in kind.overly_open_routes(live, name)]


def backends_of(obj: Object) -> set[tuple[str, str]]:
    """Kind and name of all objects that ``obj`` sends requests to."""
    return set().union(*(kind.backends_of(obj) for kind in ROUTERS))


def mirrors_to(obj: Object, name: str, live: LiveObjects, gateway: GatewayFacts | None) -> bool:
    """Whether the data plane may still mirror requests to ``obj``, a part of a mirror."""
    return any(kind.mirrors_to(obj, name, live, gateway) for kind in ROUTERS)


def live_split(name: str, live: LiveObjects) -> Split:
    """The split that the ModelDeployment's objects carry now, whatever its spec says."""
    splits = (kind.live_split(name, live) for kind in ROUTERS)
    return next((split for split in splits if split is not None), ())


def router_for(
    s: Observed,
    live: LiveObjects,
    config: OperatorConfig,
    *,
    granted: bool = False,
    withheld: frozenset[str] = frozenset(),
    guest_at: frozenset[str] = frozenset(),
    gateway: GatewayFacts | None = None,
) -> Router:
    """The router of a ModelDeployment; the keywords as of ``RouterKind.router``."""
    if s.spec is not None:
        kind = kind_for(s.spec.traffic)
        return kind.router(
            s, live, config, granted=granted, withheld=withheld, guest_at=guest_at, gateway=gateway
        )
    routers = (kind.frozen(s, live, config, withheld, guest_at, gateway) for kind in ROUTERS)
    return next(router for router in routers if router is not None)
