"""The Gateway API in the table of routers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from modelrollout.api.v1alpha1 import MirrorMethod, ModelDeploymentSpec
from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.kube.kinds import GRPC_ROUTE, HTTP_ROUTE
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object
from modelrollout.rollout.desired.traffic import header_revision, positions, preview_host_revision
from modelrollout.rollout.snapshot import Observed, Split
from modelrollout.traffic.base import LiveObjects, Router, RouterKind, SplitWriter
from modelrollout.traffic.counting import COUNTED_BY_POSITION
from modelrollout.traffic.gateway_api.answers import carried
from modelrollout.traffic.gateway_api.extras import extras_of, extras_problem
from modelrollout.traffic.gateway_api.features import ENVOY_GATEWAY_CONTROLLER, route_problem
from modelrollout.traffic.gateway_api.foreign_routes import foreign_route
from modelrollout.traffic.gateway_api.mirror import MirrorRouter, is_mirrored, mirror_method, mirror_of
from modelrollout.traffic.gateway_api.router import (
    FrozenRoutes,
    GatewayRouter,
    is_counted_apart,
    overly_open_routes,
    weights,
)
from modelrollout.traffic.gateway_api.routes import ROUTE_KINDS, backends_of, is_of_clients
from modelrollout.traffic.gateway_api.sessions import (
    SessionRoutes,
    session_problem,
    session_refusal,
    sessions_are_kept,
)
from modelrollout.traffic.gateway_api.staging import WHOLE, StagedRoutes
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.hostnames import ForeignRoute


class GatewayApi(RouterKind):
    """``RouterKind`` behind a Gateway."""

    exact = True
    routes = (HTTP_ROUTE, GRPC_ROUTE)

    def spec_problem(
        self,
        spec: ModelDeploymentSpec,
        served: Collection[str],
        gateway: GatewayFacts | None,
        config: OperatorConfig,
    ) -> Problem | None:
        """A kind of route that the cluster lacks, or a feature that the gateway lacks."""
        for kind, part in ((HTTP_ROUTE.kind, spec.traffic.http), (GRPC_ROUTE.kind, spec.traffic.grpc)):
            if part is not None and kind not in served:
                return Problem(
                    Reason.GATEWAY_API_MISSING,
                    f"spec.traffic.gateway: this cluster has no {kind} (Gateway API CRDs); install them, or"
                    " leave spec.traffic out: the weights are then approximated by replica counts",
                )
        return (
            _several_classes(gateway)
            or route_problem(spec, gateway)
            or extras_problem(spec.traffic, gateway)
            or session_problem(spec.traffic, gateway, config)
        )

    def refusal(self, spec: ModelDeploymentSpec, name: str, live: LiveObjects) -> Problem | None:
        """Of the policy by which sessions stick."""
        return session_refusal(spec.traffic, name, live)

    def mirror_method(
        self, spec: ModelDeploymentSpec, gateway: GatewayFacts | None, config: OperatorConfig
    ) -> MirrorMethod | Problem:
        """By the gateway's own filter, or by Traefik's TraefikService."""
        if spec.traffic.http is None:
            return super().mirror_method(spec, gateway, config)
        return mirror_method(spec, gateway, config)

    def mirrors_to(self, obj: Object, name: str, live: LiveObjects, gateway: GatewayFacts | None) -> bool:
        """Until the gateway carries the clients' routes without a mirror."""
        clients = [o for (kind, n), o in live.items() if kind == HTTP_ROUTE.kind and is_of_clients(n, name)]
        return obj not in clients and any(
            is_mirrored(o) or not carried(o, gateway).programmed for o in clients
        )

    def hosts_of(self, route: Object) -> Sequence[str]:
        """``spec.hostnames``."""
        return (route.get("spec") or {}).get("hostnames") or ()

    def foreign_route(self, route: Object) -> ForeignRoute | None:
        """None also where its gateways reject it, or it only redirects."""
        return foreign_route(route)

    def overly_open_routes(self, live: LiveObjects, name: str) -> list[Object]:
        """Routes of clients and of a preview."""
        return overly_open_routes(live, name)

    def backends_of(self, obj: Object) -> set[tuple[str, str]]:
        """Of a route, or of a TraefikService that mirrors."""
        return backends_of(obj)

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
        guest_at: frozenset[str],
        gateway: GatewayFacts | None,
    ) -> Router:
        """Routes with the mirror of a shadow; frozen ones where spec is not ``granted``."""
        assert s.spec is not None
        aim = (s.spec.rollout, header_revision(s), preview_host_revision(s))
        affinity = s.spec.traffic.session_affinity if granted else None
        sticks = affinity is not None or (not granted and sessions_are_kept(s.name, live))
        apart = sticks or s.counting.profile in COUNTED_BY_POSITION or _stay_apart(s.name, live, gateway)
        at = positions(s) if apart else ()
        inner = (
            GatewayRouter(
                s.name,
                s.spec.traffic,
                *aim,
                guest_at=guest_at,
                gateway=gateway,
                positions=at,
                extras=extras_of(s.spec.traffic, gateway),
                whole=_whole(sticks=sticks),
            )
            if granted
            else FrozenRoutes(
                s.name,
                live,
                *aim,
                withheld=withheld,
                guest_at=guest_at,
                gateway=gateway,
                positions=at,
                whole=_whole(sticks=sticks),
            )
        )
        staged = _staged(inner, at, live, gateway)
        writer = SessionRoutes(staged, s.name, affinity, live) if sticks else staged
        return MirrorRouter(writer, s.name, s.spec, mirror_of(s), config, gateway)

    def frozen(
        self,
        s: Observed,
        live: LiveObjects,
        config: OperatorConfig,
        withheld: frozenset[str],
        guest_at: frozenset[str],
        gateway: GatewayFacts | None,
    ) -> Router | None:
        """The present routes without a mirror; None where there are none."""
        routes = [live[kind, s.name] for kind in ROUTE_KINDS if (kind, s.name) in live]
        if not routes:
            return None
        at = positions(s) if any(map(is_counted_apart, routes)) else ()
        sticks = sessions_are_kept(s.name, live)
        inner = FrozenRoutes(
            s.name,
            live,
            withheld=withheld,
            guest_at=guest_at,
            gateway=gateway,
            positions=at,
            whole=_whole(sticks=sticks),
        )
        staged = _staged(inner, at, live, gateway)
        writer = SessionRoutes(staged, s.name, None, live) if sticks else staged
        return MirrorRouter(writer, s.name, None, None, config, gateway)


def _staged(
    inner: SplitWriter, positions: Sequence[str], live: LiveObjects, gateway: GatewayFacts | None
) -> SplitWriter:
    """Written in stages where the gateway counts by ``positions``."""
    return StagedRoutes(inner, live, gateway) if positions else inner


def _stay_apart(name: str, live: LiveObjects, gateway: GatewayFacts | None) -> bool:
    """Whether backends of the live routes have clusters by position that they must keep: those
    without are of another name, and Envoy answers 500 until they are there (``staging``).

    A gateway that is known to be another gets the routes that it always had.
    """
    if gateway is not None and gateway.controller not in (None, ENVOY_GATEWAY_CONTROLLER):
        return False
    return any(
        is_counted_apart(o) for (kind, n), o in live.items() if kind in ROUTE_KINDS and is_of_clients(n, name)
    )


def _whole(*, sticks: bool) -> int:
    """The sum of weights: the same in all stages where sessions stick by it."""
    return WHOLE if sticks else 100


def _several_classes(first: GatewayFacts | None) -> Problem | None:
    """A class that cannot be read counts as the same: the gateway's answers decide."""
    for i, facts in enumerate(first.further if first else ()):
        classes = first.gateway_class if first else "", facts.gateway_class
        if all(classes) and len(set(classes)) == 2:
            return Problem(
                Reason.GATEWAY_CLASSES_DIFFER,
                f"spec.traffic.furtherGateways[{i}]: Gateway {facts.gateway} is of GatewayClass {classes[1]},"
                f" and that in spec.traffic.gateway of {classes[0]}; name Gateways of one class",
            )
    return None


GATEWAY_API = GatewayApi()
