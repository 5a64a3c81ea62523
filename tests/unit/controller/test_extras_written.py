"""Timeouts and filters of a spec, in the cluster in memory: what its routes get, and what keeps
them as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Condition
from modelrollout.kube.kinds import GATEWAY_CLASS, HTTP_ROUTE
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

TRAFFIC = {"http": {"hostnames": ["digits.example.com"]}, "gateway": {"name": "public"}}
HEADER = {"requestHeaderModifier": {"set": [{"name": "x-tenant", "value": "shop"}]}}
KEY = {"requestHeaderModifier": {"set": [{"name": "x-modelrollout-key", "value": "stolen"}]}}
UNKNOWN = {"extensionRefs": [{"group": "traefik.io", "kind": "Middleware", "name": "login"}]}
LISTED = ("HTTPRoute", "HTTPRouteMethodMatching", "HTTPRouteRequestTimeout", "HTTPRouteBackendTimeout")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def spec(version: int = 1, traffic: Any = None, **more: Any) -> Any:
    return b.spec(version, traffic=TRAFFIC | (traffic or {}), **more)


def lists(cluster: Cluster, *features: str) -> None:
    status = {"supportedFeatures": [{"name": name} for name in features]}
    cluster.set_status(GATEWAY_CLASS, "simple", status)


async def serving(traffic: Any = None, features: tuple[str, ...] = ()) -> tuple[Cluster, Operator]:
    cluster = Cluster()
    if features:
        lists(cluster, *features)
    cluster.user(spec(traffic=traffic))
    operator = Operator(cluster)
    await operator.live()
    assert ready(cluster).status == "True"
    return cluster, operator


def ready(cluster: Cluster) -> Condition:
    return next(c for c in cluster.status.conditions if c.type == "Ready")


def carried(cluster: Cluster) -> list[tuple[Any, Any]]:
    """By rule its timeouts and filters."""
    route = cluster.find(HTTP_ROUTE)
    assert route is not None
    return [(rule.get("timeouts"), rule.get("filters") or []) for rule in route["spec"]["rules"]]


FILTER = {"type": "RequestHeaderModifier", **HEADER}


def test_what_spec_asks_for_comes_and_goes_without_a_rollout() -> None:
    async def main() -> None:
        cluster, operator = await serving(features=LISTED)
        assert carried(cluster) == [(None, []), ({"request": "0s"}, [])]
        cluster.user(spec(traffic={"filters": HEADER, "timeouts": {"request": "30s", "stream": "1h"}}))
        await operator.live(rounds=2)
        assert carried(cluster) == [({"request": "30s"}, [FILTER]), ({"request": "1h"}, [FILTER])]
        assert cluster.status.phase == "Stable" and ready(cluster).status == "True"
        cluster.user(spec())
        await operator.live(rounds=2)
        assert carried(cluster) == [(None, []), ({"request": "0s"}, [])]
        cluster.requests.clear()
        await operator.settle()
        assert cluster.requests == [], "what is settled costs nothing"

    run(main)


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        ({"filters": KEY}, "FilterNotAllowed", "x-modelrollout-key: it belongs to the operator"),
        ({"filters": UNKNOWN}, "FilterNotAllowed", "routes.extensionRefs"),
        ({"timeouts": {"backendRequest": "9s"}}, "TimeoutsUnsupported", "HTTPRouteBackendTimeout"),
        ({"filters": {"cors": {"allowOrigins": ["*"]}}}, "FilterUnsupported", "HTTPRouteCORS"),
    ],
)
@pytest.mark.parametrize("otherwise", [{}, {"model": {"uri": "s3://elsewhere/model.onnx"}}])
def test_what_may_not_be_is_said_of_a_version_that_serves_and_changes_no_route(
    asked: Any, reason: str, words: str, otherwise: dict[str, Any]
) -> None:
    """Whatever else is wrong with the spec."""

    async def main() -> None:
        cluster, operator = await serving({"filters": HEADER}, LISTED[:3])
        before = carried(cluster)
        cluster.user(spec(traffic={"filters": HEADER} | asked, **otherwise))
        await operator.live(rounds=2)
        assert (ready(cluster).status, ready(cluster).reason) == ("False", reason)
        assert words in ready(cluster).message and carried(cluster) == before
        assert reason in [e.reason for e in operator.events]
        cluster.user(spec(traffic={"filters": HEADER}))
        await operator.live(rounds=2)
        assert ready(cluster).status == "True" and carried(cluster) == before

    run(main)


def test_a_policy_that_forbids_filters_cuts_none_that_serve() -> None:
    async def main() -> None:
        cluster, operator = await serving({"filters": HEADER})
        cluster.policy("strict", gates={"filters": "Forbid"})
        await operator.live(rounds=2)
        assert (ready(cluster).reason, carried(cluster)) == ("FilterNotAllowed", [(None, [FILTER])])
        cluster.user(spec(2))
        await operator.live(rounds=1)
        assert ready(cluster).reason != "FilterNotAllowed" and carried(cluster)[0] == (None, [])

    run(main)


def test_a_class_that_cannot_be_read_any_more_costs_no_timeouts() -> None:
    async def main() -> None:
        cluster, operator = await serving({"timeouts": {"request": "30s"}}, LISTED)
        before = carried(cluster)
        assert before == [({"request": "30s"}, []), ({"request": "0s"}, [])]
        lists(cluster, "HTTPRoute", "HTTPRouteMethodMatching")
        await operator.live(rounds=2)
        assert ready(cluster).reason == "TimeoutsUnsupported" and carried(cluster) == before

    run(main)


def test_retries_that_a_person_adds_to_a_route_go_again() -> None:
    """They would hide what fails on a version on trial."""

    async def main() -> None:
        cluster, operator = await serving()
        cluster.change(HTTP_ROUTE, "digits", lambda o: o["spec"]["rules"][0].update(retry={"attempts": 3}))
        await operator.settle()
        route = cluster.find(HTTP_ROUTE)
        assert route is not None and "retry" not in route["spec"]["rules"][0]

    run(main)
