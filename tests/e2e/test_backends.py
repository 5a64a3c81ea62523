"""Models that other backends of Triton serve as they are, on the real Triton: code by policy,
golden data, and why one does not load.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

NAME, POLICY = "ranker", "e2e-code"
LATER = {"progressDeadline": "10m"}
SOON = {"progressDeadline": "3s"}
TENSORS = {
    "inputs": [{"name": "x", "dataType": "FP32", "shape": [-1, 16]}],
    "outputs": [{"name": "logits", "dataType": "FP32", "shape": [-1, 4]}],
}


@pytest.fixture(scope="module", autouse=True)
def policy(stage: Stage) -> Iterator[None]:
    yield
    stage.cluster.kubectl("delete", "rpol", POLICY, "--ignore-not-found")


def served(stage: Stage, name: str, file: str, rollout: dict[str, Any], **triton: Any) -> dict[str, Any]:
    deployment = stage.deployment(name, file, rollout=rollout)
    deployment["spec"]["serving"]["triton"] = triton
    return deployment


def ranker(stage: Stage, file: str) -> dict[str, Any]:
    golden = {"uri": stage.data("good.npz"), "maxDrop": 0.05, "min": 0.9}
    return served(
        stage,
        NAME,
        file,
        {"analysis": {"golden": golden}, "progressDeadline": "2m"},
        backend="Python",
        code="Allowed",
    )


def allow(stage: Stage, prefix: str) -> None:
    spec = {"selector": {"namespaces": [stage.namespace]}, "allowedSources": {"code": [prefix]}}
    stage.apply(
        {
            "apiVersion": "modelrollout.dev/v1alpha1",
            "kind": "RolloutPolicy",
            "metadata": {"name": POLICY},
            "spec": spec,
        }
    )


def test_code_runs_once_a_policy_names_its_place_and_golden_data_judges_it(stage: Stage) -> None:
    stage.apply(ranker(stage, "reviewed-good.zip"))
    assert "allowedSources.code" in stage.until_stalled(NAME, "CodeNotAllowed")
    assert stage.cluster.pods(stage.namespace, f"modelrollout.dev/name={NAME}") == []
    allow(stage, stage.uri("elsewhere/"))
    stage.until("the place is another", lambda: "elsewhere" in stage.condition(NAME, "Stalled")["message"])
    allow(stage, stage.uri(""))
    status = stage.until_ready(NAME)["status"]
    stage.until_outcome(status["stable"]["revision"], "Stable")
    evidence = stage.cluster.revision(stage.namespace, status["stable"]["revision"])["status"]
    assert evidence["evaluation"]["verdict"] == "Successful" and evidence["evaluation"]["accuracy"] == 1.0
    assert evidence["artifact"]["interface"]["inputs"] == {"x": "FP32 [n, 16]"}


def test_a_worse_one_is_rejected_on_the_served_model(stage: Stage) -> None:
    stable = stage.get(NAME)["status"]["stable"]["revision"]
    stage.apply(ranker(stage, "reviewed-wrong.zip"))
    stage.until(
        "it is rejected", lambda: (stage.get(NAME)["status"]["rollout"] or {}).get("outcome") == "Rejected"
    )
    status = stage.get(NAME)["status"]
    assert status["stable"]["revision"] == stable
    assert status["rollout"]["evaluation"]["accuracy"] < 0.5


@pytest.mark.parametrize("kind", ["", "-stream"], ids=["whole", "stream"])
def test_without_golden_data_what_fails_every_request_gets_none(stage: Stage, kind: str) -> None:
    """The evaluate Job asks the first pod with made-up inputs, before any weight."""
    name = f"asked{kind}"

    def asked(file: str) -> dict[str, Any]:
        return served(stage, name, file, {}, backend="Python", code="Allowed")

    allow(stage, stage.uri(""))
    stage.apply(asked("reviewed-stream.zip" if kind else "reviewed-good.zip"))
    stable = stage.until_ready(name)["status"]["stable"]["revision"]
    stage.until("an event says that it answers", lambda: "Answered" in stage.events(name), 20)
    stage.apply(asked(f"reviewed-misfit{kind}.zip"))
    assert "matmul" in stage.until_stalled(name, "InferenceFailed")
    status = stage.get(name)["status"]
    assert status["stable"]["revision"] == stable
    assert not {"Canary", "Promote"} & set(status["rollout"]["stages"])


@pytest.mark.parametrize(
    ("name", "file", "triton", "reason", "says"),
    [
        (
            "no-backend",
            "engine.plan",
            {"backend": "TensorRT", **TENSORS},
            "BackendMissing",
            "no backend tensorrt",
        ),
        (
            "no-weights",
            "reviewed-broken.zip",
            {"backend": "Python", "code": "Allowed"},
            "ModelNotLoaded",
            "weights.npy",
        ),
    ],
)
def test_what_triton_does_not_load_says_why(
    stage: Stage, name: str, file: str, triton: dict[str, Any], reason: str, says: str
) -> None:
    stage.apply(served(stage, name, file, LATER, **triton))
    stage.until(
        f"{name} waits for {reason}", lambda: stage.condition(name, "Reconciling")["reason"] == reason
    )
    stage.set_rollout(name, SOON)
    assert says in stage.until_stalled(name, reason)


def test_what_is_no_model_of_the_backend_never_reaches_a_pod(stage: Stage) -> None:
    stage.apply(served(stage, "no-plan", "good.onnx", LATER, backend="TensorRT", **TENSORS))
    assert "no TensorRT plan" in stage.until_stalled("no-plan", "BackendFileInvalid")
