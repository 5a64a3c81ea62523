"""A canary whose pods are evicted, by the real eviction API and disruption controller."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo import DemoError
from modelrollout.api import names
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

NAME = "drained"
SERVING = {
    "replicas": 2,
    "resources": {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "50m"}},
}
TRIAL = {"canary": {"steps": [{"weight": 50}, {"pause": {}}]}, "progressDeadline": "10m"}


def deployment(stage: Stage, file: str) -> dict[str, Any]:
    return stage.deployment(
        NAME, file, serving=SERVING, traffic=stage.traffic(f"{NAME}.e2e.example"), rollout=TRIAL
    )


def ready(stage: Stage, revision: str) -> list[str]:
    labels = f"{names.LABEL_REVISION}={revision},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
    return [
        p["metadata"]["name"]
        for p in stage.cluster.pods(stage.namespace, labels)
        if not p["metadata"].get("deletionTimestamp")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions") or [])
    ]


def evict(stage: Stage, pod: str) -> None:
    where = f"/api/v1/namespaces/{stage.namespace}/pods/{pod}/eviction"
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": stage.namespace},
    }
    stage.cluster.kubectl("create", "--raw", where, "-f", "-", stdin=json.dumps(body))


def budgets(stage: Stage) -> dict[str, tuple[str, int]]:
    """Revision and allowed disruptions by the name of the budget."""
    found = json.loads(stage.cluster.kubectl("get", "pdb", "-n", stage.namespace, "-o", "json"))["items"]
    return {
        o["metadata"]["name"]: (
            o["spec"]["selector"]["matchLabels"][names.LABEL_REVISION],
            (o.get("status") or {}).get("disruptionsAllowed", 0),
        )
        for o in found
        if o["spec"]["selector"]["matchLabels"][names.LABEL_NAME] == NAME
    }


def test_a_drain_takes_the_canarys_pods_one_by_one_and_is_no_regression(stage: Stage) -> None:
    stage.apply(deployment(stage, "good.onnx"))
    first = stage.until_ready(NAME)["status"]["stable"]["revision"]
    stage.apply(deployment(stage, "better.onnx"))
    stage.until("the canary has half", lambda: stage.get(NAME)["status"].get("weight") == 50)
    second = stage.get(NAME)["status"]["rollout"]["revision"]
    stage.until("both may be drained", lambda: budgets(stage) == {NAME: (first, 1), second: (second, 1)})

    one, other = ready(stage, second)
    evict(stage, one)
    with pytest.raises(DemoError, match="disruption budget"):
        evict(stage, other)
    stage.until("it is said", lambda: "Evicted" in stage.events(NAME))
    stage.until("another pod is ready", lambda: len(ready(stage, second)) == 2)
    evict(stage, other)
    stage.until("and another", lambda: len(ready(stage, second)) == 2 and other not in ready(stage, second))
    state = stage.get(NAME)["status"]["rollout"]
    assert (state["stage"], state["revision"]) == ("Canary", second) and "restarts" not in state

    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace, "--full")
    stage.until_outcome(second, "Promoted")
    stage.until("one budget is left", lambda: budgets(stage) == {NAME: (second, 1)})
    evict(stage, ready(stage, second)[0])  # with two budgets it could not be evicted
    stage.until("it is replaced", lambda: len(ready(stage, second)) == 2)
