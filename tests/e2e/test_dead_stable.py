"""Stable's pods die for good, and a new version is the cure: clients are answered about a minute
later, whatever the spec compares. And a ModelDeployment of zero replicas, where it waits.
"""

from __future__ import annotations

import json
from typing import Any

import obstore
import pytest

from tests.e2e.conftest import Asking, Stage, condition

pytestmark = [pytest.mark.sandbox, pytest.mark.gateway]

NAME, ZERO = "outage", "zero"
# Nothing of it is proven within these tests, and nothing of it waits for a deadline.
UNPROVEN = {
    "interval": "1s",
    "initialDelay": "0s",
    "metrics": [{"name": "errors", "maxIncrease": 0.01, "minSamples": 1000000}],
}
# seconds: a minute until stable is dead; Jobs and pods start meanwhile, and the route is taken up
TAKEN_OVER = 60 + 90


def wanted(stage: Stage, file: str, **rollout: Any) -> dict[str, Any]:
    return stage.deployment(
        NAME,
        file,
        traffic=stage.traffic(f"{NAME}.e2e.example"),
        rollout={
            "analysis": UNPROVEN,
            "canary": {"steps": [{"weight": 50}]},
            "progressDeadline": "15m",
            **rollout,
        },
    )


def answered(stage: Stage, seconds: float = 2) -> set[str]:
    """What clients got within that time."""
    with Asking(stage, NAME) as codes:
        stage.until("enough answers", lambda: codes.total() >= 10 * seconds, 30)
    return set(codes)


def kill(stage: Stage, revision: str) -> None:
    """Its artifact is taken from the store, so that no new pod of it can ever start."""
    uri = stage.cluster.revision(stage.namespace, revision)["status"]["artifact"]["uri"]
    bucket = stage.cluster.target.store.artifacts
    folder = uri.removeprefix(f"s3://{bucket}/")
    store = stage.cluster.bucket(bucket)
    files = [o["path"] for page in obstore.list(store, f"{folder}/") for o in page]
    assert files, uri
    obstore.delete(store, files)
    selector = f"modelrollout.dev/revision={revision},modelrollout.dev/component=server"
    stage.cluster.kubectl(
        "delete", "pods", "-n", stage.namespace, "-l", selector, "--grace-period=0", "--force"
    )
    stage.until(
        "stable is not available", lambda: stage.condition(NAME, "Available")["status"] == "False", 30
    )


def stable(stage: Stage) -> str:
    return str(stage.get(NAME)["status"]["stable"]["revision"])


def became_stable(stage: Stage, former: str) -> dict[str, Any]:
    stage.until("the new version is stable", lambda: stable(stage) != former, TAKEN_OVER)
    stage.until("the data plane has taken that up", lambda: answered(stage) == {"200"}, 20)
    status: dict[str, Any] = stage.get(NAME)["status"]
    assert status["rollout"]["uncomparedSince"]
    return status


def test_a_canary_takes_over_and_the_override_is_recorded(stage: Stage) -> None:
    stage.apply(wanted(stage, "good.onnx"))
    first = stage.until_ready(NAME)["status"]["stable"]["revision"]
    stage.until("the gateway serves", lambda: answered(stage) == {"200"})
    stage.apply(wanted(stage, "better.onnx"))
    stage.until(
        "the canary has half of the requests",
        lambda: (
            (step := (stage.get(NAME)["status"]["rollout"] or {}).get("step"))
            and (step["weight"], step["phase"]) == (50, "Observing")
        ),
    )
    kill(stage, first)
    status = became_stable(stage, first)
    revision = status["stable"]["revision"]
    stage.until_outcome(revision, "Promoted")
    steps = stage.cluster.revision(stage.namespace, revision)["status"]["steps"]
    assert steps[-1]["reason"] == "StableDead"
    assert "StableDead" in stage.events(NAME)
    report = stage.cluster.modelrollout("report", NAME, "-n", stage.namespace, "-o", "json")
    assert "StableDead" in report and "nothing was compared" in report


@pytest.mark.long
def test_golden_data_and_a_shadow_do_not_wait_for_a_dead_stable(stage: Stage) -> None:
    """The version that has taken over dies before the next one comes."""
    second = stable(stage)
    kill(stage, second)
    golden = {"uri": stage.data("good.npz"), "min": 0.9}
    stage.apply(wanted(stage, "third.onnx", analysis=UNPROVEN | {"golden": golden}, shadow={}))
    status = became_stable(stage, second)
    evaluation = status["rollout"]["evaluation"]
    assert evaluation["verdict"] == "Successful" and "stable" not in evaluation
    assert "min 0.9" in evaluation["message"]


def scaled(stage: Stage, replicas: int) -> None:
    stage.cluster.kubectl("scale", "mdep", ZERO, "-n", stage.namespace, f"--replicas={replicas}")


def test_at_zero_replicas_a_new_version_waits_and_goes_on_by_itself(stage: Stage) -> None:
    at_once = {"canary": {"steps": [{"weight": 100}]}, "progressDeadline": "2m"}
    selector = f"modelrollout.dev/name={ZERO},modelrollout.dev/component=server"
    stage.apply(stage.deployment(ZERO, "good.onnx", rollout=at_once))
    stage.until_ready(ZERO)
    scaled(stage, 0)

    def at_rest() -> bool:
        now = stage.get(ZERO)
        rows = {kind: condition(now, kind) for kind in ("Available", "Ready")}
        seen = {kind: (row["status"], row["reason"]) for kind, row in rows.items()}
        return seen == {"Available": ("False", "ScaledToZero"), "Ready": ("True", "ScaledToZero")}

    stage.until("it is Ready and not Available", at_rest, 60)
    stage.until("its pods are gone", lambda: not stage.cluster.pods(stage.namespace, selector), 90)
    better = json.dumps({"spec": {"model": {"uri": stage.uri("better.onnx")}}})
    stage.cluster.kubectl("patch", "mdep", ZERO, "-n", stage.namespace, "--type=merge", "-p", better)
    stage.until(
        "it waits for replicas",
        lambda: stage.condition(ZERO, "Reconciling")["reason"] == "ScaledToZero",
    )
    assert "spec.serving.replicas is 0" in stage.condition(ZERO, "Reconciling")["message"]
    assert stage.condition(ZERO, "Stalled")["status"] == "False"
    assert not stage.cluster.pods(stage.namespace, selector), "no lone pod"
    scaled(stage, 1)
    assert stage.until_ready(ZERO)["status"]["stable"]["number"] == 2
