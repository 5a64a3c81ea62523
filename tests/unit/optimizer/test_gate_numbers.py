"""Metrics of numbers, for models that are no classifiers: by hand, and in whole Jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import HalfPrecisionStep, Int8Step, PruneStep, Step
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.gate.numbers import Numbers, corners, numeric_estimate
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.steps.int8 import int8
from modelrollout.testing.object_store import SALT, ObjectStore, dataset, npz, object_store
from tests.unit.optimizer.network_fakes import work

DATA = DataSet(location=Location(uri="s3://data/x"))


def value(name: Any, before: Any, after: Any, **options: Any) -> float:
    """Of one sample."""
    one: Numbers = {"y": (np.asarray(before, np.float64),)}
    return numeric_estimate(
        GateMetric(name=name, **options), one, {"y": (np.asarray(after, np.float64),)}
    ).after


def test_by_hand() -> None:
    assert value("relativeError", [3, 4], [3, 4.5]) == pytest.approx(0.1)
    assert value("relativeError", [3, 4], [3, np.nan]) == value("relativeError", [3, 4], [3]) == 1
    assert value("cosine", [1, 0], [1, 1]) == pytest.approx(0.5**0.5)
    assert value("cosine", [1, 0], [-1, 0]) == 0 == value("cosine", [1, 0], [1])
    assert value("cosine", [0, 0], [0, 0]) == 1
    assert value("closeness", [1, 100, 0], [1.5, 100.5, 0], abs_tolerance=0.1) == pytest.approx(2 / 3)
    assert value("closeness", [np.nan, np.inf], [np.nan, np.inf]) == 1
    assert value("closeness", [1, 2], [np.nan, 2]) == 0.5


def test_boxes_overlap_in_any_order() -> None:
    two = [[0, 0, 2, 2], [10, 10, 20, 20]]
    assert value("boxIou", two, two[::-1]) == 1
    assert value("boxIou", [[0, 0, 2, 2]], [[1, 0, 3, 2]]) == pytest.approx(1 / 3)
    assert value("boxIou", two, two[:1]) == 0.5 == value("boxIou", two[:1], two), "a box that one alone has"
    assert value("boxIou", np.zeros((0, 4)), np.zeros((0, 4))) == 1
    assert value("boxIou", np.zeros((0, 4)), two) == 0
    assert value("boxIou", np.zeros((1, 3, 4)), np.zeros((1, 3, 4))) == 1, "anchors without an area"
    many = np.random.default_rng(0).uniform(0, 1, (3000, 4)) + np.array([0, 0, 2, 2])
    assert value("boxIou", many, many) == 1
    assert corners(np.array([[5, 5, 2, 4]]), "Center").tolist() == [[4, 3, 6, 7]]


def test_the_worst_output_counts_and_the_interval_is_that_of_the_samples() -> None:
    rng = np.random.default_rng(1)
    good, bad = (tuple(rng.normal(size=(50, 4))) for _ in range(2))
    off = tuple(a * 1.1 for a in bad)
    e = numeric_estimate(
        GateMetric(name="relativeError"), {"good": good, "bad": bad}, {"good": good, "bad": off}
    )
    assert (e.n, e.before) == (50, 0) and e.after == pytest.approx(0.1)
    low, high = e.interval()
    assert low < 0.1 < high + 0.01 and high - low < 0.05
    same = numeric_estimate(GateMetric(name="cosine"), {"good": good}, {"good": good})
    assert same.after == pytest.approx(1) and same.loss == pytest.approx(0)


def detector() -> bytes:
    """x [n, 8] -> boxes [n, 5, 4], scores [n, 5], count [] of a model without classes."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["flat"]),
        helper.make_node("Reshape", ["flat", "form"], ["raw"]),
        helper.make_node("Add", ["raw", "place"], ["boxes"]),
        helper.make_node("MatMul", ["x", "v"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["scores"]),
    ]
    constants = {
        "w": rng.normal(size=(8, 20)).astype(np.float32),
        "v": rng.normal(size=(8, 5)).astype(np.float32),
        "form": np.array([-1, 5, 4]),
        "place": np.array([0, 0, 100, 100], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 5, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects["/m.onnx"] = detector()
        x = np.random.default_rng(3).normal(size=(200, 8)).astype(np.float32)
        server.objects["/heldout.npz"] = npz(x=x)
        yield server


def prepared(store: ObjectStore, *metrics: GateMetric, steps: tuple[Step, ...] = (Int8Step(),)) -> TaskResult:
    model = store.objects["/m.onnx"]
    task = PrepareTask(
        source=store.http("m.onnx"),
        sha256=hashlib.sha256(model).hexdigest(),
        steps=steps,
        gate=Gate(data=dataset(store.http("heldout.npz")), metrics=metrics),
        artifacts=store.s3("artifacts/a"),
        salt=SALT,
    )
    return run(task, Progress())


def test_a_detector_is_gated_without_labels(store: ObjectStore) -> None:
    result = prepared(
        store,
        GateMetric(name="relativeError", max=0.05),
        GateMetric(name="cosine", min=0.99),
        GateMetric(name="closeness", output="scores", min=0.9, abs_tolerance=0.05),
        GateMetric(name="boxIou", output="boxes", min=0.9, max_drop=0.1),
    )
    assert [m.verdict for m in result.metrics] == ["Successful"] * 4
    assert [m.n for m in result.metrics] == [200] * 4
    assert 0 < result.metrics[0].after < 0.05 and result.metrics[3].before == 1


@pytest.mark.parametrize(("value", "answered"), [(-np.inf, True), (np.inf, False)])
def test_infinity_is_data_where_the_model_answers_it(
    store: ObjectStore, value: float, answered: bool
) -> None:
    """-Inf is an additive mask, and its answer is a logit of -Inf; +Inf gives NaN."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("Add", ["q", "mask"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
            for name, size in (("x", 8), ("mask", 6))
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6]) for name in ("logits", "p")],
        [numpy_helper.from_array(rng.normal(size=(8, 6)).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    mask = np.where(rng.random((200, 6)) < 0.4, value, 0).astype(np.float32)
    mask[:, 0] = 0
    store.objects["/m.onnx"] = model.SerializeToString()
    store.objects["/heldout.npz"] = npz(x=rng.normal(size=(200, 8)).astype(np.float32), mask=mask)
    steps = (Int8Step(method="Static", calibration=dataset(store.http("heldout.npz"))),)
    metrics = (GateMetric(name="agreement", output="p", min=0.9), GateMetric(name="cosine", min=0.99))
    if answered:
        result = prepared(store, *metrics, steps=steps)
        assert [m.verdict for m in result.metrics] == ["Successful"] * 2
        return
    with pytest.raises(JobError) as error:
        prepared(store, *metrics, steps=steps)
    assert error.value.reason == "DataNotFinite" and "sample 0" in error.value.message


def test_a_model_that_went_too_far_is_not_published(store: ObjectStore) -> None:
    crude = PruneStep(sparsity=0.9, granularity="Unstructured")
    with pytest.raises(JobError) as error:
        prepared(store, GateMetric(name="cosine", min=0.99), steps=(crude,))
    assert (error.value.code, error.value.reason) == (ExitCode.GATE_FAILED, "MetricLow")
    assert not any(path.startswith("/artifacts/") for path in store.objects)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (GateMetric(name="cosine", output="no", min=0.9), "OutputUnknown"),
        (GateMetric(name="boxIou", output="scores", min=0.9), "OutputNotBoxes"),
    ],
)
def test_what_cannot_be_judged_names_the_field(store: ObjectStore, metric: GateMetric, reason: str) -> None:
    with pytest.raises(JobError) as error:
        prepared(store, metric)
    assert error.value.reason == reason
    assert error.value.message.startswith("spec.optimization.gate.data: ")


def test_labels_of_minus_one_and_one_are_classes(store: ObjectStore) -> None:
    """With probabilities [n, 2], one probability [n, 1], and a model that answers -1 and 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)).astype(np.float32)
    labels = np.where(x.sum(1) > 0, 1, -1)
    weight = numpy_helper.from_array(np.ones((4, 1), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"])]
    one = [*nodes, helper.make_node("Sigmoid", ["z"], ["y"])]
    two = [
        *nodes,
        helper.make_node("Neg", ["z"], ["m"]),
        helper.make_node("Concat", ["m", "z"], ["y"], axis=1),
    ]
    sign = [
        *nodes,
        helper.make_node("Sign", ["z"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.INT64),
    ]
    store.objects["/heldout.npz"] = npz(x=x, labels=labels)
    for made, size, kind in ((one, 1, 1), (two, 2, 1), (sign, 1, TensorProto.INT64)):
        graph = helper.make_graph(
            made,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", kind, ["n", size])],
            [weight],
        )
        model: onnx.ModelProto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        store.objects["/m.onnx"] = model.SerializeToString()
        result = prepared(store, GateMetric(max_drop=0.05), steps=(HalfPrecisionStep(),))
        assert result.accuracy_before == 1 and result.metrics[0].verdict == "Successful", size


@pytest.mark.parametrize("name", ["boxIou", "cosine", "closeness"])
def test_operators_are_left_out_by_a_budget_of_numbers(name: Any, tmp_path: Path) -> None:
    """A model without classes: the loss on the calibration data is that of the gate's metrics."""
    path = tmp_path / "model.onnx"
    path.write_bytes(detector())
    x = np.random.default_rng(3).normal(size=(200, 8)).astype(np.float32)
    step = Int8Step(method="Static", calibration=DATA, leave_out="BySensitivity")

    def done(max_drop: float) -> dict[str, Any]:
        gate = Gate(data=DATA, metrics=(GateMetric(name=name, output="boxes", max_drop=max_drop),))
        return int8(step, work(path, data={"calibration": Data({"x": x}, None, {})}, gate=gate))

    loose = done(0.9)
    assert loose["leftOut"] == [] and loose["calibrationLoss"] > 0
    tight = loose["calibrationLoss"] / 2
    strict = done(tight)
    assert strict["leftOut"] == list(strict["sensitivity"])[:1]
    assert strict["calibrationLoss"] <= tight < strict["lossWithAll"] == loose["calibrationLoss"]
