"""Without a gateway: a Service over the pods of both revisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object, Owner
from modelrollout.rollout.desired.pods import replicas_with_traffic
from modelrollout.rollout.desired.traffic import ALL_REVISIONS, service_selector
from modelrollout.rollout.snapshot import Observed, Server, Split, Traffic
from modelrollout.rollout.views import Specified
from modelrollout.traffic.base import LiveObjects, Router, RouterKind
from modelrollout.traffic.gateway_facts import GatewayFacts


class ServiceRouter:
    """One Service over the pods of both revisions: shares follow the numbers of ready pods."""

    def __init__(self, name: str, replicas: Mapping[str, int], selector: str | None) -> None:
        self._name, self._replicas, self._selector = name, replicas, selector

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """None: every ModelDeployment has the Service."""
        return []

    def programmed(self, split: Split, live: LiveObjects, servers: Mapping[str, Server]) -> Traffic:
        """The Service selects what it should, and the pods of the split are ready."""
        service = live.get(("Service", self._name))
        selector = (service or {}).get("spec", {}).get("selector", {})
        if service is None or selector.get(names.LABEL_REVISION) != (
            None if self._selector == ALL_REVISIONS else self._selector
        ):
            return Traffic(False, "the Service is not written yet")
        for revision, weight in split:
            server, needed = servers.get(revision, Server()), self._replicas.get(revision, 0)
            if weight and server.ready < needed:
                return Traffic(False, f"{server.ready} of {needed} pods of {revision} are ready")
        if self._selector == ALL_REVISIONS and len(split) == 1:
            return Traffic(False, "the new revision's pods are not all ready yet")
        return Traffic(True)

    def mirror_accepted(self, live: LiveObjects) -> Traffic:
        """A Service cannot mirror."""
        return Traffic(False)


class Replicas(RouterKind):
    """``RouterKind`` of every spec that no other kind divides."""

    exact = False

    def spec_problem(
        self,
        spec: ModelDeploymentSpec,
        served: Collection[str],
        gateway: GatewayFacts | None,
        config: OperatorConfig,
    ) -> Problem | None:
        """A Service cannot look at headers."""
        if spec.rollout.ab_test is None:
            return None
        return Problem(
            Reason.GATEWAY_REQUIRED,
            "spec.rollout.abTest: only a gateway can look at headers; set spec.traffic.gateway, or take"
            " canary or blueGreen",
        )

    def divides(self, traffic: TrafficSpec) -> bool:
        """Any."""
        return True

    def live_split(self, name: str, live: LiveObjects) -> Split:
        """The one revision that the Service selects; none while it selects both."""
        selector = ((live.get(("Service", name)) or {}).get("spec") or {}).get("selector") or {}
        revision = selector.get(names.LABEL_REVISION)
        return ((revision, 100),) if revision else ()

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
        """The Service needs neither a grant nor host names."""
        specified = Specified.of(s)
        return ServiceRouter(s.name, replicas_with_traffic(specified), service_selector(specified))

    def frozen(
        self,
        s: Observed,
        live: LiveObjects,
        config: OperatorConfig,
        withheld: frozenset[str],
        guest_at: frozenset[str],
        gateway: GatewayFacts | None,
    ) -> Router:
        """The Service selects stable."""
        return ServiceRouter(s.name, {}, s.status.stable.revision if s.status.stable else None)


REPLICAS = Replicas()
