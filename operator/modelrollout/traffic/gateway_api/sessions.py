"""Requests of a session go to the same revision (``spec.traffic.sessionAffinity``).

The Gateway API's ``sessionPersistence`` does not help: it keeps a session at one server of one
backend, and the choice between weighted backends stays random. Envoy Gateway can hash instead: a
BackendTrafficPolicy with a consistent hash makes Envoy choose the backend by the hash of the header
or cookie, modulo the sum of weights. Stable is the first backend and the version on trial the
second one, so a session that a higher weight has brought to the second stays there, as long as the
sum of weights stays the same: with another sum all sessions would be dealt again. So weights are
parts of ``WHOLE`` there, as in a stage (``staging``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import SessionAffinity
from modelrollout.api.v1alpha1 import Traffic as TrafficSpec
from modelrollout.config import OperatorConfig
from modelrollout.kube.diff import is_up_to_date
from modelrollout.kube.kinds import BACKEND_TRAFFIC_POLICY
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import Object, Owner, labels, metadata
from modelrollout.rollout.snapshot import Server, Split, Traffic
from modelrollout.traffic.base import LiveObjects, SplitWriter
from modelrollout.traffic.gateway_api.features import ENVOY_GATEWAY_CONTROLLER
from modelrollout.traffic.gateway_api.gateway import maps_in, statement
from modelrollout.traffic.gateway_api.routes import ROUTE_KINDS, is_of_clients, routes
from modelrollout.traffic.gateway_facts import GatewayFacts, Statement

_KIND = BACKEND_TRAFFIC_POLICY.kind


def session_problem(
    traffic: TrafficSpec, facts: GatewayFacts | None, config: OperatorConfig
) -> Problem | None:
    """Why the gateway would not keep the sessions that the spec asks for."""
    if traffic.session_affinity is None:
        return None
    field = "spec.traffic.sessionAffinity"
    if facts is None or facts.controller is None:
        return _unsupported(
            f"{field}: whether the gateway can keep sessions is unknown, because the operator cannot read"
            " the Gateway or its GatewayClass; ask the platform team"
        )
    if facts.controller != ENVOY_GATEWAY_CONTROLLER:
        return _unsupported(
            f"{field}: GatewayClass {facts.gateway_class} of Gateway {facts.gateway} (controller"
            f" {facts.controller}) is not known to keep a session at one revision while weights divide"
            " requests; take Envoy Gateway, or leave it out"
        )
    if not config.routes.backend_traffic_policies:
        return _unsupported(
            f"{field}: the operator may not write BackendTrafficPolicies of Envoy Gateway; have the platform"
            " team set routes.backendTrafficPolicies in the operator's chart, or leave it out"
        )
    return None


def _unsupported(text: str) -> Problem:
    return Problem(Reason.SESSION_AFFINITY_UNSUPPORTED, text)


def session_refusal(traffic: TrafficSpec, name: str, live: LiveObjects) -> Problem | None:
    """What the gateway has against the policy that was written for the spec.

    None while the live one is of an earlier spec: then the policy to write may be taken.
    """
    policy = live.get((_KIND, name))
    if traffic.session_affinity is None or policy is None:
        return None
    asked = {
        "targetRefs": _targets(routes(Owner("", name, "", ""), traffic, []), name),
        "loadBalancer": _balancer(traffic.session_affinity),
    }
    if not is_up_to_date(policy["spec"], asked):
        return None
    refused = next((x for x in _answers(policy) if x.truth == "False"), None)
    if refused is None:
        return None
    text = (
        f"spec.traffic.sessionAffinity: the gateway refuses {_KIND} {name}: {refused.quoted(whole=True)};"
        " remove the other policy of these routes, or leave sessionAffinity out"
    )
    return Problem(Reason.SESSION_AFFINITY_REFUSED, text)


def _answers(policy: Object) -> list[Statement]:
    """What Envoy Gateway says of the present generation, by Gateway and listener."""
    generation = policy["metadata"].get("generation") or 0
    stated = (
        statement(entry.get("conditions"), "Accepted", generation)
        for entry in maps_in((policy.get("status") or {}).get("ancestors"))
        if entry.get("controllerName") == ENVOY_GATEWAY_CONTROLLER
    )
    return [x for x in stated if x is not None]


def sessions_are_kept(name: str, live: LiveObjects) -> bool:
    """Whether the live routes have a policy by which sessions stick."""
    return (_KIND, name) in live


class SessionRoutes:
    """Routes of ``inner`` with the policy by which their sessions stick.

    ``affinity``: None: the live policy stays as it is, where there is one, for spec is unreadable
    or not granted.
    """

    def __init__(
        self, inner: SplitWriter, name: str, affinity: SessionAffinity | None, live: LiveObjects
    ) -> None:
        self._inner, self._name, self._affinity, self._live = inner, name, affinity, live

    def children(self, owner: Owner, split: Split) -> list[Object]:
        """The routes before the policy that names them: without it they only split one by one."""
        children = self._inner.children(owner, split)
        return [*children, *self._policy(owner, _targets(children, self._name))]

    def _policy(self, owner: Owner, targets: list[Object]) -> list[Object]:
        live = self._live.get((_KIND, self._name))
        present = live["spec"].get("loadBalancer") if live else None
        balancer = _balancer(self._affinity) if self._affinity else present
        if not targets or balancer is None:
            return []
        return [
            {
                "apiVersion": BACKEND_TRAFFIC_POLICY.api_version,
                "kind": _KIND,
                "metadata": metadata(owner, self._name, labels(owner.name, names.COMPONENT_SERVER)),
                "spec": {
                    "targetRefs": targets,
                    # what the platform's policy of the Gateway says holds beside it
                    "mergeType": "StrategicMerge",
                    "loadBalancer": balancer,
                },
            }
        ]

    def programmed(self, split: Split, live: LiveObjects, servers: Mapping[str, Server]) -> Traffic:
        """As ``inner`` says, once the gateway has accepted the policy."""
        traffic = self._inner.programmed(split, live, servers)
        if not traffic.programmed or self._affinity is None:
            return traffic
        policy = live.get((_KIND, self._name))
        # the API server adds defaults of the gateway's own, such as a table's size
        if policy is None or not is_up_to_date(policy["spec"].get("loadBalancer"), _balancer(self._affinity)):
            return Traffic(False, f"{_KIND} {self._name} is not written yet")
        answers = _answers(policy)
        if not answers or any(x.truth != "True" for x in answers):
            return Traffic(False, f"the gateway has not accepted {_KIND} {self._name} yet")
        return traffic


def _targets(children: Iterable[Object], name: str) -> list[Object]:
    """References to the routes of clients among them.

    By name: frozen routes come in the order in which they were read, and in another order the
    policy would be a new one to the gateway, whose refusal of it is not known yet.
    """
    found = sorted(
        (o["kind"], o["metadata"]["name"])
        for o in children
        if o["kind"] in ROUTE_KINDS and is_of_clients(o["metadata"]["name"], name)
    )
    return [{"group": "gateway.networking.k8s.io", "kind": kind, "name": route} for kind, route in found]


def _balancer(affinity: SessionAffinity) -> dict[str, Any]:
    named: dict[str, Any] = (
        {"type": "Headers", "headers": [{"name": affinity.header}]}
        if affinity.header
        else {"type": "Cookie", "cookie": {"name": affinity.cookie}}
    )
    return {"type": "ConsistentHash", "consistentHash": named}
