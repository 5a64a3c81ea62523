"""The gate in the prepare Job: every metric on real ONNX models, slices, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import RESULT_LIMIT_BYTES
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateBudget, GateMetric
from modelrollout.contract.results import MetricResult, TaskResult
from modelrollout.contract.steps import Int8Step
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import encode
from modelrollout.optimizer.__main__ import run
from modelrollout.testing.object_store import (
    CLASSES,
    SALT,
    ObjectStore,
    classifier,
    dataset,
    labelled,
    npz,
    object_store,
    samples,
)

N = 3000
GATE = "spec.optimization.gate"
X, Y = samples(50)


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects["/m.onnx"] = classifier(hidden=256).SerializeToString()
        server.objects["/heldout.npz"] = labelled(N, writer=np.arange(N) % 3)
        yield server


def regression(hidden: int = 256, scale: float = 1.0) -> bytes:
    """x [n, 4] -> y [n, 1]: the sum of x, through a wide product."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4, hidden)).astype(np.float32)
    second = (np.linalg.pinv(first) @ np.ones((4, 1)) * scale).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "b")],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return bytes(model.SerializeToString())


def prepared(
    store: ObjectStore,
    *metrics: GateMetric,
    slices: tuple[str, ...] = ("writer",),
    steps: tuple[Int8Step, ...] = (Int8Step(),),
) -> TaskResult:
    model = store.objects["/m.onnx"]
    task = PrepareTask(
        source=store.http("m.onnx"),
        sha256=hashlib.sha256(model).hexdigest(),
        steps=steps,
        gate=Gate(data=dataset(store.http("heldout.npz"), slices=slices), metrics=metrics),
        artifacts=store.s3("artifacts/a"),
        salt=SALT,
    )
    return run(task, Progress())


def refusal(store: ObjectStore, *metrics: GateMetric, **changes: Any) -> JobError:
    with pytest.raises(JobError) as error:
        prepared(store, *metrics, **changes)
    assert not any(path.startswith("/artifacts/") for path in store.objects)
    return error.value


def test_all_metrics_of_a_classifier_in_one_gate(store: ObjectStore) -> None:
    names = ("accuracy", "precision", "recall", "f1", "auc", "agreement")
    result = prepared(
        store,
        *(GateMetric(name=name, max_drop=0.05) for name in names),
        GateMetric(name="topK", k=2, max_drop_relative=0.05),
    )
    assert [m.name for m in result.metrics] == [*names, "topK"]
    assert {m.verdict for m in result.metrics} == {"Successful"}
    assert all(m.n == N and m.interval[0] <= m.before - m.after <= m.interval[1] for m in result.metrics)
    assert next(m for m in result.metrics if m.name == "topK").before >= result.metrics[0].before
    assert TaskResult.model_validate_json(encode(result)).metrics == result.metrics
    path = next(path for path in store.objects if "/report-" in path)
    told = json.loads(store.objects[path])["gate"]["metrics"]
    assert [m["name"] for m in told] == [*names, "topK"]
    assert told[3]["average"] == "Macro"


def test_each_slice_keeps_its_own_budget(store: ObjectStore) -> None:
    x, y = samples(N)
    writer = np.arange(N) % 3
    # one writer's inputs ruin what int8 Dynamic, which scales by batch, makes of the others in it
    x[writer == 2] *= 100
    store.objects["/heldout.npz"] = npz(x=x, labels=y, writer=writer)
    whole = GateMetric(name="agreement", max_drop=0.9)
    assert prepared(store, whole).metrics[0].slice is None
    store.objects = {path: body for path, body in store.objects.items() if not path.startswith("/artifacts/")}
    error = refusal(store, whole.model_copy(update={"slices": GateBudget(max_drop=0.01)}))
    assert (error.code, error.reason) == (ExitCode.GATE_FAILED, "MetricDrop")
    assert error.message.startswith("spec.optimization.gate.metrics[0].slices: slice writer=")
    metric = error.result().metrics[0]
    assert metric.slice in ("writer=0", "writer=1")
    assert metric.n == N / 3


def test_a_slice_with_few_samples_is_no_pass(store: ObjectStore) -> None:
    store.objects["/heldout.npz"] = labelled(N, writer=(np.arange(N) < 12).astype(np.int64))
    assert prepared(store, GateMetric(max_drop=0.02)).metrics[0].verdict == "Successful"
    store.objects = {path: body for path, body in store.objects.items() if not path.startswith("/artifacts/")}
    error = refusal(store, GateMetric(max_drop=0.02, slices=GateBudget(max_drop=0.05)))
    assert (error.code, error.reason) == (ExitCode.GATE_INCONCLUSIVE, "TooFewSamples")
    assert "slice writer=1" in error.message


def test_a_budget_for_too_many_slices_is_refused(store: ObjectStore) -> None:
    store.objects["/heldout.npz"] = labelled(N, writer=np.arange(N))
    error = refusal(store, GateMetric(max_drop=0.02, slices=GateBudget(max_drop=0.05)))
    assert (error.reason, "group" in error.message) == ("SliceInvalid", True)


def test_agreement_needs_no_labels(store: ObjectStore) -> None:
    store.objects["/heldout.npz"] = npz(x=samples(N)[0])
    result = prepared(store, GateMetric(name="agreement", max_drop=0.05, min=0.9), slices=())
    assert result.metrics[0].before == 1.0
    assert result.accuracy_after is None


def test_errors_of_a_regression(store: ObjectStore) -> None:
    x = samples(N)[0]
    store.objects |= {
        "/m.onnx": regression(),
        "/heldout.npz": npz(x=x, labels=x.sum(1) + np.random.default_rng(1).normal(0, 1, N)),
    }
    result = prepared(
        store, GateMetric(name="mae", max_increase_relative=0.1), GateMetric(name="mse", max=2.0), slices=()
    )
    assert [m.name for m in result.metrics] == ["mae", "mse"]
    assert result.metrics[0].before == pytest.approx(np.sqrt(2 / np.pi), abs=0.05)
    assert result.accuracy_after is None
    store.objects = {path: body for path, body in store.objects.items() if not path.startswith("/artifacts/")}
    error = refusal(store, GateMetric(name="mse", max=0.5), slices=())
    assert (error.code, error.reason) == (ExitCode.GATE_FAILED, "MetricLow")


def test_a_regression_is_calibrated_on_data_without_labels(store: ObjectStore) -> None:
    """Numbers are labels of the gate's data alone; a step's data has its own needs."""
    x = samples(N)[0]
    store.objects |= {
        "/m.onnx": regression(),
        "/heldout.npz": npz(x=x, labels=x.sum(1)),
        "/calibration.npz": npz(x=samples(200, 5)[0]),
    }
    static = Int8Step(method="Static", calibration=dataset(store.http("calibration.npz")))
    result = prepared(store, GateMetric(name="mae", max=0.5), slices=(), steps=(static,))
    assert (result.metrics[0].before, result.metrics[0].verdict) == (pytest.approx(0, abs=1e-3), "Successful")


def test_a_failed_metric_tells_of_all(store: ObjectStore) -> None:
    error = refusal(
        store,
        GateMetric(min=0.9999),
        GateMetric(name="f1", min=0.9999),
        GateMetric(name="recall", max_drop=0.5),
    )
    assert (error.code, error.reason) == (ExitCode.GATE_FAILED, "AccuracyLow")
    assert "accuracy: AccuracyLow, f1: MetricLow" in error.message
    assert [m.verdict for m in error.result().metrics] == ["Failed", "Failed", "Successful"]


@pytest.mark.parametrize(
    ("model", "data", "metric", "reason", "field"),
    [
        (None, npz(x=X, labels=Y * 0.5), GateMetric(), "LabelsNotInteger", f"{GATE}.data.labels"),
        (
            regression(),
            npz(x=X, labels=np.full(50, np.nan)),
            GateMetric(name="mae"),
            "LabelsNotNumbers",
            f"{GATE}.data.labels",
        ),
        (None, npz(x=X, labels=np.ones(50)), GateMetric(name="mse"), "OutputNotNumbers", f"{GATE}.data"),
        (
            regression(),
            npz(x=X, labels=np.zeros(50, int)),
            GateMetric(name="f1"),
            "OutputNotClasses",
            f"{GATE}.data",
        ),
        (
            regression(scale=np.inf),
            npz(x=X, labels=np.ones(50)),
            GateMetric(name="mse"),
            "OutputNotFinite",
            f"{GATE}.data",
        ),
        (
            None,
            npz(x=X, labels=np.zeros(50, int)),
            GateMetric(name="auc"),
            "AucUndefined",
            f"{GATE}.data.labels",
        ),
        (
            None,
            labelled(50),
            GateMetric(name="f1", average="Binary"),
            "AverageImpossible",
            f"{GATE}.metrics[0]",
        ),
    ],
)
def test_what_a_metric_cannot_be_taken_on(
    store: ObjectStore, model: bytes | None, data: bytes, metric: GateMetric, reason: str, field: str
) -> None:
    store.objects["/heldout.npz"] = data
    if model:
        store.objects["/m.onnx"] = model
    error = refusal(store, metric.model_copy(update={"max_drop": 0.1}), slices=(), steps=())
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, reason)
    assert error.message.startswith(field + ":")


def test_scores_are_needed_for_top_k(store: ObjectStore) -> None:
    graph = classifier(extra_labels=True)
    del graph.graph.output[1]
    store.objects |= {"/m.onnx": graph.SerializeToString()}
    assert refusal(store, GateMetric(name="topK", k=2, max_drop=0.1), steps=()).reason == "OutputNotScores"


def test_top_k_of_all_classes_says_nothing(store: ObjectStore) -> None:
    """Every label is among the k highest of k scores: a ruined model would pass."""
    error = refusal(store, GateMetric(name="topK", k=CLASSES, max_drop=0.1), steps=())
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "TopCountTooLarge")
    assert error.message.startswith(f"{GATE}.metrics[0].k: {CLASSES}")
    assert (
        prepared(store, GateMetric(name="topK", k=CLASSES - 1, max_drop=0.1), steps=()).metrics[0].verdict
        == "Successful"
    )


def test_one_score_a_sample_has_no_top_k_and_two_classes(store: ObjectStore) -> None:
    x, y = samples(50)
    store.objects |= {"/m.onnx": regression(), "/heldout.npz": npz(x=x, labels=y % 2)}
    assert prepared(store, GateMetric(name="auc", min=0), slices=(), steps=()).metrics[0].n == 50
    store.objects = {path: body for path, body in store.objects.items() if not path.startswith("/artifacts/")}
    assert (
        refusal(store, GateMetric(name="topK", k=2, max_drop=0.1), slices=(), steps=()).reason
        == "OutputNotScores"
    )
    store.objects["/heldout.npz"] = npz(x=x, labels=y % 3)
    assert refusal(store, GateMetric(name="auc", min=0), slices=(), steps=()).reason == "LabelsOutOfRange"


def test_a_slice_of_no_number_is_refused(store: ObjectStore) -> None:
    """NaN is equal to nothing, so the samples of that slice would be judged by no budget."""
    store.objects["/heldout.npz"] = labelled(N, writer=np.where(np.arange(N) % 3 == 0, np.nan, 1.0))
    error = refusal(store, GateMetric(max_drop=0.02, slices=GateBudget(max_drop=0.05)))
    assert (error.reason, error.message.startswith(f"{GATE}.data.slices: array 'writer'")) == (
        "SliceInvalid",
        True,
    )


def test_a_result_of_many_metrics_still_fits() -> None:
    metric = MetricResult(
        name="precision",
        n=10**6,
        before=0.1234567,
        after=0.1234567,
        interval=(-0.1234567, 0.1234567),
        allowed=0.01,
        verdict="Failed",
        reason="TooFewSamples",
        slice="s" * 48,
    )
    encoded = encode(
        TaskResult(
            reason="MetricDrop", message="m" * 4000, metrics=tuple(metric for _ in range(8)), sha256="a" * 64
        )
    )
    assert len(encoded) <= RESULT_LIMIT_BYTES
    back = TaskResult.model_validate_json(encoded)
    assert len(back.metrics) >= 4
    assert len(back.message) >= 300
