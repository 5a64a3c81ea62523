"""The mirror of shadow traffic: the method that the gateway offers, its objects, and a router that
puts it into the HTTPRoute and removes it.

With Traefik a TraefikService stands between route and stable. That takes three steps, because
Traefik drops a route that names an unknown service, and with it the clients' requests
(docs/design/0005-shadow.md):

1. The operator writes the TraefikService, and a route for a path that no client calls. It waits
   until the gateway has accepted that route and the data plane had time to take up both.
2. The clients' route names the TraefikService.
3. The clients' route names the Service again. The operator deletes the rest when the data plane had
   time to take that up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelrollout.api import names
from modelrollout.api.v1alpha1 import MirrorMethod, ModelDeploymentSpec, RevisionRef, Shadow
from modelrollout.config import OperatorConfig
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object, Owner
from modelrollout.resources.comparer import comparer, comparer_service
from modelrollout.rollout.snapshot import Observed, Server, Split, Traffic, predecessor
from modelrollout.traffic.base import LiveObjects, SplitWriter
from modelrollout.traffic.gateway_api.answers import carried
from modelrollout.traffic.gateway_api.features import (
    PERCENTAGE_MIRROR,
    REQUEST_MIRROR,
    TRAEFIK_CONTROLLER,
    feature_missing,
    missing_features,
)
from modelrollout.traffic.gateway_api.routes import is_of_clients, with_rules
from modelrollout.traffic.gateway_api.traefik import traefik_mirror, trial_route, with_traefik_mirror
from modelrollout.traffic.gateway_facts import GatewayFacts

_ROUTED = ("Mirroring", "Observing")  # phases in which the clients' route has the mirror


@dataclass(frozen=True)
class MirrorTarget:
    """A mirror that exists; ``routed``: the clients' route is to have it."""

    method: MirrorMethod
    routed: bool
    canary: RevisionRef
    stable: RevisionRef
    shadow: Shadow


def mirror_method(
    spec: ModelDeploymentSpec, facts: GatewayFacts | None, config: OperatorConfig
) -> MirrorMethod | Problem:
    """How this gateway mirrors what the spec asks for, or why it cannot."""
    shadow = spec.rollout.shadow
    assert shadow is not None
    if facts is None or facts.controller is None:
        text = (
            "spec.rollout.shadow: what the gateway supports is unknown, because the operator cannot read the"
            " Gateway or its GatewayClass; ask the platform team"
        )
        return (facts and facts.problem) or Problem(Reason.GATEWAY_UNKNOWN, text)
    needed = [REQUEST_MIRROR, *([PERCENTAGE_MIRROR] if shadow.percent < 100 else [])]
    # No condition shows whether the gateway has programmed a mirror, unlike a route: so a gateway
    # that does not list the feature counts as one without it.
    missing = tuple(needed) if facts.features is None else missing_features(needed, facts.features)
    if not missing:
        return "RequestMirror"
    if facts.controller != TRAEFIK_CONTROLLER:
        fixable = "set percent to 100" if missing == (PERCENTAGE_MIRROR,) else "use a gateway that does"
        return feature_missing(
            "spec.rollout.shadow", facts, missing, f"{fixable}, or leave rollout.shadow out"
        )
    if not config.shadow.traefik:
        remedy = (
            "Traefik can mirror by its own TraefikService: run it with providers.kubernetesCRD and set"
            " shadow.traefik in the operator's chart"
        )
        return feature_missing(
            "spec.rollout.shadow", facts, missing, f"{remedy}, or leave rollout.shadow out"
        )
    return "TraefikService"


def mirror_of(s: Observed) -> MirrorTarget | None:
    """The mirror that the written state calls for. After Revert its objects stay while the canary
    drains (``controller.apply.prune``).
    """
    rollout, stable = s.status.rollout, predecessor(s)
    if (
        s.spec is None
        or rollout is None
        or rollout.revision is None
        or rollout.number is None
        or stable is None
    ):
        return None
    shadow = rollout.shadow
    if shadow is None or shadow.mirror is None or rollout.stage not in ("Shadow", "Revert"):
        return None
    return MirrorTarget(
        method=shadow.mirror,
        routed=rollout.stage == "Shadow" and shadow.phase in _ROUTED,
        canary=RevisionRef(revision=rollout.revision, number=rollout.number),
        stable=stable,
        shadow=s.spec.rollout.shadow or Shadow(),
    )


def with_request_mirror(route: Object, canary: RevisionRef, percent: int) -> Object:
    """The HTTPRoute with Gateway API's own filter."""
    mirror: Object = {
        "backendRef": {
            "group": "",
            "kind": "Service",
            "name": names.shadow_name(canary.revision),
            "port": names.PORT_COMPARER,
        }
    }
    if percent < 100:
        mirror["percent"] = percent
    added = {"type": "RequestMirror", "requestMirror": mirror}
    return with_rules(route, lambda rule: rule | {"filters": [*rule.get("filters", []), added]})


def without_mirror(route: Object) -> Object:
    """The HTTPRoute with its filters written out, so that a mirror that is left in the live route
    differs and is removed.
    """
    return with_rules(route, lambda rule: rule | {"filters": rule.get("filters", [])})


def is_mirrored(route: Object) -> bool:
    """Whether a rule of the route mirrors, by either method."""
    rules = route["spec"].get("rules", [])
    filters = [f.get("type") for rule in rules for f in rule.get("filters") or []]
    return "RequestMirror" in filters or any(
        ref.get("kind") == "TraefikService" for rule in rules for ref in rule.get("backendRefs") or []
    )


class MirrorRouter:
    """Routes with a mirror, or without one: then a mirror that is left in a route is removed.

    ``name``: of the clients' route. ``spec``: None where it is unreadable, and there is no mirror.
    """

    def __init__(
        self,
        inner: SplitWriter,
        name: str,
        spec: ModelDeploymentSpec | None,
        mirror: MirrorTarget | None,
        config: OperatorConfig,
        gateway: GatewayFacts | None = None,
    ) -> None:
        self._inner, self._name, self._spec, self._mirror, self._config = inner, name, spec, mirror, config
        self._gateway = gateway

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The mirror's own objects before the routes that name them."""
        objects: list[Object] = []
        mirror, routes = self._mirror, self._inner.children(owner, split)
        if mirror is not None and self._spec is not None:
            objects.append(
                comparer(owner, mirror.canary, mirror.stable, mirror.shadow, self._spec.serving, self._config)
            )
            objects.append(comparer_service(owner, mirror.canary))
            if mirror.method == "TraefikService":
                objects.append(
                    traefik_mirror(
                        owner,
                        mirror.canary,
                        mirror.stable,
                        mirror.shadow.percent,
                        self._config.shadow.max_body_bytes,
                    )
                )
                if of_clients := next(
                    (r for r in routes if r["kind"] == "HTTPRoute" and r["metadata"]["name"] == self._name),
                    None,
                ):
                    objects.append(trial_route(owner, of_clients, mirror.canary, mirror.stable))
        return objects + [self._with_mirror(route) for route in routes]

    def _with_mirror(self, route: Object) -> Object:
        mirror = self._mirror
        if route["kind"] != "HTTPRoute" or not is_of_clients(route["metadata"]["name"], self._name):
            return route
        if mirror is None or not mirror.routed:
            return without_mirror(route)
        if mirror.method == "RequestMirror":
            return with_request_mirror(route, mirror.canary, mirror.shadow.percent)
        return without_mirror(with_traefik_mirror(route, mirror.stable))

    def programmed(self, split: Split, live: LiveObjects, servers: Mapping[str, Server]) -> Traffic:
        """As ``inner`` says, once the clients' route has the mirror exactly where it should."""
        routed = self._mirror is not None and self._mirror.routed
        if any(
            kind == "HTTPRoute" and is_of_clients(n, self._name) and is_mirrored(route) != routed
            for (kind, n), route in live.items()
        ):
            return Traffic(False, "the HTTPRoute does not have the desired mirror yet")
        return self._inner.programmed(split, live, servers)

    def mirror_accepted(self, live: LiveObjects) -> Traffic:
        """As the gateway says of the route that no client calls."""
        if self._mirror is None:
            return Traffic(False)
        if self._mirror.method == "RequestMirror":
            return Traffic(True)
        route = live.get(("HTTPRoute", names.shadow_name(self._mirror.canary.revision)))
        if route is None:
            return Traffic(False, "the route that tries the mirror out is not written yet")
        return carried(route, self._gateway)
