"""Routers: what carries a split, and whether the data plane has taken it up."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Rollout, Traffic
from modelrollout.resources.common import Owner
from modelrollout.rollout.snapshot import Server
from modelrollout.testing import builders as b
from modelrollout.traffic.gateway_api.router import (
    FrozenRoutes,
    GatewayRouter,
    overly_open_routes,
    weights,
)
from modelrollout.traffic.gateway_api.routes import is_of_clients
from modelrollout.traffic.replicas import ServiceRouter

NAME = "digits"
OWNER = Owner("ModelDeployment", NAME, "ml", "uid")
BOTH = Traffic.model_validate(
    {
        "gateway": {"name": "public", "namespace": "gateways"},
        "http": {"hostnames": ["a.x"]},
        "grpc": {"hostnames": ["b.x"]},
    }
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
    assert http["spec"]["parentRefs"] == [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public", "namespace": "gateways"}
    ]


def test_a_gateway_without_a_namespace_is_in_ours() -> None:
    for route in GatewayRouter(NAME, HTTP).children(OWNER, SPLIT):
        assert route["spec"]["parentRefs"][0]["namespace"] == "ml"


def test_each_host_name_has_a_route_of_its_own_and_the_first_is_written_last() -> None:
    """Traefik ranks all names of a route by the longest. Where another name becomes the first, the
    one that was must have a route by then.
    """
    further, first = GatewayRouter(NAME, HTTP).children(OWNER, SPLIT)
    assert (first["metadata"]["name"], first["spec"]["hostnames"]) == (NAME, ["a.x"])
    assert further["spec"]["hostnames"] == ["*.y"] and is_of_clients(further["metadata"]["name"], NAME)
    assert first["spec"]["rules"] == further["spec"]["rules"]
    live = answered([further, first])
    assert GatewayRouter(NAME, HTTP).programmed(SPLIT, live, {}).programmed
    del live["HTTPRoute", further["metadata"]["name"]]
    assert not GatewayRouter(NAME, HTTP).programmed(SPLIT, live, {}).programmed, (
        "all of them have to be there"
    )


def test_without_a_route_nothing_is_taken_up() -> None:
    assert not FrozenRoutes(NAME, {}).programmed(SPLIT, {}, {}).programmed


def test_while_nothing_serves_there_is_no_route() -> None:
    assert GatewayRouter(NAME, BOTH).children(OWNER, ()) == []


def seen(
    split: tuple[tuple[str, int], ...] = SPLIT, spec: Traffic = BOTH, generation: int = 4, **conditions: Any
) -> dict[tuple[str, str], Any]:
    """The routes as written, with these conditions for generation 4."""
    made = GatewayRouter(NAME, spec).children(OWNER, split)
    for route in made:
        route["metadata"]["generation"] = 4
        route["status"] = b.answered(route, conditions)
        route["metadata"]["generation"] = generation
    return {(r["kind"], "digits"): r for r in made}


YES = b.ACCEPTED


def with_spec(**fields: Any) -> dict[tuple[str, str], Any]:
    """Accepted routes that differ from the desired ones in these fields."""
    routes = seen(**YES)
    for route in routes.values():
        route["spec"] |= fields
        route["status"] = b.answered(route)
    return routes


def test_taken_up_is_written_and_accepted_for_this_generation() -> None:
    assert GatewayRouter(NAME, BOTH).programmed(SPLIT, seen(**YES), {}).programmed


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
        with_spec(hostnames=["former.x"]),
        with_spec(parentRefs=[{"name": "former", "namespace": "gateways"}]),
        {k: v for k, v in seen(**YES).items() if k[0] == "HTTPRoute"},
    ],
    ids=[
        "nothing",
        "other split",
        "other weights",
        "older generation",
        "no answer",
        "refs open",
        "unknown",
        "former host name",
        "former gateway",
        "one of two",
    ],
)
def test_anything_less_is_not(routes: dict[tuple[str, str], Any]) -> None:
    traffic = GatewayRouter(NAME, BOTH).programmed(SPLIT, routes, {})
    assert not traffic.programmed and traffic.message and traffic.problem is None


@pytest.mark.parametrize(
    "refused", [{"Accepted": "False", "ResolvedRefs": "True"}, {"Accepted": "True", "ResolvedRefs": "False"}]
)
def test_a_gateway_that_refuses_says_why(refused: dict[str, str]) -> None:
    traffic = GatewayRouter(NAME, BOTH).programmed(SPLIT, seen(**refused), {})
    assert (
        traffic.problem
        and traffic.problem.reason == "RouteNotAccepted"
        and "Stated: as it is" in traffic.problem.message
    )


def test_a_refusal_of_an_older_generation_is_over() -> None:
    assert (
        GatewayRouter(NAME, BOTH).programmed(SPLIT, seen(generation=5, Accepted="False"), {}).problem is None
    )


def test_a_route_that_has_no_status_or_rules_yet() -> None:
    bare = seen(**YES)
    for route in bare.values():
        del route["status"]
    assert not GatewayRouter(NAME, BOTH).programmed(SPLIT, bare, {}).programmed
    assert weights({"spec": {}}) == {} == weights({"spec": {"rules": [{}]}})
    assert weights({"spec": {"rules": [{"backendRefs": [{"name": "v1"}, {"name": "v2", "weight": 0}]}]}}) == {
        "v1": 1
    }


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
    assert router.programmed(SPLIT, service(None), pods(v1=4, v2=1)).programmed
    assert not router.programmed(SPLIT, service("v1"), pods(v1=4, v2=1)).programmed
    assert not router.programmed(SPLIT, service(None), pods(v1=4)).programmed
    assert not router.programmed(SPLIT, {}, pods(v1=4, v2=1)).programmed


def test_all_to_one_revision_is_taken_up_when_the_service_selects_it_alone() -> None:
    router = ServiceRouter("digits", {"v2": 4}, "v2")
    assert router.programmed((("v2", 100),), service("v2"), pods(v2=4)).programmed
    assert not router.programmed((("v2", 100),), service(None), pods(v2=4)).programmed
    assert not router.programmed((("v2", 100),), service("v2"), pods(v2=3)).programmed
    helping = ServiceRouter("digits", {"v2": 4}, "*")
    assert not helping.programmed((("v2", 100),), service(None), pods(v2=4)).programmed


def opened(route: Any) -> list[set[str]]:
    """By rule the paths of a route."""
    return [{m["path"]["value"] for m in rule["matches"]} for rule in route["spec"]["rules"]]


def test_at_a_host_name_where_another_was_first_only_the_models_own_paths_are_open() -> None:
    guest = {"guest_at": frozenset({"a.x", "p.x"})}
    router = GatewayRouter(NAME, HTTP, TEST, matched="v2", **guest)
    first, further = sorted(
        router.children(OWNER, STABLE), key=lambda r: r["spec"]["hostnames"], reverse=True
    )
    assert all("/v2/models/digits/infer" in paths for r in (first, further) for paths in opened(r))
    assert not any("/v2/health/ready" in paths for paths in opened(first)), "of both rules"
    assert all("/v2/health/ready" in paths for paths in opened(further))
    live = answered([first, further])
    assert router.programmed(STABLE, live, {}).programmed and overly_open_routes(live, NAME) == []
    assert not GatewayRouter(NAME, HTTP, TEST, matched="v2").programmed(STABLE, live, {}).programmed
    frozen = FrozenRoutes(NAME, live, TEST, "v2", **guest)
    assert {r["metadata"]["name"]: opened(r) for r in frozen.children(OWNER, STABLE)} == {
        r["metadata"]["name"]: opened(r) for r in (first, further)
    }
    previewed = GatewayRouter(NAME, BOTH, BLUE, preview="v2", **guest).children(OWNER, STABLE)
    (preview,) = (
        r for r in previewed if r["metadata"]["name"] == "digits-preview" and r["kind"] == "HTTPRoute"
    )
    assert not any("/v2/health/ready" in paths for paths in opened(preview))


INFER: dict[str, Any] = {"path": {"type": "Exact", "value": "/v2/models/digits/infer"}, "method": "POST"}
CALL: dict[str, Any] = {"method": {"service": "inference.GRPCInferenceService", "method": "ModelInfer"}}
ASKED = {"queryParams": [{"name": "debug", "value": "1"}]}
BETA = {"headers": [{"name": "x-beta", "value": "1"}]}


@pytest.mark.parametrize(
    ("kind", "match", "kept"),
    [
        ("HTTPRoute", INFER, True),
        ("HTTPRoute", INFER | ASKED, True),
        ("HTTPRoute", INFER | BETA | ASKED, True),
        ("HTTPRoute", INFER | {"method": "DELETE"}, False),
        ("HTTPRoute", {"path": INFER["path"]}, False),
        ("HTTPRoute", INFER | {"path": {"value": "/v2/models/digits/infer"}}, False),
        ("HTTPRoute", {}, False),
        ("GRPCRoute", CALL, True),
        ("GRPCRoute", {"method": CALL["method"] | {"type": "Exact"}} | BETA, True),
        ("GRPCRoute", {"method": {"service": "inference.GRPCInferenceService"}}, False),
        ("GRPCRoute", {"method": CALL["method"] | {"type": "RegularExpression"}}, False),
        ("GRPCRoute", {}, False),
    ],
)
def test_a_match_lets_through_the_same_for_whoever_reads_it(kind: str, match: Any, kept: bool) -> None:
    """What is too wide is narrowed at once; what is narrower than it should be is no fault of that
    kind, but neither is it what is desired.
    """
    routes = {
        (r["kind"], r["metadata"]["name"]): r for r in GatewayRouter(NAME, BOTH).children(OWNER, STABLE)
    }
    rule = routes[kind, NAME]["spec"]["rules"][0] | {"matches": [match]}
    live = routes[kind, NAME] | {"spec": routes[kind, NAME]["spec"] | {"rules": [rule]}}
    assert (overly_open_routes({(kind, NAME): live}, NAME) == []) == kept
    assert (
        not GatewayRouter(NAME, BOTH)
        .programmed(STABLE, answered([*(r for r in routes.values() if r["kind"] != kind), live]), {})
        .programmed
    )


# --- requests with headers, and previews

ROLLOUT = {
    "headers": [
        {"name": "x-group", "value": "b"},
        {"name": "x-beta", "value": "1.*", "type": "RegularExpression"},
    ]
}
TEST = Rollout.model_validate({"abTest": ROLLOUT})
BLUE = Rollout.model_validate(
    {"blueGreen": {"preview": {"http": {"hostnames": ["p.x"]}, "grpc": {"hostnames": ["q.x"]}}}}
)
STABLE = (("v1", 100),)


def answered(routes: list[Any], *, but: str = "") -> dict[tuple[str, str], Any]:
    """As the gateway accepted them, but for those of one name."""
    for route in routes:
        route["status"] = b.answered(route, {} if route["metadata"]["name"] == but else YES)
    return {(r["kind"], r["metadata"]["name"]): r for r in routes}


def test_requests_with_the_headers_come_before_all_others() -> None:
    for route in GatewayRouter(NAME, BOTH, TEST, matched="v2").children(OWNER, STABLE):
        first, last = route["spec"]["rules"]
        headers = [
            {"type": "Exact", "name": "x-group", "value": "b"},
            {"type": "RegularExpression", "name": "x-beta", "value": "1.*"},
        ]
        assert [m["headers"] for m in first["matches"]] == [headers] * len(last["matches"]), (
            "each match has all of them"
        )
        assert [{k: v for k, v in m.items() if k != "headers"} for m in first["matches"]] == last["matches"]
        assert [r["name"] for r in first["backendRefs"]] == ["v2"]
        assert weights(route) == {"v1": 100}, "the others"


def test_without_a_revision_to_test_there_is_one_rule() -> None:
    assert [len(r["spec"]["rules"]) for r in GatewayRouter(NAME, BOTH, TEST).children(OWNER, STABLE)] == [
        1,
        1,
    ]


def test_a_test_is_taken_up_with_its_rule() -> None:
    router = GatewayRouter(NAME, BOTH, TEST, matched="v2")
    assert router.programmed(STABLE, answered(router.children(OWNER, STABLE)), {}).programmed
    before = GatewayRouter(NAME, BOTH, TEST).children(OWNER, STABLE)
    assert not router.programmed(STABLE, answered(before), {}).programmed
    assert (
        not GatewayRouter(NAME, BOTH, TEST)
        .programmed(STABLE, answered(router.children(OWNER, STABLE)), {})
        .programmed
    ), "it must go again"


def test_what_the_api_server_adds_to_a_rule_does_not_count() -> None:
    router = GatewayRouter(NAME, BOTH, TEST, matched="v2")
    routes = router.children(OWNER, STABLE)
    http, grpc = (route["spec"]["rules"] for route in routes)
    for rule in (*http, *grpc):
        rule["matches"].reverse()
        for header in (h for m in rule["matches"] for h in m.get("headers", [])):
            header.setdefault("type", "Exact")
    for match in (m for rule in grpc for m in rule["matches"]):
        match["method"].pop("type")  # Exact where nothing is said
    assert router.programmed(STABLE, answered(routes), {}).programmed


def test_a_preview_has_routes_of_its_own() -> None:
    made = {
        (r["kind"], r["metadata"]["name"]): r
        for r in GatewayRouter(NAME, BOTH, BLUE, preview="v2").children(OWNER, STABLE)
    }
    assert set(made) == {(k, n) for k in ("HTTPRoute", "GRPCRoute") for n in ("digits", "digits-preview")}
    assert made["HTTPRoute", "digits-preview"]["spec"]["hostnames"] == ["p.x"] and weights(
        made["GRPCRoute", "digits-preview"]
    ) == {"v2": 100}
    assert weights(made["HTTPRoute", "digits"]) == {"v1": 100}


def test_a_trial_waits_for_its_preview_and_nothing_else_does() -> None:
    router = GatewayRouter(NAME, BOTH, BLUE, preview="v2")
    routes = router.children(OWNER, STABLE)
    assert router.programmed(STABLE, answered(routes), {}).programmed
    assert not router.programmed(STABLE, answered(routes, but="digits-preview"), {}).programmed
    back = GatewayRouter(NAME, BOTH, BLUE, preview="v1")
    assert back.programmed(
        STABLE, answered(back.children(OWNER, STABLE), but="digits-preview"), {}
    ).programmed


# --- a spec that cannot be read


def test_kept_routes_follow_the_weights_and_keep_the_rest() -> None:
    live = answered(GatewayRouter(NAME, BOTH, TEST, matched="v2").children(OWNER, SPLIT))
    frozen = FrozenRoutes(NAME, live)
    assert not frozen.programmed(STABLE, live, {}).programmed
    made = frozen.children(OWNER, STABLE)
    for route in made:
        assert [r["backendRefs"][0]["name"] for r in route["spec"]["rules"]] == ["v1"] and weights(route) == {
            "v1": 100
        }
        before = live[route["kind"], NAME]["spec"]
        assert (
            route["spec"]["hostnames"] == before["hostnames"]
            and route["spec"]["parentRefs"] == before["parentRefs"]
        )
        assert (
            route["spec"]["rules"][0]["backendRefs"][0]["port"]
            == before["rules"][-1]["backendRefs"][0]["port"]
        )
    assert FrozenRoutes(NAME, answered(made)).programmed(STABLE, answered(made), {}).programmed


def test_kept_routes_lose_the_names_that_are_anothers_and_keep_what_tests_and_previews_have() -> None:
    live = answered(GatewayRouter(NAME, HTTP, TEST, matched="v2").children(OWNER, STABLE))
    left = FrozenRoutes(NAME, live, TEST, "v2", withheld=frozenset({"a.x"})).children(OWNER, STABLE)
    assert [r["spec"]["hostnames"] for r in left] == [["*.y"]] and len(left[0]["spec"]["rules"]) == 2
    shown = answered(GatewayRouter(NAME, BOTH, BLUE, preview="v2").children(OWNER, STABLE))
    retained = {
        (r["kind"], r["metadata"]["name"]): r
        for r in FrozenRoutes(NAME, shown, BLUE, None, "v2").children(OWNER, STABLE)
    }
    assert {key: weights(route) for key, route in retained.items()} == {
        key: weights(route) for key, route in shown.items()
    }
    assert {r["metadata"]["name"] for r in FrozenRoutes(NAME, shown, BLUE).children(OWNER, STABLE)} == {NAME}
