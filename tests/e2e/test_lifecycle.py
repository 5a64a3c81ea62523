"""The life of a ModelDeployment without a gateway: replica-weighted canary, verbs, a killed operator, deletion."""

from __future__ import annotations

import json

import pytest

from demo.cluster import SYSTEM_NAMESPACE
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

NAME = "plain"
BY_HAND = {"canary": {"steps": [{"weight": 50}, {"pause": {}}]}, "progressDeadline": "2m"}
HELD = {"canary": {"steps": [{"pause": {}}, {"weight": 50}]}, "progressDeadline": "2m"}


def at_step(stage: Stage, step: str) -> bool:
    status = stage.get(NAME)["status"]
    return status.get("step") == step and status["rollout"]["step"]["phase"] in ("Observing", "Paused")


def test_first_revision_becomes_stable_without_a_gateway(stage: Stage) -> None:
    stage.apply(stage.deployment(NAME, rollout=HELD))
    status = stage.until_ready(NAME)["status"]
    assert status["stable"]["number"] == 1
    assert status["address"]["url"] == f"http://{NAME}.{stage.namespace}.svc:8000"
    revision = stage.cluster.revision(stage.namespace, status["stable"]["revision"])
    assert revision["status"]["outcome"] == "Stable"
    [pdb] = json.loads(stage.cluster.kubectl("get", "pdb", "-n", stage.namespace, "-o", "json"))["items"]
    assert pdb["spec"]["selector"]["matchLabels"]["modelrollout.dev/revision"] == status["stable"]["revision"]


def test_pods_and_jobs_are_restricted(stage: Stage) -> None:
    """The namespace refuses everything but the restricted Pod Security Standard from here on, and the next rollout still works."""
    stage.cluster.kubectl("label", "namespace", stage.namespace, "pod-security.kubernetes.io/enforce=restricted")
    for pod in stage.cluster.pods(stage.namespace, f"modelrollout.dev/name={NAME}"):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"].get("automountServiceAccountToken") is False


def test_promote_by_hand_with_the_operator_killed_in_between(stage: Stage) -> None:
    """Both replicas of the operator die in mid-rollout; the story goes on where it was, and a stale promote does nothing."""
    stage.apply(stage.deployment(NAME, "better.onnx", rollout=HELD))
    stage.until("the canary waits at its first pause", lambda: at_step(stage, "1/2"))
    stage.cluster.kubectl("delete", "pods", "-n", SYSTEM_NAMESPACE, "--all", "--force", "--grace-period=0")
    revision = stage.get(NAME)["status"]["rollout"]["revision"]
    stage.cluster.kubectl("annotate", "mrev", revision, "-n", stage.namespace, "modelrollout.dev/promote=2/2 stale")
    stage.until(
        "a promote of another step is refused",
        lambda: any("stale" in verb and "refused" in verb for verb in stage.get(NAME)["status"]["handledVerbs"]),
    )
    assert at_step(stage, "1/2")
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    stage.until("the canary has its share", lambda: at_step(stage, "2/2"))
    service = json.loads(stage.cluster.kubectl("get", "service", NAME, "-n", stage.namespace, "-o", "json"))
    assert "modelrollout.dev/revision" not in service["spec"]["selector"]
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    status = stage.until_ready(NAME)["status"]
    assert status["stable"]["revision"] == revision
    assert "promote" in json.dumps(stage.cluster.revision(stage.namespace, revision)["status"]["steps"]) or status["rollout"]["history"]


def test_returning_to_the_old_spec_and_abort(stage: Stage) -> None:
    stable = stage.get(NAME)["status"]["stable"]["revision"]
    stage.apply(stage.deployment(NAME, "third.onnx", rollout=HELD))
    stage.until("the third waits", lambda: at_step(stage, "1/2"))
    third = stage.get(NAME)["status"]["rollout"]["revision"]
    stage.apply(stage.deployment(NAME, "better.onnx", rollout=HELD))  # Git goes back: no new canary
    assert stage.until_ready(NAME)["status"]["stable"]["revision"] == stable
    assert stage.cluster.revision(stage.namespace, third)["status"]["outcome"] == "Superseded"


def test_rollback_holds_until_the_spec_changes(stage: Stage) -> None:
    first = next(
        r["metadata"]["name"]
        for r in json.loads(stage.cluster.kubectl("get", "mrev", "-n", stage.namespace, "-o", "json"))["items"]
        if r["spec"]["number"] == 1
    )
    stage.cluster.modelrollout("rollback", NAME, "-n", stage.namespace, "--to", first)
    stage.until("stable is the first again", lambda: stage.get(NAME)["status"]["stable"]["revision"] == first)
    message = stage.until_stalled(NAME, "RolledBackByUser")
    assert first in message
    assert stage.condition(NAME, "Available")["status"] == "True"


def test_step_edit_in_mid_rollout(stage: Stage) -> None:
    """A step added behind the present one is taken; the weight that was reached stays."""
    stage.apply(stage.deployment(NAME, "third.onnx", rollout=BY_HAND))
    stage.until("a canary runs", lambda: stage.get(NAME)["status"].get("step") == "1/2")
    longer = {**BY_HAND, "canary": {"steps": [{"weight": 50}, {"weight": 75}, {"pause": {}}]}}
    stage.apply(stage.deployment(NAME, "third.onnx", rollout=longer))
    stage.until("the new list is in force", lambda: stage.get(NAME)["status"].get("step") == "1/3")
    assert stage.get(NAME)["status"]["weight"] == 50
    stage.cluster.modelrollout("abort", NAME, "-n", stage.namespace)
    stage.until("it is aborted", lambda: stage.get(NAME)["status"]["rollout"]["outcome"] == "Aborted")


def test_deletion_leaves_nothing(stage: Stage) -> None:
    stage.cluster.kubectl("delete", "mdep", NAME, "-n", stage.namespace, "--wait=true", "--timeout=60s")

    def nothing() -> bool:
        left = json.loads(stage.cluster.kubectl("get", "mrev,deployments,jobs,pdb", "-n", stage.namespace, "-o", "json"))["items"]
        services = json.loads(stage.cluster.kubectl("get", "services", "-n", stage.namespace, "-o", "json"))["items"]
        return not left and not services

    stage.until("every child is gone", nothing)
