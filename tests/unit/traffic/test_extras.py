"""What a spec asks of its routes beyond backends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from modelrollout.api.v1alpha1 import Rollout, Traffic
from modelrollout.cli.manifests.rules import broken_rules, schema_of
from modelrollout.resources.common import Owner
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG
from modelrollout.traffic.gateway_api.extras import NO_EXTRAS, Extras, extras_in, extras_of, extras_problem
from modelrollout.traffic.gateway_api.features import (
    BACKEND_TIMEOUT,
    CORS,
    METHOD_MATCHING,
    REQUEST_TIMEOUT,
    RESPONSE_HEADERS,
)
from modelrollout.traffic.gateway_api.kind import GATEWAY_API
from modelrollout.traffic.gateway_api.router import (
    FrozenRoutes,
    GatewayRouter,
    overly_open_routes,
    weights,
)
from modelrollout.traffic.gateway_facts import GatewayFacts

Object = dict[str, Any]
OWNER = Owner("ModelDeployment", "digits", "ml", "uid")
HOSTS = {"gateway": {"name": "public"}, "http": {"hostnames": ["a.x"]}, "grpc": {"hostnames": ["b.x"]}}
TEST = Rollout.model_validate({"abTest": {"headers": [{"name": "x-beta", "value": "1"}]}})
STABLE = (("v1", 100),)


def traffic(**timeouts: str) -> Traffic:
    return Traffic.model_validate(HOSTS | ({"timeouts": timeouts} if timeouts else {}))


def facts(*features: str, controller: str | None = "example.org/gateway") -> GatewayFacts:
    return GatewayFacts("ml/public", "one", controller, frozenset({"HTTPRoute", *features}))


TIMED = facts(REQUEST_TIMEOUT, BACKEND_TIMEOUT)


def made(extras: Extras, kind: str = "HTTPRoute", **more: Any) -> Object:
    routes = GatewayRouter("digits", traffic(), extras=extras, **more).children(OWNER, STABLE)
    [route] = (r for r in routes if r["kind"] == kind)
    return route


def timeouts(route: Object) -> list[tuple[set[str], Object | None]]:
    """By rule: the last parts of its paths, and its timeouts."""
    return [
        ({m["path"]["value"].rpartition("/")[2] for m in rule["matches"]}, rule.get("timeouts"))
        for rule in route["spec"]["rules"]
    ]


class TestTimeouts:
    def test_streams_end_when_they_end_and_all_else_is_the_gateways(self) -> None:
        (others, none), (streams, unlimited) = timeouts(made(extras_of(traffic(), TIMED)))
        assert none is None and {"infer", "ready"} <= others and "generate_stream" not in others
        assert streams == {"generate_stream"} and unlimited == {"request": "0s"}

    def test_what_spec_says_is_written(self) -> None:
        asked = traffic(request="30s", backendRequest="10s", stream="10m")
        (_, others), (_, streams) = timeouts(made(extras_of(asked, TIMED)))
        assert others == {"request": "30s", "backendRequest": "10s"} and streams == {"request": "10m"}

    def test_only_what_the_class_lists_is_written(self) -> None:
        asked = traffic(request="30s", backendRequest="10s")
        assert extras_of(asked, facts(BACKEND_TIMEOUT)) == Extras({"backendRequest": "10s"}, {})
        for unknown in (facts(), GatewayFacts("ml/public"), None):
            extras = extras_of(asked, unknown)
            assert extras == NO_EXTRAS and [t for _, t in timeouts(made(extras))] == [None]

    def test_a_route_of_grpc_has_no_field_for_them(self) -> None:
        [rule] = made(extras_of(traffic(request="30s"), TIMED), "GRPCRoute")["spec"]["rules"]
        assert "timeouts" not in rule

    def test_requests_of_a_test_have_the_same(self) -> None:
        route = made(extras_of(traffic(request="30s"), TIMED), rollout=TEST, matched="v2")
        assert [t for _, t in timeouts(route)] == [{"request": "30s"}, {"request": "0s"}] * 2
        assert weights(route) == {"v1": 100}

    def test_a_route_is_taken_up_with_its_timeouts(self) -> None:
        extras = extras_of(traffic(request="30s"), TIMED)
        for written, carried in ((extras, True), (NO_EXTRAS, False), (extras_of(traffic(), TIMED), False)):
            route, grpc = made(written), made(written, "GRPCRoute")
            live = {(r["kind"], "digits"): r | {"status": b.answered(r, b.ACCEPTED)} for r in (route, grpc)}
            router = GatewayRouter("digits", traffic(), extras=extras)
            assert router.programmed(STABLE, live, {}).programmed == carried

    @pytest.mark.parametrize("asked", [traffic(), traffic(request="30s", stream="1h")])
    def test_where_spec_is_not_granted_they_stay(self, asked: Traffic) -> None:
        route = made(extras_of(asked, TIMED), rollout=TEST, matched="v2")
        live = {("HTTPRoute", "digits"): route}
        assert overly_open_routes(live, "digits") == [], "rules of a part of the paths"
        [kept] = FrozenRoutes("digits", live, TEST, "v2").children(OWNER, STABLE)
        assert timeouts(kept) == timeouts(route)

    def test_behind_envoy_gateway_each_rule_keeps_its_position(self) -> None:
        extras, common = extras_of(traffic(), TIMED), {"positions": ("v1", "v2"), "rollout": TEST}
        before, after = made(extras, **common), made(extras, matched="v2", **common)
        assert [m for m, _ in timeouts(after)][:2] == [m for m, _ in timeouts(before)]
        assert [len(rule["matches"][0].get("headers", [])) for rule in after["spec"]["rules"]] == [0, 0, 1, 1]

    @pytest.mark.parametrize(
        ("asked", "known", "words"),
        [
            ({"request": "30s"}, facts(METHOD_MATCHING), "does not support HTTPRouteRequestTimeout"),
            ({"stream": "30s"}, facts(), "spec.traffic.timeouts.stream: GatewayClass one of Gateway"),
            (
                {"request": "30s", "backendRequest": "1s"},
                facts(REQUEST_TIMEOUT),
                "does not support HTTPRouteBackendTimeout; leave it out, and set it in the gateway's own",
            ),
            (
                {"request": "30s"},
                GatewayFacts("ml/public", "one", "example.org/gateway"),
                "does not say what it supports",
            ),
        ],
    )
    def test_a_gateway_that_would_not_keep_them_is_named(
        self, asked: dict[str, str], known: GatewayFacts, words: str
    ) -> None:
        problem = extras_problem(traffic(**asked), known)
        assert problem is not None and problem.reason == "TimeoutsUnsupported" and words in problem.message

    def test_of_a_gateway_that_cannot_be_read_nothing_is_promised(self) -> None:
        for known in (None, GatewayFacts("ml/public")):
            problem = extras_problem(traffic(request="30s"), known)
            assert problem is not None and problem.reason == "TimeoutsUnsupported"
            assert problem.message.startswith("spec.traffic.timeouts.request: whether the gateway supports")

    def test_a_spec_with_them_is_refused_with_the_reason(self) -> None:
        spec = b.spec(1, traffic=traffic(request="30s").wire())
        served = {"HTTPRoute", "GRPCRoute"}
        assert GATEWAY_API.spec_problem(spec, served, facts(METHOD_MATCHING, "GRPCRoute"), CONFIG) is not None
        every = facts(METHOD_MATCHING, "GRPCRoute", REQUEST_TIMEOUT, BACKEND_TIMEOUT)
        assert GATEWAY_API.spec_problem(spec, served, every, CONFIG) is None
        plain = b.spec(1, traffic=traffic().wire())
        assert GATEWAY_API.spec_problem(plain, served, facts(METHOD_MATCHING, "GRPCRoute"), CONFIG) is None

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"timeouts": {"request": "10s", "backendRequest": "11s"}}, "make it no longer"),
            ({"timeouts": {"request": "10s"}, "http": None}, "the operator cannot know how long"),
            ({"timeouts": {"request": "0s", "backendRequest": "11s"}}, None),
            ({"timeouts": {"request": "1m", "backendRequest": "60s"}}, None),
        ],
    )
    def test_the_api_server_says_what_cannot_be(self, change: dict[str, Any], words: str | None) -> None:
        schema = schema_of("ModelDeployment")["properties"]["spec"]["properties"]["traffic"]
        value = {k: v for k, v in (HOSTS | change).items() if v is not None}
        messages = [message for _, message in broken_rules(schema, value)]
        assert [words in m for m in messages] == [True] if words else messages == []

    def test_a_duration_is_one_of_the_gateway_api(self) -> None:
        with pytest.raises(ValidationError):
            traffic(request="1.5s")


SHAPED: Object = {
    "requestHeaderModifier": {"set": [{"name": "x-tenant", "value": "shop"}], "remove": ["x-debug"]},
    "responseHeaderModifier": {"add": [{"name": "x-served-by", "value": "models"}]},
    "extensionRefs": [{"group": "traefik.io", "kind": "Middleware", "name": "login"}],
}
PAGES: Object = {"cors": {"allowOrigins": ["https://app.example.com"], "allowHeaders": ["content-type"]}}
SHAPES = ["RequestHeaderModifier", "ResponseHeaderModifier", "ExtensionRef"]
OF_GRPC = ["RequestHeaderModifier", "ExtensionRef"]


def filtered(filters: Object) -> Extras:
    return extras_of(Traffic.model_validate(HOSTS | {"filters": filters}), TIMED)


def types(route: Object) -> list[list[str]]:
    """By rule the types of its filters."""
    return [[f["type"] for f in rule.get("filters", [])] for rule in route["spec"]["rules"]]


class TestFilters:
    def test_every_rule_of_every_route_has_them_as_the_gateway_api_writes_them(self) -> None:
        extras, more = filtered(SHAPED), {"rollout": TEST, "matched": "v2"}
        assert types(made(extras, **more)) == [SHAPES] * 4
        assert types(made(extras, "GRPCRoute", **more)) == [OF_GRPC] * 2, "a login holds for both protocols"
        request, response, login = made(extras)["spec"]["rules"][0]["filters"]
        assert request["requestHeaderModifier"] == SHAPED["requestHeaderModifier"]
        assert response["responseHeaderModifier"] == SHAPED["responseHeaderModifier"]
        assert login["extensionRef"] == SHAPED["extensionRefs"][0]

    def test_a_previews_routes_have_them_too(self) -> None:
        preview = Rollout.model_validate({"blueGreen": {"preview": {"http": {"hostnames": ["p.x"]}}}})
        routes = GatewayRouter("digits", traffic(), preview, preview="v2", extras=filtered(SHAPED)).children(
            OWNER, STABLE
        )
        assert {r["metadata"]["name"]: types(r)[0] for r in routes if r["kind"] == "HTTPRoute"} == {
            "digits": SHAPES,
            "digits-preview": SHAPES,
        }

    def test_browsers_may_ask_first_where_pages_may_call(self) -> None:
        extras = filtered(PAGES | SHAPED)
        route, grpc = made(extras), made(extras, "GRPCRoute")
        assert types(route) == [["CORS", *SHAPES]] * 2 and types(grpc) == [OF_GRPC]
        for rule in route["spec"]["rules"]:
            by_method: dict[str, set[str]] = {}
            for match in rule["matches"]:
                by_method.setdefault(match["method"], set()).add(match["path"]["value"])
            assert by_method.pop("OPTIONS") == set().union(*by_method.values())
        assert route["spec"]["rules"][0]["filters"][0]["cors"] == {
            "allowOrigins": ["https://app.example.com"], "allowMethods": ["GET", "POST"],
            "allowHeaders": ["content-type"], "allowCredentials": False, "maxAge": 5,
        }  # fmt: skip
        assert overly_open_routes({("HTTPRoute", "digits"): route}, "digits") == []
        shut = {"spec": {"rules": [rule | {"filters": []} for rule in route["spec"]["rules"]]}}
        assert overly_open_routes({("HTTPRoute", "digits"): route | shut}, "digits"), "only where CORS is"

    def test_a_route_is_taken_up_with_its_filters(self) -> None:
        extras = filtered(SHAPED)
        router = GatewayRouter("digits", traffic(), extras=extras)
        for written, carried in ((extras, True), (extras_of(traffic(), TIMED), False)):
            routes = [made(written), made(written, "GRPCRoute")]
            live = {(r["kind"], "digits"): r | {"status": b.answered(r, b.ACCEPTED)} for r in routes}
            assert router.programmed(STABLE, live, {}).programmed == carried

    def test_where_spec_is_not_granted_they_stay_and_others_go(self) -> None:
        route = made(filtered(SHAPED | PAGES))
        mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "x", "port": 1}}}
        rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": "elsewhere.example.com"}}
        for rule in route["spec"]["rules"]:
            rule["filters"] = [mirror, *rule["filters"], rewrite]
        [kept] = FrozenRoutes("digits", {("HTTPRoute", "digits"): route}).children(OWNER, STABLE)
        assert types(kept) == [["CORS", *SHAPES]] * 2 and extras_in(kept) == filtered(SHAPED | PAGES)

    def test_without_any_there_is_no_field(self) -> None:
        for filters in ({}, {"requestHeaderModifier": {}}):
            assert all("filters" not in rule for rule in made(filtered(filters))["spec"]["rules"])

    @pytest.mark.parametrize(
        ("filters", "known", "words"),
        [
            (SHAPED, facts(REQUEST_TIMEOUT), "responseHeaderModifier: GatewayClass one of Gateway"),
            (PAGES, facts(RESPONSE_HEADERS), "does not support HTTPRouteCORS; take another gateway"),
            (PAGES | SHAPED, facts(RESPONSE_HEADERS, CORS), None),
            ({"requestHeaderModifier": SHAPED["requestHeaderModifier"]}, facts(REQUEST_TIMEOUT), None),
            (PAGES | SHAPED, GatewayFacts("ml/public"), None),
            (PAGES | SHAPED, None, None),
        ],
    )
    def test_a_gateway_that_is_known_to_lack_one_is_named(
        self, filters: Object, known: GatewayFacts | None, words: str | None
    ) -> None:
        problem = extras_problem(Traffic.model_validate(HOSTS | {"filters": filters}), known)
        if words is None:
            assert problem is None
        else:
            assert problem is not None and problem.reason == "FilterUnsupported" and words in problem.message

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"filters": {}, "gateway": None, "http": None, "grpc": None}, "filters are the gateway's"),
            ({"filters": PAGES, "http": None}, "filters.cors is of HTTP"),
            ({"filters": SHAPED, "http": None}, "filters.responseHeaderModifier is of HTTP"),
            ({"filters": {"cors": {"allowOrigins": ["*", "https://a.x"]}}}, "allowOrigins: * stands alone"),
            ({"filters": {"cors": {"allowOrigins": ["*"]}} | SHAPED}, None),
        ],
    )
    def test_the_api_server_says_what_cannot_be(self, change: dict[str, Any], words: str | None) -> None:
        schema = schema_of("ModelDeployment")["properties"]["spec"]["properties"]["traffic"]
        value = {k: v for k, v in (HOSTS | change).items() if v is not None}
        messages = [message for _, message in broken_rules(schema, value)]
        assert [words in m for m in messages] == [True] if words else messages == []


class TestSeveralGateways:
    BOTH: ClassVar[Object] = HOSTS | {
        "gateway": {"name": "public", "namespace": "gateways", "sectionName": "https"},
        "furtherGateways": [{"name": "inside"}],
    }

    def test_the_routes_name_them_all(self) -> None:
        common = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
        parents = [
            {"name": "public", "namespace": "gateways", "sectionName": "https", **common},
            {"name": "inside", "namespace": "ml", **common},
        ]
        preview = Rollout.model_validate({"blueGreen": {"preview": {"http": {"hostnames": ["p.x"]}}}})
        router = GatewayRouter("digits", Traffic.model_validate(self.BOTH), preview, preview="v2")
        routes = router.children(OWNER, STABLE)
        assert len(routes) == 3 and [r["spec"]["parentRefs"] for r in routes] == [parents] * 3

    @pytest.mark.parametrize(("other", "refused"), [("one", False), ("", False), ("two", True)])
    def test_they_are_of_one_class(self, other: str, refused: bool) -> None:
        spec = b.spec(1, traffic=self.BOTH)
        first = facts(METHOD_MATCHING, "GRPCRoute")
        known = replace(first, further=(GatewayFacts("ml/inside", other),))
        problem = GATEWAY_API.spec_problem(spec, {"HTTPRoute", "GRPCRoute"}, known, CONFIG)
        assert (problem is not None) == refused
        if problem is not None:
            assert problem.reason == "GatewayClassesDiffer"
            assert problem.message == (
                "spec.traffic.furtherGateways[0]: Gateway ml/inside is of GatewayClass two, and that in"
                " spec.traffic.gateway of one; name Gateways of one class"
            )

    def test_the_first_one_comes_first(self) -> None:
        schema = schema_of("ModelDeployment")["properties"]["spec"]["properties"]["traffic"]
        value = {"furtherGateways": [{"name": "inside"}]}
        assert [m for _, m in broken_rules(schema, value)] == [
            "furtherGateways come beside gateway: set it, too"
        ]
