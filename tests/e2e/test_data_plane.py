"""A Gateway that is missing, comes back, or has foreign answers in its routes: what the operator
says of it, what it waits for, and what clients get.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelrollout.api import names
from tests.e2e.conftest import Asking, Stage

pytestmark = pytest.mark.sandbox

NAME, GATEWAY = "plane", "own"
STEPS = [{"pause": {}}, {"weight": 50}, {"pause": {}}]
ANALYSIS = {"interval": "1s", "metrics": [{"name": "errors", "maxIncrease": 0.5, "minSamples": 10}]}


def create_gateway(stage: Stage) -> None:
    """A Gateway of this namespace with the listeners of the target's: Traefik serves several at one
    port.
    """
    at = stage.cluster.target.gateway
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{at.namespace}/gateways/{at.name}"
    spec = stage.cluster.get(path)["spec"]
    stage.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": GATEWAY, "namespace": stage.namespace},
            "spec": {field: spec[field] for field in ("gatewayClassName", "listeners")},
        }
    )


def delete_gateway(stage: Stage) -> None:
    stage.cluster.kubectl("delete", "gateway", GATEWAY, "-n", stage.namespace)


def deployment(stage: Stage, file: str = "good.onnx") -> dict[str, Any]:
    traffic = {"gateway": {"name": GATEWAY}, "http": {"hostnames": [f"{NAME}.e2e.example"]}}
    rollout = {"progressDeadline": "2m", "analysis": ANALYSIS, "canary": {"steps": STEPS}}
    return stage.deployment(NAME, file, traffic=traffic, rollout=rollout)


def route(stage: Stage) -> dict[str, Any]:
    return dict(
        json.loads(stage.cluster.kubectl("get", "httproute", NAME, "-n", stage.namespace, "-o", "json"))
    )


def answered(stage: Stage) -> None:
    """Clients get answers again."""
    with Asking(stage, NAME) as codes:
        stage.until("requests are answered", lambda: codes["200"] > 20, 30)


def revisions_with_pods(stage: Stage) -> set[str]:
    selector = f"{names.LABEL_NAME}={NAME},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
    return {
        p["metadata"]["labels"][names.LABEL_REVISION]
        for p in stage.cluster.pods(stage.namespace, selector)
        if not p["metadata"].get("deletionTimestamp")
    }


def test_a_first_version_names_the_gateway_that_does_not_exist_and_goes_on_once_it_does(
    stage: Stage,
) -> None:
    stage.apply(deployment(stage))
    stage.until("its route waits", lambda: stage.get(NAME).get("status", {}).get("phase") == "Promoting")
    missing = f"Gateway {stage.namespace}/{GATEWAY} does not exist"
    stage.until("the Gateway is named", lambda: missing in stage.condition(NAME, "Ready")["message"], 10)
    assert stage.condition(NAME, "Promoted")["reason"] == "GatewayMissing"
    stage.until("an event says so", lambda: "GatewayMissing" in stage.events(NAME), 10)
    create_gateway(stage)
    assert stage.until_ready(NAME, 60)["status"]["stable"]["number"] == 1
    answered(stage)


def test_at_rest_available_follows_the_gateway(stage: Stage) -> None:
    """After the test above. It stayed Available while clients got 404."""
    with Asking(stage, NAME) as codes:
        stage.until("requests are answered", lambda: codes["200"] > 20, 30)
        delete_gateway(stage)
        available = stage.until(
            "it is not available",
            lambda: next((c for c in [stage.condition(NAME, "Available")] if c["status"] == "False"), None),
            15,
        )
        assert available["reason"] == "GatewayMissing"
        assert f"Gateway {stage.namespace}/{GATEWAY} does not exist" in available["message"]
        assert stage.condition(NAME, "Ready")["status"] == "False"
        stage.until("clients get 404", lambda: codes["404"] > 5, 20)
        create_gateway(stage)
        stage.until_ready(NAME, 30)
        assert stage.condition(NAME, "Available")["status"] == "True"
        good = codes["200"]
        stage.until("requests are answered again", lambda: codes["200"] > good + 20, 30)


def test_a_foreign_answer_in_the_route_does_not_stop_a_canary(stage: Stage) -> None:
    """After the test above. Another controller's False counted as the gateway's own."""
    stage.apply(deployment(stage, "better.onnx"))
    stage.until("the canary waits", lambda: stage.get(NAME)["status"].get("step") == "1/3")
    conditions = [
        {
            "type": kind,
            "status": "False",
            "reason": "Foreign",
            "message": "another controller's",
            "observedGeneration": 1000,
            "lastTransitionTime": "2026-11-22T12:00:00Z",
        }
        for kind in ("Accepted", "ResolvedRefs")
    ]
    foreign = {
        "parentRef": route(stage)["spec"]["parentRefs"][0],
        "controllerName": "example.org/foreign",
        "conditions": conditions,
    }
    patch = json.dumps([{"op": "add", "path": "/status/parents/-", "value": foreign}])
    where = ("httproute", NAME, "-n", stage.namespace, "--subresource=status", "--type=json", "-p", patch)
    stage.cluster.kubectl("patch", *where)
    with Asking(stage, NAME) as codes:
        stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
        stage.until(
            "the weight is taken up",
            lambda: (
                stage.get(NAME)["status"].get("weight") == 50
                and stage.get(NAME)["status"]["rollout"]["step"]["phase"] in ("Observing", "Paused")
            ),
            60,
        )
    assert set(codes) == {"200"}, codes
    controllers = [p["controllerName"] for p in route(stage)["status"]["parents"]]
    assert "example.org/foreign" in controllers, "it was there all the while"
    assert stage.condition(NAME, "Available")["status"] == "True"


def test_an_abort_while_the_gateway_is_missing_ends_and_keeps_the_canarys_pods(stage: Stage) -> None:
    """After the test above. It was RollingBack for ever."""
    status = stage.get(NAME)["status"]
    canary, stable = status["rollout"]["revision"], status["stable"]["revision"]
    delete_gateway(stage)
    stage.set_rollout(NAME, {"progressDeadline": "30s"})
    stage.cluster.modelrollout("abort", NAME, "-n", stage.namespace)
    ended = stage.until(
        "the rollout has ended",
        lambda: next(
            (r for r in [stage.get(NAME)["status"]["rollout"]] if r["stage"] == "Failed"),
            None,
        ),
        60,
    )
    assert ended["outcome"] == "Aborted"
    assert "not confirmed within 30 s that stable has all traffic" in ended["message"]
    drained = stage.condition(NAME, "Drained")
    assert (drained["status"], drained["reason"]) == ("False", "GatewayMissing")
    assert canary in drained["message"] and revisions_with_pods(stage) == {canary, stable}
    create_gateway(stage)
    stage.until("the canary's pods go", lambda: revisions_with_pods(stage) == {stable}, 90)
    assert stage.condition(NAME, "Drained")["status"] == "Unknown", "the condition is absent"
    assert stage.condition(NAME, "Available")["status"] == "True"
    answered(stage)


def test_a_hand_edit_of_the_route_is_put_back_and_reported(stage: Stage) -> None:
    """After the test above."""
    before = route(stage)["spec"]["hostnames"]
    patch = json.dumps({"spec": {"hostnames": ["edited.e2e.example"]}})
    where = ("httproute", NAME, "-n", stage.namespace, "--type=merge", "-p", patch)
    stage.cluster.kubectl("patch", *where, "--field-manager=kubectl-edit")
    stage.until("it is put back", lambda: route(stage)["spec"]["hostnames"] == before, 15)

    def reported() -> list[str]:
        listed = stage.cluster.get(f"/api/v1/namespaces/{stage.namespace}/events")["items"]
        return [e["message"] for e in listed if e["reason"] == "ChildReverted"]

    [message] = stage.until("an event says so", reported, 10)
    assert message.startswith(f"HTTPRoute {NAME}: kubectl-edit changed spec.hostnames, which")
