"""What strangers with rights in the namespace make: objects with our labels, of our names, and pods
that pass themselves off as a Job's.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import obstore
import pytest

from modelrollout.api import names
from modelrollout.contract.exit_codes import ExitCode
from tests.e2e.conftest import Asking, Stage

pytestmark = pytest.mark.sandbox

NAME = "kept"
OURS = {names.LABEL_NAME: NAME, names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
OF_THE_DEPLOYMENT = [("service", NAME), ("pdb", NAME), ("httproute", NAME)]
FORGED = {
    "reason": "Completed",
    "reused": True,
    "artifact_uri": "s3://artifacts/another/0123",
    "artifact_digest": f"sha256:{'ab' * 32}",
}
SAYS = (
    f"open('/dev/termination-log', 'w').write({json.dumps(json.dumps(FORGED))}); raise"
    f" SystemExit({int(ExitCode.REUSED)})"
)
# of those that ask for anything, as a Job's pod does
NO_PODS = {"hard": {"pods": "0"}, "scopes": ["NotBestEffort"]}


def read(stage: Stage, kind: str, name: str) -> dict[str, Any]:
    return dict(json.loads(stage.cluster.kubectl("get", kind, name, "-n", stage.namespace, "-o", "json")))


def there(stage: Stage, kind: str, name: str) -> bool:
    return bool(
        stage.cluster.kubectl(
            "get", kind, name, "-n", stage.namespace, "--ignore-not-found", "-o", "name"
        ).strip()
    )


def a_pass(stage: Stage) -> None:
    """A child that was deleted is there again: a pass has written what it wanted, and the one
    before had removed what it did not want.
    """
    for _ in range(2):
        before = read(stage, "pdb", NAME)["metadata"]["uid"]
        stage.cluster.kubectl("delete", "pdb", NAME, "-n", stage.namespace)
        stage.until(
            "it is made anew",
            lambda old=before: (
                there(stage, "pdb", NAME) and read(stage, "pdb", NAME)["metadata"]["uid"] != old
            ),
        )


def service(stage: Stage, name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": stage.namespace, "labels": OURS}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 1}]},
    }


def deployment(stage: Stage, name: str) -> dict[str, Any]:
    containers = [{"name": "x", "image": "registry.example/none"}]
    template = {"metadata": {"labels": {"app": "theirs"}}, "spec": {"containers": containers}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "theirs"}}, "template": template}
    metadata = {"name": name, "namespace": stage.namespace, "labels": OURS}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def model(stage: Stage) -> dict[str, Any]:
    traffic = stage.traffic(f"{NAME}.e2e.example")
    return stage.deployment(NAME, traffic=traffic)


def test_labels_own_nothing_and_a_name_that_is_taken_is_told(stage: Stage) -> None:
    stage.apply(service(stage, NAME), service(stage, "theirs"), deployment(stage, "theirs"))
    theirs = [("service", NAME), ("service", "theirs"), ("deployment", "theirs")]
    before = {child: read(stage, *child)["metadata"]["uid"] for child in theirs}
    stage.apply(model(stage))
    message = stage.until_stalled(NAME, "NameTaken")
    assert message.startswith(
        f"Service {NAME} exists and is not this model's: no controller owns it, and labels do not"
        " establish ownership;"
        " delete it"
    )
    ready = stage.condition(NAME, "Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "NameTaken", message)
    assert stage.condition(NAME, "Available")["status"] == "True"
    stage.until("an event says so", lambda: "NameTaken" in stage.events(NAME))
    with Asking(stage, NAME) as codes:
        stage.until("the gateway's clients are answered", lambda: codes["200"] > 20)
    a_pass(stage)
    assert {child: read(stage, *child)["metadata"]["uid"] for child in theirs} == before
    assert read(stage, "service", NAME)["spec"]["selector"] == {"app": "theirs"}
    stage.cluster.kubectl("delete", "service", NAME, "-n", stage.namespace)
    stage.until_ready(NAME)
    assert {child: read(stage, *child)["metadata"]["uid"] for child in theirs[1:]} == {
        child: before[child] for child in theirs[1:]
    }


def test_orphans_are_adopted_without_an_outage(stage: Stage) -> None:
    """After the test above."""
    revision = stage.get(NAME)["status"]["stable"]["revision"]
    children = [*OF_THE_DEPLOYMENT, ("mrev", revision), ("deployment", revision), ("service", revision)]

    def all_recorded() -> bool:
        recorded = set(stage.cluster.revision(stage.namespace, revision)["status"].get("children") or [])
        return {read(stage, *child)["metadata"]["uid"] for child in OF_THE_DEPLOYMENT} <= recorded

    def pods() -> set[str]:
        return {
            p["metadata"]["uid"]
            for p in stage.cluster.pods(stage.namespace, f"{names.LABEL_REVISION}={revision}")
        }

    stage.until("all that it owns is recorded", all_recorded)
    before, serving = {child: read(stage, *child)["metadata"]["uid"] for child in children}, pods()
    with Asking(stage, NAME) as codes:
        stage.until("requests are answered", lambda: codes["200"] > 20)
        stage.cluster.kubectl("delete", "mdep", NAME, "-n", stage.namespace, "--cascade=orphan")
        assert "ownerReferences" not in read(stage, "httproute", NAME)["metadata"]
        stage.apply(model(stage))
        uid = stage.until_ready(NAME)["metadata"]["uid"]
        for child in [*OF_THE_DEPLOYMENT, ("mrev", revision)]:
            assert [(o["kind"], o["uid"]) for o in read(stage, *child)["metadata"]["ownerReferences"]] == [
                ("ModelDeployment", uid)
            ], child
        answered = codes["200"] + 40
        stage.until("and still are", lambda: codes["200"] > answered)
    assert set(codes) == {"200"}, codes
    assert {
        child: read(stage, *child)["metadata"]["uid"] for child in children
    } == before and pods() == serving
    assert stage.get(NAME)["status"]["stable"]["revision"] == revision


def prepared(stage: Stage, name: str) -> dict[str, Any]:
    """Its prepare Job, which gets no pod."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-pods", "namespace": stage.namespace},
        "spec": NO_PODS,
    }
    stage.apply(quota)
    stage.until(
        "the quota counts",
        lambda: "pods" in (read(stage, "resourcequota", "no-pods").get("status") or {}).get("hard", {}),
    )
    deployment = stage.deployment(name, optimization={"steps": [{"int8": {"method": "Dynamic"}}]})
    bucket = stage.cluster.bucket(stage.cluster.target.store.models)
    deployment["spec"]["model"]["sha256"] = hashlib.sha256(
        bytes(obstore.get(bucket, "e2e/good.onnx").bytes())
    ).hexdigest()
    stage.apply(deployment)
    selector = f"{names.LABEL_NAME}={name},{names.LABEL_COMPONENT}={names.COMPONENT_PREPARE}"
    return dict(stage.until("its Job is there", lambda: stage.cluster.jobs(stage.namespace, selector))[0])


def forged(stage: Stage, job: dict[str, Any], name: str, *, without: str = "", **metadata: Any) -> str:
    """A pod with the labels of the Job's says that an artifact of another namespace was there
    before, and has ended as the Job's would.
    """
    copied = job["spec"]["template"]["metadata"]["labels"] | {names.LABEL_JOB: job["metadata"]["name"]}
    labels = {k: v for k, v in copied.items() if not without or without not in k}
    name = f"{job['metadata']['name']}-{name}"
    container = {
        "name": "job",
        "image": stage.cluster.target.images.operator,
        "command": ["python", "-c", SAYS],
    }
    about = {"name": name, "namespace": stage.namespace, "labels": labels} | metadata
    stage.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": about,
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }
    )
    stage.until("it has ended", lambda: read(stage, "pod", name)["status"]["phase"] == "Failed")
    [ended] = read(stage, "pod", name)["status"]["containerStatuses"]
    assert (
        ended["state"]["terminated"]["exitCode"] == ExitCode.REUSED
        and json.loads(ended["state"]["terminated"]["message"]) == FORGED
    )
    return name


def test_a_pod_with_a_jobs_labels_is_not_believed_and_the_job_goes_on(stage: Stage) -> None:
    """With all of them but the Job's uid it has no owner; with that too the Job controller adopts
    it, the Job ends by it, and is made anew.
    """
    job = prepared(stage, "copied")
    forged(stage, job, "forged", without="controller-uid")
    stage.set_rollout("copied", {"progressDeadline": "3m"})
    stage.until("the operator has seen it", lambda: stage.get("copied")["status"]["observedGeneration"] == 2)
    rollout = stage.get("copied")["status"]["rollout"]
    assert (rollout["stage"], rollout.get("attempt", 0)) == ("Prepare", 0)
    forged(stage, job, "adopted")
    stage.until("another Job is made", lambda: stage.get("copied")["status"]["rollout"].get("attempt") == 1)
    assert stage.get("copied")["status"]["rollout"]["stage"] == "Prepare"
    stage.cluster.kubectl("delete", "resourcequota", "no-pods", "-n", stage.namespace)
    revision = stage.until_ready("copied")["status"]["stable"]["revision"]
    artifact = stage.cluster.revision(stage.namespace, revision)["status"]["artifact"]
    assert f"/{stage.namespace}/" in artifact["uri"] and artifact["digest"] != FORGED["artifact_digest"]


def test_a_pod_that_the_job_was_made_to_control_is_told_and_not_believed(stage: Stage) -> None:
    """Named as the Job controller names its own, it passes for one that something has changed."""
    job = prepared(stage, "passed-off")
    name = forged(stage, job, "forged", generateName=f"{job['metadata']['name']}-")
    message = stage.until_stalled("passed-off", "PodChanged")
    assert (
        message.startswith(f"pod {name} is not as its Job's template says: ")
        and "what it says does not count" in message
    )
    stage.cluster.kubectl("delete", "resourcequota", "no-pods", "-n", stage.namespace)
