"""A/B by header, blue-green with a bake, and the verbs, through the real gateway; no request of a
client fails.
"""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.e2e.conftest import Stage
from tests.e2e.models import FEATURES

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME, HOST, PREVIEW = "strategies", "strategies.e2e.example", "strategies-preview.e2e.example"
BODY = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}
ANALYSIS = {
    "interval": "1s",
    "initialDelay": "0s",
    "metrics": [{"name": "errors", "maxIncrease": 0.5, "minSamples": 10}],
}


def deployment(stage: Stage, file: str, **rollout: Any) -> dict[str, Any]:
    return stage.deployment(
        NAME,
        file,
        traffic=stage.traffic(HOST),
        rollout={"analysis": ANALYSIS, "progressDeadline": "3m", **rollout},
    )


def asked(stage: Stage, count: int = 1, host: str = HOST, **headers: str) -> set[str]:
    """The versions that answer; each answer has to be good."""
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer"

    def send() -> requests.Response:
        return requests.post(url, json=BODY, headers={"Host": host, **headers}, timeout=10)

    return {str(answer.json()["model_version"]) for answer in stage.served(NAME, send, count)}


def reached(stage: Stage, phase: str, *hosts_and_headers: dict[str, str]) -> None:
    """Send a few requests of each kind again and again until the rollout is in that phase."""

    def look() -> bool:
        for which in hosts_and_headers:
            asked(stage, 20, **which)
        return bool(stage.get(NAME)["status"].get("phase") == phase)

    stage.until(f"phase {phase}", look)


def answers_at(host: str, stage: Stage) -> bool:
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}/infer"
    return requests.post(url, json=BODY, headers={"Host": host}, timeout=10).status_code == 200


def test_only_requests_with_the_header_reach_the_new_revision(stage: Stage) -> None:
    beta = {"x-group": "beta"}
    stage.apply(deployment(stage, "good.onnx"))
    stage.until_ready(NAME)
    stage.until("the gateway serves", lambda: answers_at(HOST, stage))
    stage.apply(
        deployment(
            stage,
            "better.onnx",
            abTest={"headers": [{"name": "x-group", "value": "beta"}], "autoPromote": False},
        )
    )
    reached(stage, "Testing", {})
    reached(stage, "Paused", {}, beta)
    stage.until("the data plane looks at the header", lambda: asked(stage, 20, **beta) == {"2"}, 10)
    assert (asked(stage, 20), asked(stage, 5, **{"x-group": "alpha"})) == ({"1"}, {"1"})
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    reached(stage, "Stable", {}, beta)
    stage.until("the data plane has taken that up", lambda: asked(stage, 20) == {"2"}, 10)


def test_blue_green_is_seen_at_its_own_host_bakes_and_can_be_taken_back(stage: Stage) -> None:
    """Aborted in the bake: everything is back at once, for the former stable has kept its pods."""
    desired = {
        "blueGreen": {"preview": {"http": {"hostnames": [PREVIEW]}}, "autoPromote": False},
        "bake": "10m",
        "scaleDownDelay": "1m",
    }
    stage.apply(deployment(stage, "third.onnx", **desired))
    reached(stage, "Previewing", {})
    stage.until("the preview's host is served", lambda: answers_at(PREVIEW, stage))
    reached(stage, "Paused", {}, {"host": PREVIEW})
    stage.until("the preview leads to the new revision", lambda: asked(stage, 10, host=PREVIEW) == {"3"}, 10)
    assert asked(stage, 10) == {"2"}
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    reached(stage, "Baking", {})
    status = stage.get(NAME)["status"]
    new = status["rollout"]["revision"]
    stage.until("it has all traffic", lambda: asked(stage, 10) == {"3"}, 10)
    assert new in status["selector"] and status["stable"]["number"] == 2
    assert stage.condition(NAME, "Ready")["status"] == "False"
    stage.cluster.modelrollout("abort", NAME, "-n", stage.namespace)
    stage.until("it is taken back", lambda: stage.get(NAME)["status"]["rollout"]["stage"] == "Failed")
    stage.until("the data plane has taken that up", lambda: asked(stage, 10) == {"2"}, 10)
    stage.until_outcome(new, "Aborted")
    stage.cluster.modelrollout("retry", NAME, "-n", stage.namespace)
    reached(stage, "Paused", {}, {"host": PREVIEW})
    stage.apply(deployment(stage, "third.onnx", **desired | {"bake": "2s"}))
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    reached(stage, "Stable", {})
    stage.until("the data plane has taken that up", lambda: asked(stage, 10) == {"3"}, 10)
    former = {d["revision"] for d in stage.get(NAME)["status"]["draining"]}
    retained = {
        p["metadata"]["labels"].get("modelrollout.dev/revision")
        for p in stage.cluster.pods(stage.namespace, f"modelrollout.dev/name={NAME}")
    }
    assert former & retained, "the former stable keeps its pods for scaleDownDelay"


def test_pause_holds_resume_and_promote_full_go_on_and_restart_replaces_pods(stage: Stage) -> None:
    stage.apply(
        deployment(
            stage,
            "good.onnx",
            canary={"steps": [{"weight": 20, "for": "20s"}, {"pause": {}}, {"weight": 60}, {"pause": {}}]},
        )
    )
    reached(stage, "Canary", {})
    stage.cluster.modelrollout("pause", NAME, "-n", stage.namespace)
    stage.until("it is held", lambda: stage.get(NAME)["status"]["rollout"].get("pausedByUser"))
    asked(stage, 60)
    assert stage.get(NAME)["status"]["step"] == "1/4"
    stage.cluster.modelrollout("resume", NAME, "-n", stage.namespace)
    reached(stage, "Paused", {})
    assert stage.get(NAME)["status"]["step"] == "2/4"
    stage.cluster.modelrollout("promote", NAME, "--full", "-n", stage.namespace)
    reached(stage, "Stable", {})
    status = stage.get(NAME)["status"]
    selector = f"modelrollout.dev/revision={status['stable']['revision']},modelrollout.dev/component=server"
    before = {p["metadata"]["uid"] for p in stage.cluster.pods(stage.namespace, selector)}
    stage.cluster.modelrollout("restart", NAME, "-n", stage.namespace)

    def replaced() -> bool:
        asked(stage, 5)
        return not before & {p["metadata"]["uid"] for p in stage.cluster.pods(stage.namespace, selector)}

    stage.until("all pods are new ones", replaced)
