"""A policy that demands metrics and limits GPUs, against what a tenant may write: the ways by which
a wrong model had all requests after seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from tests.e2e import models
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

X = np.full((1, models.FEATURES), 0.5, dtype=np.float32)
# No client sends labels: nothing is ever proven. Names stay as long as the tests need, so that
# another run on this cluster may have them.
GATES = {"metrics": [{"name": "accuracy", "maxDrop": 0.02, "minSamples": 1000}], "reserveNames": "2m"}
WAYS: dict[str, dict[str, Any]] = {
    "at-once": {"canary": {"steps": [{"weight": 100}]}},
    "preview": {"blueGreen": {"for": "1s"}},
    "deadline": {
        "canary": {"steps": [{"weight": 5}]},
        "onInconclusive": "Promote",
        "progressDeadline": "15s",
    },
}
NO_GPU = {
    "replicas": 1,
    "resources": {
        "limits": {"cpu": "500m", "memory": "512Mi"},
        "requests": {"cpu": "100m", "memory": "128Mi"},
    },
}


def host(name: str) -> str:
    return f"{name}.policy-holds.e2e.example"


def slow_to_judge(stage: Stage, name: str, file: str, **rollout: Any) -> dict[str, Any]:
    traffic = stage.traffic(host(name))
    return stage.deployment(
        name,
        file,
        serving=NO_GPU,
        traffic=traffic,
        rollout={"analysis": {"interval": "1s", "initialDelay": "0s"}, **rollout},
    )


def is_wrong(stage: Stage, name: str, at: str = "") -> bool | None:
    """Whether the wrong model answers, at this host name if not its own; None: no model does."""
    body = {"inputs": [{"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}]}
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{name}/infer"
    answer = requests.post(url, json=body, headers={"Host": at or host(name)}, timeout=10)
    return (
        None
        if answer.status_code != 200
        else not np.allclose(answer.json()["outputs"][0]["data"], X @ models.WEIGHTS, atol=1e-4)
    )


def weights_of(stage: Stage, name: str) -> dict[str, int]:
    """Weights of the route, by revision."""
    route = stage.cluster.get(
        f"/apis/gateway.networking.k8s.io/v1/namespaces/{stage.namespace}/httproutes/{name}"
    )
    return {ref["name"]: ref["weight"] for rule in route["spec"]["rules"] for ref in rule["backendRefs"]}


@pytest.fixture(scope="module")
def policy(stage: Stage) -> Iterator[None]:
    """It holds for this namespace by a label that every cluster gives it, whatever its
    ModelDeployments say of themselves.
    """
    kind = {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": stage.namespace},
    }
    stage.apply(
        {
            **kind,
            "spec": {
                "selector": {"namespaceLabels": {"kubernetes.io/metadata.name": stage.namespace}},
                "gates": GATES,
                "limits": {"gpus": 1},
            },
        }
    )
    yield
    stage.cluster.kubectl("delete", "rpol", stage.namespace, "--ignore-not-found")


@pytest.fixture(scope="module")
def serving(stage: Stage, policy: None) -> None:
    stage.apply(*(slow_to_judge(stage, name, "good.onnx") for name in WAYS))
    for name in WAYS:
        stage.until_ready(name)
        stage.until(f"the gateway serves {name}", lambda name=name: is_wrong(stage, name) is False)  # type: ignore[misc]


def test_whatever_a_spec_says_a_wrong_model_has_five_of_a_hundred_requests(
    stage: Stage, serving: None
) -> None:
    stage.apply(*(slow_to_judge(stage, name, "wrong.onnx", **rollout) for name, rollout in WAYS.items()))
    new = {}
    for name in WAYS:
        state = stage.until(
            f"{name} is at its first weight",
            lambda name=name: (s := stage.get(name)["status"]).get("weight") == 5 and s,
        )  # type: ignore[misc]
        new[name] = state["rollout"]["revision"]
    told = stage.until_stalled("deadline", "Inconclusive", 60)
    assert (
        f"RolloutPolicy {stage.namespace} (gates.metrics) gives no more than 5 % without a verdict of"
        " accuracy; promote by hand, or abort" in told
    )
    until, wrong = time.monotonic() + 15, dict.fromkeys(WAYS, 0)
    asked = 0
    while time.monotonic() < until or asked < 150:
        asked += 1
        for name in WAYS:
            wrong[name] += is_wrong(stage, name) is not False
    for name in WAYS:
        assert weights_of(stage, name)[new[name]] == 5 and stage.get(name)["status"]["defaults"] == {
            "maxFirstWeight": 5
        }
        assert wrong[name] <= 0.15 * asked, f"{name}: {wrong[name]} of {asked} answers were wrong"


def test_a_header_that_everybody_sends_is_refused_and_abort_goes_back(stage: Stage, serving: None) -> None:
    stage.cluster.modelrollout("abort", "deadline", "-n", stage.namespace)
    stage.until("stable has everything", lambda: set(weights_of(stage, "deadline").values()) == {100})
    headers = [{"name": "accept", "value": ".*", "type": "RegularExpression"}]
    stage.apply(slow_to_judge(stage, "deadline", "better.onnx", abTest={"headers": headers}))
    told = stage.until(
        "it is refused",
        lambda: (c := stage.condition("deadline", "Stalled"))["reason"] == "GateRequired" and c,
    )
    assert "spec.rollout.abTest: a header may choose all requests" in told["message"]


def test_deleted_and_created_anew_it_keeps_the_name_for_what_has_served(stage: Stage, serving: None) -> None:
    stage.cluster.kubectl("delete", "mdep", "preview", "-n", stage.namespace, "--wait=true")
    stage.apply(slow_to_judge(stage, "preview", "wrong.onnx"))
    told = stage.until_stalled("preview", "NameReserved")
    assert (
        f"modeldeployment/{stage.namespace}/preview stays with the version that served last under it" in told
    )
    thief = slow_to_judge(stage, "thief", "wrong.onnx")
    thief["spec"]["traffic"] = stage.traffic(host("thief"), grpc=host("preview"))
    stage.apply(thief)
    assert f"{host('preview')} stays with the version" in stage.until_stalled("thief", "NameReserved")
    thief["spec"]["traffic"] = stage.traffic(host("preview"))
    stage.apply(thief)
    stage.until_ready("thief")
    stage.until("it answers as itself", lambda: is_wrong(stage, "thief", host("preview")))
    assert is_wrong(stage, "preview") is None, "over HTTP its path is not the reserved one"


def test_replicas_beyond_the_limit_wait_until_the_rollout_is_over(stage: Stage, policy: None) -> None:
    name = "scaled"
    first = stage.deployment(name, rollout={"canary": {"steps": [{"weight": 5}]}})
    first["spec"]["traffic"] = stage.traffic(host(name))
    stage.apply(first)
    stage.until_ready(name)
    stage.apply({**first, "spec": {**first["spec"], "model": {"uri": stage.uri("better.onnx")}}})
    revision = stage.until(
        "the trial begins",
        lambda: (s := stage.get(name)["status"]).get("phase") == "Canary" and s["rollout"]["revision"],
    )
    stage.cluster.kubectl("scale", "mdep", name, "-n", stage.namespace, "--replicas=2")
    told = stage.until(
        "it says that a replica waits",
        lambda: (c := stage.condition(name, "Limited"))["status"] == "True" and c,
    )
    assert (
        told["reason"] == "WaitingForSlot"
        and "2 ask for 2 GPUs, the slot of RolloutPolicy" in told["message"]
        and "has 1" in told["message"]
    )
    deployments = f"/apis/apps/v1/namespaces/{stage.namespace}/deployments"
    stage.until(
        "stable has its two",
        lambda: (
            {
                d["spec"]["replicas"]
                for d in stage.cluster.get(deployments)["items"]
                if name in d["metadata"]["name"]
            }
            == {1, 2}
        ),
    )
    assert stage.cluster.get(f"{deployments}/{revision}")["spec"]["replicas"] == 1
    stage.cluster.modelrollout("promote", name, "-n", stage.namespace, "--full")
    stage.until(
        "it waits for its pods before it has everything",
        lambda: stage.get(name)["status"]["rollout"].get("reason") == "WaitingForSlot",
    )
    patch = '{"spec": {"limits": {"gpus": 2}}}'
    stage.cluster.kubectl("patch", "rpol", stage.namespace, "--type=merge", "-p", patch)
    stage.until_ready(name)
    assert stage.cluster.get(f"{deployments}/{revision}")["spec"][
        "replicas"
    ] == 2 and "MetricsOverridden" in stage.events(name)
