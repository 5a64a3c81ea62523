"""For a gateway that counts a backend by its position, each revision keeps its own through a
rollout; all others get the routes that they always had.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from modelrollout.analysis.target import Counting
from modelrollout.api.v1alpha1 import Rollout, Traffic
from modelrollout.config import Profile
from modelrollout.resources.common import Owner
from modelrollout.rollout.desired.traffic import positions, split
from modelrollout.rollout.snapshot import Split
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import CONFIG
from modelrollout.traffic.gateway_api.features import ENVOY_GATEWAY_CONTROLLER
from modelrollout.traffic.gateway_api.kind import GATEWAY_API
from modelrollout.traffic.gateway_api.router import FrozenRoutes, GatewayRouter
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.registry import router_for

OWNER = Owner("uid", "digits", "ml", "digits")
SPEC = Traffic.model_validate(
    {
        "gateway": {"name": "public", "namespace": "gateways"},
        "http": {"hostnames": ["digits.x"]},
        "grpc": {"hostnames": ["grpc.x"]},
    }
)
TEST = Rollout.model_validate({"abTest": {"headers": [{"name": "x-beta", "value": "1"}]}})
PREVIEW = Rollout.model_validate({"blueGreen": {"preview": {"http": {"hostnames": ["next.x"]}}}})
Backends = list[tuple[str, int]]


def backends(routes: list[dict[str, Any]]) -> list[Backends]:
    """Of every rule of every route."""
    return [
        [(ref["name"], ref["weight"]) for ref in rule["backendRefs"]]
        for route in routes
        for rule in route["spec"]["rules"]
    ]


@pytest.mark.parametrize("weights", [(("v1", 100),), (("v1", 90), ("v2", 10)), (("v2", 100),)])
def test_each_revision_keeps_its_position_weight_0_included(weights: Split) -> None:
    routes = GatewayRouter("digits", SPEC, positions=("v1", "v2")).children(OWNER, weights)
    expected = [(name, dict(weights).get(name, 0)) for name in ("v1", "v2")]
    assert backends(routes) == [expected, expected]


@pytest.mark.parametrize(("rollout", "matched", "preview"), [(TEST, "v2", None), (PREVIEW, None, "v2")])
def test_a_rule_for_headers_and_a_preview_shift_nothing(
    rollout: Rollout, matched: str | None, preview: str | None
) -> None:
    router = GatewayRouter("digits", SPEC, rollout, matched, preview, positions=("v1", "v2"))
    of_rules = backends(router.children(OWNER, (("v1", 100),)))
    assert all([name for name, _ in rule] == ["v1", "v2"] for rule in of_rules)
    assert [("v1", 0), ("v2", 100)] in of_rules and [("v1", 100), ("v2", 0)] in of_rules


def test_each_backend_has_a_filter_that_changes_nothing() -> None:
    routes = GatewayRouter("digits", SPEC, positions=("v1", "v2")).children(OWNER, (("v1", 100),))
    for route in routes:
        for rule in route["spec"]["rules"]:
            for ref in rule["backendRefs"]:
                [only] = ref["filters"]
                assert only["type"] == "RequestHeaderModifier"
                assert set(only["requestHeaderModifier"]) == {"remove"}


def test_without_positions_routes_are_as_ever() -> None:
    routes = GatewayRouter("digits", SPEC, TEST, "v2").children(OWNER, (("v1", 90), ("v2", 10)))
    assert backends(routes) == [[("v2", 100)], [("v1", 90), ("v2", 10)]] * 2
    assert not any(
        "filters" in ref for r in routes for rule in r["spec"]["rules"] for ref in rule["backendRefs"]
    )


def live(routes: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    for route in routes:
        route["metadata"]["generation"] = 1
        route["status"] = b.answered(route, b.ACCEPTED)
    return {(r["kind"], r["metadata"]["name"]): r for r in routes}


def test_the_weight_counts_as_written_only_at_the_right_positions() -> None:
    weights, at = (("v1", 90), ("v2", 10)), ("v1", "v2")
    router = GatewayRouter("digits", SPEC, positions=at)
    assert router.programmed(weights, live(router.children(OWNER, weights)), {}).programmed
    for other in (("v2", "v1"), ()):
        routes = GatewayRouter("digits", SPEC, positions=other).children(OWNER, weights)
        assert not router.programmed(weights, live(routes), {}).programmed


def test_routes_that_are_frozen_keep_the_positions() -> None:
    routes = live(GatewayRouter("digits", SPEC, positions=("v1", "v2")).children(OWNER, (("v1", 100),)))
    frozen = FrozenRoutes("digits", routes, positions=("v1", "v2")).children(OWNER, (("v1", 75), ("v2", 25)))
    assert backends(frozen) == [[("v1", 75), ("v2", 25)]] * 2


@pytest.mark.parametrize("stage", ["Canary", "Promote", "Bake"])
def test_the_trial_is_second_until_the_rollout_ends(stage: str) -> None:
    v1, v2 = b.revision_name(1), b.revision_name(2)
    assert positions(b.second(stage, changes={"step": b.step(0, 5)})) == (v1, v2)
    assert positions(b.second("Provision")) == (v1,)


def test_every_revision_with_traffic_has_a_position() -> None:
    for stage in ("Canary", "Promote", "Bake", "Revert", "Provision"):
        s = b.second(stage, changes={"step": b.step(0, 5)})
        assert set(dict(split(s))) <= set(positions(s)), stage


@pytest.mark.parametrize(
    ("profile", "apart"), [("envoy-gateway", True), ("traefik", False), ("istio", False)]
)
def test_only_the_profile_that_needs_it_gets_other_routes(profile: Profile, apart: bool) -> None:
    s = replace(b.second("Canary", changes={"step": b.step(0, 5)}), counting=Counting(profile))
    for granted in (True, False):
        routes, before = GatewayRouter("digits", SPEC).children(OWNER, (("v1", 100),)), None
        while routes != before:  # in stages
            written, before = live(routes), copy.deepcopy(routes)
            routes = router_for(s, written, CONFIG, granted=granted).children(OWNER, split(s))
            routes = list(live(routes).values())
        assert routes
        for route in routes:
            for rule in route["spec"]["rules"]:
                assert [r["name"] for r in rule["backendRefs"]] == [b.revision_name(1), b.revision_name(2)]
                assert all(("filters" in ref) == apart for ref in rule["backendRefs"])


@pytest.mark.parametrize(
    ("controller", "apart"), [(ENVOY_GATEWAY_CONTROLLER, True), (None, True), ("traefik.io/x", False)]
)
@pytest.mark.parametrize("profile", ["none", None])
def test_backends_that_have_clusters_by_position_keep_them_at_envoy(
    profile: Profile | None, controller: str | None, apart: bool
) -> None:
    """For example once sessions no longer stick: without the filter the cluster is another one,
    which Envoy does not have yet.
    """
    s = replace(b.second("Canary", changes={"step": b.step(0, 5)}), counting=Counting(profile))
    present = live(GatewayRouter("digits", SPEC, positions=positions(s)).children(OWNER, split(s)))
    facts = GatewayFacts("ml/public", "class", controller)
    for granted in (True, False):
        router = router_for(s, present, CONFIG, granted=granted, gateway=facts)
        routes = router.children(OWNER, split(s))
        assert routes
        for route in routes:
            for rule in route["spec"]["rules"]:
                assert all(("filters" in ref) == apart for ref in rule["backendRefs"])


def test_routes_of_a_spec_that_cannot_be_read_keep_positions_that_they_have() -> None:
    s = b.second("Canary", changes={"step": b.step(0, 5)})
    for at in ((b.revision_name(1), b.revision_name(2)), ()):
        present = live(
            GatewayRouter("digits", SPEC, positions=at).children(OWNER, ((b.revision_name(1), 100),))
        )
        router = GATEWAY_API.frozen(s, present, CONFIG, frozenset(), frozenset(), None)
        assert router is not None
        for route in router.children(OWNER, ((b.revision_name(1), 100),)):
            for rule in route["spec"]["rules"]:
                assert [ref["name"] for ref in rule["backendRefs"]] == list(at or (b.revision_name(1),))
                assert all(("filters" in ref) == bool(at) for ref in rule["backendRefs"])
