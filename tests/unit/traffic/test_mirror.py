"""The mirror: what a gateway must be able to do, and what is written in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import MirrorMethod, RevisionRef, Shadow
from modelrollout.config import OperatorConfig
from modelrollout.contract.tasks import CompareTask
from modelrollout.kube.diff import is_up_to_date
from modelrollout.problem import Problem
from modelrollout.resources.common import Owner
from modelrollout.rollout.snapshot import Server
from modelrollout.testing import builders as b
from modelrollout.traffic.gateway_api.gateway import missing_gateway, unread_gateway
from modelrollout.traffic.gateway_api.mirror import MirrorRouter, MirrorTarget, is_mirrored, mirror_method
from modelrollout.traffic.gateway_api.router import FrozenRoutes, GatewayRouter, weights
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.registry import kind_for

OWNER = Owner("ModelDeployment", b.NAME, "ml", "uid-1")
STABLE, CANARY = RevisionRef(revision="digits-1", number=1), RevisionRef(revision="digits-2", number=2)
SPLIT = (("digits-1", 100),)
MIRRORS = frozenset({"HTTPRoute", "HTTPRouteRequestMirror"})


def config(traefik: bool = True) -> OperatorConfig:
    return OperatorConfig.model_validate(
        {
            "stores": [{"name": "m", "uri": "s3://models/"}],
            "artifacts": {"name": "a", "uri": "s3://artifacts/"},
            "images": {"optimizer": "optimizer:1", "triton": "triton:1"},
            "shadow": {"traefik": traefik},
        }
    )


def spec(**shadow: Any) -> Any:
    return b.spec(2, rollout={"shadow": shadow})


def facts(features: frozenset[str] | None, controller: str = "example.com/gateway") -> GatewayFacts:
    return GatewayFacts("gateways/public", "shiny", controller, features)


def router(way: MirrorMethod | None = "TraefikService", routed: bool = True, **shadow: Any) -> MirrorRouter:
    desired = spec(**shadow)
    mirror = MirrorTarget(way, routed, CANARY, STABLE, desired.rollout.shadow or Shadow()) if way else None
    return MirrorRouter(GatewayRouter(b.NAME, desired.traffic), b.NAME, desired, mirror, config())


def children(made: MirrorRouter) -> dict[tuple[str, str], Any]:
    return {(o["kind"], o["metadata"]["name"]): o for o in made.children(OWNER, SPLIT)}


# --- what the gateway can


def test_request_mirror_where_the_class_says_so_and_a_percentage_only_where_it_says_that() -> None:
    assert mirror_method(spec(), facts(MIRRORS), config()) == "RequestMirror"
    lacks = mirror_method(spec(percent=20), facts(MIRRORS), config())
    assert (
        isinstance(lacks, Problem)
        and "HTTPRouteRequestPercentageMirror" in lacks.message
        and "percent to 100" in lacks.message
    )
    assert (
        mirror_method(spec(percent=20), facts(MIRRORS | {"HTTPRouteRequestPercentageMirror"}), config())
        == "RequestMirror"
    )


@pytest.mark.parametrize("features", [frozenset({"HTTPRoute"}), None])
def test_a_gateway_that_cannot_mirror_is_refused_by_name(features: frozenset[str] | None) -> None:
    method = mirror_method(spec(), facts(features), config())
    assert isinstance(method, Problem) and method.reason == "GatewayFeatureMissing"
    assert (
        "spec.rollout.shadow" in method.message
        and "GatewayClass shiny" in method.message
        and "leave rollout.shadow out" in method.message
    )


def test_traefik_mirrors_by_its_own_kind_where_the_platform_team_says_so() -> None:
    traefik = facts(frozenset({"HTTPRoute"}), "traefik.io/gateway-controller")
    assert mirror_method(spec(), traefik, config()) == "TraefikService"
    refused = mirror_method(spec(), traefik, config(traefik=False))
    assert (
        isinstance(refused, Problem)
        and "shadow.traefik" in refused.message
        and "kubernetesCRD" in refused.message
    )


def test_without_a_gateway_or_with_grpc_alone_nothing_can_be_mirrored() -> None:
    grpc = {"gateway": {"name": "public"}, "grpc": {"hostnames": ["digits.example.com"]}}
    for traffic in ({}, grpc):
        spec = b.spec(2, traffic=traffic, rollout={"shadow": {}})
        found = kind_for(spec.traffic).mirror_method(spec, None, config())
        assert isinstance(found, Problem) and found.reason == "GatewayRequired"


def test_a_gateway_of_which_nothing_is_known_mirrors_nothing() -> None:
    for facts, reason in (
        (None, "GatewayUnknown"),
        (unread_gateway("gateways", "public"), "GatewayUnknown"),
        (missing_gateway("gateways", "public", own=False), "GatewayMissing"),
    ):
        refused = mirror_method(spec(), facts, config())
        assert isinstance(refused, Problem) and refused.reason == reason


# --- what is written


def test_traefik_the_service_stands_before_the_route_that_names_it() -> None:
    made = [(o["kind"], o["metadata"]["name"]) for o in router().children(OWNER, SPLIT)]
    assert made == [
        ("Deployment", "digits-2-shadow"),
        ("Service", "digits-2-shadow"),
        ("TraefikService", "digits-1"),
        ("HTTPRoute", "digits-2-shadow"),
        ("HTTPRoute", "digits"),
    ]
    desired = children(router(percent=30))
    mirroring = desired["TraefikService", "digits-1"]["spec"]["mirroring"]
    assert (mirroring["name"], mirroring["port"], mirroring["maxBodySize"]) == ("digits-1", 8000, 1 << 20)
    [mirror] = mirroring["mirrors"]
    assert (mirror["name"], mirror["percent"]) == ("digits-2-shadow", 30)
    assert mirror["nativeLB"] is True, "without endpoints Traefik would drop the clients' route with it"


def test_the_route_still_shows_who_answers() -> None:
    """What reads the weights of the live route (status that was lost, the router) needs to know
    nothing of the mirror.
    """
    route = children(router())["HTTPRoute", "digits"]
    assert route["spec"]["rules"][0]["backendRefs"] == [
        {"group": "traefik.io", "kind": "TraefikService", "name": "digits-1", "weight": 100}
    ]
    assert weights(route) == {"digits-1": 100} and is_mirrored(route)


def test_the_route_that_tries_the_mirror_out_matches_no_clients_path() -> None:
    trial = children(router(routed=False))["HTTPRoute", "digits-2-shadow"]["spec"]
    [rule] = trial["rules"]
    assert rule["matches"] == [{"path": {"type": "Exact", "value": "/.modelrollout/uid-1/digits-2"}}]
    assert trial["hostnames"] == ["digits.example.com"] and rule["backendRefs"][0]["kind"] == "TraefikService"


def test_request_mirror_is_a_filter_and_needs_no_other_object() -> None:
    desired = children(router("RequestMirror", percent=100))
    assert set(desired) == {
        ("Deployment", "digits-2-shadow"),
        ("Service", "digits-2-shadow"),
        ("HTTPRoute", "digits"),
    }
    [rule] = desired["HTTPRoute", "digits"]["spec"]["rules"]
    backend = {"group": "", "kind": "Service", "name": "digits-2-shadow", "port": names.PORT_COMPARER}
    assert rule["filters"] == [{"type": "RequestMirror", "requestMirror": {"backendRef": backend}}]
    [rule] = children(router("RequestMirror", percent=5))["HTTPRoute", "digits"]["spec"]["rules"]
    assert rule["filters"][0]["requestMirror"]["percent"] == 5


@pytest.mark.parametrize("way", ["RequestMirror", "TraefikService"])
def test_a_mirror_that_is_left_in_the_route_differs_from_one_without(way: MirrorMethod) -> None:
    """Else nothing would take it out after a status that was lost."""
    mirrored, without = (
        children(router(way))["HTTPRoute", "digits"],
        children(router(None))["HTTPRoute", "digits"],
    )
    assert (
        not is_mirrored(without)
        and not is_up_to_date(mirrored, without)
        and not is_up_to_date(without, mirrored)
    )
    plain = json.loads(json.dumps(without))
    del plain["spec"]["rules"][0]["filters"]  # the API server drops an empty list
    assert is_up_to_date(plain, without), "and an equal one costs no request"


def test_the_comparer_knows_whom_to_ask_from_the_operator_alone() -> None:
    outputs = [{"name": "logits", "argmax": True}, {"name": "score", "absTolerance": 0.5}]
    deployment = children(router(outputs=outputs))["Deployment", "digits-2-shadow"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    task = CompareTask.model_validate_json(container["env"][0]["value"])
    assert (task.namespace, task.model) == ("ml", "digits")
    assert (task.candidate_http, task.stable_http) == ("digits-2.ml.svc:8000", "digits-1.ml.svc:8000")
    assert (task.candidate_number, task.stable_number) == (2, 1)
    assert [(o.name, o.argmax, o.abs_tolerance) for o in task.outputs] == [
        ("logits", True, 1e-3),
        ("score", False, 0.5),
    ]
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True and container["resources"]["limits"]
    assert {p["containerPort"] for p in container["ports"]} == {names.PORT_COMPARER, names.PORT_METRICS}


# --- what the gateway says


def seen(made: MirrorRouter, **trial: str) -> dict[tuple[str, str], Any]:
    desired = children(made)
    for (kind, name), o in desired.items():
        if kind == "HTTPRoute":
            o["metadata"]["generation"] = 3
            o["status"] = b.answered(o, trial if name != b.NAME and trial else b.ACCEPTED)
    return desired


def test_taken_up_means_with_the_mirror_where_it_is_to_be_and_without_it_elsewhere() -> None:
    servers: dict[str, Server] = {}
    for way in ("RequestMirror", "TraefikService"):
        mirrored, without = seen(router(way)), seen(router(None))  # type: ignore[arg-type]
        assert router(way).programmed(SPLIT, mirrored, servers).programmed  # type: ignore[arg-type]
        assert not router(way).programmed(SPLIT, without, servers).programmed  # type: ignore[arg-type]
        assert not router(way, routed=False).programmed(SPLIT, mirrored, servers).programmed  # type: ignore[arg-type]
        assert not router(None).programmed(SPLIT, mirrored, servers).programmed
    assert router(None).programmed(SPLIT, seen(router(None)), servers).programmed


def test_the_trial_is_judged_apart_from_the_clients_route() -> None:
    made = router(routed=False)
    refused = seen(made, Accepted="True", ResolvedRefs="False")
    assert made.programmed(SPLIT, refused, {}).programmed, "the clients' route is fine"
    tried = made.mirror_accepted(refused)
    assert not tried.programmed and tried.problem and tried.problem.reason == "RouteNotAccepted"
    assert made.mirror_accepted(seen(made)).programmed
    assert not made.mirror_accepted({}).programmed
    assert router("RequestMirror", routed=False).mirror_accepted({}).programmed, "GatewayClass has said so"


def test_a_kept_route_loses_its_mirror() -> None:
    """The spec cannot be read, and the rollout is aborted."""
    live = children(router())["HTTPRoute", b.NAME]
    frozen = MirrorRouter(FrozenRoutes(b.NAME, {("HTTPRoute", b.NAME): live}), b.NAME, None, None, config())
    assert not frozen.programmed(SPLIT, {("HTTPRoute", b.NAME): live}, {}).programmed
    [route] = frozen.children(OWNER, SPLIT)
    assert not is_mirrored(route) and route["spec"]["rules"][0]["backendRefs"] == [
        {"group": "", "kind": "Service", "name": "digits-1", "port": names.PORT_HTTP, "weight": 100}
    ]
