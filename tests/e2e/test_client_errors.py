"""A version that refuses what its clients send: Triton answers 400 to each of them, and no answer
is a 5xx (docs/explanation/analysis.md, Client errors).
"""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.e2e.conftest import Asking, Stage
from tests.e2e.models import FEATURES

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME, HOST = "renamed", "renamed.e2e.example"
BODY = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}
BETA = {"x-group": "beta"}
WEIGHT = 20


def deployment(stage: Stage, file: str, **rollout: Any) -> dict[str, Any]:
    """Judged by the default metrics."""
    return stage.deployment(
        NAME,
        model={"uri": stage.uri(file), "interfaceChange": "Allowed"},
        traffic=stage.traffic(HOST),
        rollout={"analysis": {"interval": "1s", "initialDelay": "0s"}, "progressDeadline": "3m", **rollout},
    )


def answered(stage: Stage, count: int, **headers: str) -> list[int]:
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer"
    return [
        requests.post(url, json=BODY, headers={"Host": HOST, **headers}, timeout=10).status_code
        for _ in range(count)
    ]


def phase(stage: Stage) -> str:
    return str(stage.get(NAME)["status"].get("phase"))


def judged(stage: Stage) -> dict[str, dict[str, Any]]:
    """The metrics of the last step that was judged, by name."""
    return {m["name"]: m for m in stage.get(NAME)["status"]["rollout"]["history"][-1]["metrics"]}


def test_a_canary_that_answers_400_to_everyone_is_rolled_back(stage: Stage) -> None:
    stage.apply(deployment(stage, "good.onnx"))
    stage.until_ready(NAME)
    stage.until("the gateway serves", lambda: answered(stage, 1) == [200])
    stable = stage.get(NAME)["status"]["stable"]["revision"]
    with Asking(stage, NAME) as codes:
        stage.apply(deployment(stage, "renamed.onnx", canary={"steps": [{"weight": WEIGHT}, {"weight": 50}]}))
        stage.until("it is a canary", lambda: phase(stage) == "Canary")
        before = codes.total()
        stage.until("it is over", lambda: stage.get(NAME)["status"]["rollout"]["stage"] == "Failed", 90)
        stage.until("stable has all traffic", lambda: set(answered(stage, 20)) == {200}, 20)
    after = codes.total()
    rollout = stage.get(NAME)["status"]["rollout"]
    assert (rollout["outcome"], rollout["reason"]) == ("RolledBack", "ClientErrorsHigh"), rollout
    assert set(codes) == {"200", "400"}, codes
    assert codes["400"] <= WEIGHT / 100 * (after - before) + 10, f"of {after - before}: {codes}"
    assert [e["weight"] for e in rollout["history"]] == [WEIGHT], "it never had more"
    metrics = judged(stage)
    assert metrics["clientErrors"]["verdict"] == "Failed"
    assert metrics["errors"]["verdict"] != "Failed" and not metrics["errors"]["canary"]["bad"]
    assert metrics["refusedRequests"]["dryRun"] and not metrics["refusedRequests"]["canary"]["bad"]
    assert stage.get(NAME)["status"]["stable"]["revision"] == stable
    stage.until("an event says so", lambda: "ClientErrorsHigh" in stage.events(NAME), 20)


@pytest.mark.long
def test_where_a_header_chooses_the_version_client_errors_pause_and_a_person_decides(stage: Stage) -> None:
    stage.apply(
        deployment(
            stage,
            "renamed-again.onnx",
            abTest={"headers": [{"name": "x-group", "value": "beta"}], "autoPromote": False},
        )
    )
    stage.until("it is tested", lambda: answered(stage, 4) and phase(stage) == "Testing")
    stage.until("the gateway has the rule", lambda: set(answered(stage, 5, **BETA)) == {400}, 20)

    def paused() -> bool:
        answered(stage, 10, **BETA)
        assert set(answered(stage, 20)) == {200}
        return phase(stage) == "Paused" and stage.condition(NAME, "Stalled")["reason"] == "ClientErrorsHigh"

    stage.until("it is paused", paused, 60)
    assert "where clients choose the revision" in stage.condition(NAME, "Stalled")["message"]
    stage.cluster.modelrollout("abort", NAME, "-n", stage.namespace)
    stage.until("stable has all", lambda: set(answered(stage, 20, **BETA)) == {200}, 30)
