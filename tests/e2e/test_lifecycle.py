"""The life of a ModelDeployment without a gateway: replica-weighted canary, verbs, a killed
operator, clean-up, deletion.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import RELEASE, SYSTEM_NAMESPACE, Cluster, secret
from demo.setup import CHART, SECRET
from modelrollout.api import names
from sandbox.paths import State
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.sandbox, pytest.mark.alone]

NAME = "plain"
BY_HAND = {"canary": {"steps": [{"weight": 50}, {"pause": {}}]}, "progressDeadline": "2m"}
PAUSED = {"canary": {"steps": [{"pause": {}}, {"weight": 50}]}, "progressDeadline": "2m"}


def at_step(stage: Stage, step: str) -> bool:
    status = stage.get(NAME)["status"]
    return status.get("step") == step and status["rollout"]["step"]["phase"] in ("Observing", "Paused")


def test_first_revision_becomes_stable_without_a_gateway(stage: Stage) -> None:
    stage.apply(stage.deployment(NAME, rollout=PAUSED))
    status = stage.until_ready(NAME)["status"]
    assert status["stable"]["number"] == 1
    assert status["address"]["url"] == f"http://{NAME}.{stage.namespace}.svc:8000"
    stage.until_outcome(status["stable"]["revision"], "Stable")
    [pdb] = stage.until(
        "it has a budget",
        lambda: json.loads(stage.cluster.kubectl("get", "pdb", "-n", stage.namespace, "-o", "json"))["items"],
    )
    assert pdb["spec"]["selector"]["matchLabels"]["modelrollout.dev/revision"] == status["stable"]["revision"]


def test_pods_and_jobs_are_restricted(stage: Stage) -> None:
    """The namespace refuses everything but the restricted Pod Security Standard from here on, and
    the next rollout still works.
    """
    stage.cluster.kubectl(
        "label", "namespace", stage.namespace, "pod-security.kubernetes.io/enforce=restricted"
    )
    for pod in stage.cluster.pods(stage.namespace, f"modelrollout.dev/name={NAME}"):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"].get("automountServiceAccountToken") is False


def test_promote_by_hand_with_the_operator_killed_in_between(stage: Stage) -> None:
    """Both replicas of the operator die in mid-rollout; the story goes on where it was, and a stale
    promote does nothing.
    """
    stage.apply(stage.deployment(NAME, "better.onnx", rollout=PAUSED))
    stage.until("the canary waits at its first pause", lambda: at_step(stage, "1/2"))
    stage.cluster.kubectl("delete", "pods", "-n", SYSTEM_NAMESPACE, "--all", "--force", "--grace-period=0")
    revision = stage.get(NAME)["status"]["rollout"]["revision"]
    stage.cluster.kubectl(
        "annotate", "mrev", revision, "-n", stage.namespace, "modelrollout.dev/promote=2/2 stale"
    )
    stage.until(
        "a promote of another step is refused",
        lambda: any(
            "stale" in verb and "refused" in verb for verb in stage.get(NAME)["status"]["handledVerbs"]
        ),
    )
    assert at_step(stage, "1/2")
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    stage.until("the canary has its share", lambda: at_step(stage, "2/2"))
    service = json.loads(stage.cluster.kubectl("get", "service", NAME, "-n", stage.namespace, "-o", "json"))
    assert "modelrollout.dev/revision" not in service["spec"]["selector"]
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    status = stage.until_ready(NAME)["status"]
    assert status["stable"]["revision"] == revision
    assert (
        "promote" in json.dumps(stage.cluster.revision(stage.namespace, revision)["status"]["steps"])
        or status["rollout"]["history"]
    )


def test_returning_to_the_old_spec_and_abort(stage: Stage) -> None:
    stable = stage.get(NAME)["status"]["stable"]["revision"]
    stage.apply(stage.deployment(NAME, "third.onnx", rollout=PAUSED))
    stage.until("the third waits", lambda: at_step(stage, "1/2"))
    third = stage.get(NAME)["status"]["rollout"]["revision"]
    stage.apply(stage.deployment(NAME, "better.onnx", rollout=PAUSED))  # Git goes back: no new canary
    assert stage.until_ready(NAME)["status"]["stable"]["revision"] == stable
    stage.until_outcome(third, "Superseded")


def test_rollback_holds_until_the_spec_changes(stage: Stage) -> None:
    first = next(
        r["metadata"]["name"]
        for r in json.loads(stage.cluster.kubectl("get", "mrev", "-n", stage.namespace, "-o", "json"))[
            "items"
        ]
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


@pytest.fixture
def clean_up(stage: Stage) -> Iterator[Cluster]:
    """The release with its CronJob, which nothing but a person starts, in a namespace that takes
    restricted pods only.
    """
    cluster, store = stage.cluster, stage.cluster.target.store
    cluster.apply(
        secret(
            SYSTEM_NAMESPACE,
            SECRET,
            {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key},
        )
    )
    restricted = ("pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/enforce-")
    cluster.kubectl("label", "namespace", SYSTEM_NAMESPACE, restricted[0])

    def upgrade(**values: Any) -> None:
        specified = [
            f"--set-json=artifactCleanup.{name}={json.dumps(value)}" for name, value in values.items()
        ]
        cluster.helm(
            "upgrade", RELEASE, str(CHART), "--namespace", SYSTEM_NAMESPACE, "--reuse-values", *specified
        )

    upgrade(enabled=True, olderThanDays=1, schedule="0 0 29 2 *", secretName=SECRET)
    yield cluster
    cluster.kubectl("delete", "job", "by-hand", "-n", SYSTEM_NAMESPACE, "--ignore-not-found")
    upgrade(enabled=False)
    cluster.kubectl("label", "namespace", SYSTEM_NAMESPACE, restricted[1])


@pytest.mark.skipif(
    "KUBECONTEXT" in os.environ,
    reason="the age of what lies in an S3 store cannot be set; in the sandbox's it is that of files",
)
def test_clean_up_takes_what_is_old_and_in_no_history(
    stage: Stage, clean_up: Cluster, tmp_path: Path
) -> None:
    revisions = json.loads(clean_up.kubectl("get", "mrev", "-n", stage.namespace, "-o", "json"))["items"]
    needed = {r["status"]["artifact"]["uri"] for r in revisions}
    assert len(needed) == 3 and {r["status"]["outcome"] for r in revisions} > {"Stable"}, (
        "stable, and versions that a rollback may go to"
    )
    (tmp_path / "manifest.json").write_text("{}")
    bucket = clean_up.target.store.artifacts
    old, young = (f"{stage.namespace}/{digit * 64}" for digit in "0f")
    clean_up.upload(
        bucket, {f"{folder}/manifest.json": tmp_path / "manifest.json" for folder in (old, young)}
    )
    files = State.of().data / "s3" / "objects" / bucket
    month_ago = time.time() - 30 * 86400
    for folder in (old, *(uri.removeprefix(f"s3://{bucket}/") for uri in needed)):
        for file in (files / folder).iterdir():
            os.utime(file, (month_ago, month_ago))
    clean_up.kubectl("create", "job", "by-hand", f"--from=cronjob/{RELEASE}-cleanup", "-n", SYSTEM_NAMESPACE)
    clean_up.kubectl(
        "wait", "--for=condition=Complete", "job/by-hand", "-n", SYSTEM_NAMESPACE, "--timeout=90s"
    )
    [pod] = clean_up.pods(SYSTEM_NAMESPACE, f"{names.LABEL_JOB}=by-hand")
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    left = stage.artifacts()
    assert needed <= left, "the oldest of them would be missed by a rollback"
    assert (f"s3://{bucket}/{old}" in left, f"s3://{bucket}/{young}" in left) == (False, True)


def test_deletion_leaves_nothing(stage: Stage) -> None:
    stage.cluster.kubectl("delete", "mdep", NAME, "-n", stage.namespace, "--wait=true", "--timeout=60s")

    def nothing() -> bool:
        left = json.loads(
            stage.cluster.kubectl("get", "mrev,deployments,jobs,pdb", "-n", stage.namespace, "-o", "json")
        )["items"]
        services = json.loads(stage.cluster.kubectl("get", "services", "-n", stage.namespace, "-o", "json"))[
            "items"
        ]
        return not left and not services

    stage.until("every child is gone", nothing)
