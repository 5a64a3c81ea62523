"""Routers: what carries a split, and whether the data plane has taken it up."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Traffic
from modelrollout.resources.common import Owner
from modelrollout.rollout.facts import Server
from modelrollout.traffic.router import GatewayRouter, ServiceRouter, real_share, weights

NAME = "digits"
OWNER = Owner("ModelDeployment", NAME, "ml", "uid")
BOTH = Traffic.model_validate(
    {"gateway": {"name": "public", "namespace": "gateways"}, "http": {"hostnames": ["a.x"]}, "grpc": {"hostnames": ["b.x"]}}
)
HTTP = Traffic.model_validate({"gateway": {"name": "public"}, "http": {"hostnames": ["a.x", "*.y"]}})
SPLIT = (("v1", 95), ("v2", 5))


# --- Gateway API


def test_a_route_for_each_protocol_with_weights_over_the_services_of_revisions() -> None:
    http, grpc = GatewayRouter(NAME, BOTH).children(OWNER, SPLIT)
    assert (http["kind"], grpc["kind"]) == ("HTTPRoute", "GRPCRoute")
    assert http["spec"]["hostnames"] == ["a.x"] and grpc["spec"]["hostnames"] == ["b.x"]
    assert weights(http) == weights(grpc) == {"v1": 95, "v2": 5}
    assert {r["port"] for r in http["spec"]["rules"][0]["backendRefs"]} == {8000} and {
        r["port"] for r in grpc["spec"]["rules"][0]["backendRefs"]
    } == {8001}
    assert http["spec"]["parentRefs"] == [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public", "namespace": "gateways"}]


def test_a_gateway_without_a_namespace_is_in_ours() -> None:
    (route,) = GatewayRouter(NAME, HTTP).children(OWNER, SPLIT)
    assert route["spec"]["parentRefs"][0]["namespace"] == "ml" and route["spec"]["hostnames"] == ["a.x", "*.y"]


def test_while_nothing_serves_there_is_no_route() -> None:
    assert GatewayRouter(NAME, BOTH).children(OWNER, ()) == []


def seen(split: tuple[tuple[str, int], ...] = SPLIT, spec: Traffic = BOTH, generation: int = 4, **conditions: Any) -> dict[tuple[str, str], Any]:
    """The routes as written, with these conditions for generation 4."""
    made = GatewayRouter(NAME, spec).children(OWNER, split)
    for route in made:
        route["metadata"]["generation"] = generation
        told = [{"type": t, "status": s, "observedGeneration": 4, "reason": "R", "message": "m"} for t, s in conditions.items()]
        route["status"] = {"parents": [{"conditions": told}]}
    return {(r["kind"], "digits"): r for r in made}


YES = {"Accepted": "True", "ResolvedRefs": "True"}


def test_taken_up_is_written_and_accepted_for_this_generation() -> None:
    assert GatewayRouter(NAME, BOTH).taken_up(SPLIT, seen(**YES), {}).taken_up


@pytest.mark.parametrize(
    "routes",
    [
        {},
        seen((("v1", 100),), **YES),
        seen((("v1", 90), ("v2", 10)), **YES),
        seen(generation=5, **YES),
        seen(),
        seen(Accepted="True"),
        seen(Accepted="Unknown", ResolvedRefs="True"),
        {k: v for k, v in seen(**YES).items() if k[0] == "HTTPRoute"},
    ],
    ids=["nothing", "other split", "other weights", "older generation", "no answer", "refs open", "unknown", "one of two"],
)
def test_anything_less_is_not(routes: dict[tuple[str, str], Any]) -> None:
    traffic = GatewayRouter(NAME, BOTH).taken_up(SPLIT, routes, {})
    assert not traffic.taken_up and traffic.message and traffic.problem is None


@pytest.mark.parametrize("refused", [{"Accepted": "False", "ResolvedRefs": "True"}, {"Accepted": "True", "ResolvedRefs": "False"}])
def test_a_gateway_that_refuses_says_why(refused: dict[str, str]) -> None:
    traffic = GatewayRouter(NAME, BOTH).taken_up(SPLIT, seen(**refused), {})
    assert traffic.problem and traffic.problem.reason == "RouteNotAccepted" and "R: m" in traffic.problem.message


def test_a_refusal_of_an_older_generation_is_over() -> None:
    assert GatewayRouter(NAME, BOTH).taken_up(SPLIT, seen(generation=5, Accepted="False"), {}).problem is None


def test_a_route_that_has_no_status_or_rules_yet() -> None:
    bare = seen(**YES)
    for route in bare.values():
        del route["status"]
    assert not GatewayRouter(NAME, BOTH).taken_up(SPLIT, bare, {}).taken_up
    assert weights({"spec": {}}) == {} == weights({"spec": {"rules": [{}]}})
    assert weights({"spec": {"rules": [{"backendRefs": [{"name": "v1"}, {"name": "v2", "weight": 0}]}]}}) == {"v1": 1}


# --- one Service and replica counts


def service(revision: str | None) -> dict[tuple[str, str], Any]:
    selector = {names.LABEL_NAME: "digits"} | ({names.LABEL_REVISION: revision} if revision else {})
    return {("Service", "digits"): {"spec": {"selector": selector}}}


def pods(**ready: int) -> dict[str, Server]:
    return {name: Server(count, count) for name, count in ready.items()}


def test_the_service_is_no_child_of_the_router() -> None:
    assert ServiceRouter("digits", {"v1": 4}, "v1").children(OWNER, SPLIT) == []


def test_a_split_over_one_service_needs_its_selector_and_its_pods() -> None:
    router = ServiceRouter("digits", {"v1": 4, "v2": 1}, "*")
    assert router.taken_up(SPLIT, service(None), pods(v1=4, v2=1)).taken_up
    assert not router.taken_up(SPLIT, service("v1"), pods(v1=4, v2=1)).taken_up
    assert not router.taken_up(SPLIT, service(None), pods(v1=4)).taken_up
    assert not router.taken_up(SPLIT, {}, pods(v1=4, v2=1)).taken_up


def test_all_to_one_revision_is_taken_up_when_the_service_selects_it_alone() -> None:
    router = ServiceRouter("digits", {"v2": 4}, "v2")
    assert router.taken_up((("v2", 100),), service("v2"), pods(v2=4)).taken_up
    assert not router.taken_up((("v2", 100),), service(None), pods(v2=4)).taken_up
    assert not router.taken_up((("v2", 100),), service("v2"), pods(v2=3)).taken_up
    helping = ServiceRouter("digits", {"v2": 4}, "*")
    assert not helping.taken_up((("v2", 100),), service(None), pods(v2=4)).taken_up


def test_the_real_share_is_that_of_ready_pods() -> None:
    assert real_share(SPLIT, pods(v1=3, v2=1)) == 25.0
    assert real_share((("v1", 100),), pods(v1=3)) is None and real_share(SPLIT, {}) is None
