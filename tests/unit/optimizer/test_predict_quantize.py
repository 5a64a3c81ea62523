"""Predictions and quantization, on real small models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model import runtime as predict_module
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import (
    check_label_range,
    cpu_limit,
    open_session,
    predict,
    scores_or_classes,
)
from modelrollout.optimizer.pipeline.answers import expect_answers
from modelrollout.optimizer.steps.quantize import quantize
from modelrollout.testing.object_store import FEATURES, classifier, samples, save


def classes(path: Path, x: np.ndarray) -> np.ndarray:
    return predict(open_session(path, "f"), check(path).inputs, {"x": x}, "f", lambda *_: None)[0]


def conv_classifier(opset: int = 17) -> onnx.ModelProto:
    """x [n, 1, 8, 8] -> scores [n, 4]: which quarter of the image is brightest."""
    kernel = np.ones((4, 1, 8, 8), np.float32) * 0.01
    for k, (r, c) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        kernel[k, 0, r : r + 4, c : c + 4] = 1
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["c"]), helper.make_node("Flatten", ["c"], ["scores"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(kernel, "k")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("batch", ["n", 1, 7])
def test_predictions_do_not_depend_on_the_batch(tmp_path: Path, batch: int | str) -> None:
    x, y = samples(45)
    predicted = classes(save(classifier(batch), tmp_path), x)
    assert (predicted == y).mean() > 0.9
    assert np.array_equal(predicted, classes(save(classifier(extra_labels=True), tmp_path), x))


@pytest.mark.parametrize("calibrated", [True, False])
def test_quantization_takes_no_more_threads_than_the_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: bool
) -> None:
    seen: list[int] = []

    def session(*arguments: Any, **named: Any) -> Any:
        seen.append((arguments[1] if len(arguments) > 1 else named["sess_options"]).intra_op_num_threads)
        return real(*arguments, **named)

    real, options = onnxruntime.InferenceSession, onnxruntime.SessionOptions
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(predict_module, "cpu_limit", lambda: 1)
    path = save(classifier(), tmp_path)
    quantize(
        path,
        tmp_path / "q.onnx",
        check(path),
        {"x": samples(40)[0]} if calibrated else None,
        symmetric=False,
        field="f",
    )
    assert seen and set(seen) == {1}, "0 is a thread for every core of the node"
    assert onnxruntime.SessionOptions is options


def test_convention() -> None:
    scores = np.array([[0.1, 0.9], [0.7, 0.3], [np.nan, 0.1]], np.float32)
    labels = np.array([1, 1, 0])
    assert scores_or_classes([scores], ["s"], 3, "f")[0].tolist() == [1, 0, -1]
    assert scores_or_classes([scores], ["s"], 2, "f")[0].tolist() == [1, 0]  # the rest was filling
    assert scores_or_classes([labels, scores], ["l", "s"], 3, "f") == (pytest.approx(labels), None)
    assert scores_or_classes([labels[:, None]], ["l"], 3, "f")[0].tolist() == [1, 1, 0]
    assert scores_or_classes([scores, labels], ["s", "l"], 3, "f")[1] == 2
    assert scores_or_classes([scores[:, :, None, None]], ["s"], 3, "f")[0].tolist() == [1, 0, -1]
    one = np.array([[0.2, 0.8]], np.float32)
    assert scores_or_classes([one], ["s"], 1, "f")[0].tolist() == [1]


@pytest.mark.parametrize(
    "output",
    [
        np.full((3, 1), 1.5, np.float32),
        np.ones((3, 2, 2), np.float32),
        np.ones((), np.float32),
        np.array(["a", "b", "c"]),
    ],
)
def test_no_classifier(output: np.ndarray) -> None:
    with pytest.raises(JobError) as error:
        scores_or_classes([output], ["o"], 3, "f")
    assert error.value.reason == "OutputNotClasses"


def test_one_probability_bytes_and_signs_are_ordinary() -> None:
    sigmoid = np.array([[0.2], [0.8], [np.nan]], np.float32)
    assert scores_or_classes([sigmoid], ["p"], 3, "f")[0].tolist() == [0, 1, -1]
    assert scores_or_classes([sigmoid], ["p"], 3, "f")[1] == 2
    of_bytes = np.array([[200, 3], [1, 255]], np.uint8)
    assert scores_or_classes([of_bytes], ["p"], 2, "f")[0].tolist() == [0, 1]
    check_label_range(np.array([-1, 1]), None, "f")


def test_of_several_outputs_the_named_one_is_judged() -> None:
    one, two = np.array([[0.1, 0.9]], np.float32), np.array([[0.9, 0.1]], np.float32)
    for name, expected in (("a", 1), ("b", 0)):
        assert scores_or_classes([one, two], ["a", "b"], 1, "f", name)[0].tolist() == [expected]
    for other, reason in ((None, "OutputAmbiguous"), ("c", "OutputUnknown")):
        with pytest.raises(JobError) as error:
            scores_or_classes([one, two], ["a", "b"], 1, "gate", other)
        assert error.value.reason == reason and "'a'" in error.value.message
    label = np.array([1])
    assert scores_or_classes([label, one], ["label", "p"], 1, "f")[1] is None
    head, number = np.array([[0.3]], np.float32), np.array([[7.5]], np.float32)
    # two classes, two heads, and a number that could be a probability
    for pair in ([label, label], [one, head], [head, head], [one, number]):
        with pytest.raises(JobError, match="OutputAmbiguous"):
            scores_or_classes(pair, ["a", "b"], 1, "gate")
        assert scores_or_classes(pair, ["a", "b"], 1, "gate", "a")[0].shape == (1,)


@pytest.mark.parametrize(("labels", "known"), [([0, 3], 3), ([-1, 0], None), ([1, 2, 3], 3)])
def test_labels_that_no_answer_can_match(labels: list[int], known: int | None) -> None:
    with pytest.raises(JobError) as error:
        check_label_range(np.array(labels), known, "f")
    assert error.value.reason == "LabelsOutOfRange"
    check_label_range(np.array([0, 2]), 3, "f")


def test_valid_onnx_that_the_runtime_does_not_know(tmp_path: Path) -> None:
    model = classifier()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[2].domain, model.graph.node[2].op_type = "com.microsoft", "Own"
    path = save(model, tmp_path)
    check(path)
    with pytest.raises(JobError) as error:
        open_session(path, "spec.model.uri")
    assert error.value.reason == "ModelRefused"
    assert "Own" in error.value.message


def test_a_locale_that_no_image_has_is_named_as_the_cause(tmp_path: Path) -> None:
    """As skl2onnx writes it for words by default."""
    graph = helper.make_graph(
        [helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER", locale="xx_YY")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(JobError) as error:
        open_session(save(model, tmp_path), "spec.model.uri")
    assert error.value.reason == "ModelRefused" and "'locale': 'C.UTF-8'" in error.value.message


def test_cpu_quota_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    for text, want in (("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("-1 100000", 64)):
        (tmp_path / "cpu").write_text(text)
        monkeypatch.setattr(predict_module, "Path", lambda _: tmp_path / "cpu")
        assert cpu_limit() == want


@pytest.mark.parametrize("symmetric", [False, True])
def test_static_is_smaller_and_says_the_same(tmp_path: Path, symmetric: bool) -> None:
    source, target = save(classifier(hidden=1024), tmp_path), tmp_path / "q.onnx"
    done = quantize(source, target, check(source), {"x": samples(200, 5)[0]}, symmetric=symmetric, field="f")
    x, y = samples(500)
    assert target.stat().st_size < 0.6 * source.stat().st_size
    assert (classes(target, x) == classes(source, x)).mean() > 0.95
    assert (classes(target, x) == y).mean() > 0.85
    assert done["operators"]["QuantizeLinear"]
    assert [o.domain for o in onnx.load(target).opset_import] == [""]
    info = check(target)
    assert (info.inputs, info.outputs, info.quantized) == (check(source).inputs, check(source).outputs, True)
    zero_points = [
        numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer if t.name.endswith("zero_point")
    ]
    assert zero_points
    assert any(z.any() for z in zero_points) != symmetric


def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    source = save(classifier(), tmp_path)
    for name in ("a", "b"):
        quantize(source, tmp_path / name, check(source), {"x": samples(64, 5)[0]}, symmetric=False, field="f")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_dynamic(tmp_path: Path) -> None:
    source, target = save(classifier(hidden=1024), tmp_path), tmp_path / "q.onnx"
    assert (
        quantize(source, target, check(source), None, symmetric=False, field="f")["operators"][
            "MatMulInteger"
        ]
        == 2
    )
    x, _ = samples(300)
    assert (classes(target, x) == classes(source, x)).mean() > 0.95


@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_leave_a_bit_free_so_that_no_cpu_saturates(tmp_path: Path, calibrated: bool) -> None:
    source, target = save(classifier(hidden=1024), tmp_path), tmp_path / "q.onnx"
    calibration = {"x": samples(300, 5)[0]} if calibrated else None
    quantize(source, target, check(source), calibration, symmetric=False, field="f")
    weights = [t for t in onnx.load(target).graph.initializer if t.data_type == TensorProto.INT8 and t.dims]
    largest = [int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in weights if len(t.dims) > 1]
    assert len(largest) == 2
    assert all(32 <= value <= 64 for value in largest)


def test_a_quantized_model_answers_as_exact_arithmetic_does(tmp_path: Path) -> None:
    source, target = save(classifier(hidden=1024), tmp_path), tmp_path / "q.onnx"
    quantize(source, target, check(source), None, symmetric=False, field="f")
    x, _ = samples(50)
    exact = ReferenceEvaluator(onnx.load(target)).run(None, {"x": x})[0]
    here = onnxruntime.InferenceSession(target).run(None, {"x": x})[0]
    assert np.abs(here - exact).max() < 1e-3 * np.abs(exact).max()


def test_static_with_a_fixed_batch(tmp_path: Path) -> None:
    source, target = save(classifier(8), tmp_path), tmp_path / "q.onnx"
    quantize(source, target, check(source), {"x": samples(20, 5)[0]}, symmetric=False, field="f")
    assert len(classes(target, samples(20)[0])) == 20


def test_convolutions(tmp_path: Path) -> None:
    source, target = save(conv_classifier(), tmp_path), tmp_path / "q.onnx"
    x = np.random.default_rng(0).random((100, 1, 8, 8)).astype(np.float32)
    with pytest.raises(JobError) as error:  # its ConvInteger would not run
        quantize(source, target, check(source), None, symmetric=False, field="f")
    assert error.value.reason == "NothingToQuantize"
    assert "Static" in error.value.message
    quantize(source, target, check(source), {"x": x}, symmetric=False, field="f")
    assert (classes(target, x) == classes(source, x)).mean() > 0.9


def test_what_cannot_be_quantized(tmp_path: Path) -> None:
    source, target = save(classifier(), tmp_path), tmp_path / "q.onnx"
    x = {"x": samples(32, 5)[0]}
    quantize(source, target, check(source), x, symmetric=False, field="f")
    bare = helper.make_model(
        helper.make_graph(
            [helper.make_node("Cos", ["x"], ["scores"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", FEATURES])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    trees = helper.make_model(
        helper.make_graph(
            [helper.make_node("Scaler", ["x"], ["scores"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", FEATURES])],
        ),
        opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=8,
    )
    cases = [
        (target, x, "AlreadyQuantized"),
        (save(bare, tmp_path, "bare.onnx"), x, "NothingToQuantize"),
        (save(trees, tmp_path, "trees.onnx"), x, "NothingToQuantize"),
    ]
    for path, calibration, reason in cases:
        with pytest.raises(JobError) as error:
            quantize(path, tmp_path / "out.onnx", check(path), calibration, symmetric=False, field="f")
        assert error.value.reason == reason


def test_a_loop_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "BATCH_LIMIT_SECONDS", 0.2)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n", 3]),
        ],
    )
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("Loop", ["", "yes", "scores"], ["never"], body=body))
    model.graph.output[0].name = "never"
    path = save(model, tmp_path)
    with pytest.raises(JobError) as error:
        classes(path, samples(4)[0])
    assert error.value.reason == "InferenceTimeout"
    began = time.monotonic()
    with pytest.raises(JobError) as error:  # without data, too, and at the first try
        expect_answers(path, check(path), [], 8, "spec.model.uri")
    assert error.value.reason == "InferenceTimeout" and time.monotonic() - began < 5
