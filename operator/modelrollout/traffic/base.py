"""What the operator needs of a way to divide requests between revisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.resources.common import Object, Owner
from modelrollout.rollout.snapshot import Observed, Server, Split, Traffic

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
    """One row of ``router.ROUTERS``: what is known of a kind of router before there is a split."""

    @property
    def exact(self) -> bool:
        """Whether requests follow the weights; else they follow the numbers of ready pods."""

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
    ) -> Router:
        """The router for the spec of ``s``.

        ``granted``: spec is valid and owns its host names; without that only the weights of the
        ``live`` objects change, and host names in ``withheld`` are taken out.
        """

    def frozen(
        self, s: Observed, live: LiveObjects, config: OperatorConfig, withheld: frozenset[str]
    ) -> Router | None:
        """The router where spec is unreadable: the ``live`` objects, with the stable revision. None
        where this kind has no objects there.
        """
