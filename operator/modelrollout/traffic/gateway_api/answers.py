"""What the gateway answers to a route: conditions of the parents in the route's spec, by the
controller of that Gateway.

Other entries of ``status.parents`` are former parents', or of whoever may write the status; they
count for nothing. Where the controller is unknown because the operator cannot read the
GatewayClass, all entries of a parent have to agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object
from modelrollout.rollout.snapshot import Traffic
from modelrollout.traffic.gateway_api.gateway import maps_in, statement
from modelrollout.traffic.gateway_facts import GatewayFacts, Listener, Statement

GROUP = "gateway.networking.k8s.io"
_Parent = tuple[str, str, str, str, str, int]  # group, kind, namespace, name, sectionName, port


def parents(route: Object, namespace: str) -> list[_Parent]:
    """The parents in the route's spec, with defaults filled in; ``namespace``: of the route."""
    return [_parent(ref, namespace) for ref in maps_in((route.get("spec") or {}).get("parentRefs"))]


def _parent(ref: Mapping[str, Any], namespace: str) -> _Parent:
    return (
        str(ref.get("group", GROUP)),
        str(ref.get("kind") or "Gateway"),
        str(ref.get("namespace") or namespace),
        str(ref.get("name")),
        str(ref.get("sectionName") or ""),
        int(ref.get("port") or 0),
    )


def _facts_on(gateway: GatewayFacts | None, parent: _Parent) -> GatewayFacts | None:
    """Those of the parent, if it is one of the Gateways that are known."""
    group, kind, namespace, name = parent[:4]
    known = (gateway, *gateway.further) if gateway is not None else ()
    if (group, kind) != (GROUP, "Gateway"):
        return None
    return next((facts for facts in known if facts.gateway == f"{namespace}/{name}"), None)


@dataclass(frozen=True)
class _Answer:
    """``refusal``: the False that all entries have; ``disputed``: they do not agree."""

    accepted: bool = False
    refusal: Statement | None = None
    disputed: bool = False


def _answer(route: Object, parent: _Parent, controller: str | None) -> _Answer:
    namespace, generation = route["metadata"].get("namespace") or "", route["metadata"].get("generation") or 0
    entries = [
        entry
        for entry in maps_in((route.get("status") or {}).get("parents"))
        if _parent(entry.get("parentRef") or {}, namespace) == parent
        and controller in (None, entry.get("controllerName"))
    ]
    stated = [
        [statement(entry.get("conditions"), type_, generation) for type_ in ("Accepted", "ResolvedRefs")]
        for entry in entries
    ]
    accepted = [all(x is not None and x.truth == "True" for x in row) for row in stated]
    refusals = [next((x for x in row if x is not None and x.truth == "False"), None) for row in stated]
    if entries and all(accepted):
        return _Answer(accepted=True)
    if entries and all(refusals):
        return _Answer(refusal=refusals[0])
    return _Answer(disputed=any(accepted) or any(refusals))


def carried(route: Object, gateway: GatewayFacts | None) -> Traffic:
    """Whether the gateway carries the route as it is; otherwise why not, as a problem if that is
    certain.

    That a gateway accepts a route says nothing about the Gateway itself: where that is gone, the
    answer to the route may stay for ever.
    """
    listed = parents(route, route["metadata"].get("namespace") or "")
    if not listed:
        return Traffic(False, f"{_title(route)} names no gateway")
    each = (_carried_by(route, parent, gateway) for parent in listed)
    return next((traffic for traffic in each if not traffic.programmed), Traffic(True))


def _carried_by(route: Object, parent: _Parent, gateway: GatewayFacts | None) -> Traffic:
    facts, namespace = _facts_on(gateway, parent), route["metadata"].get("namespace")
    if facts is not None and facts.problem is not None:
        return _refused(facts.problem)
    answer = _answer(route, parent, facts.controller if facts else None)
    title, at = _title(route), f"Gateway {parent[2]}/{parent[3]}"
    if answer.refusal is not None:
        text = f"{at} refuses {title}: {answer.refusal.quoted(whole=True)}"
        return _refused(Problem(Reason.ROUTE_NOT_ACCEPTED, text))
    listeners = [
        x
        for x in (facts and facts.listeners) or ()
        if parent[4] in ("", x.name) and x.takes(route["kind"], _hosts(route))
    ]
    if not answer.accepted:
        if facts is not None and facts.listeners is not None and not listeners:
            text = (
                f"{_which(parent)} of {at} takes {title} of namespace {namespace}: correct spec.traffic,"
                " or have a listener allow its kind, namespace and host name"
            )
            return _refused(Problem(Reason.NO_MATCHING_LISTENER, text))
        if answer.disputed:
            return Traffic(
                False,
                f"several controllers answer for {at}, and differ on {title}; which of them runs it is"
                " unknown, because its GatewayClass cannot be read: give the operator get, list and watch on"
                " gatewayclasses",
            )
        generation = route["metadata"].get("generation")
        return Traffic(False, f"{at} has not accepted generation {generation} of {title} yet")
    if facts is not None and facts.pending is not None:
        return Traffic(False, facts.pending)
    return _listened(at, listeners)


def _listened(at: str, listeners: list[Listener]) -> Traffic:
    """One listener that is programmed suffices, or one that states nothing."""
    states = [(x.name, x.programmed) for x in listeners]
    if any(state is None or state.truth == "True" for _, state in states) or not states:
        return Traffic(True)
    name, state = next(((n, s) for n, s in states if s and s.truth == "Unknown"), states[0])
    assert state is not None
    if state.truth == "Unknown":
        return Traffic(False, f"listener {name} of {at} is not programmed yet")
    text = f"listener {name} of {at} is not programmed: {state.reason}; ask who runs the gateway"
    return _refused(Problem(Reason.GATEWAY_NOT_PROGRAMMED, text))


def _which(parent: _Parent) -> str:
    return f"no listener {parent[4]}" if parent[4] else "no listener"


def _refused(problem: Problem) -> Traffic:
    return Traffic(False, problem.message, problem)


def _hosts(route: Object) -> list[str]:
    return [str(host) for host in (route.get("spec") or {}).get("hostnames") or []]


def _title(route: Object) -> str:
    hosts = ", ".join(_hosts(route))
    return f"{route['kind']} {route['metadata']['name']}" + (f" ({hosts})" if hosts else "")
