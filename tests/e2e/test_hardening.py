"""Revisions that an earlier operator rendered: what an upgrade leaves alone, a restart hardens, and
an image too old for it keeps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from demo.cluster import RELEASE, SYSTEM_NAMESPACE
from tests.e2e.conftest import ROOT, Asking, Stage

pytestmark = [pytest.mark.sandbox, pytest.mark.alone]

TOO_OLD = "0.4.2"  # of nvidia-pytriton: it carries Triton 2.39 (23.10), the last before the flags
TEMPLATE = json.loads((ROOT / "tests" / "unit" / "resources" / "template-builder-2.json").read_text())


@pytest.fixture(scope="module")
def old_triton(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sandbox's Triton image with an older real server; its name by digest."""
    if "KUBECONTEXT" in os.environ:
        pytest.skip("the image is made for the sandbox")
    folder = tmp_path_factory.mktemp("old-triton")
    shutil.copytree(ROOT / "tools" / "sandbox" / "images" / "triton", folder, dirs_exist_ok=True)
    file = folder / "Dockerfile"
    file.write_text(
        file.read_text()
        .replace("ARG PYTRITON\n", f"ARG PYTRITON={TOO_OLD}\n")
        .replace(" rm /wheel", " rm -f /wheel")
    )
    command = [sys.executable, "-m", "sandbox", "load-own-image", "old-triton", str(folder)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout.strip()


def read(stage: Stage, kind: str, name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(
        stage.cluster.kubectl("get", kind, name, "-n", stage.namespace, "-o", "json")
    )
    return report


def servers(stage: Stage, name: str) -> dict[str, dict[str, Any]]:
    pods = stage.cluster.pods(
        stage.namespace, f"modelrollout.dev/name={name},modelrollout.dev/component=server"
    )
    return {p["metadata"]["uid"]: p for p in pods if not p["metadata"].get("deletionTimestamp")}


def scale_operator(stage: Stage, replicas: int) -> None:
    stage.cluster.kubectl("scale", "deployment", RELEASE, "-n", SYSTEM_NAMESPACE, f"--replicas={replicas}")
    stage.cluster.kubectl(
        "rollout", "status", "deployment", RELEASE, "-n", SYSTEM_NAMESPACE, "--timeout=120s", timeout=150
    )
    running = "app.kubernetes.io/component=operator"
    stage.until(
        f"{replicas} operators run", lambda: len(stage.cluster.pods(SYSTEM_NAMESPACE, running)) == replicas
    )


def as_an_earlier_operator_left_it(
    stage: Stage, name: str, image: str | None = None, replicas: int = 2
) -> str:
    """A model that serves as builder 2 rendered it: the frozen template in its ModelRevision, and
    the pods. The revision's name.
    """
    serving = {
        "replicas": replicas,
        "resources": {
            "limits": {"nvidia.com/gpu": 1, "cpu": "500m"},
            "requests": {"cpu": "100m", "memory": "128Mi"},
        },
    }
    gateway = {"name": stage.cluster.target.gateway.name, "namespace": stage.cluster.target.gateway.namespace}
    stage.apply(
        stage.deployment(
            name,
            serving=serving,
            traffic={"gateway": gateway, "http": {"hostnames": [f"{name}.e2e.example"]}},
        )
    )
    revision = str(stage.until_ready(name)["status"]["stable"]["revision"])
    stage.until_outcome(revision, "Stable")
    scale_operator(stage, 0)
    retained, deployment = read(stage, "mrev", revision), read(stage, "deployment", revision)
    (before,) = TEMPLATE["spec"]["containers"]

    def earlier(spec: dict[str, Any]) -> None:
        (server,) = spec["containers"]
        server["args"] = [a.replace("--load-model=digits", f"--load-model={name}") for a in before["args"]]
        server["volumeMounts"], server["livenessProbe"] = before["volumeMounts"], before["livenessProbe"]
        server["env"] = before["env"]
        server["image"] = image or server["image"]

    for template in (retained["spec"]["template"], deployment["spec"]["template"]):
        earlier(template["spec"])
        template["metadata"]["annotations"].pop("modelrollout.dev/hardened")
    status = retained.pop("status")
    retained["spec"]["builder"] = "2"
    retained["metadata"] = {
        k: retained["metadata"][k]
        for k in ("name", "namespace", "labels", "annotations", "ownerReferences")
        if k in retained["metadata"]
    }
    stage.cluster.kubectl("delete", "mrev", revision, "-n", stage.namespace, "--cascade=orphan")
    stage.cluster.kubectl("create", "-f", "-", stdin=json.dumps(retained))
    stage.cluster.kubectl(
        "patch",
        "mrev",
        revision,
        "-n",
        stage.namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    uid = read(stage, "mrev", revision)["metadata"]["uid"]
    # the garbage collector has taken away the orphans' own
    owner = deployment["metadata"]["ownerReferences"][0] | {"uid": uid}
    owned = json.dumps([{"op": "add", "path": "/metadata/ownerReferences", "value": [owner]}])
    for kind in ("deployment", "service"):
        stage.cluster.kubectl("patch", kind, revision, "-n", stage.namespace, "--type=json", "-p", owned)
    spec = {"spec": {"template": deployment["spec"]["template"]}}
    replaced = json.dumps([{"op": "replace", "path": "/spec/template", "value": spec["spec"]["template"]}])
    stage.cluster.kubectl(
        "patch", "deployment", revision, "-n", stage.namespace, "--type=json", "-p", replaced
    )
    stage.cluster.kubectl(
        "rollout", "status", "deployment", revision, "-n", stage.namespace, "--timeout=120s", timeout=150
    )
    stage.until("the pods of before are gone", lambda: len(servers(stage, name)) == replicas)
    scale_operator(stage, 2)
    return revision


@pytest.fixture(autouse=True)
def operator_runs(stage: Stage) -> Iterator[None]:
    yield
    scale_operator(stage, 2)


def test_an_upgrade_restarts_nothing_and_a_restart_hardens_without_a_failed_request(stage: Stage) -> None:
    name = "upgraded"
    revision = as_an_earlier_operator_left_it(stage, name)
    before, pods = read(stage, "mrev", revision), set(servers(stage, name))
    stage.until("it says what is open", lambda: stage.condition(name, "Hardened")["reason"] == "Unhardened")
    assert set(servers(stage, name)) == pods and stage.condition(name, "Ready")["status"] == "True"
    assert "modelrollout restart" in stage.condition(name, "Hardened")["message"]
    with Asking(stage, name) as codes:
        stage.until("requests are answered", lambda: codes["200"] > 20)
        stage.cluster.modelrollout("restart", name, "-n", stage.namespace)
        stage.until("all pods are new", lambda: not pods & set(servers(stage, name)))
        stage.until("and hardened", lambda: stage.condition(name, "Hardened")["status"] == "Unknown")
        ended = codes["200"] + 40
        stage.until("and answer", lambda: codes["200"] > ended)
    assert set(codes) == {"200"}, codes
    for pod in servers(stage, name).values():
        (server,) = pod["spec"]["containers"]
        assert "--model-control-mode=none" in server["args"]
    after = read(stage, "mrev", revision)
    assert after["spec"] == before["spec"] and after["metadata"]["uid"] == before["metadata"]["uid"]
    status = stage.get(name)["status"]
    assert (
        status["stable"]["revision"] == revision
        and status["lastNumber"] == 1
        and status["restarts"][revision]["done"]
    )
    assert {"Unhardened", "RestartedByUser", "Hardened"} <= set(stage.events(name))
    stage.cluster.kubectl("delete", "mdep", name, "-n", stage.namespace)


def test_an_image_too_old_for_the_flags_leaves_the_pods_that_serve_alone(
    stage: Stage, old_triton: str
) -> None:
    name = "too-old"
    revision = as_an_earlier_operator_left_it(stage, name, old_triton, replicas=1)
    pods = set(servers(stage, name))
    with Asking(stage, name) as codes:
        stage.until("the old server answers", lambda: codes["200"] > 20)
        stage.cluster.modelrollout("restart", name, "-n", stage.namespace)
        stage.until("it says so", lambda: stage.condition(name, "Hardened")["reason"] == "TritonTooOld")
        stage.until("only the pods of before are left", lambda: set(servers(stage, name)) == pods)
    assert set(codes) == {"200"}, codes
    assert "spec.serving.triton.image" in stage.condition(name, "Hardened")["message"]
    assert (
        stage.get(name)["status"]["stable"]["revision"] == revision
        and stage.condition(name, "Ready")["status"] == "True"
    )
    stage.cluster.kubectl("delete", "mdep", name, "-n", stage.namespace)


def test_a_new_version_with_an_image_too_old_gets_no_weight(stage: Stage, old_triton: str) -> None:
    name = "new-version"
    deployment = stage.deployment(name, rollout={"progressDeadline": "10m"})
    deployment["spec"]["serving"]["triton"] = {"image": old_triton}
    stage.apply(deployment)
    stage.until(
        "it waits for another image", lambda: stage.condition(name, "Reconciling")["reason"] == "TritonTooOld"
    )
    assert "23.11" in stage.condition(name, "Reconciling")["message"]
    assert stage.get(name)["status"].get("stable") is None
    stage.set_rollout(name, {"progressDeadline": "3s"})
    assert "spec.serving.triton.image" in stage.until_stalled(name, "TritonTooOld")


def test_without_a_free_gpu_a_restart_waits_or_ends_the_pod_first(stage: Stage) -> None:
    name = "cramped"
    stage.apply(stage.deployment(name))
    stage.until_ready(name)
    free = free_gpus(stage)
    stage.apply(hog(stage, free))
    stage.cluster.kubectl("rollout", "status", "deployment", "hog", "-n", stage.namespace, "--timeout=60s")
    before = set(servers(stage, name))
    stage.cluster.modelrollout("restart", name, "-n", stage.namespace)
    stage.until(
        "it waits for a GPU", lambda: stage.condition(name, "Restarted")["reason"] == "InsufficientGPU"
    )
    assert "--allow-downtime" in stage.condition(name, "Restarted")["message"]
    assert before <= set(servers(stage, name)) and stage.condition(name, "Ready")["status"] == "True"
    stage.cluster.modelrollout("restart", name, "-n", stage.namespace, "--allow-downtime")
    stage.until(
        "the pod is another",
        lambda: len(servers(stage, name)) == 1 and not before & set(servers(stage, name)),
    )
    stage.until("all is told", lambda: stage.condition(name, "Restarted")["status"] == "Unknown")
    stage.until("and it serves", lambda: stage.condition(name, "Available")["status"] == "True")
    before = set(servers(stage, name))
    stage.cluster.modelrollout("restart", name, "-n", stage.namespace)
    stage.until("it waits again", lambda: stage.condition(name, "Restarted")["reason"] == "InsufficientGPU")
    stage.cluster.kubectl("scale", "deployment", "hog", "-n", stage.namespace, f"--replicas={free - 1}")
    stage.until(
        "it goes on by itself",
        lambda: len(servers(stage, name)) == 1 and not before & set(servers(stage, name)),
    )


def free_gpus(stage: Stage) -> int:
    total = sum(
        int(n["status"]["allocatable"].get("nvidia.com/gpu", 0))
        for n in stage.cluster.get("/api/v1/nodes")["items"]
    )
    used = 0
    for pod in stage.cluster.get("/api/v1/pods")["items"]:
        if pod["spec"].get("nodeName") and pod["status"]["phase"] not in ("Succeeded", "Failed"):
            used += sum(
                int((c.get("resources", {}).get("limits") or {}).get("nvidia.com/gpu", 0))
                for c in pod["spec"]["containers"]
            )
    return total - used


def hog(stage: Stage, gpus: int) -> dict[str, Any]:
    """Pods that hold so many GPUs."""
    image, gpu = stage.cluster.target.images.operator, {"limits": {"nvidia.com/gpu": 1}}
    container = {
        "name": "hog",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"],
        "resources": gpu,
    }
    spec = {
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "hog", "namespace": stage.namespace},
        "spec": {
            "replicas": gpus,
            "selector": {"matchLabels": {"app": "hog"}},
            "template": {"metadata": {"labels": {"app": "hog"}}, "spec": spec},
        },
    }
