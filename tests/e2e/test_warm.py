"""Pods are ready once they have warmed up, and counting waits for those that have just started."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import requests

from modelrollout.api import names
from tests.e2e.conftest import Stage
from tests.e2e.models import CLASSES, FEATURES

pytestmark = pytest.mark.sandbox

NAME, HOST, DELAY = "warm", "warm.e2e.example", 10
BODY = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}


def deployment(stage: Stage, file: str) -> dict[str, Any]:
    """Whose canary never has enough samples."""
    errors = {"name": "errors", "maxIncrease": 0.5, "minSamples": 1_000_000}
    return stage.deployment(
        NAME,
        file,
        traffic=stage.traffic(HOST),
        rollout={
            "analysis": {"interval": "1s", "initialDelay": f"{DELAY}s", "metrics": [errors]},
            "canary": {"steps": [{"weight": 50}]},
            "progressDeadline": "10m",
        },
    )


def send(stage: Stage) -> list[int]:
    """Status codes; the pod that is replaced may leave requests without an answer."""
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer"
    return [requests.post(url, json=BODY, headers={"Host": HOST}, timeout=10).status_code for _ in range(10)]


def counters(stage: Stage) -> list[dict[str, Any]]:
    """Of canary and stable as they stand in status, once both are counted."""
    send(stage)
    step = stage.get(NAME)["status"]["rollout"].get("step") or {}
    [errors] = step.get("metrics") or [{}]
    return [errors[side] for side in ("canary", "stable") if (errors.get(side) or {}).get("began")]


def newest_ready(stage: Stage, revision: str) -> float:
    """Unix time."""
    label = f"{names.LABEL_REVISION}={revision}"
    pods = json.loads(stage.cluster.kubectl("get", "pods", "-n", stage.namespace, "-l", label, "-o", "json"))
    ready = [
        datetime.fromisoformat(c["lastTransitionTime"]).timestamp()
        for pod in pods["items"]
        for c in pod["status"].get("conditions", [])
        if (c["type"], c["status"]) == ("Ready", "True") and "deletionTimestamp" not in pod["metadata"]
    ]
    return max(ready, default=0.0)


def test_a_pod_has_answered_its_warm_up_before_it_is_ready(stage: Stage) -> None:
    made = stage.deployment("warmed-up")
    made["spec"]["serving"]["batching"] = {"maxBatchSize": 8}
    stage.apply(made)
    revision = stage.until_ready("warmed-up")["status"]["stable"]["revision"]
    address = stage.cluster.service_address(stage.namespace, revision, names.PORT_HTTP)

    def said(what: str) -> dict[str, Any]:
        answer = requests.get(f"http://{address}/v2/models/warmed-up/{what}", timeout=10)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    one = {"x": {"data_type": "TYPE_FP32", "dims": [FEATURES], "zero_data": True}}
    samples = said("config")["model_warmup"]
    assert [(sample["batch_size"], sample["inputs"]) for sample in samples] == [(1, one), (8, one)]
    [stats] = said("stats")["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (9, 2), "one and eight, before any client"
    assert stage.answers("warmed-up", np.ones((8, FEATURES), np.float32))["logits"].shape == (8, CLASSES)
    stage.cluster.kubectl("delete", "mdep", "warmed-up", "-n", stage.namespace, "--wait=false")


def test_both_sides_begin_to_count_again_after_a_pod_of_the_canary_was_replaced(stage: Stage) -> None:
    stage.apply(deployment(stage, "good.onnx"))
    stage.until_ready(NAME)
    stage.until("the gateway serves", lambda: set(send(stage)) == {200})
    stage.apply(deployment(stage, "better.onnx"))
    stage.until("both are counted", lambda: len(counters(stage)) == 2)
    revision = stage.get(NAME)["status"]["rollout"]["revision"]
    before = newest_ready(stage, revision)
    label = f"{names.LABEL_REVISION}={revision}"
    stage.cluster.kubectl("delete", "pods", "-n", stage.namespace, "-l", label, "--wait=false")
    stage.until("another pod is ready", lambda: newest_ready(stage, revision) > before)
    warm = newest_ready(stage, revision) + DELAY
    stage.until(
        "both count again, from when it is warm",
        lambda: len(seen := counters(stage)) == 2 and all(c["began"] >= warm for c in seen),
    )
    stage.cluster.kubectl("delete", "mdep", NAME, "-n", stage.namespace, "--wait=false")
