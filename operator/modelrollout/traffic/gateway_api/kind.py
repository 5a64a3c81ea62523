"""The Gateway API in the table of routers."""

from __future__ import annotations

from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.rollout.desired.traffic import header_revision, preview_host_revision
from modelrollout.rollout.snapshot import Observed, Split
from modelrollout.traffic.base import LiveObjects, Router
from modelrollout.traffic.gateway_api.mirror import MirrorRouter, mirror_of
from modelrollout.traffic.gateway_api.router import FrozenRoutes, GatewayRouter, weights
from modelrollout.traffic.gateway_api.routes import ROUTE_KINDS


class GatewayApi:
    """``RouterKind`` behind a Gateway."""

    exact = True

    def divides(self, traffic: TrafficSpec) -> bool:
        """Where spec names a Gateway."""
        return traffic.gateway is not None

    def live_split(self, name: str, live: LiveObjects) -> Split | None:
        """The weights of the clients' first route."""
        route = next((live[kind, name] for kind in ROUTE_KINDS if (kind, name) in live), None)
        return tuple(weights(route).items()) if route is not None else None

    def router(
        self,
        s: Observed,
        live: LiveObjects,
        config: OperatorConfig,
        *,
        granted: bool,
        withheld: frozenset[str],
    ) -> Router:
        """Routes with the mirror of a shadow; frozen ones where spec is not ``granted``."""
        assert s.spec is not None
        aim = (s.spec.rollout, header_revision(s), preview_host_revision(s))
        inner = (
            GatewayRouter(s.name, s.spec.traffic, *aim)
            if granted
            else FrozenRoutes(s.name, live, *aim, withheld=withheld)
        )
        return MirrorRouter(inner, s.name, s.spec, mirror_of(s), config)

    def frozen(
        self, s: Observed, live: LiveObjects, config: OperatorConfig, withheld: frozenset[str]
    ) -> Router | None:
        """The present routes without a mirror; None where there are none."""
        if not any((kind, s.name) in live for kind in ROUTE_KINDS):
            return None
        return MirrorRouter(FrozenRoutes(s.name, live, withheld=withheld), s.name, None, None, config)


GATEWAY_API = GatewayApi()
