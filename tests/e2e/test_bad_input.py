"""Bad input on the real cluster: each is answered with its own reason and a remedy, and a neighbour
never notices.

What the API server itself refuses (unknown fields, weights, URI schemes) is in
tests/integration/test_crds.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.e2e.conftest import UNREACHABLE, Stage
from tests.e2e.models import FEATURES

pytestmark = pytest.mark.sandbox

# what may pass by itself is called a failure at the deadline; the test brings that nearer once it
# is seen
LATER = {"progressDeadline": "10m"}
SOON = {"progressDeadline": "3s"}
INT8 = {"steps": [{"int8": {"method": "Dynamic"}}]}


# a missing file is looked for again, for minutes unless the deadline is shorter
BRIEF = {"progressDeadline": "15s"}


def gate(data: str) -> dict[str, Any]:
    return {**INT8, "gate": {"data": {"uri": data}, "metrics": [{"name": "accuracy", "maxDrop": 0.05}]}}


def cases(stage: Stage) -> dict[str, tuple[dict[str, Any], str, str]]:
    """Name to (ModelDeployment, reason, a word that the message must have)."""
    d = stage.deployment
    gpus = {"limits": {"nvidia.com/gpu": 64}}
    return {
        "missing-object": (
            d("missing-object", "nowhere.onnx", rollout=BRIEF),
            "ObjectMissing",
            "nowhere.onnx",
        ),
        "wrong-digest": (
            d("wrong-digest", model={"uri": stage.uri("good.onnx"), "sha256": "0" * 64}),
            "DigestMismatch",
            "sha256",
        ),
        "truncated": (d("truncated", "truncated.onnx"), "ModelTruncated", "upload it again"),
        "not-onnx": (d("not-onnx", "text.onnx"), "NotOnnx", "ONNX"),
        "pickle": (d("pickle", "pickle.onnx"), "PickleRefused", "pickle"),
        "misfit": (d("misfit", optimization=gate(stage.data("misfit.npz"))), "DataShapeMismatch", "shape"),
        "unlabelled": (
            d("unlabelled", optimization=gate(stage.data("unlabelled.npz"))),
            "LabelsMissing",
            "labels",
        ),
        "wrong-keys": (
            d(
                "wrong-keys",
                model={"uri": stage.uri("good.onnx"), "credentials": {"secretRef": {"name": "wrong-keys"}}},
            ),
            "AccessDenied",
            "access key",
        ),
        "no-keys": (
            d(
                "no-keys",
                model={"uri": stage.uri("good.onnx"), "credentials": {"secretRef": {"name": "never-made"}}},
            ),
            "CredentialsMissing",
            "ecret",
        ),
        "no-gpu": (
            d("no-gpu", serving={"replicas": 1, "resources": gpus}, rollout=LATER),
            "Unschedulable",
            "nvidia.com/gpu",
        ),
        "no-image": (
            d(
                "no-image",
                serving={
                    "replicas": 1,
                    "resources": {"limits": {"cpu": "100m"}},
                    "triton": {"image": "localhost/never-built:1"},
                },
                rollout=LATER,
            ),
            "ImagePullFailed",
            "localhost/never-built:1",
        ),
        "foreign-store": (
            d("foreign-store", model={"uri": "s3://somebody-elses/model.onnx"}),
            "StoreNotAllowed",
            "spec.model.uri",
        ),
        "foreign-prometheus": (
            d("foreign-prometheus", rollout={"analysis": {"prometheus": "mine"}}),
            "PrometheusNotAllowed",
            "spec.rollout.analysis.prometheus",
        ),
    }


@pytest.fixture(scope="module")
def neighbour(stage: Stage) -> Stage:
    """A healthy ModelDeployment in the same namespace, with a host name."""
    stage.apply(stage.deployment("neighbour", traffic=stage.traffic("neighbour.e2e.example")))
    stage.until_ready("neighbour")
    return stage


def test_each_bad_input_has_its_own_answer(neighbour: Stage) -> None:
    stage = neighbour
    before = stage.get("neighbour")
    tried = cases(stage)
    stage.apply(*(deployment for deployment, _, _ in tried.values()))
    wrong: list[str] = []
    for name, (deployment, reason, word) in tried.items():
        try:
            if deployment["spec"]["rollout"] == LATER:
                stage.until(
                    f"{name} waits for {reason}",
                    lambda name=name, reason=reason: stage.condition(name, "Reconciling")["reason"] == reason,
                )  # type: ignore[misc]
                stage.set_rollout(name, SOON)
            message = stage.until_stalled(name, reason)
            assert word in message, f"{name}: the message does not name {word!r}: {message}"
            stage.until(
                f"{name} has an event {reason}",
                lambda name=name, reason=reason: reason in stage.events(name),
                20,
            )  # type: ignore[misc]
        except AssertionError as e:
            wrong.append(str(e))
    assert not wrong, "\n".join(wrong)
    after = stage.get("neighbour")
    assert after["status"] == before["status"], "the neighbour was disturbed"
    for name in tried:
        assert stage.get(name)["status"].get("stable") is None


def test_a_host_name_belongs_to_the_older_one(neighbour: Stage) -> None:
    """Over gRPC, where the path names no model; over HTTP the two share it (test_host_names)."""
    stage = neighbour
    traffic = stage.traffic("latecomer.e2e.example", grpc="neighbour.e2e.example")
    stage.apply(stage.deployment("latecomer", traffic=traffic))
    message = stage.until_stalled("latecomer", "HostnameTaken")
    assert "neighbour.e2e.example" in message
    assert "neighbour" in message
    assert stage.condition("neighbour", "Ready")["status"] == "True"


@pytest.mark.parametrize(
    ("name", "analysis", "reason", "words"),
    [
        (
            "prometheus-down",
            {"prometheus": UNREACHABLE, "interval": "1s", "initialDelay": "0s"},
            "ProviderUnreachable",
            ["127.0.0.1"],
        ),
        (
            "no-bucket",
            {
                "interval": "1s",
                "initialDelay": "0s",
                "metrics": [{"name": "latency", "objective": "33ms", "maxIncrease": 0.1}],
            },
            "NotABucketBound",
            ["25ms", "50ms"],
        ),
    ],
)
def test_no_verdict_holds_the_canary(
    stage: Stage, name: str, analysis: dict[str, Any], reason: str, words: list[str]
) -> None:
    """Neither promoted nor rolled back; at the deadline it pauses and says why; abort gives
    everything back to stable.
    """
    rollout = {"analysis": analysis, "canary": {"steps": [{"weight": 50}]}, **LATER}
    host = f"{name}.e2e.example"
    stage.apply(stage.deployment(name, rollout={"progressDeadline": "2m"}, traffic=stage.traffic(host)))
    first = stage.until_ready(name)["status"]["stable"]["revision"]
    stage.apply(stage.deployment(name, "better.onnx", rollout=rollout, traffic=stage.traffic(host)))
    send(stage, host)
    # the histogram exists once the gateway has served a request of either revision
    if reason == "NotABucketBound":
        stage.until(f"{name} observes", lambda: stage.get(name)["status"].get("step"))
        send(stage, host, 40)
    stage.until(
        f"{name} is told {reason}",
        lambda: (stage.get(name)["status"].get("rollout") or {}).get("reason") == reason,
    )
    assert stage.get(name)["status"]["stable"]["revision"] == first
    stage.set_rollout(name, SOON)
    message = stage.until_stalled(name, "Inconclusive")
    assert all(word in message for word in words), message
    status = stage.get(name)["status"]
    assert status["phase"] == "Paused"
    assert status["stable"]["revision"] == first
    stage.cluster.modelrollout("abort", name, "-n", stage.namespace)
    stage.until(f"{name} is back", lambda: stage.get(name)["status"]["rollout"]["stage"] == "Failed")
    assert stage.get(name)["status"]["rollout"]["outcome"] == "Aborted"
    assert stage.condition(name, "Available")["status"] == "True"


def send(stage: Stage, host: str, count: int = 5) -> None:
    """A few inference requests through the gateway."""
    body = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}]}
    model = host.split(".")[0]
    for _ in range(count):
        answer = requests.post(
            f"http://{stage.cluster.target.gateway.http}/v2/models/{model}/infer",
            json=body,
            headers={"Host": host},
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
