"""Small untrained networks of the kinds that people serve, and data that they can learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.run import run_step

SIDE = 8
CLASSES = 4


class Builder:
    """A graph from ``x`` to ``scores``."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def constant(self, *shape: int, value: Any = None) -> str:
        array = (
            self.rng.normal(0, (2 / max(1, np.prod(shape[1:]))) ** 0.5, shape).astype(np.float32)
            if value is None
            else np.asarray(value)
        )
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"t{len(self.nodes)}"], **attributes))
        return str(self.nodes[-1].output[0])

    def conv(self, x: str, into: int, out: int, kernel: int = 3, group: int = 1) -> str:
        pads = [kernel // 2] * 4
        return self.node(
            "Conv",
            x,
            self.constant(out, into // group, kernel, kernel),
            self.constant(out),
            pads=pads,
            group=group,
        )

    def norm(self, x: str, channels: int) -> str:
        positive = [
            self.constant(value=self.rng.uniform(0.5, 2, channels).astype(np.float32)) for _ in range(2)
        ]
        return self.node(
            "BatchNormalization",
            x,
            positive[0],
            self.constant(channels),
            self.constant(channels),
            positive[1],
        )

    def model(self, shape: list[int | str], opset: int = 17, classes: int = CLASSES) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "scores"
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], classes])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def plain(batch: int | str = "n", width: int = 32) -> onnx.ModelProto:
    """conv, pool, conv, flatten, two dense layers."""
    b = Builder()
    x = b.node("MaxPool", b.node("Relu", b.conv("x", 1, width)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Flatten", b.node("Relu", b.conv(x, width, width)))
    x = b.node("Relu", b.node("Gemm", x, b.constant(width, width * 16), b.constant(width), transB=1))
    b.node("Softmax", b.node("Gemm", x, b.constant(width, CLASSES), b.constant(CLASSES)))
    return b.model([batch, 1, SIDE, SIDE])


def residual() -> onnx.ModelProto:
    """As a ResNet: BatchNormalization, a sum of two branches, a mean over the image."""
    b = Builder(1)
    first = b.node("Relu", b.norm(b.conv("x", 1, 32), 32))
    inner = b.node("Relu", b.norm(b.conv(first, 32, 48), 48))
    total = b.node("Relu", b.node("Add", first, b.norm(b.conv(inner, 48, 32), 32)))
    x = b.node("Flatten", b.node("GlobalAveragePool", total))
    b.node("Gemm", x, b.constant(CLASSES, 32), b.constant(CLASSES), transB=1)
    return b.model(["n", 1, SIDE, SIDE])


def depthwise() -> onnx.ModelProto:
    """As a MobileNet: depthwise convolutions, Clip, a constant per channel, ReduceMean, MatMul and
    Add.
    """
    b = Builder(2)
    x = b.node("Clip", b.conv("x", 1, 32), b.constant(value=np.float32(0)), b.constant(value=np.float32(6)))
    x = b.node("Mul", b.node("HardSwish", b.conv(x, 32, 32, group=32)), b.constant(32, 1, 1))
    x = b.node("Sigmoid", b.conv(x, 32, 40, kernel=1))
    x = b.node("ReduceMean", x, axes=[2, 3], keepdims=0)
    b.node("Add", b.node("MatMul", x, b.constant(40, CLASSES)), b.constant(CLASSES))
    return b.model(["n", 1, SIDE, SIDE])


def dense() -> onnx.ModelProto:
    """As an Inception block: branches joined, and a Reshape with its size written out."""
    b = Builder(3)
    first = b.node("Tanh", b.conv("x", 1, 32))
    joined = b.node(
        "Concat",
        b.node("Relu", b.conv(first, 32, 32, kernel=1)),
        b.node("LeakyRelu", b.conv(first, 32, 40)),
        "x",
        axis=1,
    )
    x = b.node("AveragePool", b.conv(joined, 73, 32), kernel_shape=[4, 4], strides=[4, 4])
    x = b.node("Reshape", x, b.constant(value=np.array([-1, 128], np.int64)))
    x = b.node("Elu", b.node("MatMul", x, b.constant(128, 64)))
    b.node("Gemm", x, b.constant(64, CLASSES), b.constant(CLASSES))
    return b.model(["n", 1, SIDE, SIDE])


def images(n: int, seed: int = 5) -> Data:
    """Which quarter of the image is bright, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    x = rng.normal(0, 1, (n, 1, SIDE, SIDE)).astype(np.float32)
    for i, label in enumerate(labels):
        row, column = divmod(int(label), 2)
        x[i, 0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1
    return Data({"x": x}, labels, {})


def work(source: Path, **changes: Any) -> StepContext:
    """Work on that file; ``warnings`` collects what is warned, ``max_drop`` makes a gate of
    accuracy.
    """
    warnings = changes.pop("warnings", [])
    if "max_drop" in changes:
        changes["gate"] = Gate(
            data=DataSet(location=Location(uri="s3://data/x")),
            metrics=(GateMetric(max_drop=changes.pop("max_drop")),),
        )
    fields: dict[str, Any] = {
        "field": "steps[0]",
        "source": source,
        "target": source.with_name("target.onnx"),
        "info": check(source),
        "original": source,
        "data": {},
        "models": {},
        "gate": None,
        "symmetric": False,
        "hardware": "any",
        "advance": lambda *_: None,
        "warn": warnings.append,
        "run_step": run_step,
    }
    return StepContext(**(fields | changes))
