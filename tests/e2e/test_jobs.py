"""Jobs on the real cluster: a fleet prepares once, a search finds a smaller model, a limit that was
hit is named, a queue is waited for.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e import models
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

INT8 = {"steps": [{"int8": {"method": "Dynamic"}}]}


def revision(stage: Stage, name: str) -> dict[str, Any]:
    report = json.loads(
        stage.cluster.kubectl(
            "get", "mrev", "-n", stage.namespace, "-l", f"modelrollout.dev/name={name}", "-o", "json"
        )
    )["items"]
    assert len(report) == 1
    return dict(report[0])


def test_a_fleet_prepares_once(stage: Stage) -> None:
    fleet = [f"fleet-{n}" for n in range(3)]
    stage.apply(*(stage.deployment(name, optimization=INT8) for name in fleet))

    def jobs() -> list[str]:
        report = json.loads(
            stage.cluster.kubectl(
                "get", "jobs", "-n", stage.namespace, "-l", "modelrollout.dev/component=prepare", "-o", "json"
            )
        )["items"]
        return [
            j["metadata"]["name"] for j in report if j["metadata"]["labels"]["modelrollout.dev/name"] in fleet
        ]

    for name in fleet:
        stage.until_ready(name)
    assert len(jobs()) == 1, "the others have waited for it without one"
    artifacts = [revision(stage, name)["status"]["artifact"] for name in fleet]
    assert len({(a["uri"], a["digest"]) for a in artifacts}) == 1
    assert sorted(bool(a.get("reused")) for a in artifacts) == [False, True, True]


def test_auto_finds_a_smaller_model_that_is_served_and_shows_what_it_chose_from(stage: Stage) -> None:
    search = {"data": {"uri": stage.data("selection.npz")}, "timeLimit": "2m"}
    gate = {"data": {"uri": stage.data("heldout.npz")}, "metrics": [{"name": "accuracy", "maxDrop": 0.03}]}
    stage.apply(
        stage.deployment("searched", "wide.onnx", optimization={"steps": [{"auto": search}], "gate": gate})
    )
    served = stage.until_ready("searched")["status"]["stable"]["revision"]
    artifact = stage.cluster.revision(stage.namespace, served)["status"]["artifact"]
    actual, [metric] = artifact["search"], artifact["metrics"]
    points = {p["name"]: p for p in actual["points"]}
    taken, source = points[actual["chosen"]], points["source"]
    assert (actual["ended"], actual["metric"], metric["verdict"], metric["samples"]) == (
        "Complete",
        "accuracy",
        "Successful",
        2000,
    )
    assert (
        actual["tried"] >= 9
        and taken["within"]
        and taken["size"] == min(p["size"] for p in points.values() if p["within"])
    )
    assert artifact["sizeAfter"] == taken["size"] < 0.5 * source["size"] == 0.5 * artifact["sizeBefore"]
    x, labels = models.inputs(200, 43)
    assert (stage.answers("searched", x)["logits"].argmax(1) == labels).mean() > 0.9

    def report(form: str) -> str:
        return stage.cluster.modelrollout("report", "searched", "-n", stage.namespace, "-o", form)

    rows = {
        form: [line for line in report(form).splitlines() if "kept" in line and " x" in line]
        for form in ("text", "markdown")
    }
    for form, lines in rows.items():
        assert len(lines) == len(points) and all(any(name in line for line in lines) for name in points), (
            f"{form}: {lines}"
        )
        assert [actual["chosen"] in line for line in lines if "taken" in line] == [True], f"{form}: {lines}"
    page = report("html")
    assert all(name in page for name in points) and page.count("<svg") >= 3, (
        "a picture of sizes, one of latencies, and those of the gate"
    )


def test_a_memory_limit_that_was_hit_is_named_and_a_higher_one_gets_on(stage: Stage) -> None:
    small = {**INT8, "resources": {"limits": {"memory": "40Mi", "cpu": "1"}}}
    stage.apply(stage.deployment("small", "better.onnx", optimization=small))
    message = stage.until_stalled("small", "OutOfMemory")
    assert "its limit of 40Mi" in message and "spec.optimization.resources.limits.memory" in message
    jobs = json.loads(
        stage.cluster.kubectl(
            "get", "pods", "-n", stage.namespace, "-l", "modelrollout.dev/name=small", "-o", "json"
        )
    )["items"]
    prepared = [p for p in jobs if p["metadata"]["labels"]["modelrollout.dev/component"] == "prepare"]
    assert len(prepared) == 1, "with the same limit it would end the same way"
    stage.apply(
        stage.deployment(
            "small",
            "better.onnx",
            optimization={**INT8, "resources": {"limits": {"memory": "2Gi", "cpu": "1"}}},
        )
    )
    name = revision(stage, "small")["metadata"]["name"]
    stage.cluster.kubectl("annotate", "mrev", name, "-n", stage.namespace, "modelrollout.dev/retry=larger")
    stage.until_ready("small")


def test_a_queue_is_waited_for_and_no_deadline_runs(stage: Stage) -> None:
    """What Kueue does to a Job with its label is done by hand here: there is no Kueue."""
    desired = {
        **INT8,
        "queueName": "optimizers",
        "resources": {"requests": {"cpu": "900"}, "limits": {"cpu": "900", "memory": "1Gi"}},
    }
    stage.apply(
        stage.deployment("queued", "third.onnx", optimization=desired, rollout={"progressDeadline": "10m"})
    )
    stage.until(
        "the pod has no node", lambda: stage.condition("queued", "Prepared")["reason"] == "Unschedulable"
    )
    selector = ("-n", stage.namespace, "-l", "kueue.x-k8s.io/queue-name=optimizers")
    (job,) = json.loads(stage.cluster.kubectl("get", "jobs", *selector, "-o", "json"))["items"]

    def suspend(value: bool) -> None:
        patch = json.dumps({"spec": {"suspend": value}})
        stage.cluster.kubectl(
            "patch", "job", job["metadata"]["name"], "-n", stage.namespace, "--type=merge", "-p", patch
        )

    suspend(True)
    stage.until("it waits in the queue", lambda: stage.condition("queued", "Prepared")["reason"] == "Queued")
    assert "LocalQueue optimizers" in stage.condition("queued", "Prepared")["message"]
    stage.set_rollout("queued", {"progressDeadline": "1s"})
    stage.until("the operator has seen it", lambda: stage.get("queued")["status"]["observedGeneration"] == 2)
    assert (
        stage.condition("queued", "Prepared")["reason"] == "Queued"
        and stage.condition("queued", "Stalled")["status"] == "False"
    )
    stage.set_rollout("queued", {"progressDeadline": "15s"})
    suspend(False)
    assert "nodes are available" in stage.until_stalled("queued", "Unschedulable"), (
        "outside of a queue the deadline counts"
    )
