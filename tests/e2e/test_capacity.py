"""What a rollout needs before and beside the trial: GPUs (surge InPlace), and what a RolloutPolicy
demands, on the real scheduler and API server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from demo.setup import SECRET
from tests.e2e.conftest import Stage
from tests.e2e.models import FEATURES

pytestmark = [pytest.mark.sandbox, pytest.mark.alone]

GPU = "nvidia.com/gpu"
MIG = "nvidia.com/mig-1g.10gb"
HOST = "in-place.e2e.example"
BODY = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}


def asked(stage: Stage, name: str) -> requests.Response:
    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{name}/infer"
    return requests.post(url, json=BODY, headers={"Host": HOST}, timeout=10)


def pods(stage: Stage, name: str) -> dict[str, list[bool]]:
    """By revision, whether each of its server pods is ready."""
    actual: dict[str, list[bool]] = {}
    query = f"labelSelector=modelrollout.dev/name={name},modelrollout.dev/component=server"
    for pod in stage.cluster.get(f"/api/v1/namespaces/{stage.namespace}/pods?{query}")["items"]:
        ready = any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in (pod.get("status") or {}).get("conditions", [])
        )
        actual.setdefault(pod["metadata"]["labels"]["modelrollout.dev/revision"], []).append(ready)
    return actual


def free_gpus(stage: Stage) -> int:
    """On the node that has most of them: others may be serving on this cluster, too. Zero while
    another with GPUs is on the way out.
    """
    free = {
        n["metadata"]["name"]: int(n["status"]["allocatable"].get(GPU, 0))
        for n in stage.cluster.get("/api/v1/nodes")["items"]
    }
    ending = {
        n["metadata"]["name"]
        for n in stage.cluster.get("/api/v1/namespaces")["items"]
        if "deletionTimestamp" in n["metadata"]
    }
    for pod in stage.cluster.get("/api/v1/pods")["items"]:
        taken = sum(
            int(c.get("resources", {}).get("requests", {}).get(GPU, 0)) for c in pod["spec"]["containers"]
        )
        if taken and "nodeName" in pod["spec"] and pod["status"]["phase"] in ("Pending", "Running"):
            if "deletionTimestamp" in pod["metadata"] or pod["metadata"]["namespace"] in ending:
                return 0
            free[pod["spec"]["nodeName"]] -= taken
    return max(free.values())


@pytest.fixture
def in_place(stage: Stage) -> Iterator[str]:
    """A name; what has it gives its GPUs back to the tests that follow."""
    yield "in-place"
    stage.cluster.kubectl(
        "delete", "mdep", "in-place", "-n", stage.namespace, "--ignore-not-found", "--wait=true"
    )


def test_in_place_two_revisions_take_turns_on_the_same_gpus(stage: Stage, in_place: str) -> None:
    """Half of all free GPUs for each of two pods: nothing is left for the new revision, and no
    request fails on the way there or back.
    """
    most = stage.until("two GPUs are free", lambda: free if (free := free_gpus(stage)) >= 2 else None)
    name = in_place
    limits = {GPU: most // 2, "cpu": "500m", "memory": "512Mi"}
    serving = {
        "replicas": 2,
        "surge": "InPlace",
        "resources": {"limits": limits, "requests": {"cpu": "100m", "memory": "128Mi"}},
    }
    analysis = {
        "interval": "1s",
        "initialDelay": "0s",
        "metrics": [{"name": "errors", "maxIncrease": 0.5, "minSamples": 10}],
    }

    def borrower(file: str, **rollout: Any) -> dict[str, Any]:
        traffic = stage.traffic(HOST)
        specified = {
            "analysis": analysis,
            "progressDeadline": "3m",
            "canary": {"steps": [{"weight": 50}]},
            **rollout,
        }
        return stage.deployment(name, file, serving=serving, traffic=traffic, rollout=specified)

    stage.apply(borrower("good.onnx"))
    stage.until_ready(name, 240)
    stage.until("the gateway serves", lambda: asked(stage, name).status_code == 200)
    first = stage.get(name)["status"]["stable"]["revision"]
    least: list[int] = []

    def under_load(phase: str) -> bool:
        stage.served(name, lambda: asked(stage, name), 20)
        ready = pods(stage, name)
        least.append(sum(sum(r) for r in ready.values()))
        return bool(stage.get(name)["status"].get("phase") == phase)

    stage.apply(borrower("better.onnx", canary={"steps": [{"weight": 50}, {"pause": {}}]}))
    stage.until(
        "the trial pauses",
        lambda: (
            under_load("Paused") or (under_load("Canary") and stage.get(name)["status"].get("step") == "2/2")
        ),
        180,
    )
    assert stage.get(name)["status"]["rollout"]["inPlace"] == {
        "previousStableReplicas": 2,
        "stableReplicas": 1,
    }
    stage.cluster.modelrollout("abort", name, "-n", stage.namespace)
    stage.until(
        "stable has its pods again",
        lambda: under_load("Failed") and pods(stage, name) == {first: [True, True]},
    )

    stage.apply(borrower("third.onnx"))
    stage.until("the next version is stable", lambda: under_load("Stable"), 180)
    second = stage.get(name)["status"]["stable"]["revision"]
    stage.until(
        "and has all GPUs", lambda: under_load("Stable") and pods(stage, name) == {second: [True, True]}
    )
    assert second != first and min(least) >= 1
    assert "InPlace" in stage.events(name)


@pytest.fixture
def policy(stage: Stage) -> Iterator[dict[str, Any]]:
    """A policy for this namespace; tests fill in spec and apply it."""
    made = {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": stage.namespace},
        "spec": {"selector": {"namespaces": [stage.namespace]}},
    }
    yield made
    stage.cluster.kubectl("delete", "rpol", stage.namespace, "--ignore-not-found")


def applied(stage: Stage, policy: dict[str, Any], **spec: Any) -> None:
    stage.apply({**policy, "spec": {**policy["spec"], **spec}})


def test_in_a_freeze_nothing_begins_and_it_goes_on_by_itself_afterwards(
    stage: Stage, policy: dict[str, Any]
) -> None:
    now = datetime.now(UTC)
    begin, end, over = (f"{now + timedelta(hours=h):%Y-%m-%dT%H:%M:%SZ}" for h in (-1, 1, 0))
    window = {"start": begin, "end": end, "reason": "end of the quarter"}
    applied(stage, policy, freezeWindows=[window])
    stage.apply(stage.deployment("frozen"))
    told = stage.until(
        "it says that it is frozen",
        lambda: (c := stage.condition("frozen", "Frozen"))["status"] == "True" and c,
    )
    assert (
        "end of the quarter" in told["message"] and stage.condition("frozen", "Stalled")["status"] == "False"
    )
    assert "rollout" not in stage.get("frozen")["status"]
    applied(stage, policy, freezeWindows=[{**window, "end": over}])
    stage.until_ready("frozen")
    stage.cluster.kubectl("delete", "mdep", "frozen", "-n", stage.namespace, "--wait=true")


def test_one_rollout_at_a_time_in_the_order_in_which_they_came(stage: Stage, policy: dict[str, Any]) -> None:
    applied(stage, policy, limits={"concurrentRollouts": 1})
    names = ["slot-a", "slot-b", "slot-c"]
    stage.apply(*(stage.deployment(name) for name in names))
    waited: set[str] = set()
    order: list[str] = []

    def all_stable() -> bool:
        live = {name: stage.get(name).get("status") or {} for name in names}
        rollouts = {name: status.get("rollout") or {} for name, status in live.items()}
        holding = [
            n
            for n, r in rollouts.items()
            if r.get("stage") in ("Provision", "Evaluate", "Promote") and not r.get("queue")
        ]
        assert len(holding) <= 1, f"{holding} at one time"
        waited.update(
            n
            for n, r in rollouts.items()
            if r.get("reason") == "WaitingForSlot" and f"RolloutPolicy {stage.namespace}" in r["message"]
        )
        order.extend(n for n in holding if n not in order)
        return all(status.get("phase") == "Stable" for status in live.values())

    stage.until("all three are stable", all_stable, 240)
    assert len(waited) == 2 and set(order) <= set(names)
    slots = stage.cluster.get(
        "/apis/coordination.k8s.io/v1/leases?labelSelector=modelrollout.dev/policy=" + stage.namespace
    )["items"]
    assert len(slots) == 1


@pytest.fixture
def slices(stage: Stage) -> Iterator[str]:
    """A name, and a node with GPUs that offers seven slices of one, too."""
    node = next(
        n["metadata"]["name"]
        for n in stage.cluster.get("/api/v1/nodes")["items"]
        if int(n["status"]["allocatable"].get(GPU, 0))
    )

    def offer(count: str | None) -> None:
        amount = {MIG: count}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        stage.cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)

    offer("7")
    yield "sliced"
    stage.cluster.kubectl(
        "delete", "mdep", "sliced", "-n", stage.namespace, "--ignore-not-found", "--wait=true"
    )
    offer(None)


def test_slices_of_a_gpu_count_exactly_and_find_their_node(
    stage: Stage, policy: dict[str, Any], slices: str
) -> None:
    def deployment(file: str, replicas: int) -> dict[str, Any]:
        resources = {"limits": {MIG: 1, "cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "50m"}}
        return stage.deployment(
            slices,
            file,
            serving={"replicas": replicas, "resources": resources},
            rollout={"canary": {"steps": [{"weight": 5}]}, "progressDeadline": "5m"},
        )

    stage.apply(deployment("good.onnx", 3))
    first = stage.until_ready(slices)["status"]["stable"]["revision"]
    assert pods(stage, slices) == {first: [True] * 3}, "on the node with the taint of GPUs"
    applied(stage, policy, limits={"gpus": 1})
    stage.apply(deployment("better.onnx", 3))
    slot = stage.until("it holds a slot", lambda: stage.get(slices)["status"]["rollout"].get("slot"))
    assert (slot["gpus"], slot["exactGpus"]) == (1, "3/7")
    leases = stage.cluster.get(
        "/apis/coordination.k8s.io/v1/leases?labelSelector=modelrollout.dev/policy=" + stage.namespace
    )["items"]
    [lease] = [o for o in leases if f"/{slices}/" in o["spec"].get("holderIdentity", "")]
    assert lease["metadata"]["annotations"]["modelrollout.dev/exact-gpus"] == "3/7"
    stage.cluster.modelrollout("abort", slices, "-n", stage.namespace)
    stage.until("it is aborted", lambda: stage.get(slices)["status"]["rollout"]["outcome"] == "Aborted")
    stage.apply(deployment("third.onnx", 8))
    assert "ask for 1 1/7 GPUs" in stage.until_stalled(slices, "LimitTooSmall")


def test_what_a_gate_demands_is_told_and_met(stage: Stage, policy: dict[str, Any]) -> None:
    applied(stage, policy, gates={"golden": True, "bake": "5s"})
    stage.apply(stage.deployment("gated"))
    message = stage.until_stalled("gated", "GateRequired")
    assert "spec.rollout.analysis.golden" in message and stage.namespace in message
    stage.set_rollout("gated", {"analysis": {"golden": {"uri": stage.data("good.npz"), "labels": "labels"}}})
    stage.until_ready("gated")
    assert stage.get("gated")["status"]["defaults"] == {"bake": "5s"}


def test_a_version_of_triton_with_known_flaws_is_rejected_where_a_policy_says_so(
    stage: Stage, policy: dict[str, Any]
) -> None:
    applied(stage, policy, gates={"patchedServers": True})
    stage.apply(stage.deployment("flawed"))
    message = stage.until_stalled("flawed", "TritonVulnerable")
    assert "spec.serving.triton.image" in message and "RolloutPolicy" in message


def test_what_a_spec_may_take_is_told_field_by_field(stage: Stage, policy: dict[str, Any]) -> None:
    applied(stage, policy, allowedServiceAccounts=["model-server"], allowedSecrets=["registry-*"])
    stage.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "model-server", "namespace": stage.namespace},
        }
    )
    deployment = stage.deployment("borrower")
    serving, model = deployment["spec"]["serving"], deployment["spec"]["model"]

    def told(reason: str) -> str:
        stage.apply(deployment)
        state = stage.until(
            f"borrower is {reason}",
            lambda: (c := stage.condition("borrower", "Stalled"))["reason"] == reason and c,
            60,
        )
        return str(state["message"])

    assert "it is left out, so pods run as default" in told("ServiceAccountNotAllowed")
    serving["serviceAccountName"], model["credentials"] = "model-server", {"secretRef": {"name": "theirs"}}
    assert "spec.model.credentials.secretRef.name: theirs: RolloutPolicy" in told("SecretNotAllowed")
    model["credentials"]["secretRef"]["name"] = SECRET  # the store's own
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": {}}
    serving["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    assert "keep pods of other namespaces off the node" in told("AffinityNotAllowed")
    assert not stage.cluster.jobs(stage.namespace, "modelrollout.dev/name=borrower")
    del serving["affinity"]
    stage.apply(deployment)
    jobs = stage.until(
        "it begins", lambda: stage.cluster.jobs(stage.namespace, "modelrollout.dev/name=borrower"), 60
    )
    assert {job["spec"]["template"]["spec"]["serviceAccountName"] for job in jobs} == {"model-server"}
    stage.cluster.kubectl("delete", "mdep", "borrower", "-n", stage.namespace)
