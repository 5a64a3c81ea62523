"""Who counts the requests follows the gateway's controller, unless the configuration says it."""

from __future__ import annotations

from typing import get_args

import pytest

from modelrollout.analysis.providers.prometheus.sources import REQUESTS
from modelrollout.config import GatewayMetrics, Profile
from modelrollout.traffic.counting import PROFILES, counting
from modelrollout.traffic.gateway_api.gateway import missing_gateway, unread_gateway
from modelrollout.traffic.gateway_facts import GatewayFacts

AUTO = GatewayMetrics()


def of_controller(controller: str) -> GatewayFacts:
    return GatewayFacts("gateways/public", "shiny", controller)


@pytest.mark.parametrize(("controller", "profile"), PROFILES.items())
def test_the_profile_follows_the_controller(controller: str, profile: Profile) -> None:
    found = counting(AUTO, of_controller(controller))
    assert (found.profile, found.unknown, found.uncounted) == (profile, None, None)


def test_every_profile_has_a_source() -> None:
    assert set(REQUESTS) == set(get_args(Profile)) and set(PROFILES.values()) <= set(REQUESTS)


def test_an_explicit_profile_wins_whatever_is_known_of_the_gateway() -> None:
    for facts in (of_controller("traefik.io/gateway-controller"), of_controller("example.com/gw"), None):
        found = counting(GatewayMetrics(profile="istio"), facts)
        assert (found.profile, found.unknown, found.uncounted) == ("istio", None, None)
    assert counting(GatewayMetrics(profile="none"), of_controller("istio.io/gateway-controller")).profile == (
        "none"
    )


def test_a_controller_without_a_profile_is_named_and_tritons_counters_are_used() -> None:
    found = counting(AUTO, of_controller("gateway.nginx.org/nginx-gateway-controller"))
    assert found.profile == "none" and found.unknown is None and found.uncounted is not None
    assert found.uncounted.reason == "CountedByServers"
    for part in ("GatewayClass shiny", "gateways/public", "gateway.nginx.org/nginx-gateway-controller"):
        assert part in found.uncounted.message


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (None, "GatewayUnknown"),
        (unread_gateway("gateways", "public"), "GatewayUnknown"),
        (missing_gateway("gateways", "public", own=False), "GatewayMissing"),
    ],
)
def test_a_class_that_cannot_be_read_is_no_class_without_a_profile(
    facts: GatewayFacts | None, reason: str
) -> None:
    found = counting(AUTO, facts)
    assert found.uncounted is None and found.unknown is not None and found.unknown.reason == reason
