"""Training of ONNX graphs: JAX says what ONNX Runtime says, what cannot be trained is named,
teachers teach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from modelrollout.contract.common import DataSet, Location, ModelFile
from modelrollout.contract.steps import DistillStep, Training
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.steps.distill import distill, teacher_scores
from modelrollout.optimizer.steps.quantize import quantize
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.optimizer.training.fit import Recipe, fit
from modelrollout.optimizer.training.network import Network
from modelrollout.testing.object_store import save
from tests.unit.optimizer.network_fakes import (
    CLASSES,
    SIDE,
    Builder,
    dense,
    depthwise,
    images,
    plain,
    residual,
    work,
)

pytestmark = pytest.mark.slow

PLACE = Location(uri="s3://data/x")
SOME = Training(data=DataSet(location=PLACE), epochs=2, learning_rate=0.01, batch_size=32)


def accuracy(path: Path) -> float:
    test = images(300, seed=6)
    actual: float = (
        ort.InferenceSession(path).run(None, {"x": test.inputs["x"]})[0].argmax(1) == test.labels
    ).mean()
    return actual


@pytest.mark.parametrize("network", [plain, residual, depthwise, dense])
def test_the_framework_understands_the_graph(tmp_path: Path, network: Callable[[], onnx.ModelProto]) -> None:
    """The constructor compares with ONNX Runtime and refuses a difference."""
    path = save(network(), tmp_path)
    actual = Network(path, images(40).inputs, "f")
    assert (
        actual.classes == CLASSES and actual.logits != "scores"
        if network is plain
        else actual.logits == "scores"
    )
    again = tmp_path / "again.onnx"
    actual.save(actual.weights, again)
    x = images(8).inputs
    assert np.array_equal(
        ort.InferenceSession(again).run(None, x)[0], ort.InferenceSession(path).run(None, x)[0]
    )


def _one(kind: str, *more: str, **attributes: object) -> Callable[[Builder, str], str]:
    return lambda b, x: b.node(kind, x, *more, **attributes)


UNARY = (
    "Abs",
    "Neg",
    "Erf",
    "Exp",
    "Softplus",
    "Softsign",
    "HardSigmoid",
    "Selu",
    "Identity",
    "Dropout",
    "LogSoftmax",
)
SHAPED: dict[str, Callable[[Builder, str], str]] = {
    "transpose": _one("Transpose", perm=[0, 2, 3, 1]),
    "pool as same": _one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "pool with its padding": _one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "pool without its padding": _one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "global maximum": _one("GlobalMaxPool"),
    "strided and dilated": lambda b, x: b.node(
        "Conv", x, b.constant(8, 6, 3, 3), strides=[2, 2], dilations=[2, 2], pads=[2, 1, 2, 1]
    ),
    "grouped": lambda b, x: b.node("Conv", x, b.constant(8, 3, 3, 3), group=2),
    "slope for each channel": lambda b, x: b.node("PRelu", x, b.constant(6, 1, 1)),
    "layer norm": lambda b, x: b.node("LayerNormalization", x, b.constant(SIDE), b.constant(SIDE)),
    "slice": lambda b, x: b.node(
        "Slice", x, *(b.constant(value=np.array(v, np.int64)) for v in ([1, 0], [5, 2**62], [1, 3], [1, 2]))
    ),
    "shape computed": lambda b, x: b.node(
        "Reshape",
        x,
        b.node(
            "Concat",
            b.node("Gather", b.node("Shape", x), b.constant(value=np.array([0], np.int64))),
            b.constant(value=np.array([-1], np.int64)),
            axis=0,
        ),
    ),
    "squeezed": lambda b, x: b.node(
        "Squeeze",
        b.node("Unsqueeze", x, b.constant(value=np.array([2], np.int64))),
        b.constant(value=np.array([2], np.int64)),
    ),
    "divided": lambda b, x: b.node(
        "Div",
        x,
        b.node("Sqrt", b.node("ReduceMean", b.node("Pow", x, b.constant(value=np.float32(2))), axes=[1])),
    ),
    "largest of two": lambda b, x: b.node(
        "Max", x, b.node("Sub", x, b.node("Mul", x, x)), b.node("Min", x, x)
    ),
    **{kind: _one(kind) for kind in UNARY},
}


@pytest.mark.parametrize("what", SHAPED)
def test_operators(tmp_path: Path, what: str) -> None:
    b = Builder(4)
    x = SHAPED[what](b, b.conv("x", 1, 6))
    x = b.node("Flatten", b.node("Relu", x))
    mean = b.node("ReduceMean", x, axes=[1], keepdims=1)
    b.node("Gemm", mean, b.constant(1, CLASSES), b.constant(CLASSES))
    Network(save(b.model(["n", 1, SIDE, SIDE]), tmp_path), images(8).inputs, "f")


def refusal(path: Path) -> JobError:
    with pytest.raises(JobError) as error:
        Network(path, images(8).inputs, "spec.optimization.steps[0].prune.training")
    return error.value


def test_what_cannot_be_trained_is_named(tmp_path: Path) -> None:
    model = plain()
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Celu"
    error = refusal(save(model, tmp_path))
    assert (
        error.reason == "TrainingUnsupported"
        and "Celu" in error.message
        and error.message.startswith("spec.optimization.steps[0]")
    )
    pool = plain()
    node = next(n for n in pool.graph.node if n.op_type == "MaxPool")
    node.attribute.append(helper.make_attribute("ceil_mode", 1))
    assert "ceil_mode" in refusal(save(pool, tmp_path)).message
    path, target = save(plain(), tmp_path), tmp_path / "q.onnx"
    quantize(path, target, check(path), images(32).inputs, symmetric=False, field="f")
    assert refusal(target).reason == "AlreadyQuantized"


def test_another_understanding_is_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelrollout.optimizer.training import operators

    monkeypatch.setitem(operators.OPERATORS, "Relu", lambda _, x: abs(x))
    assert "different scores" in refusal(save(plain(), tmp_path)).message


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    path = save(plain(batch=8), tmp_path)
    network = Network(path, images(20).inputs, "f")
    weights, losses = fit(network, images(100), Recipe(1, 0.01, 64), "f", lambda *_: None)
    assert len(losses) == 1 and set(weights) == set(network.weights)
    with pytest.raises(JobError) as error:
        fit(network, images(7), Recipe(1, 0.01, 64), "f", lambda *_: None)
    assert error.value.reason == "TrainingDataTooSmall"


def test_a_rate_that_is_far_too_high_is_said(tmp_path: Path) -> None:
    network = Network(save(residual(), tmp_path), images(8).inputs, "f")
    with pytest.raises(JobError) as error:
        fit(network, images(256), Recipe(2, 3e38, 32), "f", lambda *_: None)
    assert error.value.reason == "TrainingDiverged"


@pytest.mark.parametrize("shift", [-1, 1])
def test_labels_that_the_model_has_no_class_for(tmp_path: Path, shift: int) -> None:
    """To JAX -1 is the last class, and what is beyond it makes the loss no number."""
    actual = images(40)
    assert actual.labels is not None
    data = replace(actual, labels=actual.labels + shift)
    network = Network(save(plain(), tmp_path), data.inputs, "f")
    with pytest.raises(JobError) as error:
        fit(network, data, Recipe(1, 0.01, 32), "f.training", lambda *_: None)
    assert (error.value.reason, error.value.message.startswith("f.training.data.labels: ")) == (
        "LabelsOutOfRange",
        True,
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save(plain(), tmp_path_factory.mktemp("teacher"), "teacher.onnx")
    network = Network(path, images(8).inputs, "f")
    weights, _ = fit(network, images(1024), Recipe(3, 0.01, 32), "f", lambda *_: None)
    network.save(weights, path)
    assert accuracy(path) > 0.85
    return path


def test_a_teacher_needs_no_labels(tmp_path: Path, teacher: Path) -> None:
    """With hard labels at 0 the student never sees one: all it can do it has from the teacher's
    scores.
    """
    step = DistillStep(size=0.2, hard_labels=0.0, training=SOME)
    data = images(1024, seed=9)
    w = work(
        teacher, target=tmp_path / "student.onnx", data={"training.data": type(data)(data.inputs, None, {})}
    )
    done = distill(step, w)
    assert done["weightsAfter"] <= 0.2 * done["weightsBefore"]
    assert accuracy(w.target) > 0.7
    assert not definition_of(step).uses_labels(step, "training.data", True)


def test_a_given_student_is_trained(tmp_path: Path, teacher: Path) -> None:
    student = save(plain(width=8), tmp_path, "small.onnx")
    before = accuracy(student)
    w = work(
        teacher,
        target=tmp_path / "student.onnx",
        data={"training.data": images(1024, seed=9)},
        models={"student": student},
    )
    distill(DistillStep(student=ModelFile(location=PLACE), training=SOME), w)
    assert accuracy(w.target) > max(0.6, before)
    with pytest.raises(JobError) as error:
        distill(
            DistillStep(student=ModelFile(location=PLACE), training=SOME),
            work(teacher, data=w.data, models={"student": save(other(), tmp_path)}),
        )
    assert error.value.reason == "StudentMismatch"


def other() -> onnx.ModelProto:
    b = Builder()
    b.node("Gemm", b.node("Flatten", "x"), b.constant(SIDE * SIDE, CLASSES + 1))
    return b.model(["n", 1, SIDE, SIDE], classes=CLASSES + 1)


def test_probabilities_teach_as_logits_do(tmp_path: Path, teacher: Path) -> None:
    model = onnx.load(teacher)
    softmax = model.graph.node[-1]
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.node[-1]
    bare.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(softmax.input[0], TensorProto.FLOAT, ["n", CLASSES])
    )
    logits = save(bare, tmp_path, "logits.onnx")
    data = images(64)
    one, two = (teacher_scores(path, check(path), data, work(path)) for path in (teacher, logits))

    def softened(scores: np.ndarray) -> np.ndarray:
        powers = np.exp((scores - scores.max(1, keepdims=True)) / 4)
        return powers / powers.sum(1, keepdims=True)

    assert one.max() <= 0 < two.max()
    assert np.allclose(softened(one), softened(two), atol=1e-3)
