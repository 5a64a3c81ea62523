"""The strategies as objects: real observe, decide and act against the cluster in memory."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from modelrollout.api import names
from modelrollout.controller.observe.observation import Observation, observe
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    GATEWAY_CLASS,
    GRPC_ROUTE,
    HTTP_ROUTE,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Resource,
)
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, KEY, Cluster, Operator

V1, V2 = b.revision_name(1), b.revision_name(2)
TRAFFIC = {
    "http": {"hostnames": ["digits.example.com"]},
    "grpc": {"hostnames": ["digits-grpc.example.com"]},
    "gateway": {"name": "public"},
}
BLUE = {
    "blueGreen": {"preview": {"http": {"hostnames": ["preview.example.com"]}}, "autoPromote": False},
    "bake": "30s",
    "scaleDownDelay": "20s",
}
TEST = {"abTest": {"headers": [{"name": "x-group", "value": "b"}]}}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def on_trial(rollout: dict[str, Any], **facts: Any) -> tuple[Cluster, Operator]:
    """Version 1 is stable, version 2 is on trial and judged to be neither good nor bad yet."""
    cluster = Cluster()
    cluster.user(b.spec(1, rollout=rollout, **facts))
    operator = Operator(cluster)
    await operator.live()
    operator.assessment = b.judged("Inconclusive")
    cluster.user(b.spec(2, rollout=rollout, **facts))
    await operator.live(rounds=8)
    assert (
        cluster.status.rollout
        and cluster.status.rollout.step
        and cluster.status.rollout.step.phase == "Observing"
    ), cluster.status.rollout
    return cluster, operator


def backends(o: Any, rule: int = -1) -> dict[str, int]:
    return {ref["name"]: ref["weight"] for ref in o["spec"]["rules"][rule]["backendRefs"]}


def say(cluster: Cluster, verb: str, revision: str = V2, step: str = "") -> None:
    cluster.annotate(revision, verb, f"{step} 7f3a".strip())


def test_blue_green_from_preview_to_stable() -> None:
    async def main() -> None:
        cluster, operator = await on_trial(BLUE, traffic=TRAFFIC)
        shown, service = cluster.find(HTTP_ROUTE, "digits-preview"), cluster.find(SERVICE, "digits-preview")
        assert shown and backends(shown) == {V2: 100} and cluster.find(GRPC_ROUTE, "digits-preview") is None
        assert service and service["spec"]["selector"][names.LABEL_REVISION] == V2
        assert cluster.weights() == {V1: 100} == cluster.weights(GRPC_ROUTE)
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=2)
        assert (cluster.status.phase, cluster.status.step, cluster.weights()) == ("Paused", "2/2", {V1: 100})
        say(cluster, "promote", step="2/2")
        await operator.live(rounds=3)
        assert (
            cluster.status.phase == "Baking"
            and cluster.weights() == {V2: 100}
            and cluster.status.stable == cluster.status.stable
        )
        assert set(cluster.all(DEPLOYMENT)) == {V1, V2}
        budget = cluster.find(POD_DISRUPTION_BUDGET)
        assert budget and budget["spec"]["selector"]["matchLabels"][names.LABEL_REVISION] == V2
        await operator.live(rounds=8)
        assert (
            cluster.status.stable
            and cluster.status.stable.revision == V2
            and set(cluster.all(DEPLOYMENT)) == {V1, V2}
        )
        await operator.live(rounds=6)
        assert set(cluster.all(DEPLOYMENT)) == {V2}, "after its delay, without a write of status"
        shown = cluster.find(HTTP_ROUTE, "digits-preview")
        assert shown and backends(shown) == {V2: 100}, "a preview always leads somewhere"

    run(main())


def test_a_regression_in_bake_gives_everything_back() -> None:
    async def main() -> None:
        cluster, operator = await on_trial(
            {"bake": "10m", "canary": {"steps": [{"weight": 50}]}}, traffic=TRAFFIC
        )
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=3)
        assert cluster.status.phase == "Baking" and cluster.weights() == {V2: 100}
        operator.assessment = b.judged("Failed")
        await operator.live(rounds=4)
        assert (
            cluster.weights() == {V1: 100} and cluster.status.stable and cluster.status.stable.revision == V1
        )
        assert cluster.status.rollout and cluster.status.rollout.outcome == "RolledBack"

    run(main())


def test_a_test_by_headers_and_its_end() -> None:
    async def main() -> None:
        cluster, operator = await on_trial(TEST, traffic=TRAFFIC)
        for kind in (HTTP_ROUTE, GRPC_ROUTE):
            route = cluster.find(kind)
            assert (
                route
                and len(route["spec"]["rules"]) == 2
                and backends(route, 0) == {V2: 100}
                and backends(route) == {V1: 100}
            )
            assert route["spec"]["rules"][0]["matches"][0]["headers"][0]["name"] == "x-group"
        operator.assessment = b.judged("Failed")
        await operator.live(rounds=4)
        for kind in (HTTP_ROUTE, GRPC_ROUTE):
            route = cluster.find(kind)
            assert route and len(route["spec"]["rules"]) == 1 and backends(route) == {V1: 100}

    run(main())


def test_a_test_at_rest_makes_no_request() -> None:
    async def main() -> None:
        cluster, operator = await on_trial(TEST, traffic=TRAFFIC)
        cluster.requests.clear()
        for _ in range(3):
            assert await operator.once()
        assert cluster.requests == []

    run(main())


def test_blue_green_without_a_gateway() -> None:
    async def main() -> None:
        cluster, operator = await on_trial({"blueGreen": {}}, gateway=False)
        service, shown = cluster.find(SERVICE), cluster.find(SERVICE, "digits-preview")
        assert service and service["spec"]["selector"][names.LABEL_REVISION] == V1
        assert shown and shown["spec"]["selector"][names.LABEL_REVISION] == V2
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=4)
        service = cluster.find(SERVICE)
        assert (
            service
            and service["spec"]["selector"][names.LABEL_REVISION] == V2
            and cluster.status.phase == "Stable"
        )

    run(main())


def test_a_restart_is_an_annotation_of_the_pods_that_stays() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1, traffic=TRAFFIC))
        operator = Operator(cluster)
        await operator.live()
        say(cluster, "restart", V1)
        await operator.live(rounds=2)

        def stands() -> str | None:
            live = cluster.find(DEPLOYMENT, V1)
            assert live
            actual: str | None = live["spec"]["template"]["metadata"]["annotations"].get(
                names.ANNOTATION_RESTARTED
            )
            return actual

        first = stands()
        assert first
        cluster.user(b.spec(1, traffic=TRAFFIC, replicas=4))
        await operator.live(rounds=2)
        assert stands() == first, "scaled, not restarted"
        cluster.change(MODEL_DEPLOYMENT, b.NAME, lambda o: o.pop("status"))
        await Operator(cluster).live(rounds=2)
        cluster.user(b.spec(1, traffic=TRAFFIC, replicas=3))
        await Operator(cluster).live(rounds=2)
        assert stands() == first, "a lost status restarts nothing"

    run(main())


def test_abort_works_with_a_spec_that_cannot_be_read() -> None:
    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)
        assert cluster.weights() == {V1: 75, V2: 25}
        before = copy.deepcopy(cluster.find(HTTP_ROUTE))
        cluster.change(MODEL_DEPLOYMENT, b.NAME, lambda o: o["spec"].update(surprise=True))
        await operator.live(rounds=2)
        assert cluster.weights() == {V1: 75, V2: 25} and before is not None
        say(cluster, "abort")
        await operator.live(rounds=3)
        live = cluster.find(HTTP_ROUTE)
        assert live and cluster.weights() == {V1: 100} == cluster.weights(GRPC_ROUTE)
        assert (
            live["spec"]["hostnames"] == before["spec"]["hostnames"]
            and live["spec"]["parentRefs"] == before["spec"]["parentRefs"]
        )
        assert cluster.status.rollout and (cluster.status.rollout.stage, cluster.status.rollout.outcome) == (
            "Failed",
            "Aborted",
        )
        assert set(cluster.all(DEPLOYMENT)) == {V1, V2}, "nothing else changes"
        cluster.now += timedelta(minutes=1)
        assert await operator.settle() is None

    run(main())


def test_what_the_gateway_is_known_to_lack_is_refused() -> None:
    async def main() -> None:
        cluster = Cluster()
        kind = {
            "metadata": {"name": "simple"},
            "spec": {"controllerName": "example.com/gateway"},
            "status": {"supportedFeatures": [{"name": "HTTPRoute"}, {"name": "HTTPRouteMethodMatching"}]},
        }
        cluster.objects[GATEWAY_CLASS, "", "simple"] = kind
        cluster.user(b.spec(1, traffic=TRAFFIC))
        operator = Operator(cluster)
        await operator.live(rounds=2)
        stalled = next(c for c in cluster.status.conditions if c.type == "Stalled")
        assert (
            stalled.reason == "GatewayFeatureMissing"
            and "spec.traffic.grpc: " in stalled.message
            and "not support GRPCRoute" in stalled.message
        )

    run(main())


def test_a_test_without_a_gateway_is_refused() -> None:
    """The API server refuses it too, unless its definitions are older."""

    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1, gateway=False, rollout=TEST))
        operator = Operator(cluster)
        await operator.live(rounds=2)
        assert next(c for c in cluster.status.conditions if c.type == "Stalled").reason == "GatewayRequired"

    run(main())


def widen(cluster: Cluster, resource: Resource, name: str = b.NAME) -> None:
    """As an earlier operator left it, or a user's edit: every rule lets everything through, but
    for its headers.
    """
    everything = {HTTP_ROUTE.kind: {"path": {"type": "PathPrefix", "value": "/"}}, GRPC_ROUTE.kind: {}}[
        resource.kind
    ]

    def edit(o: Any) -> None:
        for rule in o["spec"]["rules"]:
            headers = rule["matches"][0].get("headers")
            rule["matches"] = [everything | ({"headers": headers} if headers else {})]

    cluster.change(resource, name, edit)


def opened(cluster: Cluster, resource: Resource, name: str = b.NAME) -> list[int]:
    route = cluster.find(resource, name)
    assert route
    return [len(rule["matches"]) for rule in route["spec"]["rules"]]


def test_routes_that_open_too_much_are_narrowed_whatever_the_spec_says() -> None:
    async def main() -> None:
        cluster, operator = await on_trial(TEST, traffic=TRAFFIC)
        for readable in (True, False):
            if not readable:
                cluster.change(MODEL_DEPLOYMENT, b.NAME, lambda o: o["spec"].update(surprise=True))
                await operator.live(rounds=2)
            before = {
                resource: copy.deepcopy(cluster.find(resource)) for resource in (HTTP_ROUTE, GRPC_ROUTE)
            }
            for resource in before:
                widen(cluster, resource)
                assert opened(cluster, resource) == [1, 1]
            await operator.live(rounds=2)
            for resource, was in before.items():
                now = cluster.find(resource)
                assert now and was and now["spec"] == was["spec"], "the same headers, weights and names"
                assert opened(cluster, resource) == [10, 10]
            told = [e.message for e in operator.events if e.reason == "RoutesNarrowed"]
            assert told and "HTTPRoute digits, GRPCRoute digits" in told[-1]

    run(main())


def test_a_previews_routes_are_narrowed_with_a_spec_that_cannot_be_read_too() -> None:
    async def main() -> None:
        cluster, operator = await on_trial(BLUE, traffic=TRAFFIC)
        cluster.change(MODEL_DEPLOYMENT, b.NAME, lambda o: o["spec"].update(surprise=True))
        widen(cluster, HTTP_ROUTE, "digits-preview")
        widen(cluster, HTTP_ROUTE)
        await operator.live(rounds=2)
        assert opened(cluster, HTTP_ROUTE, "digits-preview") == [10] == opened(cluster, HTTP_ROUTE)

    run(main())


def test_a_route_that_is_too_wide_does_not_count_as_taken_up() -> None:
    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)

        def looked() -> Observation:
            observation = observe(
                operator.store,
                KEY,
                CONFIG,
                frozenset({HTTP_ROUTE.kind, GRPC_ROUTE.kind}),
                operator.lookups.hostnames.known(),
            )
            assert observation
            return observation

        assert looked().traffic.programmed and looked().observed.overly_open == ()
        widen(cluster, GRPC_ROUTE)
        assert not looked().traffic.programmed and looked().observed.overly_open == ("GRPCRoute digits",)

    run(main())


def test_a_route_from_a_backup_without_owners_is_narrowed_too() -> None:
    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)
        widen(cluster, HTTP_ROUTE)
        cluster.change(HTTP_ROUTE, b.NAME, lambda o: o["metadata"].pop("ownerReferences"))
        await operator.live(rounds=2)
        assert opened(cluster, HTTP_ROUTE) == [10]

    run(main())


def test_routes_are_narrowed_before_anything_that_may_be_refused() -> None:
    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)
        widen(cluster, HTTP_ROUTE)
        cluster.remove(SERVICE, V2)

        def refused(verb: str, resource: Resource, name: str) -> None:
            if verb in ("create", "apply") and resource == SERVICE:
                raise Forbidden(403, "Forbidden", "no more Services")

        cluster.before = refused
        await operator.settle(limit=4)
        assert opened(cluster, HTTP_ROUTE) == [10] and "RoutesNarrowed" in [e.reason for e in operator.events]

    run(main())


def led(cluster: Cluster) -> dict[str, int]:
    route = cluster.find(HTTP_ROUTE)
    assert route
    return {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][-1]["backendRefs"]}


def test_a_deployment_that_cannot_be_written_holds_up_no_way_back() -> None:
    """What a user has written into its template is such that the operator may not write it."""

    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)
        assert led(cluster) == {V1: 75, V2: 25}

        def refused(verb: str, resource: Resource, name: str) -> None:
            if verb == "apply" and resource == DEPLOYMENT and name == V1:
                raise Forbidden(403, "Forbidden", "volumes of pods are emptyDir and secret")

        cluster.before = refused
        cluster.change(
            DEPLOYMENT, V1, lambda o: o["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=5)
        )
        cluster.annotate(V2, "abort", "n1")
        await operator.live(rounds=4)
        assert led(cluster) == {V1: 100}
        live = cluster.find(MODEL_DEPLOYMENT)
        assert live and "volumes of pods are emptyDir and secret" in str(live["status"]["conditions"])

    run(main())


def test_a_route_that_cannot_be_made_narrow_as_it_is_holds_up_no_way_back() -> None:
    """A user has written a filter into it, too, which the operator may not write."""

    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)
        apply = cluster.apply

        async def but(resource: Resource, obj: Any, **guards: Any) -> Any:
            filters = [
                f
                for rule in (obj["spec"].get("rules") or [] if resource == HTTP_ROUTE else [])
                for f in rule.get("filters") or []
            ]
            if filters:
                raise Forbidden(403, "Forbidden", "they redirect and rewrite nothing")
            return await apply(resource, obj, **guards)

        cluster.apply = but  # type: ignore[method-assign]
        widen(cluster, HTTP_ROUTE)
        cluster.change(
            HTTP_ROUTE,
            b.NAME,
            lambda o: o["spec"]["rules"][0].update(filters=[{"type": "URLRewrite", "urlRewrite": {}}]),
        )
        cluster.annotate(V2, "abort", "n1")
        await operator.live(rounds=4)
        assert led(cluster) == {V1: 100} and opened(cluster, HTTP_ROUTE) == [10]

    run(main())


def test_a_deployment_that_lost_our_label_gets_it_back_and_no_new_pods() -> None:
    """What is not seen is not made anew: its template would be that of pods that come up."""

    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)
        for kind in (MODEL_REVISION, DEPLOYMENT):  # as an earlier operator rendered it
            cluster.change(
                kind,
                V1,
                lambda o: o["spec"]["template"]["metadata"]["annotations"].pop(names.ANNOTATION_HARDENED),
            )
        await operator.settle()
        before = copy.deepcopy(cluster.find(DEPLOYMENT, V1))
        assert before
        cluster.change(DEPLOYMENT, V1, lambda o: o["metadata"].pop("labels"))
        await operator.settle()
        now = cluster.find(DEPLOYMENT, V1)
        assert (
            now
            and now["metadata"]["labels"] == before["metadata"]["labels"]
            and now["spec"] == before["spec"]
        )

    run(main())


def test_pods_that_a_newer_operator_has_hardened_stay_as_they_are() -> None:
    """Going back to this one restarts nothing, and going forward again neither."""

    async def main() -> None:
        cluster, operator = await on_trial({"canary": {"steps": [{"weight": 25}]}}, traffic=TRAFFIC)

        def newer(o: Any) -> None:
            template = o["spec"]["template"]
            template["metadata"]["annotations"][names.ANNOTATION_HARDENED] = "7"
            template["spec"]["containers"][0]["args"].append("--of-the-next-version")

        cluster.change(
            MODEL_REVISION,
            V1,
            lambda o: o["spec"]["template"]["metadata"]["annotations"].pop(names.ANNOTATION_HARDENED),
        )
        cluster.change(DEPLOYMENT, V1, newer)
        before = copy.deepcopy(cluster.find(DEPLOYMENT, V1))
        await operator.live(rounds=2)
        now = cluster.find(DEPLOYMENT, V1)
        assert before and now and now["spec"]["template"] == before["spec"]["template"]
        assert not [c for c in cluster.status.conditions if c.type == "Hardened"]

    run(main())


def test_what_is_sent_to_a_preview_is_not_counted_with_everybodys_requests() -> None:
    """A gateway counts by Service: a wrong model was proven right by requests that its author chose
    and sent to the preview in the step of 5 %.
    """

    async def main() -> None:
        cluster = Cluster()
        cluster.policy("production", gates={"metrics": [{"name": "errors", "maxIncrease": 0.01}]})
        shown = {"blueGreen": {**BLUE["blueGreen"], "autoPromote": True, "for": "1s"}}
        cluster.user(b.spec(1, rollout=shown, traffic=TRAFFIC))
        operator = Operator(cluster)
        await operator.live()
        operator.assessment = b.judged("Inconclusive")
        cluster.user(b.spec(2, rollout=shown, traffic=TRAFFIC))
        seen = set()
        for _ in range(16):
            await operator.live(rounds=1)
            route, weight = cluster.find(HTTP_ROUTE, "digits-preview"), cluster.weights().get(V2, 0)
            step = cluster.status.rollout and cluster.status.rollout.step
            if step and step.phase == "Observing":
                seen.add((weight, backends(route)[V2] if route else None))
        assert seen == {(0, 100), (5, None)}
        service = cluster.find(SERVICE, "digits-preview")
        assert service and service["spec"]["selector"][names.LABEL_REVISION] == V2, (
            "within the cluster nothing counts"
        )
        cluster.user(b.spec(1, rollout=shown, traffic=TRAFFIC))
        await operator.live(rounds=4)
        route = cluster.find(HTTP_ROUTE, "digits-preview")
        assert cluster.weights() == {V1: 100} and route and backends(route) == {V1: 100}

    run(main())


def test_a_revert_in_git_is_refused_by_no_demand_that_came_after_what_it_goes_back_to() -> None:
    """Two replicas without a gateway cannot give as little as 5 %: a new version is refused, the
    way back from a bad one within its window is not.
    """

    async def main(later: timedelta, version: int) -> Cluster:
        cluster, operator = Cluster(), None
        for v in (1, 2):
            cluster.user(b.spec(v, gateway=False, rollout={"rollbackWindow": "1h"}))
            operator = operator or Operator(cluster)
            operator.assessment = b.judged("Successful")
            await operator.live()
        assert operator and cluster.status.stable and cluster.status.stable.revision == V2
        cluster.policy("production", gates={"metrics": [{"name": "errors", "maxIncrease": 0.01}]})
        cluster.now += later
        operator.assessment = b.judged("Inconclusive")
        cluster.user(
            b.spec(
                version,
                gateway=False,
                rollout={"rollbackWindow": "1h", "canary": {"steps": [{"weight": 100}]}},
            )
        )
        await operator.live()
        return cluster

    back = asyncio.run(main(timedelta(0), 1))
    assert back.status.stable and back.status.stable.revision == V1
    for refused in (asyncio.run(main(timedelta(0), 3)), asyncio.run(main(timedelta(hours=2), 1))):
        ready = next(c for c in refused.status.conditions if c.type == "Ready")
        assert (
            ready.reason == "GateRequired" and refused.status.stable and refused.status.stable.revision == V2
        )
