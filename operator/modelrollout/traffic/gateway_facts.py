"""What is known of the Gateway that a spec names; ``gateway_api.gateway`` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelrollout.api.hostnames import overlap
from modelrollout.problem import Problem


@dataclass(frozen=True)
class Statement:
    """What a condition states about the present generation: True, False, or Unknown, also if it is
    about an older one.
    """

    truth: str
    reason: str
    message: str

    def quoted(self, *, whole: bool) -> str:
        """For a message; ``whole``: with the condition's own message."""
        return f"{self.reason}: {self.message}" if whole and self.message else self.reason


@dataclass(frozen=True)
class Listener:
    """A listener that takes routes of the ModelDeployment's namespace."""

    name: str
    hostname: str = ""  # empty: every host name
    kinds: frozenset[str] | None = None  # of routes; None: any
    programmed: Statement | None = None

    def takes(self, kind: str, hosts: Sequence[str]) -> bool:
        """Whether it takes routes of that kind for one of ``hosts``."""
        return (self.kinds is None or kind in self.kinds) and (
            not self.hostname or not hosts or any(overlap(self.hostname, host) for host in hosts)
        )


@dataclass(frozen=True)
class GatewayFacts:
    """The first Gateway that a spec names, and its class, as last read.

    ``controller``: None where the class is unknown. ``features``: None where its controller reports
    none. ``listeners``: None where the Gateway cannot be read. ``problem``: why it carries no route
    at all. ``pending``: what is missing before it is known whether it does. ``further``: the other
    Gateways of the spec.
    """

    gateway: str  # namespace/name
    gateway_class: str = ""
    controller: str | None = None
    features: frozenset[str] | None = None
    listeners: tuple[Listener, ...] | None = None
    problem: Problem | None = None
    pending: str | None = None
    further: tuple[GatewayFacts, ...] = ()
