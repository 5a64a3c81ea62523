"""What the operator needs of a way to divide requests between revisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from modelrollout.api.v1alpha1 import MirrorMethod, ModelDeploymentSpec
from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.kube.kinds import Resource
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object, Owner
from modelrollout.rollout.snapshot import Observed, Server, Split, Traffic
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.hostnames import ForeignRoute

LiveObjects = Mapping[tuple[str, str], Object]  # objects as last observed, by kind and name


class SplitWriter(Protocol):
    """Turns a split into objects."""

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The ModelDeployment's objects that carry the split, in the order in which to write
        them.
        """

    def programmed(self, split: Split, live: LiveObjects, servers: Mapping[str, Server]) -> Traffic:
        """Whether the ``live`` objects carry the split, and the data plane has accepted them."""


class Router(SplitWriter, Protocol):
    """A ``SplitWriter`` that also mirrors requests to the comparer of a shadow, where it can."""

    def mirror_accepted(self, live: LiveObjects) -> Traffic:
        """Whether the data plane would take up the mirror that was made."""


class RouterKind(Protocol):
    """One row of ``router.ROUTERS``: all that the operator asks of a kind of router before there is
    a split. A kind that inherits this has no routes of its own, and cannot mirror.
    """

    @property
    def exact(self) -> bool:
        """Whether requests follow the weights; else they follow the numbers of ready pods."""

    @property
    def routes(self) -> Sequence[Resource]:
        """The kinds of objects in which host names of clients stand."""
        return ()

    def spec_problem(
        self,
        spec: ModelDeploymentSpec,
        served: Collection[str],
        gateway: GatewayFacts | None,
        config: OperatorConfig,
    ) -> Problem | None:
        """Why such a spec cannot be carried out here. ``served``: kinds of ``routes`` that the
        cluster has; ``gateway``: what is known of the gateway that spec names.
        """
        return None

    def refusal(self, spec: ModelDeploymentSpec, name: str, live: LiveObjects) -> Problem | None:
        """What the data plane has against a ``live`` object that such a spec needs beside its
        routes; ``name``: of the ModelDeployment.
        """
        return None

    def mirror_method(
        self, spec: ModelDeploymentSpec, gateway: GatewayFacts | None, config: OperatorConfig
    ) -> MirrorMethod | Problem:
        """How requests are mirrored to the shadow of such a spec, or why they cannot be."""
        return Problem(
            Reason.GATEWAY_REQUIRED,
            "spec.rollout.shadow: only a gateway can mirror, and only HTTP: set spec.traffic.gateway and"
            " http, or leave rollout.shadow out",
        )

    def mirrors_to(self, obj: Object, name: str, live: LiveObjects, gateway: GatewayFacts | None) -> bool:
        """Whether the data plane may still mirror requests to ``obj``, which is part of a mirror of
        that ModelDeployment.
        """
        return False

    def hosts_of(self, route: Object) -> Sequence[str]:
        """Host names in one of its ``routes``."""
        return ()

    def foreign_route(self, route: Object) -> ForeignRoute | None:
        """What one of its ``routes`` takes that belongs to no ModelDeployment; None: nothing."""
        return None

    def overly_open_routes(self, live: LiveObjects, name: str) -> list[Object]:
        """The ``live`` objects of that ModelDeployment that let through more than clients may
        request, as they should be.
        """
        return []

    def backends_of(self, obj: Object) -> set[tuple[str, str]]:
        """Kind and name of all objects that ``obj`` sends requests to."""
        return set()

    def divides(self, traffic: TrafficSpec) -> bool:
        """Whether this kind divides the requests of such a spec."""

    def live_split(self, name: str, live: LiveObjects) -> Split | None:
        """The split that the ModelDeployment's ``live`` objects carry; None where this kind has no
        objects there.
        """

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
        """The router for the spec of ``s``.

        ``granted``: spec is valid and owns its host names; without that only the weights of the
        ``live`` objects change, and host names in ``withheld`` are taken out. ``guest_at``: host
        names of which another ModelDeployment has the paths that name no model. ``gateway``: what
        is known of the Gateway in spec.
        """

    def frozen(
        self,
        s: Observed,
        live: LiveObjects,
        config: OperatorConfig,
        withheld: frozenset[str],
        guest_at: frozenset[str],
        gateway: GatewayFacts | None,
    ) -> Router | None:
        """The router where spec is unreadable: the ``live`` objects, with the stable revision. None
        where this kind has no objects there.
        """
