"""What a gateway is known to lack, and what is known of nothing."""

from __future__ import annotations

from modelrollout.testing import builders as b
from modelrollout.traffic.gateway_api.features import missing_features, needed_features, route_problem
from modelrollout.traffic.gateway_api.gateway import supported_features, unread_gateway
from modelrollout.traffic.gateway_facts import GatewayFacts

METHOD = "HTTPRouteMethodMatching"
SPEC = b.spec(
    1, traffic={"gateway": {"name": "g"}, "http": {"hostnames": ["a.x"]}, "grpc": {"hostnames": ["b.x"]}}
)


def facts(*features: str) -> GatewayFacts:
    return GatewayFacts("ml/g", "simple", "example.com/gateway", frozenset(features) or None)


def test_both_ways_of_listing_features_are_read() -> None:
    assert supported_features({"status": {"supportedFeatures": [{"name": "A"}, {"name": "B"}]}}) == {"A", "B"}
    assert supported_features({"status": {"supportedFeatures": ["A"]}}) == {"A"}
    for says_nothing in ({"status": {}}, {}, {"status": {"supportedFeatures": []}}):
        assert supported_features(says_nothing) is None


def test_what_is_known_to_be_missing() -> None:
    needed = needed_features(SPEC)
    assert needed == {
        "HTTPRoute": "spec.traffic.http",
        METHOD: "spec.traffic.http",
        "GRPCRoute": "spec.traffic.grpc",
    }
    assert missing_features(needed, frozenset({"Gateway", "HTTPRoute", METHOD})) == ("GRPCRoute",)
    assert missing_features(needed, frozenset({"Gateway", "HTTPRoute", METHOD, "GRPCRoute"})) == ()
    assert missing_features(["HTTPRouteRequestMirror"], frozenset({"HTTPRoute"})) == (
        "HTTPRouteRequestMirror",
    )


def test_what_is_not_said_is_not_missing() -> None:
    assert missing_features(["GRPCRoute", "HTTPRouteRequestMirror"], None) == ()
    assert missing_features(["GRPCRoute"], frozenset({"HTTPRouteQueryParamMatching"})) == (), (
        "a list without what every gateway has"
    )


def test_a_route_is_refused_only_for_what_is_known_to_be_missing() -> None:
    problem = route_problem(SPEC, facts("HTTPRoute", METHOD))
    assert problem is not None and problem.reason == "GatewayFeatureMissing"
    assert (
        problem.message.startswith("spec.traffic.grpc: GatewayClass simple of Gateway ml/g")
        and "GRPCRoute" in problem.message
    )
    by_path = route_problem(SPEC, facts("HTTPRoute", "GRPCRoute"))
    assert (
        by_path is not None
        and by_path.message.startswith("spec.traffic.http: ")
        and METHOD in by_path.message
    )
    for known in (
        facts("HTTPRoute", METHOD, "GRPCRoute"),
        facts(),
        unread_gateway("ml", "g"),
        None,
    ):
        assert route_problem(SPEC, known) is None


def test_without_a_gateway_nothing_is_needed() -> None:
    assert needed_features(b.spec(1, gateway=False)) == {}
