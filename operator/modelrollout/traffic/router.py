"""The table of router kinds: the first whose ``divides`` accepts a spec divides its requests."""

from __future__ import annotations

from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.rollout.snapshot import Observed, Split
from modelrollout.traffic.base import LiveObjects, Router, RouterKind
from modelrollout.traffic.gateway_api.kind import GATEWAY_API
from modelrollout.traffic.replicas import REPLICAS

ROUTERS: list[RouterKind] = [GATEWAY_API, REPLICAS]


def kind_for(traffic: TrafficSpec) -> RouterKind:
    """The kind of router that divides the requests of such a spec."""
    return next(kind for kind in ROUTERS if kind.divides(traffic))


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
) -> Router:
    """The router of a ModelDeployment; ``granted`` and ``withheld`` as of ``RouterKind.router``."""
    if s.spec is not None:
        return kind_for(s.spec.traffic).router(s, live, config, granted=granted, withheld=withheld)
    routers = (kind.frozen(s, live, config, withheld) for kind in ROUTERS)
    return next(router for router in routers if router is not None)
