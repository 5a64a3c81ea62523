"""A Gateway as last read: its controller, its listeners, and why it carries no routes.

Only conditions of the present generation count. A condition of a Gateway without observedGeneration
counts as well, because some controllers never set it. Of a Gateway in another namespace messages
quote reasons only: its own messages may name objects of other tenants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object
from modelrollout.traffic.gateway_api.features import UNREPORTED
from modelrollout.traffic.gateway_facts import GatewayFacts, Listener, Statement

_BY_PROTOCOL = {
    "HTTP": frozenset({"HTTPRoute", "GRPCRoute"}),
    "HTTPS": frozenset({"HTTPRoute", "GRPCRoute"}),
    "TLS": frozenset[str](),
    "TCP": frozenset[str](),
    "UDP": frozenset[str](),
}


def statement(conditions: Any, type_: str, generation: int, *, undated: bool = False) -> Statement | None:
    """The statement of the condition of that type; None if there is none. ``undated``: one that
    names no generation counts as well.
    """
    condition = next((c for c in maps_in(conditions) if c.get("type") == type_), None)
    if condition is None:
        return None
    reason, message = str(condition.get("reason") or "-"), str(condition.get("message") or "")
    observed = condition.get("observedGeneration", generation if undated else 0)
    truth = condition.get("status") if observed >= generation else "Unknown"
    return Statement(str(truth), reason, message)


def maps_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """The maps of a list that others wrote."""
    return (x for x in value if isinstance(x, Mapping)) if isinstance(value, list) else iter(())


def supported_features(gateway_class: Mapping[str, Any]) -> frozenset[str] | None:
    """Names in ``status.supportedFeatures``; None for an empty list. Gateway API 1.0 wrote plain
    names, later versions write objects.
    """
    listed = (gateway_class.get("status") or {}).get("supportedFeatures")
    if not listed:
        return None
    return frozenset(str(f.get("name")) if isinstance(f, Mapping) else str(f) for f in listed)


def unread_gateway(namespace: str, name: str) -> GatewayFacts:
    """A Gateway of which nothing is known: the answers to the routes decide."""
    return GatewayFacts(f"{namespace}/{name}")


def missing_gateway(
    namespace: str, name: str, field: str = "spec.traffic.gateway", *, own: bool
) -> GatewayFacts:
    """The facts of a Gateway that does not exist, or that takes no routes of this namespace: the
    two read alike, so that a tenant does not learn which Gateways exist.

    ``field``: where spec names it; ``own``: it would be of the namespace of the routes.
    """
    what = "does not exist" if own else "does not exist, or takes no routes of this namespace"
    text = f"{field}: Gateway {namespace}/{name} {what}; correct the name, or have it created"
    return GatewayFacts(f"{namespace}/{name}", problem=Problem(Reason.GATEWAY_MISSING, text))


def gateway_facts(gateway: Object, field: str = "spec.traffic.gateway", *, own: bool) -> GatewayFacts:
    """The facts without those of the class (``with_class``)."""
    metadata, spec, status = gateway["metadata"], gateway.get("spec") or {}, gateway.get("status") or {}
    title = f"{metadata.get('namespace')}/{metadata['name']}"
    generation = metadata.get("generation") or 0
    states = {str(x.get("name")): x.get("conditions") for x in maps_in(status.get("listeners"))}
    listeners = tuple(
        Listener(
            str(x.get("name")),
            str(x.get("hostname") or ""),
            _kinds(x),
            _programmed(states.get(str(x.get("name"))), generation),
        )
        for x in maps_in(spec.get("listeners"))
        if own or _takes_others(x)
    )
    if not listeners and not own:
        return missing_gateway(metadata.get("namespace") or "", metadata["name"], field, own=own)
    programmed = statement(status.get("conditions"), "Programmed", generation, undated=True)
    accepted = statement(status.get("conditions"), "Accepted", generation, undated=True)
    problem: Problem | None = None
    pending: str | None = None
    # One broken listener of several makes some controllers refuse the whole Gateway, and they
    # program the others all the same.
    carries = any(x.programmed is not None and x.programmed.truth == "True" for x in listeners)
    if programmed is not None and programmed.truth == "False":
        problem = _not_programmed(f"Gateway {title} is not programmed: {programmed.quoted(whole=own)}")
    elif accepted is not None and accepted.truth == "False" and not carries:
        problem = _not_programmed(
            f"the controller of Gateway {title} does not accept it: {accepted.quoted(whole=own)}"
        )
    elif programmed is not None and programmed.truth == "Unknown":
        pending = f"Gateway {title} is not programmed yet, as far as its controller has said"
    of_class = str(spec.get("gatewayClassName") or "")
    return GatewayFacts(title, of_class, listeners=listeners, problem=problem, pending=pending)


def with_class(facts: GatewayFacts, gateway_class: Object | None) -> GatewayFacts:
    """The facts with those of the Gateway's class; None: it does not exist. Features are those that
    it reports, or else those known of its controller.
    """
    title = f"GatewayClass {facts.gateway_class} of Gateway {facts.gateway}"
    if gateway_class is None:
        return replace(facts, problem=_not_programmed(f"{title} does not exist"))
    spec, status = gateway_class.get("spec") or {}, gateway_class.get("status") or {}
    generation = gateway_class["metadata"].get("generation") or 0
    accepted = statement(status.get("conditions"), "Accepted", generation, undated=True)
    problem = facts.problem
    if problem is None and facts.pending and accepted is not None and accepted.truth == "False":
        problem = _not_programmed(f"{title} is not accepted: {accepted.quoted(whole=False)}")
    controller = str(spec.get("controllerName") or "") or None
    reported = supported_features(gateway_class)
    return replace(
        facts,
        controller=controller,
        features=UNREPORTED.get(controller or "") if reported is None else reported,
        problem=problem,
    )


def _not_programmed(text: str) -> Problem:
    return Problem(Reason.GATEWAY_NOT_PROGRAMMED, f"{text}; ask who runs the gateway")


def _programmed(conditions: Any, generation: int) -> Statement | None:
    """A listener that is not accepted is not programmed, and says why."""
    accepted = statement(conditions, "Accepted", generation, undated=True)
    if accepted is not None and accepted.truth == "False":
        return accepted
    return statement(conditions, "Programmed", generation, undated=True)


def _kinds(listener: Mapping[str, Any]) -> frozenset[str] | None:
    named = list(maps_in((listener.get("allowedRoutes") or {}).get("kinds")))
    return (
        frozenset(str(x.get("kind")) for x in named)
        if named
        else _BY_PROTOCOL.get(str(listener.get("protocol")))
    )


def _takes_others(listener: Mapping[str, Any]) -> bool:
    """Whether it takes routes of other namespaces; which those are where a selector says, is the
    gateway's to know.
    """
    allowed = ((listener.get("allowedRoutes") or {}).get("namespaces") or {}).get("from", "Same")
    return allowed in ("All", "Selector")
