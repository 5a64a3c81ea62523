"""What a Gateway's own status says, and which routes its listeners take."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.traffic.gateway_api.gateway import gateway_facts, missing_gateway, with_class

LISTENER = {"name": "http", "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
CLASS = {"metadata": {"name": "shiny", "generation": 1}, "spec": {"controllerName": "example.com/gateway"}}


def stated(generation: int = 2, **truths: str) -> list[dict[str, Any]]:
    return [
        {"type": t, "status": s, "reason": "Why", "message": "of team-b", "observedGeneration": generation}
        for t, s in truths.items()
    ]


def gateway(
    *listeners: dict[str, Any], conditions: Any = (), of_listeners: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Generation 2 of a Gateway."""
    return {
        "metadata": {"name": "public", "namespace": "gateways", "generation": 2},
        "spec": {"gatewayClassName": "shiny", "listeners": list(listeners or (LISTENER,))},
        "status": {
            "conditions": list(conditions),
            "listeners": [{"name": n, "conditions": c} for n, c in (of_listeners or {}).items()],
        },
    }


def test_a_gateway_that_is_programmed_has_no_problem() -> None:
    facts = gateway_facts(gateway(conditions=stated(Accepted="True", Programmed="True")), own=False)
    assert (facts.problem, facts.pending, facts.gateway) == (None, None, "gateways/public")
    assert with_class(facts, CLASS).controller == "example.com/gateway"


@pytest.mark.parametrize(
    "conditions", [stated(1, Programmed="False"), stated(1, Programmed="True"), stated(Programmed="Unknown")]
)
def test_a_statement_about_an_older_generation_is_none(conditions: Any) -> None:
    facts = gateway_facts(gateway(conditions=conditions), own=True)
    assert facts.problem is None and facts.pending == (
        "Gateway gateways/public is not programmed yet, as far as its controller has said"
    )


def test_a_statement_that_names_no_generation_counts() -> None:
    undated = [{"type": "Programmed", "status": "True", "reason": "R"}]
    facts = gateway_facts(gateway(conditions=undated), own=True)
    assert (facts.problem, facts.pending) == (None, None)


def test_a_gateway_that_says_nothing_of_this_leaves_it_to_the_routes() -> None:
    facts = gateway_facts(gateway(), own=True)
    assert (facts.problem, facts.pending) == (None, None)


def test_only_in_its_own_namespace_a_gateway_is_quoted_in_full() -> None:
    """Its messages may name what belongs to other tenants."""
    not_programmed = gateway(conditions=stated(Programmed="False"))
    own, foreign = gateway_facts(not_programmed, own=True), gateway_facts(not_programmed, own=False)
    assert own.problem is not None and foreign.problem is not None
    assert own.problem.reason == foreign.problem.reason == "GatewayNotProgrammed"
    assert "Why: of team-b" in own.problem.message
    assert "Why" in foreign.problem.message and "team-b" not in foreign.problem.message


def test_a_broken_listener_of_someone_else_is_no_problem() -> None:
    """Traefik then refuses the whole Gateway, and carries the other listeners all the same."""
    listeners = (LISTENER, LISTENER | {"name": "theirs", "hostname": "theirs.example.com"})
    broken = {"http": stated(Accepted="True", Programmed="True"), "theirs": stated(Accepted="False")}
    refused = stated(Accepted="False")
    facts = gateway_facts(gateway(*listeners, conditions=refused, of_listeners=broken), own=False)
    assert (facts.problem, facts.pending) == (None, None)
    all_broken = {"http": stated(Accepted="False"), "theirs": stated(Accepted="False")}
    facts = gateway_facts(gateway(*listeners, conditions=refused, of_listeners=all_broken), own=False)
    assert facts.problem is not None and "does not accept it: Why" in facts.problem.message


def test_a_class_that_does_not_exist_or_is_not_accepted() -> None:
    facts = gateway_facts(gateway(conditions=stated(Programmed="True")), own=True)
    missing = with_class(facts, None)
    assert missing.problem is not None and missing.controller is None
    assert "GatewayClass shiny of Gateway gateways/public does not exist" in missing.problem.message
    refused = CLASS | {"status": {"conditions": stated(1, Accepted="False")}}
    assert with_class(facts, refused).problem is None, "the word of the Gateway itself counts more"
    waiting = gateway_facts(gateway(conditions=stated(Programmed="Unknown")), own=True)
    problem = with_class(waiting, refused).problem
    assert problem is not None and "is not accepted: Why" in problem.message


def test_features_of_a_controller_that_reports_none_are_known_by_its_name() -> None:
    """Envoy Gateway mirrors, and lists nothing."""
    facts = gateway_facts(gateway(), own=True)
    envoy = CLASS | {"spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"}}
    known = with_class(facts, envoy).features
    assert known is not None and {"HTTPRoute", "GRPCRoute", "HTTPRouteRequestMirror"} <= known
    listed = envoy | {"status": {"supportedFeatures": [{"name": "HTTPRoute"}]}}
    assert with_class(facts, listed).features == {"HTTPRoute"}, "what it reports counts more"
    assert with_class(facts, CLASS).features is None


def test_a_gateway_that_takes_no_routes_of_the_namespace_is_as_one_that_does_not_exist() -> None:
    same = LISTENER | {"allowedRoutes": {"namespaces": {"from": "Same"}}}
    assert gateway_facts(gateway(same), own=False) == missing_gateway("gateways", "public", own=False)
    assert gateway_facts(gateway(same), own=True).problem is None
    by_default = {"name": "http", "protocol": "HTTP"}
    assert gateway_facts(gateway(by_default), own=False).problem is not None
    by_label = LISTENER | {"allowedRoutes": {"namespaces": {"from": "Selector"}}}
    assert gateway_facts(gateway(by_label), own=False).problem is None, "the gateway knows which"


@pytest.mark.parametrize(
    ("listener", "kind", "host", "takes"),
    [
        ({}, "HTTPRoute", "a.example.com", True),
        ({}, "GRPCRoute", "a.example.com", True),
        ({"hostname": "a.example.com"}, "HTTPRoute", "a.example.com", True),
        ({"hostname": "*.example.com"}, "HTTPRoute", "a.example.com", True),
        ({"hostname": "*.example.com"}, "HTTPRoute", "example.com", False),
        ({"hostname": "a.example.com"}, "HTTPRoute", "*.example.com", True),
        ({"hostname": "b.example.com"}, "HTTPRoute", "a.example.com", False),
        ({"protocol": "TLS"}, "HTTPRoute", "a.example.com", False),
        ({"protocol": "example.com/own"}, "HTTPRoute", "a.example.com", True),
        ({"allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}}, "HTTPRoute", "a.example.com", False),
        ({"allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}}, "GRPCRoute", "a.example.com", True),
    ],
)
def test_a_listener_takes_kinds_and_host_names(
    listener: dict[str, Any], kind: str, host: str, takes: bool
) -> None:
    facts = gateway_facts(gateway(LISTENER | listener), own=True)
    assert facts.listeners is not None and facts.listeners[0].takes(kind, [host]) is takes
